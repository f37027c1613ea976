//! The change event's JSON envelope, version 1: written straight from a tuple's text, read back borrowed.

use crate::position::ParseError;

/// What happened to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// A table was emptied.
    Truncate,
    /// A row was read by a backfill.
    Read,
    /// `pg_logical_emit_message`.
    Message,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 6] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Read, Op::Message];

    /// The word in the envelope and in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Read => "read",
            Op::Message => "message",
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Op {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        Op::ALL.into_iter().find(|op| op.as_str() == s).ok_or(ParseError("operation"))
    }
}

/// A change event, parsed once and shared by every connector.
#[derive(Clone, Debug)]
pub struct Event {}

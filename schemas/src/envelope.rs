//! The change event's JSON envelope, version 1: written straight from a tuple's text, read back borrowed.

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

/// A change event, parsed once and shared by every connector.
#[derive(Clone, Debug)]
pub struct Event {}

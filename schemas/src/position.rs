//! Positions: the total order of change events within one epoch.

use std::fmt;
use std::str::FromStr;

/// A PostgreSQL log sequence number: a byte address in the write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not an LSN, a position or an event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct ParseError(pub &'static str);

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (high, low) = s.split_once('/').ok_or(ParseError("LSN"))?;
        // `from_str_radix` would take a sign; an LSN has none.
        let hex = |t: &str| match t.len() {
            1..=8 if t.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(t, 16).map_err(|_| ParseError("LSN")),
            _ => Err(ParseError("LSN")),
        };
        Ok(Lsn((u64::from(hex(high)?) << 32) | u64::from(hex(low)?)))
    }
}

/// Which half of a key change an event is: an UPDATE that changes the key becomes a delete of the old key and an
/// insert of the new one, under one ordinal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Half {
    /// An event of its own: the usual case.
    #[default]
    Whole = 0,
    /// The delete of the old key; printed as suffix `d`.
    Delete = 1,
    /// The insert of the new key; printed as suffix `i`.
    Insert = 2,
}

impl Half {
    /// The half with this number, if there is one.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Half> {
        match n {
            0 => Some(Half::Whole),
            1 => Some(Half::Delete),
            2 => Some(Half::Insert),
            _ => None,
        }
    }
}

/// Where an event stands in the source's history. Ordered; comparable only within one lineage, and an epoch starts
/// whenever history did not continue.
///
/// `commit_lsn` is the LSN of the transaction's commit record (pgoutput's Begin already names it), not of the change:
/// several rows of one multi-row record share a change LSN, and change LSNs of interleaved transactions are not
/// monotonic in commit order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch, from 1. 0 occurs only in [`Position::NONE`].
    pub epoch: u32,
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// Count of the change within its transaction, from 0, before any filter of ours;
    /// [`Position::END_ORDINAL`] for the entry that closes the transaction.
    pub ordinal: u32,
    /// Which half of a key change.
    pub half: Half,
}

impl Position {
    /// Before everything: what a partition without a live event has.
    pub const NONE: Position = Position { epoch: 0, commit_lsn: Lsn(0), ordinal: 0, half: Half::Whole };

    /// The ordinal of an `end` entry: above every change of its transaction.
    pub const END_ORDINAL: u32 = u32::MAX;

    /// The position of a change.
    #[must_use]
    pub fn new(epoch: u32, commit_lsn: Lsn, ordinal: u32) -> Self {
        Position { epoch, commit_lsn, ordinal, half: Half::Whole }
    }

    /// The position of the `end` entry of the transaction that commits at `commit_lsn`.
    #[must_use]
    pub fn end(epoch: u32, commit_lsn: Lsn) -> Self {
        Position::new(epoch, commit_lsn, Position::END_ORDINAL)
    }

    /// Whether this is [`Position::NONE`].
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Position::NONE
    }

    /// Fixed-width upper-case hexadecimal text whose byte order is the order of positions: what a sink stores as a
    /// row's version and compares, in any database.
    #[must_use]
    pub fn version_text(self) -> String {
        // By hand: a sink writes one for every row.
        let mut text = String::with_capacity(33);
        let mut hex = |value: u64, digits: u32| {
            for at in (0..digits).rev() {
                let digit = (value >> (4 * at) & 15) as u8;
                text.push(char::from(if digit < 10 { b'0' + digit } else { b'A' - 10 + digit }));
            }
        };
        hex(u64::from(self.epoch), 8);
        hex(self.commit_lsn.0, 16);
        hex(u64::from(self.ordinal), 8);
        hex(self.half as u64, 1);
        text
    }
}

/// `1-0/16B3748-17`, with `d` or `i` after the ordinal of a key change's half and `end` for an end entry's ordinal.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-", self.epoch, self.commit_lsn)?;
        if self.ordinal == Position::END_ORDINAL {
            return f.write_str("end");
        }
        write!(f, "{}", self.ordinal)?;
        match self.half {
            Half::Whole => Ok(()),
            Half::Delete => f.write_str("d"),
            Half::Insert => f.write_str("i"),
        }
    }
}

impl FromStr for Position {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = ParseError("position");
        let mut parts = s.splitn(3, '-');
        let (epoch, lsn, rest) = (parts.next(), parts.next(), parts.next());
        let (Some(epoch), Some(lsn), Some(rest)) = (epoch, lsn, rest) else { return Err(error) };
        let digits =
            |t: &str| if !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u32>().map_err(|_| error) } else { Err(error) };
        let (epoch, commit_lsn) = (digits(epoch)?, lsn.parse()?);
        if rest == "end" {
            return Ok(Position::end(epoch, commit_lsn));
        }
        let (ordinal, half) = match rest.as_bytes().last() {
            Some(b'd') => (&rest[..rest.len() - 1], Half::Delete),
            Some(b'i') => (&rest[..rest.len() - 1], Half::Insert),
            _ => (rest, Half::Whole),
        };
        Ok(Position { epoch, commit_lsn, ordinal: digits(ordinal)?, half })
    }
}

/// One history of one slot: positions compare only within a lineage (and an epoch). Sixty-four bits of a hash over
/// system identifier and slot name; the readable form stands in each fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lineage(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_print_parse_and_order() {
        let texts = ["1-0/16B3748-0", "1-0/16B3748-17", "1-0/16B3748-17d", "1-0/16B3748-17i", "1-0/16B3748-end", "1-1/0-3", "2-0/1-0"];
        let mut last = Position::NONE;
        let mut last_version = last.version_text();
        for text in texts {
            let position: Position = text.parse().expect("valid");
            assert_eq!(position.to_string(), text);
            assert!(last < position, "{last} < {position}");
            assert!(last_version < position.version_text());
            (last, last_version) = (position, position.version_text());
        }
        for bad in ["", "1", "1-0/1", "1-0/1-", "1-01-3", "-0/1-3", "1-0/1-3x", "1-0/1-+3", "1-0/111111111-3", "1-0/-1-3"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}

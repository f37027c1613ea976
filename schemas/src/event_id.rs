//! Event ids: the same on every replay, and different for different changes.

use std::fmt;
use std::str::FromStr;

use crate::position::{ParseError, Position};

/// The id of a change event.
///
/// ```text
/// e1-0/16B3748-17            a change: epoch, commit LSN, ordinal
/// e1-0/16B3748-17d  …-17i    the two halves of a key change
/// e1-bnightly-public.orders-12.0-44   a backfill's row: job, table, chunk, attempt, row within the attempt
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EventId {
    /// A change from the write-ahead log.
    Change(Position),
    /// A row read by a backfill.
    Read(ReadId),
}

/// The id of a backfill's row. A retried chunk may read other rows, so the attempt is part of the id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadId {
    /// The epoch in which the row was read.
    pub epoch: u32,
    /// The job: `[a-z0-9_]+`, so that the id can be split again.
    pub job: String,
    /// Schema and table, as configured.
    pub table: String,
    /// Number of the chunk within job and table, from 0.
    pub chunk: u32,
    /// Attempt at that chunk, from 0.
    pub attempt: u32,
    /// Row within the attempt, from 0.
    pub row: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventId::Change(position) => write!(f, "e{position}"),
            EventId::Read(r) => write!(f, "e{}-b{}-{}-{}.{}-{}", r.epoch, r.job, r.table, r.chunk, r.attempt, r.row),
        }
    }
}

impl FromStr for EventId {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = ParseError("event id");
        let rest = s.strip_prefix('e').ok_or(error)?;
        let Some((epoch, read)) = rest.split_once("-b") else {
            return rest.parse().map(EventId::Change).map_err(|_| error);
        };
        // The table's name may hold a dash; job, chunk, attempt and row may not.
        let (job, read) = read.split_once('-').ok_or(error)?;
        let (read, row) = read.rsplit_once('-').ok_or(error)?;
        let (table, chunk) = read.rsplit_once('-').ok_or(error)?;
        let (chunk, attempt) = chunk.split_once('.').ok_or(error)?;
        let number = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u32>().map_err(|_| error) } else { Err(error) };
        Ok(EventId::Read(ReadId {
            epoch: number(epoch)?,
            job: job.to_owned(),
            table: table.to_owned(),
            chunk: number(chunk)?,
            attempt: number(attempt)?,
            row: number(row)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        for text in ["e1-0/16B3748-17", "e1-0/16B3748-17d", "e12-1/2-0i", "e1-bnightly-public.order-item-12.0-44"] {
            let id: EventId = text.parse().expect("valid");
            assert_eq!(id.to_string(), text);
        }
        for bad in ["", "e", "1-0/1-1", "e1-b", "e1-bjob-t-1-2", "e1-bjob-t-1.x-2"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }
}

//! Places in the journal as people name them (the oldest entry, an offset, a moment, an LSN), and where in a partition they are.

use std::fmt;
use std::str::FromStr;

use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Kind, Lsn, Position};

use super::filter::{Filter, FilterError, Verdict};
use super::settlement::Point;
use crate::config::units;
use crate::journal::{From, Journal, JournalError, Log, Offset};

/// Entries read before the one that is looked for: a row in many parts and a run that was fenced off stretch over less, and what stands there tells
/// position and token.
const RUN_UP: u64 = 1_000;
/// A stretch that is searched entry by entry for an LSN. What a run that was fenced off wrote late is out of order by less.
const SEARCHED: u64 = 50_000;

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The oldest entry still there.
    First,
    /// Behind the newest one.
    Next,
    /// What was stored at this moment or later, milliseconds since the Unix epoch.
    Time(i64),
    /// An offset, of one partition where it is named.
    Offset(Option<u16>, Offset),
    /// The first transaction that commits at this LSN or later, in the present epoch.
    Lsn(Lsn),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text {
            "first" => return Ok(Place::First),
            "next" => return Ok(Place::Next),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Place::Offset(None, Offset(offset)));
        }
        if let Some((partition, offset)) = text.strip_prefix('p').and_then(|rest| rest.split_once('@'))
            && let (Ok(partition), Ok(offset)) = (partition.parse(), offset.parse())
        {
            return Ok(Place::Offset(Some(partition), Offset(offset)));
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Place::Lsn(lsn));
        }
        if let Some(ago) = units::duration(text) {
            let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
            return Ok(Place::Time(jiff::Timestamp::now().as_millisecond().saturating_sub(ago)));
        }
        text.parse::<jiff::Timestamp>().map(|moment| Place::Time(moment.as_millisecond())).map_err(|_| {
            "write `first`, `next`, an offset as 1234 or p2@1234, a moment as 2026-11-22T10:00:00Z, a duration as 10m or an LSN as 0/16B3748".to_owned()
        })
    }
}

/// Why a place is not to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlaceError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The log contradicts the protocol.
    #[error("partition {0}: {1}")]
    Filter(u16, FilterError),
    /// Retention has removed what stood there.
    #[error("partition {partition}: retention has removed what stood there; the oldest entry is at offset {}{}", oldest.0, Stored(*stored_at_ms))]
    Expired {
        /// The partition.
        partition: u16,
        /// The oldest entry still there.
        oldest: Offset,
        /// When it was stored, milliseconds since the Unix epoch.
        stored_at_ms: i64,
    },
    /// There is no such offset yet.
    #[error("partition {partition} ends at offset {}", end.0)]
    Beyond {
        /// The partition.
        partition: u16,
        /// One above the newest entry.
        end: Offset,
    },
    /// Offsets of different partitions have nothing to do with each other.
    #[error("an offset is that of one partition: write p0@{} for the first of {partitions}", offset.0)]
    WhichPartition {
        /// What was asked for.
        offset: Offset,
        /// How many there are.
        partitions: u16,
    },
    /// No such partition.
    #[error("partition {partition} does not exist; the journal has {partitions}")]
    NoPartition {
        /// What was asked for.
        partition: u16,
        /// How many there are.
        partitions: u16,
    },
}

/// When an entry was stored, in words.
struct Stored(i64);

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(moment) if self.0 > 0 => write!(f, ", stored {moment}"),
            _ => Ok(()),
        }
    }
}

impl PlaceError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            PlaceError::Journal(error) => error.code(),
            PlaceError::Filter(_, error) => error.code(),
            PlaceError::Expired { .. } => "replay.expired",
            PlaceError::Beyond { .. } | PlaceError::WhichPartition { .. } | PlaceError::NoPartition { .. } => "usage.arguments",
        }
    }
}

/// A place as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where reading begins.
    pub(super) point: Point,
    /// The live position of the entry there; unknown at the end, and of rows that a backfill read.
    pub(super) position: Option<Position>,
}

/// Whether reading would begin behind the last entry that is asked for: a reader would wait there for what comes next.
///
/// # Errors
/// Those of the journal.
pub async fn is_behind(journal: &dyn Journal, partition: u16, from: From, last: Offset) -> Result<bool, JournalError> {
    Ok(match from {
        From::Next => true,
        From::Time(ms) => journal.tail(Log::Data(partition)).await?.is_none_or(|last| last.stored_at_ms < ms),
        From::Offset(offset) => offset > last,
        From::First => false,
    })
}

impl Place {
    /// The partitions that are meant, of so many.
    ///
    /// # Errors
    /// An offset of a partition that is not there, or of none where there are several.
    pub fn partitions(self, all: u16) -> Result<Vec<u16>, PlaceError> {
        match self {
            Place::Offset(Some(partition), _) if partition >= all => Err(PlaceError::NoPartition { partition, partitions: all }),
            Place::Offset(Some(partition), _) => Ok(vec![partition]),
            Place::Offset(None, offset) if all > 1 => Err(PlaceError::WhichPartition { offset, partitions: all }),
            _ => Ok((0..all).collect()),
        }
    }

    /// Where reading a partition begins; a moment is about this moment or a little earlier.
    ///
    /// # Errors
    /// Places that are not to be had, and those of the journal.
    pub async fn read_from(self, journal: &dyn Journal, partition: u16, epoch: u32) -> Result<From, PlaceError> {
        Ok(match self {
            Place::First => From::First,
            Place::Next => From::Next,
            Place::Time(ms) => From::Time(ms),
            Place::Offset(..) | Place::Lsn(_) => match self.find(journal, partition, epoch).await? {
                Some(found) => From::Offset(found.point.offset),
                None => From::First,
            },
        })
    }

    /// The point in a partition where this place is: the first entry at or behind it, else the end. `None` of an empty log.
    pub(super) async fn find(self, journal: &dyn Journal, partition: u16, epoch: u32) -> Result<Option<Found>, PlaceError> {
        let log = Log::Data(partition);
        let Some(bounds) = journal.bounds(log).await? else { return Ok(None) };
        let end = Offset(bounds.last.0 + 1);
        // A log begins at 0 or 1; anything else means that retention was here.
        let is_whole = bounds.first <= Offset(1);
        let target = if let Place::Lsn(lsn) = self { Position::new(epoch.max(1), lsn, 0) } else { Position::NONE };
        let from = match self {
            Place::First => From::First,
            Place::Offset(_, offset) if offset > end => return Err(PlaceError::Beyond { partition, end }),
            Place::Offset(_, offset) if offset < bounds.first && !is_whole => return Err(expired(journal, partition).await?),
            Place::Offset(_, offset) if offset < end => match Offset(offset.0.saturating_sub(RUN_UP)) {
                before if before <= bounds.first => From::First,
                before => From::Offset(before),
            },
            Place::Time(ms) if journal.tail(log).await?.is_some_and(|last| last.stored_at_ms >= ms) => From::Time(ms),
            Place::Lsn(_) => match search(journal, partition, target).await? {
                Offset(0) => From::First,
                before => From::Offset(before),
            },
            // The end.
            Place::Next | Place::Offset(..) | Place::Time(_) => From::Offset(Offset(end.0.saturating_sub(RUN_UP).max(bounds.first.0))),
        };
        let at_end = matches!((self, from), (Place::Next, _) | (Place::Time(_), From::Offset(_)));
        let mut reader = journal.reader(log, from).await?;
        let mut filter = Filter::new();
        let mut is_first = true;
        loop {
            let chunk = reader.next().await?;
            if let Place::Time(ms) = self
                && is_first
                && !at_end
                && !is_whole
                && chunk.stored_at_ms > ms
                && chunk.first_offset.0 <= bounds.first.0 + 1
            {
                return Err(expired(journal, partition).await?);
            }
            let mut found = None;
            for (offset, record) in (chunk.first_offset.0..).map(Offset).zip(Records::new(&chunk.bytes)) {
                let failed = |error| PlaceError::Filter(partition, error);
                let record = record.map_err(|error| failed(FilterError::Malformed { offset, error }))?;
                let open = filter.open_since();
                let Verdict::Pass(passed) = filter.push(offset, record).map_err(failed)? else { continue };
                let header = passed.header;
                if header.kind == Kind::Fence {
                    continue;
                }
                let position = header.is_live().then_some(header.position);
                if !is_whole && is_first && matches!(self, Place::Lsn(_)) && from == From::First && header.prev >= target {
                    return Err(expired(journal, partition).await?);
                }
                is_first = false;
                let is_there = match self {
                    Place::First => true,
                    Place::Next => false,
                    Place::Time(ms) => chunk.stored_at_ms >= ms,
                    Place::Offset(_, wanted) => offset >= wanted,
                    Place::Lsn(_) => position.unwrap_or(header.prev) >= target,
                };
                if is_there && !at_end {
                    let point = Point { offset: open.unwrap_or(offset), position: header.prev, token: header.token };
                    found = Some(Found { point, position });
                    break;
                }
            }
            if found.is_some() {
                return Ok(found);
            }
            is_first = false;
            if chunk.next_offset() >= end {
                let point = Point { offset: end, position: filter.position(), token: filter.token() };
                return Ok(Some(Found { point, position: None }));
            }
        }
    }
}

async fn expired(journal: &dyn Journal, partition: u16) -> Result<PlaceError, PlaceError> {
    let oldest = journal.reader(Log::Data(partition), From::First).await?.next().await?;
    Ok(PlaceError::Expired { partition, oldest: oldest.first_offset, stored_at_ms: oldest.stored_at_ms })
}

/// An offset before which everything lies below `target`, by halves; at most some [`SEARCHED`] entries before the place. 0 means the oldest entry.
async fn search(journal: &dyn Journal, partition: u16, target: Position) -> Result<Offset, PlaceError> {
    let log = Log::Data(partition);
    let Some(bounds) = journal.bounds(log).await? else { return Ok(Offset(0)) };
    let (mut low, mut high) = (bounds.first.0, bounds.last.0);
    while high - low > SEARCHED {
        let middle = low + (high - low) / 2;
        let chunk = journal.reader(log, From::Offset(Offset(middle))).await?.next().await?;
        let mut entries = Records::new(&chunk.bytes).filter_map(Result::ok).filter_map(|record| Entry::decode(record).ok());
        // What a fence says of `prev` proves nothing.
        match entries.find(|entry| entry.header.kind != Kind::Fence) {
            Some(entry) if entry.header.prev < target => low = middle,
            Some(_) | None => high = middle,
        }
    }
    let offset = low.saturating_sub(SEARCHED);
    Ok(if offset <= bounds.first.0 { Offset(0) } else { Offset(offset) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_people_write_them() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!((place("first"), place("next")), (Ok(Place::First), Ok(Place::Next)));
        assert_eq!(place("1234"), Ok(Place::Offset(None, Offset(1234))));
        assert_eq!(place("p2@1234"), Ok(Place::Offset(Some(2), Offset(1234))));
        assert_eq!(place("0/16B3748"), Ok(Place::Lsn(Lsn(0x16B_3748))));
        assert_eq!(place("1970-01-01T00:00:01Z"), Ok(Place::Time(1000)));
        assert!(matches!(place("10m"), Ok(Place::Time(ms)) if ms > 1_700_000_000_000));
        for wrong in ["", "p@1", "p1@", "-1", "0/", "yesterday", "2026-11-22", "p70000@1"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_offset_is_that_of_one_partition() {
        let at = |partition| Place::Offset(partition, Offset(5));
        assert_eq!(at(Some(2)).partitions(4).ok(), Some(vec![2]));
        assert_eq!((at(None).partitions(1).ok(), Place::First.partitions(2).ok()), (Some(vec![0]), Some(vec![0, 1])));
        assert!(at(None).partitions(2).is_err() && at(Some(4)).partitions(4).is_err());
        let expired = PlaceError::Expired { partition: 1, oldest: Offset(70), stored_at_ms: 1000 };
        assert_eq!(
            expired.to_string(),
            "partition 1: retention has removed what stood there; the oldest entry is at offset 70, stored 1970-01-01T00:00:01Z"
        );
    }
}

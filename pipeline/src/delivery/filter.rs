//! The reader's half of the writer protocol: of everything a partition stores, what counts, once and in order.
//!
//! A capture run that lost its slot may still have batches under way, and a run that starts again sends some events a
//! second time. The journal stores all of that; every reader (delivery, `tap`, the comparison of the demo) sees it
//! through this filter:
//!
//! - **token**: the highest token seen so far wins; entries of a lower one are dropped (*fenced*).
//! - **position**: a live entry at or below the highest live position is a *repeat* and is dropped. A higher epoch is
//!   higher than every position before it.
//! - **prev**: an entry names the live position before it; when that is not ours, something is missing: a definite
//!   error, never a warning.
//! - **parts** of a split body are joined, their length and checksum compared; a later run drops what is half joined.
//! - rows of a backfill pass whatever their position is: their version decides at the target.
//!
//! Pure: no clock, no I/O, no task. Owns nothing but the few numbers above and at most one half-joined body.

use std::mem;

use tillstream_schemas::entry::{EntryError, PartInfo, Records};
use tillstream_schemas::{Entry, Header, Kind, Lineage, Position};

use crate::journal::{Chunk, Offset};

/// The longest body that parts may add up to, in bytes: PostgreSQL's own limit for a row, tripled because JSON escapes
/// and base64 lengthen it. Guards memory against a damaged length, nothing else.
const BODY_BYTES_MAX: u32 = 3 << 30;

/// What the entries of one partition say when only the rightful ones are heard.
#[derive(Debug, Default)]
pub struct Filter {
    /// The highest token seen.
    token: u32,
    /// The highest live position; unknown until the first entry that names one.
    position: Option<Position>,
    /// Whether the reader began behind a checkpoint and so has seen every fence since.
    resumed: bool,
    /// Whether reading began below `position` on purpose, and has not come back to it.
    rewound: bool,
    /// The history that `position` belongs to.
    lineage: Option<Lineage>,
    open: Option<Open>,
    /// The last joined body, lent out by [`Filter::push`] and reused.
    joined: Vec<u8>,
    counts: Counts,
}

/// A body whose parts are still coming.
#[derive(Debug)]
struct Open {
    position: Position,
    whole: Kind,
    token: u32,
    first_offset: Offset,
    next_index: u16,
    info: PartInfo,
}

/// What passed and what did not, since the filter was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Change events that passed.
    pub events: u64,
    /// Rows of a backfill that passed.
    pub reads: u64,
    /// Transaction ends that passed.
    pub ends: u64,
    /// Fences seen that no higher token had already overtaken.
    pub fences: u64,
    /// Entries of a run with a lower token.
    pub fenced: u64,
    /// Live entries at or below the highest position.
    pub repeats: u64,
    /// Messages of other producers.
    pub foreign: u64,
    /// Parts of bodies that were never completed.
    pub parts_dropped: u64,
    /// Changes of the lineage, each with a higher epoch.
    pub lineages: u64,
}

/// One whole entry that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// Its header; of joined parts as if it had been written whole.
    pub header: Header<'a>,
    /// Its body.
    pub body: &'a [u8],
}

/// Why an entry does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Written by a run that a later one has fenced off.
    Fenced,
    /// At or below the highest live position.
    Repeat,
    /// Not an entry of ours.
    Foreign,
    /// A part of a body that is not complete yet, or never will be.
    Part,
}

/// What the filter says of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It counts: an event, a read, an end, a fence or a marker.
    Pass(Passed<'a>),
    /// It does not.
    Skip(Skip),
}

/// The log contradicts the protocol: reading stops here, because going on would hide a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The entry follows something that was not read.
    #[error("gap before offset {}: the entry follows {found}, but the last one read is {expected}", offset.0)]
    Gap {
        /// Where.
        offset: Offset,
        /// The last live position that was read.
        expected: Position,
        /// What the entry says came before it.
        found: Position,
    },
    /// The bytes claim to be ours and cannot be read.
    #[error("entry at offset {}: {error}", offset.0)]
    Malformed {
        /// Where.
        offset: Offset,
        /// What is wrong with it.
        error: EntryError,
    },
    /// Another history began without a new epoch, so that its positions cannot be compared.
    #[error("entry at offset {} belongs to another history (lineage {:016x}, before {:016x}) but to no later epoch", offset.0, found.0, expected.0)]
    Lineage {
        /// Where.
        offset: Offset,
        /// The history so far.
        expected: Lineage,
        /// That of the entry.
        found: Lineage,
    },
}

impl FilterError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            FilterError::Gap { .. } => "delivery.gap",
            FilterError::Malformed { .. } => "delivery.malformed_entry",
            FilterError::Lineage { .. } => "delivery.lineage_changed",
        }
    }

    /// Where in the log.
    #[must_use]
    pub fn offset(&self) -> Offset {
        match self {
            FilterError::Gap { offset, .. } | FilterError::Malformed { offset, .. } | FilterError::Lineage { offset, .. } => *offset,
        }
    }
}

impl Filter {
    /// A filter for a reader that starts anywhere: the first entry says what came before it.
    #[must_use]
    pub fn new() -> Self {
        Filter::default()
    }

    /// A filter for a reader that goes on behind a checkpoint: the next live entry must follow `position`. A checkpoint
    /// without a position was saved before any entry named one (only a fence was read), so the next one may.
    #[must_use]
    pub fn resume(token: u32, position: Position) -> Self {
        Filter { token, position: (!position.is_none()).then_some(position), resumed: true, ..Filter::default() }
    }

    /// A filter for a reader that knows `position` and has to look for it again from further back, because the log's
    /// offsets no longer mean what they did. What lies up to it is repeats; the first live entry behind it must follow it.
    #[must_use]
    pub fn rewound(token: u32, position: Position) -> Self {
        Filter { rewound: true, ..Filter::resume(token, position) }
    }

    /// The highest token seen.
    #[must_use]
    pub fn token(&self) -> u32 {
        self.token
    }

    /// The highest live position; [`Position::NONE`] before the first.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position.unwrap_or(Position::NONE)
    }

    /// Whether it still looks for its place.
    #[must_use]
    pub fn is_rewound(&self) -> bool {
        self.rewound
    }

    /// Counts since the filter was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Offset of the first part of a body that is not complete: a checkpoint must not pass it.
    #[must_use]
    pub fn open_since(&self) -> Option<Offset> {
        self.open.as_ref().map(|o| o.first_offset)
    }

    /// Hands every entry of a chunk to `visit`, in order, with its offset and verdict.
    ///
    /// # Errors
    /// The filter's own, and whatever `visit` answers; the chunk is left there.
    pub fn chunk<E: From<FilterError>>(
        &mut self,
        chunk: &Chunk,
        mut visit: impl FnMut(Offset, Verdict<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (n, record) in (0u64..).zip(Records::new(&chunk.bytes)) {
            let offset = Offset(chunk.first_offset.0 + n);
            let record = record.map_err(|error| FilterError::Malformed { offset, error })?;
            visit(offset, self.push(offset, record)?)?;
        }
        Ok(())
    }

    /// Judges the next entry (without its length prefix). Offsets must rise.
    ///
    /// # Errors
    /// [`FilterError`]: the log contradicts the protocol. The filter is unchanged and must not be fed further.
    pub fn push<'a>(&'a mut self, offset: Offset, record: &'a [u8]) -> Result<Verdict<'a>, FilterError> {
        let entry = match Entry::decode(record) {
            Ok(entry) => entry,
            Err(EntryError::Foreign(_)) => {
                self.counts.foreign += 1;
                return Ok(Verdict::Skip(Skip::Foreign));
            }
            Err(error) => return Err(FilterError::Malformed { offset, error }),
        };
        let header = entry.header;
        if header.token < self.token {
            self.counts.fenced += 1;
            return Ok(Verdict::Skip(Skip::Fenced));
        }
        if header.token > self.token {
            self.token = header.token;
            self.drop_open();
            if header.kind != Kind::Fence && !self.resumed {
                // A run's first entry is its fence, so reading began behind it, and what passed so far may have come
                // from a run that was fenced off already: this entry is the first that can be believed.
                self.position = None;
            }
        }
        if header.kind == Kind::Fence {
            // A fence is written before its run has verified the tail, so what it says of `prev` proves nothing.
            self.counts.fences += 1;
            return Ok(Verdict::Pass(Passed { header, body: entry.body }));
        }
        match header.part {
            Some(part) => self.part(offset, entry, part),
            None => self.whole(offset, entry),
        }
    }

    fn whole<'a>(&'a mut self, offset: Offset, entry: Entry<'a>) -> Result<Verdict<'a>, FilterError> {
        // One run writes the parts of a body without anything between them: this run gave the open one up.
        self.drop_open();
        if self.is_repeat(&entry.header) {
            self.counts.repeats += 1;
            return Ok(Verdict::Skip(Skip::Repeat));
        }
        self.check(offset, &entry.header)?;
        self.accept(&entry.header);
        Ok(Verdict::Pass(Passed { header: entry.header, body: entry.body }))
    }

    fn part<'a>(&'a mut self, offset: Offset, entry: Entry<'a>, part: PartInfo) -> Result<Verdict<'a>, FilterError> {
        let header = entry.header;
        let malformed = |what| FilterError::Malformed { offset, error: EntryError::Malformed(what) };
        if self.is_repeat(&header) {
            if part.index + 1 == part.count {
                self.counts.repeats += 1;
            }
            return Ok(Verdict::Skip(Skip::Repeat));
        }
        if part.length > BODY_BYTES_MAX {
            return Err(malformed("length of a split body"));
        }
        if part.index == 0 {
            self.drop_open();
            self.check(offset, &header)?;
            self.joined.clear();
            self.open = Some(Open {
                position: header.position,
                whole: header.whole,
                token: header.token,
                first_offset: offset,
                next_index: 0,
                info: part,
            });
        }
        let Some(open) = &mut self.open else {
            // Reading began inside the body. `position` stays unknown (or behind), so the next entry decides.
            self.counts.parts_dropped += 1;
            return Ok(Verdict::Skip(Skip::Part));
        };
        let same = open.position == header.position
            && open.whole == header.whole
            && open.token == header.token
            && PartInfo { index: 0, ..open.info } == PartInfo { index: 0, ..part };
        if !same || part.index != open.next_index {
            self.drop_open();
            self.counts.parts_dropped += 1;
            return Ok(Verdict::Skip(Skip::Part));
        }
        open.next_index += 1;
        self.joined.extend_from_slice(entry.body);
        if self.joined.len() > part.length as usize {
            return Err(malformed("length of a split body"));
        }
        if part.index + 1 < part.count {
            return Ok(Verdict::Skip(Skip::Part));
        }
        if self.joined.len() != part.length as usize {
            return Err(malformed("length of a split body"));
        }
        if crc32fast::hash(&self.joined) != part.crc {
            return Err(malformed("checksum of a split body"));
        }
        self.open = None;
        let header = Header { kind: header.whole, part: None, ..header };
        self.accept(&header);
        Ok(Verdict::Pass(Passed { header, body: &self.joined }))
    }

    fn is_repeat(&self, header: &Header<'_>) -> bool {
        header.is_live() && self.position.is_some_and(|p| header.position <= p)
    }

    /// Whether the entry follows what was read.
    fn check(&self, offset: Offset, header: &Header<'_>) -> Result<(), FilterError> {
        let Some(expected) = self.position else { return Ok(()) };
        if self.rewound && !header.is_live() && header.prev < expected {
            return Ok(());
        }
        if header.prev != expected {
            return Err(FilterError::Gap { offset, expected, found: header.prev });
        }
        match self.lineage {
            Some(lineage) if lineage != header.lineage && header.is_live() && header.position.epoch <= expected.epoch => {
                Err(FilterError::Lineage { offset, expected: lineage, found: header.lineage })
            }
            _ => Ok(()),
        }
    }

    fn accept(&mut self, header: &Header<'_>) {
        match header.whole {
            Kind::Event => self.counts.events += 1,
            Kind::Read => self.counts.reads += 1,
            Kind::End => self.counts.ends += 1,
            Kind::Fence | Kind::Marker | Kind::Part => {}
        }
        let after = if header.is_live() { header.position } else { header.prev };
        // Only a rewound reader meets a lower one: of a row that a backfill read.
        self.position = Some(self.position.map_or(after, |p| p.max(after)));
        self.rewound &= !header.is_live();
        if header.is_live() && self.lineage.replace(header.lineage).is_some_and(|l| l != header.lineage) {
            self.counts.lineages += 1;
        }
    }

    fn drop_open(&mut self) {
        if let Some(open) = mem::take(&mut self.open) {
            self.counts.parts_dropped += u64::from(open.next_index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillstream_schemas::Lsn;
    use tillstream_schemas::entry::BatchBuffer;

    const LINEAGE: Lineage = Lineage(7);

    fn at(lsn: u64) -> Position {
        Position::new(1, Lsn(lsn), 0)
    }

    fn header(kind: Kind, token: u32, position: Position, prev: Position) -> Header<'static> {
        Header { kind, whole: kind, token, position, prev, lineage: LINEAGE, part: None, source: "pos" }
    }

    fn event(token: u32, lsn: u64, prev: u64) -> Header<'static> {
        let position = |l| if l == 0 { Position::NONE } else { at(l) };
        header(Kind::Event, token, position(lsn), position(prev))
    }

    fn bytes(header: &Header<'_>, body: &[u8]) -> Vec<u8> {
        let mut batch = BatchBuffer::default();
        batch.push(header, body);
        batch.as_bytes()[4..].to_vec()
    }

    /// Feeds entries and returns a word for each: `pass`, or why not.
    fn feed(filter: &mut Filter, entries: &[Header<'_>]) -> Vec<String> {
        let mut said = Vec::new();
        for (n, header) in (0u64..).zip(entries) {
            let record = bytes(header, b"{}");
            said.push(match filter.push(Offset(n), &record) {
                Ok(Verdict::Pass(_)) => "pass".to_owned(),
                Ok(Verdict::Skip(skip)) => format!("{skip:?}").to_lowercase(),
                Err(error) => error.code().to_owned(),
            });
        }
        said
    }

    #[test]
    fn a_later_run_fences_off_what_an_earlier_one_still_sends() {
        let fence = |token| header(Kind::Fence, token, Position::NONE, Position::NONE);
        let mut filter = Filter::new();
        let said =
            feed(&mut filter, &[fence(1), event(1, 10, 0), fence(2), event(1, 11, 10), event(2, 11, 10), fence(1), event(2, 12, 11)]);
        assert_eq!(said, ["pass", "pass", "pass", "fenced", "pass", "fenced", "pass"]);
        assert_eq!((filter.token(), filter.position()), (2, at(12)));
        assert_eq!(filter.counts(), Counts { events: 3, fences: 2, fenced: 2, ..Counts::default() });
    }

    #[test]
    fn what_is_sent_twice_passes_once() {
        let mut filter = Filter::new();
        let said = feed(&mut filter, &[event(1, 10, 0), event(1, 20, 10), event(1, 10, 0), event(1, 20, 10), event(1, 30, 20)]);
        assert_eq!(said, ["pass", "pass", "repeat", "repeat", "pass"]);
        assert_eq!(filter.counts().repeats, 2);
    }

    #[test]
    fn a_missing_entry_is_an_error_with_both_positions() {
        let mut filter = Filter::new();
        assert_eq!(feed(&mut filter, &[event(1, 10, 0)]), ["pass"]);
        let record = bytes(&event(1, 30, 20), b"{}");
        let error = filter.push(Offset(5), &record).expect_err("a gap");
        assert_eq!(error, FilterError::Gap { offset: Offset(5), expected: at(10), found: at(20) });
        let mut filter = Filter::resume(1, at(10));
        assert_eq!(feed(&mut filter, &[event(1, 30, 20)]), ["delivery.gap"]);
    }

    #[test]
    fn a_reads_prev_is_checked_too_but_its_own_position_is_not() {
        let read = |as_of, prev| header(Kind::Read, 1, at(as_of), at(prev));
        let mut filter = Filter::new();
        let said = feed(&mut filter, &[event(1, 10, 0), read(5, 10), read(5, 10), event(1, 20, 10), read(5, 10)]);
        assert_eq!(said, ["pass", "pass", "pass", "pass", "delivery.gap"]);
    }

    #[test]
    fn a_rewound_reader_finds_its_place_again() {
        let read = |prev| header(Kind::Read, 2, at(5), at(prev));
        let mut filter = Filter::rewound(1, at(20));
        let said = feed(&mut filter, &[event(1, 5, 3), read(5), event(2, 10, 5), event(2, 20, 10), read(20), event(2, 30, 20), read(20)]);
        assert_eq!(said, ["repeat", "pass", "repeat", "repeat", "pass", "pass", "delivery.gap"]);
        let mut filter = Filter::rewound(1, at(20));
        assert_eq!(feed(&mut filter, &[event(1, 10, 5), event(2, 30, 25)]), ["repeat", "delivery.gap"]);
    }

    #[test]
    fn starting_in_the_middle_believes_the_first_entry_only() {
        let mut filter = Filter::new();
        assert_eq!(feed(&mut filter, &[event(4, 50, 40), event(4, 70, 60)]), ["pass", "delivery.gap"]);
    }

    #[test]
    fn an_epoch_outranks_every_position_before_it() {
        let mut filter = Filter::new();
        let next = Position::new(2, Lsn(3), 0);
        let fresh = Header { lineage: Lineage(8), ..header(Kind::Event, 1, next, at(90)) };
        assert_eq!(feed(&mut filter, &[event(1, 90, 0), fresh]), ["pass", "pass"]);
        assert_eq!((filter.position(), filter.counts().lineages), (next, 1));
    }

    #[test]
    fn another_history_without_a_new_epoch_stops_the_reader() {
        let mut filter = Filter::new();
        let other = Header { lineage: Lineage(8), ..event(1, 95, 90) };
        assert_eq!(feed(&mut filter, &[event(1, 90, 0), other]), ["pass", "delivery.lineage_changed"]);
    }

    #[test]
    fn a_reader_that_began_among_late_entries_of_an_old_run_believes_the_new_one() {
        let mut filter = Filter::new();
        assert_eq!(feed(&mut filter, &[event(1, 15, 10), event(2, 21, 20), event(2, 23, 22)]), ["pass", "pass", "delivery.gap"]);
        let mut filter = Filter::resume(1, at(10));
        assert_eq!(feed(&mut filter, &[event(1, 15, 10), event(2, 21, 20)]), ["pass", "delivery.gap"]);
    }

    fn split(token: u32, lsn: u64, prev: u64, body: &[u8], count: u16) -> Vec<Vec<u8>> {
        let size = body.len().div_ceil(usize::from(count));
        (0u16..)
            .zip(body.chunks(size))
            .map(|(index, piece)| {
                let part = PartInfo { index, count, length: body.len() as u32, crc: crc32fast::hash(body) };
                bytes(&Header { kind: Kind::Part, part: Some(part), ..event(token, lsn, prev) }, piece)
            })
            .collect()
    }

    #[test]
    fn parts_are_joined_and_a_later_run_drops_half_a_body() {
        let parts = split(1, 10, 0, b"abcdefghij", 3);
        let again = split(2, 10, 0, b"abcdefghij", 3);
        let mut filter = Filter::new();
        for (n, record) in (0..).zip(&parts[..2]) {
            assert_eq!(filter.push(Offset(n), record), Ok(Verdict::Skip(Skip::Part)));
        }
        assert_eq!(filter.open_since(), Some(Offset(0)));
        let mut bodies = Vec::new();
        // The second run begins the body anew; the first one's last part comes too late.
        for (n, record) in (2..).zip([&again[0], &parts[2], &again[1], &again[2], &again[2]]) {
            if let Verdict::Pass(passed) = filter.push(Offset(n), record).expect("fits") {
                assert_eq!((passed.header.kind, passed.header.part), (Kind::Event, None));
                bodies.push(passed.body.to_vec());
            }
        }
        assert_eq!(bodies, [b"abcdefghij".to_vec()]);
        assert_eq!(filter.open_since(), None);
        assert_eq!(filter.counts(), Counts { events: 1, fenced: 1, repeats: 1, parts_dropped: 2, ..Counts::default() });
    }

    #[test]
    fn a_damaged_part_is_an_error_and_a_lost_one_a_gap() {
        let mut parts = split(1, 10, 0, b"abcdefghij", 2);
        *parts[1].last_mut().expect("not empty") ^= 1;
        let mut filter = Filter::new();
        assert!(filter.push(Offset(0), &parts[0]).is_ok());
        assert_eq!(filter.push(Offset(1), &parts[1]).map_err(|e| e.code()), Err("delivery.malformed_entry"));

        let parts = split(1, 10, 5, b"abcdefghij", 3);
        let mut filter = Filter::resume(1, at(5));
        assert!(filter.push(Offset(0), &parts[0]).is_ok());
        assert_eq!(filter.push(Offset(1), &parts[2]), Ok(Verdict::Skip(Skip::Part)));
        let next = bytes(&event(1, 20, 10), b"{}");
        assert_eq!(filter.push(Offset(2), &next).map_err(|e| e.code()), Err("delivery.gap"));
    }

    #[test]
    fn reading_from_inside_a_split_body_begins_behind_it() {
        let parts = split(1, 10, 0, b"abcdefghij", 3);
        let mut filter = Filter::new();
        assert_eq!(filter.push(Offset(1), &parts[1]), Ok(Verdict::Skip(Skip::Part)));
        assert_eq!(filter.push(Offset(2), &parts[2]), Ok(Verdict::Skip(Skip::Part)));
        let next = bytes(&event(1, 20, 10), b"{}");
        assert!(matches!(filter.push(Offset(3), &next), Ok(Verdict::Pass(_))));
    }

    #[test]
    fn strangers_are_skipped_and_damage_is_not() {
        let mut filter = Filter::new();
        assert_eq!(filter.push(Offset(0), b"hello"), Ok(Verdict::Skip(Skip::Foreign)));
        let mut damaged = bytes(&event(1, 10, 0), b"{}");
        damaged.pop();
        assert_eq!(filter.push(Offset(1), &damaged).map_err(|e| e.code()), Err("delivery.malformed_entry"));
    }
}

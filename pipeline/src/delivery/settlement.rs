//! Which events of one partition are settled, and from where reading may resume: the contiguous prefix.
//!
//! ```text
//!            checkpoint                          reached
//!                ▼                                  ▼
//!  offsets  … 40 │ 41  42  43  44  45  46  47  48 … │
//!  events        │ ○       ●       ●   ○            │     ● settled  ○ under way
//!                            └─ledger─┘ └ ledger: 43-45
//! ```
//!
//! Pure. Counts only events that the connector wants; everything else merely moves `reached`.

use std::collections::BTreeMap;

use tillstream_schemas::Position;

use crate::journal::Offset;

/// A place in a partition from which reading can go on, and what a reader must know there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The next entry to read.
    pub offset: Offset,
    /// The live position before it.
    pub position: Position,
    /// The highest token before it.
    pub token: u32,
}

/// Numbers the events that a connector wants, densely and in journal order; starts anew with each owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// An event under way, and what is settled between it and the next one under way.
#[derive(Clone, Copy, Debug)]
struct Open {
    before: Point,
    offset: Offset,
    bytes: usize,
    committed_at_ms: i64,
    /// First and last offset of the settled events behind it.
    behind: Option<(u64, u64)>,
    /// How many those are.
    settled: u64,
}

/// The settled and unsettled events of one partition for one connector.
///
/// Takes room for what is under way alone: an event that waits for days holds up neither those behind it nor their memory.
#[derive(Debug)]
pub struct Settlement {
    reached: Point,
    /// Sequence of the next event.
    next: u64,
    /// By sequence.
    open: BTreeMap<u64, Open>,
    unsettled_bytes: usize,
}

impl Settlement {
    /// Nothing under way; everything before `from` is settled.
    #[must_use]
    pub fn new(from: Point) -> Self {
        Settlement { reached: from, next: 0, open: BTreeMap::new(), unsettled_bytes: 0 }
    }

    /// Everything before `point` has been read.
    ///
    /// # Panics
    /// When offsets go back: a bug of the reader.
    pub fn reach(&mut self, point: Point) {
        assert!(point.offset >= self.reached.offset, "reading goes forward");
        self.reached = point;
    }

    /// How far has been read.
    #[must_use]
    pub fn reached(&self) -> Point {
        self.reached
    }

    /// Admits the event at `offset` (of a split one: its last part); reading could resume at what was reached before it.
    pub fn admit(&mut self, offset: Offset, bytes: usize, committed_at_ms: i64) -> Sequence {
        let sequence = self.next;
        self.next += 1;
        self.open.insert(sequence, Open { before: self.reached, offset, bytes, committed_at_ms, behind: None, settled: 0 });
        self.unsettled_bytes += bytes;
        Sequence(sequence)
    }

    /// The event is delivered, filtered by a named rule, superseded, or stored as a dead letter.
    ///
    /// # Panics
    /// When it was never admitted or is settled already: two owners of one event are a bug.
    pub fn settle(&mut self, sequence: Sequence) {
        let done = self.open.remove(&sequence.0).expect("an admitted event is settled once");
        self.unsettled_bytes -= done.bytes;
        // What no unsettled event precedes is below the checkpoint.
        if let Some((_, before)) = self.open.range_mut(..sequence.0).next_back() {
            let first = before.behind.map_or(done.offset.0, |(first, _)| first);
            let last = done.behind.map_or(done.offset.0, |(_, last)| last);
            before.behind = Some((first, last));
            before.settled += done.settled + 1;
        }
    }

    /// Everything before it is settled.
    #[must_use]
    pub fn checkpoint(&self) -> Point {
        self.open.first_key_value().map_or(self.reached, |(_, o)| o.before)
    }

    /// Closed ranges of offsets at or above the checkpoint that are settled too, rising; at most `ranges_max`, the
    /// lowest ones: what is left out is delivered once more after a restart.
    #[must_use]
    pub fn ledger(&self, ranges_max: usize) -> Vec<(u64, u64)> {
        self.open.values().filter_map(|o| o.behind).take(ranges_max).collect()
    }

    /// Events that are settled above the checkpoint.
    #[must_use]
    pub fn settled_above(&self) -> u64 {
        self.open.values().map(|o| o.settled).sum()
    }

    /// Events under way.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.open.len()
    }

    /// Their bytes.
    #[must_use]
    pub fn unsettled_bytes(&self) -> usize {
        self.unsettled_bytes
    }

    /// When the oldest event under way was committed at the source.
    #[must_use]
    pub fn oldest_commit_ms(&self) -> Option<i64> {
        self.open.first_key_value().map(|(_, o)| o.committed_at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillstream_schemas::Lsn;

    fn point(offset: u64) -> Point {
        Point { offset: Offset(offset), position: Position::new(1, Lsn(offset), 0), token: 1 }
    }

    /// Admits events at these offsets; between them lie entries nobody wants.
    fn admit(settlement: &mut Settlement, offsets: &[u64]) -> Vec<Sequence> {
        let mut sequences = Vec::new();
        for offset in offsets {
            settlement.reach(point(*offset));
            sequences.push(settlement.admit(Offset(*offset), 10, 5));
            settlement.reach(point(offset + 1));
        }
        sequences
    }

    #[test]
    fn the_checkpoint_is_the_contiguous_prefix() {
        let mut s = Settlement::new(point(40));
        let sequences = admit(&mut s, &[41, 43, 45, 46]);
        s.reach(point(50));
        assert_eq!(s.checkpoint(), point(41));
        s.settle(sequences[1]);
        s.settle(sequences[2]);
        assert_eq!((s.checkpoint(), s.ledger(8)), (point(41), vec![(43, 45)]));
        s.settle(sequences[0]);
        assert_eq!((s.checkpoint(), s.ledger(8), s.unsettled(), s.settled_above()), (point(46), vec![], 1, 0));
        s.settle(sequences[3]);
        assert_eq!((s.checkpoint(), s.unsettled_bytes()), (point(50), 0));
    }

    #[test]
    fn the_ledger_is_bounded_and_leaves_out_the_highest() {
        let mut s = Settlement::new(point(0));
        let sequences = admit(&mut s, &[0, 1, 2, 3, 4, 5, 6]);
        for settled in [1, 3, 5, 6] {
            s.settle(sequences[settled]);
        }
        assert_eq!(s.ledger(8), [(1, 1), (3, 3), (5, 6)]);
        assert_eq!(s.ledger(2), [(1, 1), (3, 3)]);
    }

    #[test]
    fn an_event_that_waits_costs_one_range_however_much_is_settled_behind_it() {
        let mut s = Settlement::new(point(0));
        let waits = admit(&mut s, &[0])[0];
        for offset in 1..100_000 {
            let sequence = admit(&mut s, &[offset])[0];
            s.settle(sequence);
        }
        assert_eq!((s.checkpoint(), s.ledger(8), s.unsettled(), s.settled_above()), (point(0), vec![(1, 99_999)], 1, 99_999));
        s.settle(waits);
        assert_eq!((s.checkpoint(), s.settled_above()), (point(100_000), 0));
    }

    #[test]
    #[should_panic(expected = "settled once")]
    fn nothing_is_settled_twice() {
        let mut s = Settlement::new(point(0));
        let sequences = admit(&mut s, &[0, 1]);
        s.settle(sequences[1]);
        s.settle(sequences[1]);
    }
}

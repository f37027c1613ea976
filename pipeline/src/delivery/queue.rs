//! The order of one lane: what is ready, what waits for a repeat, and which events make the next batch.
//!
//! ```text
//!  new ──▶ ready: a1 b1 c1 a2 … ──cut──▶ batch ──▶ sink ──▶ outcomes
//!             ▲                                               │ retry
//!             └── due ── held: b → [b1, b2 …] ◀───────────────┘
//! ```
//!
//! An event whose row has an earlier event that waits is held behind it; events of other rows go on. Where the newest state
//! of a row is enough (`later: supersede`), an event takes the place of the one that waits, in the same place of the queue,
//! so that a row which changes all the time is not put off for ever. Pure: time is handed in.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tillstream_connectors::sink::{Item, Outcome, Reason};
use tillstream_schemas::Op;
use tokio::time::Instant;

use super::settlement::Sequence;
use crate::config;
use crate::control::{DeadLetter, now_ms};
use crate::journal::Offset;
use crate::retry::Delays;

/// Where an event came from, and who has to know what became of it.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The journal.
    Journal(Sequence),
    /// A dead letter that someone wants delivered again.
    Redrive(std::sync::Arc<DeadLetter>),
}

/// What delivery knows of an event beside the event.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) origin: Origin,
    /// Where it stands in its data log.
    pub(super) offset: Offset,
    /// Names its row: events of one row share it.
    pub(super) key: u64,
    /// Whether it says all of its row, so that an earlier event of the row is not needed once this one is applied.
    complete: bool,
    /// Length of its body.
    pub(super) bytes: usize,
    /// When it was committed at the source, milliseconds since the Unix epoch.
    pub(super) committed_at_ms: i64,
    arrived: Instant,
    tries: Tries,
}

impl Head {
    /// Whether it comes from the journal now.
    fn is_read(&self) -> bool {
        matches!(self.origin, Origin::Journal(_))
    }
}

/// The attempts at one event.
#[derive(Debug, Default)]
struct Tries {
    attempts: u32,
    first_at_ms: i64,
    last: Option<(Instant, u64)>,
    /// Time that counts towards giving up: only while the target took other events.
    counted: Duration,
    delays: Option<Delays>,
}

/// An event on its way through a lane.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) head: Head,
    pub(super) item: Item,
}

impl Work {
    pub(super) fn new(origin: Origin, offset: Offset, event: &super::events::Prepared, item: Item, now: Instant) -> Work {
        let (key, bytes, committed_at_ms) = (event.row, event.bytes, event.committed_at_ms);
        let is_state = matches!(event.event.op(), Op::Insert | Op::Update | Op::Delete | Op::Read);
        // Keyless rows share one name, so nothing can be said of any of them.
        let complete =
            is_state && event.event.unchanged().len() == 0 && event.event.key().len() > 0 && !matches!(item.mapped, Some(Err(_)));
        let head = Head { origin, offset, key, complete, bytes, committed_at_ms, arrived: now, tries: Tries::default() };
        Work { head, item }
    }
}

/// How batches are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) items_max: usize,
    pub(super) bytes_max: usize,
    pub(super) linger: Duration,
    /// A sink without a version guard reports each event for itself, so a row's second event waits for its first.
    pub(super) one_per_key: bool,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Cut {
    /// Send these.
    Batch(Vec<Work>),
    /// Nothing is due before this moment.
    Wait(Instant),
    /// Nothing is there.
    Empty,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    works: VecDeque<Work>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Applied now.
    pub(super) delivered: Vec<Origin>,
    /// The target had it already.
    pub(super) absorbed: Vec<Origin>,
    /// Never to be taken.
    pub(super) rejected: Vec<Rejected>,
    /// To be repeated.
    pub(super) retries: usize,
    /// Body bytes of what was delivered or absorbed.
    pub(super) bytes: usize,
    /// The last reason to repeat, for status.
    pub(super) reason: Option<Reason>,
}

/// An event on its way to the dead letters.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) origin: Origin,
    pub(super) offset: Offset,
    pub(super) item: Item,
    pub(super) reason: Reason,
    pub(super) attempts: u32,
    pub(super) first_at_ms: i64,
}

/// One lane's events.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    retry: config::Retry,
    ready: VecDeque<Work>,
    ready_bytes: usize,
    /// Where each row's last event stands in `ready`, counted from the lane's first event on; only where states supersede.
    places: HashMap<u64, i64>,
    /// The place of the front of `ready`.
    front: i64,
    /// Events whose place a newer one took, not told yet.
    superseded: Vec<Origin>,
    /// Most items of the next batch while one item may be what the target stumbles over.
    narrow: Option<usize>,
    held: HashMap<u64, Held>,
    /// Counts batches in which the target took something: evidence that it is there.
    successes: u64,
    /// One above the highest offset seen.
    end: Offset,
}

impl Queue {
    pub(super) fn new(limits: Limits, retry: config::Retry, from: Offset) -> Queue {
        Queue {
            limits,
            retry,
            ready: VecDeque::new(),
            ready_bytes: 0,
            places: HashMap::new(),
            front: 0,
            superseded: Vec::new(),
            narrow: None,
            held: HashMap::new(),
            successes: 0,
            end: from,
        }
    }

    pub(super) fn push(&mut self, work: Work) {
        if let Origin::Journal(_) = work.head.origin {
            self.end = self.end.max(Offset(work.head.offset.0 + 1));
        }
        if !self.supersedes() {
            return self.push_back(work);
        }
        let (key, complete) = (work.head.key, work.head.complete);
        if let Some(held) = self.held.get_mut(&key) {
            // The newest state waits in the place of the first one, for as long as that one would have.
            if complete && let Some(first) = held.works.front_mut().filter(|w| is_superseded(w, &work)) {
                let old = std::mem::replace(first, work);
                first.head.tries = old.head.tries;
                self.superseded.push(old.head.origin);
                // What an operator asked for again stays.
                let newest = held.works[0].head.offset;
                let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                    held.works.drain(1..).partition(|w| matches!(w.head.origin, Origin::Journal(_)) && w.head.offset < newest);
                self.superseded.extend(gone.into_iter().map(|w| w.head.origin));
                held.works.extend(kept);
            } else {
                held.works.push_back(work);
            }
            return;
        }
        let place = self.places.get(&key).and_then(|place| usize::try_from(place - self.front).ok());
        match place.and_then(|place| self.ready.get_mut(place)).filter(|waiting| complete && is_superseded(waiting, &work)) {
            Some(waiting) => {
                self.ready_bytes = self.ready_bytes + work.head.bytes - waiting.head.bytes;
                let arrived = waiting.head.arrived;
                let old = std::mem::replace(waiting, work);
                waiting.head.arrived = arrived;
                self.superseded.push(old.head.origin);
            }
            None => self.push_back(work),
        }
    }

    fn supersedes(&self) -> bool {
        self.retry.later == config::Later::Supersede
    }

    fn push_back(&mut self, work: Work) {
        if self.supersedes() {
            self.places.insert(work.head.key, self.front + self.ready.len() as i64);
        }
        self.ready_bytes += work.head.bytes;
        self.ready.push_back(work);
    }

    fn push_front(&mut self, work: Work) {
        self.front -= 1;
        if self.supersedes() {
            self.places.entry(work.head.key).or_insert(self.front);
        }
        self.ready_bytes += work.head.bytes;
        self.ready.push_front(work);
    }

    fn pop_front(&mut self) -> Option<Work> {
        let work = self.ready.pop_front()?;
        if self.places.get(&work.head.key) == Some(&self.front) {
            self.places.remove(&work.head.key);
        }
        self.front += 1;
        self.ready_bytes -= work.head.bytes;
        Some(work)
    }

    /// Events whose place a newer one of their row took since this was asked last: settled, and never sent.
    pub(super) fn take_superseded(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.superseded)
    }

    /// The next batch, of so many items at most; `flush` does not wait for more events.
    pub(super) fn cut(&mut self, now: Instant, items_max: usize, flush: bool) -> Cut {
        self.release(now);
        let due_held = self.held.values().map(|h| h.until).min();
        let Some(front) = self.ready.front() else { return due_held.map_or(Cut::Empty, Cut::Wait) };
        let lingers_until = front.head.arrived + self.limits.linger;
        let items_max = items_max.min(self.limits.items_max).min(self.narrow.unwrap_or(usize::MAX)).max(1);
        let full = self.ready.len() >= items_max || self.ready_bytes >= self.limits.bytes_max;
        if !(flush || full || lingers_until <= now) {
            return Cut::Wait(due_held.map_or(lingers_until, |h| h.min(lingers_until)));
        }
        let batch = self.take(items_max);
        if batch.is_empty() {
            let until = self.held.values().map(|h| h.until).min();
            return until.map_or(Cut::Empty, Cut::Wait);
        }
        Cut::Batch(batch)
    }

    fn take(&mut self, items_max: usize) -> Vec<Work> {
        let mut batch: Vec<Work> = Vec::with_capacity(items_max.min(self.ready.len()));
        let mut bytes = 0;
        let mut keys: HashMap<u64, Offset> = HashMap::new();
        while let Some(front) = self.ready.front() {
            let (key, len) = (front.head.key, front.head.bytes);
            if self.held.contains_key(&key) {
                let work = self.pop_front();
                if let Some(held) = self.held.get_mut(&key) {
                    held.works.extend(work);
                }
                continue;
            }
            // A lane's mark says how far it went by offsets alone, so the outputs of one event are not parted.
            let offset = front.head.offset;
            let joins = !self.limits.one_per_key && batch.last().is_some_and(|w| w.head.offset == offset && w.head.is_read());
            let full = batch.len() >= items_max || (!batch.is_empty() && bytes + len > self.limits.bytes_max);
            if full && !joins {
                break;
            }
            // Those of one event have no order among each other.
            if self.limits.one_per_key && *keys.entry(key).or_insert(offset) != offset {
                break;
            }
            bytes += len;
            batch.extend(self.pop_front());
        }
        batch
    }

    /// Takes back a batch that failed as a whole again and again: the next ones are halves, until what the target
    /// stumbles over stands alone.
    pub(super) fn split(&mut self, heads: Vec<Head>, items: Vec<Item>) {
        self.narrow = Some((heads.len() / 2).max(1));
        for (head, item) in heads.into_iter().zip(items).rev() {
            self.push_front(Work { head, item });
        }
    }

    /// Whether an item of this batch has failed before.
    pub(super) fn has_failed_before(heads: &[Head]) -> bool {
        heads.iter().any(|h| h.tries.attempts > 0)
    }

    /// Held rows whose time has come go first.
    fn release(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let due: Vec<u64> = self.held.iter().filter(|(_, h)| h.until <= now).map(|(k, _)| *k).collect();
        for key in due {
            for work in self.held.remove(&key).into_iter().flat_map(|h| h.works).rev() {
                self.push_front(work);
            }
        }
    }

    /// Everything of this lane below it is applied, once the batch at hand is.
    pub(super) fn own(&self) -> Offset {
        let held = self.held.values().flat_map(|h| &h.works);
        let open = held.chain(&self.ready).filter(|w| matches!(w.head.origin, Origin::Journal(_)));
        open.map(|w| w.head.offset).min().map_or(self.end, |o| o.min(self.end))
    }

    /// Books the outcomes of a batch. What was not reported was not attempted and goes first next time.
    pub(super) fn apply(&mut self, heads: Vec<Head>, items: Vec<Item>, outcomes: Vec<Outcome>, now: Instant) -> Applied {
        let mut applied = Applied::default();
        if outcomes.iter().any(|o| matches!(o, Outcome::Delivered | Outcome::Absorbed)) {
            self.successes += 1;
        }
        let mut rest = Vec::new();
        let mut outcomes = outcomes.into_iter();
        for (head, item) in heads.into_iter().zip(items) {
            match outcomes.next() {
                None => rest.push(Work { head, item }),
                Some(Outcome::Delivered) => {
                    applied.bytes += head.bytes;
                    applied.delivered.push(head.origin);
                }
                Some(Outcome::Absorbed) => {
                    applied.bytes += head.bytes;
                    applied.absorbed.push(head.origin);
                }
                Some(Outcome::Rejected(reason)) => {
                    let attempts = head.tries.attempts.saturating_add(1);
                    applied.rejected.push(reject(head, item, reason, attempts));
                }
                Some(Outcome::Retry(retry)) => {
                    self.again(Work { head, item }, retry.reason, retry.after, now, &mut applied);
                }
            }
        }
        for work in rest.into_iter().rev() {
            self.push_front(work);
        }
        if let Some(narrow) = self.narrow {
            // What stumbled is alone or gone: batches grow again, each twice the last.
            self.narrow = (narrow * 2 < self.limits.items_max).then_some(narrow * 2);
        }
        applied
    }

    fn again(&mut self, mut work: Work, reason: Reason, after: Option<Duration>, now: Instant, applied: &mut Applied) {
        let tries = &mut work.head.tries;
        let until = match after {
            // The target asked: nobody's fault, no attempt.
            Some(after) => now + after,
            None => {
                if tries.attempts == 0 {
                    tries.first_at_ms = now_ms();
                }
                tries.attempts = tries.attempts.saturating_add(1);
                if let Some((last, successes)) = tries.last.replace((now, self.successes))
                    && successes != self.successes
                {
                    tries.counted += now - last;
                }
                if self.retry.give_up_after.is_some_and(|limit| tries.counted >= limit) {
                    let attempts = tries.attempts;
                    applied.rejected.push(reject(work.head, work.item, reason, attempts));
                    return;
                }
                let delays = tries.delays.get_or_insert_with(|| Delays::new(self.retry.base, self.retry.max));
                now + delays.next_delay()
            }
        };
        applied.retries += 1;
        applied.reason = Some(reason);
        let held = self.held.entry(work.head.key).or_insert_with(|| Held { until, works: VecDeque::new() });
        held.until = held.until.max(until);
        held.works.push_back(work);
    }
}

/// Whether the later event makes the one that waits needless. What an operator asked for again is older, and goes by itself.
fn is_superseded(waiting: &Work, later: &Work) -> bool {
    let from_journal = |w: &Work| matches!(w.head.origin, Origin::Journal(_));
    let (old, new) = (&waiting.item.event, &later.item.event);
    let same_row = || old.schema() == new.schema() && old.table() == new.table() && old.key_text() == new.key_text();
    // A backfill's row comes later and may be older than a change that waits.
    from_journal(waiting) && from_journal(later) && waiting.item.version < later.item.version && same_row()
}

fn reject(head: Head, item: Item, reason: Reason, attempts: u32) -> Rejected {
    let first_at_ms = if head.tries.first_at_ms == 0 { now_ms() } else { head.tries.first_at_ms };
    Rejected { origin: head.origin, offset: head.offset, item, reason, attempts, first_at_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::events::{Prepared, idempotency_key};
    use tillstream_connectors::sink::Retry;

    const LIMITS: Limits = Limits { items_max: 3, bytes_max: 1_000_000, linger: Duration::from_millis(100), one_per_key: true };
    const RETRY: config::Retry =
        config::Retry { base: Duration::from_secs(1), max: Duration::from_secs(8), give_up_after: None, later: config::Later::Wait };

    /// A queue and a clock that the test moves.
    struct Bench {
        queue: Queue,
        now: Instant,
        next: u64,
    }

    impl Bench {
        fn new(limits: Limits, retry: config::Retry) -> Bench {
            Bench { queue: Queue::new(limits, retry, Offset(0)), now: Instant::now(), next: 0 }
        }

        /// Adds a change of each row.
        fn push(&mut self, rows: &[u64]) {
            for row in rows {
                let body = format!(
                    "{{\"id\":\"e1-0/1-{}\",\"op\":\"insert\",\"schema\":\"s\",\"table\":\"t\",\"key\":{{\"id\":{row}}},\"before\":null,\
                     \"after\":{{\"id\":{row}}},\"unchanged\":[],\"commit_lsn\":\"0/1\",\"ordinal\":{},\"xid\":1,\
                     \"committed_at\":\"2026-11-22T10:00:00.000000Z\"}}",
                    self.next, self.next
                );
                let prepared = Prepared::parse(body.as_bytes(), 0).expect("an event");
                let event = prepared.event.clone();
                let item = Item { idempotency_key: idempotency_key("c", event.id(), 0), version: event.version(), mapped: None, event };
                let work = Work::new(Origin::Journal(Sequence(self.next)), Offset(self.next), &prepared, item, self.now);
                self.queue.push(work);
                self.next += 1;
            }
        }

        /// The next batch's sequences; empty when there is none yet.
        fn cut(&mut self) -> Vec<Work> {
            match self.queue.cut(self.now, usize::MAX, false) {
                Cut::Batch(batch) => batch,
                Cut::Wait(_) | Cut::Empty => Vec::new(),
            }
        }

        fn apply(&mut self, batch: Vec<Work>, outcomes: Vec<Outcome>) -> Applied {
            let (heads, items) = batch.into_iter().map(|w| (w.head, w.item)).unzip();
            self.queue.apply(heads, items, outcomes, self.now)
        }
    }

    fn sequences(batch: &[Work]) -> Vec<u64> {
        let sequence = |w: &Work| match w.head.origin {
            Origin::Journal(Sequence(n)) => n,
            Origin::Redrive(_) => u64::MAX,
        };
        batch.iter().map(sequence).collect()
    }

    fn retry(after: Option<Duration>) -> Outcome {
        Outcome::Retry(Retry { reason: Reason { code: "test.busy".into(), message: "busy".into() }, after })
    }

    #[test]
    fn a_batch_waits_for_company_but_not_long() {
        let mut bench = Bench::new(LIMITS, RETRY);
        bench.push(&[1, 2]);
        assert!(bench.cut().is_empty());
        bench.now += Duration::from_millis(100);
        assert_eq!(sequences(&bench.cut()), [0, 1]);
        bench.push(&[1, 2, 3, 4]);
        assert_eq!(sequences(&bench.cut()), [2, 3, 4], "a full one goes at once");
    }

    #[test]
    fn bytes_bound_a_batch_and_one_large_event_still_goes() {
        let mut bench = Bench::new(Limits { bytes_max: 10, ..LIMITS }, RETRY);
        bench.push(&[1, 2]);
        assert_eq!(sequences(&bench.cut()), [0]);
        assert_eq!(sequences(&bench.cut()), [1]);
    }

    #[test]
    fn a_rows_second_event_waits_for_its_first() {
        let mut bench = Bench::new(LIMITS, RETRY);
        bench.push(&[1, 2, 1, 3]);
        let batch = bench.cut();
        assert_eq!(sequences(&batch), [0, 1]);
        bench.apply(batch, vec![retry(None), Outcome::Delivered]);
        bench.now += Duration::from_millis(200);
        assert_eq!(sequences(&bench.cut()), [3], "the row that waits is passed by");
        bench.now += Duration::from_secs(2);
        assert_eq!(sequences(&bench.cut()), [0]);
        bench.now += Duration::from_secs(2);
        assert_eq!(sequences(&bench.cut()), [2]);
    }

    #[test]
    fn what_was_not_attempted_goes_first_and_in_order() {
        let mut bench = Bench::new(LIMITS, RETRY);
        bench.push(&[1, 2, 3]);
        let batch = bench.cut();
        let applied = bench.apply(batch, vec![Outcome::Delivered]);
        assert_eq!((applied.delivered.len(), applied.retries), (1, 0));
        bench.push(&[4]);
        assert_eq!(sequences(&bench.cut()), [1, 2, 3]);
    }

    #[test]
    fn a_pause_that_the_target_asks_for_is_no_attempt() {
        let limit = config::Retry { give_up_after: Some(Duration::from_secs(5)), ..RETRY };
        let mut bench = Bench::new(LIMITS, limit);
        bench.push(&[1]);
        for _ in 0..20 {
            bench.now += Duration::from_secs(10);
            let batch = bench.cut();
            let applied = bench.apply(batch, vec![retry(Some(Duration::from_secs(9)))]);
            assert_eq!((applied.retries, applied.rejected.len()), (1, 0));
        }
    }

    #[test]
    fn giving_up_counts_only_while_the_target_takes_others() {
        let limit = config::Retry { give_up_after: Some(Duration::from_secs(30)), ..RETRY };
        let mut bench = Bench::new(LIMITS, limit);
        bench.push(&[1]);
        for _ in 0..20 {
            bench.now += Duration::from_secs(20);
            let batch = bench.cut();
            assert!(bench.apply(batch, vec![retry(None)]).rejected.is_empty(), "nobody gets through: the target is away");
        }
        let mut rejected = Vec::new();
        for attempt in 0..3 {
            bench.push(&[10 + attempt]);
            bench.now += Duration::from_secs(20);
            let batch = bench.cut();
            let outcomes =
                batch.iter().map(|w| if w.item.event.key_text().ends_with("\u{1f}1") { retry(None) } else { Outcome::Delivered });
            let outcomes = outcomes.collect();
            rejected.extend(bench.apply(batch, outcomes).rejected);
        }
        assert_eq!(rejected.len(), 1);
        assert!(rejected[0].attempts > 20);
    }

    #[test]
    fn a_lanes_own_mark_stops_below_what_waits() {
        let mut bench = Bench::new(LIMITS, RETRY);
        bench.push(&[1, 2, 3, 4]);
        let batch = bench.cut();
        assert_eq!(bench.queue.own(), Offset(3), "what the batch holds is applied with it");
        bench.apply(batch, vec![Outcome::Delivered, retry(None), Outcome::Delivered]);
        bench.now += Duration::from_millis(100);
        let batch = bench.cut();
        assert_eq!((sequences(&batch), bench.queue.own()), (vec![3], Offset(1)));
        bench.apply(batch, vec![Outcome::Delivered]);
        bench.now += Duration::from_secs(2);
        assert_eq!((sequences(&bench.cut()), bench.queue.own()), (vec![1], Offset(4)));
    }

    #[test]
    fn a_newer_state_takes_the_place_of_one_that_waits() {
        let mut bench = Bench::new(LIMITS, config::Retry { later: config::Later::Supersede, ..RETRY });
        bench.push(&[1, 2, 1, 1]);
        assert_eq!(bench.queue.take_superseded().len(), 2);
        bench.now += Duration::from_millis(100);
        let batch = bench.cut();
        assert_eq!(sequences(&batch), [3, 1], "the last state, in the first one's place");
        bench.apply(batch, vec![retry(None), Outcome::Delivered]);
        bench.push(&[2, 1, 1]);
        assert_eq!(bench.queue.take_superseded().len(), 2, "the one that waits for its repeat, and the next");
        bench.now += Duration::from_millis(100);
        assert_eq!(sequences(&bench.cut()), [4], "the row still waits");
        bench.now += Duration::from_secs(2);
        let batch = bench.cut();
        assert_eq!(sequences(&batch), [6]);
        assert_eq!(batch[0].head.tries.attempts, 1, "its attempts stay");
        assert_eq!(bench.queue.own(), Offset(7));
    }

    #[test]
    fn superseding_keeps_places_over_many_turns() {
        let mut bench = Bench::new(LIMITS, config::Retry { later: config::Later::Supersede, ..RETRY });
        let (mut seen, mut superseded) = (HashMap::new(), 0);
        for round in 0..200_u64 {
            bench.push(&[round % 7, round % 3, round % 7]);
            bench.now += Duration::from_millis(100);
            let batch = bench.cut();
            superseded += bench.queue.take_superseded().len();
            for work in &batch {
                let last = seen.insert(work.head.key, work.head.offset);
                assert!(last.is_none_or(|last| last < work.head.offset), "states of a row go forward");
            }
            let outcomes = (0..batch.len()).map(|n| if (n as u64 + round).is_multiple_of(3) { retry(None) } else { Outcome::Delivered });
            let outcomes: Vec<_> = outcomes.collect();
            for (work, outcome) in batch.iter().zip(&outcomes) {
                if matches!(outcome, Outcome::Retry(_)) {
                    seen.remove(&work.head.key);
                }
            }
            bench.apply(batch, outcomes);
        }
        assert!(superseded > 100, "{superseded}");
        let waiting = bench.queue.ready.len() + bench.queue.held.values().map(|h| h.works.len()).sum::<usize>();
        assert!(waiting <= 7, "one state a row: {waiting}");
    }

    #[test]
    fn a_batch_that_fails_as_a_whole_is_halved_until_its_poison_stands_alone() {
        let limits = Limits { items_max: 8, ..LIMITS };
        let mut bench = Bench::new(limits, RETRY);
        bench.push(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let (mut delivered, mut held, mut calls) = (0, false, 0);
        while delivered < 7 {
            calls += 1;
            assert!(calls < 20);
            bench.now += Duration::from_millis(100);
            let batch = bench.cut();
            let poisoned = sequences(&batch).contains(&3);
            if poisoned && batch.len() > 1 {
                let (heads, items) = batch.into_iter().map(|w| (w.head, w.item)).unzip();
                bench.queue.split(heads, items);
                continue;
            }
            let outcomes: Vec<_> = batch.iter().map(|_| if poisoned { retry(None) } else { Outcome::Delivered }).collect();
            held |= poisoned;
            delivered += bench.apply(batch, outcomes).delivered.len();
        }
        assert!(held);
        assert_eq!(bench.queue.own(), Offset(3));
    }
}

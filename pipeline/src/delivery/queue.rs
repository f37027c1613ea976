//! The order of one lane: what is ready, what waits for a repeat, and which events make the next batch.
//!
//! ```text
//!  new ──▶ ready: a1 b1 c1 a2 … ──cut──▶ batch ──▶ sink ──▶ outcomes
//!             ▲                                               │ retry
//!             └── due ── held: b → [b1, b2 …] ◀───────────────┘
//! ```
//!
//! An event whose row has an earlier event that waits is held behind it; events of other rows go on. Pure: time is
//! handed in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tillstream_connectors::sink::{Item, Outcome, Reason};
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
    /// Length of its body.
    pub(super) bytes: usize,
    /// When it was committed at the source, milliseconds since the Unix epoch.
    pub(super) committed_at_ms: i64,
    arrived: Instant,
    tries: Tries,
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
        let bytes = event.bytes;
        let head =
            Head { origin, offset, key: event.row, bytes, committed_at_ms: event.committed_at_ms, arrived: now, tries: Tries::default() };
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
    /// The target wants a pause.
    pub(super) pause: Option<Duration>,
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
    held: HashMap<u64, Held>,
    /// Counts batches in which the target took something: evidence that it is there.
    successes: u64,
    /// One above the highest offset seen.
    end: Offset,
}

impl Queue {
    pub(super) fn new(limits: Limits, retry: config::Retry, from: Offset) -> Queue {
        Queue { limits, retry, ready: VecDeque::new(), ready_bytes: 0, held: HashMap::new(), successes: 0, end: from }
    }

    pub(super) fn push(&mut self, work: Work) {
        if let Origin::Journal(_) = work.head.origin {
            self.end = self.end.max(Offset(work.head.offset.0 + 1));
        }
        self.ready_bytes += work.head.bytes;
        self.ready.push_back(work);
    }

    /// The next batch; `flush` does not wait for more events.
    pub(super) fn cut(&mut self, now: Instant, flush: bool) -> Cut {
        self.release(now);
        let due_held = self.held.values().map(|h| h.until).min();
        let Some(front) = self.ready.front() else { return due_held.map_or(Cut::Empty, Cut::Wait) };
        let lingers_until = front.head.arrived + self.limits.linger;
        let full = self.ready.len() >= self.limits.items_max || self.ready_bytes >= self.limits.bytes_max;
        if !(flush || full || lingers_until <= now) {
            return Cut::Wait(due_held.map_or(lingers_until, |h| h.min(lingers_until)));
        }
        let batch = self.take();
        if batch.is_empty() {
            let until = self.held.values().map(|h| h.until).min();
            return until.map_or(Cut::Empty, Cut::Wait);
        }
        Cut::Batch(batch)
    }

    fn take(&mut self) -> Vec<Work> {
        let mut batch: Vec<Work> = Vec::with_capacity(self.limits.items_max.min(self.ready.len()));
        let mut bytes = 0;
        let mut keys = HashSet::new();
        while let Some(front) = self.ready.front() {
            let (key, len) = (front.head.key, front.head.bytes);
            if let Some(held) = self.held.get_mut(&key) {
                self.ready_bytes -= len;
                held.works.extend(self.ready.pop_front());
                continue;
            }
            let full = batch.len() == self.limits.items_max || (!batch.is_empty() && bytes + len > self.limits.bytes_max);
            if full || (self.limits.one_per_key && !keys.insert(key)) {
                break;
            }
            bytes += len;
            self.ready_bytes -= len;
            batch.extend(self.ready.pop_front());
        }
        batch
    }

    /// Held rows whose time has come go first.
    fn release(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let due: Vec<u64> = self.held.iter().filter(|(_, h)| h.until <= now).map(|(k, _)| *k).collect();
        for key in due {
            for work in self.held.remove(&key).into_iter().flat_map(|h| h.works).rev() {
                self.ready_bytes += work.head.bytes;
                self.ready.push_front(work);
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
                    if let Some(after) = retry.after {
                        applied.pause = Some(applied.pause.map_or(after, |p| p.max(after)));
                    }
                    self.again(Work { head, item }, retry.reason, retry.after, now, &mut applied);
                }
            }
        }
        for work in rest.into_iter().rev() {
            self.ready_bytes += work.head.bytes;
            self.ready.push_front(work);
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
    const RETRY: config::Retry = config::Retry { base: Duration::from_secs(1), max: Duration::from_secs(8), give_up_after: None };

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
            match self.queue.cut(self.now, false) {
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
            assert_eq!((applied.retries, applied.pause), (1, Some(Duration::from_secs(9))));
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
}

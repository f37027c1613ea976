//! What may be acknowledged to PostgreSQL.
//!
//! Acknowledging is the one step that loses data for good when it is wrong: PostgreSQL forgets WAL up to there. This
//! module is pure bookkeeping (no clock, no I/O): transactions go in in commit order, each with what must be confirmed
//! in every log before it is stored; what comes out is the end of the newest transaction such that it *and all earlier
//! ones* are stored, held back for a while so that PostgreSQL can refill a broker which lost its unsynced tail.
//!
//! ```text
//!  commit ──▶ flight (some entry unconfirmed) ──▶ held (stored, kept back) ──▶ acknowledged
//! ```
//!
//! Memory is bounded: transactions that wait for the same ids share one record, while one log is stuck and the others
//! go on the newest record absorbs what comes, and held records are merged to at most a few hundred steps of the window.

use std::collections::VecDeque;
use std::time::Duration;

use tillstream_schemas::Lsn;
use tokio::time::Instant;

use crate::config::HoldBack;
use crate::journal::PublishId;

/// The hold-back window is kept in steps of a 128th of it: fine enough that WAL is not kept noticeably longer than
/// asked, and at most about two hundred records whatever the rate.
const HELD_STEPS: u32 = 128;

/// Most records in flight. A journal keeps a few hundred batches unconfirmed, so this is reached only when one log
/// confirms nothing for long; then the newest record waits for more than it would need.
const FLIGHT_MAX: usize = 4096;

/// A stream without a transaction for this long is held back no longer, whatever the window says: an idle database beside a
/// busy one would otherwise keep its neighbours' WAL for the whole window, again and again.
const QUIET: Duration = Duration::from_secs(10);

/// How long what is stored is held back once nothing follows it.
pub(super) fn quiet(hold_back: HoldBack) -> Duration {
    hold_back.time.min(QUIET)
}

/// Stored, but kept back.
#[derive(Debug)]
struct Held {
    /// End of the first and of the newest transaction merged into it.
    first_end: Lsn,
    end: Lsn,
    /// When the first and the newest of them were confirmed.
    opened: Instant,
    since: Instant,
}

/// Which transactions are in flight, held back and acknowledged.
#[derive(Debug)]
pub struct Progress {
    hold_back: HoldBack,
    /// Logs that must confirm.
    logs: usize,
    /// Ends of the transactions in flight, oldest first.
    flight: VecDeque<Lsn>,
    flight_max: usize,
    /// For each of them what every log must have confirmed; `logs` ids each. Cumulative, so it never falls.
    required: VecDeque<PublishId>,
    held: VecDeque<Held>,
    /// End of the newest transaction that entered.
    committed: Lsn,
    /// End of the newest transaction such that it and all earlier ones are confirmed.
    confirmed: Lsn,
    /// What was found acknowledgeable so far; never falls.
    acknowledged: Lsn,
}

impl Progress {
    /// Nothing in flight. `logs` is the number of logs whose confirms count.
    #[must_use]
    pub fn new(logs: usize, hold_back: HoldBack) -> Self {
        Progress {
            hold_back,
            logs,
            flight: VecDeque::new(),
            flight_max: FLIGHT_MAX,
            required: VecDeque::new(),
            held: VecDeque::new(),
            committed: Lsn(0),
            confirmed: Lsn(0),
            acknowledged: Lsn(0),
        }
    }

    /// A transaction ends at `end`. `required` names for each log the last batch that carries anything of it or of an
    /// earlier transaction.
    ///
    /// # Panics
    /// When commits do not come in order, or `required` falls or has another length: a fault of ours that must stop
    /// the session before anything is acknowledged.
    pub fn commit(&mut self, end: Lsn, required: &[PublishId]) {
        assert_eq!(required.len(), self.logs, "one id per log");
        assert!(end > self.committed || self.committed == Lsn(0), "transactions end in commit order");
        self.committed = end;
        let full = self.flight.len() >= self.flight_max;
        if let Some(last) = self.flight.back_mut() {
            let start = self.required.len() - self.logs;
            let mut same = true;
            for (old, new) in self.required.range(start..).zip(required) {
                assert!(new >= old, "ids never fall");
                same &= new == old;
            }
            if same || full {
                *last = end;
                for (old, new) in self.required.range_mut(start..).zip(required) {
                    *old = *new;
                }
                return;
            }
        }
        self.flight.push_back(end);
        self.required.extend(required);
    }

    /// Takes note of what the logs have confirmed. `confirmed(i)` is the watermark of log `i`.
    pub fn confirm(&mut self, now: Instant, confirmed: impl Fn(usize) -> PublishId) {
        let before = self.confirmed;
        while let Some(&end) = self.flight.front() {
            if !(0..self.logs).all(|log| confirmed(log) >= self.required[log]) {
                break;
            }
            self.flight.pop_front();
            self.required.drain(..self.logs);
            self.confirmed = end;
        }
        if self.confirmed > before {
            self.hold(self.confirmed, now);
        }
    }

    fn hold(&mut self, end: Lsn, now: Instant) {
        let HoldBack { time, bytes } = self.hold_back;
        if let Some(last) = self.held.back_mut()
            && now.saturating_duration_since(last.opened) < time / HELD_STEPS
            && end.0 - last.first_end.0 < bytes / u64::from(HELD_STEPS)
        {
            last.end = end;
            last.since = now;
            return;
        }
        self.held.push_back(Held { first_end: end, end, opened: now, since: now });
    }

    /// The LSN that may be acknowledged now. Never goes back. `release` ends the hold-back at once: at a graceful
    /// stop, and when the server waits for us in order to shut down.
    pub fn acknowledgeable(&mut self, now: Instant, release: bool) -> Lsn {
        let still = now.checked_sub(quiet(self.hold_back));
        let release = release || (self.flight.is_empty() && self.held.back().is_some_and(|newest| Some(newest.since) <= still));
        while let Some(oldest) = self.held.front() {
            let late = now.saturating_duration_since(oldest.since) >= self.hold_back.time;
            let far = self.confirmed.0 - oldest.end.0 >= self.hold_back.bytes;
            if !(late || far || release) {
                break;
            }
            assert!(oldest.end >= self.acknowledged && oldest.end <= self.confirmed, "only what is confirmed is acknowledged, in order");
            self.acknowledged = oldest.end;
            self.held.pop_front();
        }
        self.acknowledged
    }

    /// The server says that nothing for us lies before `wal_end`, and the caller that it is between transactions with
    /// nothing unwritten. Without this an idle table would keep the WAL of its busy neighbours for ever.
    pub fn idle(&mut self, wal_end: Lsn) {
        if self.is_settled() && wal_end > self.acknowledged {
            self.acknowledged = wal_end;
        }
    }

    /// Whether every transaction that entered is confirmed.
    #[must_use]
    pub fn nothing_in_flight(&self) -> bool {
        self.flight.is_empty()
    }

    /// Whether every transaction that entered is confirmed and found acknowledgeable.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.flight.is_empty() && self.held.is_empty()
    }

    /// End of the newest transaction such that it and all earlier ones are confirmed; 0 before the first.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// When the oldest held transaction becomes acknowledgeable by time.
    #[must_use]
    pub fn next_release(&self) -> Option<Instant> {
        let by_time = self.held.front()?.since + self.hold_back.time;
        let quiet = self.held.back().filter(|_| self.flight.is_empty()).map(|held| held.since + quiet(self.hold_back));
        Some(quiet.map_or(by_time, |quiet| quiet.min(by_time)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const NONE: HoldBack = HoldBack { time: Duration::ZERO, bytes: u64::MAX };

    fn id(n: u64) -> PublishId {
        PublishId::new(1, n)
    }

    #[test]
    fn a_transaction_waits_for_the_slowest_log_and_for_all_earlier_ones() {
        let mut p = Progress::new(2, NONE);
        let now = Instant::now();
        p.commit(Lsn(10), &[id(1), id(0)]);
        p.commit(Lsn(20), &[id(1), id(1)]);
        p.commit(Lsn(30), &[id(2), id(1)]);
        p.confirm(now, |log| [id(2), id(0)][log]);
        assert_eq!(p.acknowledgeable(now, false), Lsn(10), "20 waits for the second log, 30 for 20");
        p.confirm(now, |log| [id(2), id(1)][log]);
        assert_eq!(p.acknowledgeable(now, false), Lsn(30));
        assert!(p.is_settled());
    }

    #[test]
    fn hold_back_ends_by_time_by_bytes_and_by_release() {
        let hold_back = HoldBack { time: Duration::from_secs(60), bytes: 1000 };
        let mut p = Progress::new(1, hold_back);
        let start = Instant::now();
        p.commit(Lsn(100), &[id(1)]);
        p.confirm(start, |_| id(1));
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(9), false), Lsn(0));
        p.idle(Lsn(5000));
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(9), false), Lsn(0), "idle waits for the hold-back too");
        p.commit(Lsn(120), &[id(2)]);
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(59), false), Lsn(0), "a stream that goes on is held back for the window");
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(60), false), Lsn(100));
        p.confirm(start, |_| id(2));
        p.commit(Lsn(200), &[id(3)]);
        p.commit(Lsn(1200), &[id(4)]);
        p.confirm(start, |_| id(3));
        p.confirm(start, |_| id(4));
        assert_eq!(p.acknowledgeable(start, false), Lsn(200));
        assert_eq!(p.acknowledgeable(start, true), Lsn(1200));
        p.idle(Lsn(5000));
        assert_eq!(p.acknowledgeable(start, false), Lsn(5000));
    }

    #[test]
    fn a_stream_that_stands_still_is_released_after_ten_seconds() {
        let mut p = Progress::new(1, HoldBack { time: Duration::from_secs(60), bytes: 1000 });
        let start = Instant::now();
        p.commit(Lsn(100), &[id(1)]);
        p.confirm(start, |_| id(1));
        p.commit(Lsn(110), &[id(2)]);
        p.confirm(start + Duration::from_secs(5), |_| id(2));
        assert_eq!(p.next_release(), Some(start + Duration::from_secs(15)));
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(14), false), Lsn(0));
        assert_eq!(p.acknowledgeable(start + Duration::from_secs(15), false), Lsn(110));
    }

    #[test]
    fn idle_waits_for_what_is_in_flight() {
        let mut p = Progress::new(1, NONE);
        let now = Instant::now();
        p.commit(Lsn(100), &[id(1)]);
        p.idle(Lsn(500));
        assert_eq!(p.acknowledgeable(now, true), Lsn(0));
        p.confirm(now, |_| id(1));
        p.idle(Lsn(500));
        assert_eq!(p.acknowledgeable(now, false), Lsn(100), "idle counts only once nothing is held");
        p.idle(Lsn(500));
        assert_eq!(p.acknowledgeable(now, false), Lsn(500));
        p.idle(Lsn(400));
        assert_eq!(p.acknowledgeable(now, false), Lsn(500), "never back");
    }

    /// Against the definition, written naively: every transaction with its own ids.
    #[test]
    fn agrees_with_the_definition_on_random_histories() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let logs = rng.random_range(1..5usize);
            let hold_back =
                HoldBack { time: Duration::from_millis(rng.random_range(0..4) * 500), bytes: [0, 300, u64::MAX][rng.random_range(0..3)] };
            let start = Instant::now();
            let mut now = start;
            let mut p = Progress::new(logs, hold_back);
            p.flight_max = if seed % 2 == 0 { 3 } else { FLIGHT_MAX };
            let mut given = vec![0u64; logs];
            let mut watermarks = vec![0u64; logs];
            // (end, ids, when confirmed)
            let mut all: Vec<(Lsn, Vec<u64>, Option<Instant>)> = Vec::new();
            let (mut end, mut last, mut most) = (0, Lsn(0), 0);
            for _ in 0..400 {
                match rng.random_range(0..4) {
                    0 | 1 => {
                        end += rng.random_range(1..50);
                        for id in &mut given {
                            *id += rng.random_range(0..2) * rng.random_range(0..2);
                        }
                        all.push((Lsn(end), given.clone(), None));
                        p.commit(Lsn(end), &given.iter().map(|n| id(*n)).collect::<Vec<_>>());
                    }
                    2 => {
                        for (watermark, given) in watermarks.iter_mut().zip(&given) {
                            *watermark = rng.random_range(*watermark..=*given);
                        }
                        p.confirm(now, |log| id(watermarks[log]));
                        for (_, ids, at) in &mut all {
                            if ids.iter().zip(&watermarks).any(|(id, watermark)| id > watermark) {
                                break;
                            }
                            at.get_or_insert(now);
                        }
                    }
                    _ => now += Duration::from_millis(rng.random_range(0..700)),
                }
                assert!(p.flight.len() <= p.flight_max, "seed {seed}: bounded");
                most = most.max(p.held.len());
                let newest = all.iter().take_while(|t| t.2.is_some()).last().map_or(0, |t| t.0.0);
                let exact = all
                    .iter()
                    .take_while(|t| t.2.is_some_and(|at| now - at >= hold_back.time || newest - t.0.0 >= hold_back.bytes))
                    .last()
                    .map_or(Lsn(0), |t| t.0);
                let got = p.acknowledgeable(now, false);
                assert!(got >= last, "seed {seed}: never back");
                assert!(got <= exact.max(last), "seed {seed}: {got} is more than {exact}");
                assert!(p.confirmed().0 <= newest, "seed {seed}");
                if all.iter().all(|t| t.2.is_some()) {
                    assert_eq!(p.confirmed().0, newest, "seed {seed}: nothing is forgotten");
                }
                if hold_back.time.is_zero() && p.flight_max == FLIGHT_MAX {
                    assert_eq!(got, exact.max(last), "seed {seed}: without hold-back it is exact");
                }
                last = got;
            }
            assert!(most <= 2 * HELD_STEPS as usize + 2, "seed {seed}: {most} held records");
        }
    }
}

//! What the control log says may be acknowledged, written before PostgreSQL is told.
//!
//! A slot that stands further than its pipeline ever promised was moved by somebody else: dropped and created again, or
//! advanced by hand. PostgreSQL would go on from there without a word, and what lay between would be lost. So the
//! position goes to the control log first, every few seconds, and is acknowledged only once that record has been confirmed
//! for as long as the hold-back asks: a broker that loses its unsynced tail must not lose it. Pure bookkeeping, no clock,
//! no I/O.

use std::collections::VecDeque;
use std::time::Duration;

use tillstream_schemas::Lsn;
use tokio::time::Instant;

use super::progress::quiet;
use crate::config::HoldBack;
use crate::journal::PublishId;

/// A record at most this often: some five megabytes a day in the control log, while WAL is kept hardly longer.
const INTERVAL: Duration = Duration::from_secs(4);

/// A fast stream gets a record for this part of the hold-back's bytes.
const BYTES_PARTS: u64 = 16;

#[derive(Debug)]
struct Promise {
    upto: Lsn,
    id: PublishId,
    confirmed: Option<Instant>,
}

/// Records on their way and in force. Bounded: one for every [`INTERVAL`] of the hold-back's time and a few by bytes.
#[derive(Debug)]
pub(super) struct Promises {
    hold_back: HoldBack,
    given: VecDeque<Promise>,
    /// The highest that was ever written.
    highest: Lsn,
    /// What may be acknowledged.
    allowed: Lsn,
    written_at: Option<Instant>,
}

impl Promises {
    /// Nothing promised beyond what the slot has confirmed already.
    pub(super) fn new(hold_back: HoldBack, confirmed: Lsn) -> Promises {
        Promises { hold_back, given: VecDeque::new(), highest: confirmed, allowed: confirmed, written_at: None }
    }

    /// Whether a record is due. `reach` is what could be acknowledged but for the hold-back; `now_or_never` when the
    /// server or the session ends.
    pub(super) fn is_due(&self, now: Instant, reach: Lsn, now_or_never: bool) -> bool {
        if reach <= self.highest {
            return false;
        }
        let far = self.hold_back.bytes > 0 && reach.0 - self.highest.0 >= self.hold_back.bytes / BYTES_PARTS;
        now_or_never || far || self.written_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// When the next record may be due although nothing happens; `None` when nothing is to be promised.
    pub(super) fn next_due(&self, reach: Lsn) -> Option<Instant> {
        (reach > self.highest).then_some(self.written_at? + INTERVAL)
    }

    /// A record was handed to the control log under this id.
    pub(super) fn written(&mut self, upto: Lsn, id: PublishId, now: Instant) {
        self.given.push_back(Promise { upto, id, confirmed: None });
        (self.highest, self.written_at) = (upto, Some(now));
    }

    /// Takes note of the control log's watermark.
    pub(super) fn confirm(&mut self, now: Instant, watermark: PublishId) {
        for promise in self.given.iter_mut().filter(|p| p.confirmed.is_none() && p.id <= watermark) {
            promise.confirmed = Some(now);
        }
    }

    /// What may be acknowledged as far as promises go. `settled` says that every transaction is confirmed.
    pub(super) fn allowed(&mut self, now: Instant, reach: Lsn, settled: bool, release: bool) -> Lsn {
        while let Some(Promise { upto, confirmed: Some(at), .. }) = self.given.front() {
            let age = now.saturating_duration_since(*at);
            let old = age >= self.hold_back.time || (settled && age >= quiet(self.hold_back));
            let far = reach.0.saturating_sub(upto.0) >= self.hold_back.bytes;
            if !(old || far || release) {
                break;
            }
            self.allowed = *upto;
            self.given.pop_front();
        }
        self.allowed
    }

    /// When the oldest confirmed record comes into force by time.
    pub(super) fn next_release(&self, settled: bool) -> Option<Instant> {
        let at = self.given.front()?.confirmed?;
        Some(at + if settled { quiet(self.hold_back) } else { self.hold_back.time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(n: u64) -> PublishId {
        PublishId::new(1, n)
    }

    #[test]
    fn nothing_is_acknowledged_before_its_record_is_confirmed_and_old() {
        let hold_back = HoldBack { time: 60 * SECOND, bytes: 1600 };
        let mut p = Promises::new(hold_back, Lsn(100));
        let start = Instant::now();
        assert!(!p.is_due(start, Lsn(100), true), "the slot is there already");
        assert!(p.is_due(start, Lsn(110), false));
        p.written(Lsn(110), id(1), start);
        assert!(!p.is_due(start + SECOND, Lsn(150), false), "a few seconds apart");
        assert!(
            p.is_due(start + SECOND, Lsn(150), true)
                && p.is_due(start + SECOND, Lsn(210), false)
                && p.is_due(start + 4 * SECOND, Lsn(150), false)
        );
        assert_eq!(p.allowed(start + 600 * SECOND, Lsn(110), true, true), Lsn(100), "not confirmed");
        p.confirm(start, id(1));
        assert_eq!(p.allowed(start + 59 * SECOND, Lsn(110), false, false), Lsn(100));
        assert_eq!(p.allowed(start + 60 * SECOND, Lsn(110), false, false), Lsn(110));
        p.written(Lsn(200), id(2), start + 60 * SECOND);
        p.written(Lsn(300), id(3), start + 64 * SECOND);
        p.confirm(start + 64 * SECOND, id(3));
        assert_eq!(p.allowed(start + 65 * SECOND, Lsn(1800), false, false), Lsn(200), "by bytes");
        assert_eq!(p.allowed(start + 73 * SECOND, Lsn(300), true, false), Lsn(200));
        assert_eq!(p.allowed(start + 74 * SECOND, Lsn(300), true, false), Lsn(300), "a settled stream is held back for ten seconds");
        p.written(Lsn(400), id(4), start + 80 * SECOND);
        p.confirm(start + 80 * SECOND, id(4));
        assert_eq!(p.allowed(start + 80 * SECOND, Lsn(400), false, true), Lsn(400), "released");
    }

    #[test]
    fn without_hold_back_the_confirm_is_enough() {
        let mut p = Promises::new(HoldBack { time: Duration::ZERO, bytes: 0 }, Lsn(0));
        let now = Instant::now();
        p.written(Lsn(10), id(1), now);
        assert_eq!(p.allowed(now, Lsn(10), false, false), Lsn(0));
        p.confirm(now, id(1));
        assert_eq!(p.allowed(now, Lsn(10), false, false), Lsn(10));
    }
}

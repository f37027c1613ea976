//! What a writer was handed and the journal has not confirmed.
//!
//! Owns the bytes of every unconfirmed batch, in order, and the watermark of each log. Both journals' writers stand on
//! it: [`Handle`] is the appending side, the task that talks to the journal takes batches, and confirms them in any order.
//! It knows nothing of sockets or files.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::{Batch, JournalError, Log, PublishId};

/// How much may be unconfirmed, in all logs together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of entries. One batch is always let in, however large.
    pub(super) bytes_max: usize,
    /// Batches.
    pub(super) batches_max: usize,
    /// Bytes of one batch.
    pub(super) batch_bytes_max: usize,
}

/// What is taken at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    /// Bytes; one batch is always taken, however large.
    pub(super) bytes_max: usize,
    /// Of them, beside each batch.
    pub(super) beside: usize,
    /// Bytes under way at which whoever takes gets three quarters of `bytes_max` or waits for the next confirm: what is sent then is late already,
    /// and a journal that is woken by every batch spends more on waking up than on storing.
    pub(super) busy: usize,
}

/// The unconfirmed batches of one writer.
#[derive(Debug)]
pub(super) struct Window {
    limits: Limits,
    state: Mutex<State>,
    /// Told when something was confirmed.
    room: Notify,
    /// Counts what was handed over, and the end of the writer as one more.
    work: watch::Sender<u64>,
    /// Counts the moves of watermarks, and a failure as one.
    moved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    logs: BTreeMap<Log, Lane>,
    bytes: usize,
    batches: usize,
    failed: Option<JournalError>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Lane {
    pending: VecDeque<Pending>,
    /// How many of `pending`, from the front, were taken.
    taken: usize,
    /// Bytes of those that were taken and are not confirmed.
    flying: usize,
    /// Bytes of those that were not taken and are not confirmed.
    waiting: usize,
    handed: PublishId,
    /// The newest that was ever taken.
    sent: PublishId,
    confirmed: PublishId,
}

#[derive(Debug)]
struct Pending {
    id: PublishId,
    batch: Batch,
    handed_at: Instant,
    confirmed: bool,
}

impl Window {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Window { limits, state: Mutex::default(), room: Notify::new(), work: watch::Sender::new(0), moved: watch::Sender::new(0) })
    }

    /// The appending side.
    pub(super) fn handle(self: &Arc<Self>) -> Handle {
        Handle { window: Arc::clone(self), moved: self.moved.subscribe() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when something was handed over, or when the writer was dropped.
    pub(super) fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    /// Whether the writer was dropped.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Logs that were ever written to.
    pub(super) fn logs(&self) -> Vec<Log> {
        self.state().logs.keys().copied().collect()
    }

    /// Takes batches of `log` that were not taken yet, oldest first, as many as the portion has room for.
    pub(super) fn take(&self, log: Log, portion: Portion) -> Vec<(PublishId, Batch)> {
        let mut state = self.state();
        let Some(lane) = state.logs.get_mut(&log) else { return Vec::new() };
        let (mut out, mut bytes) = (Vec::new(), 0);
        if lane.flying >= portion.busy && lane.waiting < portion.bytes_max / 4 * 3 {
            return out;
        }
        while let Some(next) = lane.pending.get(lane.taken) {
            bytes += if next.confirmed { 0 } else { next.batch.bytes.len() + portion.beside };
            if !out.is_empty() && bytes > portion.bytes_max {
                break;
            }
            if !next.confirmed {
                out.push((next.id, next.batch.clone()));
                let len = next.batch.bytes.len();
                (lane.flying, lane.waiting) = (lane.flying + len, lane.waiting - len);
            }
            lane.sent = lane.sent.max(next.id);
            lane.taken += 1;
        }
        out
    }

    /// Everything unconfirmed is to be taken again, in order, before anything new: the connection was lost.
    /// What was confirmed out of order stays so and is not taken again.
    pub(super) fn rewind(&self, log: Log) {
        if let Some(lane) = self.state().logs.get_mut(&log) {
            lane.taken = 0;
            (lane.flying, lane.waiting) = (0, lane.flying + lane.waiting);
        }
    }

    /// The batches that a journal must hold one of at its end when it says that `stored` was the last it took: the newest unconfirmed one
    /// up to there, and what was taken after it. None when nothing unconfirmed is meant, or when `stored` is not of this writer.
    pub(super) fn claimed(&self, log: Log, stored: PublishId) -> Vec<Bytes> {
        let state = self.state();
        let Some(lane) = state.logs.get(&log).filter(|lane| stored <= lane.sent) else { return Vec::new() };
        let newest = lane.pending.partition_point(|p| p.id <= stored);
        let sent = lane.pending.iter().take_while(|p| p.id <= lane.sent);
        sent.skip(newest.saturating_sub(1)).filter(|_| newest > 0).map(|p| p.batch.bytes.clone()).collect()
    }

    /// The watermark of a log.
    pub(super) fn confirmed(&self, log: Log) -> PublishId {
        self.state().logs.get(&log).map_or(PublishId(0), |lane| lane.confirmed)
    }

    /// How long the oldest unconfirmed batch of a log has been waiting.
    pub(super) fn oldest(&self, log: Log) -> Option<Duration> {
        Some(self.state().logs.get(&log)?.pending.front()?.handed_at.elapsed())
    }

    /// Notes confirms of taken batches, in whatever order they come. Ids that are not there are ignored: a confirm may
    /// come twice.
    pub(super) fn confirm(&self, log: Log, ids: impl IntoIterator<Item = PublishId>) {
        let mut state = self.state();
        let Some(lane) = state.logs.get_mut(&log) else { return };
        for id in ids {
            if let Ok(at) = lane.pending.binary_search_by_key(&id, |p| p.id)
                && !std::mem::replace(&mut lane.pending[at].confirmed, true)
            {
                let part = if at < lane.taken { &mut lane.flying } else { &mut lane.waiting };
                *part -= lane.pending[at].batch.bytes.len();
            }
        }
        let waits = lane.waiting > 0;
        let (mut bytes, mut batches) = (0, 0);
        while lane.pending.front().is_some_and(|p| p.confirmed) {
            let done = lane.pending.pop_front().expect("the front was just looked at");
            lane.taken = lane.taken.saturating_sub(1);
            lane.confirmed = done.id;
            bytes += done.batch.bytes.len();
            batches += 1;
        }
        state.bytes -= bytes;
        state.batches -= batches;
        drop(state);
        if waits {
            // It may have been held back.
            self.work.send_modify(|n| *n += 1);
        }
        if batches > 0 {
            self.room.notify_one();
            self.moved.send_modify(|n| *n += 1);
        }
    }

    /// The writer can not go on; the first reason stays.
    pub(super) fn fail(&self, error: JournalError) {
        self.state().failed.get_or_insert(error);
        self.room.notify_one();
        self.moved.send_modify(|n| *n += 1);
    }
}

/// The appending side of a [`Window`]; dropping it gives up what is unconfirmed.
#[derive(Debug)]
pub(super) struct Handle {
    window: Arc<Window>,
    moved: watch::Receiver<u64>,
}

impl Handle {
    /// Hands a batch over as soon as there is room. See [`super::Writer::append`].
    pub(super) async fn append(&self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        self.check(&batch)?;
        let len = batch.bytes.len();
        loop {
            {
                let limits = &self.window.limits;
                let mut state = self.window.state();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.batches == 0 || (state.batches < limits.batches_max && state.bytes + len <= limits.bytes_max) {
                    let lane = state.logs.entry(log).or_default();
                    if id <= lane.handed {
                        return Err(JournalError::Unusable(format!("batch ids must rise: {} follows {}", id.0, lane.handed.0)));
                    }
                    lane.handed = id;
                    lane.waiting += len;
                    lane.pending.push_back(Pending { id, batch, handed_at: Instant::now(), confirmed: false });
                    state.bytes += len;
                    state.batches += 1;
                    break;
                }
            }
            self.window.room.notified().await;
        }
        self.window.work.send_modify(|n| *n += 1);
        Ok(())
    }

    fn check(&self, batch: &Batch) -> Result<(), JournalError> {
        let max = self.window.limits.batch_bytes_max;
        if batch.bytes.len() > max {
            return Err(JournalError::Unusable(format!("a batch of {} bytes is above the limit of {max}", batch.bytes.len())));
        }
        // What is stored can not be mended, so that a batch whose count and lengths disagree is stopped here.
        if !(1..=65_535).contains(&batch.records) || super::count_records(&batch.bytes) != Some(batch.records) {
            return Err(JournalError::Unusable(format!("a batch of {} bytes does not hold {} entries", batch.bytes.len(), batch.records)));
        }
        Ok(())
    }

    /// See [`super::Writer::confirmed`].
    pub(super) fn confirmed(&self, log: Log) -> PublishId {
        self.window.confirmed(log)
    }

    /// See [`super::Writer::unconfirmed_bytes`].
    pub(super) fn unconfirmed_bytes(&self) -> usize {
        self.window.state().bytes
    }

    /// See [`super::Writer::unconfirmed_age`].
    pub(super) fn unconfirmed_age(&self) -> Option<Duration> {
        let state = self.window.state();
        state.logs.values().filter_map(|lane| lane.pending.front()).map(|p| p.handed_at.elapsed()).max()
    }

    /// See [`super::Writer::progress`].
    pub(super) async fn progress(&mut self) -> Result<(), JournalError> {
        self.failure()?;
        self.moved.changed().await.expect("the window holds the sender");
        self.failure()
    }

    fn failure(&self) -> Result<(), JournalError> {
        match &self.window.state().failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// See [`super::Writer::flush`].
    pub(super) async fn flush(&mut self) -> Result<(), JournalError> {
        // A receiver of its own: what `progress` has not told yet, it still has to tell.
        let mut moved = self.moved.clone();
        loop {
            moved.mark_unchanged();
            self.failure()?;
            if self.window.state().batches == 0 {
                return Ok(());
            }
            moved.changed().await.expect("the window holds the sender");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.window.state().closed = true;
        self.window.work.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes_max: 30, batches_max: 4, batch_bytes_max: 100 };
    const LOG: Log = Log::Data(0);
    const ALL: Portion = Portion { bytes_max: usize::MAX, beside: 0, busy: usize::MAX };

    fn batch(len: usize) -> Batch {
        let mut bytes = u32::try_from(len - 4).unwrap().to_be_bytes().to_vec();
        bytes.resize(len, b'x');
        Batch { bytes: Bytes::from(bytes), records: 1 }
    }

    fn taken(window: &Window) -> Vec<u64> {
        window.take(LOG, ALL).into_iter().map(|(id, _)| id.0).collect()
    }

    #[tokio::test]
    async fn the_watermark_is_the_prefix_whatever_the_order_of_confirms() {
        let window = Window::new(LIMITS);
        let mut handle = window.handle();
        for id in [3, 5, 9] {
            handle.append(LOG, PublishId(id), batch(6)).await.unwrap();
        }
        assert_eq!(taken(&window), [3, 5, 9]);
        window.confirm(LOG, [PublishId(9), PublishId(4)]);
        assert_eq!((handle.confirmed(LOG), handle.unconfirmed_bytes()), (PublishId(0), 18));
        window.confirm(LOG, [PublishId(3)]);
        assert_eq!((handle.confirmed(LOG), handle.unconfirmed_bytes()), (PublishId(3), 12));
        handle.progress().await.unwrap();
        handle.append(LOG, PublishId(10), batch(6)).await.unwrap();
        window.rewind(LOG);
        assert_eq!(taken(&window), [5, 10], "unconfirmed batches are sent again, in order, before anything new");
        window.confirm(LOG, [PublishId(10)]);
        window.confirm(LOG, [PublishId(5)]);
        handle.flush().await.unwrap();
        assert_eq!((handle.confirmed(LOG), handle.unconfirmed_bytes()), (PublishId(10), 0));
        handle.progress().await.unwrap();
        assert!(handle.unconfirmed_age().is_none());
    }

    #[tokio::test]
    async fn what_a_journal_says_it_took_can_be_looked_for() {
        let window = Window::new(LIMITS);
        let handle = window.handle();
        for (id, len) in [(3, 6), (5, 7), (9, 8)] {
            handle.append(LOG, PublishId(id), batch(len)).await.unwrap();
        }
        let claimed = |stored| window.claimed(LOG, PublishId(stored)).iter().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!(claimed(3), [0; 0], "never sent: an earlier writer's");
        assert_eq!(taken(&window), [3, 5, 9]);
        handle.append(LOG, PublishId(12), batch(9)).await.unwrap();
        window.rewind(LOG);
        assert_eq!(claimed(2), [0; 0], "nothing of ours");
        assert_eq!(claimed(3), [6, 7, 8]);
        assert_eq!(claimed(8), [7, 8]);
        assert_eq!(claimed(9), [8]);
        assert_eq!(claimed(10), [0; 0], "another writer's");
        window.confirm(LOG, [PublishId(3), PublishId(5)]);
        assert_eq!(claimed(5), [0; 0], "confirmed before");
    }

    #[tokio::test]
    async fn while_much_is_under_way_batches_wait_for_company_or_a_confirm() {
        let window = Window::new(Limits { bytes_max: 1_000, batches_max: 100, batch_bytes_max: 100 });
        let handle = window.handle();
        let take = || window.take(LOG, Portion { bytes_max: 42, beside: 1, busy: 60 }).len();
        for id in 1..=6 {
            handle.append(LOG, PublishId(id), batch(20)).await.unwrap();
        }
        assert_eq!((take(), take()), (2, 2), "a frame each");
        handle.append(LOG, PublishId(7), batch(20)).await.unwrap();
        assert_eq!(take(), 2, "80 bytes are under way, and three quarters of a frame wait");
        assert_eq!(take(), 0, "now too little waits");
        let mut work = window.work();
        window.confirm(LOG, (1..=4).map(PublishId));
        assert!(work.has_changed().unwrap(), "whoever held back is told");
        work.mark_unchanged();
        assert_eq!(take(), 1, "40 bytes under way are little");
        window.confirm(LOG, [PublishId(5)]);
        assert!(!work.has_changed().unwrap(), "nothing waits");
        window.rewind(LOG);
        window.confirm(LOG, [PublishId(7)]);
        assert_eq!((take(), take()), (1, 0), "what was sent is counted anew, and what is confirmed is not sent");
        window.rewind(LOG);
        let cramped = Portion { bytes_max: 42, beside: 2, busy: usize::MAX };
        handle.append(LOG, PublishId(8), batch(20)).await.unwrap();
        assert_eq!(window.take(LOG, cramped).len(), 1, "what stands beside a batch takes room too");
    }

    #[tokio::test]
    async fn append_waits_for_room_and_lets_one_large_batch_in() {
        let window = Window::new(LIMITS);
        let handle = window.handle();
        handle.append(LOG, PublishId(1), batch(90)).await.unwrap();
        let mut second = Box::pin(handle.append(LOG, PublishId(2), batch(6)));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(taken(&window), [1]);
        window.confirm(LOG, [PublishId(1)]);
        second.await.unwrap();
        assert_eq!(taken(&window), [2]);
    }

    #[tokio::test]
    async fn a_failure_reaches_every_call_and_stays() {
        let window = Window::new(LIMITS);
        let mut handle = window.handle();
        handle.append(LOG, PublishId(1), batch(6)).await.unwrap();
        window.fail(JournalError::Fenced);
        window.fail(JournalError::Missing("s".into()));
        for _ in 0..2 {
            assert!(matches!(handle.progress().await, Err(JournalError::Fenced)));
            assert!(matches!(handle.flush().await, Err(JournalError::Fenced)));
            assert!(matches!(handle.append(LOG, PublishId(2), batch(6)).await, Err(JournalError::Fenced)));
        }
    }

    #[tokio::test]
    async fn malformed_batches_and_ids_that_do_not_rise_are_refused() {
        let handle = Window::new(LIMITS).handle();
        let refused = [
            Batch { bytes: Bytes::new(), records: 0 },
            Batch { bytes: Bytes::from_static(&[0, 0, 0, 2, 1]), records: 1 },
            Batch { bytes: Bytes::from_static(&[0, 0, 0, 0]), records: 2 },
            batch(101),
        ];
        for batch in refused {
            assert!(matches!(handle.append(LOG, PublishId(1), batch).await, Err(JournalError::Unusable(_))));
        }
        handle.append(LOG, PublishId(2), batch(6)).await.unwrap();
        assert!(matches!(handle.append(LOG, PublishId(2), batch(6)).await, Err(JournalError::Unusable(_))));
    }
}

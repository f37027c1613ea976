//! One lane: one ordered delivery queue of a connector's partition, with one call under way at a time.
//!
//! Owns its sink and its queue; waits, repeats and pauses. Decides nothing about checkpoints and dead letters: it
//! reports to its partition.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tillstream_connectors::sink::{Batch, Class, Item, Mark, Outcome, Sink, SinkError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::mark::LaneMark;
use super::queue::{Cut, Head, Origin, Queue, Rejected, Work};
use super::settlement::Point;
use super::stats::{ConnectorState, ConnectorStats};
use crate::config;
use crate::retry::Delays;

/// Calls under way may finish after a stop within this time: long enough for most, and short enough that the
/// process ends within the ten seconds it promises.
pub(super) const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The longest pause that is taken from a target: a wrong clock or a date far ahead must not stop a connector for days.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// What a partition tells a lane.
#[derive(Debug)]
pub(super) enum Order {
    /// Deliver this.
    Work(Box<Work>),
    /// Store the present mark although there is nothing to deliver.
    StoreMark,
}

/// What a lane tells its partition.
#[derive(Debug)]
pub(super) enum Report {
    /// Outcomes of a call.
    Outcomes {
        /// Applied now.
        delivered: Vec<Origin>,
        /// The target had them already.
        absorbed: Vec<Origin>,
        /// To become dead letters.
        rejected: Vec<Rejected>,
        /// Answered once the dead letters are stored; the lane goes on then.
        stored: Option<oneshot::Sender<()>>,
        /// The call carried a mark that was ordered.
        marked: bool,
    },
    /// The lane can not go on: someone has to act.
    Failed(SinkError),
}

/// Pauses of a whole target, shared by its lanes.
#[derive(Clone, Debug)]
pub(super) struct Pause(Arc<watch::Sender<Option<Instant>>>);

impl Pause {
    pub(super) fn new() -> Pause {
        Pause(Arc::new(watch::Sender::new(None)))
    }

    fn extend(&self, until: Instant) {
        self.0.send_modify(|p| *p = Some(p.map_or(until, |p| p.max(until))));
    }

    /// Waits while the target is paused.
    async fn over(&self) {
        loop {
            let until = *self.0.borrow();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }
}

/// Everything of the partition before it is applied: what a transactional sink stores as its floor.
#[derive(Clone, Debug)]
pub(super) struct Floor(Arc<Mutex<Point>>);

impl Floor {
    pub(super) fn new(at: Point) -> Floor {
        Floor(Arc::new(Mutex::new(at)))
    }

    pub(super) fn get(&self) -> Point {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, point: Point) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = point;
    }
}

/// What a transactional lane needs to make its marks.
#[derive(Clone, Debug)]
pub(super) struct Marking {
    pub(super) lease: u32,
    pub(super) lanes: u16,
    pub(super) floor: Floor,
}

/// One lane.
pub(super) struct Lane {
    pub(super) sink: Box<dyn Sink>,
    pub(super) queue: Queue,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) pause: Pause,
    pub(super) marking: Option<Marking>,
    pub(super) stats: Arc<ConnectorStats>,
    pub(super) retry: config::Retry,
    /// Longest time one call may take, by the sink's own plan; a call beyond it (and a margin) counts as failed.
    pub(super) call_timeout: Duration,
    pub(super) stop: CancellationToken,
    pub(super) store_mark: bool,
}

/// How an attempt ended.
enum Attempt {
    Done(Vec<Outcome>),
    /// Asked to stop.
    Stopped,
    Failed(SinkError),
}

impl Lane {
    /// Runs until stopped, failed, or no more orders can come.
    pub(super) async fn run(mut self) {
        loop {
            while let Ok(order) = self.orders.try_recv() {
                self.take(order);
            }
            if self.stop.is_cancelled() {
                return;
            }
            let next = match self.queue.cut(Instant::now(), false) {
                Cut::Batch(batch) => {
                    if !self.deliver(batch).await {
                        return;
                    }
                    continue;
                }
                _ if self.store_mark => {
                    if !self.deliver(Vec::new()).await {
                        return;
                    }
                    continue;
                }
                Cut::Wait(until) => Some(until),
                Cut::Empty => None,
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                order = self.orders.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                () = sleep_until(next) => {}
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Work(work) => self.queue.push(*work),
            Order::StoreMark => self.store_mark = self.marking.is_some(),
        }
    }

    /// Brings one batch to an end, however often it takes. `false` when the lane is over.
    async fn deliver(&mut self, batch: Vec<Work>) -> bool {
        let (heads, items): (Vec<Head>, Vec<Item>) = batch.into_iter().map(|w| (w.head, w.item)).unzip();
        let batch = Batch { items, mark: self.mark() };
        let outcomes = match self.attempts(&batch).await {
            Attempt::Done(outcomes) => outcomes,
            Attempt::Stopped => return false,
            Attempt::Failed(error) => {
                // Nobody is left to hear it only when the whole session ends anyway.
                let _ = self.reports.send(Report::Failed(error)).await;
                return false;
            }
        };
        let marked = std::mem::take(&mut self.store_mark);
        let newest = heads.iter().map(|h| h.committed_at_ms).max();
        let applied = self.queue.apply(heads, batch.items, outcomes, Instant::now());
        let stats = &self.stats;
        ConnectorStats::add(&stats.retries, applied.retries);
        ConnectorStats::add(&stats.bytes, applied.bytes);
        if let (Some(newest), false) = (newest, applied.delivered.is_empty() && applied.absorbed.is_empty()) {
            stats.newest_commit_ms.fetch_max(newest, std::sync::atomic::Ordering::Relaxed);
            stats.delivered_at_ms.store(crate::control::now_ms(), std::sync::atomic::Ordering::Relaxed);
        }
        if let Some(reason) = &applied.reason {
            stats.set_error(&reason.code, &reason.message);
        }
        if let Some(after) = applied.pause {
            self.pause(after);
        }
        let (stored, wait) = if applied.rejected.is_empty() {
            (None, None)
        } else {
            let (stored, wait) = oneshot::channel();
            (Some(stored), Some(wait))
        };
        let report =
            Report::Outcomes { delivered: applied.delivered, absorbed: applied.absorbed, rejected: applied.rejected, stored, marked };
        if self.reports.send(report).await.is_err() {
            return false;
        }
        // The next mark may cover a refused event only once its dead letter is stored.
        match wait {
            Some(wait) => wait.await.is_ok(),
            None => true,
        }
    }

    fn mark(&self) -> Mark {
        let Some(marking) = &self.marking else { return Mark(Vec::new()) };
        let floor = marking.floor.get();
        let own = self.queue.own().max(floor.offset);
        LaneMark { lease: marking.lease, floor, lanes: marking.lanes, own }.encode()
    }

    fn pause(&self, after: Duration) {
        ConnectorStats::add(&self.stats.pauses, 1);
        self.pause.extend(Instant::now() + after.min(PAUSE_MAX));
    }

    /// Repeats the same batch, under the same keys, until the target answers, someone has to act, or we stop.
    async fn attempts(&mut self, batch: &Batch) -> Attempt {
        let mut delays = Delays::new(self.retry.base, self.retry.max);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Attempt::Stopped,
                () = self.pause.over() => {}
            }
            let error = match self.call(batch).await {
                Attempt::Done(outcomes) if outcomes.len() <= batch.items.len() && (batch.items.is_empty() || !outcomes.is_empty()) => {
                    self.stats.set_state(ConnectorState::Running);
                    return Attempt::Done(outcomes);
                }
                Attempt::Done(outcomes) => SinkError {
                    code: "delivery.sink_answer".into(),
                    message: format!("the sink reported {} outcomes for {} items", outcomes.len(), batch.items.len()),
                    class: if outcomes.is_empty() { Class::Transient } else { Class::Definite },
                    after: None,
                },
                Attempt::Failed(error) => error,
                Attempt::Stopped => return Attempt::Stopped,
            };
            if error.class == Class::Definite {
                return Attempt::Failed(error);
            }
            ConnectorStats::add(&self.stats.calls_failed, 1);
            self.stats.set_error(&error.code, &error.message);
            self.stats.set_state(ConnectorState::Retrying);
            let delay = match error.after {
                Some(after) => {
                    self.pause(after);
                    Duration::ZERO
                }
                None => delays.next_delay(),
            };
            tracing::warn!(connector = self.stats.name(), code = error.code, error = %error, retry_in = ?delay, "call failed, will be repeated");
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Attempt::Stopped,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// One call. A stop lets it finish for a while.
    async fn call(&mut self, batch: &Batch) -> Attempt {
        ConnectorStats::add(&self.stats.calls, 1);
        let begun = Instant::now();
        // The sink keeps its own limit; this one catches a sink that does not.
        let limit = self.call_timeout * 2 + FINISH_WITHIN;
        let stop = self.stop.clone();
        let stopped = async move {
            stop.cancelled().await;
            tokio::time::sleep(FINISH_WITHIN).await;
        };
        let result = tokio::select! {
            result = tokio::time::timeout(limit, self.sink.deliver(batch)) => result,
            () = stopped => return Attempt::Stopped,
        };
        let busy = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stats.busy_us.fetch_add(busy, std::sync::atomic::Ordering::Relaxed);
        match result {
            Ok(Ok(outcomes)) => Attempt::Done(outcomes),
            Ok(Err(error)) => Attempt::Failed(error),
            Err(_) => Attempt::Failed(SinkError {
                code: "delivery.call_timeout".into(),
                message: format!("no answer within {limit:?}"),
                class: Class::Transient,
                after: None,
            }),
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

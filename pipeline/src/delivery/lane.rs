//! One lane: one ordered delivery queue of a connector's partition, with one call under way at a time.
//!
//! Owns its sink and its queue; waits, repeats and pauses. Decides nothing about checkpoints and dead letters: it
//! reports to its partition.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tillstream_connectors::sink::{Batch, Class, Item, Mark, Outcome, Reason, Retry, Sink, SinkError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, Heard};
use super::mark::LaneMark;
use super::queue::{Applied, Cut, Head, Origin, Queue, Rejected, Work};
use super::settlement::Point;
use super::spans;
use super::stats::{Answer, ConnectorState, ConnectorStats, LaneTimes};
use crate::config;
use crate::retry::Delays;
use crate::telemetry::traces;

/// Calls under way may finish after a stop within this time: long enough for most, and short enough that the
/// process ends within the ten seconds it promises.
pub(super) const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// A batch that fails as a whole so often while the target takes others is halved, since one of its items may be what the
/// target stumbles over. Before that the very same batch is repeated: a target that knows calls by their key and not by
/// their items sees no new one.
const FAILED_BATCHES_MAX: u32 = 3;
/// The same where nobody else tells that the target is there.
const FAILED_BATCHES_ALONE_MAX: u32 = 10;

/// What a partition tells a lane.
#[derive(Debug)]
pub(super) enum Order {
    /// Deliver these.
    Work(Vec<Work>),
    /// Store the present mark although there is nothing to deliver.
    StoreMark,
}

/// What became of items.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// Applied now.
    pub(super) delivered: Vec<Origin>,
    /// The target had them already.
    pub(super) absorbed: Vec<Origin>,
    /// To become dead letters.
    pub(super) rejected: Vec<Rejected>,
    /// Never sent, because a newer state of the row took their place.
    pub(super) superseded: Vec<Origin>,
    /// Answered once the dead letters are stored; the lane goes on then.
    pub(super) stored: Option<oneshot::Sender<()>>,
    /// The call carried a mark that was ordered.
    pub(super) marked: bool,
}

/// What a lane tells its partition.
#[derive(Debug)]
pub(super) enum Report {
    /// Outcomes of a call.
    Outcomes(Outcomes),
    /// The lane can not go on: someone has to act.
    Failed(SinkError),
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
    pub(super) gate: Gate,
    pub(super) marking: Option<Marking>,
    pub(super) stats: Arc<ConnectorStats>,
    /// Where its time in calls is counted, and which of them is its own.
    pub(super) busy: (LaneTimes, usize),
    pub(super) retry: config::Retry,
    /// A call that takes longer is given up: nothing is known of its items.
    pub(super) call_max: Duration,
    pub(super) stop: CancellationToken,
    /// Calls in the air may finish only for a while.
    pub(super) hurry: CancellationToken,
    pub(super) store_mark: bool,
}

/// How an attempt ended.
enum Attempt {
    Done(Vec<Outcome>),
    /// The whole batch failed often enough to try its halves.
    Split,
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
            if self.stop.is_cancelled() || !self.report_superseded().await {
                return;
            }
            let next = match self.queue.cut(Instant::now(), self.gate.items_max(), false) {
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
            Order::Work(works) => works.into_iter().for_each(|work| self.queue.push(work)),
            Order::StoreMark => self.store_mark = self.marking.is_some(),
        }
    }

    /// `false` when nobody listens.
    async fn report_superseded(&mut self) -> bool {
        let superseded = self.queue.take_superseded();
        if superseded.is_empty() {
            return true;
        }
        ConnectorStats::add(&self.stats.superseded, superseded.len());
        self.reports.send(Report::Outcomes(Outcomes { superseded, ..Outcomes::default() })).await.is_ok()
    }

    /// Brings one batch to an end, however often it takes. `false` when the lane is over.
    async fn deliver(&mut self, batch: Vec<Work>) -> bool {
        let (heads, items): (Vec<Head>, Vec<Item>) = batch.into_iter().map(|w| (w.head, w.item)).unzip();
        let batch = Batch { items, mark: self.mark() };
        let fresh = !Queue::has_failed_before(&heads);
        let bytes = heads.iter().map(|h| h.bytes).sum();
        let outcomes = match self.attempts(&batch, fresh, bytes).await {
            Attempt::Done(outcomes) => outcomes,
            Attempt::Split => {
                self.queue.split(heads, batch.items);
                return true;
            }
            Attempt::Stopped => return false,
            Attempt::Failed(error) => {
                // Nobody is left to hear it only when the whole session ends anyway.
                let _ = self.reports.send(Report::Failed(error)).await;
                return false;
            }
        };
        let marked = std::mem::take(&mut self.store_mark);
        let newest = heads.iter().map(|h| h.committed_at_ms).max();
        let oldest = heads.iter().map(|h| h.committed_at_ms).min();
        let rows = heads.iter().map(|h| h.key).collect::<HashSet<_, foldhash::fast::RandomState>>().len();
        ConnectorStats::add(&self.stats.coalesced, heads.len() - rows);
        let applied = self.queue.apply(heads, batch.items, outcomes, Instant::now());
        let stats = &self.stats;
        ConnectorStats::add(&stats.retries, applied.retries);
        ConnectorStats::add(&stats.bytes, applied.bytes);
        if let (Some(newest), false) = (newest, applied.delivered.is_empty() && applied.absorbed.is_empty()) {
            stats.newest_commit_ms.fetch_max(newest, std::sync::atomic::Ordering::Relaxed);
            let now = crate::control::now_ms();
            stats.delivered_at_ms.store(now, std::sync::atomic::Ordering::Relaxed);
            let age = u64::try_from(now - oldest.unwrap_or(newest)).unwrap_or(0);
            let settled = (applied.delivered.len() + applied.absorbed.len()) as u64;
            stats.end_to_end.observe_many(Duration::from_millis(age), settled);
        }
        if let Some(reason) = &applied.reason {
            stats.set_error(&reason.code, &reason.message);
        }
        let (stored, wait) = if applied.rejected.is_empty() {
            (None, None)
        } else {
            let (stored, wait) = oneshot::channel();
            (Some(stored), Some(wait))
        };
        let Applied { delivered, absorbed, rejected, .. } = applied;
        let report = Report::Outcomes(Outcomes { delivered, absorbed, rejected, superseded: Vec::new(), stored, marked });
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

    /// Repeats the same batch, under the same keys, until the target answers, someone has to act, or we stop. `fresh` says
    /// that none of its items has failed before.
    async fn attempts(&mut self, batch: &Batch, fresh: bool, bytes: usize) -> Attempt {
        let mut delays = Delays::new(self.retry.base, self.retry.max);
        let (mut failures, mut taken_before) = (0, 0);
        loop {
            let pass = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Attempt::Stopped,
                pass = self.gate.enter(batch.items.len()) => pass,
            };
            let error = match self.call(batch, bytes).await {
                Attempt::Done(outcomes) if outcomes.len() <= batch.items.len() && (batch.items.is_empty() || !outcomes.is_empty()) => {
                    pass.ended(heard(&outcomes, fresh), outcomes.len());
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
                Attempt::Stopped | Attempt::Split => return Attempt::Stopped,
            };
            if error.class == Class::Definite {
                pass.ended(Heard::Nothing, 1);
                return Attempt::Failed(error);
            }
            ConnectorStats::add(&self.stats.calls_failed, 1);
            self.stats.set_error(&error.code, &error.message);
            self.stats.set_state(ConnectorState::Retrying);
            if failures == 0 {
                taken_before = self.gate.taken();
            }
            failures += 1;
            // An item that fails alone may be at fault itself, but only where it had failed before.
            let alone = batch.items.len() == 1 && self.marking.is_none();
            pass.ended(
                match error.after {
                    Some(after) => Heard::Busy(after),
                    None if alone && !fresh => Heard::Nothing,
                    None => Heard::Failed,
                },
                1,
            );
            if let Some(attempt) = self.give_way(batch, &error, failures, taken_before) {
                return attempt;
            }
            // Whoever waits at an open gate need not wait before it.
            let delay = if error.after.is_some() || self.gate.is_open() { Duration::ZERO } else { delays.next_delay() };
            // Of a target that is away, the breaker has said it once.
            if self.gate.is_open() {
                tracing::debug!(connector = self.stats.name(), code = error.code, error = %error, "call failed, will be repeated");
            } else {
                tracing::warn!(connector = self.stats.name(), code = error.code, error = %error, retry_in = ?delay, "call failed, will be repeated");
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Attempt::Stopped,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Whether a batch that failed as a whole makes way for others: a single item waits for its repetition like any other
    /// that failed, a longer batch is halved. A transactional target has a mark beside its items and isolates them itself.
    fn give_way(&self, batch: &Batch, error: &SinkError, failures: u32, taken_before: u64) -> Option<Attempt> {
        if self.marking.is_some() || batch.items.is_empty() {
            return None;
        }
        if batch.items.len() == 1 {
            let reason = Reason { code: error.code.clone(), message: error.message.clone() };
            return Some(Attempt::Done(vec![Outcome::Retry(Retry { reason, after: error.after })]));
        }
        let others_pass = self.gate.taken() > taken_before;
        let enough = if others_pass { FAILED_BATCHES_MAX } else { FAILED_BATCHES_ALONE_MAX };
        (error.after.is_none() && failures >= enough).then_some(Attempt::Split)
    }

    /// One call. A stop lets it finish, for a while where there is hurry.
    async fn call(&mut self, batch: &Batch, bytes: usize) -> Attempt {
        ConnectorStats::add(&self.stats.calls, 1);
        let begun = Instant::now();
        let span = traces::begin("deliver", traces::Kind::Client);
        let limit = self.call_max;
        let (stop, hurry) = (self.stop.clone(), self.hurry.clone());
        let stopped = async move {
            tokio::join!(stop.cancelled(), hurry.cancelled());
            tokio::time::sleep(FINISH_WITHIN).await;
        };
        let result = tokio::select! {
            result = tokio::time::timeout(limit, self.sink.deliver(batch)) => result,
            () = stopped => return Attempt::Stopped,
        };
        let (took, stats) = (begun.elapsed(), &self.stats);
        if let Some(span) = span {
            spans::end(span, stats.name(), self.busy.1, batch, result.as_ref().ok());
        }
        let busy = ConnectorStats::time(&stats.busy_us, begun);
        self.busy.0[self.busy.1].fetch_add(busy, std::sync::atomic::Ordering::Relaxed);
        if matches!(result, Ok(Ok(_))) {
            let items = batch.items.len();
            stats.call_times.observe(took);
            ConnectorStats::add(&stats.call_items, items);
            ConnectorStats::add(&stats.call_items_squared, items * items);
            stats.call_items_us.fetch_add(busy.saturating_mul(items as u64), std::sync::atomic::Ordering::Relaxed);
        } else {
            stats.failed_times.observe(took);
        }
        if !batch.items.is_empty() {
            stats.answered(answer(&result, batch.items.len(), bytes, took));
        }
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

/// What is remembered of a call.
fn answer<E>(result: &Result<Result<Vec<Outcome>, SinkError>, E>, items: usize, bytes: usize, took: Duration) -> Answer {
    let mut answer =
        Answer { at_ms: crate::control::now_ms(), took, items, bytes, applied: 0, absorbed: 0, repeated: items, refused: 0, code: None };
    let outcomes = match result {
        Ok(Ok(outcomes)) => outcomes,
        Ok(Err(error)) => return Answer { code: Some(error.code.clone()), ..answer },
        Err(_) => return Answer { code: Some("delivery.call_timeout".to_owned()), ..answer },
    };
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| is(outcome)).count();
    answer.applied = count(|o| matches!(o, Outcome::Delivered));
    answer.absorbed = count(|o| matches!(o, Outcome::Absorbed));
    answer.refused = count(|o| matches!(o, Outcome::Rejected(_)));
    // What was not attempted is repeated too.
    answer.repeated = items.saturating_sub(answer.applied + answer.absorbed + answer.refused);
    answer.code = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Rejected(reason) => Some(reason.code.clone()),
        Outcome::Retry(retry) => Some(retry.reason.code.clone()),
        Outcome::Delivered | Outcome::Absorbed => None,
    });
    answer
}

/// What the outcomes of a call tell of the target.
fn heard(outcomes: &[Outcome], fresh: bool) -> Heard {
    let after = outcomes.iter().filter_map(|o| if let Outcome::Retry(r) = o { r.after } else { None }).max();
    match after {
        Some(after) => Heard::Busy(after),
        None if outcomes.is_empty() || outcomes.iter().any(|o| !matches!(o, Outcome::Retry(_))) => Heard::Taken,
        None if fresh => Heard::Failed,
        None => Heard::Nothing,
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

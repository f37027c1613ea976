//! One partition of one connector: reads the journal behind its checkpoint, hands events to lanes, books what became
//! of them, and saves how far everything is settled.
//!
//! ```text
//!  journal ─▶ Filter ─▶ Selection ─▶ Settlement.admit ─▶ lane 0 … lane n ─▶ sink
//!                                          ▲                │
//!               control ◀─ checkpoint ─────┴── settle ◀─────┴── outcomes (dead letters stored first)
//! ```
//!
//! One task owns all of this state. It never waits for a lane: each lane's channel has room for everything that may be
//! under way, and reading stops at that bound.

pub(super) mod books;
mod intake;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tillstream_connectors::sink::{Idempotency, Sink};
use tillstream_schemas::Position;
use tillstream_schemas::entry::EntryError;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::DeliveryError;
use super::again::Again;
use super::begin::{Beginning, begin};
use super::events::{Prepared, Selection, is_versioned};
use super::filter::Filter;
use super::group;
use super::keep::Keep;
use super::lane::{FINISH_WITHIN, Floor, Lane, Marking, Order, Report};
use super::outputs::{GROUPS_OUTPUTS_MAX, Outputs};
use super::queue::{Limits, Queue, Work};
use super::settlement::{Point, Settlement};
use super::shape::Shapes;
use super::start::{Context, Skipped};
use super::stats::{ConnectorState, ConnectorStats, Work as Worked};
use super::switch::SETTLE_WITHIN;
use crate::control::{self, ControlError, DeadLetter, Lease, Record, ReplayTaken};
use crate::journal::{Bounds, Chunk, JournalError, Offset, PublishId, Reader};
use crate::telemetry::canary::Canary;

/// Events under way in one partition: enough for every lane to fill its next batch while one is in the air.
const UNDER_WAY_MAX: usize = 20_000;
/// Bytes of their bodies.
const UNDER_WAY_BYTES_MAX: usize = 32 << 20;
/// Canaries that were read and are behind something unsettled: of more the latest alone is kept.
const CANARIES_MAX: usize = 16;
/// Redriven dead letters under way.
const REDRIVES_MAX: usize = 100;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// A last checkpoint at a stop is given this long.
const LAST_SAVE_WITHIN: Duration = Duration::from_secs(2);

/// A chunk that is being walked.
struct Walk {
    chunk: Chunk,
    at: usize,
    offset: u64,
}

impl Walk {
    /// Where the next entry lies in the chunk.
    fn next(&mut self) -> Option<Result<Range<usize>, EntryError>> {
        let rest = self.chunk.bytes.get(self.at..)?;
        if rest.is_empty() {
            return None;
        }
        let length = rest.first_chunk::<4>().map(|n| u32::from_be_bytes(*n) as usize);
        let Some(length) = length.filter(|n| rest.len() - 4 >= *n) else {
            return Some(Err(EntryError::Malformed("ends early")));
        };
        let start = self.at + 4;
        self.at = start + length;
        self.offset += 1;
        Some(Ok(start..start + length))
    }
}

/// Runs one partition until stopped, caught up or failed.
///
/// # Errors
/// Whatever keeps the connector from going on; transient or definite by its class.
pub(super) async fn run(context: Context) -> Result<Ended, DeliveryError> {
    let stop = context.stop.clone();
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Ended::Over),
        started = Partition::start(context) => match started? {
            Some(partition) => Box::pin(partition.run()).await,
            None => Ok(Ended::Over),
        },
    }
}

/// How a partition ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Stopped, caught up, or settled for another file.
    Over,
    /// It is to begin anew at another place.
    Again,
}

struct Partition {
    context: Context,
    selection: Selection,
    shapes: Shapes,
    /// The event before which reading stands still, because its table has changed.
    waiting: Option<Waiting>,
    /// Rows kept for the mapping.
    keep: Option<Keep>,
    /// A transaction that is to become one event, and has not ended.
    group: Option<group::Open>,
    outputs: Outputs,
    filter: Filter,
    settlement: Settlement,
    skipped: Skipped,
    reader: Box<dyn Reader>,
    walk: Option<Walk>,
    /// When a chunk came last, or the end was looked at.
    last_read: Instant,
    /// Since when the journal is waited for; `None` while there is something else to do first.
    awaiting: Option<Instant>,
    worked: Worked,
    look_at_end: Option<LookAtEnd>,
    /// A TRUNCATE that waits until everything before it is settled, and then until it is itself.
    barrier: Option<Barrier>,
    lanes: Vec<mpsc::Sender<Order>>,
    /// What each of them is to get next, until the step is over.
    gathered: Vec<Vec<Work>>,
    reports: mpsc::Receiver<Report>,
    tasks: JoinSet<()>,
    lane_stop: CancellationToken,
    /// Cancelled when their calls in the air may finish only for a while.
    lane_hurry: CancellationToken,
    floor: Floor,
    transactional: bool,
    marked: (Instant, Offset),
    /// A mark was ordered and its report has not come.
    marking: bool,
    control: control::Writer,
    held: Lease,
    saved: (Instant, Point, u64),
    saving: Option<PublishId>,
    redrives: HashMap<String, Redrive>,
    /// The last replay that was taken up, and what it passes over while it is under way.
    replay: Option<ReplayTaken>,
    again: Option<Again>,
    /// Canaries behind something that is not settled, in the order of the journal.
    canaries: VecDeque<(Offset, Canary)>,
    /// A replay waits to be taken up: nothing more is read, and what is under way has until then to be settled.
    moving: Option<Instant>,
}

/// A dead letter that was sent again.
struct Redrive {
    letter: Arc<DeadLetter>,
    /// Its outputs under way.
    left: usize,
    /// Its outcome is stored (or nothing can be done); it stays here until the control log shows that, or it would be
    /// sent again at once.
    done: bool,
}

/// An event that waits until somebody has seen what became of its table.
struct Waiting {
    offset: Offset,
    prepared: Prepared,
    /// Why; `None` while it is merely not known yet what its layout is.
    why: Option<String>,
}

enum Barrier {
    Waiting(Box<Work>),
    Sent,
}

/// What woke the task.
enum Action {
    Stop,
    Report(Report),
    Confirmed(Result<(), ControlError>),
    Control(bool),
    Read(Result<Chunk, JournalError>),
    End(Option<(Offset, Offset)>),
    Step,
    Tick,
}

impl Partition {
    async fn start(mut context: Context) -> Result<Option<Partition>, DeliveryError> {
        if context.until == Some(None) {
            return Ok(None);
        }
        context.turn().await?;
        let (name, partition) = (context.connector.name.clone(), context.partition);
        let plan = context.connector.target.plan().clone();
        let state = context.follower.state();
        let had_owner = state.lease(&name, partition).is_some_and(|l| !l.released);
        let member = context.roster.borrow().me.clone();
        let (control, held) = control::Writer::take_lease(
            context.journal.clone(),
            &context.pipeline,
            &context.source,
            &state,
            &name,
            partition,
            &context.owner,
            &member,
        )
        .await?;
        let lease = held.lease;
        // Once our own announcement is seen here, so is every checkpoint that counts.
        let state =
            context.follower.wait_for(|s| s.lease(&name, partition).is_some_and(|l| l.lease >= lease)).await.ok_or(DeliveryError::Ended)?;
        if had_owner && plan.idempotency == Idempotency::None {
            // The last owner may have a request in the air, and nothing at the target would stop it.
            tokio::time::sleep(plan.call_timeout).await;
        }
        let mut sinks = context.build_sinks();
        context.until_ready(sinks[0].as_mut(), |sink| Box::pin(sink.check())).await?;
        let (beginning, control) = begin(&mut context, &state, lease, &mut sinks, control).await?;
        tracing::info!(connector = name, partition, lease, offset = beginning.from.offset.0, "delivery starts");
        Ok(Some(Partition::with(context, control, held, sinks, beginning)))
    }

    fn with(context: Context, control: control::Writer, held: Lease, sinks: Vec<Box<dyn Sink>>, beginning: Beginning) -> Partition {
        let Beginning { reader, filter, from, skipped, keep, replay, again } = beginning;
        let connector = &context.connector;
        let plan = connector.target.plan();
        let transactional = plan.idempotency == Idempotency::Transactional;
        let floor = Floor::new(from);
        let lane_stop = CancellationToken::new();
        let lane_hurry = context.hurry.child_token();
        let limits = Limits {
            items_max: connector.delivery.batch_items_max.clamp(1, UNDER_WAY_MAX),
            bytes_max: connector.delivery.batch_bytes_max,
            linger: connector.delivery.linger,
            one_per_key: !is_versioned(plan.idempotency),
        };
        let (report, reports) = mpsc::channel(sinks.len() * 2);
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::new();
        let busy = context.stats.lane_times(context.partition, sinks.len());
        let lanes_count = connector.delivery.lanes.get();
        for (n, sink) in sinks.into_iter().enumerate() {
            // Room for everything that may be under way and a mark: sending never waits.
            let (order, orders) = mpsc::channel(2 * (UNDER_WAY_MAX + GROUPS_OUTPUTS_MAX) + REDRIVES_MAX + 2);
            lanes.push(order);
            let lane = Lane {
                sink,
                queue: Queue::new(limits, connector.retry, from.offset),
                orders,
                reports: report.clone(),
                gate: context.gate.clone(),
                marking: transactional.then(|| Marking { lease: held.lease, lanes: lanes_count, floor: floor.clone() }),
                stats: context.stats.clone(),
                busy: (busy.clone(), n),
                retry: connector.retry,
                // The sink keeps its own limit; without one of the connector this catches a sink that does not.
                call_max: connector.delivery.timeout.unwrap_or(plan.call_timeout * 2 + FINISH_WITHIN),
                stop: lane_stop.clone(),
                hurry: lane_hurry.clone(),
                store_mark: false,
            };
            tasks.spawn(lane.run());
        }
        let now = Instant::now();
        Partition {
            selection: Selection::new(connector, &context.source, context.partition),
            shapes: Shapes::new(connector),
            waiting: None,
            keep,
            group: None,
            outputs: Outputs::default(),
            filter,
            settlement: Settlement::new(from),
            skipped,
            reader,
            walk: None,
            last_read: now,
            awaiting: None,
            worked: Worked::default(),
            look_at_end: None,
            barrier: None,
            gathered: lanes.iter().map(|_| Vec::new()).collect(),
            lanes,
            reports,
            tasks,
            lane_stop,
            lane_hurry,
            floor,
            transactional,
            marked: (now, from.offset),
            marking: false,
            control,
            held,
            saved: (now, from, 0),
            saving: None,
            redrives: HashMap::new(),
            replay,
            again,
            canaries: VecDeque::new(),
            moving: None,
            context,
        }
    }

    async fn run(mut self) -> Result<Ended, DeliveryError> {
        self.context.stats.set_state(ConnectorState::Running);
        self.heed_requests().await?;
        self.hand_over();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            let action = self.select(&mut tick).await;
            match self.apply(action).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Whoever paused the connector waits for no one; everything else does.
        if result.is_err() || !self.context.stop.is_cancelled() {
            self.lane_hurry.cancel();
        }
        let ended = if self.moving.is_some() && !self.context.stop.is_cancelled() { Ended::Again } else { Ended::Over };
        self.finish().await;
        result.map(|()| ended)
    }

    /// What operators asked for: dead letters to be sent again, or another place to deliver from.
    async fn heed_requests(&mut self) -> Result<(), DeliveryError> {
        let state = self.context.follower.state();
        let taken = self.replay.map_or(0, |taken| taken.number);
        let pending = state.pending_replay(&self.context.connector.name, self.context.partition);
        if self.moving.is_none() && pending.is_some_and(|request| request.number > taken) {
            self.moving = Some(Instant::now() + SETTLE_WITHIN);
        }
        if self.moving.is_some() { Ok(()) } else { self.redrive().await }
    }

    async fn select(&mut self, tick: &mut tokio::time::Interval) -> Action {
        let room = self.has_room();
        let walking = self.walk.is_some();
        self.awaiting = if room && !walking { self.awaiting.or_else(|| Some(Instant::now())) } else { None };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => Action::Stop,
            // A lane that ended by itself has reported why.
            Some(report) = self.reports.recv() => Action::Report(report),
            done = self.control.progress(), if self.saving.is_some() => Action::Confirmed(done),
            _ = tick.tick() => Action::Tick,
            state = self.context.follower.changed() => Action::Control(state.is_some()),
            end = answer(&mut self.look_at_end), if self.look_at_end.is_some() => Action::End(end),
            () = std::future::ready(()), if room && walking => Action::Step,
            chunk = self.reader.next(), if room && !walking => Action::Read(chunk),
        }
    }

    /// Counts the time since the journal was asked.
    fn waited(&mut self) {
        if let Some(since) = self.awaiting.take() {
            self.worked.read_wait_us += ConnectorStats::time(&self.context.stats.read_wait_us, since);
        }
    }

    /// Whether more events may be under way.
    fn has_room(&self) -> bool {
        self.barrier.is_none()
            && self.waiting.is_none()
            && self.moving.is_none()
            && self.settlement.unsettled() < UNDER_WAY_MAX
            && self.outputs.under_way() < UNDER_WAY_MAX
            && self.settlement.unsettled_bytes() < UNDER_WAY_BYTES_MAX
            && !self.read_all()
            && !self.is_to_settle()
    }

    /// Whether reading ends here, between two transactions (or before an event that waits), because everything is to be settled.
    fn is_to_settle(&self) -> bool {
        let position = self.filter.position();
        self.context.settle.is_cancelled() && (self.waiting.is_some() || position.is_none() || position.ordinal == Position::END_ORDINAL)
    }

    /// Whether everything that was asked for has been read.
    fn read_all(&self) -> bool {
        matches!(self.context.until, Some(Some(last)) if self.settlement.reached().offset > last)
    }

    /// Changes state. `false`: the partition is over.
    async fn apply(&mut self, action: Action) -> Result<bool, DeliveryError> {
        match action {
            Action::Stop => return Ok(false),
            Action::Report(Report::Failed(error)) => return Err(DeliveryError::Sink(error)),
            Action::Report(Report::Outcomes(outcomes)) => {
                let began = Instant::now();
                self.book(outcomes).await?;
                self.worked.settle_us += ConnectorStats::time(&self.context.stats.settle_us, began);
            }
            Action::Confirmed(result) => {
                result?;
                if self.saving.is_some_and(|id| self.control.confirmed() >= id) {
                    self.saving = None;
                }
            }
            Action::Control(true) => {
                self.check_lease()?;
                self.heed_requests().await?;
                self.try_again()?;
            }
            Action::Control(false) => return Err(DeliveryError::Ended),
            Action::Read(chunk) => {
                let chunk = chunk?;
                self.last_read = Instant::now();
                self.waited();
                self.worked.entries += chunk.next_offset().0.saturating_sub(chunk.first_offset.0);
                self.worked.bytes += chunk.bytes.len() as u64;
                self.walk = Some(Walk { offset: chunk.first_offset.0, at: 0, chunk });
            }
            Action::End(Some((checkpoint, end))) if end < checkpoint => {
                return Err(DeliveryError::Regressed { partition: self.context.partition, checkpoint, end });
            }
            Action::End(_) => self.look_at_end = None,
            Action::Step => {
                let began = Instant::now();
                let stepped = self.step();
                self.worked.map_us += ConnectorStats::time(&self.context.stats.map_us, began);
                stepped?;
            }
            Action::Tick => {
                self.try_again()?;
                self.tick().await?;
            }
        }
        // Stored before the checkpoint that covers what was met: they are one writer's.
        for met in self.shapes.take_met() {
            self.control.append(&Record::LayoutAccepted(met)).await?;
        }
        self.pass_barrier();
        self.hand_over();
        self.pass_canaries();
        if self.context.until.is_some()
            && self.moving.is_none()
            && let Some(why) = self.waiting.as_ref().and_then(|waiting| waiting.why.clone())
            && self.is_quiet()
        {
            return Err(DeliveryError::SchemaChanged(why));
        }
        Ok(!self.is_done())
    }

    /// Whether nothing is under way that was read.
    fn is_quiet(&self) -> bool {
        // A transaction whose end is not stored yet is left to whoever comes next.
        let open = usize::from(self.group.as_ref().is_some_and(|group| group.sequence.is_some()));
        self.settlement.unsettled() <= open && self.redrives.values().all(|r| r.done) && !self.marking
    }

    /// Caught up, and nothing under way.
    fn is_done(&mut self) -> bool {
        // Whoever begins anew knows what was settled of that which was not settled in time.
        if self.moving.is_some_and(|late| Instant::now() >= late) {
            return true;
        }
        if !(self.read_all() || self.is_to_settle() || self.moving.is_some()) || !self.is_quiet() {
            return false;
        }
        if self.transactional && self.marked.1 < self.settlement.checkpoint().offset {
            self.store_mark();
            return false;
        }
        true
    }

    /// Lets calls in the air end, books them and saves the last checkpoint.
    async fn finish(&mut self) {
        self.context.stats.release(self.context.partition);
        self.lane_stop.cancel();
        let hurry = self.lane_hurry.clone();
        let hurried = async move {
            hurry.cancelled().await;
            tokio::time::sleep(FINISH_WITHIN + Duration::from_millis(500)).await;
        };
        tokio::pin!(hurried);
        while !self.tasks.is_empty() {
            let report = tokio::select! {
                biased;
                Some(report) = self.reports.recv() => report,
                Some(_) = self.tasks.join_next() => continue,
                () = &mut hurried => break,
            };
            if let Report::Outcomes(outcomes) = report {
                // What can not be booked is delivered once more after the restart.
                if let Err(error) = self.book(outcomes).await {
                    tracing::warn!(connector = self.context.connector.name, %error, "outcomes at the stop were not booked");
                }
            }
        }
        while let Ok(Report::Outcomes(outcomes)) = self.reports.try_recv() {
            let _ = self.book(outcomes).await;
        }
        let quiet = self.tasks.is_empty();
        self.tasks.abort_all();
        if let Some(record) = self.checkpoint_record() {
            match tokio::time::timeout(LAST_SAVE_WITHIN, self.control.store(&record)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(connector = self.context.connector.name, %error, "the last checkpoint was not saved"),
                Err(_) => tracing::warn!(connector = self.context.connector.name, "the last checkpoint was not saved in time"),
            }
        }
        // With a call in the air the next owner waits as if this one had died.
        if quiet && self.check_lease().is_ok() {
            let lease = Lease { released: true, at_ms: control::now_ms(), ..self.held.clone() };
            // Whoever is not told waits a little longer.
            let _ = tokio::time::timeout(LAST_SAVE_WITHIN, self.control.store(&Record::Lease(lease))).await;
        }
    }
}

/// A question for the log's end.
struct LookAtEnd {
    /// What had been read when it was asked.
    reached: Offset,
    ask: JoinHandle<Result<Option<Bounds>, JournalError>>,
}

/// What had been read when the end was asked for, and the end. While the journal is away there is no answer.
async fn answer(asked: &mut Option<LookAtEnd>) -> Option<(Offset, Offset)> {
    match asked {
        Some(LookAtEnd { reached, ask }) => match ask.await {
            Ok(Ok(bounds)) => Some((*reached, bounds.map_or(Offset(0), |b| Offset(b.last.0 + 1)))),
            Ok(Err(_)) | Err(_) => None,
        },
        None => std::future::pending().await,
    }
}

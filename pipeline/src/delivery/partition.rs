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

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tillstream_connectors::mapping::Fault;
use tillstream_connectors::sink::{Idempotency, Sink};
use tillstream_schemas::entry::EntryError;
use tillstream_schemas::{Kind, Op, Position};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::DeliveryError;
use super::again::Again;
use super::begin::{Beginning, begin, checkpoint_of};
use super::events::{Output, Prepared, Selection, is_versioned};
use super::filter::{Filter, FilterError, Skip, Verdict};
use super::group::{self, Transaction};
use super::keep::Keep;
use super::lane::{FINISH_WITHIN, Floor, Lane, Marking, Order, Report};
use super::outputs::{GROUPS_OUTPUTS_MAX, Outputs};
use super::queue::{Limits, Origin, Queue, Rejected, Work};
use super::settlement::{Point, Sequence, Settlement};
use super::shape::{self, Cause, Fit, Shapes};
use super::start::{Context, Skipped};
use super::stats::{ConnectorState, ConnectorStats, PartitionProgress};
use super::switch::SETTLE_WITHIN;
use crate::control::{self, Body, ControlError, DeadLetter, DeadLetterSettled, Lease, Record, ReplayTaken, Settled};
use crate::journal::{Bounds, Chunk, JournalError, Log, Offset, PublishId, Reader};

/// Events under way in one partition: enough for every lane to fill its next batch while one is in the air.
const UNDER_WAY_MAX: usize = 10_000;
/// Bytes of their bodies.
const UNDER_WAY_BYTES_MAX: usize = 32 << 20;
/// Redriven dead letters under way.
const REDRIVES_MAX: usize = 100;
/// Entries handled before the task looks for outcomes again.
const STEP: usize = 256;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// How often a checkpoint is saved: a crash repeats about this much, and the targets absorb it.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often an idle transactional sink stores how far reading went, so that a restart does not read it again.
const MARK_EVERY: Duration = Duration::from_secs(30);
/// How long nothing comes before the log's end is looked at: a log that lost its end would be waited for in vain.
const LOOK_AT_END_AFTER: Duration = Duration::from_secs(10);
/// Ranges in a checkpoint's ledger.
pub(super) const LEDGER_MAX: usize = 500;
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
    look_at_end: Option<LookAtEnd>,
    /// A TRUNCATE that waits until everything before it is settled, and then until it is itself.
    barrier: Option<Barrier>,
    lanes: Vec<mpsc::Sender<Order>>,
    reports: mpsc::Receiver<Report>,
    tasks: JoinSet<()>,
    lane_stop: CancellationToken,
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
        let limits = Limits {
            items_max: connector.delivery.batch_items_max.clamp(1, UNDER_WAY_MAX),
            bytes_max: connector.delivery.batch_bytes_max,
            linger: connector.delivery.linger,
            one_per_key: !is_versioned(plan.idempotency),
        };
        let (report, reports) = mpsc::channel(sinks.len() * 2);
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::new();
        let lanes_count = connector.delivery.lanes.get();
        for sink in sinks {
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
                retry: connector.retry,
                // The sink keeps its own limit; without one of the connector this catches a sink that does not.
                call_max: connector.delivery.timeout.unwrap_or(plan.call_timeout * 2 + FINISH_WITHIN),
                stop: lane_stop.clone(),
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
            look_at_end: None,
            barrier: None,
            lanes,
            reports,
            tasks,
            lane_stop,
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
            moving: None,
            context,
        }
    }

    async fn run(mut self) -> Result<Ended, DeliveryError> {
        self.context.stats.set_state(ConnectorState::Running);
        self.heed_requests().await?;
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
            Action::Report(Report::Outcomes { delivered, absorbed, rejected, superseded, stored, marked }) => {
                self.book(delivered, absorbed, rejected, superseded, stored, marked).await?;
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
                self.walk = Some(Walk { offset: chunk.first_offset.0, at: 0, chunk });
            }
            Action::End(Some((checkpoint, end))) if end < checkpoint => {
                return Err(DeliveryError::Regressed { partition: self.context.partition, checkpoint, end });
            }
            Action::End(_) => self.look_at_end = None,
            Action::Step => self.step()?,
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

    fn step(&mut self) -> Result<(), DeliveryError> {
        for _ in 0..STEP {
            if !self.has_room() {
                return Ok(());
            }
            let Some(walk) = &mut self.walk else { return Ok(()) };
            let offset = Offset(walk.offset);
            let Some(next) = walk.next() else {
                self.walk = None;
                return Ok(());
            };
            let range = next.map_err(|error| FilterError::Malformed { offset, error })?;
            let (stored_at_ms, record) = (walk.chunk.stored_at_ms, &walk.chunk.bytes[range]);
            let (mut prepared, mut ended) = (None, None);
            match self.filter.push(offset, record)? {
                Verdict::Pass(passed) if matches!(passed.header.whole, Kind::Event | Kind::Read) => {
                    let read = self.context.shared.prepare(offset.0, passed.header.position, passed.body, stored_at_ms);
                    prepared = Some(read.map_err(|error| DeliveryError::Event { offset, error })?);
                }
                Verdict::Pass(passed) if passed.header.whole == Kind::End => ended = Some(Transaction::of(passed.header.position)),
                Verdict::Pass(_) => {}
                Verdict::Skip(Skip::Part | Skip::Fenced | Skip::Repeat | Skip::Foreign) => {}
            }
            if let (Some(keep), Some(event)) = (&self.keep, prepared.take_if(|_| self.keep.is_some())) {
                prepared = Some(keep.note(event)?);
            }
            let meant = |p: &Prepared| self.again.as_ref().is_none_or(|again| !again.passes_over(offset, p.row));
            if let Some(prepared) = prepared.filter(|p| self.selection.wants(&p.event) && meant(p))
                && !self.pass(offset, prepared)?
            {
                return Ok(());
            }
            if let Some(transaction) = ended {
                self.end_group(offset, transaction)?;
            }
            self.reach(offset);
        }
        Ok(())
    }

    /// The entry at this offset needs no more reading.
    fn reach(&mut self, offset: Offset) {
        // Reading can resume no later than at the first part of a body that is not complete.
        let next = self.filter.open_since().unwrap_or(Offset(offset.0 + 1));
        self.settlement.reach(self.point(next));
    }

    /// Takes an event in, unless it has to wait because its table has changed.
    fn pass(&mut self, offset: Offset, prepared: Prepared) -> Result<bool, DeliveryError> {
        let why = match self.shapes.fit(&prepared.event, || self.context.follower.state()) {
            Fit::Fits => None,
            Fit::Untold => Some(None),
            Fit::Changed(why) => Some(Some(why)),
        };
        let group = self.selection.grouped().and(Transaction::of_event(&prepared.event));
        let why = match (why, group) {
            (Some(why), _) => why,
            (None, Some(transaction)) => match self.shapes.keeps_out(&prepared.event) {
                Some(cause) => Some(cause.what),
                None => return self.join(offset, transaction, prepared).map(|()| true),
            },
            (None, None) => match self.admit(offset, &prepared) {
                Some(cause) => Some(cause.what),
                None => return Ok(true),
            },
        };
        self.shapes.forget(&prepared.event);
        if let Some(why) = &why {
            let name = &self.context.connector.name;
            let message = format!(
                "{why}: `tillstream schema history` tells how; mend the file and `tillstream apply` it, or accept the change with \
                 `tillstream connector resume {name}`"
            );
            if self.context.stats.hold(self.context.partition, &message) {
                tracing::error!(connector = name, partition = self.context.partition, code = shape::CODE, "delivery is paused: {message}");
                self.context.stats.set_error(shape::CODE, &message);
            }
        }
        self.waiting = Some(Waiting { offset, prepared, why });
        Ok(false)
    }

    /// Looks again at an event that waits.
    fn try_again(&mut self) -> Result<(), DeliveryError> {
        // Whoever begins anew reads it again.
        if self.moving.is_some() {
            return Ok(());
        }
        let Some(Waiting { offset, prepared, .. }) = self.waiting.take() else { return Ok(()) };
        if self.pass(offset, prepared)? {
            self.reach(offset);
            if self.context.stats.release(self.context.partition) {
                tracing::info!(connector = self.context.connector.name, partition = self.context.partition, "delivery goes on");
            }
        }
        Ok(())
    }

    fn point(&self, offset: Offset) -> Point {
        Point { offset, position: self.filter.position(), token: self.filter.token() }
    }

    /// Admits what an event is made into, or says why it has to wait.
    fn admit(&mut self, offset: Offset, prepared: &Prepared) -> Option<Cause> {
        let barrier = prepared.event.op() == Op::Truncate;
        let lane = if barrier { 0 } else { self.lane(prepared.row) };
        if self.skipped.has(offset, lane) {
            // Booked, and not merely passed over: the next checkpoint's ledger has to hold it too.
            let sequence = self.settlement.admit(offset, prepared.bytes, prepared.committed_at_ms);
            self.settlement.settle(sequence);
            return None;
        }
        let mut outputs = self.selection.outputs(prepared, self.keep.as_ref(), None);
        if outputs.is_empty() {
            ConnectorStats::add(&self.context.stats.filtered, 1);
            return None;
        }
        outputs.retain(|output| !self.is_parked(offset, output));
        if outputs.is_empty() {
            return None;
        }
        let failed = outputs.iter().any(is_unmapped);
        if let Some(cause) = self.shapes.cause(&prepared.event, failed, || self.context.follower.state()) {
            if !cause.refuse {
                return Some(cause);
            }
            outputs.iter_mut().for_each(|output| cause.refuse(output));
        }
        let bytes = outputs.iter().map(|output| output.bytes).sum();
        let sequence = self.settlement.admit(offset, bytes, prepared.committed_at_ms);
        self.outputs.expect(sequence, outputs.len());
        for output in outputs {
            let (lane, work) = self.work(Origin::Journal(sequence), offset, prepared, output);
            if barrier {
                self.barrier = Some(Barrier::Waiting(Box::new(work)));
            } else {
                self.order(lane, Order::Work(Box::new(work)));
            }
        }
        None
    }

    /// Whether a replay leaves an output to the redrive of its dead letter.
    fn is_parked(&self, offset: Offset, output: &Output) -> bool {
        let letter = || self.selection.letter_id(&output.item);
        self.again.as_ref().is_some_and(|again| again.is_parked(offset, output.item.event.id(), letter))
    }

    fn work(&self, origin: Origin, offset: Offset, prepared: &Prepared, output: Output) -> (usize, Work) {
        let Output { item, key, lane, bytes } = output;
        let prepared = Prepared { row: key, bytes, ..prepared.clone() };
        (self.lane(lane), Work::new(origin, offset, &prepared, item, Instant::now()))
    }

    /// An event joins the facts of its transaction.
    fn join(&mut self, offset: Offset, transaction: Transaction, prepared: Prepared) -> Result<(), DeliveryError> {
        if self.group.as_ref().is_some_and(|open| open.transaction != transaction) {
            // Its history did not continue: what it was to be nobody knows.
            let fault = Fault {
                code: "delivery.group_incomplete",
                path: "group".to_owned(),
                what: "the transaction's end never came".to_owned(),
                detail: None,
            };
            self.close_group(offset, Some(fault))?;
        }
        let Some(mapping) = self.selection.grouped() else { return Ok(()) };
        let joins = match mapping.joins(&prepared.event, self.keep.as_ref().map(Keep::tables)) {
            Ok(None) => {
                ConnectorStats::add(&self.context.stats.filtered, 1);
                return Ok(());
            }
            Ok(Some(key)) => Ok(key),
            Err(fault) => Err(fault),
        };
        let mut open = match self.group.take() {
            Some(open) => open,
            None => {
                let sequence = self.settlement.admit(offset, prepared.bytes, prepared.committed_at_ms);
                // One owner settled the whole transaction, or nothing of it.
                let settled = self.skipped.in_ledger(offset);
                if settled {
                    self.settlement.settle(sequence);
                }
                group::Open::new(transaction, (!settled).then_some(sequence))
            }
        };
        let bytes = open.add(joins, prepared);
        self.group = Some(open);
        self.group_fits(bytes, transaction)
    }

    fn group_fits(&self, bytes: usize, transaction: Transaction) -> Result<(), DeliveryError> {
        let limit = usize::try_from(self.context.connector.keep.memory / 4).unwrap_or(usize::MAX);
        if bytes > limit { Err(DeliveryError::GroupTooLarge { transaction: transaction.lsn(), limit }) } else { Ok(()) }
    }

    fn end_group(&mut self, offset: Offset, transaction: Transaction) -> Result<(), DeliveryError> {
        match &self.group {
            Some(open) if open.transaction == transaction => self.close_group(offset, None),
            _ => Ok(()),
        }
    }

    /// A transaction is over: its groups become outputs, all at the offset at hand, behind which every event of theirs lies.
    fn close_group(&mut self, offset: Offset, incomplete: Option<Fault>) -> Result<(), DeliveryError> {
        let Some(open) = self.group.take() else { return Ok(()) };
        let (transaction, Some(sequence)) = (open.transaction, open.sequence) else { return Ok(()) };
        let lane = transaction.lane();
        if self.transactional && self.skipped.in_lane(offset, self.lane(lane)) {
            self.settlement.settle(sequence);
            return Ok(());
        }
        let (groups, fault) = open.close().map_err(|error| DeliveryError::Event { offset, error })?;
        let fault = incomplete.or(fault);
        let (mut works, mut bytes) = (Vec::new(), 0);
        for group in groups {
            let mut outputs = self.selection.group(&group, None, lane, fault.as_ref(), self.keep.as_ref());
            outputs.retain(|output| !self.is_parked(offset, output));
            for mut output in outputs {
                let cause = self.shapes.cause(&group.prepared.event, is_unmapped(&output), || self.context.follower.state());
                if let Some(cause) = cause.filter(|cause| cause.refuse) {
                    cause.refuse(&mut output);
                }
                bytes += output.bytes;
                works.push(self.work(Origin::Journal(sequence), offset, &group.prepared, output));
            }
            self.group_fits(if works.len() > GROUPS_OUTPUTS_MAX { usize::MAX } else { bytes }, transaction)?;
        }
        if works.is_empty() {
            ConnectorStats::add(&self.context.stats.filtered, 1);
            self.settlement.settle(sequence);
        }
        self.outputs.expect(sequence, works.len());
        for (lane, work) in works {
            self.order(lane, Order::Work(Box::new(work)));
        }
        Ok(())
    }

    fn lane(&self, row: u64) -> usize {
        usize::try_from(row % self.lanes.len() as u64).unwrap_or(0)
    }

    fn order(&self, lane: usize, order: Order) {
        match self.lanes[lane].try_send(order) {
            Ok(()) => {}
            // The lane has failed and says so in a report, which ends this task.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => unreachable!("a lane has room for everything that may be under way"),
        }
    }

    /// A truncate goes alone: everything before it is settled first, and nothing follows until it is.
    fn pass_barrier(&mut self) {
        match self.barrier.take() {
            Some(Barrier::Waiting(work)) if self.settlement.unsettled() == 1 => {
                self.order(0, Order::Work(work));
                self.barrier = Some(Barrier::Sent);
            }
            Some(Barrier::Sent) if self.settlement.unsettled() == 0 => {}
            other => self.barrier = other,
        }
    }

    async fn book(
        &mut self,
        delivered: Vec<Origin>,
        absorbed: Vec<Origin>,
        rejected: Vec<Rejected>,
        superseded: Vec<Origin>,
        stored: Option<oneshot::Sender<()>>,
        marked: bool,
    ) -> Result<(), DeliveryError> {
        let stats = self.context.stats.clone();
        ConnectorStats::add(&stats.delivered, delivered.len());
        ConnectorStats::add(&stats.absorbed, absorbed.len());
        if marked {
            self.marking = false;
            self.marked.0 = Instant::now();
        }
        for origin in delivered.into_iter().chain(absorbed).chain(superseded) {
            self.settle(origin).await?;
        }
        self.store_letters(&rejected).await?;
        ConnectorStats::add(&stats.rejected, rejected.len());
        for letter in rejected {
            match letter.origin {
                Origin::Journal(sequence) => self.settled(sequence),
                // The event as a whole could not be mapped, and one of its outputs has a letter of its own now.
                Origin::Redrive(before) if self.selection.letter_id(&letter.item) != before.event_id => {
                    self.settle(Origin::Redrive(before)).await?;
                }
                Origin::Redrive(letter) => drop(self.redriven(&letter)),
            }
        }
        self.floor.set(self.settlement.checkpoint());
        if let Some(stored) = stored {
            // The lane may be gone; then it needs no answer.
            let _ = stored.send(());
        }
        Ok(())
    }

    /// One output of a dead letter is through; whether it was the last.
    fn redriven(&mut self, letter: &DeadLetter) -> bool {
        let Some(redrive) = self.redrives.get_mut(&letter.event_id) else { return true };
        redrive.left = redrive.left.saturating_sub(1);
        redrive.done |= redrive.left == 0;
        redrive.left == 0
    }

    fn settled(&mut self, sequence: Sequence) {
        if self.outputs.settle(sequence) {
            self.settlement.settle(sequence);
        }
    }

    async fn settle(&mut self, origin: Origin) -> Result<(), DeliveryError> {
        match origin {
            Origin::Journal(sequence) => self.settled(sequence),
            // Its other outputs are under way.
            Origin::Redrive(letter) if self.redrives.get(&letter.event_id).is_some_and(|redrive| redrive.left > 1) => {
                self.redriven(&letter);
            }
            Origin::Redrive(letter) => {
                let settled = DeadLetterSettled {
                    connector: letter.connector.clone(),
                    event_id: letter.event_id.clone(),
                    how: Settled::Redriven,
                    reason: String::new(),
                    by: self.context.owner.clone(),
                    at_ms: control::now_ms(),
                };
                self.control.store(&Record::DeadLetterSettled(settled)).await?;
                ConnectorStats::add(&self.context.stats.redriven, 1);
                self.redriven(&letter);
            }
        }
        Ok(())
    }

    /// Stores dead letters and believes only what it reads back: a confirm is no proof for an owner that was replaced.
    async fn store_letters(&mut self, rejected: &[Rejected]) -> Result<(), DeliveryError> {
        let Some(last) = rejected.len().checked_sub(1) else { return Ok(()) };
        let state = self.context.follower.state();
        for (n, rejected) in rejected.iter().enumerate() {
            let letter = self.letter(rejected);
            state.room_for_letter(letter.event.stored_len())?;
            tracing::warn!(
                connector = letter.connector,
                event = letter.event_id,
                code = letter.code,
                reason = letter.message,
                attempts = letter.attempts,
                "event refused, stored as a dead letter"
            );
            self.context.stats.set_error(&letter.code, &letter.message);
            let record = Record::DeadLetter(letter);
            if n == last {
                // One writer's records are stored in order: with the last one, all are.
                self.control.store_proven(&record).await?;
            } else {
                self.control.append(&record).await?;
            }
        }
        Ok(())
    }

    fn letter(&self, rejected: &Rejected) -> DeadLetter {
        let now = control::now_ms();
        let event = &rejected.item.event;
        let mut letter = DeadLetter {
            connector: self.context.connector.name.clone(),
            partition: self.context.partition,
            offset: rejected.offset,
            event_id: self.selection.letter_id(&rejected.item),
            event: Body::new(event.body()),
            code: rejected.reason.code.clone(),
            message: rejected.reason.message.clone(),
            attempts: rejected.attempts,
            first_at_ms: rejected.first_at_ms,
            last_at_ms: now,
            idempotency_key: rejected.item.idempotency_key.clone(),
            version: rejected.item.version,
        };
        if let Origin::Redrive(before) = &rejected.origin {
            letter.attempts = letter.attempts.saturating_add(before.attempts);
            letter.first_at_ms = before.first_at_ms;
        }
        letter
    }

    /// Ends this owner once another process has announced a later lease.
    fn check_lease(&self) -> Result<(), ControlError> {
        let state = self.context.follower.state();
        match state.lease(&self.context.connector.name, self.context.partition) {
            Some(held) if held.lease > self.control.lease() => {
                let name = control::delivery_producer(&self.context.pipeline, &self.context.connector.name, self.context.partition).0;
                Err(ControlError::Rival { name, lease: held.lease })
            }
            _ => Ok(()),
        }
    }

    /// Sends dead letters again that someone asked for, under the key and version they had.
    async fn redrive(&mut self) -> Result<(), DeliveryError> {
        let state = self.context.follower.state();
        let (name, partition) = (self.context.connector.name.as_str(), self.context.partition);
        let shown = |r: &Redrive| state.dead_letter(name, &r.letter.event_id).is_none_or(|l| *l.letter != *r.letter);
        self.redrives.retain(|_, redrive| !(redrive.done && shown(redrive)));
        let asked = state.dead_letters().filter(|l| l.redrive_requested && l.letter.connector == name && l.letter.partition == partition);
        let (mut orders, mut unwanted) = (Vec::new(), Vec::new());
        for letter in asked {
            let letter = &letter.letter;
            let under_way: usize = self.redrives.values().map(|redrive| redrive.left).sum();
            if self.redrives.len() >= REDRIVES_MAX || under_way >= REDRIVES_MAX {
                break;
            }
            if self.redrives.contains_key(&letter.event_id) {
                continue;
            }
            let body = letter.event.bytes();
            let Some(Ok(prepared)) = body.as_deref().map(|b| Prepared::parse(b, letter.first_at_ms)) else {
                tracing::error!(
                    connector = name,
                    event = letter.event_id,
                    code = "delivery.redrive_impossible",
                    "the dead letter holds no event"
                );
                self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: 0, done: true });
                continue;
            };
            let outputs = self.selection.again(&prepared, self.keep.as_ref(), &letter.event_id, &letter.idempotency_key);
            if outputs.is_empty() || outputs.len() > GROUPS_OUTPUTS_MAX {
                unwanted.push(letter.clone());
                continue;
            }
            self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: outputs.len(), done: false });
            for (prepared, mut output) in outputs {
                // It was read already: it never waits.
                if let Some(cause) = self.shapes.cause_again(&prepared.event, is_unmapped(&output), &state) {
                    cause.refuse(&mut output);
                }
                output.item.version = letter.version;
                orders.push(self.work(Origin::Redrive(letter.clone()), letter.offset, &prepared, output));
            }
        }
        for (lane, work) in orders {
            self.order(lane, Order::Work(Box::new(work)));
        }
        // The connector's `when` does not want them any more: there is nothing to send.
        for letter in unwanted {
            self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: 1, done: false });
            self.settle(Origin::Redrive(letter)).await?;
        }
        Ok(())
    }

    fn store_mark(&mut self) {
        self.marking = true;
        self.marked.1 = self.settlement.checkpoint().offset;
        self.floor.set(self.settlement.checkpoint());
        self.order(0, Order::StoreMark);
    }

    async fn tick(&mut self) -> Result<(), DeliveryError> {
        let (checkpoint, reached) = (self.settlement.checkpoint(), self.settlement.reached());
        self.floor.set(checkpoint);
        self.context.stats.set_progress(
            self.context.partition,
            PartitionProgress {
                read: reached.offset,
                settled: checkpoint.offset,
                position: checkpoint.position,
                in_flight: self.settlement.unsettled() as u64,
                oldest_commit_ms: self
                    .settlement
                    .oldest_commit_ms()
                    .or(self.waiting.as_ref().map(|waiting| waiting.prepared.committed_at_ms)),
                replay_until: self.replay.map(|taken| taken.until.offset).filter(|until| checkpoint.offset < *until),
                filter: self.filter.counts(),
            },
        );
        let now = Instant::now();
        if self.look_at_end.is_none() && self.walk.is_none() && now - self.last_read >= LOOK_AT_END_AFTER {
            self.last_read = now;
            let (journal, log) = (self.context.journal.clone(), Log::Data(self.context.partition));
            let ask = tokio::spawn(async move { journal.bounds(log).await });
            self.look_at_end = Some(LookAtEnd { reached: reached.offset, ask });
        }
        let idle = self.transactional && !self.marking && self.settlement.unsettled() == 0;
        if idle && self.marked.1 < checkpoint.offset && now - self.marked.0 >= MARK_EVERY {
            self.store_mark();
        }
        if self.saving.is_none() && now - self.saved.0 >= SAVE_EVERY {
            if let Some(record) = self.checkpoint_record() {
                self.saving = Some(self.control.append(&record).await?);
            }
            self.saved.0 = now;
        }
        Ok(())
    }

    /// The checkpoint, when it says more than the last one.
    fn checkpoint_record(&mut self) -> Option<Record> {
        let point = self.settlement.checkpoint();
        let above = self.settlement.settled_above();
        if (point, above) == (self.saved.1, self.saved.2) {
            return None;
        }
        (self.saved.1, self.saved.2) = (point, above);
        Some(Record::Checkpoint(checkpoint_of(&self.context, self.control.lease(), point, self.ledger(), self.replay)))
    }

    /// What is settled above the checkpoint: by this owner, and by those before it where this one has not read yet.
    fn ledger(&self) -> Vec<(u64, u64)> {
        let mut ledger = self.settlement.ledger(LEDGER_MAX);
        ledger.extend(self.skipped.beyond(self.settlement.reached().offset));
        ledger.truncate(LEDGER_MAX);
        ledger
    }

    /// Lets calls in the air end, books them and saves the last checkpoint.
    async fn finish(&mut self) {
        self.context.stats.release(self.context.partition);
        self.lane_stop.cancel();
        let deadline = Instant::now() + FINISH_WITHIN + Duration::from_millis(500);
        while !self.tasks.is_empty() {
            let report = tokio::select! {
                biased;
                Some(report) = self.reports.recv() => report,
                Some(_) = self.tasks.join_next() => continue,
                () = tokio::time::sleep_until(deadline) => break,
            };
            if let Report::Outcomes { delivered, absorbed, rejected, superseded, stored, marked } = report {
                // What can not be booked is delivered once more after the restart.
                if let Err(error) = self.book(delivered, absorbed, rejected, superseded, stored, marked).await {
                    tracing::warn!(connector = self.context.connector.name, %error, "outcomes at the stop were not booked");
                }
            }
        }
        while let Ok(Report::Outcomes { delivered, absorbed, rejected, superseded, stored, marked }) = self.reports.try_recv() {
            let _ = self.book(delivered, absorbed, rejected, superseded, stored, marked).await;
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

fn is_unmapped(output: &Output) -> bool {
    matches!(output.item.mapped, Some(Err(_)))
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

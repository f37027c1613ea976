//! Delivery: reads the journal from a checkpoint and brings each event to each connector's target, once and in order
//! per row.
//!
//! ```text
//!  run ─┬─ Follower of the control log (leases, checkpoints, dead letters, requests)
//!       ├─ connector A ─┬─ partition 0 ─┬─ lane 0 ─ sink
//!       │               │               └─ lane 1 ─ sink
//!       │               └─ partition 1 …
//!       └─ connector B …
//! ```
//!
//! Connectors do not know each other: one that fails keeps its checkpoint and tries again, the others go on. What a
//! target refuses for good becomes a dead letter in the control journal before it counts as settled. Nothing else is
//! ever skipped: a gap, a damaged entry or an unreadable event stops the connector with a coded error.
//!
//! A dead letter is delivered again by the process that delivers its connector: `dead-letters redrive` only stores the
//! request, and whoever holds the lease of that partition picks it up, so there is one writer to each target at any
//! time. A replay goes the same way ([`replay`]), and so does a pause, which every process obeys. Several processes share the
//! partitions of each connector ([`membership`]); what one leaves behind, by its end or by its death, the others take over. With
//! no process running the request waits for the next `run` (or `run --until-caught-up`).
//!
//! This module never reads the source database and never writes a data log.

mod again;
mod assignment;
mod begin;
pub mod dead_letter;
pub mod edit;
mod events;
pub mod filter;
mod gate;
mod group;
mod keep;
mod lane;
pub mod mark;
mod membership;
mod outputs;
mod partition;
mod pause;
pub mod place;
pub mod preview;
mod queue;
pub mod replay;
pub mod settlement;
mod shape;
mod spans;
mod start;
pub mod stats;
pub mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tillstream_connectors::mapping::TablesError;
use tillstream_connectors::sink::{Class, SinkError};
use tillstream_schemas::Lsn;
use tillstream_schemas::envelope::EventError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use shape::{acceptances, is_undecided};
pub use stats::{Answer, Breaker, ConnectorState, ConnectorStats, LastError, PartitionProgress, Stats};
pub use switch::{Listeners, NotSwitched, Switches};

use crate::config;
use crate::control::{self, ControlError, Follower, Pause};
use crate::journal::{Journal, JournalError, Log, Offset};
use crate::retry::Delays;
use events::Shared;
use filter::FilterError;
use gate::Gate;
use mark::MarkError;
use membership::{Membership, Roster};
use partition::Ended;
use switch::{SETTLE_WITHIN, Switch};

/// A server that comes back is found within this, and one that stays away is asked no more often.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// How often a connector that someone has to mend tries again: often enough that a mended password heals it, seldom
/// enough that no target locks the account.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What delivery needs.
pub struct Parts {
    /// Where events come from, and where progress is kept.
    pub journal: Arc<dyn Journal>,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the source.
    pub source: String,
    /// Host and process, for people who look at leases.
    pub owner: String,
    /// What is delivered where.
    pub connectors: Vec<config::Connector>,
    /// Ends delivery: calls in the air may finish for five seconds, then the last checkpoints are saved.
    pub stop: CancellationToken,
    /// How long to run.
    pub mode: Mode,
    /// Kept up to date; made by [`Stats::new`] with the connectors' names in the same order.
    pub stats: Arc<Stats>,
}

/// How long to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until stopped.
    Continuous,
    /// Until everything that stood in the journal at the start is settled. The first definite error ends it.
    UntilCaughtUp,
}

/// What stops a connector, or delivery as a whole.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The control journal failed, or another process took over.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The data log contradicts the protocol.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// An entry of ours holds no event.
    #[error("event at offset {}: {error}", offset.0)]
    Event {
        /// Where.
        offset: Offset,
        /// What is wrong.
        error: EventError,
    },
    /// The target.
    #[error(transparent)]
    Sink(SinkError),
    /// The target holds a mark of another form.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The data log ends before the place that was read to: it was deleted and made anew, or lost its end.
    #[error("partition {partition} ends at offset {}, below what was read up to {}: the log was replaced or lost its end", end.0, checkpoint.0)]
    Regressed {
        /// The partition.
        partition: u16,
        /// Where reading should go on.
        checkpoint: Offset,
        /// One above the newest entry.
        end: Offset,
    },
    /// The rows that the mapping looks up cannot be kept.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A transaction is larger than a group may be.
    #[error(
        "the transaction {transaction} has more than {limit} bytes of events for this connector, which makes a fact of each transaction"
    )]
    GroupTooLarge {
        /// Its commit.
        transaction: Lsn,
        /// The limit.
        limit: usize,
    },
    /// A table has changed, and the connector is not to go on by itself.
    #[error("{0}")]
    SchemaChanged(String),
    /// Somebody paused the connector, and there is something to deliver.
    #[error("connector {} is paused by {} since {}: {}", .0.connector, .0.who(), .0.since(), .0.reason)]
    Paused(Box<Pause>),
    /// Nobody follows the control journal any more.
    #[error("the control journal is no longer followed")]
    Ended,
    /// Another file was wished for, and what had been read was not settled in time: it goes on with the one there was.
    #[error("what was read was not settled in time for another file")]
    NotSettled,
    /// A task panicked: our bug. The checkpoint stands where it was.
    #[error("a delivery task failed unexpectedly")]
    Bug,
}

impl From<SinkError> for DeliveryError {
    fn from(error: SinkError) -> Self {
        DeliveryError::Sink(error)
    }
}

impl DeliveryError {
    /// Whether trying again can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            DeliveryError::Journal(e) => e.is_transient(),
            DeliveryError::Control(e) => e.is_transient(),
            DeliveryError::Sink(e) => e.class == Class::Transient,
            DeliveryError::Ended | DeliveryError::NotSettled => true,
            DeliveryError::Filter(_)
            | DeliveryError::Event { .. }
            | DeliveryError::Mark(_)
            | DeliveryError::Regressed { .. }
            | DeliveryError::Tables(_)
            | DeliveryError::GroupTooLarge { .. }
            | DeliveryError::SchemaChanged(_)
            | DeliveryError::Paused(_)
            | DeliveryError::Bug => false,
        }
    }

    /// Stable code.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            DeliveryError::Journal(e) => e.code().into(),
            DeliveryError::Control(e) => e.code().into(),
            DeliveryError::Filter(e) => e.code().into(),
            DeliveryError::Event { .. } => "delivery.malformed_event".into(),
            DeliveryError::Sink(e) => e.code.clone(),
            DeliveryError::Mark(_) => "delivery.unknown_mark".into(),
            DeliveryError::Regressed { .. } => "delivery.journal_regressed".into(),
            DeliveryError::Tables(e) => e.code().into(),
            DeliveryError::GroupTooLarge { .. } => "delivery.group_too_large".into(),
            DeliveryError::SchemaChanged(_) => shape::CODE.into(),
            DeliveryError::Paused(_) => "delivery.paused".into(),
            DeliveryError::Ended => "delivery.control_ended".into(),
            DeliveryError::NotSettled => "delivery.not_settled".into(),
            DeliveryError::Bug => "delivery.bug".into(),
        }
    }
}

/// Delivers until stopped or caught up.
///
/// # Errors
/// Only in [`Mode::UntilCaughtUp`]: the first definite error. Otherwise every error is kept in [`Stats`], and what
/// failed is tried again.
pub async fn run(parts: Parts) -> Result<(), DeliveryError> {
    run_with(parts, Listeners::default()).await
}

/// As [`run`], and connectors may be given other files meanwhile.
///
/// # Errors
/// Those of [`run`].
pub async fn run_with(parts: Parts, listeners: Listeners) -> Result<(), DeliveryError> {
    let Listeners(mut listeners) = listeners;
    let Parts { journal, pipeline, source, owner, connectors, stop, mode, stats } = parts;
    let mut ends = Vec::new();
    let mut shared = Vec::new();
    for partition in 0..journal.partitions() {
        shared.push(Arc::new(Shared::new(connectors.len())));
        if mode == Mode::UntilCaughtUp {
            ends.push(patiently(&stop, || journal.bounds(Log::Data(partition))).await?.map(|b| b.map(|b| b.last)));
        }
    }
    if stop.is_cancelled() {
        return Ok(());
    }
    let ends = (mode == Mode::UntilCaughtUp).then(|| ends.into_iter().map(Option::flatten).collect::<Vec<_>>());
    if connectors.is_empty() {
        return Ok(());
    }
    let (publish, roster) = watch::channel(Roster::default());
    let leave = CancellationToken::new();
    let membership = Membership {
        journal: journal.clone(),
        pipeline: pipeline.clone(),
        source: source.clone(),
        owner: owner.clone(),
        connectors: connectors.iter().map(|c| c.name.clone()).collect(),
        roster: publish,
        stop: leave.clone(),
    };
    let mut member = JoinSet::new();
    member.spawn(membership.run());
    let mut tasks = JoinSet::new();
    for (n, connector) in connectors.into_iter().enumerate() {
        let stats = match stats.connectors().get(n) {
            Some(stats) if stats.name() == connector.name => stats.clone(),
            _ => unreachable!("stats are made with the connectors' names"),
        };
        let supervisor = Supervisor {
            journal: journal.clone(),
            pipeline: pipeline.clone(),
            source: source.clone(),
            owner: owner.clone(),
            gate: Gate::new(&connector, journal.partitions(), stats.clone()),
            wish: listeners.remove(&connector.name),
            wished: None,
            connector: Arc::new(connector),
            shared: shared.clone(),
            roster: roster.clone(),
            stats,
            stop: stop.clone(),
            ends: ends.clone(),
        };
        tasks.spawn(supervisor.run());
    }
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or(Err(DeliveryError::Bug));
        if result.is_ok() {
            result = ended;
        }
    }
    // Last of all, so that nobody takes over what is still in the air.
    leave.cancel();
    while member.join_next().await.is_some() {}
    result
}

/// Repeats a call of the journal while it is away; `None` when stopped meanwhile.
async fn patiently<T, F: Future<Output = Result<T, JournalError>>>(
    stop: &CancellationToken,
    mut call: impl FnMut() -> F,
) -> Result<Option<T>, DeliveryError> {
    let mut delays = Delays::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match call().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.is_transient() => tracing::warn!(%error, "journal not ready"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(delays.next_delay()) => {}
        }
    }
}

/// Keeps one connector going.
struct Supervisor {
    journal: Arc<dyn Journal>,
    pipeline: String,
    source: String,
    owner: String,
    connector: Arc<config::Connector>,
    /// Where another file for it may come from.
    wish: Option<mpsc::Receiver<Switch>>,
    /// A file that was wished for when a session failed.
    wished: Option<Switch>,
    shared: Vec<Arc<Shared>>,
    roster: watch::Receiver<Roster>,
    stats: Arc<ConnectorStats>,
    gate: Gate,
    stop: CancellationToken,
    /// Of [`Mode::UntilCaughtUp`]: the last offset of each partition.
    ends: Option<Vec<Option<Offset>>>,
}

impl Supervisor {
    async fn run(mut self) -> Result<(), DeliveryError> {
        let mut delays = Delays::new(Duration::from_millis(500), RETRY_DELAY_MAX);
        let mut rewind = false;
        loop {
            self.stats.set_state(ConnectorState::Starting);
            let began = tokio::time::Instant::now();
            let error = match self.session(rewind).await {
                Ok(None) => {
                    self.stats.set_state(ConnectorState::Stopped);
                    return Ok(());
                }
                Ok(Some(switch)) => {
                    self.take(switch);
                    rewind = false;
                    continue;
                }
                Err(error) => error,
            };
            if let Some(switch) = self.wished.take() {
                // As below: nothing is under way, and the other file may be what mends it.
                self.stats.set_error(&error.code(), &error.to_string());
                tracing::warn!(connector = self.connector.name, %error, "the session failed while another file was waited for");
                self.take(switch);
                rewind = false;
                continue;
            }
            let moved = matches!(error, DeliveryError::Filter(FilterError::Gap { .. }) | DeliveryError::Regressed { .. });
            if moved && !rewind {
                // A broker that lost its unsynced end is filled again by capture, under other offsets. Looked for once:
                // a gap that is still there then is one.
                tracing::warn!(connector = self.connector.name, %error, "looking for the place by position");
                rewind = true;
                continue;
            }
            rewind = false;
            let code = error.code();
            self.stats.set_error(&code, &error.to_string());
            if began.elapsed() > RETRY_DELAY_MAX {
                // It worked for a while: this is another outage, not the same one.
                delays.reset();
            }
            let delay = if error.is_transient() {
                self.stats.set_state(ConnectorState::Retrying);
                let delay = delays.next_delay();
                tracing::warn!(connector = self.connector.name, code, %error, retry_in = ?delay, "connector waits, keeps its checkpoint");
                delay
            } else {
                self.stats.set_state(ConnectorState::Failed);
                if self.ends.is_some() {
                    return Err(error);
                }
                tracing::error!(connector = self.connector.name, code, %error, retry_in = ?TRY_AGAIN, "connector stopped, keeps its checkpoint");
                TRY_AGAIN
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.stats.set_state(ConnectorState::Stopped);
                    return Ok(());
                }
                // Nothing is under way, and the other file may be what mends it.
                switch = switch::wished(&mut self.wish) => {
                    self.take(switch);
                    delays.reset();
                }
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    fn take(&mut self, switch: Switch) {
        tracing::info!(connector = self.connector.name, "goes on with another file");
        self.connector = switch.connector;
        self.gate = Gate::new(&self.connector, self.journal.partitions(), self.stats.clone());
        // Whoever asked may be gone; the file is in use all the same.
        let _ = switch.done.send(Ok(()));
    }

    /// Partitions of the connector that are ours, until stopped, caught up, the first one fails, or everything read is settled
    /// and another file is wished for.
    async fn session(&mut self, mut rewind: bool) -> Result<Option<Switch>, DeliveryError> {
        let started = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(None),
            started = Follower::start(self.journal.clone()) => started?,
        };
        let (mut follower, following) = started;
        tokio::pin!(following);
        let mut pauses = follower.clone();
        let mut roster = self.roster.clone();
        let stop = self.stop.child_token();
        let mut running = Running { stop, settle: CancellationToken::new(), tasks: JoinSet::new(), partitions: BTreeMap::new() };
        // Of [`Mode::UntilCaughtUp`]: what is settled as far as was asked, by us or by others.
        let mut caught_up = BTreeSet::new();
        let mut result = Ok(());
        let mut followed = false;
        let mut switch: Option<Switch> = None;
        let mut resting = Rest::default();
        let late = tokio::time::sleep(Duration::MAX);
        tokio::pin!(late);
        loop {
            let paused = follower.state().pause(&self.connector.name).cloned();
            if running.stop.is_cancelled() || switch.is_some() {
                if paused.is_some() {
                    running.stop_calling();
                }
                if running.tasks.is_empty() {
                    let switch = switch.filter(|_| !self.stop.is_cancelled());
                    return match result {
                        Ok(()) => Ok(switch),
                        Err(error) => {
                            self.wished = switch;
                            Err(error)
                        }
                    };
                }
            } else {
                let (joined, mut wanted) = {
                    let roster = roster.borrow_and_update();
                    (!roster.me.is_empty(), roster.mine.get(&self.connector.name).cloned().unwrap_or_default())
                };
                self.give_up(&running, &wanted);
                if paused.is_some() {
                    self.rest(&running, &mut resting, &wanted, &follower);
                    wanted.clear();
                } else {
                    if resting.end() {
                        tracing::info!(connector = self.connector.name, "it goes on, nobody pauses it any more");
                        self.stats.set_state(ConnectorState::Starting);
                        self.forget_all_but(&wanted);
                    }
                    self.begin(&mut running, &wanted, &caught_up, &follower, rewind);
                }
                if let Some(ends) = self.ends.as_ref().filter(|_| joined || paused.is_some()) {
                    let state = follower.state();
                    caught_up.extend(self.settled_elsewhere(&state, ends, &wanted));
                    if running.tasks.is_empty() && caught_up.len() == ends.len() {
                        return result.map(|()| None);
                    }
                    if let Some(pause) = paused.as_ref().filter(|_| running.tasks.is_empty()) {
                        return result.and(Err(DeliveryError::Paused(Box::new(pause.clone()))));
                    }
                }
            }
            let stopping = running.stop.is_cancelled();
            let ended = tokio::select! {
                biased;
                () = running.stop.cancelled(), if !stopping => None,
                Some(ended) = running.tasks.join_next() => Some(ended),
                ended = &mut following, if !followed => {
                    followed = true;
                    if result.is_ok() {
                        result = ended.map_err(DeliveryError::from);
                    }
                    running.stop.cancel();
                    None
                }
                wished = switch::wished(&mut self.wish), if switch.is_none() && !stopping => {
                    running.settle.cancel();
                    late.as_mut().reset(tokio::time::Instant::now() + SETTLE_WITHIN);
                    switch = Some(wished);
                    None
                }
                () = &mut late, if switch.is_some() => {
                    // The next session goes on with the file there was.
                    if let Some(switch) = switch.take() {
                        let _ = switch.done.send(Err(NotSwitched::NotSettled));
                    }
                    result = Err(DeliveryError::NotSettled);
                    running.stop.cancel();
                    None
                }
                changed = roster.changed(), if !stopping => {
                    if changed.is_err() {
                        return Err(DeliveryError::Ended);
                    }
                    None
                }
                state = follower.changed(), if self.ends.is_some() && !followed && !stopping => {
                    followed |= state.is_none();
                    None
                }
                state = pauses.wait_for(|state| state.pause(&self.connector.name).is_some() != paused.is_some()), if !followed && !stopping => {
                    followed |= state.is_none();
                    None
                }
            };
            let Some(ended) = ended else { continue };
            let (partition, ended) = ended.unwrap_or((u16::MAX, Err(DeliveryError::Bug)));
            let tokens = running.partitions.remove(&partition);
            let asked = tokens.is_some_and(|tokens| tokens.stop.is_cancelled());
            // Of a connector that is paused it stays known how far it is.
            if asked && !stopping && !resting.begun {
                self.stats.forget(partition);
            }
            match ended {
                Ok(Ended::Over) if self.ends.is_some() && !asked => {
                    caught_up.insert(partition);
                }
                Ok(Ended::Over) => {}
                // It begins anew with the next turn; the place where it stood was found.
                Ok(Ended::Again) => rewind = false,
                // Whoever took it over has it; the roster will say when it is ours again.
                Err(DeliveryError::Control(ControlError::Rival { lease, .. })) => {
                    tracing::info!(connector = self.connector.name, partition, lease, "another process took the partition over");
                    self.stats.forget(partition);
                }
                Err(error) => {
                    if result.is_ok() {
                        result = Err(error);
                    }
                    running.stop.cancel();
                }
            }
        }
    }

    /// Ends what is not ours any more.
    fn give_up(&self, running: &Running, wanted: &BTreeSet<u16>) {
        for (partition, tokens) in &running.partitions {
            if !wanted.contains(partition) && !tokens.hurry.is_cancelled() {
                tracing::info!(connector = self.connector.name, partition, "another process is to deliver the partition");
                tokens.hurry.cancel();
            }
        }
    }

    /// Ends everything, since somebody paused the connector, and looks after what waits.
    fn rest(&self, running: &Running, resting: &mut Rest, wanted: &BTreeSet<u16>, follower: &Follower) {
        if !std::mem::replace(&mut resting.begun, true) {
            tracing::info!(connector = self.connector.name, "somebody paused it: calls in the air finish, everything else waits");
        }
        running.stop_calling();
        if !running.partitions.is_empty() {
            return;
        }
        self.stats.set_state(ConnectorState::Paused);
        if resting.of.as_ref() != Some(wanted) {
            self.forget_all_but(wanted);
            let (journal, stats) = (self.journal.clone(), self.stats.clone());
            resting.look_after(wanted, pause::Resting { journal, follower: follower.clone(), partitions: wanted.clone(), stats });
        }
    }

    fn forget_all_but(&self, wanted: &BTreeSet<u16>) {
        for gone in self.stats.partitions().into_keys().filter(|partition| !wanted.contains(partition)) {
            self.stats.forget(gone);
        }
    }

    /// Starts what is ours.
    fn begin(&self, running: &mut Running, wanted: &BTreeSet<u16>, caught_up: &BTreeSet<u16>, follower: &Follower, rewind: bool) {
        self.gate.set_share(wanted.len() as f64 / self.shared.len().max(1) as f64);
        if wanted.is_empty() && running.partitions.is_empty() && !self.roster.borrow().me.is_empty() {
            self.stats.set_state(ConnectorState::Standby);
        }
        for (partition, shared) in (0u16..).zip(&self.shared) {
            if !wanted.contains(&partition) || running.partitions.contains_key(&partition) || caught_up.contains(&partition) {
                continue;
            }
            let hurry = running.stop.child_token();
            let stop = hurry.child_token();
            let context = start::Context {
                journal: self.journal.clone(),
                pipeline: self.pipeline.clone(),
                source: self.source.clone(),
                owner: self.owner.clone(),
                connector: self.connector.clone(),
                partition,
                follower: follower.clone(),
                roster: self.roster.clone(),
                shared: shared.clone(),
                stats: self.stats.clone(),
                gate: self.gate.clone(),
                stop: stop.clone(),
                hurry: hurry.clone(),
                settle: running.settle.clone(),
                rewind,
                until: self.ends.as_ref().map(|ends| ends.get(usize::from(partition)).copied().flatten()),
            };
            running.tasks.spawn(async move { (partition, partition::run(context).await) });
            running.partitions.insert(partition, Tokens { hurry, stop });
        }
    }

    /// Partitions of other processes that are settled as far as was asked for.
    fn settled_elsewhere(&self, state: &control::State, ends: &[Option<Offset>], ours: &BTreeSet<u16>) -> Vec<u16> {
        let is_settled = |partition: u16, end: &Option<Offset>| {
            let checkpoint = state.checkpoint(&self.connector.name, partition);
            !ours.contains(&partition) && end.is_none_or(|end| checkpoint.is_some_and(|c| c.offset > end))
        };
        (0u16..).zip(ends).filter(|(partition, end)| is_settled(*partition, end)).map(|(partition, _)| partition).collect()
    }
}

/// The partitions that a session delivers.
struct Running {
    stop: CancellationToken,
    /// Cancelled when they are to end with everything settled that was read.
    settle: CancellationToken,
    tasks: JoinSet<(u16, Result<Ended, DeliveryError>)>,
    partitions: BTreeMap<u16, Tokens>,
}

impl Running {
    /// Ends every partition without hurry.
    fn stop_calling(&self) {
        for tokens in self.partitions.values() {
            tokens.stop.cancel();
        }
    }
}

/// What ends a partition.
struct Tokens {
    /// Ends `stop` too, and leaves calls in the air only a while.
    hurry: CancellationToken,
    stop: CancellationToken,
}

/// Whether a session rests because somebody paused the connector.
#[derive(Default)]
struct Rest {
    begun: bool,
    /// The partitions that are looked after.
    of: Option<BTreeSet<u16>>,
    watch: JoinSet<()>,
}

impl Rest {
    fn look_after(&mut self, partitions: &BTreeSet<u16>, resting: pause::Resting) {
        self.watch = JoinSet::new();
        self.watch.spawn(resting.watch());
        self.of = Some(partitions.clone());
    }

    /// Ends it; whether it had begun.
    fn end(&mut self) -> bool {
        (self.of, self.watch) = (None, JoinSet::new());
        std::mem::take(&mut self.begun)
    }
}

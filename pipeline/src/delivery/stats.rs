//! What delivery says of itself while it runs: numbers that `status` and the metrics read. Never a row's value.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tillstream_schemas::Position;

use super::filter::Counts;
use crate::control::now_ms;
use crate::journal::Offset;
use crate::telemetry::canary::{Canary, Passage, Passages};
use crate::telemetry::times::Times;

/// Every connector of a process.
#[derive(Debug, Default)]
pub struct Stats {
    connectors: Vec<Arc<ConnectorStats>>,
}

impl Stats {
    /// One entry for each name, in this order.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Arc<Stats> {
        let connectors = names.into_iter().map(|name| Arc::new(ConnectorStats::new(name.into()))).collect();
        Arc::new(Stats { connectors })
    }

    /// All of them.
    #[must_use]
    pub fn connectors(&self) -> &[Arc<ConnectorStats>] {
        &self.connectors
    }

    /// The one of this name.
    #[must_use]
    pub fn connector(&self, name: &str) -> Option<&Arc<ConnectorStats>> {
        self.connectors.iter().find(|c| c.name == name)
    }
}

/// What a connector is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ConnectorState {
    /// Reads its checkpoint, takes its lease, checks its target.
    Starting = 0,
    /// Delivers, or waits for events.
    Running = 1,
    /// The target is away or busy; it is tried again and again.
    Retrying = 2,
    /// Someone has to act; it keeps its checkpoint and tries again slowly.
    Failed = 3,
    /// It has ended: asked to stop, or caught up.
    Stopped = 4,
    /// Other processes deliver all of its partitions.
    Standby = 5,
    /// Somebody paused it, or a table has changed and at least one partition waits until somebody has seen it
    /// ([`ConnectorStats::held`]).
    Paused = 6,
}

impl ConnectorState {
    /// The word in every surface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectorState::Starting => "starting",
            ConnectorState::Running => "running",
            ConnectorState::Retrying => "retrying",
            ConnectorState::Failed => "failed",
            ConnectorState::Stopped => "stopped",
            ConnectorState::Standby => "standby",
            ConnectorState::Paused => "paused",
        }
    }
}

/// What the circuit breaker of a connector's target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Breaker {
    /// Calls go through.
    Closed = 0,
    /// The target is away: nobody calls until the next probe.
    Open = 1,
    /// One call probes whether the target is back.
    HalfOpen = 2,
}

impl Breaker {
    /// The word in every surface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Breaker::Closed => "closed",
            Breaker::Open => "open",
            Breaker::HalfOpen => "half_open",
        }
    }
}

/// The last error of a connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Stable code.
    pub code: String,
    /// For people, without values.
    pub message: String,
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// How the target answered one call: never what was sent to it or what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// How long it took.
    pub took: Duration,
    /// Items of the call.
    pub items: usize,
    /// Bytes of their events.
    pub bytes: usize,
    /// Items that it applied.
    pub applied: usize,
    /// Items that it had already.
    pub absorbed: usize,
    /// Items that will be repeated; all of them when the call failed as a whole.
    pub repeated: usize,
    /// Items that it will never take.
    pub refused: usize,
    /// The code of its first objection, as `http.status_422`.
    pub code: Option<String>,
}

/// Answers of a target that are remembered.
const ANSWERS: usize = 20;

/// How far a connector is in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionProgress {
    /// The next entry to read.
    pub read: Offset,
    /// Everything below it is settled.
    pub settled: Offset,
    /// The live position before `settled`.
    pub position: Position,
    /// Events under way.
    pub in_flight: u64,
    /// When the oldest event under way was committed at the source; `None` when nothing is. While somebody has paused the connector: when the
    /// oldest entry that waits was stored.
    pub oldest_commit_ms: Option<i64>,
    /// While a replay is under way: the place where delivery stood before.
    pub replay_until: Option<Offset>,
    /// What the filter passed and dropped since the start.
    pub filter: Counts,
    /// Nothing more is read until something is settled.
    pub full: bool,
    /// Where the partition's time went since the start.
    pub work: Work,
    /// Somebody has paused the connector.
    pub resting: bool,
    /// Bytes of an entry that waits, about; known while somebody has paused the connector.
    pub entry_bytes: Option<u64>,
}

/// Where the time of one partition's task went, and what came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Waiting for the journal, microseconds.
    pub read_wait_us: u64,
    /// Filtering, parsing and mapping, microseconds.
    pub map_us: u64,
    /// Booking outcomes and storing dead letters, microseconds.
    pub settle_us: u64,
    /// Entries read.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events handed to lanes.
    pub events: u64,
}

/// Lane time spent waiting for leave to call, microseconds, by what kept it.
#[derive(Debug, Default)]
pub struct Waits {
    /// The budget of events a second.
    pub rate: AtomicU64,
    /// A pause that the target asked for.
    pub pause: AtomicU64,
    /// As many calls in the air as there may be.
    pub calls: AtomicU64,
    /// The target counts as away.
    pub breaker: AtomicU64,
}

/// Numbers of one connector since the process began.
#[derive(Debug)]
pub struct ConnectorStats {
    name: String,
    state: AtomicU8,
    /// Events that the target applied.
    pub delivered: AtomicU64,
    /// Events that the target already had: repeats without an effect.
    pub absorbed: AtomicU64,
    /// Events stored as dead letters.
    pub rejected: AtomicU64,
    /// Dead letters that were delivered after all.
    pub redriven: AtomicU64,
    /// Events that the connector's `when` did not want.
    pub filtered: AtomicU64,
    /// Events that a newer state of their row replaced before they were sent (`later: supersede`).
    pub superseded: AtomicU64,
    /// Events that came in one call with a newer event of their row, for targets that keep the newest.
    pub coalesced: AtomicU64,
    /// Times that the target was found to be away.
    pub breaker_opened: AtomicU64,
    /// Calls that may be in the air at once, at present.
    pub calls_allowed: AtomicU64,
    /// The same as the file has it: `in_flight`, or all lanes of all partitions.
    pub calls_max: AtomicU64,
    /// Lanes of one partition.
    pub lanes: AtomicU64,
    /// Most events in one call.
    pub batch_items: AtomicU64,
    /// Thousandths of events that all processes together may send in a second; 0 without a limit.
    pub rate_milli: AtomicU64,
    /// Until when the target wants to be left alone, milliseconds since the Unix epoch; 0 before the first pause.
    pub paused_until_ms: AtomicI64,
    /// Lane time spent waiting for leave to call.
    pub waits: Waits,
    /// Calls that were answered.
    pub call_times: Times,
    /// Calls that failed as a whole.
    pub failed_times: Times,
    /// From an event's commit at the source to its effect; every event of a call counts as its oldest.
    pub end_to_end: Times,
    /// Events in answered calls, and what tells how a call's time grows with them: the sum of their squares and of their
    /// products with the call's microseconds.
    pub call_items: AtomicU64,
    /// See [`Self::call_items`].
    pub call_items_squared: AtomicU64,
    /// See [`Self::call_items`].
    pub call_items_us: AtomicU64,
    /// Time spent waiting for the journal, microseconds, all partitions together.
    pub read_wait_us: AtomicU64,
    /// Time spent filtering, parsing and mapping, microseconds, all partitions together.
    pub map_us: AtomicU64,
    /// Time spent booking outcomes and storing dead letters, microseconds, all partitions together.
    pub settle_us: AtomicU64,
    breaker: AtomicU8,
    /// Attempts at single events that are repeated.
    pub retries: AtomicU64,
    /// Calls that failed as a whole and are repeated.
    pub calls_failed: AtomicU64,
    /// Pauses that the target asked for (429, 503 with Retry-After).
    pub pauses: AtomicU64,
    /// Calls.
    pub calls: AtomicU64,
    /// Time spent in calls, microseconds, all lanes together.
    pub busy_us: AtomicU64,
    /// Body bytes of delivered and absorbed events.
    pub bytes: AtomicU64,
    /// When the newest delivered event was committed at the source, milliseconds since the Unix epoch; 0 before the first.
    pub newest_commit_ms: AtomicI64,
    /// When something was delivered last, milliseconds since the Unix epoch; 0 before the first.
    pub delivered_at_ms: AtomicI64,
    last_error: Mutex<Option<LastError>>,
    /// The last calls, oldest first.
    answers: Mutex<VecDeque<Answer>>,
    /// Why partitions wait.
    held: Mutex<BTreeMap<u16, String>>,
    partitions: Mutex<BTreeMap<u16, PartitionProgress>>,
    lane_busy: Mutex<BTreeMap<u16, LaneTimes>>,
    canaries: Mutex<BTreeMap<u16, Passages>>,
}

/// Time that each lane of a partition spent in calls, microseconds.
pub(super) type LaneTimes = Arc<[AtomicU64]>;

impl ConnectorStats {
    fn new(name: String) -> Self {
        ConnectorStats {
            name,
            state: AtomicU8::new(ConnectorState::Starting as u8),
            delivered: AtomicU64::new(0),
            absorbed: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            redriven: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            coalesced: AtomicU64::new(0),
            breaker_opened: AtomicU64::new(0),
            calls_allowed: AtomicU64::new(0),
            calls_max: AtomicU64::new(0),
            lanes: AtomicU64::new(0),
            batch_items: AtomicU64::new(0),
            rate_milli: AtomicU64::new(0),
            paused_until_ms: AtomicI64::new(0),
            waits: Waits::default(),
            call_times: Times::default(),
            failed_times: Times::default(),
            end_to_end: Times::default(),
            call_items: AtomicU64::new(0),
            call_items_squared: AtomicU64::new(0),
            call_items_us: AtomicU64::new(0),
            read_wait_us: AtomicU64::new(0),
            map_us: AtomicU64::new(0),
            settle_us: AtomicU64::new(0),
            lane_busy: Mutex::default(),
            canaries: Mutex::default(),
            breaker: AtomicU8::new(Breaker::Closed as u8),
            retries: AtomicU64::new(0),
            calls_failed: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            newest_commit_ms: AtomicI64::new(0),
            delivered_at_ms: AtomicI64::new(0),
            last_error: Mutex::new(None),
            answers: Mutex::default(),
            held: Mutex::default(),
            partitions: Mutex::new(BTreeMap::new()),
        }
    }

    /// The connector.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> ConnectorState {
        match self.state.load(Ordering::Relaxed) {
            0 => ConnectorState::Starting,
            1 if self.held().is_some() => ConnectorState::Paused,
            1 => ConnectorState::Running,
            2 => ConnectorState::Retrying,
            3 => ConnectorState::Failed,
            4 => ConnectorState::Stopped,
            6 => ConnectorState::Paused,
            _ => ConnectorState::Standby,
        }
    }

    pub(super) fn set_state(&self, state: ConnectorState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Why a partition waits for somebody to see that a table has changed; `None` when none does.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }

    /// A partition waits, and why; whether that is new.
    pub(super) fn hold(&self, partition: u16, why: &str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, why.to_owned()).as_deref() != Some(why)
    }

    /// A partition goes on; whether it waited.
    pub(super) fn release(&self, partition: u16) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition).is_some()
    }

    /// What the breaker of its target does.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        match self.breaker.load(Ordering::Relaxed) {
            0 => Breaker::Closed,
            1 => Breaker::Open,
            _ => Breaker::HalfOpen,
        }
    }

    pub(super) fn set_breaker(&self, breaker: Breaker) {
        self.breaker.store(breaker as u8, Ordering::Relaxed);
    }

    /// The last error, kept after it is over.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_error(&self, code: &str, message: &str) {
        let error = LastError { code: code.to_owned(), message: message.to_owned(), at_ms: now_ms() };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// How the target answered the last calls, oldest first.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn answered(&self, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() == ANSWERS {
            answers.pop_front();
        }
        answers.push_back(answer);
    }

    /// How far it is, by partition.
    #[must_use]
    pub fn partitions(&self) -> BTreeMap<u16, PartitionProgress> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_progress(&self, partition: u16, progress: PartitionProgress) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, progress);
    }

    /// The partition is not ours any more.
    pub(super) fn forget(&self, partition: u16) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
        self.lane_busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
        self.canaries.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }

    /// What canaries did in each partition of ours in which one came: read, and everything before it settled.
    #[must_use]
    pub fn canaries(&self) -> BTreeMap<u16, Passage> {
        let canaries = self.canaries.lock().unwrap_or_else(PoisonError::into_inner);
        canaries.iter().map(|(partition, passages)| (*partition, passages.get())).collect()
    }

    pub(super) fn canary_came(&self, partition: u16, canary: Canary) {
        self.canaries.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default().came(canary);
    }

    pub(super) fn canary_through(&self, partition: u16, canary: Canary) {
        self.canaries.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default().through(canary);
    }

    /// What each lane of a partition that begins will have spent in calls.
    pub(super) fn lane_times(&self, partition: u16, lanes: usize) -> LaneTimes {
        let times: LaneTimes = (0..lanes).map(|_| AtomicU64::new(0)).collect();
        self.lane_busy.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, times.clone());
        times
    }

    /// Microseconds that each lane spent in calls since its partition began, by partition.
    #[must_use]
    pub fn lane_busy(&self) -> BTreeMap<u16, Vec<u64>> {
        let busy = self.lane_busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.iter().map(|(partition, lanes)| (*partition, lanes.iter().map(|us| us.load(Ordering::Relaxed)).collect())).collect()
    }

    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Adds what has passed since a moment, in microseconds; answers it.
    pub(super) fn time(counter: &AtomicU64, since: tokio::time::Instant) -> u64 {
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        counter.fetch_add(us, Ordering::Relaxed);
        us
    }
}

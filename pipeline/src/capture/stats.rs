//! What capture tells about itself while it runs. Writing is relaxed atomics on the capture task; reading takes no
//! lock that capture could wait for, so status, metrics and the console may look as often as they like.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tillstream_schemas::Lsn;

use super::CaptureError;
use super::source::Decoding;
use crate::control::now_ms;
use crate::telemetry::canary::Passages;
use crate::telemetry::times::Times;

/// What a capture run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not started.
    #[default]
    Idle = 0,
    /// Reads the journal's tails and connects.
    Starting = 1,
    /// Another process holds the slot.
    WaitingForSlot = 2,
    /// Writes its fences and reads them back.
    Fencing = 3,
    /// Bytes are moving, or could.
    Streaming = 4,
    /// Changes wait because the journal takes no more.
    WaitingForJournal = 5,
    /// A session failed; the next one begins after a pause.
    Retrying = 6,
    /// Writes what it has and waits for confirms.
    Stopping = 7,
    /// Ended on request.
    Stopped = 8,
    /// Ended by an error that a person has to mend.
    Failed = 9,
}

impl State {
    const ALL: [State; 10] = [
        State::Idle,
        State::Starting,
        State::WaitingForSlot,
        State::Fencing,
        State::Streaming,
        State::WaitingForJournal,
        State::Retrying,
        State::Stopping,
        State::Stopped,
        State::Failed,
    ];

    /// Stable name for metrics and `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Starting => "starting",
            State::WaitingForSlot => "waiting_for_slot",
            State::Fencing => "fencing",
            State::Streaming => "streaming",
            State::WaitingForJournal => "waiting_for_journal",
            State::Retrying => "retrying",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// The last error a session ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Stable code.
    pub code: &'static str,
    /// The message: no row value, no secret.
    pub message: String,
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// How the WAL that is kept for the slot stands to its ceiling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Far below.
    #[default]
    Calm,
    /// Worth a look.
    Warn,
    /// Worth a person's sleep.
    Page,
    /// Nothing is held back any more.
    Shed,
}

/// Parts of the ceiling, in percent, from which on the kept WAL is worth a warning, a person, and giving up what we hold back.
const WARN_PERCENT: u64 = 25;
const PAGE_PERCENT: u64 = 60;
const SHED_PERCENT: u64 = 90;

impl Pressure {
    /// How so many bytes stand to a ceiling; a slot that the server calls in danger is, whatever the numbers say.
    #[must_use]
    pub fn of(retained: u64, ceiling: u64, wal_status: &str) -> Pressure {
        let percent = |n: u64| retained >= ceiling / 100 * n;
        match wal_status {
            "unreserved" | "lost" => Pressure::Shed,
            _ if percent(SHED_PERCENT) => Pressure::Shed,
            _ if percent(PAGE_PERCENT) => Pressure::Page,
            _ if percent(WARN_PERCENT) => Pressure::Warn,
            _ => Pressure::Calm,
        }
    }

    /// Stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Pressure::Calm => "capture.wal_calm",
            Pressure::Warn => "capture.wal_warn",
            Pressure::Page => "capture.wal_page",
            Pressure::Shed => "capture.wal_shed",
        }
    }

    /// Stable name for `status` and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Pressure::Calm => "calm",
            Pressure::Warn => "warn",
            Pressure::Page => "page",
            Pressure::Shed => "shed",
        }
    }
}

/// The slot as the server showed it last, and what that means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotReport {
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Oldest WAL that the server keeps for it.
    pub restart: Lsn,
    /// What it has confirmed.
    pub confirmed: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// WAL bytes kept.
    pub retained_bytes: u64,
    /// Most bytes that may be kept: the configured budget or the server's own limit.
    pub ceiling_bytes: u64,
    /// How fast the server writes WAL.
    pub wal_bytes_per_second: f64,
    /// Until the ceiling is reached if nothing is released; `None` while nothing is written.
    pub seconds_to_ceiling: Option<u64>,
    /// What follows.
    pub pressure: Pressure,
    /// What else holds the oldest WAL, where it is not us.
    pub pinned_by: Option<String>,
    /// What the server counts of its decoding.
    pub decoding: Option<Decoding>,
}

/// Counters and gauges of capture, from the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    state: AtomicU8,
    since_ms: AtomicI64,
    last_error: RwLock<Option<LastError>>,
    slot: RwLock<Option<SlotReport>>,
    /// Canaries: come by the stream, and confirmed in every partition of the journal.
    pub canary: Passages,
    canary_refused: RwLock<Option<LastError>>,
    /// Number of the current run; 0 before the first.
    pub token: AtomicU32,
    /// Sessions begun.
    pub sessions: AtomicU64,
    /// End of what was received.
    pub received_lsn: AtomicU64,
    /// End of the newest transaction that the journal has confirmed with all earlier ones.
    pub confirmed_lsn: AtomicU64,
    /// What PostgreSQL was told that it may forget.
    pub acknowledged_lsn: AtomicU64,
    /// The server's position as it last said.
    pub server_lsn: AtomicU64,
    /// Commit time of the newest transaction received, milliseconds since the Unix epoch.
    pub committed_at_ms: AtomicI64,
    /// Transactions received.
    pub transactions: AtomicU64,
    /// Change events written (halves of key changes count singly).
    pub events: AtomicU64,
    /// Rows of backfills written.
    pub reads: AtomicU64,
    /// Events that were stored already.
    pub skipped: AtomicU64,
    /// Changes that went to the dead letters because they are above the row limit.
    pub dead_letters: AtomicU64,
    /// Bytes of replication messages received.
    pub received_bytes: AtomicU64,
    /// Bytes of batches handed to the journal.
    pub bytes: AtomicU64,
    /// Batches handed to the journal.
    pub batches: AtomicU64,
    /// Bytes handed to the journal and not confirmed.
    pub unconfirmed_bytes: AtomicU64,
    /// Bytes of transactions that came before they commit and wait for it.
    pub spool_bytes: AtomicU64,
    /// Time spent waiting for bytes from the server.
    pub receive_wait_ns: AtomicU64,
    /// Time spent waiting for bytes although the server has more: it is the server that is at work.
    pub starved_ns: AtomicU64,
    /// Time spent decoding and encoding.
    pub encode_ns: AtomicU64,
    /// The part of it that was decoding, from one message in [`SAMPLED`](super::session::SAMPLED).
    pub decode_ns: AtomicU64,
    /// Time during which something was handed to the journal and not confirmed.
    pub confirm_wait_ns: AtomicU64,
    /// From a batch's handing over to its confirm; one batch at a time is measured.
    pub confirm_times: Times,
    /// From a commit at the source to the confirm of its batch; one at a time is measured.
    pub publish_times: Times,
    /// Events that the largest transaction had so far, since somebody looked.
    pub transaction_events: AtomicU32,
    /// Time spent handing batches to the journal, most of it waiting for room.
    pub publish_wait_ns: AtomicU64,
    /// Whether the server keeps more WAL for us than was read in the last round: bulk reading is on.
    pub behind: AtomicBool,
}

impl Stats {
    /// What capture is doing, and since when (milliseconds since the Unix epoch).
    #[must_use]
    pub fn state(&self) -> (State, i64) {
        let state = State::ALL.get(usize::from(self.state.load(Relaxed))).copied().unwrap_or_default();
        (state, self.since_ms.load(Relaxed))
    }

    /// The error that the last failed session ended with.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.read().ok()?.clone()
    }

    /// The slot as it was seen last, a few seconds ago.
    #[must_use]
    pub fn slot(&self) -> Option<SlotReport> {
        self.slot.read().ok()?.clone()
    }

    pub(super) fn report(&self, report: SlotReport) {
        if let Ok(mut slot) = self.slot.write() {
            *slot = Some(report);
        }
    }

    /// Why no canary is sent although one is configured: the server does not let us.
    #[must_use]
    pub fn canary_refused(&self) -> Option<LastError> {
        self.canary_refused.read().ok()?.clone()
    }

    /// Whether that is news.
    pub(super) fn refuse_canary(&self, why: Option<LastError>) -> bool {
        let Ok(mut refused) = self.canary_refused.write() else { return false };
        let news = refused.as_ref().map(|e| &e.message) != why.as_ref().map(|e| &e.message);
        *refused = why;
        news
    }

    /// How the kept WAL stands to its ceiling.
    pub(super) fn pressure(&self) -> Pressure {
        self.slot.read().ok().and_then(|slot| slot.as_ref().map(|s| s.pressure)).unwrap_or_default()
    }

    pub(super) fn enter(&self, state: State) {
        if self.state.swap(state as u8, Relaxed) != state as u8 {
            self.since_ms.store(now_ms(), Relaxed);
        }
    }

    pub(super) fn failed(&self, error: &CaptureError) {
        if let Ok(mut last) = self.last_error.write() {
            *last = Some(LastError { code: error.code(), message: error.to_string(), at_ms: now_ms() });
        }
    }

    pub(super) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    pub(super) fn lsn(gauge: &AtomicU64, lsn: Lsn) {
        gauge.store(lsn.0, Relaxed);
    }

    pub(super) fn time(counter: &AtomicU64, spent: Duration) {
        counter.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

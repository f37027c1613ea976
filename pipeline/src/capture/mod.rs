//! Capture: reads the replication stream, turns changes into entries, stores them in the journal and acknowledges
//! to PostgreSQL what is stored.
//!
//! ```text
//!  source ──frames──▶ session ──messages──▶ intake ──▶ appender ──batches──▶ session ──▶ journal
//!     ▲                  │                    └─────▶ progress ◀──────confirms───┘          │
//!     └───── status ─────┘                             what may be acknowledged             │
//!                        └──── at start: tail, control_log: what is stored already ◀────────┘
//! ```
//!
//! [`run`] keeps one session after another going until it is told to stop or something needs a person. A session that
//! loses the slot's connection is over: the next one takes a higher token and reads the tails anew, because somebody
//! else may have written in between. Nothing outlives a session but the journal itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tillstream_schemas::Lsn;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::journal::Journal;
use crate::retry::Delays;

pub mod appender;
pub mod canary;
pub mod catalog;
mod control_log;
pub mod encode;
pub mod hook;
mod identity;
pub mod intake;
mod link;
mod opening;
pub mod pgoutput;
pub mod policies;
pub mod progress;
mod promise;
pub mod read_rows;
pub mod relations;
mod session;
pub mod source;
mod spans;
mod spool;
pub mod stats;
pub mod streamed;
pub mod tail;
mod turns;
mod type_names;
mod watch;
pub mod wire;

pub use identity::{Standing, confirmation};
pub use opening::{producer_name, stand};
pub use stats::Stats;

/// A row above this many bytes, as the server sends it, goes to the dead letters instead of the data log. Its pieces
/// have to stand in memory at once, so the limit is also what a row may cost; 64 MiB is far above anything that a
/// partner's API takes.
pub const ROW_BYTES_MAX: usize = 64 << 20;

/// How a run behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the pipeline.
    pub pipeline: String,
    /// What is captured.
    pub source: config::Source,
    /// Primary keys by (schema, table), for tables whose replica identity does not name one.
    pub primary_keys: HashMap<(String, String), Vec<String>>,
    /// The configured tables by the OID that they had at the start: a table that is renamed keeps its configured name.
    pub oids: HashMap<u32, (String, String)>,
    /// Rows above this many bytes go to the dead letters.
    pub row_bytes_max: usize,
    /// Host and process, for people who read the control journal.
    pub owner: String,
    /// Fixes the nonces; for tests. Random when absent.
    pub seed: Option<u64>,
}

impl Settings {
    /// The settings of a configured pipeline. `primary_keys` comes from the catalogue.
    #[must_use]
    pub fn new(pipeline: &config::Pipeline, primary_keys: HashMap<(String, String), Vec<String>>, owner: String) -> Self {
        Settings {
            pipeline: pipeline.name.clone(),
            source: pipeline.source.clone(),
            primary_keys,
            oids: HashMap::new(),
            row_bytes_max: ROW_BYTES_MAX,
            owner,
            seed: None,
        }
    }
}

/// What a run works with.
#[derive(Clone)]
pub struct CaptureParts {
    /// The database.
    pub source: Arc<dyn source::Source>,
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// How to behave.
    pub settings: Settings,
    /// Makes the hook of each session, when there is something to load.
    pub hooks: Option<Arc<dyn hook::Hooks>>,
    /// What the run tells about itself.
    pub stats: Arc<Stats>,
    /// Ends the run gracefully: what was read is stored and acknowledged, within a deadline.
    pub stop: CancellationToken,
}

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Never.
    Follow,
    /// Once everything up to the server's position at the start is stored, and a backfill under way is done.
    UntilCaughtUp,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Whether everything handed to the journal was confirmed; otherwise the next run repeats a little.
    pub complete: bool,
    /// What PostgreSQL was told last.
    pub acknowledged: Lsn,
}

/// First and longest pause between two sessions: a broken connection is back within a second or two, and a second
/// process that waits for the slot takes over within two seconds of its holder's end.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A session that lived this long was a good one: pauses begin anew.
const SETTLED: Duration = Duration::from_secs(30);

/// Captures until told to stop, session after session.
///
/// # Errors
/// Only what a person has to mend; everything else is tried again, and [`Stats`] says what is being waited for.
pub async fn run(parts: CaptureParts, mode: Mode) -> Result<Stopped, CaptureError> {
    let mut random = parts.settings.seed.map_or_else(rand::make_rng::<StdRng>, StdRng::seed_from_u64);
    let mut delays = Delays::steady(RETRY.0, RETRY.1);
    let mut target = None;
    let mut acknowledged = Lsn(0);
    loop {
        let began = Instant::now();
        let ended = Box::pin(session::run(&parts, mode, &mut random, &mut target, &mut acknowledged)).await;
        let error = match ended {
            Ok(stopped) => {
                parts.stats.enter(stats::State::Stopped);
                return Ok(stopped);
            }
            Err(error) => error,
        };
        parts.stats.failed(&error);
        if !error.is_transient() {
            parts.stats.enter(stats::State::Failed);
            tracing::error!(code = error.code(), error = %error, "capture stopped");
            return Err(error);
        }
        if began.elapsed() > SETTLED {
            delays.reset();
        }
        let pause = delays.next_delay();
        let waits = matches!(error, CaptureError::SlotActive { .. });
        parts.stats.enter(if waits { stats::State::WaitingForSlot } else { stats::State::Retrying });
        tracing::warn!(code = error.code(), error = %error, pause_ms = pause.as_millis(), "capture session ended; the next one follows");
        tokio::select! {
            biased;
            () = parts.stop.cancelled() => {
                parts.stats.enter(stats::State::Stopped);
                return Ok(Stopped { complete: false, acknowledged });
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What stops a capture session.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The connection failed or was lost: begin a new session.
    #[error("source unavailable: {0}")]
    Unavailable(String),
    /// The server lets nobody in at the moment: it starts or shuts down.
    #[error("source unavailable: {0}")]
    NotAccepting(String),
    /// Another process holds the slot.
    #[error("slot \"{slot}\" is active for PID {pid}{}", holder.as_ref().map_or_else(String::new, |h| format!(": {h}")))]
    SlotActive {
        /// The slot.
        slot: String,
        /// The server process that serves its holder.
        pid: i32,
        /// Who that is, where it is known.
        holder: Option<String>,
    },
    /// An operator began a new epoch: the next session works in it.
    #[error("epoch {epoch} was begun; this session worked in an earlier one")]
    EpochBegan {
        /// The new epoch.
        epoch: u32,
    },
    /// A later capture run took over: this one ends.
    #[error("fenced by a later run (token {token})")]
    Fenced {
        /// The rival's token.
        token: u32,
    },
    /// A file of transactions that are not committed yet failed.
    #[error("spool unavailable: {0}")]
    Spool(String),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// Something that a person has to mend: `code` says what, `fix` how.
    #[error("{code}: {what}")]
    Definite {
        /// Stable dotted code, as `capture.slot_lost`.
        code: &'static str,
        /// What was found, where.
        what: String,
        /// Why that matters.
        why: String,
        /// The command or statement that mends it.
        fix: String,
    },
}

impl CaptureError {
    /// Whether a new session can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            CaptureError::Unavailable(_)
            | CaptureError::NotAccepting(_)
            | CaptureError::SlotActive { .. }
            | CaptureError::Spool(_)
            | CaptureError::EpochBegan { .. }
            | CaptureError::Fenced { .. } => true,
            CaptureError::Journal(e) => e.is_transient(),
            CaptureError::Definite { .. } => false,
        }
    }

    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            CaptureError::Unavailable(_) | CaptureError::NotAccepting(_) => "capture.source_unavailable",
            CaptureError::EpochBegan { .. } => "capture.epoch_began",
            CaptureError::SlotActive { .. } => "capture.slot_active",
            CaptureError::Fenced { .. } => "capture.fenced",
            CaptureError::Spool(_) => "capture.spool_failed",
            CaptureError::Journal(e) => e.code(),
            CaptureError::Definite { code, .. } => code,
        }
    }
}

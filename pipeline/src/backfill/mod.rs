//! Backfills: read rows that are older than the stream, in chunks, and put them into the stream where they belong.
//!
//! ```text
//!             ┌── hook ◀── begin, change, commit, watermark ── engine (owns token and writer)
//!  readers ─steps─▶ │                                              ▲
//!   │  ▲      └──────┴── rows, then the cursor ────────────────────┘
//!   │  └── gate ◀── brakes: load, calendar, lag, what targets take
//!   └── COPY (SELECT … WHERE key > cursor LIMIT n), between two watermarks ──▶ PostgreSQL
//! ```
//!
//! The slot exists first, so every change after it comes through the stream; a chunk's rows join the stream behind its
//! high watermark, without those whose key changed since the chunk was read ([`window`](self)). A read row's version is
//! the position of the watermark's commit: it outranks every event before it, which it includes, and any later event
//! outranks it. The initial load is one job among others; it begins by itself.
//!
//! Never writes to the journal itself, never decides what is acknowledged, and never sees an event that is already
//! in the journal as new. What it must know after a crash stands in the control journal: jobs and cursors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::capture::hook::{Hook, Hooks};
use crate::config::{self, Protect};
use crate::control::{BackfillJob, BackfillOptions, BackfillSpec, BackfillState, Cursor, State};

mod brakes;
pub mod diff;
mod gate;
mod hook;
mod job;
mod pace;
mod patience;
mod plan;
mod read;
mod reader;
mod request;
mod runner;
pub mod sample;
pub mod spec;
mod sql;
mod stats;
#[cfg(test)]
mod tests;
mod window;

pub use brakes::{Ask, ConnectorPressure, Pressure};
pub use request::{IfRunning, Request, Started};
pub use spec::Refused;
pub use stats::{Progress, Stats, TableProgress, TableState};

use gate::Wanted;
use spec::refuse;

/// Name of the job that reads what is older than the slot; part of its rows' event ids.
pub const INITIAL_LOAD: &str = "load";

/// What people call it.
pub const INITIAL_LOAD_ID: &str = "initial-load";

/// Readers of one job at once. More would only compete for the source's processors.
const READERS_DEFAULT: usize = 3;

/// Readers of all jobs together: each holds a connection to the source and a chunk in memory.
const READERS_MAX: usize = 6;

/// What a process reads of its source beside the stream.
#[derive(Debug)]
pub struct Settings {
    /// The source.
    pub source: config::Source,
    /// Name of the pipeline.
    pub pipeline: String,
    /// What to spare.
    pub protect: Protect,
    /// By `schema.table` an indexed column that every change moves forward.
    pub changed_at: BTreeMap<String, String>,
    /// Connectors that take rows of backfills, with their tables as `schema.table`.
    pub connectors: Vec<(String, Vec<String>)>,
    /// The run ends once everything is read and delivered: its initial load gives up what only a person can mend.
    pub until_caught_up: bool,
}

/// The backfills of one source: makes the hook of each capture session, starts and stops jobs, tells how they are.
pub struct Backfill {
    settings: Settings,
    ask: Option<Ask>,
    load: Arc<Stats>,
    jobs: Mutex<Jobs>,
    /// Rises with each change of a job's state.
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Backfill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backfill").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A job as this process knows it.
#[derive(Debug)]
struct Handle {
    record: BackfillJob,
    stats: Arc<Stats>,
    wanted: watch::Sender<Wanted>,
    /// Whether its readers (or what ends them) are under way in this session.
    active: bool,
    /// How far its parts are, as of its last run's end or the session's begin.
    reached: Vec<Cursor>,
}

#[derive(Debug, Default)]
struct Jobs {
    by_id: BTreeMap<String, Handle>,
    /// Commands to the present session; `None` while there is none.
    session: Option<mpsc::Sender<runner::Command>>,
}

/// A job, as shown to people and machines.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// What people call it.
    pub id: String,
    /// Where it stands.
    pub state: BackfillState,
    /// Code of what paused or ended it.
    pub code: Option<String>,
    /// What that means.
    pub why: Option<String>,
    /// Who asked last.
    pub by: String,
    /// What it reads.
    pub spec: BackfillSpec,
    /// How many keys it was given.
    pub keys: usize,
    /// Rows stored, earlier runs included.
    pub rows: u64,
    /// How much is done, 0 to 1, by the server's estimates; `None` while nobody knows.
    pub ratio: Option<f64>,
    /// When it first began, milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// When it was done.
    pub finished_at_ms: Option<i64>,
    /// This process's part.
    pub progress: Progress,
}

impl Backfill {
    /// The backfills of a source. `ask` tells how the rest of the process is doing.
    #[must_use]
    pub fn new(settings: Settings, ask: Option<Ask>) -> Arc<Self> {
        Arc::new(Backfill { settings, ask, load: Arc::default(), jobs: Mutex::default(), changed: watch::Sender::new(0) })
    }

    /// How far the initial load is.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        self.load.clone()
    }

    /// Code and message of what the initial load gave up with; only that of a run until caught up does.
    #[must_use]
    pub fn gave_up(&self) -> Option<(String, String)> {
        let jobs = self.jobs();
        let record = jobs.by_id.get(INITIAL_LOAD_ID).map(|handle| &handle.record).filter(|r| r.state == BackfillState::Failed)?;
        Some((record.code.clone()?, record.why.clone()?))
    }

    /// Rises with each change of a job's state.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether a session is there that takes commands.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.jobs().session.as_ref().is_some_and(|s| !s.is_closed())
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Every job, the initial load first.
    #[must_use]
    pub fn list(&self) -> Vec<View> {
        let mut views: Vec<View> = self.jobs().by_id.values().map(view).collect();
        views.sort_by_key(|v| (v.id != INITIAL_LOAD_ID, std::cmp::Reverse(v.started_at_ms)));
        views
    }

    /// One job.
    #[must_use]
    pub fn show(&self, id: &str) -> Option<View> {
        self.jobs().by_id.get(id).map(view)
    }

    /// Asks a job to pause, to go on or to end for good; answers once that is stored.
    ///
    /// # Errors
    /// There is no such job, no capture session, or the job is over already.
    pub async fn ask(&self, id: &str, what: Change, by: &str, why: &str) -> Result<View, Refused> {
        let (reply, answer) = oneshot::channel();
        let session = {
            let jobs = self.jobs();
            let Some(handle) = jobs.by_id.get(id) else { return refuse("backfill.unknown", format!("there is no backfill {id}")) };
            let state = handle.record.state;
            match (what, state) {
                (Change::Cancel, _) if id == INITIAL_LOAD_ID => {
                    return refuse("backfill.bad_request", "the initial load is not cancelled by command; set source.initial_load: false");
                }
                (Change::Pause, BackfillState::Paused)
                | (Change::Resume, BackfillState::Running)
                | (Change::Cancel, BackfillState::Cancelled) => {
                    return Ok(view(handle));
                }
                (Change::Pause | Change::Cancel, BackfillState::Done)
                | (Change::Resume, BackfillState::Done | BackfillState::Cancelled) => {
                    return refuse("backfill.over", format!("backfill {id} is {}", state.as_str()));
                }
                _ => jobs.session.clone(),
            }
        };
        let Some(session) = session else { return no_session() };
        let command = runner::Command::Change { id: id.to_owned(), what, by: by.to_owned(), why: why.to_owned(), reply };
        if session.send(command).await.is_err() {
            return no_session();
        }
        match answer.await {
            Ok(()) => self.show(id).map_or_else(|| refuse("backfill.unknown", format!("there is no backfill {id}")), Ok),
            Err(_) => no_session(),
        }
    }
}

/// What a job can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stop after the chunk under way; keep the progress.
    Pause,
    /// Go on.
    Resume,
    /// Stop for good.
    Cancel,
}

fn no_session<T>() -> Result<T, Refused> {
    refuse("backfill.no_session", "capture does not stream at the moment, so nothing can be stored; `tillstream status` tells why")
}

fn view(handle: &Handle) -> View {
    let record = &handle.record;
    let progress = handle.stats.progress();
    let spec = BackfillSpec { keys: Vec::new(), ..record.spec.clone() };
    let known: u64 = progress.tables.iter().map(|t| t.rows).sum();
    View {
        id: record.id.clone(),
        state: record.state,
        code: record.code.clone(),
        why: record.why.clone(),
        by: record.by.clone(),
        spec,
        keys: record.spec.keys.len(),
        rows: record.rows.max(known),
        ratio: if record.state == BackfillState::Done { Some(1.0) } else { progress.ratio() },
        started_at_ms: record.started_at_ms,
        finished_at_ms: record.finished_at_ms,
        progress,
    }
}

/// The initial load as a job.
fn load_record(source: &config::Source, epoch: u32, state: BackfillState) -> BackfillJob {
    let now = crate::control::now_ms();
    let tables = source.tables.iter().map(|t| format!("{}.{}", t.schema, t.table)).collect();
    BackfillJob {
        id: INITIAL_LOAD_ID.to_owned(),
        job: INITIAL_LOAD.to_owned(),
        epoch,
        run: 0,
        spec: BackfillSpec { tables, ..BackfillSpec::default() },
        options: BackfillOptions::default(),
        state,
        code: None,
        why: None,
        by: "configuration".to_owned(),
        source_time: None,
        since: None,
        rows: 0,
        started_at_ms: now,
        finished_at_ms: None,
        at_ms: now,
    }
}

/// The hooks of a process's sessions.
#[derive(Debug)]
pub struct SessionHooks(pub Arc<Backfill>);

impl Hooks for SessionHooks {
    fn session(&self, state: &State, epoch: u32) -> Option<Box<dyn Hook>> {
        Some(runner::session(&self.0, state, epoch))
    }
}

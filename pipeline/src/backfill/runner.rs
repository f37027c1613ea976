//! One capture session's backfills: takes up what earlier sessions left, starts and stops jobs, stores their states.
//!
//! Its task ends with the hook, and all jobs with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::brakes::Brakes;
use super::gate::{Gate, Wanted};
use super::hook::{ReadHook, STEPS_MAX, Step};
use super::job::{Job, Outcome};
use super::reader::Shared;
use super::sql::Choice;
use super::{Backfill, Change, Handle, INITIAL_LOAD, INITIAL_LOAD_ID, READERS_DEFAULT, READERS_MAX, load_record, spec};
use crate::capture::hook::Hook;
use crate::control::{BackfillJob, BackfillState, Cursor, Record, State, now_ms};

/// Commands that wait, at most; whoever sends one waits for its answer.
const COMMANDS_MAX: usize = 16;

/// Jobs that read at once; the others wait for their turn.
const ACTIVE_MAX: usize = READERS_MAX / 2;

/// What a session is asked from outside.
#[derive(Debug)]
pub(super) enum Command {
    /// Start (or go on with) a job whose record was checked.
    Start {
        /// Its record; the session counts its run and stores it.
        record: Box<BackfillJob>,
        /// Told once the record is stored.
        reply: oneshot::Sender<()>,
    },
    /// Change a job's state.
    Change {
        /// The job.
        id: String,
        /// What is wanted.
        what: Change,
        /// Who asks.
        by: String,
        /// Why.
        why: String,
        /// Told once the new state is stored.
        reply: oneshot::Sender<()>,
    },
}

/// Makes the hook of a session and starts its runner.
pub(super) fn session(backfill: &Arc<Backfill>, state: &State, epoch: u32) -> Box<dyn Hook> {
    let (steps, receiver) = mpsc::channel(STEPS_MAX);
    let (commands, orders) = mpsc::channel(COMMANDS_MAX);
    let source = &backfill.settings.source;
    let cursors = |job: &str| state.cursors_of(job).filter(|c| c.epoch == epoch).cloned().collect::<Vec<Cursor>>();
    let mut left = Vec::new();
    let mut jobs = backfill.jobs();
    jobs.by_id.clear();
    jobs.session = Some(commands);

    let announced = state.load(INITIAL_LOAD).is_some_and(|l| l.epoch == epoch);
    let load_cursors = cursors(INITIAL_LOAD);
    let tables = || source.tables.iter().map(|t| format!("{}.{}", t.schema, t.table));
    let is_read = |table: &String| {
        let mut mine = load_cursors.iter().filter(|c| c.table == *table).peekable();
        mine.peek().is_some() && mine.all(|c| c.done)
    };
    backfill.load.begin(tables(), &load_cursors);
    let loaded = !source.initial_load || (announced && tables().all(|t| is_read(&t)));
    if loaded {
        backfill.load.finish();
    }
    let kept = state.backfill(INITIAL_LOAD_ID).filter(|j| j.epoch == epoch && j.state == BackfillState::Paused).cloned();
    let record = kept.unwrap_or_else(|| load_record(source, epoch, if loaded { BackfillState::Done } else { BackfillState::Running }));
    let load_runs = record.state == BackfillState::Running;
    if load_runs {
        left.push(INITIAL_LOAD_ID.to_owned());
    }
    jobs.by_id.insert(INITIAL_LOAD_ID.to_owned(), Handle::new(record, backfill.load.clone(), load_cursors));

    for record in state.backfills().filter(|j| j.id != INITIAL_LOAD_ID) {
        let stats = Arc::<super::Stats>::default();
        let mine = cursors(&record.job);
        stats.begin(record.spec.tables.iter().cloned(), &mine);
        if record.state == BackfillState::Done {
            stats.finish();
        }
        let mut record = record.clone();
        if record.epoch != epoch && record.state == BackfillState::Running {
            // Its positions count for nothing in this history, so neither does its progress.
            record.epoch = epoch;
        }
        if record.state == BackfillState::Running {
            left.push(record.id.clone());
        }
        jobs.by_id.insert(record.id.clone(), Handle::new(record, stats, mine));
    }
    drop(jobs);
    let live = Arc::<AtomicBool>::default();
    let runner = Runner {
        backfill: backfill.clone(),
        epoch,
        steps,
        windows: Arc::default(),
        live: live.clone(),
        announced,
        active: JoinSet::new(),
        waiting: left,
        replies: BTreeMap::new(),
        brakes: None,
    };
    let busy = !runner.waiting.is_empty();
    Box::new(ReadHook::new(receiver, epoch, busy, live).owning(tokio::spawn(runner.run(orders))))
}

impl Handle {
    fn new(record: BackfillJob, stats: Arc<super::Stats>, reached: Vec<Cursor>) -> Handle {
        Handle { record, stats, wanted: watch::Sender::new(Wanted::Run), active: false, reached }
    }
}

struct Runner {
    backfill: Arc<Backfill>,
    epoch: u32,
    steps: mpsc::Sender<Step>,
    windows: Arc<AtomicU64>,
    live: Arc<AtomicBool>,
    announced: bool,
    active: JoinSet<(String, Outcome, Vec<Cursor>)>,
    /// Jobs that wait for their turn.
    waiting: Vec<String>,
    /// Who waits for a job to stop.
    replies: BTreeMap<String, Vec<oneshot::Sender<()>>>,
    brakes: Option<(Arc<Brakes>, JoinHandle<()>)>,
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some((_, looking)) = &self.brakes {
            looking.abort();
        }
    }
}

impl Runner {
    async fn run(mut self, mut orders: mpsc::Receiver<Command>) {
        loop {
            if self.admit().await.is_none() {
                return;
            }
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => if self.command(order).await.is_none() { return },
                    None => return,
                },
                Some(ended) = self.active.join_next(), if !self.active.is_empty() => {
                    let Ok((id, outcome, reached)) = ended else { return };
                    if self.ended(id, outcome, reached).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Lets jobs begin while there is room; rests when none is left. `None` once the session is over.
    async fn admit(&mut self) -> Option<()> {
        while self.active.len() < ACTIVE_MAX && !self.waiting.is_empty() {
            let id = self.waiting.remove(0);
            self.begin(id).await?;
        }
        if self.active.is_empty() && self.waiting.is_empty() && self.brakes.is_some() {
            if let Some((_, looking)) = self.brakes.take() {
                looking.abort();
            }
            self.steps.send(Step::Rest).await.ok()?;
        }
        Some(())
    }

    fn brakes(&mut self) -> Arc<Brakes> {
        let settings = &self.backfill.settings;
        let (brakes, _) = self.brakes.get_or_insert_with(|| {
            let brakes = Brakes::new(settings.protect.clone(), self.backfill.ask.clone());
            let looking = tokio::spawn(brakes.clone().watch(settings.source.clone(), settings.pipeline.clone()));
            (brakes, looking)
        });
        brakes.clone()
    }

    async fn begin(&mut self, id: String) -> Option<()> {
        let is_load = id == INITIAL_LOAD_ID;
        let brakes = self.brakes();
        self.steps.send(Step::Begin).await.ok()?;
        let (record, stats, wanted, reached) = {
            let mut jobs = self.backfill.jobs();
            let handle = jobs.by_id.get_mut(&id)?;
            if handle.record.state != BackfillState::Running {
                return Some(());
            }
            handle.active = true;
            if !is_load {
                handle.record.run += 1;
                handle.record.at_ms = now_ms();
            }
            handle.wanted.send_replace(Wanted::Run);
            (handle.record.clone(), handle.stats.clone(), handle.wanted.subscribe(), handle.reached.clone())
        };
        if !is_load {
            self.store(record.clone()).await?;
        }
        let settings = &self.backfill.settings;
        let tables = settings.source.tables.iter().filter(|t| record.spec.tables.contains(&format!("{}.{}", t.schema, t.table)));
        let tables: Vec<_> = tables.cloned().collect();
        let changed_at = record.spec.tables.first().and_then(|t| settings.changed_at.get(t)).map(String::as_str);
        let options = &record.options;
        let window = spec::window(options).ok().flatten();
        let mut gate = Gate::new(wanted, stats.clone()).bounded(options.max_rate, options.deadline_ms, window);
        if !options.no_brakes {
            gate = gate.braked(brakes, !is_load);
        }
        let shared = Shared {
            source: settings.source.clone(),
            pipeline: settings.pipeline.clone(),
            steps: self.steps.clone(),
            stats,
            gate,
            windows: self.windows.clone(),
            live: self.live.clone(),
            choice: Choice {
                columns: record.spec.columns.clone(),
                conditions: spec::conditions(&record.spec, record.since.as_deref(), changed_at),
            },
            connector: record.spec.connector.clone(),
            keys: record.spec.keys.clone(),
            reached: Mutex::new(reached),
        };
        let job = Job {
            shared: Arc::new(shared),
            name: record.job.clone(),
            epoch: self.epoch,
            tables,
            attempt: (!is_load).then_some(record.run),
            is_load,
            ends: settings.until_caught_up,
            announced: self.announced,
            readers: READERS_DEFAULT,
        };
        self.active.spawn(async move {
            let shared = job.shared.clone();
            let outcome = job.run().await;
            let reached = std::mem::take(&mut *shared.reached.lock().unwrap_or_else(PoisonError::into_inner));
            (id, outcome, reached)
        });
        self.backfill.note_change();
        Some(())
    }

    /// Stores a record and waits until it is stored; `None` once the session is over.
    async fn store(&self, record: BackfillJob) -> Option<()> {
        let (stored, is_stored) = oneshot::channel();
        self.steps.send(Step::Record { record: Box::new(Record::Backfill(Box::new(record))), stored }).await.ok()?;
        is_stored.await.ok()
    }

    /// Notes and stores a job's new state.
    async fn enter(&mut self, id: &str, state: BackfillState, code: Option<&str>, why: Option<String>, by: Option<&str>) -> Option<()> {
        let record = {
            let mut jobs = self.backfill.jobs();
            let handle = jobs.by_id.get_mut(id)?;
            let progress = handle.stats.progress();
            let record = &mut handle.record;
            (record.state, record.code, record.why) = (state, code.map(str::to_owned), why);
            record.rows = record.rows.max(progress.tables.iter().map(|t| t.rows).sum());
            record.at_ms = now_ms();
            if state == BackfillState::Done {
                record.finished_at_ms = Some(record.at_ms);
            }
            if let Some(by) = by {
                record.by = by.to_owned();
            }
            record.clone()
        };
        tracing::info!(backfill = id, state = state.as_str(), code, rows = record.rows, "backfill");
        // The initial load has a record of its own; only its pauses need this one. What it gave up is tried again by the next run.
        if id != INITIAL_LOAD_ID || !matches!(state, BackfillState::Done | BackfillState::Failed) {
            self.store(record).await?;
        }
        self.backfill.note_change();
        Some(())
    }

    async fn ended(&mut self, id: String, outcome: Outcome, reached: Vec<Cursor>) -> Option<()> {
        if let Some(handle) = self.backfill.jobs().by_id.get_mut(&id) {
            (handle.active, handle.reached) = (false, reached);
        }
        match outcome {
            Outcome::SessionEnded => return None,
            Outcome::Done => {
                if id == INITIAL_LOAD_ID {
                    self.announced = true;
                }
                self.enter(&id, BackfillState::Done, None, None, None).await?;
            }
            Outcome::Failed { code, message } => {
                tracing::warn!(backfill = id, code, message, "backfill failed");
                self.enter(&id, BackfillState::Failed, Some(&code), Some(message), None).await?;
            }
            Outcome::Halted(Wanted::Cancel) => self.enter(&id, BackfillState::Cancelled, None, None, None).await?,
            Outcome::Halted(Wanted::Pause { code, why }) => {
                self.enter(&id, BackfillState::Paused, Some(code), Some(why), None).await?;
            }
            // It was asked to go on while it stopped.
            Outcome::Halted(Wanted::Run) => self.waiting.push(id.clone()),
        }
        for reply in self.replies.remove(&id).unwrap_or_default() {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
        Some(())
    }

    async fn command(&mut self, command: Command) -> Option<()> {
        match command {
            Command::Start { record, reply } => {
                let id = record.id.clone();
                let mut record = *record;
                record.epoch = self.epoch;
                self.take_up(record).await?;
                self.waiting.push(id);
                let _ = reply.send(());
            }
            Command::Change { id, what, by, why, reply } => {
                let (active, state) = {
                    let mut jobs = self.backfill.jobs();
                    let Some(handle) = jobs.by_id.get_mut(&id) else { return Some(()) };
                    let wanted = match what {
                        Change::Pause => Wanted::Pause { code: "backfill.paused", why: why.clone() },
                        Change::Cancel => Wanted::Cancel,
                        Change::Resume => Wanted::Run,
                    };
                    handle.wanted.send_replace(wanted);
                    if what == Change::Resume {
                        // A deadline of the run before says nothing about this one.
                        handle.record.options.deadline_ms = None;
                    }
                    by.clone_into(&mut handle.record.by);
                    (handle.active, handle.record.state)
                };
                match what {
                    Change::Pause | Change::Cancel if active => {
                        self.replies.entry(id).or_default().push(reply);
                        return Some(());
                    }
                    Change::Pause => {
                        self.waiting.retain(|w| *w != id);
                        self.enter(&id, BackfillState::Paused, Some("backfill.paused"), Some(why), Some(&by)).await?;
                    }
                    Change::Cancel => {
                        self.waiting.retain(|w| *w != id);
                        self.enter(&id, BackfillState::Cancelled, None, Some(why), Some(&by)).await?;
                    }
                    Change::Resume if state != BackfillState::Running => {
                        let record = self.backfill.jobs().by_id.get(&id).map(|h| h.record.clone())?;
                        self.take_up(record).await?;
                        self.waiting.push(id);
                    }
                    Change::Resume => {}
                }
                let _ = reply.send(());
            }
        }
        Some(())
    }

    /// Makes a job running, with what its earlier runs reached.
    async fn take_up(&mut self, mut record: BackfillJob) -> Option<()> {
        let id = record.id.clone();
        (record.state, record.code, record.why, record.finished_at_ms) = (BackfillState::Running, None, None, None);
        record.at_ms = now_ms();
        {
            let mut jobs = self.backfill.jobs();
            let reached = jobs.by_id.get(&id).filter(|h| h.record.state != BackfillState::Cancelled).map(|h| h.reached.clone());
            let cursors = reached.unwrap_or_default();
            let stats = if id == INITIAL_LOAD_ID { self.backfill.load.clone() } else { Arc::default() };
            stats.begin(record.spec.tables.iter().cloned(), &cursors);
            jobs.by_id.insert(id, Handle::new(record.clone(), stats, cursors));
        }
        self.store(record).await?;
        self.backfill.note_change();
        Some(())
    }
}

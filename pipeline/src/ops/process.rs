//! One process of a pipeline: opens the journal, starts capture and delivery, watches them, and ends them in order.
//!
//! ```text
//!  admin ◀── observer ◀── stats of capture, delivery
//!  journal.set_up ─▶ catalogue check ─▶ capture ─┐
//!                └─▶ delivery ───────────────────┴─▶ the first definite error, a drained job, or a signal ends both
//! ```
//!
//! What is merely away is waited for, and the status says so. What a person has to mend ends the process with its code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tillstream_connectors::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::apply::{self, Applier};
use super::failure::{Class, Failure};
use super::observer::{ConnectorInfo, Observed, Observer};
use super::{admin, coverage, doctor, failure};
use crate::backfill::{self, Backfill, SessionHooks};
use crate::capture::catalog::StartFacts;
use crate::capture::{self, CaptureError, CaptureParts, catalog, policies, wire::PgSource};
use crate::config::{FileText, Pipeline};
use crate::control::Follower;
use crate::delivery::{self, Listeners, Switches};
use crate::journal::{self, Journal};
use crate::retry::Delays;

/// Which loop runs when not both do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    /// From the database into the journal.
    Capture,
    /// From the journal to the targets.
    Delivery,
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// One loop instead of both.
    pub only: Option<Only>,
    /// End when everything that was there at the start is captured and delivered.
    pub until_caught_up: bool,
    /// Address of the admin endpoint.
    pub listen: SocketAddr,
}

/// What the process was configured from.
#[derive(Clone)]
pub struct Files {
    /// The pipeline file.
    pub path: PathBuf,
    /// What the connectors' files said, in the order of the connectors.
    pub texts: Vec<FileText>,
    /// The kinds of sink of this program.
    pub registry: Arc<Registry>,
}

/// How a run ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// It was asked to stop before it was done by itself.
    pub stopped: bool,
    /// Events that became dead letters in this run.
    pub dead_letters: u64,
}

/// After a request to stop, loops get this long; with a second to spare before the ten that supervisors grant.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// A job waits this long for a server at its start; a service waits for ever.
const JOB_PATIENCE: Duration = Duration::from_secs(60);

/// Runs until done, told to stop, or something needs a person.
///
/// # Errors
/// The definite error that ended it, and [`Class::Temporary`] when the loops did not end in time.
pub async fn run(pipeline: Pipeline, options: Options, files: Files, stop: CancellationToken) -> Result<Ended, Failure> {
    let endpoint = admin::bind(&pipeline.admin, options.listen).await?;
    let listen = endpoint.address().unwrap_or(options.listen);
    tracing::info!(pipeline = pipeline.name, admin = %listen, version = env!("CARGO_PKG_VERSION"), "started");
    let process = Process::new(pipeline, options, &files, stop)?;
    let served = tokio::spawn(admin::serve(endpoint, Arc::clone(&process.observer), files, process.applier.clone()));
    let watched = tokio::spawn(Arc::clone(&process.observer).watch());
    let result = process.run().await;
    served.abort();
    watched.abort();
    if result.is_ok() {
        tracing::info!("ended");
    }
    result
}

struct Process {
    pipeline: Pipeline,
    options: Options,
    journal: Arc<dyn Journal>,
    observer: Arc<Observer>,
    capture_stats: Arc<capture::Stats>,
    delivery_stats: Arc<delivery::Stats>,
    backfill: Arc<Backfill>,
    /// Gives connectors other files; only where this process delivers until it is stopped.
    applier: Option<Arc<Applier>>,
    /// What the connectors listen to for them.
    listeners: Listeners,
    /// Asked to stop, by a signal.
    stop: CancellationToken,
}

type Loop<T> = JoinHandle<Result<T, Failure>>;

impl Process {
    fn new(pipeline: Pipeline, options: Options, files: &Files, stop: CancellationToken) -> Result<Process, Failure> {
        let journal = journal::open(&pipeline.journal, &format!("tillstream {}", pipeline.name))?;
        let (captures, delivers) = (options.only != Some(Only::Delivery), options.only != Some(Only::Capture));
        let capture_stats = Arc::new(capture::Stats::default());
        let names: Vec<&str> = if delivers { pipeline.connectors.iter().map(|c| c.name.as_str()).collect() } else { Vec::new() };
        let delivery_stats = delivery::Stats::new(names);
        let ask = pressure(&capture_stats, delivers.then_some(&delivery_stats), &pipeline);
        let backfill = Backfill::new(backfill_settings(&pipeline, options.until_caught_up), Some(ask));
        let info = |c: &crate::config::Connector| ConnectorInfo { name: c.name.clone(), kind: c.kind };
        let observed = Observed {
            pipeline: pipeline.name.clone(),
            source: pipeline.source.name.clone(),
            journal_kind: std::sync::Mutex::default(),
            journal: Arc::clone(&journal),
            retention: pipeline.journal.retention(),
            capture: captures.then(|| Arc::clone(&capture_stats)),
            coverage: captures.then(Arc::default),
            doctor: captures.then(Arc::default),
            backfill: captures.then(|| Arc::clone(&backfill)),
            delivery: delivers.then(|| Arc::clone(&delivery_stats)),
            connectors: pipeline.connectors.iter().map(info).collect(),
            // A job ends with what was there: it has no canary.
            canary: pipeline.canary.filter(|_| !options.until_caught_up),
            peak: pipeline.protect.peak.clone(),
            control: OnceLock::new(),
        };
        let observer = Observer::new(observed);
        let (switches, listeners) = Switches::new(pipeline.connectors.iter().map(|c| c.name.as_str()));
        let parts = apply::Parts {
            path: files.path.clone(),
            registry: Arc::clone(&files.registry),
            pipeline: &pipeline,
            texts: files.texts.clone(),
            journal: Arc::clone(&journal),
            stats: Arc::clone(&delivery_stats),
            switches,
            observer: Arc::clone(&observer),
        };
        let applier = (delivers && !options.until_caught_up).then(|| Arc::new(Applier::new(parts)));
        Ok(Process { pipeline, options, journal, observer, capture_stats, delivery_stats, backfill, applier, listeners, stop })
    }

    async fn run(mut self) -> Result<Ended, Failure> {
        let journal = Arc::clone(&self.journal);
        if self
            .patiently("journal", "set up the journal", || async { Ok::<_, failure::Retryable>(journal.set_up().await?) })
            .await?
            .is_none()
        {
            return Ok(Ended { stopped: true, dead_letters: 0 });
        }
        let Some((follower, following)) = self
            .patiently("journal", "read the control journal", || async {
                Ok::<_, failure::Retryable>(Follower::start(Arc::clone(&journal)).await?)
            })
            .await?
        else {
            return Ok(Ended { stopped: true, dead_letters: 0 });
        };
        let _ = self.observer.observed.control.set(follower);
        let following = tokio::spawn(async move {
            if let Err(error) = following.await {
                tracing::warn!(code = error.code(), %error, "the status follows the control journal no more");
            }
        });
        let result = self.loops().await;
        following.abort();
        result
    }

    /// Starts what was asked for and sees it to its end.
    async fn loops(&mut self) -> Result<Ended, Failure> {
        let (captures, delivers) = (self.options.only != Some(Only::Delivery), self.options.only != Some(Only::Capture));
        // Each loop has its own token, so that a job can end one after the other.
        let (stop_capture, stop_delivery) = (CancellationToken::new(), CancellationToken::new());
        let mut capture: Option<Loop<()>> = None;
        let mut delivery: Option<Loop<()>> = None;
        let job = self.options.until_caught_up;
        if delivers && !job {
            delivery = Some(self.start_delivery(stop_delivery.clone()));
        }
        if captures {
            match self.patiently("source", "check the source", || catalog::check_start(&self.pipeline.source, &self.pipeline.name)).await {
                Ok(Some(facts)) => {
                    let state = self.observer.observed.control.get().map(Follower::state);
                    if let Some(Err(error)) = state.map(|state| policies::check(&self.pipeline.source, &facts.tables, &state)) {
                        return self.wind_down(capture, delivery, &stop_capture, &stop_delivery, Err(error.into())).await;
                    }
                    capture = Some(self.start_capture(&facts, stop_capture.clone()));
                }
                Ok(None) => {}
                Err(failure) => return self.wind_down(capture, delivery, &stop_capture, &stop_delivery, Err(failure)).await,
            }
        } else if job {
            delivery = Some(self.start_delivery(stop_delivery.clone()));
        }
        let mut result = Ok(());
        let mut unread = Ok(());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                ended = finished(&mut capture) => {
                    capture = None;
                    result = ended;
                    if result.is_err() || !job || self.stop.is_cancelled() {
                        break;
                    }
                    // What was captured is delivered all the same; the run ends with it.
                    unread = self.backfill.gave_up().map_or(Ok(()), |(code, what)| Err(Failure::new(&code, what)));
                    if !delivers {
                        break;
                    }
                    delivery = Some(self.start_delivery(stop_delivery.clone()));
                }
                ended = finished(&mut delivery) => {
                    delivery = None;
                    result = ended;
                    // Without connectors delivery ends at once; that is no reason to end capture.
                    if result.is_err() || capture.is_none() {
                        break;
                    }
                }
            }
        }
        let ended = self.wind_down(capture, delivery, &stop_capture, &stop_delivery, result).await?;
        unread.map(|()| ended)
    }

    fn start_capture(&self, facts: &StartFacts, stop: CancellationToken) -> Loop<()> {
        for warning in &facts.warnings {
            tracing::warn!(code = warning.code, why = warning.why, fix = warning.fix, "{}", warning.what);
        }
        let parts = CaptureParts {
            source: Arc::new(PgSource::new(&self.pipeline.source, &self.pipeline.name)),
            journal: Arc::clone(&self.journal),
            settings: capture::Settings { oids: facts.oids(), ..capture::Settings::new(&self.pipeline, facts.primary_keys(), owner()) },
            hooks: Some(Arc::new(SessionHooks(Arc::clone(&self.backfill)))),
            stats: Arc::clone(&self.capture_stats),
            stop,
        };
        let mode = if self.options.until_caught_up { capture::Mode::UntilCaughtUp } else { capture::Mode::Follow };
        if let Some(coverage) = &self.observer.observed.coverage {
            let (source, pipeline) = (self.pipeline.source.clone(), self.pipeline.name.clone());
            let start = coverage::Start { oids: facts.oids(), neighbours: None };
            tokio::spawn(coverage::watch(source, pipeline, start, Arc::clone(coverage), parts.stop.clone()));
        }
        if let Some(watched) = &self.observer.observed.doctor {
            let (source, pipeline) = (self.pipeline.source.clone(), self.pipeline.name.clone());
            tokio::spawn(doctor::watch(source, pipeline, Arc::clone(watched), parts.stop.clone()));
        }
        if let Some(every) = self.observer.observed.canary {
            let (source, pipeline, stats) = (self.pipeline.source.clone(), self.pipeline.name.clone(), Arc::clone(&self.capture_stats));
            tokio::spawn(capture::canary::send(source, pipeline, every, stats, parts.stop.clone()));
        }
        tokio::spawn(async move {
            let stopped = capture::run(parts, mode).await?;
            tracing::info!(complete = stopped.complete, acknowledged = %stopped.acknowledged, "capture ended");
            Ok(())
        })
    }

    fn start_delivery(&mut self, stop: CancellationToken) -> Loop<()> {
        let parts = delivery::Parts {
            journal: Arc::clone(&self.journal),
            pipeline: self.pipeline.name.clone(),
            source: self.pipeline.source.name.clone(),
            owner: owner(),
            connectors: std::mem::take(&mut self.pipeline.connectors),
            stop,
            mode: if self.options.until_caught_up { delivery::Mode::UntilCaughtUp } else { delivery::Mode::Continuous },
            stats: Arc::clone(&self.delivery_stats),
        };
        let listeners = std::mem::take(&mut self.listeners);
        tokio::spawn(async move {
            delivery::run_with(parts, listeners).await?;
            tracing::info!("delivery ended");
            Ok(())
        })
    }

    /// Asks the loops that still run to end, and waits for them as long as a supervisor would.
    async fn wind_down(
        &self,
        mut capture: Option<Loop<()>>,
        mut delivery: Option<Loop<()>>,
        stop_capture: &CancellationToken,
        stop_delivery: &CancellationToken,
        result: Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        stop_capture.cancel();
        stop_delivery.cancel();
        let both = async { (finished_or_none(&mut capture).await, finished_or_none(&mut delivery).await) };
        let outcome = match tokio::time::timeout(STOP_WITHIN, both).await {
            Ok((captured, delivered)) => result.and(captured).and(delivered),
            Err(_) => {
                for task in [&capture, &delivery].into_iter().flatten() {
                    task.abort();
                }
                let late = Failure::new("internal.stop_deadline", format!("a loop did not end within {} s", STOP_WITHIN.as_secs()));
                result.and(Err(late))
            }
        };
        let dead_letters = self.delivery_stats.connectors().iter().map(|c| c.rejected.load(std::sync::atomic::Ordering::Relaxed)).sum();
        outcome.map(|()| Ended { stopped: self.stop.is_cancelled(), dead_letters })
    }

    /// Repeats what fails because a server is away; `None` when asked to stop meanwhile. A job gives up after a minute.
    async fn patiently<T, E, F>(&self, entity: &'static str, what: &str, mut attempt: impl FnMut() -> F) -> Result<Option<T>, Failure>
    where
        E: Transient,
        F: Future<Output = Result<T, E>>,
    {
        let mut delays = Delays::new(Duration::from_millis(200), Duration::from_secs(5));
        let began = Instant::now();
        loop {
            let error = tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                done = attempt() => match done {
                    Ok(done) => {
                        self.observer.waits(entity, None);
                        return Ok(Some(done));
                    }
                    Err(error) => error,
                },
            };
            let transient = error.is_transient();
            let failure: Failure = error.into();
            if !transient || (self.options.until_caught_up && began.elapsed() > JOB_PATIENCE) {
                return Err(failure);
            }
            tracing::warn!(code = failure.code, error = failure.what, "{what}: trying again");
            self.observer.waits(entity, Some(format!("{}: {}", failure.code, failure.what)));
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }
}

/// What a pipeline's backfills need to know of it.
pub(crate) fn backfill_settings(pipeline: &Pipeline, until_caught_up: bool) -> backfill::Settings {
    // Rows are delivered, or kept for look-ups, or both.
    let connector = |c: &crate::config::Connector| {
        let delivered = c.ops.contains(&tillstream_schemas::Op::Read) || c.keep.images;
        let own = c.tables.iter().filter(|_| delivered);
        let looked_up = c.mapping.iter().flat_map(|m| m.lookups()).map(|lookup| &lookup.table);
        let mut tables: Vec<String> = own.chain(looked_up).map(|(s, t)| format!("{s}.{t}")).collect();
        tables.sort();
        tables.dedup();
        (c.name.clone(), tables)
    };
    backfill::Settings {
        source: pipeline.source.clone(),
        pipeline: pipeline.name.clone(),
        protect: pipeline.protect.clone(),
        changed_at: pipeline.changed_at.clone(),
        connectors: pipeline.connectors.iter().map(connector).filter(|(_, tables): &(String, Vec<String>)| !tables.is_empty()).collect(),
        until_caught_up,
    }
}

/// Tells the backfills' brakes how capture and delivery are doing.
fn pressure(capture: &Arc<capture::Stats>, delivery: Option<&Arc<delivery::Stats>>, pipeline: &Pipeline) -> backfill::Ask {
    let (capture, delivery) = (Arc::clone(capture), delivery.map(Arc::clone));
    let lanes: Vec<(String, u64)> = pipeline
        .connectors
        .iter()
        .filter(|c| c.ops.contains(&tillstream_schemas::Op::Read))
        .map(|c| (c.name.clone(), u64::from(c.delivery.lanes.get())))
        .collect();
    Arc::new(move || {
        use std::sync::atomic::Ordering::Relaxed;
        let connectors = delivery.iter().flat_map(|d| d.connectors()).filter_map(|c| {
            let (name, lanes) = lanes.iter().find(|(name, _)| name == c.name())?;
            let partitions = c.partitions();
            Some(backfill::ConnectorPressure {
                name: name.clone(),
                settled: c.delivered.load(Relaxed) + c.absorbed.load(Relaxed) + c.rejected.load(Relaxed),
                busy_us: c.busy_us.load(Relaxed),
                lanes: lanes * partitions.len().max(1) as u64,
                behind: partitions.values().map(|p| p.read.0.saturating_sub(p.settled.0)).sum(),
            })
        });
        backfill::Pressure { capture_lag_bytes: super::observer::lag_bytes(&capture), connectors: connectors.collect() }
    })
}

/// An error that knows whether trying again can help.
trait Transient: Into<Failure> {
    fn is_transient(&self) -> bool;
}

impl Transient for CaptureError {
    fn is_transient(&self) -> bool {
        CaptureError::is_transient(self)
    }
}

impl Transient for failure::Retryable {
    fn is_transient(&self) -> bool {
        self.transient
    }
}

/// Waits for a loop's end; for ever when it does not run.
async fn finished(task: &mut Option<Loop<()>>) -> Result<(), Failure> {
    match task {
        Some(task) => joined(task).await,
        None => std::future::pending().await,
    }
}

async fn finished_or_none(task: &mut Option<Loop<()>>) -> Result<(), Failure> {
    match task {
        Some(task) => joined(task).await,
        None => Ok(()),
    }
}

async fn joined(task: &mut Loop<()>) -> Result<(), Failure> {
    match task.await {
        Ok(result) => result,
        Err(error) => {
            Err(Failure { class: Class::Bug, ..Failure::new("internal.panicked", format!("a loop ended unexpectedly: {error}")) })
        }
    }
}

/// Host and process, for people who look at leases and sessions.
pub(crate) fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}:{}", if host.is_empty() { "host" } else { host }, std::process::id())
}

//! Connectors that take over what their files say now, while the process runs: on trial first, and back to the file before when it does worse.
//!
//! ```text
//! files ─read, checked─▶ changed connectors ─▶ switch at the end of a transaction ─▶ probation ─┬─▶ applied
//!                                                                                              └─▶ switch back, redrive what it refused
//! ```
//!
//! What is in use, and why, stands in the control journal as an audit record. The files are never written: after a rollback they still hold what
//! failed, and a restart would use it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tillstream_connectors::registry::Registry;
use tillstream_connectors::sink::Idempotency;
use tokio::time::Instant;

use super::difference;
use super::failure::Failure;
use super::observer::Observer;
use crate::config::{self, Connector, FileText, SchemaChange};
use crate::control::{Audit, Follower, Record, Writer, now_ms};
use crate::delivery::dead_letter::{self, Wanted};
use crate::delivery::{self, ConnectorState, ConnectorStats, NotSwitched, Stats, Switches};
use crate::journal::Journal;

/// How often a connector on trial is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Refusals that may be chance; from here on their share counts at once.
const REFUSED_MIN: u64 = 3;
/// A share of refusals above this, and above three times that of the file before, is worse.
const REFUSED_SHARE_MAX: f64 = 0.05;
/// The control journal shows what was stored within this.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Only these connectors; empty means every one whose file changed.
    pub connectors: Vec<String>,
    /// How long each is on trial, milliseconds.
    pub probation_ms: u64,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What a connector runs by.
#[derive(Clone, Debug, Serialize)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// The kind of its sink.
    pub kind: String,
    /// What keeps a repeat from having a second effect: `transactional`, `key`, `version` or `none`.
    pub idempotency: &'static str,
    /// Names the file's text.
    pub hash: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// The file's text, secrets masked.
    pub text: String,
    /// What it ran by before, as far as this process knows.
    pub before: Option<Before>,
}

/// What a connector ran by before.
#[derive(Clone, Debug, Serialize)]
pub struct Before {
    /// Names the file's text.
    pub hash: String,
    /// The lines that went (`- `) and came (`+ `) with the present one, secrets masked.
    pub lines: Vec<String>,
}

/// What became of one connector.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// Its name.
    pub connector: String,
    /// `applied`, `rolled_back` or `not_settled`.
    pub result: &'static str,
    /// Why it was not applied, or not tried; without values.
    pub why: Option<String>,
    /// Names the text it runs by now.
    pub hash: String,
    /// What was settled during the trial.
    pub settled: u64,
    /// What was refused of it.
    pub refused: u64,
    /// What was refused and is delivered again under the file before.
    pub redriven: usize,
}

struct InUse {
    connector: Arc<Connector>,
    text: FileText,
    since_ms: i64,
    before: Option<Before>,
}

/// Applies files in a running process.
pub struct Applier {
    registry: Arc<Registry>,
    path: PathBuf,
    journal: Arc<dyn Journal>,
    pipeline: String,
    source: String,
    stats: Arc<Stats>,
    switches: Switches,
    /// Knows the control journal's state.
    observer: Arc<Observer>,
    running: Mutex<BTreeMap<String, InUse>>,
    /// Held while one request is worked on.
    busy: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What an [`Applier`] is made of.
pub struct Parts<'p> {
    /// The pipeline file.
    pub path: PathBuf,
    /// The kinds of sink.
    pub registry: Arc<Registry>,
    /// What runs, with the texts of the connectors' files in the same order.
    pub pipeline: &'p config::Pipeline,
    /// Of the connectors' files.
    pub texts: Vec<FileText>,
    /// Where decisions are written down.
    pub journal: Arc<dyn Journal>,
    /// Delivery's numbers.
    pub stats: Arc<Stats>,
    /// The way to the connectors.
    pub switches: Switches,
    /// Knows the control journal's state.
    pub observer: Arc<Observer>,
}

/// Settled and refused events.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    settled: u64,
    refused: u64,
}

impl Counts {
    fn of(stats: &ConnectorStats) -> Counts {
        let refused = stats.rejected.load(Relaxed);
        Counts { settled: stats.delivered.load(Relaxed) + stats.absorbed.load(Relaxed) + refused, refused }
    }

    fn since(self, before: Counts) -> Counts {
        Counts { settled: self.settled.saturating_sub(before.settled), refused: self.refused.saturating_sub(before.refused) }
    }

    fn share(self) -> f64 {
        if self.settled == 0 { 0.0 } else { self.refused as f64 / self.settled as f64 }
    }
}

impl Applier {
    /// An applier that knows what runs.
    #[must_use]
    pub fn new(parts: Parts<'_>) -> Applier {
        let since_ms = now_ms();
        let in_use = |(connector, text): (&Connector, FileText)| {
            (connector.name.clone(), InUse { connector: Arc::new(connector.clone()), text, since_ms, before: None })
        };
        Applier {
            running: Mutex::new(parts.pipeline.connectors.iter().zip(parts.texts).map(in_use).collect()),
            registry: parts.registry,
            path: parts.path,
            journal: parts.journal,
            pipeline: parts.pipeline.name.clone(),
            source: parts.pipeline.source.name.clone(),
            stats: parts.stats,
            switches: parts.switches,
            observer: parts.observer,
            busy: tokio::sync::Mutex::new(()),
        }
    }

    /// What every connector runs by, by name.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(name, in_use): (&String, &InUse)| Running {
            name: name.clone(),
            kind: in_use.connector.kind.to_owned(),
            idempotency: match in_use.connector.target.plan().idempotency {
                Idempotency::Transactional => "transactional",
                Idempotency::Key => "key",
                Idempotency::Version => "version",
                Idempotency::None => "none",
            },
            hash: in_use.text.hash.clone(),
            since_ms: in_use.since_ms,
            text: in_use.text.shown.clone(),
            before: in_use.before.clone(),
        };
        running.iter().map(one).collect()
    }

    /// Reads the files and gives every connector whose file changed its new one, on trial. Whoever asked may go away: the work is done to its end.
    ///
    /// # Errors
    /// When another request is worked on, or the files have problems; then nothing was changed.
    pub async fn apply(self: Arc<Self>, request: Request) -> Result<Vec<Applied>, Failure> {
        let work = tokio::spawn(async move {
            let Ok(_alone) = self.busy.try_lock() else {
                return Err(Failure::new("apply.busy", "another request to apply files is worked on"));
            };
            let (path, registry) = (self.path.clone(), Arc::clone(&self.registry));
            let read = tokio::task::spawn_blocking(move || config::load_file(&path, &registry)).await;
            let read = read.map_err(|e| Failure::new("internal.panicked", e.to_string()))?;
            let file = read.map_err(|report| Failure::new("apply.invalid", report.render(false).trim_end().to_owned()))?;
            for connector in &file.pipeline.connectors {
                let failed = |mapping| connector.tests.iter().find(|case| case.check(mapping).is_err());
                if let Some(case) = connector.mapping.as_deref().and_then(failed) {
                    return Err(Failure::new("apply.test_failed", format!("connector {}: the test `{}` fails", connector.name, case.name)));
                }
            }
            let mut applied = Vec::new();
            for (connector, text) in file.pipeline.connectors.into_iter().zip(file.texts) {
                let wanted = request.connectors.is_empty() || request.connectors.contains(&connector.name);
                let before = {
                    let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                    running.get(&connector.name).map(|in_use| (Arc::clone(&in_use.connector), in_use.text.clone()))
                };
                let Some(before) = before.filter(|(_, was)| wanted && was.hash != text.hash) else { continue };
                applied.push(self.one(Arc::new(connector), text, before, &request).await?);
            }
            Ok(applied)
        });
        work.await.map_err(|e| Failure::new("internal.panicked", e.to_string()))?
    }

    async fn one(
        &self,
        connector: Arc<Connector>,
        text: FileText,
        (old, old_text): (Arc<Connector>, FileText),
        request: &Request,
    ) -> Result<Applied, Failure> {
        let name = connector.name.clone();
        let Some(stats) = self.stats.connector(&name).cloned() else {
            return Err(Failure::new("apply.not_here", format!("connector {name} does not run in this process")));
        };
        let known = self.letters(&name);
        let usual = Counts::of(&stats).share();
        let result = |result, why: Option<String>, hash: &str, trial: Counts, redriven| Applied {
            connector: name.clone(),
            result,
            why,
            hash: hash.to_owned(),
            settled: trial.settled,
            refused: trial.refused,
            redriven,
        };
        let held = stats.held().is_some();
        if let Err(why) = self.switches.switch(Arc::clone(&connector)).await {
            return match why {
                NotSwitched::NotSettled => Ok(result("not_settled", Some(why.to_string()), &old_text.hash, Counts::default(), 0)),
                NotSwitched::NotRunning => Err(Failure::new("apply.not_here", format!("connector {name}: {why}"))),
            };
        }
        let began = Counts::of(&stats);
        // Whoever mends the file has seen what changed. Told behind the switch, or the file before would go on with it.
        let accepts = held && connector.schema_change == SchemaChange::Pause;
        if accepts {
            self.accept(&connector, request).await?;
        }
        let patience = if accepts { SHOWN_WITHIN } else { Duration::ZERO };
        self.note(&name, connector, &text);
        // While somebody has paused it no event comes to try the file on.
        let paused = self.observer.pause(&name).map(|pause| format!("it is paused by {}, so nothing was tried", pause.who()));
        let within = if paused.is_some() { Duration::ZERO } else { Duration::from_millis(request.probation_ms) };
        let worse = self.probation(&stats, began, usual, within, patience).await;
        let trial = Counts::of(&stats).since(began);
        let Some(why) = worse else {
            let what = format!("connector {name}: file {} in use instead of {}", text.hash, old_text.hash);
            self.audit(request, what, None, &name).await?;
            return Ok(result("applied", paused, &text.hash, trial, 0));
        };
        tracing::error!(connector = name, code = "apply.rolled_back", why, "the new file does worse, the one before is used again");
        // A target that is away keeps this waiting; the trial is over all the same.
        while let Err(NotSwitched::NotSettled) = self.switches.switch(Arc::clone(&old)).await {
            tracing::warn!(connector = name, "the file before is used as soon as what was read is settled");
        }
        self.note(&name, old, &old_text);
        let trial = Counts::of(&stats).since(began);
        let refused = self.new_letters(&name, &known, trial.refused).await;
        let what = format!("connector {name}: file {} rolled back to {}: {why}", text.hash, old_text.hash);
        let redriven = self.audit(request, what, Some(refused), &name).await?;
        Ok(result("rolled_back", Some(why), &old_text.hash, trial, redriven))
    }

    fn note(&self, name: &str, connector: Arc<Connector>, text: &FileText) {
        let running = || self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let was = running().get(name).map(|in_use| in_use.text.clone());
        let before = was.map(|was| Before { lines: difference::lines(&was.shown, &text.shown), hash: was.hash });
        running().insert(name.to_owned(), InUse { connector, text: text.clone(), since_ms: now_ms(), before });
    }

    /// Looks at a connector on trial; why it does worse, as soon as that is clear. `patience`: for so long it may wait for somebody to see that a table has
    /// changed.
    async fn probation(&self, stats: &ConnectorStats, began: Counts, usual: f64, within: Duration, patience: Duration) -> Option<String> {
        let ends = Instant::now() + within;
        let bound = REFUSED_SHARE_MAX.max(3.0 * usual);
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut held_since = None;
        loop {
            look.tick().await;
            let (trial, over) = (Counts::of(stats).since(began), Instant::now() >= ends);
            let error = stats.last_error().map(|e| format!("{}: {}", e.code, e.message)).unwrap_or_default();
            if stats.state() == ConnectorState::Failed {
                return Some(format!("it stopped with {error}"));
            }
            match stats.held() {
                None => held_since = None,
                Some(why) => {
                    let since = *held_since.get_or_insert_with(Instant::now);
                    if over || since.elapsed() >= patience {
                        return Some(format!("it stands still: delivery.schema_changed: {why}"));
                    }
                }
            }
            if trial.refused >= if over { 1 } else { REFUSED_MIN } && trial.share() > bound {
                return Some(format!("{} of {} events became dead letters, the last with {error}", trial.refused, trial.settled));
            }
            if over {
                return None;
            }
        }
    }

    /// Has a connector go on with its tables as they are now.
    async fn accept(&self, connector: &Connector, request: &Request) -> Result<(), Failure> {
        let Some(state) = self.observer.observed.control.get().map(Follower::state) else { return Ok(()) };
        let mut writer = Writer::take_operator(Arc::clone(&self.journal), &self.pipeline, &self.source, &state, &request.by).await?;
        for accepted in delivery::acceptances(connector, &state, false, &request.by) {
            writer.store_proven(&Record::LayoutAccepted(accepted)).await?;
        }
        Ok(())
    }

    fn letters(&self, connector: &str) -> BTreeSet<String> {
        let state = self.observer.observed.control.get().map(Follower::state);
        let of = |state: Arc<crate::control::State>| {
            state.dead_letters().filter(|l| l.letter.connector == connector).map(|l| l.letter.event_id.clone()).collect()
        };
        state.map(of).unwrap_or_default()
    }

    /// The dead letters that were not known before, once the control journal shows as many as there have to be.
    async fn new_letters(&self, connector: &str, known: &BTreeSet<String>, count: u64) -> Vec<String> {
        let until = Instant::now() + SHOWN_WITHIN;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let new: Vec<String> = self.letters(connector).difference(known).cloned().collect();
            if new.len() as u64 >= count || Instant::now() >= until {
                return new;
            }
        }
    }

    /// Writes a decision down, and asks for these dead letters to be delivered again; answers how many.
    async fn audit(&self, request: &Request, what: String, redrive: Option<Vec<String>>, connector: &str) -> Result<usize, Failure> {
        tracing::info!(by = request.by, "{what}");
        let Some(state) = self.observer.observed.control.get().map(Follower::state) else { return Ok(0) };
        let mut writer = Writer::take_operator(Arc::clone(&self.journal), &self.pipeline, &self.source, &state, &request.by).await?;
        let audit = Audit { who: request.by.clone(), what, why: request.reason.clone(), at_ms: now_ms() };
        writer.store_proven(&Record::Audit(audit)).await?;
        match redrive {
            Some(event_ids) if !event_ids.is_empty() => {
                let wanted = Wanted { connector: Some(connector.to_owned()), event_ids, ..Wanted::default() };
                let state = self.observer.observed.control.get().map(Follower::state).unwrap_or(state);
                Ok(dead_letter::redrive(&mut writer, &state, &wanted, &request.by).await?)
            }
            _ => Ok(0),
        }
    }
}

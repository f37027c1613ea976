//! Looks at the loops once a second, so that rates, "since" and stalls are known whenever somebody asks. Reads atomics
//! only; what costs a request (the extent of each partition) is asked rarely and never by whoever asks for the status.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::bottleneck::{self, Bottleneck};
use super::coverage::Coverage;
use super::doctor::Watched;
use super::figures::Figures;
use super::figures::window::{Around, Window};
use super::health::{self, CaptureFacts, ConnectorFacts, Health, Verdict};
use super::troubles::{Trouble, Troubles};
use crate::config::Retention;
use crate::config::calendar::Calendar;
use crate::control::{Follower, Pause, now_ms};
use crate::journal::{Journal, Log};
use crate::{backfill, capture, delivery};

/// A sample a second, eleven of them: rates over ten seconds follow a change quickly and do not flicker.
const SAMPLES: usize = 11;
/// The extent of the partitions is asked this often.
const BOUNDS_EVERY: Duration = Duration::from_secs(5);

/// A connector, as configured.
#[derive(Clone, Debug)]
pub struct ConnectorInfo {
    /// Its name.
    pub name: String,
    /// The kind of its sink.
    pub kind: &'static str,
}

/// What is looked at.
pub struct Observed {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the source.
    pub source: String,
    /// Kind and version of the journal.
    pub journal_kind: Mutex<String>,
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// When entries of the data logs may go.
    pub retention: Retention,
    /// Capture's numbers; `None` when this process does not capture.
    pub capture: Option<Arc<capture::stats::Stats>>,
    /// What the configuration names and the stream does not hold; `None` when this process does not capture.
    pub coverage: Option<Arc<Coverage>>,
    /// What the doctor found last; `None` when this process does not capture.
    pub doctor: Option<Arc<Watched>>,
    /// The backfills; `None` when this process does not capture.
    pub backfill: Option<Arc<backfill::Backfill>>,
    /// Delivery's numbers; `None` when this process does not deliver.
    pub delivery: Option<Arc<delivery::stats::Stats>>,
    /// The connectors.
    pub connectors: Vec<ConnectorInfo>,
    /// How often a canary is sent; `None` for never.
    pub canary: Option<Duration>,
    /// When the point of sale is busy, as far as the configuration says.
    pub peak: Option<Calendar>,
    /// The control journal's state, once it is read.
    pub control: OnceLock<Follower>,
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Counters at one moment.
#[derive(Clone, Debug, Default)]
struct Sample {
    at: Option<Instant>,
    events: u64,
    transactions: u64,
    /// Settled events of each connector, in their order.
    connectors: Vec<u64>,
}

#[derive(Debug, Default)]
struct Seen {
    samples: VecDeque<Sample>,
    /// Of each entity its state and since when.
    states: BTreeMap<String, (Health, i64)>,
    /// Times in which one of them was not as it should be.
    troubles: Troubles,
    /// Last offset of each partition.
    last_offsets: BTreeMap<u16, u64>,
    /// Why the journal did not answer when it was asked last.
    journal_error: Option<String>,
    /// The confirmed LSN when it moved last, and when.
    confirmed: (u64, Option<Instant>),
    /// The acknowledged LSN when it moved last, and when, or when there was nothing to acknowledge.
    acknowledged: (u64, Option<Instant>),
    /// What a step of the start is waiting for, by entity.
    waiting: BTreeMap<&'static str, String>,
}

/// Rates over the last seconds.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// Events captured per second.
    pub events: f64,
    /// Transactions captured per second.
    pub transactions: f64,
    /// Events settled per second, of each connector in their order.
    pub connectors: Vec<f64>,
}

/// Looks, remembers, answers.
#[derive(Debug)]
pub struct Observer {
    /// What is looked at.
    pub observed: Observed,
    /// When the process began.
    pub started: Instant,
    seen: Mutex<Seen>,
    window: Mutex<Window>,
}

impl Observer {
    /// An observer that has seen nothing yet.
    #[must_use]
    pub fn new(observed: Observed) -> Arc<Observer> {
        Arc::new(Observer { observed, started: Instant::now(), seen: Mutex::default(), window: Mutex::default() })
    }

    /// Looks once a second until it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let asking = async {
            // Before it is set up the journal has nothing to tell.
            while self.observed.control.get().is_none() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            loop {
                self.ask_journal().await;
                let pause = if self.seen().journal_error.is_some() { Duration::from_secs(1) } else { BOUNDS_EVERY };
                tokio::time::sleep(pause).await;
            }
        };
        let looking = async {
            loop {
                tick.tick().await;
                self.look();
            }
        };
        tokio::join!(asking, looking);
    }

    /// Asks each partition for its extent; remembers the answer, or that there was none.
    pub async fn ask_journal(&self) {
        let journal = &self.observed.journal;
        let kind_known = !self.journal_kind().is_empty();
        let mut error = None;
        if !kind_known {
            match tokio::time::timeout(BOUNDS_EVERY, journal.describe()).await {
                Ok(Ok(kind)) => *self.observed.journal_kind.lock().unwrap_or_else(PoisonError::into_inner) = kind,
                Ok(Err(e)) => error = Some(format!("{}: {e}", e.code())),
                Err(_) => error = Some("the journal does not answer".to_owned()),
            }
        }
        for partition in 0..journal.partitions() {
            if error.is_some() {
                break;
            }
            match tokio::time::timeout(BOUNDS_EVERY, journal.bounds(Log::Data(partition))).await {
                Ok(Ok(bounds)) => {
                    self.seen().last_offsets.extend(bounds.map(|b| (partition, b.last.0)));
                }
                Ok(Err(e)) => error = Some(format!("{}: {e}", e.code())),
                Err(_) => error = Some("the journal does not answer".to_owned()),
            }
        }
        if error.is_none() {
            let ends = self.last_offsets();
            self.window().ends(ends);
        }
        self.seen().journal_error = error;
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every stage does, over the last seconds.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let ends = self.last_offsets();
        let control = self.observed.control.get().map(Follower::state);
        // Before it is set up it is not away.
        let journal_away = self.seen().journal_error.clone().filter(|_| control.is_some());
        let around = Around {
            control: control.as_deref(),
            ends: &ends,
            partitions: self.observed.journal.partitions(),
            retention: self.observed.retention,
            journal_away,
            oldest_unconfirmed: self.oldest_unconfirmed(),
        };
        self.window().figures(self.observed.capture.as_deref(), self.observed.delivery.as_deref(), &around)
    }

    /// What limits the pipeline.
    #[must_use]
    pub fn bottleneck(&self) -> Bottleneck {
        bottleneck::bottleneck(&self.figures())
    }

    fn look(&self) {
        let mut sample = Sample { at: Some(Instant::now()), ..Sample::default() };
        if let Some(stats) = &self.observed.capture {
            sample.events = stats.events.load(Relaxed) + stats.reads.load(Relaxed);
            sample.transactions = stats.transactions.load(Relaxed);
        }
        if let Some(stats) = &self.observed.delivery {
            let settled =
                |c: &delivery::stats::ConnectorStats| c.delivered.load(Relaxed) + c.absorbed.load(Relaxed) + c.rejected.load(Relaxed);
            sample.connectors = stats.connectors().iter().map(|c| settled(c)).collect();
        }
        let mut seen = self.seen();
        if seen.samples.len() == SAMPLES {
            seen.samples.pop_front();
        }
        seen.samples.push_back(sample);
        if let Some(stats) = &self.observed.capture {
            let confirmed = stats.confirmed_lsn.load(Relaxed);
            let idle = stats.unconfirmed_bytes.load(Relaxed) == 0;
            if idle || confirmed != seen.confirmed.0 || seen.confirmed.1.is_none() {
                seen.confirmed = (confirmed, Some(Instant::now()));
            }
            let (acknowledged, server) = (stats.acknowledged_lsn.load(Relaxed), stats.server_lsn.load(Relaxed));
            // The WAL as the look at the slot found it, too: a stream that stands still tells nothing.
            let server = stats.slot().map_or(server, |slot| server.max(slot.restart.0 + slot.retained_bytes));
            if acknowledged >= server || acknowledged != seen.acknowledged.0 || seen.acknowledged.1.is_none() {
                seen.acknowledged = (acknowledged, Some(Instant::now()));
            }
        }
        drop(seen);
        self.window().look(self.observed.capture.as_deref(), self.observed.delivery.as_deref());
        let _ = self.source();
        let _ = self.journal();
        for connector in self.observed.delivery.iter().flat_map(|d| d.connectors()) {
            let _ = self.connector(connector);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kind and version of the journal; empty until it answered once.
    #[must_use]
    pub fn journal_kind(&self) -> String {
        self.observed.journal_kind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Last offset of each partition that is not empty, as of the last answer.
    #[must_use]
    pub fn last_offsets(&self) -> BTreeMap<u16, u64> {
        self.seen().last_offsets.clone()
    }

    /// How long what was handed to the journal waits for its confirm; `None` when nothing does.
    #[must_use]
    pub fn oldest_unconfirmed(&self) -> Option<Duration> {
        let stats = self.observed.capture.as_ref()?;
        if stats.unconfirmed_bytes.load(Relaxed) == 0 {
            return None;
        }
        Some(self.seen().confirmed.1.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// Time since PostgreSQL was last told that it may forget WAL; nothing while there is none to forget.
    #[must_use]
    pub fn acknowledgement_age(&self) -> Duration {
        self.seen().acknowledged.1.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Notes that a step of the start waits for something outside; `None` once it is done.
    pub fn waits(&self, entity: &'static str, why: Option<String>) {
        match why {
            Some(why) => self.seen().waiting.insert(entity, why),
            None => self.seen().waiting.remove(entity),
        };
    }

    /// Blocked, while a step of the start waits.
    fn starting(&self, entity: &'static str) -> Option<Verdict> {
        self.seen().waiting.get(entity).map(|why| Verdict { health: Health::Blocked, why: why.clone() })
    }

    /// State of the source, and since when; `None` when this process does not capture.
    #[must_use]
    pub fn source(&self) -> Option<(Verdict, i64)> {
        let stats = self.observed.capture.as_ref()?;
        if let Some(verdict) = self.starting("source") {
            return Some(self.since("source".to_owned(), verdict));
        }
        let (state, _) = stats.state();
        let lag_bytes = lag_bytes(stats);
        let last_error = stats.last_error().map(|e| format!("{}: {}", e.code, e.message));
        let missed = self.observed.coverage.iter().flat_map(|c| c.gaps()).find(|gap| gap.loses).map(|gap| gap.what);
        let behind = stats.behind.load(Relaxed);
        let verdict = health::source(&CaptureFacts { state, behind, lag_bytes, last_error, slot: stats.slot(), missed });
        Some(self.since("source".to_owned(), verdict))
    }

    /// State of the journal, and since when.
    #[must_use]
    pub fn journal(&self) -> (Verdict, i64) {
        if let Some(verdict) = self.starting("journal") {
            return self.since("journal".to_owned(), verdict);
        }
        if self.observed.control.get().is_none() {
            let verdict = Verdict { health: Health::Unknown, why: "it is being set up".to_owned() };
            return self.since("journal".to_owned(), verdict);
        }
        let error = self.seen().journal_error.clone();
        self.since("journal".to_owned(), health::journal(self.oldest_unconfirmed(), error.as_deref()))
    }

    /// Who paused a connector, if somebody has.
    #[must_use]
    pub fn pause(&self, connector: &str) -> Option<Pause> {
        self.observed.control.get()?.state().pause(connector).cloned()
    }

    /// State of a connector, and since when.
    #[must_use]
    pub fn connector(&self, stats: &delivery::stats::ConnectorStats) -> (Verdict, i64) {
        let last_error = stats.last_error().map(|e| format!("{}: {}", e.code, e.message));
        let held = stats.held().map(|why| format!("delivery.schema_changed: {why}"));
        let pause = self.pause(stats.name());
        let in_air: u64 = stats.partitions().values().map(|p| p.in_flight).sum();
        let paused = pause.as_ref().map(|pause| {
            let reason = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
            let finishing = if in_air > 0 { "; calls in the air finish" } else { "" };
            format!("paused by {}{reason} (`tillstream connector resume {}` ends it){finishing}", pause.who(), pause.connector)
        });
        let facts = ConnectorFacts { state: stats.state(), lag: lag(stats), last_error, held, paused };
        if let Some(pause) = pause {
            let (verdict, _) = self.since(format!("connector {}", stats.name()), health::connector(&facts));
            return (verdict, pause.at_ms);
        }
        self.since(format!("connector {}", stats.name()), health::connector(&facts))
    }

    /// Remembers since when an entity is in its state.
    fn since(&self, entity: String, verdict: Verdict) -> (Verdict, i64) {
        let now = now_ms();
        let mut seen = self.seen();
        let since = match seen.states.get(&entity) {
            Some((health, since)) if *health == verdict.health => *since,
            _ => {
                seen.troubles.note(&entity, &verdict, now);
                seen.states.insert(entity, (verdict.health, now));
                now
            }
        };
        (verdict, since)
    }

    /// Times in which source, journal or a connector was not as it should be since the process began, oldest first; the newest of them are kept.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        self.seen().troubles.all()
    }

    /// How old the newest measurement is.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.seen().samples.back().and_then(|sample| sample.at).map_or_else(|| self.started.elapsed(), |at| at.elapsed())
    }

    /// Rates over the samples at hand.
    #[must_use]
    pub fn rates(&self) -> Rates {
        let seen = self.seen();
        let (Some(old), Some(new)) = (seen.samples.front(), seen.samples.back()) else { return Rates::default() };
        let (Some(from), Some(to)) = (old.at, new.at) else { return Rates::default() };
        let seconds = (to - from).as_secs_f64();
        if seconds <= 0.0 {
            return Rates { connectors: vec![0.0; new.connectors.len()], ..Rates::default() };
        }
        let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
        let connectors = new.connectors.iter().enumerate();
        let connectors = connectors.map(|(i, settled)| rate(old.connectors.get(i).copied().unwrap_or(*settled), *settled)).collect();
        Rates { events: rate(old.events, new.events), transactions: rate(old.transactions, new.transactions), connectors }
    }

    /// Why the process is not ready: bytes are not moving somewhere. Empty when it is.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let fine = |health: Health| matches!(health, Health::Healthy | Health::CatchingUp);
        let mut add = |entity: &str, verdict: &Verdict| {
            if !fine(verdict.health) {
                reasons.push(format!("{entity} is {}: {}", verdict.health.as_str(), verdict.why));
            }
        };
        if let Some((verdict, _)) = self.source() {
            add("source", &verdict);
        }
        add("journal", &self.journal().0);
        for connector in self.observed.delivery.iter().flat_map(|d| d.connectors()) {
            // Somebody wants it so: no reason to call the process unfit.
            if self.pause(connector.name()).is_none() {
                add(&format!("connector {}", connector.name()), &self.connector(connector).0);
            }
        }
        reasons
    }
}

/// WAL that is not received yet. What was acknowledged beyond what was received held nothing for us.
#[must_use]
pub fn lag_bytes(stats: &capture::Stats) -> u64 {
    let reached = stats.received_lsn.load(Relaxed).max(stats.acknowledged_lsn.load(Relaxed));
    stats.server_lsn.load(Relaxed).saturating_sub(reached)
}

/// Age of the oldest event of a connector that is read and not settled.
#[must_use]
pub fn lag(stats: &delivery::stats::ConnectorStats) -> Option<Duration> {
    let oldest = stats.partitions().values().filter_map(|p| p.oldest_commit_ms).min()?;
    Some(Duration::from_millis(u64::try_from(now_ms() - oldest).unwrap_or(0)))
}

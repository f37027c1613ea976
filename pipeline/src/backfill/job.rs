//! One job: describes its tables, divides them into parts, has its readers read them, and says when all is read.
//!
//! Goes round again after a lost connection, for as long as it takes. Ends when its session does; where the run is to end by itself, also
//! with what keeps the rest of an initial load from being read.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::gate::{Halt, Wanted};
use super::patience::{self, Patience, Trouble};
use super::plan;
use super::read::{Failure, Session};
use super::reader::{Ended, Part, Reader, Shared, Table};
use super::stats::TableState;
use crate::config;
use crate::control::{Cursor, LoadFinished, Record, now_ms};
use crate::retry::Delays;

/// One run of a job.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    /// `[a-z0-9_]+`, part of event ids.
    pub(super) name: String,
    pub(super) epoch: u32,
    /// The tables to read.
    pub(super) tables: Vec<config::SourceTable>,
    /// The attempt of this run's chunks, when the job counts its runs; otherwise the cursors tell.
    pub(super) attempt: Option<u32>,
    /// The initial load passes over what it cannot read and waits for what comes right; a job ends with the reason.
    pub(super) is_load: bool,
    /// The run ends once everything is read: an initial load does not wait for ever for what only a person can mend.
    pub(super) ends: bool,
    /// Whether an earlier run said that everything is read.
    pub(super) announced: bool,
    /// Readers at once, at most.
    pub(super) readers: usize,
}

/// How a job's run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything is read and stored.
    Done,
    /// It was asked to stop.
    Halted(Wanted),
    /// Something has to be mended.
    Failed {
        /// Stable code.
        code: String,
        /// What, without values.
        message: String,
    },
    /// The session is over.
    SessionEnded,
}

/// How one round ended.
enum Round {
    Complete,
    /// Some table failed; it is tried again.
    Incomplete,
    Halted,
}

/// Parts that wait for a reader.
type Parts = Arc<Mutex<VecDeque<Part>>>;

impl Job {
    /// Reads everything, trying again for as long as it takes.
    pub(super) async fn run(mut self) -> Outcome {
        let mut delays = Delays::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut patience = Patience::default();
        let stats = self.shared.stats.clone();
        loop {
            let rows = stats.progress().rows;
            let troubles = match self.round().await {
                Ok(Round::Complete) => return Outcome::Done,
                Ok(Round::Halted) => return Outcome::Halted(self.shared.gate.wanted()),
                Ok(Round::Incomplete) => patience::of(&stats.progress().tables),
                Err(Failure::HookGone) => return Outcome::SessionEnded,
                Err(Failure::Source(error)) => {
                    tracing::warn!(code = error.code(), %error, job = self.name, "backfill waits for the source");
                    stats.waiting(Some(format!("{}: {error}", error.code())));
                    vec![Trouble::away(error.code(), error.to_string())]
                }
                Err(Failure::Table { code, message }) if self.is_load => {
                    tracing::warn!(code, message, "initial load cannot begin");
                    stats.waiting(Some(format!("{code}: {message}")));
                    vec![Trouble::wrong(code, message)]
                }
                Err(Failure::Table { code, message }) => return Outcome::Failed { code: code.to_owned(), message },
            };
            let read = stats.progress().rows > rows;
            if read {
                delays.reset();
            }
            if self.ends
                && let Some(Trouble { code, message, .. }) = patience.ends_with(&troubles, read, Instant::now())
            {
                return Outcome::Failed { code, message };
            }
            if self.rest(delays.next_delay()).await.is_err() {
                return Outcome::Halted(self.shared.gate.wanted());
            }
        }
    }

    /// Sleeps, but not through a request to stop.
    async fn rest(&self, pause: Duration) -> Result<(), Halt> {
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until {
            if self.shared.gate.wanted() != Wanted::Run {
                return Err(Halt);
            }
            tokio::time::sleep(Duration::from_millis(100).min(pause)).await;
        }
        Ok(())
    }

    /// Goes through all tables once.
    async fn round(&mut self) -> Result<Round, Failure> {
        let session = Session::open(&self.shared.source, &self.shared.pipeline).await?;
        let publication = plan::publication(&session, &self.shared.source).await?;
        let mut round = Round::Complete;
        let mut parts = VecDeque::new();
        for configured in self.tables.clone() {
            let name = format!("{}.{}", configured.schema, configured.table);
            if self.is_read(&name) {
                continue;
            }
            let stats = self.shared.stats.clone();
            match self.parts_of(&session, &publication, &configured, &name).await {
                Ok(Ok(found)) if found.is_empty() => stats.done(&name),
                Ok(Ok(found)) => parts.extend(found),
                Ok(Err(refusal)) if self.is_load => {
                    tracing::warn!(code = refusal.code, table = name, "initial load passes a table over: {}", refusal.message);
                    stats.refused(&name, refusal);
                }
                Ok(Err(refusal)) => {
                    let message = format!("{name}: {}", refusal.message);
                    return Err(Failure::Table { code: refusal.code, message });
                }
                Err(Failure::Table { code, message }) if self.is_load => {
                    tracing::warn!(code, table = name, message, "initial load of a table fails; it will be tried again");
                    stats.failing(&name, code, &message);
                    round = Round::Incomplete;
                }
                Err(Failure::Table { code, message }) => return Err(Failure::Table { code, message: format!("{name}: {message}") }),
                Err(failure) => return Err(failure),
            }
        }
        match self.read(session, parts).await? {
            Round::Complete => {}
            other => round = other,
        }
        if matches!(round, Round::Complete) {
            self.finish().await?;
        }
        Ok(round)
    }

    /// Whether every part of a table is read.
    fn is_read(&self, table: &str) -> bool {
        let mine = self.shared.cursors(table);
        !mine.is_empty() && mine.iter().all(|c| c.done)
    }

    /// The parts of a table that are left, each with its cursor stored: the chunks in doubt become ones of an attempt
    /// never used before.
    async fn parts_of(
        &mut self,
        session: &Session,
        publication: &crate::capture::catalog::PublicationFacts,
        configured: &config::SourceTable,
        name: &str,
    ) -> Result<Result<Vec<Part>, super::sql::Refusal>, Failure> {
        let chunked = match plan::describe(session, publication, configured, &self.shared.source.columns, &self.shared.choice).await? {
            Ok(chunked) => chunked,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let keyed = !self.shared.keys.is_empty();
        let sources = if keyed { vec![chunked.whole()] } else { plan::sources(session, &chunked).await? };
        let known = self.shared.cursors(name);
        let attempt = self.attempt.unwrap_or_else(|| known.iter().map(|c| c.attempt + 1).max().unwrap_or(0));
        let next_chunk = known.iter().map(|c| c.chunk + 1).max().unwrap_or(0);
        let mut cursors = Vec::new();
        if known.is_empty() {
            let started = |part: String, after, bound: Option<_>| Cursor {
                job: self.name.clone(),
                table: name.to_owned(),
                part,
                epoch: self.epoch,
                chunk: 0,
                attempt,
                after,
                done: bound.is_none(),
                bound,
                rows: 0,
                started_at_ms: now_ms(),
                at_ms: now_ms(),
            };
            for source in &sources {
                if keyed {
                    cursors.push((started("keys".to_owned(), None, Some(crate::control::KeyTexts::default())), source.clone()));
                    continue;
                }
                for range in plan::ranges(session, &chunked, source).await? {
                    cursors.push((started(range.name, range.after, range.bound), range.source));
                }
            }
        } else {
            for cursor in known {
                let source = if keyed { sources.first() } else { plan::source_of(&sources, &cursor.part) };
                // A partition that is gone took its rows along; the stream says so where they matter.
                let Some(source) = source else { continue };
                // A chunk may be handed over and nobody here know it, so its number is not used again either.
                let chunk = if cursor.done { cursor.chunk } else { next_chunk };
                cursors.push((Cursor { chunk, attempt, at_ms: now_ms(), ..cursor }, source.clone()));
            }
        }
        // The last one is read back under our fence, and the others stand before it.
        for (cursor, _) in &cursors {
            self.shared.store(Record::Cursor(cursor.clone())).await?;
        }
        self.shared.reached_all(name, cursors.iter().map(|(c, _)| c.clone()));
        let done = cursors.iter().filter(|(c, _)| c.done).count() as u32;
        let estimate = match (keyed, self.shared.choice.conditions.is_empty()) {
            (true, _) => self.shared.keys.len() as f64,
            (false, true) => sources.iter().map(|s| s.rows_estimate).try_fold(0.0, |sum, e| (e >= 0.0).then_some(sum + e)).unwrap_or(-1.0),
            (false, false) => -1.0,
        };
        self.shared.stats.reading(name, estimate, cursors.len() as u32, done);
        let table = Arc::new(Table { chunked, configured: configured.clone(), numbers: AtomicU32::new(next_chunk) });
        let left = cursors.into_iter().filter(|(c, _)| !c.done);
        Ok(Ok(left.map(|(cursor, source)| Part { table: table.clone(), source, cursor }).collect()))
    }

    /// Has the parts read, several at once. The session that planned them reads too: it has a connection, and another
    /// pipeline that loads from the same server may hold the ones that are left.
    async fn read(&mut self, session: Session, parts: VecDeque<Part>) -> Result<Round, Failure> {
        if parts.is_empty() {
            return Ok(Round::Complete);
        }
        let helpers = self.readers.min(parts.len()).saturating_sub(1);
        let parts: Parts = Arc::new(Mutex::new(parts));
        let mut tasks = JoinSet::new();
        let (shared, mine, is_load) = (self.shared.clone(), parts.clone(), self.is_load);
        tasks.spawn(async move { work(Reader::with(shared.clone(), session).await?, &shared, &mine, is_load).await });
        for _ in 0..helpers {
            let (shared, mine) = (self.shared.clone(), parts.clone());
            tasks.spawn(async move {
                match Reader::open(shared.clone()).await {
                    Ok(reader) => work(reader, &shared, &mine, is_load).await,
                    // A source that is gone fails the first reader as well.
                    Err(Failure::Source(error)) => {
                        tracing::info!(code = error.code(), %error, "a load reads on fewer connections");
                        Ok(Round::Complete)
                    }
                    Err(failure) => Err(failure),
                }
            });
        }
        let mut round = Round::Complete;
        let mut failed = None;
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(Round::Complete)) => {}
                Ok(Ok(Round::Halted)) => round = Round::Halted,
                Ok(Ok(Round::Incomplete)) if matches!(round, Round::Complete) => round = Round::Incomplete,
                Ok(Ok(Round::Incomplete)) => {}
                Ok(Err(failure)) => {
                    // The others end after their part's chunk or part: what they have read is kept.
                    failed.get_or_insert(failure);
                    parts.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(_) => failed = Some(Failure::HookGone),
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None => Ok(round),
        }
    }

    /// Says that everything is read.
    async fn finish(&mut self) -> Result<(), Failure> {
        if self.is_load && !self.announced {
            let tables = self.shared.stats.progress().tables;
            let rows = tables.iter().map(|t| t.rows).sum();
            let tables = tables.iter().filter(|t| t.state == TableState::Done).count() as u32;
            let record = LoadFinished { job: self.name.clone(), epoch: self.epoch, tables, rows, at_ms: now_ms() };
            self.shared.store(Record::LoadFinished(record)).await?;
            self.announced = true;
            tracing::info!(tables, rows, "initial load is complete");
        }
        self.shared.stats.finish();
        Ok(())
    }
}

/// One reader's life: part after part until there is none.
async fn work(mut reader: Reader, shared: &Shared, parts: &Parts, is_load: bool) -> Result<Round, Failure> {
    let mut round = Round::Complete;
    loop {
        let next = parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(part) = next else { return Ok(round) };
        let name = part.cursor.table.clone();
        match reader.part(part).await {
            Ok(Ended::Done) => shared.stats.part_done(&name),
            Ok(Ended::Halted) => return Ok(Round::Halted),
            Ok(Ended::Refused(refusal)) if is_load => {
                tracing::warn!(code = refusal.code, table = name, "initial load passes a table over: {}", refusal.message);
                shared.stats.refused(&name, refusal);
            }
            Ok(Ended::Refused(refusal)) => {
                return Err(Failure::Table { code: refusal.code, message: format!("{name}: {}", refusal.message) });
            }
            Err(Failure::Table { code, message }) if is_load => {
                tracing::warn!(code, table = name, message, "initial load of a table fails; it will be tried again");
                shared.stats.failing(&name, code, &message);
                round = Round::Incomplete;
            }
            Err(Failure::Table { code, message }) => return Err(Failure::Table { code, message: format!("{name}: {message}") }),
            Err(failure) => return Err(failure),
        }
    }
}

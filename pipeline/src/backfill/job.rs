//! The reading side of a backfill: one connection, one table after the other, one chunk at a time.
//!
//! ```text
//!  cursor (attempt + 1) stored ─▶ open ─▶ low watermark ─▶ read chunk ─▶ high watermark ─▶ verdict
//!                                  ▲                                                         │
//!                                  └──────────── handed over: next chunk, or read it again ──┘
//! ```
//!
//! Never writes to the source but for the two logical messages of each chunk, and never holds a snapshot longer than
//! one chunk. Ends when its hook is dropped.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::hook::{PREFIX, Step, Verdict};
use super::pace::Pace;
use super::sql::{ChunkedTable, Refusal};
use super::stats::Stats;
use super::window::{Again, Chunk, Opening, Row};
use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, Snapshot, TableFacts};
use crate::config;
use crate::control::{Cursor, KeyTexts, LoadFinished, Record, now_ms};
use crate::retry::Delays;

/// Settings of the reading session, beside the formats that every session pins. Watermarks need not wait for a
/// standby; a policy that would hide rows has to fail loudly; and nothing of ours may hold the point of sale up.
const SESSION: &str = "SET synchronous_commit = local; SET row_security = off; SET jit = off; \
                       SET statement_timeout = '30s'; SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '30s'";

/// What one run of the load works with.
pub(super) struct Job {
    pub(super) source: config::Source,
    pub(super) pipeline: String,
    /// `[a-z0-9_]+`, part of event ids.
    pub(super) name: String,
    pub(super) epoch: u32,
    /// How far earlier runs came, by table.
    pub(super) cursors: HashMap<String, Cursor>,
    /// Whether an earlier run said that everything is read.
    pub(super) announced: bool,
    pub(super) steps: mpsc::Sender<Step>,
    pub(super) stats: Arc<Stats>,
}

/// What ends the reading of a table.
#[derive(Debug)]
enum Failure {
    /// The hook is gone, and with it the session.
    HookGone,
    /// The connection is of no use: connect again.
    Source(CaptureError),
    /// This table cannot be read as things are; others can.
    Table { code: &'static str, message: String },
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Definite { code, what, fix, .. } => Failure::Table { code, message: format!("{what}; {fix}") },
            error => Failure::Source(error),
        }
    }
}

/// What ends the reading of a chunk.
#[derive(Debug)]
enum Unread {
    /// It took too long or had to wait for a lock.
    TooSlow,
    Failed(Failure),
}

impl Job {
    /// Reads everything, trying again for as long as it takes.
    pub(super) async fn run(mut self) {
        let mut delays = Delays::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let rows = self.stats.progress().rows;
            match self.round().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(Failure::HookGone) => return,
                Err(Failure::Source(error)) => {
                    tracing::warn!(code = error.code(), %error, "initial load waits for the source");
                    self.stats.waiting(format!("{}: {error}", error.code()));
                }
                Err(Failure::Table { code, message }) => {
                    tracing::warn!(code, message, "initial load cannot begin");
                    self.stats.waiting(format!("{code}: {message}"));
                }
            }
            if self.stats.progress().rows > rows {
                delays.reset();
            }
            tokio::time::sleep(delays.next_delay()).await;
        }
    }

    /// Goes through all tables once; true when nothing is left to read.
    async fn round(&mut self) -> Result<bool, Failure> {
        let catalog = Catalog::connect_backfill(&self.source, &self.pipeline).await?;
        catalog.client().batch_execute(SESSION).await.map_err(|e| failure(&e))?;
        let publication = catalog.publication(&self.source.publication).await?.ok_or_else(|| Failure::Table {
            code: "capture.publication_missing",
            message: format!("publication \"{}\" does not exist", self.source.publication),
        })?;
        let mut complete = true;
        for configured in self.source.tables.clone() {
            let name = format!("{}.{}", configured.schema, configured.table);
            if self.cursors.get(&name).is_some_and(|c| c.done) {
                continue;
            }
            match self.table(&catalog, &publication, &configured, &name).await {
                Ok(Ok(())) => self.stats.done(&name),
                Ok(Err(refusal)) => {
                    tracing::warn!(code = refusal.code, table = name, "initial load passes a table over: {}", refusal.message);
                    self.stats.refused(&name, refusal);
                }
                Err(Failure::Table { code, message }) => {
                    tracing::warn!(code, table = name, message, "initial load of a table fails; it will be tried again");
                    self.stats.failing(&name, code, &message);
                    complete = false;
                }
                Err(failure) => return Err(failure),
            }
        }
        if complete {
            self.finish().await?;
        }
        Ok(complete)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        if !self.announced {
            let (tables, rows) = self.cursors.values().filter(|c| c.done).fold((0, 0), |(n, rows), c| (n + 1, rows + c.rows));
            let record = LoadFinished { job: self.name.clone(), epoch: self.epoch, tables, rows, at_ms: now_ms() };
            self.store(Record::LoadFinished(record)).await?;
            self.announced = true;
            tracing::info!(tables, rows, "initial load is complete");
        }
        self.send(Step::Finished).await?;
        self.stats.finish();
        Ok(())
    }

    async fn table(
        &mut self,
        catalog: &Catalog,
        publication: &PublicationFacts,
        configured: &config::SourceTable,
        name: &str,
    ) -> Result<Result<(), Refusal>, Failure> {
        let mut described = match describe(catalog, publication, configured).await? {
            Ok(described) => described,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.stats.reading(name, described.0.rows_estimate);
        let mut cursor = self.start(catalog, &described.1, name).await?;
        let mut pace = Pace::new();
        let mut delays = Delays::new(Duration::from_millis(20), Duration::from_secs(2));
        // One chunk more may be under way than is stored.
        let mut unstored: Option<oneshot::Receiver<()>> = None;
        while !cursor.done {
            match self.chunk(catalog, &described.1, &cursor, &mut pace, &mut unstored).await? {
                Outcome::Next(next) => {
                    cursor = next;
                    self.cursors.insert(name.to_owned(), cursor.clone());
                    delays.reset();
                }
                Outcome::Again(why) => {
                    self.stats.again(why == Some(Again::NotVisible));
                    if why == Some(Again::TableChanged) {
                        described = match describe(catalog, publication, configured).await? {
                            Ok(described) => described,
                            Err(refusal) => return Ok(Err(refusal)),
                        };
                    }
                    tokio::time::sleep(delays.next_delay()).await;
                }
            }
        }
        if let Some(stored) = unstored.take() {
            stored.await.map_err(|_| Failure::HookGone)?;
        }
        Ok(Ok(()))
    }

    /// Makes the chunk in doubt one of an attempt never used before, and stores that before any row of it is.
    async fn start(&mut self, catalog: &Catalog, table: &ChunkedTable, name: &str) -> Result<Cursor, Failure> {
        let cursor = match self.cursors.get(name) {
            // A chunk may be handed over and nobody here know it, so its number is not used again either.
            Some(known) => Cursor { chunk: known.chunk + 1, attempt: known.attempt + 1, at_ms: now_ms(), ..known.clone() },
            None => {
                let bound = bound(catalog, table).await?;
                Cursor {
                    job: self.name.clone(),
                    table: table.name(),
                    epoch: self.epoch,
                    chunk: 0,
                    attempt: 0,
                    after: None,
                    done: bound.is_none(),
                    bound,
                    rows: 0,
                    started_at_ms: now_ms(),
                    at_ms: now_ms(),
                }
            }
        };
        self.store(Record::Cursor(cursor.clone())).await?;
        self.cursors.insert(name.to_owned(), cursor.clone());
        Ok(cursor)
    }

    /// Reads one chunk between two watermarks and waits for what comes of it.
    async fn chunk(
        &mut self,
        catalog: &Catalog,
        table: &ChunkedTable,
        cursor: &Cursor,
        pace: &mut Pace,
        unstored: &mut Option<oneshot::Receiver<()>>,
    ) -> Result<Outcome, Failure> {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let (low, high) = (format!("{nonce}/low"), format!("{nonce}/high"));
        let opening = Opening { oid: table.oid, table: table.schema.clone(), low: low.clone(), high: high.clone() };
        let (verdict, answer) = oneshot::channel();
        self.send(Step::Open { opening, verdict }).await?;
        catalog.emit_message(PREFIX, &low).await?;
        let began = Instant::now();
        let Some(bound) = &cursor.bound else { return Err(Failure::Source(CaptureError::Unavailable("a cursor without a bound".into()))) };
        let read = match read(catalog, table, cursor.after.as_ref(), bound, pace.rows()).await {
            Ok(read) => read,
            Err(unread) => {
                self.send(Step::Abandon).await?;
                return match unread {
                    Unread::TooSlow => {
                        pace.too_large();
                        Ok(Outcome::Again(None))
                    }
                    Unread::Failed(failure) => Err(failure),
                };
            }
        };
        pace.read(read.chunk.rows.len(), read.bytes, began.elapsed());
        let after = match read.chunk.rows.last() {
            Some(row) => Some(table.key_of(row).ok_or_else(|| Failure::Table {
                code: "backfill.null_in_key",
                message: "a key column holds NULL; a key's columns have to be NOT NULL".to_owned(),
            })?),
            None => cursor.after.clone(),
        };
        let next = Cursor { chunk: cursor.chunk + 1, after, done: read.last, at_ms: now_ms(), ..cursor.clone() };
        if let Some(stored) = unstored.take() {
            stored.await.map_err(|_| Failure::HookGone)?;
        }
        let (stored, is_stored) = oneshot::channel();
        self.send(Step::Chunk { chunk: read.chunk, cursor: next.clone(), stored }).await?;
        catalog.emit_message(PREFIX, &high).await?;
        match answer.await.map_err(|_| Failure::HookGone)? {
            Verdict::HandedOver { rows } => {
                *unstored = Some(is_stored);
                // The hook counts what it hands over in the stored cursor; this one goes on from there.
                Ok(Outcome::Next(Cursor { rows: next.rows + rows, ..next }))
            }
            Verdict::Again(why) => {
                if why == Again::TooManyKeys {
                    pace.too_large();
                }
                Ok(Outcome::Again(Some(why)))
            }
        }
    }

    async fn send(&self, step: Step) -> Result<(), Failure> {
        self.steps.send(step).await.map_err(|_| Failure::HookGone)
    }

    async fn store(&self, record: Record) -> Result<(), Failure> {
        let (stored, is_stored) = oneshot::channel();
        self.send(Step::Record { record, stored }).await?;
        is_stored.await.map_err(|_| Failure::HookGone)
    }
}

enum Outcome {
    /// The chunk is on its way; this is the cursor after it.
    Next(Cursor),
    /// It has to be read again.
    Again(Option<Again>),
}

async fn describe(
    catalog: &Catalog,
    publication: &PublicationFacts,
    configured: &config::SourceTable,
) -> Result<Result<(TableFacts, ChunkedTable), Refusal>, Failure> {
    let facts = catalog.table(&configured.schema, &configured.table).await?;
    let published = publication.table(&configured.schema, &configured.table);
    let (Some(facts), Some(published)) = (facts, published) else {
        return Err(Failure::Table {
            code: "backfill.table_missing",
            message: "the table does not exist or the publication does not hold it".to_owned(),
        });
    };
    let table = ChunkedTable::new(&facts, published, configured.partition_by.as_deref())?;
    Ok(table.map(|table| (facts, table)))
}

/// The greatest key now; `None` when the table is empty.
async fn bound(catalog: &Catalog, table: &ChunkedTable) -> Result<Option<KeyTexts>, Failure> {
    let sql = table.bound();
    let messages = catalog.client().simple_query(&sql).await.map_err(|e| failure(&e))?;
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            let texts = (0..row.len()).map(|i| text(row, i)).collect::<Result<Option<Vec<String>>, Failure>>()?;
            return Ok(texts.map(KeyTexts));
        }
    }
    Ok(None)
}

struct Read {
    chunk: Chunk,
    bytes: usize,
    /// Whether there is nothing behind it.
    last: bool,
}

/// Reads a chunk in a transaction of its own.
async fn read(catalog: &Catalog, table: &ChunkedTable, after: Option<&KeyTexts>, bound: &KeyTexts, limit: u32) -> Result<Read, Unread> {
    let result = read_rows(catalog, &table.chunk(after, bound, limit), limit).await;
    if result.is_err() {
        // A connection that cannot even roll back fails in whatever comes next.
        let _ = catalog.client().batch_execute("ROLLBACK").await;
    }
    result
}

async fn read_rows(catalog: &Catalog, sql: &str, limit: u32) -> Result<Read, Unread> {
    let mut messages = pin!(catalog.client().simple_query_raw(sql).await.map_err(|e| unread(&e))?);
    let (mut snapshot, mut rows, mut bytes, mut count) = (None, Vec::<Row>::new(), 0, 0u32);
    while let Some(message) = messages.try_next().await.map_err(|e| unread(&e))? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        count += 1;
        if snapshot.is_none() {
            let printed = text(&row, 0).map_err(Unread::Failed)?.as_deref().and_then(Snapshot::parse);
            snapshot = Some(printed.ok_or_else(|| {
                Unread::Failed(Failure::Source(CaptureError::Unavailable("the server printed a snapshot that cannot be read".to_owned())))
            })?);
        }
        // The rest of a chunk with huge rows is dropped here and read with the next.
        if bytes <= Pace::BYTES_MAX {
            let values = (1..row.len()).map(|i| text(&row, i)).collect::<Result<Row, Failure>>().map_err(Unread::Failed)?;
            bytes += values.iter().flatten().map(String::len).sum::<usize>();
            rows.push(values);
        }
    }
    let last = count < limit && rows.len() == count as usize;
    Ok(Read { chunk: Chunk { rows, snapshot }, bytes, last })
}

fn text(row: &tokio_postgres::SimpleQueryRow, index: usize) -> Result<Option<String>, Failure> {
    row.try_get(index)
        .map(|t| t.map(str::to_owned))
        .map_err(|_| Failure::Table { code: "backfill.not_utf8", message: "a value is no valid UTF-8".to_owned() })
}

fn unread(error: &tokio_postgres::Error) -> Unread {
    match error.code() {
        Some(code) if [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code) => Unread::TooSlow,
        _ => Unread::Failed(failure(error)),
    }
}

/// What an error of the server means. Its text may quote a key, so only its code is kept.
fn failure(error: &tokio_postgres::Error) -> Failure {
    let Some(code) = error.code() else {
        return Failure::Source(CaptureError::Unavailable("the connection for reading was lost".to_owned()));
    };
    let (code, message) = match code.code() {
        // Connection, resources, shutdown, serialization: comes right by itself.
        c if ["08", "53", "57", "40", "58"].iter().any(|class| c.starts_with(class)) => {
            return Failure::Source(CaptureError::Unavailable(format!("the server answered with SQLSTATE {c}")));
        }
        "42501" => (
            "backfill.no_permission",
            "the reading role lacks SELECT on it, or a row security policy would hide rows (SQLSTATE 42501); \
             grant SELECT on the published columns"
                .to_owned(),
        ),
        c => ("backfill.query_failed", format!("the server refused to read it (SQLSTATE {c})")),
    };
    Failure::Table { code, message }
}

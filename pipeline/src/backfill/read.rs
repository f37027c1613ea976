//! One reading session and its statements: connects, reads chunks, tells what an error means.
//!
//! Never holds a snapshot longer than one statement and never writes, but for the watermarks.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use tillstream_schemas::Lsn;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::hook::PREFIX;
use super::pace::Pace;
use super::sql::{ChunkedTable, Source};
use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, Snapshot};
use crate::capture::read_rows::ReadRows;
use crate::config;
use crate::control::KeyTexts;

/// Settings of a reading session, beside the formats that every session pins. Watermarks need not wait for a standby; a
/// policy that would hide rows has to fail loudly; nothing of ours may hold the point of sale up; and one reader is one
/// process of the server, not several.
const SESSION: &str = "SET synchronous_commit = local; SET row_security = off; SET jit = off; SET max_parallel_workers_per_gather = 0; \
                       SET statement_timeout = '30s'; SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '30s'";

/// A chunk is walked along the key's index: with wrong estimates the planner would rather sort the whole table for each
/// chunk. With a condition of the user's the planner decides, since another index may serve it.
const WALK: &str = "SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off";

/// Whether the role may write watermarks. By name: the function has one more parameter since version 17.
const MAY_MARK: &str = "SELECT coalesce(bool_or(has_function_privilege(oid, 'EXECUTE')), false) FROM pg_proc \
                        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_logical_emit_message' \
                        AND proargtypes[1] = 'text'::regtype";

/// What ends the reading of a table or a job.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hook is gone, and with it the session.
    HookGone,
    /// The connection is of no use: connect again.
    Source(CaptureError),
    /// This table cannot be read as things are; others can.
    Table {
        /// Stable code.
        code: &'static str,
        /// What is wrong and what helps; no value.
        message: String,
    },
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
pub(super) enum Unread {
    /// It took too long or had to wait for a lock.
    TooSlow,
    /// Something else.
    Failed(Failure),
}

/// Rows as a statement found them.
pub(super) struct Read {
    /// The rows.
    pub(super) rows: ReadRows,
    /// Rows that were asked for and are not there; only their keys hold values.
    pub(super) gone: ReadRows,
    /// What the statement saw; `None` when it found no row.
    pub(super) snapshot: Option<Snapshot>,
    /// Whether there is nothing behind them.
    pub(super) last: bool,
}

/// A reading session.
pub(super) struct Session {
    pub(super) catalog: Catalog,
    /// Whether it may write watermarks; otherwise windows are bounded by positions.
    pub(super) messages: bool,
}

impl Session {
    /// Connects as the role that reads.
    pub(super) async fn open(source: &config::Source, pipeline: &str) -> Result<Session, Failure> {
        let catalog = Catalog::connect_backfill(source, pipeline).await?;
        catalog.client().batch_execute(SESSION).await.map_err(|e| failure(&e))?;
        let messages = !catalog.server().in_recovery
            && catalog.client().query_one(MAY_MARK, &[]).await.map_err(|e| failure(&e))?.try_get(0).map_err(|e| failure(&e))?;
        Ok(Session { catalog, messages })
    }

    /// From here on chunks are walked along their key's index.
    pub(super) async fn walk(&self) -> Result<(), Failure> {
        self.catalog.client().batch_execute(WALK).await.map_err(|e| failure(&e))
    }

    /// Writes a watermark.
    pub(super) async fn mark(&self, content: &str) -> Result<(), Failure> {
        Ok(self.catalog.emit_message(PREFIX, content).await?)
    }

    /// A transaction number above that of everything that has committed; `None` on a standby, which has none to give.
    pub(super) async fn horizon(&self) -> Result<Option<u32>, Failure> {
        if self.catalog.server().in_recovery {
            return Ok(None);
        }
        let text = self.one("SELECT pg_current_xact_id()::text").await?.unwrap_or_default();
        // The stream names transactions by their low 32 bits.
        Ok(text.parse::<u64>().ok().map(|xid| u32::try_from(xid & u64::from(u32::MAX)).unwrap_or(0)))
    }

    /// What the stream has to pass so that it has passed everything this session has seen so far.
    pub(super) async fn seen_upto(&self) -> Result<Lsn, Failure> {
        let sql = if self.catalog.server().in_recovery {
            "SELECT pg_last_wal_replay_lsn()::text"
        } else {
            "SELECT pg_current_wal_insert_lsn()::text"
        };
        let text = self.one(sql).await?.unwrap_or_default();
        text.parse().map_err(|_| Failure::Source(CaptureError::Unavailable("the server reports no WAL position".to_owned())))
    }

    /// The first value of a statement's only row.
    pub(super) async fn one(&self, sql: &str) -> Result<Option<String>, Failure> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// A statement's rows as texts.
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let messages = self.catalog.client().simple_query(sql).await.map_err(|e| failure(&e))?;
        let mut rows = Vec::new();
        for message in &messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push(
                    (0..row.len())
                        .map(|i| row.try_get(i).map(|t| t.map(str::to_owned)).map_err(|_| not_utf8()))
                        .collect::<Result<_, _>>()?,
                );
            }
        }
        Ok(rows)
    }

    /// A statement's rows as keys.
    pub(super) async fn keys(&self, sql: &str) -> Result<Vec<KeyTexts>, Failure> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().collect::<Option<Vec<String>>>().map(KeyTexts)).collect())
    }

    /// Reads a chunk in a transaction of its own.
    pub(super) async fn chunk(
        &self,
        table: &ChunkedTable,
        part: &Source,
        after: Option<&KeyTexts>,
        bound: &KeyTexts,
        limit: u32,
    ) -> Result<Read, Unread> {
        let columns = table.schema.columns.len();
        let query = table.chunk(part, after, bound, limit);
        let mut read = self.in_transaction(self.copy(part, &query), columns, false).await?;
        read.last = read.last && read.rows.len() < limit as usize;
        Ok(read)
    }

    /// Reads rows by their keys in a transaction of its own.
    pub(super) async fn keyed(&self, table: &ChunkedTable, keys: &[KeyTexts]) -> Result<Read, Unread> {
        let (whole, query) = (table.whole(), table.keyed(keys));
        self.in_transaction(self.copy(&whole, &query), table.schema.columns.len(), true).await
    }

    async fn copy(
        &self,
        part: &Source,
        query: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, tokio_postgres::Error>>, tokio_postgres::Error> {
        self.catalog.client().batch_execute(&ChunkedTable::begin(part)).await?;
        self.catalog.client().copy_out(&*format!("COPY ({query}) TO STDOUT")).await
    }

    async fn in_transaction<S>(
        &self,
        copied: impl Future<Output = Result<S, tokio_postgres::Error>>,
        columns: usize,
        keyed: bool,
    ) -> Result<Read, Unread>
    where
        S: Stream<Item = Result<Bytes, tokio_postgres::Error>>,
    {
        let result = match copied.await {
            Ok(lines) => collect(lines, columns, keyed).await,
            Err(error) => Err(unread(&error)),
        };
        match result {
            Ok(read) => {
                self.catalog.client().batch_execute("COMMIT").await.map_err(|e| unread(&e))?;
                Ok(read)
            }
            Err(error) => {
                // A connection that cannot even roll back fails in whatever comes next.
                let _ = self.catalog.client().batch_execute("ROLLBACK").await;
                Err(error)
            }
        }
    }
}

/// Takes the lines of a COPY apart: snapshot, with keyed rows whether the row is there, then the columns.
async fn collect(lines: impl Stream<Item = Result<Bytes, tokio_postgres::Error>>, columns: usize, keyed: bool) -> Result<Read, Unread> {
    let mut lines = pin!(lines);
    let mut read = Read { rows: ReadRows::new(columns), gone: ReadRows::new(columns), snapshot: None, last: true };
    while let Some(line) = lines.try_next().await.map_err(|e| unread(&e))? {
        // The rest of a chunk with huge rows is dropped here and read with the next.
        if read.rows.bytes() > Pace::BYTES_MAX {
            read.last = false;
            continue;
        }
        let malformed = || Unread::Failed(not_utf8());
        let tab = memchr::memchr(b'\t', &line).ok_or_else(malformed)?;
        if read.snapshot.is_none() {
            let printed = std::str::from_utf8(&line[..tab]).ok().and_then(Snapshot::parse);
            let unreadable = || {
                Unread::Failed(Failure::Source(CaptureError::Unavailable("the server printed a snapshot that cannot be read".to_owned())))
            };
            read.snapshot = Some(printed.ok_or_else(unreadable)?);
        }
        let mut values = &line[tab + 1..];
        let mut rows = &mut read.rows;
        if keyed {
            if values.first() == Some(&b'f') {
                rows = &mut read.gone;
            }
            values = values.get(2..).ok_or_else(malformed)?;
        }
        rows.push_copied(values).map_err(|_| malformed())?;
    }
    Ok(read)
}

/// On a standby the list of running transactions is not printed: whatever is not over for all is taken as running.
pub(super) fn of_standby(snapshot: Snapshot) -> Snapshot {
    Snapshot { xmin: snapshot.xmin, xmax: snapshot.xmin, in_progress: Vec::new() }
}

fn not_utf8() -> Failure {
    Failure::Table { code: "backfill.not_utf8", message: "a value is no valid UTF-8".to_owned() }
}

fn unread(error: &tokio_postgres::Error) -> Unread {
    match error.code() {
        Some(code) if [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code) => Unread::TooSlow,
        _ => Unread::Failed(failure(error)),
    }
}

/// What an error of the server means. Its text may quote a key, so only its code is kept.
pub(super) fn failure(error: &tokio_postgres::Error) -> Failure {
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

/// A chunk's rows and those that are gone behind them, as one.
pub(super) fn joined(read: Read, columns: usize) -> (Arc<ReadRows>, usize, Option<Snapshot>) {
    let Read { mut rows, gone, snapshot, .. } = read;
    let gone_from = rows.len();
    for row in 0..gone.len() {
        rows.push((0..columns).map(|column| gone.get(row, column)));
    }
    (Arc::new(rows), gone_from, snapshot)
}

//! What is only looked at: one row's life, the newest events (names, no values), the audit, an error code.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tillstream_schemas::{Event, Kind};

use super::{Admin, bad_request, query, reply};
use crate::delivery::filter::{Filter, FilterError, Verdict};
use crate::delivery::place::{Place, is_behind};
use crate::delivery::replay::RowKey;
use crate::journal::{From, Journal, Log, Offset};
use crate::ops::codes;
use crate::ops::desk::in_time;
use crate::ops::failure::Failure;
use crate::ops::story;

/// Reading for somebody who looks ends after this; delivery reads the same broker.
const READ_WITHIN: Duration = Duration::from_secs(25);
/// Events that are shown at once.
const EVENTS_MAX: usize = 100;
/// Columns of a row that are named.
const COLUMNS_MAX: usize = 40;

/// A row to look for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) key: String,
    pub(crate) since: String,
}

/// Which events to show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tail {
    pub(crate) table: Option<String>,
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limit {
    limit: Option<usize>,
}

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/why", get(why))
        .route("/api/tail", get(tail))
        .route("/api/audit", get(audit))
        .route("/api/codes/{code}", get(code))
}

impl Admin {
    /// A row's life; reads the journal from a place on.
    ///
    /// # Errors
    /// The table is not captured, the place is none, reading takes too long, and those of the journal.
    pub(crate) async fn why(&self, row: &Row) -> Result<Value, Failure> {
        if row.table.trim().is_empty() || row.key.trim().is_empty() {
            return Err(bad_request("name `table` and `key`"));
        }
        let since = if row.since.trim().is_empty() { "first" } else { row.since.trim() };
        let since = since.parse::<Place>().map_err(bad_request)?;
        let file = self.pipeline().await?;
        story::is_captured(&file.pipeline, row.table.trim())?;
        let state = self.state()?;
        let _alone = self.alone()?;
        let wanted = RowKey { table: row.table.trim().to_owned(), key: row.key.trim().to_owned() };
        let told = story::of(self.desk.journal().as_ref(), &state, &file.pipeline.connectors, &wanted, since);
        let late = || Failure::new("admin.busy", format!("the journal was not read to its end within {} s", READ_WITHIN.as_secs()));
        let told = tokio::time::timeout(READ_WITHIN, told).await.map_err(|_| late())??;
        Ok(json!({"table": wanted.table, "events": told}))
    }

    /// The newest events of each partition: where from and of what, names of columns and no value.
    ///
    /// # Errors
    /// Those of the journal.
    pub(crate) async fn tail(&self, tail: &Tail) -> Result<Value, Failure> {
        let limit = tail.limit.unwrap_or(50).clamp(1, EVENTS_MAX);
        let journal = self.desk.journal();
        let table = tail.table.as_deref().map(str::trim).filter(|table| !table.is_empty());
        let (mut events, mut read) = (Vec::new(), 0);
        for partition in 0..journal.partitions() {
            let newest = in_time(newest(journal.as_ref(), partition, limit)).await??;
            read += newest.len();
            for (offset, stored_at_ms, body) in newest {
                let Ok(event) = Event::parse(body) else { continue };
                let of = match (event.schema(), event.table()) {
                    (Some(schema), Some(table)) => format!("{schema}.{table}"),
                    _ => String::new(),
                };
                if table.is_some_and(|table| table != of) {
                    continue;
                }
                let names = |fields: Vec<(&str, &str)>| fields.iter().take(COLUMNS_MAX).map(|(name, _)| json!(name)).collect::<Vec<_>>();
                events.push(json!({
                    "id": event.id(), "op": event.op().as_str(), "table": of, "committed_at": event.committed_at(), "partition": partition,
                    "offset": offset.0, "stored_at_ms": stored_at_ms, "key": names(event.key().collect()), "columns": names(event.after().collect()),
                }));
            }
        }
        events.sort_by_key(|event| std::cmp::Reverse((event["stored_at_ms"].as_i64(), event["offset"].as_u64())));
        events.truncate(limit);
        Ok(json!({"events": events, "shown": events.len(), "read": read}))
    }

    /// The last decisions, newest first.
    ///
    /// # Errors
    /// The control journal has not been read.
    pub(crate) fn audit(&self, limit: usize) -> Result<Value, Failure> {
        let state = self.state()?;
        let records: Vec<_> = state.audit().collect();
        let shown: Vec<Value> = records.iter().rev().take(limit).map(|audit| json!(audit)).collect();
        Ok(json!({"audit": shown, "kept": records.len()}))
    }
}

/// The newest events of a partition, oldest first.
async fn newest(journal: &dyn Journal, partition: u16, limit: usize) -> Result<Vec<(Offset, i64, Bytes)>, Failure> {
    let log = Log::Data(partition);
    let Some(bounds) = journal.bounds(log).await? else { return Ok(Vec::new()) };
    // Ends of transactions and markers stand between the events.
    let from = From::Offset(Offset(bounds.last.0.saturating_sub(3 * limit as u64).max(bounds.first.0)));
    if is_behind(journal, partition, from, bounds.last).await? {
        return Ok(Vec::new());
    }
    let mut reader = journal.reader(log, from).await?;
    let mut filter = Filter::new();
    let mut found = std::collections::VecDeque::new();
    loop {
        let chunk = reader.next().await?;
        filter
            .chunk(&chunk, |offset, verdict| {
                if let Verdict::Pass(passed) = verdict
                    && matches!(passed.header.kind, Kind::Event | Kind::Read)
                {
                    if found.len() == limit {
                        found.pop_front();
                    }
                    found.push_back((offset, chunk.stored_at_ms, Bytes::copy_from_slice(passed.body)));
                }
                Ok::<(), FilterError>(())
            })
            .map_err(|error| Failure::new(error.code(), format!("partition {partition}: {error}")))?;
        if chunk.next_offset() > bounds.last {
            return Ok(found.into());
        }
    }
}

async fn why(State(admin): State<Arc<Admin>>, row: Result<Query<Row>, QueryRejection>) -> Response {
    let told = async { admin.why(&query(row)?).await };
    reply(told.await)
}

async fn tail(State(admin): State<Arc<Admin>>, tail: Result<Query<Tail>, QueryRejection>) -> Response {
    let shown = async { admin.tail(&query(tail)?).await };
    reply(shown.await)
}

async fn audit(State(admin): State<Arc<Admin>>, limit: Result<Query<Limit>, QueryRejection>) -> Response {
    reply(query(limit).and_then(|limit| admin.audit(limit.limit.unwrap_or(100))))
}

async fn code(Path(code): Path<String>) -> Response {
    let unknown = || Failure::new("usage.arguments", format!("there is no code `{}`", code.escape_debug().take(80).collect::<String>()));
    let found = codes::find(&code).ok_or_else(unknown);
    reply(found.map(|e| json!({"code": e.code, "class": e.class.as_str(), "meaning": e.meaning, "impact": e.impact, "fix": e.fix})))
}

//! One lane's writes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use tillstream_schemas::{Event, Op};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::config::SqlConfig;
use super::connect::Session;
use super::convert;
use super::errors::{Failure, classify, failure};
use super::fold::{Cell, Change, Row, Step, Translated, fold};
use super::layout::{Column, Inspection, Layout, inspect};
use super::statements;
use crate::sink::{Batch, Class, Item, LaneId, Mark, OnDelete, Outcome, Reason, Retry, Sink, SinkError};

/// What a call may take beyond its statements: connecting and looking tables up.
const SLACK: std::time::Duration = std::time::Duration::from_secs(10);

/// One lane's connection to a PostgreSQL database.
pub(super) struct SqlSink {
    config: Arc<SqlConfig>,
    lane: LaneId,
    on_delete: OnDelete,
    /// (schema, table) of the source to the index of its layout.
    tables: HashMap<(String, String), usize>,
    open: Option<Open>,
}

/// A session with what was looked up in it.
struct Open {
    session: Session,
    layouts: Vec<Layout>,
    prepared: HashMap<String, Statement>,
}

/// Items that are translated, by their index in the batch.
type Items<'a> = [(usize, Translated<'a>)];

impl SqlSink {
    pub(super) fn new(config: Arc<SqlConfig>, lane: LaneId, on_delete: OnDelete) -> SqlSink {
        let tables = config.tables.keys().cloned().zip(0..).collect();
        SqlSink { config, lane, on_delete, tables, open: None }
    }

    /// Connects and looks the target up. `Err` when something is missing that is not ours to create.
    async fn look(&self) -> Result<(Session, Inspection), SinkError> {
        let name = format!("tillstream/{}", self.lane.connector);
        let session = self.config.address.connect(&name, self.config.timeout).await?;
        let found = inspect(&session.client, &self.config, self.on_delete).await?;
        if found.problems.is_empty() && (found.statements.is_empty() || self.config.create) {
            return Ok((session, found));
        }
        Err(not_ready(&found))
    }

    /// A session whose target has everything; adds what is missing of our own where the configuration allows it.
    async fn open(&mut self) -> Result<&mut Open, SinkError> {
        if self.open.as_ref().is_some_and(|o| o.session.client.is_closed()) {
            self.open = None;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let (session, mut found) = self.look().await?;
                if !found.statements.is_empty() {
                    // Lanes start together: one of them creates, the others wait and find it done.
                    let lock = "BEGIN; SELECT pg_advisory_xact_lock(hashtext('tillstream_mark'))";
                    session.client.batch_execute(lock).await.map_err(|e| classify(&e))?;
                    found = inspect(&session.client, &self.config, self.on_delete).await?;
                    let statements = format!("{} COMMIT", found.statements.join(" "));
                    session.client.batch_execute(&statements).await.map_err(|e| classify(&e))?;
                    found = inspect(&session.client, &self.config, self.on_delete).await?;
                }
                Open { session, layouts: found.layouts, prepared: HashMap::new() }
            }
        };
        Ok(self.open.insert(open))
    }

    /// Whatever goes wrong as a whole, or does not end in time, costs the session.
    async fn guarded<T>(&mut self, call: impl AsyncFnOnce(&mut Self) -> Result<T, SinkError>) -> Result<T, SinkError> {
        let limit = self.config.timeout + SLACK;
        let result = match tokio::time::timeout(limit, call(self)).await {
            Ok(result) => result,
            Err(_) => Err(SinkError {
                code: "sql.timeout".into(),
                message: format!("no answer within {limit:?}"),
                class: Class::Transient,
                after: None,
            }),
        };
        if result.is_err() {
            self.open = None;
        }
        result
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let (lane, on_delete, tables) = (self.lane.clone(), self.on_delete, self.tables.clone());
        let open = self.open().await?;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; batch.items.len()];
        let mut items = Vec::with_capacity(batch.items.len());
        for (n, item) in batch.items.iter().enumerate() {
            match translate(item, &tables, &open.layouts)? {
                Ok(translated) => items.push((n, translated)),
                Err(reason) => outcomes[n] = Some(Outcome::Rejected(reason)),
            }
        }
        open.session.client.batch_execute("BEGIN").await.map_err(|e| classify(&e))?;
        match open.write(&items, on_delete).await {
            Ok(written) => book(&items, &written, &mut outcomes),
            Err(Failure::Whole(error)) => return Err(error),
            Err(Failure::Row(_) | Failure::Conflict(_)) => {
                open.session.client.batch_execute("ROLLBACK; BEGIN").await.map_err(|e| classify(&e))?;
                open.isolate(&items, on_delete, &mut outcomes).await?;
            }
        }
        if outcomes.iter().flatten().all(|o| matches!(o, Outcome::Delivered | Outcome::Absorbed)) {
            open.store_mark(&lane, &batch.mark).await?;
        }
        open.session.client.batch_execute("COMMIT").await.map_err(|e| classify(&e))?;
        Ok(outcomes.into_iter().map(|o| o.expect("every item was written, refused or put off")).collect())
    }
}

fn not_ready(found: &Inspection) -> SinkError {
    let mut said = found.problems.clone();
    if !found.statements.is_empty() {
        said.push(format!("run in the target, or set create: true: {}", found.statements.join(" ")));
    }
    SinkError { code: "sql.target_not_ready".into(), message: said.join("; "), class: Class::Definite, after: None }
}

/// Every item has an outcome: those in `written` were applied, the others were there already.
fn book(items: &Items<'_>, written: &HashSet<usize>, outcomes: &mut [Option<Outcome>]) {
    for (n, _) in items {
        outcomes[*n] = Some(if written.contains(n) { Outcome::Delivered } else { Outcome::Absorbed });
    }
}

impl Open {
    /// Writes items within the open transaction and answers the indexes of those that had an effect.
    async fn write(&mut self, items: &Items<'_>, on_delete: OnDelete) -> Result<HashSet<usize>, Failure> {
        let mut written = HashSet::new();
        for step in fold(items) {
            match step {
                Step::Truncate { table, version, member } => {
                    let sql = statements::truncate(&self.layouts[table], on_delete == OnDelete::Tombstone);
                    let statement = self.prepare(sql).await?;
                    self.session.client.execute(&statement, &[&version.version_text()]).await.map_err(|e| failure(&e))?;
                    written.insert(member);
                }
                Step::Rows { table, present, rows } => {
                    for ordinal in self.write_rows(table, present.as_deref(), &rows, on_delete).await? {
                        let row = usize::try_from(ordinal - 1).ok().and_then(|n| rows.get(n));
                        written.extend(row.into_iter().flat_map(|r| &r.members));
                    }
                }
            }
        }
        Ok(written)
    }

    async fn write_rows(
        &mut self,
        table: usize,
        present: Option<&[bool]>,
        rows: &[Row<'_>],
        on_delete: OnDelete,
    ) -> Result<Vec<i64>, Failure> {
        let layout = &self.layouts[table];
        let sql = match (present, on_delete) {
            (Some(present), _) if present.iter().all(|p| *p) => statements::upsert(layout),
            (Some(present), _) => statements::partial(layout, present),
            (None, OnDelete::Delete) => statements::delete(layout),
            (None, OnDelete::Tombstone | OnDelete::Ignore) => statements::tombstone(layout),
        };
        let mut arrays: Vec<Vec<Option<&str>>> = Vec::new();
        for n in 0..layout.keys.len() {
            arrays.push(rows.iter().map(|r| r.key.get(n).map(|k| &**k)).collect());
        }
        for (n, _) in present.into_iter().flatten().enumerate().filter(|(_, p)| **p) {
            arrays.push(rows.iter().map(|r| value_of(r, n)).collect());
        }
        let versions: Vec<String> = rows.iter().map(|r| r.version.version_text()).collect();
        arrays.push(versions.iter().map(|v| Some(v.as_str())).collect());
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|a| a as &(dyn ToSql + Sync)).collect();
        let statement = self.prepare(sql).await?;
        let rows = self.session.client.query(&statement, &parameters).await.map_err(|e| failure(&e))?;
        rows.iter().map(|r| r.try_get(0)).collect::<Result<_, _>>().map_err(|e| failure(&e))
    }

    async fn prepare(&mut self, sql: String) -> Result<Statement, Failure> {
        if let Some(statement) = self.prepared.get(&sql) {
            return Ok(statement.clone());
        }
        let statement = self.session.client.prepare(&sql).await.map_err(|e| failure(&e))?;
        // Bounded by tables times the sets of columns that are sent; a table of n large columns has few of these.
        self.prepared.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Halves the items, in savepoints, until each row that is refused stands alone; all others are written.
    async fn isolate(&mut self, items: &Items<'_>, on_delete: OnDelete, outcomes: &mut [Option<Outcome>]) -> Result<(), SinkError> {
        let mut ranges = vec![items];
        // Rows whose earlier change has to wait: a later one would overtake what it left alone.
        let mut waiting: HashSet<(usize, Vec<Cow<'_, str>>)> = HashSet::new();
        while let Some(range) = ranges.pop() {
            let (attempted, put_off): (Vec<_>, Vec<_>) =
                range.iter().cloned().partition(|(_, t)| row_of(t).is_none_or(|r| !waiting.contains(&r)));
            for (n, _) in put_off {
                outcomes[n] = Some(wait(Reason { code: "sql.behind".into(), message: "an earlier change of the row waits".into() }));
            }
            if attempted.is_empty() {
                continue;
            }
            self.session.client.batch_execute("SAVEPOINT half").await.map_err(|e| classify(&e))?;
            let failed = match self.write(&attempted, on_delete).await {
                Ok(written) => {
                    book(&attempted, &written, outcomes);
                    self.session.client.batch_execute("RELEASE half").await.map_err(|e| classify(&e))?;
                    continue;
                }
                Err(Failure::Whole(error)) => return Err(error),
                Err(failed) => failed,
            };
            self.session.client.batch_execute("ROLLBACK TO half; RELEASE half").await.map_err(|e| classify(&e))?;
            if range.len() > 1 {
                let (left, right) = range.split_at(range.len() / 2);
                ranges.extend([right, left]);
                continue;
            }
            let [(n, translated)] = range else { continue };
            outcomes[*n] = Some(match failed {
                Failure::Conflict(reason) => {
                    waiting.extend(row_of(translated));
                    wait(reason)
                }
                Failure::Row(reason) => Outcome::Rejected(reason),
                Failure::Whole(error) => return Err(error),
            });
        }
        Ok(())
    }

    async fn store_mark(&mut self, lane: &LaneId, mark: &Mark) -> Result<(), SinkError> {
        let (partition, number) = (i32::from(lane.partition), i32::from(lane.lane));
        let statement = self.prepare(statements::STORE_MARK.to_owned()).await.map_err(whole)?;
        let stored =
            self.session.client.execute(&statement, &[&lane.connector, &partition, &number, &mark.0]).await.map_err(|e| classify(&e))?;
        if stored == 0 {
            return Err(SinkError {
                code: "sql.taken_over".into(),
                message: "another process delivers this connector: it has stored a later mark".into(),
                class: Class::Definite,
                after: None,
            });
        }
        Ok(())
    }
}

fn value_of<'r>(row: &'r Row<'_>, column: usize) -> Option<&'r str> {
    match &row.change {
        Change::Write(cells) => match cells.get(column) {
            Some(Cell::Value(value)) => value.as_deref(),
            Some(Cell::Unchanged) | None => None,
        },
        Change::Delete => None,
    }
}

fn whole(failure: Failure) -> SinkError {
    match failure {
        Failure::Whole(error) => error,
        Failure::Row(reason) | Failure::Conflict(reason) => {
            SinkError { code: reason.code, message: reason.message, class: Class::Definite, after: None }
        }
    }
}

fn wait(reason: Reason) -> Outcome {
    Outcome::Retry(Retry { reason, after: None })
}

fn row_of<'a>(translated: &Translated<'a>) -> Option<(usize, Vec<Cow<'a, str>>)> {
    match translated {
        Translated::Row { table, key, .. } => Some((*table, key.clone())),
        Translated::Truncate { .. } => None,
    }
}

/// An event as a row of its target. The outer error stops the connector, the inner one refuses the event.
pub(super) fn translate<'a>(
    item: &'a Item,
    tables: &HashMap<(String, String), usize>,
    layouts: &[Layout],
) -> Result<Result<Translated<'a>, Reason>, SinkError> {
    if let Some(Err(reason)) = &item.mapped {
        return Ok(Err(reason.clone()));
    }
    let event: &Event = &item.event;
    let (Some(schema), Some(table)) = (event.schema(), event.table()) else {
        return Ok(Err(Reason { code: "sql.no_table".into(), message: "a logical message belongs to no table".into() }));
    };
    let definite = |code: &str, message: String| SinkError { code: code.into(), message, class: Class::Definite, after: None };
    let Some(table) = tables.get(&(schema.to_owned(), table.to_owned())).copied() else {
        return Err(definite("sql.table_not_mapped", format!("the block lists no table {schema}.{table}")));
    };
    let (layout, version) = (&layouts[table], item.version);
    if event.op() == Op::Truncate {
        return Ok(Ok(Translated::Truncate { table, version }));
    }
    let value = |column: &Column, raw: &'a str| {
        convert::text(raw, column.form).map_err(|why| Reason {
            code: "sql.value".into(),
            message: format!("{schema}.{}, column {}: {why}", layout.target, column.name),
        })
    };
    let mut key = Vec::with_capacity(layout.keys.len());
    for column in &layout.keys {
        let raw = event.column(&column.name);
        let Some(raw) = raw else {
            return Err(definite(
                "sql.column_missing",
                format!("{schema}.{}: events do not have the key column {}", layout.target, column.name),
            ));
        };
        match value(column, raw) {
            Ok(Some(text)) => key.push(text),
            Ok(None) => {
                return Ok(Err(Reason { code: "sql.key_null".into(), message: format!("key column {} is null", column.name) }));
            }
            Err(reason) => return Ok(Err(reason)),
        }
    }
    if event.op() == Op::Delete {
        return Ok(Ok(Translated::Row { table, key, change: Change::Delete, version }));
    }
    let mut cells = Vec::with_capacity(layout.columns.len());
    for column in &layout.columns {
        match event.column(&column.name) {
            Some(raw) => match value(column, raw) {
                Ok(text) => cells.push(Cell::Value(text)),
                Err(reason) => return Ok(Err(reason)),
            },
            None if event.unchanged().any(|u| u == column.name) => cells.push(Cell::Unchanged),
            None => {
                return Err(definite(
                    "sql.column_missing",
                    format!("{schema}.{}: events do not have the column {}", layout.target, column.name),
                ));
            }
        }
    }
    Ok(Ok(Translated::Row { table, key, change: Change::Write(cells), version }))
}

#[async_trait]
impl Sink for SqlSink {
    async fn check(&mut self) -> Result<(), SinkError> {
        self.guarded(async |sink| sink.look().await.map(drop)).await
    }

    async fn resume(&mut self) -> Result<Option<Mark>, SinkError> {
        let lane = self.lane.clone();
        let (partition, number) = (i32::from(lane.partition), i32::from(lane.lane));
        self.guarded(async |sink| {
            let open = sink.open().await?;
            let row = open.session.client.query_opt(statements::READ_MARK, &[&lane.connector, &partition, &number]).await;
            let row = row.map_err(|e| classify(&e))?;
            row.map(|r| r.try_get(0).map(Mark)).transpose().map_err(|e| classify(&e))
        })
        .await
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        self.guarded(async |sink| sink.apply(batch).await).await
    }
}

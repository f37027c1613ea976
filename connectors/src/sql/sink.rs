//! One lane's writes.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use tillstream_schemas::{Event, Op};

use super::config::SqlConfig;
use super::convert;
use super::dialect::{Column, Failure, Inspection, Layout, Session, Step, definite};
use super::fold::{Cell, Change, Part, Translated, fold};
use crate::sink::{Batch, Class, Item, LaneId, Mark, OnDelete, Outcome, Reason, Retry, Sink, SinkError};

/// What a call may take beyond its statements: connecting and looking tables up.
const SLACK: std::time::Duration = std::time::Duration::from_secs(10);

/// One lane's connection to a database.
pub(super) struct SqlSink {
    config: Arc<SqlConfig>,
    lane: LaneId,
    on_delete: OnDelete,
    open: Option<Open>,
}

/// A session with what was looked up in it.
struct Open {
    session: Box<dyn Session>,
    layouts: Vec<Layout>,
    on_delete: OnDelete,
}

/// Items that are translated, by their index in the batch.
type Items<'a> = [(usize, Translated<'a>)];

impl SqlSink {
    pub(super) fn new(config: Arc<SqlConfig>, lane: LaneId, on_delete: OnDelete) -> SqlSink {
        SqlSink { config, lane, on_delete, open: None }
    }

    /// Connects and looks the target up. `Err` when something is missing that is not ours to create.
    async fn look(&mut self) -> Result<(Box<dyn Session>, Inspection), SinkError> {
        let name = format!("tillstream/{}", self.lane.connector);
        let mut session = self.config.database.connect(&name, &self.config).await?;
        let found = session.inspect(&self.config, self.on_delete).await?;
        if found.problems.is_empty() && (found.statements.is_empty() || self.config.create) {
            return Ok((session, found));
        }
        Err(not_ready(&found))
    }

    /// A session whose target has everything; adds what is missing of our own where the configuration allows it.
    async fn open(&mut self) -> Result<&mut Open, SinkError> {
        if self.open.as_ref().is_some_and(|o| o.session.is_closed()) {
            self.open = None;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let (mut session, mut found) = self.look().await?;
                if !found.statements.is_empty() {
                    session.create(&self.config, self.on_delete).await?;
                    found = session.inspect(&self.config, self.on_delete).await?;
                }
                Open { session, layouts: found.layouts, on_delete: self.on_delete }
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
        let (lane, config) = (self.lane.clone(), self.config.clone());
        let open = self.open().await?;
        let layouts = std::mem::take(&mut open.layouts);
        let mut outcomes: Vec<Option<Outcome>> = vec![None; batch.items.len()];
        let mut items = Vec::with_capacity(batch.items.len());
        for (n, item) in batch.items.iter().enumerate() {
            match translate(item, &config, &layouts)? {
                Ok(translated) => items.push((n, translated)),
                Err(reason) => outcomes[n] = Some(Outcome::Rejected(reason)),
            }
        }
        open.session.step(Step::Begin).await?;
        match open.write(&layouts, &items).await {
            Ok(absorbed) => book(&items, &absorbed, &mut outcomes),
            Err(Failure::Whole(error)) => return Err(error),
            Err(Failure::Row(_) | Failure::Conflict(_)) => {
                open.session.step(Step::Restart).await?;
                open.isolate(&layouts, &items, &mut outcomes).await?;
            }
        }
        if outcomes.iter().flatten().all(|o| matches!(o, Outcome::Delivered | Outcome::Absorbed))
            && !open.session.store_mark(&lane, &batch.mark).await?
        {
            return Err(definite("sql.taken_over", "another process delivers this connector: it has stored a later mark".into()));
        }
        open.session.step(Step::Commit).await?;
        open.layouts = layouts;
        Ok(outcomes.into_iter().map(|o| o.expect("every item was written, refused or put off")).collect())
    }
}

fn not_ready(found: &Inspection) -> SinkError {
    let mut said = found.problems.clone();
    if !found.statements.is_empty() {
        said.push(format!("run in the target, or set create: true: {}", found.statements.join(" ")));
    }
    definite("sql.target_not_ready", said.join("; "))
}

/// Every item has an outcome: those in `absorbed` were there already.
fn book(items: &Items<'_>, absorbed: &HashSet<usize>, outcomes: &mut [Option<Outcome>]) {
    for (n, _) in items {
        outcomes[*n] = Some(if absorbed.contains(n) { Outcome::Absorbed } else { Outcome::Delivered });
    }
}

impl Open {
    /// Writes items within the open transaction and answers the indexes of those that had no effect.
    async fn write(&mut self, layouts: &[Layout], items: &Items<'_>) -> Result<HashSet<usize>, Failure> {
        let mut absorbed = HashSet::new();
        for part in fold(items) {
            match part {
                Part::Truncate { table, version, .. } => {
                    let tombstones = self.on_delete == OnDelete::Tombstone;
                    self.session.truncate(&layouts[table], &version.version_text(), tombstones).await?;
                }
                Part::Rows { table, present, rows } => {
                    for row in self.session.write(&layouts[table], present.as_deref(), &rows, self.on_delete).await? {
                        absorbed.extend(rows.get(row).into_iter().flat_map(|r| r.members()));
                    }
                }
            }
        }
        Ok(absorbed)
    }

    /// Halves the items, in savepoints, until each row that is refused stands alone; all others are written.
    async fn isolate(&mut self, layouts: &[Layout], items: &Items<'_>, outcomes: &mut [Option<Outcome>]) -> Result<(), SinkError> {
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
            self.session.step(Step::Savepoint).await?;
            let failed = match self.write(layouts, &attempted).await {
                Ok(absorbed) => {
                    book(&attempted, &absorbed, outcomes);
                    self.session.step(Step::Release).await?;
                    continue;
                }
                Err(Failure::Whole(error)) => return Err(error),
                Err(failed) => failed,
            };
            self.session.step(Step::Undo).await?;
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
pub(super) fn translate<'a>(item: &'a Item, config: &SqlConfig, layouts: &[Layout]) -> Result<Result<Translated<'a>, Reason>, SinkError> {
    if let Some(Err(reason)) = &item.mapped {
        return Ok(Err(reason.clone()));
    }
    let event: &Event = &item.event;
    let (Some(schema), Some(table)) = (event.schema(), event.table()) else {
        return Ok(Err(Reason { code: "sql.no_table".into(), message: "a logical message belongs to no table".into() }));
    };
    let Some(table) = config.index(schema, table) else {
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
        return Ok(Ok(Translated::Row { table, key, change: Change::Delete, fresh: false, version }));
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
    Ok(Ok(Translated::Row { table, key, change: Change::Write(cells), fresh: event.op() == Op::Insert, version }))
}

#[async_trait]
impl Sink for SqlSink {
    async fn check(&mut self) -> Result<(), SinkError> {
        self.guarded(async |sink| sink.look().await.map(drop)).await
    }

    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        let name = format!("tillstream/{}", self.lane.connector);
        self.guarded(async |sink| sink.config.database.connect(&name, &sink.config).await?.clock().await).await
    }

    async fn resume(&mut self) -> Result<Option<Mark>, SinkError> {
        let lane = self.lane.clone();
        self.guarded(async |sink| sink.open().await?.session.read_mark(&lane).await).await
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        self.guarded(async |sink| sink.apply(batch).await).await
    }
}

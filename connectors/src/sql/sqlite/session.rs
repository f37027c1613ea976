//! A session that writes and reads back.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params_from_iter};

use super::super::config::SqlConfig;
use super::super::convert::Form;
use super::super::dialect::{Column, Failure, Inspection, Layout, ReadBack, Session, Step, definite};
use super::super::fold::Row;
use super::errors::failure;
use super::layout::inspect;
use crate::sink::{Class, LaneId, Mark, OnDelete, SinkError};

pub(super) struct SqliteSession {
    /// `None` while a call holds it, and for good once a call was given up: what it had begun goes with it.
    connection: Option<Connection>,
}

impl SqliteSession {
    pub(super) async fn open(path: PathBuf, timeout: Duration) -> Result<SqliteSession, SinkError> {
        let open = move || {
            if !path.is_file() {
                return Err(Failure::Whole(definite("sql.target_not_ready", "the file does not exist: make it with its tables".into())));
            }
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags).map_err(|e| failure(&e))?;
            connection.busy_timeout(timeout).map_err(|e| failure(&e))?;
            connection.pragma_update(None, "foreign_keys", true).map_err(|e| failure(&e))?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let connection = tokio::task::spawn_blocking(open).await.map_err(|_| lost())?.map_err(Failure::whole)?;
        Ok(SqliteSession { connection: Some(connection) })
    }

    /// Runs a call on a thread that may block.
    async fn run<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let connection = self.connection.take().ok_or_else(lost)?;
        let task = tokio::task::spawn_blocking(move || {
            let answer = call(&connection);
            (connection, answer)
        });
        let (connection, answer) = task.await.map_err(|_| lost())?;
        self.connection = Some(connection);
        answer
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), SinkError> {
        self.run(move |connection| connection.execute_batch(sql).map_err(|e| failure(&e))).await.map_err(Failure::whole)
    }
}

fn lost() -> SinkError {
    SinkError { code: "sql.connection".into(), message: "an earlier call did not end".into(), class: Class::Transient, after: None }
}

/// A text as the column takes it.
fn bind(column: &Column, text: Option<&str>) -> Value {
    match text {
        None => Value::Null,
        // It was looked at when the event was translated.
        Some(text) if column.form == Form::Base64 => Value::Blob(BASE64.decode(text).unwrap_or_default()),
        Some(text) => Value::Text(text.to_owned()),
    }
}

/// A key's text, so that it stands in the column's order.
fn key_value(column: &Column, text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if column.form != Form::Text => Value::Integer(number),
        _ => Value::Text(text.to_owned()),
    }
}

/// `"a" = ?1 AND "b" = ?2`
fn same_key(layout: &Layout) -> String {
    let same: Vec<String> = layout.keys.iter().enumerate().map(|(n, k)| format!("{} = ?{}", k.quoted, n + 1)).collect();
    same.join(" AND ")
}

const OLDER: &str = "(_version IS NULL OR _version < ?)";

/// The statements that write one row, tried in turn until one of them changes something. Keys, columns and the version are their parameters.
fn statements(layout: &Layout, present: Option<&[usize]>, on_delete: OnDelete) -> Vec<String> {
    let columns = present.unwrap_or_default();
    let (keys, version) = (layout.keys.len(), layout.keys.len() + columns.len() + 1);
    let (target, same, older) = (&layout.target, same_key(layout), OLDER.replace('?', &format!("?{version}")));
    let all: Vec<&Column> = layout.keys.iter().chain(columns.iter().map(|n| &layout.columns[*n])).collect();
    let names: Vec<&str> = all.iter().map(|c| c.quoted.as_str()).collect();
    let places: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
    let deleted = u8::from(present.is_none());
    let insert =
        format!("INSERT INTO {target} ({}, _version, _deleted) SELECT {}, ?{version}, {deleted}", names.join(", "), places.join(", "));
    let set = |(at, n): (usize, &usize)| format!("{} = ?{}, ", layout.columns[*n].quoted, keys + at + 1);
    let set: String = columns.iter().enumerate().map(set).collect();
    let update = format!("UPDATE {target} SET {set}_version = ?{version}, _deleted = {deleted} WHERE {same} AND {older}");
    if present.is_some_and(|present| present.len() == layout.columns.len()) {
        let set: String = layout.columns.iter().map(|c| format!("{0} = excluded.{0}, ", c.quoted)).collect();
        let key: Vec<&str> = layout.keys.iter().map(|k| k.quoted.as_str()).collect();
        return vec![format!(
            "{insert} WHERE true ON CONFLICT ({}) DO UPDATE SET {set}_version = excluded._version, _deleted = 0 WHERE {older}",
            key.join(", ")
        )];
    }
    if present.is_none() && on_delete == OnDelete::Delete {
        return vec![format!("DELETE FROM {target} WHERE {same} AND {older}")];
    }
    let mut statements = vec![update];
    if present.is_some() || layout.can_insert_tombstones {
        statements.push(format!("{insert} WHERE NOT EXISTS (SELECT 1 FROM {target} WHERE {same})"));
    }
    statements
}

#[async_trait]
impl Session for SqliteSession {
    fn is_closed(&self) -> bool {
        self.connection.is_none()
    }

    async fn inspect(&mut self, config: &SqlConfig, _on_delete: OnDelete) -> Result<Inspection, SinkError> {
        let tables = config.tables.clone();
        self.run(move |connection| inspect(connection, &tables).map_err(|e| failure(&e))).await.map_err(Failure::whole)
    }

    async fn create(&mut self, config: &SqlConfig, _on_delete: OnDelete) -> Result<(), SinkError> {
        let tables = config.tables.clone();
        // Lanes start together: one of them creates, the others wait and find it done.
        let create = move |connection: &Connection| -> rusqlite::Result<()> {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let found = inspect(connection, &tables)?;
            connection.execute_batch(&format!("{} COMMIT", found.statements.join(" ")))
        };
        self.run(move |connection| create(connection).map_err(|e| failure(&e))).await.map_err(Failure::whole)
    }

    async fn step(&mut self, step: Step) -> Result<(), SinkError> {
        self.execute(match step {
            // A transaction that only becomes a writer later could find that another one was quicker.
            Step::Begin => "BEGIN IMMEDIATE",
            Step::Restart => "ROLLBACK; BEGIN IMMEDIATE",
            Step::Commit => "COMMIT",
            Step::Savepoint => "SAVEPOINT half",
            Step::Release => "RELEASE half",
            Step::Undo => "ROLLBACK TO half; RELEASE half",
        })
        .await
    }

    async fn write(
        &mut self,
        layout: &Layout,
        present: Option<&[bool]>,
        rows: &[Row<'_>],
        on_delete: OnDelete,
    ) -> Result<Vec<usize>, Failure> {
        let columns: Option<Vec<usize>> = present.map(|p| p.iter().enumerate().filter(|(_, p)| **p).map(|(n, _)| n).collect());
        let statements = statements(layout, columns.as_deref(), on_delete);
        let values = |row: &Row<'_>| {
            let keys = layout.keys.iter().enumerate().map(|(n, column)| bind(column, row.key.get(n).map(|k| &**k)));
            let columns = columns.iter().flatten().map(|n| bind(&layout.columns[*n], row.value(*n)));
            keys.chain(columns).chain([Value::Text(row.version.version_text())]).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<Value>> = rows.iter().map(values).collect();
        self.run(move |connection| {
            let mut left = Vec::new();
            for (at, row) in rows.iter().enumerate() {
                let mut changed = 0;
                for sql in &statements {
                    let mut statement = connection.prepare_cached(sql).map_err(|e| failure(&e))?;
                    // A statement takes a prefix of the parameters, or all.
                    let count = statement.parameter_count();
                    changed = statement.execute(params_from_iter(&row[..count.min(row.len())])).map_err(|e| failure(&e))?;
                    if changed > 0 {
                        break;
                    }
                }
                if changed == 0 {
                    left.push(at);
                }
            }
            Ok(left)
        })
        .await
    }

    async fn truncate(&mut self, layout: &Layout, version: &str, tombstones: bool) -> Result<(), Failure> {
        let (target, older) = (&layout.target, OLDER.replace('?', "?1"));
        let sql = if tombstones {
            format!("UPDATE {target} SET _version = ?1, _deleted = 1 WHERE {older}")
        } else {
            format!("DELETE FROM {target} WHERE {older}")
        };
        let version = version.to_owned();
        self.run(move |connection| connection.execute(&sql, [version]).map(drop).map_err(|e| failure(&e))).await
    }

    async fn read_mark(&mut self, lane: &LaneId) -> Result<Option<Mark>, SinkError> {
        let lane = lane.clone();
        let sql = "SELECT mark FROM tillstream_mark WHERE connector = ?1 AND \"partition\" = ?2 AND lane = ?3";
        let read = move |connection: &Connection| {
            connection.query_row(sql, (&lane.connector, lane.partition, lane.lane), |row| row.get(0)).optional().map_err(|e| failure(&e))
        };
        Ok(self.run(read).await.map_err(Failure::whole)?.map(Mark))
    }

    async fn store_mark(&mut self, lane: &LaneId, mark: &Mark) -> Result<bool, SinkError> {
        let (lane, mark) = (lane.clone(), mark.0.clone());
        let sql = "INSERT INTO tillstream_mark AS m (connector, \"partition\", lane, mark) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT (connector, \"partition\", lane) DO UPDATE SET mark = excluded.mark, updated_at = CURRENT_TIMESTAMP WHERE m.mark <= excluded.mark";
        let store = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(sql).map_err(|e| failure(&e))?;
            statement.execute((&lane.connector, lane.partition, lane.lane, &mark)).map(|stored| stored > 0).map_err(|e| failure(&e))
        };
        self.run(store).await.map_err(Failure::whole)
    }
}

/// A column's value as a text; of bytes in hexadecimal, of a number that is no whole one with every digit.
fn text(column: &Column) -> String {
    let name = &column.quoted;
    match column.form {
        Form::Base64 => format!("lower(hex({name}))"),
        _ => format!("CASE typeof({name}) WHEN 'real' THEN printf('%!.17g', {name}) ELSE CAST({name} AS TEXT) END"),
    }
}

#[async_trait]
impl ReadBack for SqliteSession {
    async fn rows(&mut self, layout: &Layout, keys: &[Vec<String>]) -> Result<Vec<Option<Vec<Option<String>>>>, SinkError> {
        let texts: String = layout.columns.iter().map(|c| format!(", {}", text(c))).collect();
        let sql = format!("SELECT 1{texts} FROM {} WHERE {} AND NOT _deleted", layout.target, same_key(layout));
        let (keys, columns) = (keys.to_vec(), layout.columns.len());
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut row = |key: &Vec<String>| {
                let row = |row: &rusqlite::Row<'_>| (1..=columns).map(|n| row.get(n)).collect::<rusqlite::Result<Vec<Option<String>>>>();
                statement.query_row(params_from_iter(key), row).optional()
            };
            keys.iter().map(&mut row).collect::<rusqlite::Result<_>>()
        };
        self.run(move |connection| read(connection).map_err(|e| failure(&e))).await.map_err(Failure::whole)
    }

    async fn keys_after(&mut self, layout: &Layout, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError> {
        let names: Vec<&str> = layout.keys.iter().map(|k| k.quoted.as_str()).collect();
        let texts: Vec<String> = layout.keys.iter().map(text).collect();
        let places: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
        let behind = if after.is_some() { format!(" AND ({}) > ({})", names.join(", "), places.join(", ")) } else { String::new() };
        let sql = format!(
            "SELECT {} FROM {} WHERE NOT _deleted{behind} ORDER BY {} LIMIT {limit}",
            texts.join(", "),
            layout.target,
            names.join(", ")
        );
        let after: Vec<Value> = after.unwrap_or_default().iter().zip(&layout.keys).map(|(text, column)| key_value(column, text)).collect();
        let keys = names.len();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement
                .query_map(params_from_iter(after), |row| (0..keys).map(|n| row.get(n)).collect::<rusqlite::Result<Vec<String>>>())?;
            rows.collect::<rusqlite::Result<_>>()
        };
        self.run(move |connection| read(connection).map_err(|e| failure(&e))).await.map_err(Failure::whole)
    }
}

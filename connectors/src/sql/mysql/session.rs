//! A session that writes and reads back.

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Params, Row as Answer, Value};

use super::super::config::SqlConfig;
use super::super::dialect::{Failure, Inspection, Layout, ReadBack, Session, Step};
use super::super::fold::Row;
use super::errors::failure;
use super::layout::inspect;
use super::statements;
use crate::sink::{LaneId, Mark, OnDelete, SinkError};

pub(super) struct MysqlSession {
    conn: Conn,
    /// The connection broke.
    closed: bool,
}

impl MysqlSession {
    pub(super) fn new(conn: Conn) -> MysqlSession {
        MysqlSession { conn, closed: false }
    }

    fn failed(&mut self, error: &Error) -> Failure {
        self.closed |= error.is_fatal();
        failure(error)
    }

    async fn query(&mut self, sql: &str) -> Result<(), SinkError> {
        let result = self.conn.query_drop(sql).await;
        result.map_err(|e| self.failed(&e).whole())
    }

    async fn execute(&mut self, sql: &str, parameters: impl Into<Params> + Send) -> Result<(), Failure> {
        let result = self.conn.exec_drop(sql, parameters.into()).await;
        result.map_err(|e| self.failed(&e))
    }

    async fn answers(&mut self, sql: &str, parameters: impl Into<Params> + Send) -> Result<Vec<Answer>, Failure> {
        let result = self.conn.exec(sql, parameters.into()).await;
        result.map_err(|e| self.failed(&e))
    }
}

/// Rows as the statements take them.
fn json<'t, R: Iterator<Item = Option<&'t str>>>(rows: impl Iterator<Item = R>) -> Value {
    let mut out = Vec::with_capacity(1024);
    out.push(b'[');
    for (n, row) in rows.enumerate() {
        out.extend_from_slice(if n > 0 { b",[" } else { b"[" });
        for (n, text) in row.enumerate() {
            if n > 0 {
                out.push(b',');
            }
            match text {
                None => out.extend_from_slice(b"null"),
                // Writing into memory does not fail.
                Some(text) => serde_json::to_writer(&mut out, text).unwrap_or_default(),
            }
        }
        out.push(b']');
    }
    out.push(b']');
    Value::Bytes(out)
}

fn parameters(layout: &Layout, present: &[usize], rows: &[&Row<'_>]) -> Value {
    let versions: Vec<String> = rows.iter().map(|r| r.version.version_text()).collect();
    json(rows.iter().zip(&versions).map(|(row, version)| {
        let keys = (0..layout.keys.len()).map(|n| row.key.get(n).map(|k| &**k));
        keys.chain(present.iter().map(|n| row.value(*n))).chain([Some(version.as_str())])
    }))
}

/// What is there of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Older,
    Newer,
}

#[async_trait]
impl Session for MysqlSession {
    fn is_closed(&self) -> bool {
        self.closed
    }

    async fn inspect(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<Inspection, SinkError> {
        inspect(&mut self.conn, config, on_delete).await
    }

    async fn create(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<(), SinkError> {
        // Lanes start together: one of them creates, the others wait and find it done.
        self.query("DO GET_LOCK('tillstream_mark', 60)").await?;
        let found = self.inspect(config, on_delete).await?;
        for statement in &found.statements {
            self.query(statement.trim_end_matches(';')).await?;
        }
        self.query("DO RELEASE_LOCK('tillstream_mark')").await
    }

    async fn step(&mut self, step: Step) -> Result<(), SinkError> {
        match step {
            Step::Begin => self.query("START TRANSACTION").await,
            Step::Restart => {
                self.query("ROLLBACK").await?;
                self.query("START TRANSACTION").await
            }
            Step::Commit => self.query("COMMIT").await,
            Step::Savepoint => self.query("SAVEPOINT half").await,
            Step::Release => self.query("RELEASE SAVEPOINT half").await,
            Step::Undo => {
                self.query("ROLLBACK TO SAVEPOINT half").await?;
                self.query("RELEASE SAVEPOINT half").await
            }
        }
    }

    async fn write(
        &mut self,
        layout: &Layout,
        present: Option<&[bool]>,
        rows: &[Row<'_>],
        on_delete: OnDelete,
    ) -> Result<Vec<usize>, Failure> {
        let mut there = vec![There::Nothing; rows.len()];
        let all: Vec<&Row<'_>> = rows.iter().collect();
        for answer in self.answers(&statements::find(layout), (parameters(layout, &[], &all),)).await? {
            let (ordinal, older): (i64, i64) = mysql_async::from_row_opt(answer).map_err(|_| unreadable())?;
            if let Some(there) = usize::try_from(ordinal - 1).ok().and_then(|at| there.get_mut(at)) {
                *there = if older == 1 { There::Older } else { There::Newer };
            }
        }
        let chosen = |what| rows.iter().zip(&there).filter(|(_, t)| **t == what).map(|(r, _)| r).collect::<Vec<_>>();
        let (missing, older) = (chosen(There::Nothing), chosen(There::Older));
        let columns: Vec<usize> = present.into_iter().flatten().enumerate().filter(|(_, p)| **p).map(|(n, _)| n).collect();
        let deleted = present.is_none();
        let really = deleted && on_delete == OnDelete::Delete;
        if !older.is_empty() {
            let sql = if really { statements::delete(layout) } else { statements::update(layout, &columns, deleted) };
            self.execute(&sql, (parameters(layout, &columns, &older),)).await?;
        }
        let insert = !deleted || (!really && layout.can_insert_tombstones);
        if insert && !missing.is_empty() {
            self.execute(&statements::insert(layout, &columns, deleted), (parameters(layout, &columns, &missing),)).await?;
        }
        let left = |t: &There| *t == There::Newer || (*t == There::Nothing && !insert);
        Ok(there.iter().enumerate().filter(|(_, t)| left(t)).map(|(at, _)| at).collect())
    }

    async fn truncate(&mut self, layout: &Layout, version: &str, tombstones: bool) -> Result<(), Failure> {
        let versions = vec![Value::from(version); if tombstones { 2 } else { 1 }];
        self.execute(&statements::truncate(layout, tombstones), versions).await
    }

    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        let rows = self.answers("SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)", ()).await.map_err(Failure::whole)?;
        Ok(rows.into_iter().next().and_then(|row| mysql_async::from_row_opt::<i64>(row).ok()))
    }

    async fn read_mark(&mut self, lane: &LaneId) -> Result<Option<Mark>, SinkError> {
        let rows = self.answers(statements::READ_MARK, (&lane.connector, lane.partition, lane.lane)).await.map_err(Failure::whole)?;
        rows.into_iter().next().map(|row| mysql_async::from_row_opt::<Vec<u8>>(row).map(Mark).map_err(|_| unreadable())).transpose()
    }

    async fn store_mark(&mut self, lane: &LaneId, mark: &Mark) -> Result<bool, SinkError> {
        let key = (&mark.0, &lane.connector, lane.partition, lane.lane);
        let rows = self.answers(statements::FIND_MARK, key).await.map_err(Failure::whole)?;
        let sql = match rows.into_iter().next().map(mysql_async::from_row_opt::<i64>) {
            None => statements::INSERT_MARK,
            Some(Ok(1)) => statements::UPDATE_MARK,
            Some(_) => return Ok(false),
        };
        match self.execute(sql, key).await {
            Ok(()) => Ok(true),
            // Somebody stored the first one in this moment.
            Err(Failure::Conflict(reason)) => Err(SinkError { class: crate::sink::Class::Transient, ..Failure::Conflict(reason).whole() }),
            Err(failed) => Err(failed.whole()),
        }
    }
}

fn unreadable() -> SinkError {
    SinkError {
        code: "sql.connection".into(),
        message: "the server's answer is of another form".into(),
        class: crate::sink::Class::Transient,
        after: None,
    }
}

#[async_trait]
impl ReadBack for MysqlSession {
    async fn rows(&mut self, layout: &Layout, keys: &[Vec<String>]) -> Result<Vec<Option<Vec<Option<String>>>>, SinkError> {
        let wanted = json(keys.iter().map(|key| key.iter().map(|k| Some(k.as_str())).chain([Some("")])));
        let mut found = vec![None; keys.len()];
        for answer in self.answers(&statements::read(layout), (wanted,)).await.map_err(Failure::whole)? {
            let ordinal = answer.get_opt::<i64, _>(0).and_then(Result::ok).and_then(|n| usize::try_from(n - 1).ok());
            let texts = (1..=layout.columns.len()).map(|n| answer.get_opt::<Option<String>, _>(n).and_then(Result::ok).flatten()).collect();
            if let Some(found) = ordinal.and_then(|at| found.get_mut(at)) {
                *found = Some(texts);
            }
        }
        Ok(found)
    }

    async fn keys_after(&mut self, layout: &Layout, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError> {
        let sql = statements::keys_after(layout, after.is_some(), limit);
        let parameters = match after {
            Some(key) => Params::from((json([key.iter().map(|k| Some(k.as_str())).chain([Some("")])].into_iter()),)),
            None => Params::Empty,
        };
        let rows = self.answers(&sql, parameters).await.map_err(Failure::whole)?;
        let key = |row: &Answer| (0..layout.keys.len()).map(|n| row.get_opt::<String, _>(n)?.ok()).collect::<Option<Vec<_>>>();
        rows.iter().map(|row| key(row).ok_or_else(unreadable)).collect()
    }
}

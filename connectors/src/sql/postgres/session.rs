//! A session that writes.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::super::config::SqlConfig;
use super::super::dialect::{Database, Failure, Inspection, Layout, Session, Step};
use super::super::fold::Row;
use super::compare::SqlCompare;
use super::connect::{Address, Connected};
use super::errors::{classify, failure};
use super::layout::inspect;
use super::statements;
use crate::sink::{Compare, LaneId, Mark, OnDelete, SinkError};

#[async_trait]
impl Database for Address {
    async fn connect(&self, name: &str, config: &SqlConfig) -> Result<Box<dyn Session>, SinkError> {
        let connected = Address::connect(self, name, config.timeout).await?;
        Ok(Box::new(PostgresSession { connected, prepared: HashMap::new(), telling: false, wary: 0 }))
    }

    fn compare(&self, config: Arc<SqlConfig>) -> Box<dyn Compare> {
        Box::new(SqlCompare::new(config, self.clone()))
    }
}

struct PostgresSession {
    connected: Connected,
    prepared: HashMap<String, Statement>,
    /// Whether the last rows were not all new, so that the next statement had better tell which were.
    telling: bool,
    /// How many batches go by before rows are taken for new ones again.
    wary: u32,
}

/// Batches after one of new rows that were there already: a repeat ends within a few, and the server logs each such error.
const WARY_FOR: u32 = 64;

/// The literal of an array, which the server reads as the array's type.
#[derive(Debug)]
struct Literal(String);

impl Literal {
    fn new(rows: usize) -> Literal {
        let mut out = String::with_capacity(rows * 16 + 2);
        out.push('{');
        Literal(out)
    }

    /// Adds an element. The literal is whole after [`Literal::end`].
    fn push(&mut self, text: Option<&str>) {
        let Literal(out) = self;
        match text {
            None => out.push_str("NULL"),
            // A number needs no quotes.
            Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => out.push_str(text),
            Some(text) => {
                out.push('"');
                let mut rest = text;
                while let Some(at) = memchr::memchr2(b'"', b'\\', rest.as_bytes()) {
                    let (plain, special) = rest.split_at(at);
                    out.push_str(plain);
                    out.push('\\');
                    out.push_str(&special[..1]);
                    rest = &special[1..];
                }
                out.push_str(rest);
                out.push('"');
            }
        }
        out.push(',');
    }

    fn end(&mut self) {
        if self.0.ends_with(',') {
            self.0.pop();
        }
        self.0.push('}');
    }
}

impl ToSql for Literal {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

impl PostgresSession {
    async fn batch(&self, sql: &str) -> Result<(), SinkError> {
        self.connected.client.batch_execute(sql).await.map_err(|e| classify(&e))
    }

    async fn prepare(&mut self, sql: String) -> Result<Statement, Failure> {
        self.statement(sql).await.map_err(|e| failure(&e))
    }

    async fn statement(&mut self, sql: String) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.prepared.get(&sql) {
            return Ok(statement.clone());
        }
        let statement = self.connected.client.prepare(&sql).await?;
        // Bounded by tables times the sets of columns that are sent; a table of n large columns has few of these.
        self.prepared.insert(sql, statement.clone());
        Ok(statement)
    }

    /// How many rows a statement wrote. The savepoint is sent with it, and ends with what it lies in.
    async fn count(&mut self, sql: String, literals: &[Literal]) -> Result<u64, tokio_postgres::Error> {
        let parameters: Vec<&(dyn ToSql + Sync)> = literals.iter().map(|l| l as &(dyn ToSql + Sync)).collect();
        let statement = self.statement(sql).await?;
        let saved = self.connected.client.batch_execute("SAVEPOINT told");
        let (saved, count) = tokio::join!(saved, self.connected.client.execute(&statement, &parameters));
        saved?;
        count
    }

    /// The ordinals of the rows that a statement wrote.
    async fn written(&mut self, sql: String, literals: &[Literal]) -> Result<Vec<i64>, Failure> {
        let parameters: Vec<&(dyn ToSql + Sync)> = literals.iter().map(|l| l as &(dyn ToSql + Sync)).collect();
        let statement = self.prepare(sql).await?;
        let rows = self.connected.client.query(&statement, &parameters).await.map_err(|e| failure(&e))?;
        rows.iter().map(|r| r.try_get(0)).collect::<Result<_, _>>().map_err(|e| failure(&e))
    }
}

#[async_trait]
impl Session for PostgresSession {
    fn is_closed(&self) -> bool {
        self.connected.client.is_closed()
    }

    async fn inspect(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<Inspection, SinkError> {
        inspect(&self.connected.client, config, on_delete).await
    }

    async fn create(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<(), SinkError> {
        // Lanes start together: one of them creates, the others wait and find it done.
        self.batch("BEGIN; SELECT pg_advisory_xact_lock(hashtext('tillstream_mark'))").await?;
        let found = self.inspect(config, on_delete).await?;
        self.batch(&format!("{} COMMIT", found.statements.join(" "))).await
    }

    async fn step(&mut self, step: Step) -> Result<(), SinkError> {
        let sql = match step {
            Step::Begin => "BEGIN",
            Step::Restart => "ROLLBACK; BEGIN",
            Step::Commit => "COMMIT",
            Step::Savepoint => "SAVEPOINT half",
            Step::Release => "RELEASE half",
            Step::Undo => "ROLLBACK TO half; RELEASE half",
        };
        self.batch(sql).await
    }

    async fn write(
        &mut self,
        layout: &Layout,
        present: Option<&[bool]>,
        rows: &[Row<'_>],
        on_delete: OnDelete,
    ) -> Result<Vec<usize>, Failure> {
        let sent: Vec<usize> = present.into_iter().flatten().enumerate().filter(|(_, p)| **p).map(|(n, _)| n).collect();
        let mut literals: Vec<Literal> = (0..=layout.keys.len() + sent.len()).map(|_| Literal::new(rows.len())).collect();
        // Row by row: the texts of one lie together.
        for row in rows {
            let (keys, others) = literals.split_at_mut(layout.keys.len());
            keys.iter_mut().enumerate().for_each(|(n, literal)| literal.push(row.key.get(n).map(|k| &**k)));
            let (columns, version) = others.split_at_mut(sent.len());
            columns.iter_mut().zip(&sent).for_each(|(literal, n)| literal.push(row.value(*n)));
            version[0].push(Some(&row.version.version_text()));
        }
        literals.iter_mut().for_each(Literal::end);
        let sql = match (present, on_delete) {
            (Some(present), _) if present.iter().all(|p| *p) => {
                if !self.telling {
                    self.wary = self.wary.saturating_sub(1);
                    if self.wary == 0 && rows.iter().all(|row| row.fresh) {
                        match self.count(statements::inserts(layout), &literals).await {
                            Ok(_) => return Ok(Vec::new()),
                            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => self.wary = WARY_FOR,
                            Err(error) => return Err(failure(&error)),
                        }
                        self.batch("ROLLBACK TO told; RELEASE told").await?;
                    }
                    let count = self.count(statements::upsert(layout), &literals).await.map_err(|e| failure(&e))?;
                    if count == rows.len() as u64 {
                        return Ok(Vec::new());
                    }
                    self.batch("ROLLBACK TO told; RELEASE told").await?;
                }
                let written = self.written(statements::upsert_telling(layout), &literals).await?;
                self.telling = written.len() < rows.len();
                return Ok(others(&written, rows.len()));
            }
            (Some(present), _) => statements::partial(layout, present),
            (None, OnDelete::Delete) => statements::delete(layout),
            (None, OnDelete::Tombstone | OnDelete::Ignore) => statements::tombstone(layout),
        };
        let written = self.written(sql, &literals).await?;
        Ok(others(&written, rows.len()))
    }

    async fn truncate(&mut self, layout: &Layout, version: &str, tombstones: bool) -> Result<(), Failure> {
        let statement = self.prepare(statements::truncate(layout, tombstones)).await?;
        self.connected.client.execute(&statement, &[&version]).await.map(drop).map_err(|e| failure(&e))
    }

    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        let row = self.connected.client.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8", &[]).await;
        row.and_then(|row| row.try_get(0)).map(Some).map_err(|e| classify(&e))
    }

    async fn read_mark(&mut self, lane: &LaneId) -> Result<Option<Mark>, SinkError> {
        let (partition, number) = (i32::from(lane.partition), i32::from(lane.lane));
        let row = self.connected.client.query_opt(statements::READ_MARK, &[&lane.connector, &partition, &number]).await;
        let row = row.map_err(|e| classify(&e))?;
        row.map(|r| r.try_get(0).map(Mark)).transpose().map_err(|e| classify(&e))
    }

    async fn store_mark(&mut self, lane: &LaneId, mark: &Mark) -> Result<bool, SinkError> {
        let (partition, number) = (i32::from(lane.partition), i32::from(lane.lane));
        let statement = self.prepare(statements::STORE_MARK.to_owned()).await.map_err(Failure::whole)?;
        let stored = self.connected.client.execute(&statement, &[&lane.connector, &partition, &number, &mark.0]).await;
        Ok(stored.map_err(|e| classify(&e))? > 0)
    }
}

/// The indexes that are not among these ordinals (from 1).
fn others(written: &[i64], count: usize) -> Vec<usize> {
    let mut left = vec![true; count];
    for ordinal in written {
        let at = usize::try_from(ordinal - 1).ok().and_then(|at| left.get_mut(at));
        at.into_iter().for_each(|left| *left = false);
    }
    left.iter().enumerate().filter(|(_, left)| **left).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_keeps_every_text() {
        let texts = [Some("12"), None, Some(""), Some("NULL"), Some("a\"b\\c,{d}"), Some("é x"), Some("-1.5")];
        let mut literal = Literal::new(texts.len());
        texts.into_iter().for_each(|text| literal.push(text));
        literal.end();
        assert_eq!(literal.0, r#"{12,NULL,"","NULL","a\"b\\c,{d}","é x","-1.5"}"#);
    }

    #[test]
    fn what_was_not_written_is_told_by_index() {
        assert_eq!(others(&[1, 3], 4), [1, 3]);
        assert_eq!(others(&[], 2), [0, 1]);
    }
}

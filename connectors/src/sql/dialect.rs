//! What the sink needs of a database: one trait that PostgreSQL, MySQL and SQLite implement, and the words they share.

use std::fmt;

use async_trait::async_trait;

use super::config::SqlConfig;
use super::convert::Form;
use super::fold::Row;
use crate::sink::{Class, Compare, LaneId, Mark, OnDelete, Reason, SinkError};

/// A column to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// As the source and the target name it.
    pub(super) name: String,
    /// Quoted as the dialect does.
    pub(super) quoted: String,
    /// The type in which a key is looked up, or a text is cast: without length or precision where a cast would cut a text that assignment refuses.
    pub(super) cast: String,
    /// Its declared type.
    pub(super) exact: String,
    /// How its values are written.
    pub(super) form: Form,
}

/// A target table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Quoted name.
    pub(super) target: String,
    /// Key columns.
    pub(super) keys: Vec<Column>,
    /// The other columns.
    pub(super) columns: Vec<Column>,
    /// Whether a row of the key alone satisfies every NOT NULL.
    pub(super) can_insert_tombstones: bool,
    /// The unique index over the key, quoted, where statements have to name it; else empty.
    pub(super) index: String,
}

/// What was found in the target.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    /// In the order of the configuration.
    pub(super) layouts: Vec<Layout>,
    /// What someone has to change in the configuration or the target.
    pub(super) problems: Vec<String>,
    /// Statements that add what is missing of our own.
    pub(super) statements: Vec<String>,
}

/// What to do about a failed statement.
#[derive(Debug)]
pub(super) enum Failure {
    /// The row will never be taken.
    Row(Reason),
    /// The row conflicts with another row that may be on its way in another lane (a parent, a unique value).
    Conflict(Reason),
    /// Nothing to do with one row.
    Whole(SinkError),
}

impl Failure {
    /// As an error of the whole call: of a statement that writes no row of the source.
    pub(super) fn whole(self) -> SinkError {
        match self {
            Failure::Whole(error) => error,
            Failure::Row(reason) | Failure::Conflict(reason) => definite(&reason.code, reason.message),
        }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Failure {
        Failure::Whole(error)
    }
}

/// Someone has to act.
pub(super) fn definite(code: &str, message: String) -> SinkError {
    SinkError { code: code.into(), message, class: Class::Definite, after: None }
}

/// Where a transaction or a part of it begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin,
    /// Throws everything away and begins again.
    Restart,
    Commit,
    Savepoint,
    /// The savepoint's work stays.
    Release,
    /// The savepoint's work goes.
    Undo,
}

/// A database that can be reached.
#[async_trait]
pub(super) trait Database: fmt::Debug + Send + Sync {
    /// A new session, shown to the database's people under this name where it can be.
    async fn connect(&self, name: &str, config: &SqlConfig) -> Result<Box<dyn Session>, SinkError>;

    /// What compares the target with the source.
    fn compare(&self, config: std::sync::Arc<SqlConfig>) -> Box<dyn Compare>;
}

/// One session. Calls come one at a time; a session whose call failed as a whole is thrown away.
#[async_trait]
pub(super) trait Session: Send {
    /// Whether it is known to be dead.
    fn is_closed(&self) -> bool;

    /// The server's clock, milliseconds since the Unix epoch; `None` where it is ours.
    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        Ok(None)
    }

    /// Looks everything up. Changes nothing.
    async fn inspect(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<Inspection, SinkError>;

    /// Adds what is missing of our own, one session at a time.
    async fn create(&mut self, config: &SqlConfig, on_delete: OnDelete) -> Result<(), SinkError>;

    /// Begins and ends transactions and savepoints.
    async fn step(&mut self, step: Step) -> Result<(), SinkError>;

    /// Writes distinct rows of one table; `present` tells which columns have a value, `None` that the rows are gone. Answers the indexes of the rows
    /// that were left alone, because the target had this version or a newer one. After a failure the savepoint is undone or the transaction restarted.
    async fn write(
        &mut self,
        layout: &Layout,
        present: Option<&[bool]>,
        rows: &[Row<'_>],
        on_delete: OnDelete,
    ) -> Result<Vec<usize>, Failure>;

    /// Every row older than the version goes, or becomes a tombstone.
    async fn truncate(&mut self, layout: &Layout, version: &str, tombstones: bool) -> Result<(), Failure>;

    /// A lane's mark.
    async fn read_mark(&mut self, lane: &LaneId) -> Result<Option<Mark>, SinkError>;

    /// Stores a lane's mark; `false` when a later one is there.
    async fn store_mark(&mut self, lane: &LaneId, mark: &Mark) -> Result<bool, SinkError>;
}

/// A database whose rows can be read back.
#[async_trait]
pub(super) trait Readable: Send + Sync {
    /// A new session that reads.
    async fn read_back(&self, config: &SqlConfig) -> Result<Box<dyn ReadBack>, SinkError>;
}

/// Living rows, read back; of the databases whose comparison is made here and not in their own SQL.
#[async_trait]
pub(super) trait ReadBack: Session {
    /// The columns' texts of the living rows with these keys, in the keys' order; `None` for a row that is not there.
    async fn rows(&mut self, layout: &Layout, keys: &[Vec<String>]) -> Result<Vec<Option<Vec<Option<String>>>>, SinkError>;

    /// The next keys of living rows in the target's own order.
    async fn keys_after(&mut self, layout: &Layout, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError>;
}

//! How far the initial load is, for status and metrics. Never holds a value of a row.

use std::sync::Mutex;

use serde::Serialize;

use super::sql::Refusal;
use crate::control::Cursor;

/// Where a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// Its turn comes.
    Waiting,
    /// Being read.
    Reading,
    /// Read.
    Done,
    /// Cannot be read; `code` says why. Its changes are captured all the same.
    Refused,
    /// Reading it fails; `code` says why, and it is tried again.
    Failing,
}

/// One table's progress.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableProgress {
    /// `schema.table`.
    pub table: String,
    /// Where it stands.
    pub state: TableState,
    /// Rows handed over, earlier runs included.
    pub rows: u64,
    /// Chunks handed over, earlier runs included.
    pub chunks: u32,
    /// Rows as the server estimates them; `None` when it was never analyzed.
    pub rows_estimate: Option<u64>,
    /// Stable code of a refusal or failure.
    pub code: Option<String>,
    /// What that means.
    pub message: Option<String>,
}

/// The progress of the initial load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Whether there is nothing (left) to read.
    pub finished: bool,
    /// Every configured table.
    pub tables: Vec<TableProgress>,
    /// Rows handed over in this process.
    pub rows: u64,
    /// Rows not handed over, because the stream had a newer image.
    pub rows_evicted: u64,
    /// Chunks read again because a delivered transaction was not visible to them yet.
    pub chunks_not_visible: u64,
    /// Chunks read again for any other reason.
    pub chunks_again: u64,
    /// Why nothing moves at the moment, if so.
    pub waiting: Option<String>,
}

/// Shared between the job, the hook and whoever shows it.
#[derive(Debug, Default)]
pub struct Stats {
    progress: Mutex<Progress>,
}

impl Stats {
    /// As of now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.with(|p| p.clone())
    }

    /// Whether there is nothing (left) to read.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.with(|p| p.finished)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Progress) -> T) -> T {
        act(&mut self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn table(&self, table: &str, act: impl FnOnce(&mut TableProgress)) {
        self.with(|p| {
            if let Some(found) = p.tables.iter_mut().find(|t| t.table == table) {
                act(found);
            }
        });
    }

    /// A session begins with these tables; cursors say how far earlier ones came.
    pub(super) fn begin<'a>(&self, tables: impl Iterator<Item = (String, Option<&'a Cursor>)>) {
        let of = |(table, cursor): (String, Option<&Cursor>)| TableProgress {
            table,
            state: if cursor.is_some_and(|c| c.done) { TableState::Done } else { TableState::Waiting },
            rows: cursor.map_or(0, |c| c.rows),
            chunks: cursor.map_or(0, |c| c.chunk),
            rows_estimate: None,
            code: None,
            message: None,
        };
        self.with(|p| {
            p.finished = false;
            p.waiting = None;
            p.tables = tables.map(of).collect();
        });
    }

    /// There is nothing left to read.
    pub(super) fn finish(&self) {
        self.with(|p| {
            p.finished = true;
            p.waiting = None;
        });
    }

    pub(super) fn reading(&self, table: &str, rows_estimate: f64) {
        self.table(table, |t| {
            t.state = TableState::Reading;
            // -1 means never analyzed.
            t.rows_estimate = (rows_estimate >= 0.0).then_some(rows_estimate as u64);
            (t.code, t.message) = (None, None);
        });
        self.with(|p| p.waiting = None);
    }

    pub(super) fn done(&self, table: &str) {
        self.table(table, |t| t.state = TableState::Done);
    }

    pub(super) fn refused(&self, table: &str, refusal: Refusal) {
        self.table(table, |t| {
            t.state = TableState::Refused;
            (t.code, t.message) = (Some(refusal.code.to_owned()), Some(refusal.message.to_owned()));
        });
    }

    pub(super) fn failing(&self, table: &str, code: &str, message: &str) {
        self.table(table, |t| {
            t.state = TableState::Failing;
            (t.code, t.message) = (Some(code.to_owned()), Some(message.to_owned()));
        });
    }

    pub(super) fn waiting(&self, why: String) {
        self.with(|p| p.waiting = Some(why));
    }

    pub(super) fn again(&self, not_visible: bool) {
        self.with(|p| if not_visible { p.chunks_not_visible += 1 } else { p.chunks_again += 1 });
    }

    /// A chunk was handed over; the cursor counts it.
    pub(super) fn chunk(&self, cursor: &Cursor, rows: u64, evicted: u64) {
        self.table(&cursor.table, |t| (t.rows, t.chunks) = (cursor.rows, cursor.chunk));
        self.with(|p| {
            p.rows += rows;
            p.rows_evicted += evicted;
        });
    }
}

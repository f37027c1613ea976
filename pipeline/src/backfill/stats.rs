//! How far a backfill is, for status, metrics and reports. Never holds a value of a row.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::sql::Refusal;
use super::window::Again;
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
    /// Parts (partitions, ranges of keys), and how many of them are done.
    pub parts: u32,
    /// See `parts`.
    pub parts_done: u32,
    /// Rows as the server estimates them; `None` when it was never analyzed or only some are read.
    pub rows_estimate: Option<u64>,
    /// Stable code of a refusal or failure.
    pub code: Option<String>,
    /// What that means.
    pub message: Option<String>,
}

/// The progress of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Whether there is nothing (left) to read.
    pub finished: bool,
    /// Every table of it.
    pub tables: Vec<TableProgress>,
    /// Rows handed over in this process.
    pub rows: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Chunks handed over in this process.
    pub chunks: u64,
    /// Rows not handed over, because the stream had a newer image.
    pub rows_evicted: u64,
    /// Chunks read again because a delivered transaction was not visible to them yet.
    pub chunks_not_visible: u64,
    /// Chunks read again, or the rest of them, for any other reason.
    pub chunks_again: u64,
    /// Why nothing moves at the moment, if so.
    pub waiting: Option<String>,
    /// What slows it now: `peak window until 14:00`.
    pub slowed_by: Option<String>,
    /// Seconds spent waiting, by cause.
    pub throttled_seconds: BTreeMap<&'static str, f64>,
    /// Rows a second over the last chunks.
    pub rows_per_second: f64,
    /// Seconds until it is done, if it goes on like this; `None` while nobody knows.
    pub eta_seconds: Option<u64>,
    /// What the brakes cannot see, and what helps.
    pub brakes_blind: Option<String>,
    /// The newest chunks, oldest first.
    pub newest_chunks: Vec<ChunkPace>,
}

/// One chunk of late.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChunkPace {
    /// Its rows.
    pub rows: u64,
    /// Seconds from the chunk before it: reading, and whatever held it up.
    pub seconds: f64,
}

impl Progress {
    /// How much of it is done, 0 to 1, by the server's estimates; never above 1. `None` while nobody knows.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        if self.finished {
            return Some(1.0);
        }
        let mut all = 0.0;
        let mut done = 0.0;
        for table in self.tables.iter().filter(|t| t.state != TableState::Refused) {
            let estimate = match table.state {
                TableState::Done => table.rows as f64,
                _ => table.rows_estimate? as f64,
            };
            all += estimate.max(table.rows as f64);
            done += table.rows as f64;
        }
        (all > 0.0).then(|| (done / all).min(1.0))
    }
}

/// Shared between the readers, the hook and whoever shows it.
#[derive(Debug, Default)]
pub struct Stats {
    progress: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Progress,
    /// When chunks of late were stored and how many rows had been by then.
    recent: std::collections::VecDeque<(Instant, u64)>,
}

/// Chunks that a rate is told from, at most.
const RECENT: usize = 64;
/// A rate is told from the chunks of so long.
const RECENT_FOR: Duration = Duration::from_secs(15);

impl Stats {
    /// As of now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.with(|s| {
            let mut progress = s.progress.clone();
            let now = Instant::now();
            // What there was before the next chunk tells how many rows a chunk has; of the first one nobody knows how long it took.
            let next = s.recent.iter().skip(2).map(|(_, rows)| *rows).chain([progress.rows]);
            let pairs = s.recent.iter().zip(s.recent.iter().skip(1));
            let chunks = pairs.zip(next).map(|(((before, _), (at, rows)), next)| ChunkPace {
                rows: next - rows,
                seconds: at.duration_since(*before).as_secs_f64(),
            });
            progress.newest_chunks = chunks.collect();
            let first = s.recent.iter().find(|(at, _)| now.duration_since(*at) <= RECENT_FOR);
            if let Some((at, rows)) = first {
                progress.rows_per_second = (progress.rows - rows) as f64 / now.duration_since(*at).as_secs_f64().max(0.25);
            }
            if progress.rows_per_second > 0.0 && !progress.finished {
                let open = progress.tables.iter().filter(|t| matches!(t.state, TableState::Waiting | TableState::Reading));
                let left: Option<u64> = open.map(|t| t.rows_estimate.map(|e| e.saturating_sub(t.rows))).sum();
                progress.eta_seconds = left.map(|left| (left as f64 / progress.rows_per_second) as u64);
            }
            progress
        })
    }

    /// Whether there is nothing (left) to read.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.with(|s| s.progress.finished)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn table(&self, table: &str, act: impl FnOnce(&mut TableProgress)) {
        self.with(|s| {
            if let Some(found) = s.progress.tables.iter_mut().find(|t| t.table == table) {
                act(found);
            }
        });
    }

    /// A session begins with these tables; cursors say how far earlier ones came.
    pub(super) fn begin(&self, tables: impl Iterator<Item = String>, cursors: &[Cursor]) {
        let of = |table: String| {
            let mine = || cursors.iter().filter(|c| c.table == table);
            let (parts, parts_done) = (mine().count() as u32, mine().filter(|c| c.done).count() as u32);
            TableProgress {
                state: if parts > 0 && parts == parts_done { TableState::Done } else { TableState::Waiting },
                rows: mine().map(|c| c.rows).sum(),
                parts,
                parts_done,
                table,
                rows_estimate: None,
                code: None,
                message: None,
            }
        };
        self.with(|s| {
            s.progress.finished = false;
            s.progress.waiting = None;
            s.progress.tables = tables.map(of).collect();
            s.recent.clear();
        });
    }

    /// There is nothing left to read.
    pub(super) fn finish(&self) {
        self.with(|s| {
            s.progress.finished = true;
            (s.progress.waiting, s.progress.slowed_by) = (None, None);
        });
    }

    pub(super) fn reading(&self, table: &str, rows_estimate: f64, parts: u32, parts_done: u32) {
        self.table(table, |t| {
            t.state = TableState::Reading;
            // -1 means never analyzed.
            t.rows_estimate = (rows_estimate >= 0.0).then_some(rows_estimate as u64);
            (t.parts, t.parts_done) = (parts, parts_done);
            (t.code, t.message) = (None, None);
        });
        self.with(|s| s.progress.waiting = None);
    }

    /// A part of a table is read.
    pub(super) fn part_done(&self, table: &str) {
        self.table(table, |t| {
            t.parts_done += 1;
            if t.parts_done >= t.parts {
                t.state = TableState::Done;
            }
        });
    }

    pub(super) fn done(&self, table: &str) {
        self.table(table, |t| t.state = TableState::Done);
    }

    pub(super) fn refused(&self, table: &str, refusal: Refusal) {
        self.table(table, |t| {
            t.state = TableState::Refused;
            (t.code, t.message) = (Some(refusal.code.to_owned()), Some(refusal.message));
        });
    }

    pub(super) fn failing(&self, table: &str, code: &str, message: &str) {
        self.table(table, |t| {
            t.state = TableState::Failing;
            (t.code, t.message) = (Some(code.to_owned()), Some(message.to_owned()));
        });
    }

    pub(super) fn waiting(&self, why: Option<String>) {
        self.with(|s| s.progress.waiting = why);
    }

    pub(super) fn slowed(&self, by: Option<(&'static str, String)>) {
        self.with(|s| s.progress.slowed_by = by.map(|(_, text)| text));
    }

    pub(super) fn throttled(&self, cause: &'static str, time: Duration) {
        self.with(|s| *s.progress.throttled_seconds.entry(cause).or_default() += time.as_secs_f64());
    }

    pub(super) fn blind(&self, what: Option<String>) {
        self.with(|s| s.progress.brakes_blind = what);
    }

    pub(super) fn again(&self, why: Option<Again>) {
        self.with(|s| {
            if why == Some(Again::NotVisible) {
                s.progress.chunks_not_visible += 1;
            } else {
                s.progress.chunks_again += 1;
            }
        });
    }

    /// A chunk was handed over.
    pub(super) fn chunk(&self, cursor: &Cursor, rows: u64, bytes: u64, evicted: u64) {
        self.table(&cursor.table, |t| t.rows += rows);
        self.with(|s| {
            if s.recent.len() == RECENT {
                s.recent.pop_front();
            }
            s.recent.push_back((Instant::now(), s.progress.rows));
            s.progress.rows += rows;
            s.progress.bytes += bytes;
            s.progress.chunks += 1;
            s.progress.rows_evicted += evicted;
            s.progress.waiting = None;
        });
    }
}

//! The initial load: reads the rows that are older than the slot, in chunks, and puts them into the stream where they
//! belong.
//!
//! ```text
//!             ┌── hook ◀── begin, change, commit, watermark ── engine (owns token and writer)
//!  job ─steps─▶   │                                              ▲
//!   │         └───┴── rows, then the cursor ─────────────────────┘
//!   └── SELECT … WHERE key > cursor LIMIT n, between two watermarks ──▶ PostgreSQL
//! ```
//!
//! The slot exists first, so every change after it comes through the stream; a chunk's rows join the stream at its
//! high watermark, without those whose key changed while the chunk was read ([`window`](self)). A read row's version is
//! the position of the watermark's commit: it outranks every event before it, which it includes, and any later event
//! outranks it.
//!
//! Never writes to the journal itself, never decides what is acknowledged, and never sees an event that is already
//! in the journal as new. What it must know after a crash stands in the control journal: cursors.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::capture::hook::{Hook, Hooks};
use crate::config;
use crate::control::{Cursor, State};

mod hook;
mod job;
mod pace;
mod sql;
mod stats;
#[cfg(test)]
mod tests;
mod window;

pub use stats::{Progress, Stats, TableProgress, TableState};

/// Name of the job that reads what is older than the slot; part of its rows' event ids.
pub const INITIAL_LOAD: &str = "load";

/// The initial load of one source: makes the hook of each capture session that still has something to read.
#[derive(Debug)]
pub struct Backfill {
    source: config::Source,
    pipeline: String,
    stats: Arc<Stats>,
}

impl Backfill {
    /// The initial load of this source, as configured.
    #[must_use]
    pub fn new(source: &config::Source, pipeline: &str) -> Self {
        Backfill { source: source.clone(), pipeline: pipeline.to_owned(), stats: Arc::default() }
    }

    /// How far it is.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Cursors of this epoch by table; those of an earlier one count for nothing, since its positions do.
    fn cursors(&self, state: &State, epoch: u32) -> HashMap<String, Cursor> {
        let names = self.source.tables.iter().map(|t| format!("{}.{}", t.schema, t.table));
        let known = names.filter_map(|name| state.cursor(INITIAL_LOAD, &name).filter(|c| c.epoch == epoch).map(|c| (name, c.clone())));
        known.collect()
    }
}

impl Hooks for Backfill {
    fn session(&self, state: &State, epoch: u32) -> Option<Box<dyn Hook>> {
        let cursors = self.cursors(state, epoch);
        let announced = state.load(INITIAL_LOAD).is_some_and(|l| l.epoch == epoch);
        let tables = || self.source.tables.iter().map(|t| format!("{}.{}", t.schema, t.table));
        self.stats.begin(tables().map(|name| {
            let cursor = cursors.get(&name);
            (name, cursor)
        }));
        let all_done = tables().all(|name| cursors.get(&name).is_some_and(|c| c.done));
        if !self.source.initial_load || (announced && all_done) {
            self.stats.finish();
            return None;
        }
        let (steps, receiver) = mpsc::channel(hook::STEPS_MAX);
        let job = job::Job {
            source: self.source.clone(),
            pipeline: self.pipeline.clone(),
            name: INITIAL_LOAD.to_owned(),
            epoch,
            cursors,
            announced,
            steps,
            stats: self.stats.clone(),
        };
        let job = tokio::spawn(job.run());
        Some(Box::new(hook::ReadHook::new(receiver, self.stats.clone()).owning(job)))
    }
}

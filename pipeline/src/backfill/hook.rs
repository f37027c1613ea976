//! The backfill's place in the engine: feeds the window what the stream says and hands over rows and records.
//!
//! Runs on the engine's task and never waits. The job on the other side of the channel reads the database; it has one
//! window open at a time and at most one chunk more handed over than stored, which bounds everything held here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::{EventId, Lsn, Position, TableSchema};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::stats::Stats;
use super::window::{Again, Chunk, Closed, Opening, Row, Window};
use crate::capture::hook::{HandOver, Hook, ReadRow, Write};
use crate::capture::pgoutput::Tuple;
use crate::control::{Cursor, Record};

/// Prefix of the logical messages that carry watermarks.
pub(super) const PREFIX: &str = "tillstream/watermark";

/// Room for what the job may send before it waits for an answer: a record, an opening, a chunk and its end.
pub(super) const STEPS_MAX: usize = 4;

/// What the job asks of the hook.
#[derive(Debug)]
pub(super) enum Step {
    /// Store a record.
    Record {
        /// The record.
        record: Record,
        /// Told when it is in the control journal.
        stored: oneshot::Sender<()>,
    },
    /// A window opens; its low watermark is not written yet.
    Open {
        /// What to look for.
        opening: Opening,
        /// Told what comes of the window.
        verdict: oneshot::Sender<Verdict>,
    },
    /// The open window's chunk was read; its high watermark is not written yet.
    Chunk {
        /// The rows.
        chunk: Chunk,
        /// The cursor once the chunk is stored, but for its count of rows.
        cursor: Cursor,
        /// Told when the cursor is in the control journal.
        stored: oneshot::Sender<()>,
    },
    /// The open window's chunk could not be read.
    Abandon,
    /// There is nothing left to read.
    Finished,
}

/// What came of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The chunk's surviving rows are on their way.
    HandedOver {
        /// How many.
        rows: u64,
    },
    /// Read the chunk again.
    Again(Again),
}

#[derive(Debug)]
struct Pending {
    table: Arc<TableSchema>,
    verdict: oneshot::Sender<Verdict>,
    chunk: Option<(Cursor, oneshot::Sender<()>)>,
}

#[derive(Debug)]
enum Out {
    Rows { table: Arc<TableSchema>, id: ReadId, as_of: Position, rows: std::vec::IntoIter<(u32, Row)> },
    Record { record: Record, stored: oneshot::Sender<()> },
}

/// The hook of one session.
pub(super) struct ReadHook {
    window: Window,
    steps: mpsc::Receiver<Step>,
    pending: Option<Pending>,
    out: VecDeque<Out>,
    handed_over: HandOver,
    unstored: VecDeque<(HandOver, oneshot::Sender<()>)>,
    finished: bool,
    stats: Arc<Stats>,
    job: Option<JoinHandle<()>>,
}

impl ReadHook {
    /// A hook that does what comes through `steps`.
    pub(super) fn new(steps: mpsc::Receiver<Step>, stats: Arc<Stats>) -> Self {
        ReadHook {
            window: Window::default(),
            steps,
            pending: None,
            out: VecDeque::new(),
            handed_over: HandOver(0),
            unstored: VecDeque::new(),
            finished: false,
            stats,
            job: None,
        }
    }

    /// The job ends with the hook.
    pub(super) fn owning(mut self, job: JoinHandle<()>) -> Self {
        self.job = Some(job);
        self
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Record { record, stored } => self.out.push_back(Out::Record { record, stored }),
            Step::Open { opening, verdict } => {
                self.pending = Some(Pending { table: opening.table.clone(), verdict, chunk: None });
                self.window.open(opening);
            }
            Step::Chunk { chunk, cursor, stored } => {
                if let Some(pending) = &mut self.pending {
                    pending.chunk = Some((cursor, stored));
                    self.window.chunk(chunk);
                }
            }
            Step::Abandon => {
                self.pending = None;
                self.window.abandon();
            }
            Step::Finished => {
                self.finished = true;
                self.window.clear();
            }
        }
    }

    fn closed(&mut self, closed: Closed) {
        let Some(Pending { table, verdict, chunk }) = self.pending.take() else { return };
        let answer = match (closed, chunk) {
            (Closed::Again(why), _) => Verdict::Again(why),
            (Closed::Survivors { .. }, None) => Verdict::Again(Again::Disorder),
            (Closed::Survivors { rows, evicted, as_of }, Some((mut cursor, stored))) => {
                let count = rows.len() as u64;
                cursor.rows += count;
                // The cursor already names the next chunk.
                let id = ReadId {
                    epoch: cursor.epoch,
                    job: cursor.job.clone(),
                    table: cursor.table.clone(),
                    chunk: cursor.chunk - 1,
                    attempt: cursor.attempt,
                    row: 0,
                };
                self.stats.chunk(&cursor, count, evicted as u64);
                self.out.push_back(Out::Rows { table, id, as_of, rows: rows.into_iter() });
                self.out.push_back(Out::Record { record: Record::Cursor(cursor), stored });
                Verdict::HandedOver { rows: count }
            }
        };
        // A job that no longer listens has ended with its hook, or is about to.
        let _ = verdict.send(answer);
    }
}

impl Drop for ReadHook {
    fn drop(&mut self) {
        if let Some(job) = &self.job {
            job.abort();
        }
    }
}

impl Hook for ReadHook {
    fn begin(&mut self, xid: u32, _commit_lsn: Lsn) {
        if !self.finished {
            self.window.begin(xid);
        }
    }

    fn change(&mut self, oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        if !self.finished {
            self.window.change(oid, table, old, new);
        }
    }

    fn truncate(&mut self, oid: u32, _table: &TableSchema) {
        if !self.finished {
            self.window.truncate(oid);
        }
    }

    fn message(&mut self, prefix: &[u8], content: &[u8], at: Position) {
        if self.finished || prefix != PREFIX.as_bytes() {
            return;
        }
        // What the job sent before it wrote this watermark.
        while let Ok(step) = self.steps.try_recv() {
            self.step(step);
        }
        if let Some(closed) = self.window.watermark(content, at) {
            self.closed(closed);
        }
    }

    fn commit(&mut self, _xid: u32, _end: Lsn) {
        if !self.finished {
            self.window.commit();
        }
    }

    fn write(&mut self) -> Option<Write> {
        loop {
            match self.out.front_mut()? {
                Out::Rows { table, id, as_of, rows } => match rows.next() {
                    Some((row, values)) => {
                        let id = EventId::Read(ReadId { row, ..id.clone() }).to_string();
                        return Some(Write::Row(ReadRow { table: table.clone(), id, values, as_of: *as_of, row }));
                    }
                    None => {
                        self.out.pop_front();
                    }
                },
                Out::Record { .. } => {
                    let Some(Out::Record { record, stored }) = self.out.pop_front() else { return None };
                    self.handed_over.0 += 1;
                    self.unstored.push_back((self.handed_over, stored));
                    return Some(Write::Record(self.handed_over, record));
                }
            }
        }
    }

    fn stored(&mut self, upto: HandOver) {
        while self.unstored.front().is_some_and(|(hand_over, _)| *hand_over <= upto) {
            if let Some((_, stored)) = self.unstored.pop_front() {
                let _ = stored.send(());
            }
        }
    }

    fn is_done(&self) -> bool {
        self.finished && self.out.is_empty() && self.unstored.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(step)) = self.steps.poll_recv(cx) {
            self.step(step);
        }
        if self.out.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

//! The backfill's place in the engine: feeds the windows what the stream says and hands over rows and records.
//!
//! Runs on the engine's task and never waits. Each reader on the other side of the channel has at most two windows open at a
//! time: that of the chunk that is being written, and that of the one it reads meanwhile. That bounds everything held here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::{Lsn, Position, TableSchema};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::stats::Stats;
use super::window::{Again, Chunk, Closed, Next, Opening, WindowId, Windows, as_of, as_of_passed};
use crate::capture::hook::{HandOver, Hook, Write};
use crate::capture::pgoutput::Tuple;
use crate::capture::read_rows::{ReadChunk, ReadRow, ReadScope};
use crate::control::{Cursor, Record};

/// Prefix of the logical messages that carry watermarks.
pub(super) const PREFIX: &str = "tillstream/watermark";

/// Room for what readers may send before they wait for an answer: each a record, an opening, a chunk and its end.
pub(super) const STEPS_MAX: usize = 4 * super::READERS_MAX;

/// What the readers ask of the hook.
#[derive(Debug)]
pub(super) enum Step {
    /// Something is going to be read.
    Begin,
    /// Store a record.
    Record {
        /// The record.
        record: Box<Record>,
        /// Told when it is in the control journal.
        stored: oneshot::Sender<()>,
    },
    /// A window opens; its low watermark is not written yet.
    Open {
        /// Names it.
        id: WindowId,
        /// What to look for.
        opening: Opening,
        /// Told what comes of the window.
        verdict: oneshot::Sender<Verdict>,
    },
    /// The open window's chunk was read; its high watermark is not written yet.
    Chunk(Box<Taken>),
    /// The open window's chunk could not be read.
    Abandon(WindowId),
    /// Tell that everything sent before was taken.
    Taken(oneshot::Sender<()>),
    /// There is nothing left to read.
    Rest,
}

/// A chunk with all that its rows need.
#[derive(Debug)]
pub(super) struct Taken {
    /// Its window.
    pub(super) id: WindowId,
    /// The rows.
    pub(super) chunk: Chunk,
    /// What all of them have in common.
    pub(super) scope: Option<Arc<ReadScope>>,
    /// Number of the chunk; no other chunk of the table has it under this attempt.
    pub(super) number: u32,
    /// The cursor once the chunk is stored, but for its count of rows.
    pub(super) cursor: Cursor,
    /// Told when the cursor is in the control journal.
    pub(super) stored: oneshot::Sender<()>,
    /// Where it is counted.
    pub(super) stats: Arc<Stats>,
}

/// What came of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The surviving rows are written. The cursor is on its way after them; reading goes on behind it.
    Written {
        /// The cursor.
        cursor: Box<Cursor>,
        /// Why the chunk was cut short, if it was.
        cut: Option<Again>,
    },
    /// Read the chunk again.
    Again(Again),
}

#[derive(Debug)]
struct Pending {
    id: WindowId,
    table: Arc<TableSchema>,
    verdict: oneshot::Sender<Verdict>,
    taken: Option<Box<Taken>>,
}

#[derive(Debug)]
enum Out {
    Rows(Box<Rows>),
    Record { record: Box<Record>, stored: oneshot::Sender<()> },
}

/// A chunk whose rows are being written.
#[derive(Debug)]
struct Rows {
    chunk: Arc<ReadChunk>,
    written: u64,
    verdict: oneshot::Sender<Verdict>,
    taken: Box<Taken>,
}

/// The hook of one session.
pub(super) struct ReadHook {
    epoch: u32,
    windows: Windows,
    steps: mpsc::Receiver<Step>,
    pending: Vec<Pending>,
    out: VecDeque<Out>,
    handed_over: HandOver,
    unstored: VecDeque<(HandOver, oneshot::Sender<()>)>,
    busy: bool,
    /// Whether the stream brings changes at present: the engine tells, the readers ask.
    live: Arc<AtomicBool>,
    runner: Option<JoinHandle<()>>,
}

impl ReadHook {
    /// A hook that does what comes through `steps`. `busy` is whether something is going to be read at once.
    pub(super) fn new(steps: mpsc::Receiver<Step>, epoch: u32, busy: bool, live: Arc<AtomicBool>) -> Self {
        ReadHook {
            epoch,
            windows: Windows::default(),
            steps,
            pending: Vec::new(),
            out: VecDeque::new(),
            handed_over: HandOver(0),
            unstored: VecDeque::new(),
            busy,
            live,
            runner: None,
        }
    }

    /// What sends the steps ends with the hook.
    pub(super) fn owning(mut self, runner: JoinHandle<()>) -> Self {
        self.runner = Some(runner);
        self
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin => {
                self.busy = true;
                self.windows.watch();
            }
            Step::Record { record, stored } => self.out.push_back(Out::Record { record, stored }),
            Step::Open { id, opening, verdict } => {
                self.pending.push(Pending { id, table: opening.table.clone(), verdict, taken: None });
                self.windows.open(id, opening);
            }
            Step::Chunk(taken) => {
                if let Some(pending) = self.pending.iter_mut().find(|p| p.id == taken.id) {
                    let mut taken = taken;
                    let chunk = std::mem::replace(&mut taken.chunk, Chunk::nothing());
                    taken.chunk.rows = chunk.rows.clone();
                    self.windows.chunk(taken.id, chunk);
                    pending.taken = Some(taken);
                }
            }
            Step::Abandon(id) => {
                self.pending.retain(|p| p.id != id);
                self.windows.abandon(id);
            }
            Step::Taken(taken) => drop(taken.send(())),
            Step::Rest => {
                self.busy = false;
                self.pending.clear();
                self.windows.rest();
            }
        }
    }

    fn closed(&mut self, id: WindowId, closed: Closed, as_of: Position) {
        let Some(at) = self.pending.iter().position(|p| p.id == id) else { return };
        let Pending { table, verdict, taken, .. } = self.pending.swap_remove(at);
        match (closed, taken) {
            (Closed::Ready, Some(taken)) => {
                let cursor = &taken.cursor;
                let first = ReadId {
                    epoch: cursor.epoch,
                    job: cursor.job.clone(),
                    table: cursor.table.clone(),
                    chunk: taken.number,
                    attempt: cursor.attempt,
                    row: 0,
                };
                let chunk = Arc::new(ReadChunk::new(table, taken.chunk.rows.clone(), taken.scope.clone(), first, as_of));
                self.out.push_back(Out::Rows(Box::new(Rows { chunk, written: 0, verdict, taken })));
            }
            // A reader that no longer listens has ended with its hook, or is about to.
            (Closed::Again(why), _) => drop(verdict.send(Verdict::Again(why))),
            (Closed::Ready, None) => {
                self.windows.abandon(id);
                drop(verdict.send(Verdict::Again(Again::Disorder)));
            }
        }
    }

    fn take_steps(&mut self) {
        while let Ok(step) = self.steps.try_recv() {
            self.step(step);
        }
    }

    fn passed(&mut self, reached: Lsn) {
        while let Some((id, closed)) = self.windows.passed(reached) {
            self.closed(id, closed, as_of_passed(self.epoch, reached));
        }
    }
}

impl Rows {
    fn row(&mut self, row: usize, gone: bool) -> ReadRow {
        self.written += 1;
        ReadRow { chunk: self.chunk.clone(), row: u32::try_from(row).unwrap_or(u32::MAX), gone }
    }

    /// Its last row is written: the record that says so, and the word to its reader.
    fn end(self, cut: Option<(Again, Option<crate::control::KeyTexts>)>, evicted: u64) -> Option<Out> {
        let Rows { taken, written, verdict, chunk } = self;
        let Taken { mut cursor, stored, stats, .. } = *taken;
        let cut = match cut {
            None => None,
            // Nothing of it can be kept: what was written is written again, under another number.
            Some((why, None)) => {
                drop(verdict.send(Verdict::Again(why)));
                return None;
            }
            Some((why, Some(after))) => {
                (cursor.after, cursor.done) = (Some(after), false);
                Some(why)
            }
        };
        cursor.rows += written;
        stats.chunk(&cursor, written, chunk.rows.bytes() as u64, evicted);
        drop(verdict.send(Verdict::Written { cursor: Box::new(cursor.clone()), cut }));
        Some(Out::Record { record: Box::new(Record::Cursor(cursor)), stored })
    }
}

impl Drop for ReadHook {
    fn drop(&mut self) {
        if let Some(runner) = &self.runner {
            runner.abort();
        }
    }
}

impl Hook for ReadHook {
    fn live(&mut self, live: bool) {
        self.live.store(live, Ordering::Relaxed);
    }

    fn watches(&self) -> bool {
        self.windows.any_open()
    }

    fn begin(&mut self, xid: u32, _commit_lsn: Lsn) {
        self.windows.begin(xid);
    }

    fn change(&mut self, oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        self.windows.change(oid, table, old, new);
    }

    fn truncate(&mut self, oid: u32, _table: &TableSchema) {
        self.windows.truncate(oid);
    }

    fn message(&mut self, prefix: &[u8], content: &[u8], at: Position) {
        if prefix != PREFIX.as_bytes() {
            return;
        }
        // What a reader sent before it wrote this watermark.
        self.take_steps();
        if let Some((id, closed)) = self.windows.watermark(content) {
            self.closed(id, closed, as_of(at));
        }
    }

    fn commit(&mut self, _xid: u32, end: Lsn) {
        self.windows.commit();
        if self.busy {
            self.passed(end);
        }
    }

    fn idle(&mut self, reached: Lsn) {
        if self.busy {
            self.take_steps();
            self.passed(reached);
        }
    }

    fn write(&mut self) -> Option<Write> {
        loop {
            match self.out.pop_front()? {
                Out::Record { record, stored } => {
                    self.handed_over.0 += 1;
                    self.unstored.push_back((self.handed_over, stored));
                    return Some(Write::Record(self.handed_over, record));
                }
                Out::Rows(mut rows) => {
                    let (cut, evicted) = match self.windows.next(rows.taken.id) {
                        Next::Row { row, gone } => {
                            let read = rows.row(row, gone);
                            self.out.push_front(Out::Rows(rows));
                            return Some(Write::Row(read));
                        }
                        Next::Done { evicted } => (None, evicted),
                        Next::Cut { why, after, evicted } => (Some((why, after)), evicted),
                    };
                    // The cursor follows its rows at once.
                    if let Some(record) = rows.end(cut, evicted) {
                        self.out.push_front(record);
                    }
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
        !self.busy && self.out.is_empty() && self.unstored.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(step)) = self.steps.poll_recv(cx) {
            self.step(step);
        }
        if self.out.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

//! Chunk windows: which rows of a chunk may join the stream. A pure state machine; knows no clock, no socket.
//!
//! ```text
//!  stream   … T1 ── T2 ── LW ── T3 ── T4 ── HW ── T5 ── row ── row ── T6 ── row …
//!                          └── chunk read ──┘
//!  T3 … T6  keys changed by one that the chunk did not see are evicted, until the row itself is written
//!  T1, T2   must be visible to the chunk's snapshot, or the chunk is read again
//! ```
//!
//! Rows are not written in one go: live changes go first, so a window stays open until its last row is written, and a
//! change that comes in between evicts the rows that wait. An update does not carry large values that it left alone.
//! When such an update would evict a row, the rest of the chunk is read again: dropping the row would drop the only
//! copy of that value.
//!
//! The second rule closes a gap that watermarks alone leave open. PostgreSQL makes a commit visible to snapshots only
//! after its record is in the write-ahead log (and, with synchronous replication, after the standby has answered), so
//! a transaction may come through the stream before the low watermark and still be missing from a chunk read after
//! it. Such a chunk would write the old row *behind* the newer event. The snapshot itself tells: a transaction that
//! was delivered before the low watermark and is in progress for the snapshot makes the chunk unusable. What was
//! delivered before anybody watched (by an earlier run, say) is covered by the number of the first watermark's own
//! transaction: whatever committed before it has a lower one.
//!
//! Several windows may be open at once, one per reader. What is visible once stays visible, so a transaction is
//! forgotten as soon as one snapshot has seen it.
//!
//! Where the reading role may not write messages, or reads from a standby, a window is bounded by positions instead:
//! it opens when the stream's reader hears of it, and closes once the stream has passed a position taken after the
//! chunk was read. The rules are the same.

use std::collections::HashMap;
use std::sync::Arc;

use tillstream_schemas::{Lsn, Position, TableSchema};

use crate::capture::catalog::Snapshot;
use crate::capture::pgoutput::{Tuple, TupleValue};
use crate::capture::read_rows::ReadRows;
use crate::control::KeyTexts;

/// Names a window; a job's readers never use one twice.
pub(super) type WindowId = u64;

/// How a window's bounds are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marks {
    /// Contents of the two watermark messages.
    Messages {
        /// Of the low one.
        low: String,
        /// Of the high one.
        high: String,
    },
    /// By positions: see the module's text. The transaction number is above that of everything that committed before
    /// the window was asked for.
    Positions {
        /// That number; `None` when something else vouches for it (a standby that has replayed all of it).
        horizon: Option<u32>,
    },
}

/// What a chunk's window is opened with, before its low watermark is written.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    /// OID of the table as the stream names it.
    pub oid: u32,
    /// The table as the catalogue describes it.
    pub table: Arc<TableSchema>,
    /// How its bounds are told.
    pub marks: Marks,
}

/// What was read between the watermarks.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The rows, in key order unless they were asked for by key.
    pub rows: Arc<ReadRows>,
    /// Rows from this number on were asked for by key and are not there; only their key columns hold values.
    pub gone_from: usize,
    /// What the reading statement saw; `None` when it found no row.
    pub snapshot: Option<Snapshot>,
    /// Positions of the key columns in a row, in the key's order: what a chunk that is cut short resumes behind.
    /// `None` when it cannot be cut, as rows asked for by key.
    pub key: Option<Arc<[usize]>>,
    /// With bounds by position: what the stream has to pass.
    pub high: Lsn,
}

impl Chunk {
    /// A chunk without rows, in the place of one that moved on.
    pub(super) fn nothing() -> Chunk {
        Chunk { rows: Arc::default(), gone_from: 0, snapshot: None, key: None, high: Lsn(0) }
    }
}

/// Why a chunk has to be read again, or the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// A transaction delivered before the low watermark was not visible to the chunk.
    NotVisible,
    /// The table changed its shape inside the window.
    TableChanged,
    /// A change inside the window did not say which row it meant.
    KeyUnknown,
    /// An update that the chunk did not see left out a large value of one of its rows.
    Incomplete,
    /// More keys changed inside the window than are remembered.
    TooManyKeys,
    /// The watermarks did not come in their order.
    Disorder,
}

/// What comes of a window once its high watermark is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Its rows may be written now, by [`Windows::next`].
    Ready,
    /// Read it again; none of its rows was written.
    Again(Again),
}

/// The next row of a chunk that is being written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This one.
    Row {
        /// Its number in the chunk.
        row: usize,
        /// Whether it was asked for and is not there.
        gone: bool,
    },
    /// There is none left.
    Done {
        /// How many were dropped because the stream has them.
        evicted: u64,
    },
    /// The rest has to be read again.
    Cut {
        /// Why.
        why: Again,
        /// The last row that was dealt with; `None` when there is none, or when the chunk cannot be resumed inside.
        after: Option<KeyTexts>,
        /// How many were dropped because the stream has them.
        evicted: u64,
    },
}

#[derive(Debug)]
struct Open {
    id: WindowId,
    opening: Opening,
    /// Positions of the key columns.
    key: Vec<usize>,
    /// Transactions delivered up to this one came before the low watermark; `None` until it is seen.
    low: Option<u64>,
    /// The last transaction that emptied the table inside the window.
    truncated_by: Option<u32>,
    trouble: Option<Again>,
    /// Changed keys, each with its last change: rows are locked until their changer is visible, so if a chunk sees the
    /// last one, it sees all.
    touched: HashMap<Box<[u8]>, Touch>,
    touched_bytes: usize,
    chunk: Option<Chunk>,
    /// Set once its rows may be written.
    writing: Option<Writing>,
}

/// A chunk whose rows are being written.
#[derive(Debug)]
struct Writing {
    snapshot: Option<Snapshot>,
    next: usize,
    evicted: u64,
}

/// The last change of a key inside a window.
#[derive(Clone, Copy, Debug)]
struct Touch {
    xid: u32,
    /// Whether it left values out.
    incomplete: bool,
}

/// Transactions that the stream delivered and no snapshot is known to have seen.
#[derive(Debug, Default)]
struct Delivered {
    /// Each with its number in the stream.
    xids: Vec<(u64, u32)>,
    /// Nothing is usable until a snapshot sees everything up to this one: what was delivered before anybody watched, or
    /// was too much to remember one by one.
    all_upto: Option<u32>,
}

/// Watches the stream for the open windows.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: Vec<Open>,
    delivered: Delivered,
    /// Transactions seen so far.
    count: u64,
    current: Option<u32>,
    changes: bool,
    /// Whether the rows of the current transaction are seen from its first one on.
    looks: bool,
    /// Whether everything delivered since is remembered.
    watching: bool,
    /// Whether what came before that is covered by a horizon.
    covered: bool,
}

impl Delivered {
    /// A million transactions, 16 MiB: what a busy point of sale commits in several minutes. They are forgotten with
    /// each chunk, so more gather only while the stream is far behind the chunks.
    const MAX: usize = 1 << 20;

    fn add(&mut self, number: u64, xid: u32) {
        if self.xids.len() >= Self::MAX {
            self.all_upto = self.xids.drain(..).map(|(_, xid)| xid).chain(self.all_upto).reduce(later);
        }
        self.xids.push((number, xid));
    }

    fn upto(&mut self, xid: u32) {
        self.all_upto = Some(self.all_upto.map_or(xid, |all| later(all, xid)));
    }

    /// Forgets what the snapshot sees; answers whether it sees everything delivered up to a number.
    fn settle(&mut self, snapshot: &Snapshot, number: u64) -> bool {
        self.xids.retain(|(_, xid)| !snapshot.sees(*xid));
        if self.all_upto.is_some_and(|upto| below_horizon(snapshot, upto)) {
            self.all_upto = None;
        }
        self.all_upto.is_none() && !self.xids.iter().any(|(at, _)| *at <= number)
    }
}

/// Transaction ids run in a circle; the later of two is the one ahead by less than half of it.
fn later(a: u32, b: u32) -> u32 {
    if b.wrapping_sub(a).cast_signed() > 0 { b } else { a }
}

/// Whether the snapshot sees every transaction up to this one.
fn below_horizon(snapshot: &Snapshot, xid: u32) -> bool {
    let horizon = Snapshot { xmin: snapshot.xmin, xmax: snapshot.xmin, in_progress: Vec::new() };
    horizon.sees(xid)
}

impl Windows {
    /// Keys remembered in one window, at most: a chunk of usual size is a hundredth of that, so more can only come
    /// from a bulk change, after which the chunk is better read again.
    const TOUCHED_MAX: usize = 200_000;
    /// Their bytes, at most.
    const TOUCHED_BYTES_MAX: usize = 16 << 20;

    /// Whether any window wants to see rows.
    pub(super) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// From here on every transaction is remembered; those before are covered by the first window's horizon.
    pub(super) fn watch(&mut self) {
        if !self.watching {
            *self = Windows { watching: true, count: self.count, current: self.current, ..Windows::default() };
        }
    }

    /// Nothing is read any more: forgets everything.
    pub(super) fn rest(&mut self) {
        *self = Windows { count: self.count, current: self.current, ..Windows::default() };
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, xid: u32) {
        self.current = Some(xid);
        self.changes = false;
        self.looks = self.any_open();
        self.count += 1;
    }

    /// A row of it.
    #[inline]
    pub(super) fn change(&mut self, oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        self.changes = true;
        let Some(xid) = self.current else { return };
        for open in self.open.iter_mut().filter(|o| o.low.is_some() && o.opening.oid == oid) {
            open.touch(xid, table, old, new);
        }
    }

    /// A table of it was emptied.
    pub(super) fn truncate(&mut self, oid: u32) {
        self.changes = true;
        for open in self.open.iter_mut().filter(|o| o.low.is_some() && o.opening.oid == oid) {
            open.truncated_by = self.current;
        }
    }

    /// It ends.
    pub(super) fn commit(&mut self) {
        if let Some(xid) = self.current.take()
            && self.watching
            && (self.changes || !self.looks)
        {
            self.delivered.add(self.count, xid);
        }
    }

    /// Opens a window.
    pub(super) fn open(&mut self, id: WindowId, opening: Opening) {
        self.watch();
        let low = match &opening.marks {
            Marks::Messages { .. } => None,
            Marks::Positions { horizon } => {
                if let Some(horizon) = horizon {
                    self.cover(*horizon);
                }
                // What is open now was not looked into from its beginning: it counts as before.
                Some(self.count)
            }
        };
        let key = opening.table.columns.iter().enumerate().filter(|(_, c)| c.in_key).map(|(index, _)| index).collect();
        self.open.push(Open {
            id,
            opening,
            key,
            low,
            truncated_by: None,
            trouble: None,
            touched: HashMap::new(),
            touched_bytes: 0,
            chunk: None,
            writing: None,
        });
    }

    /// What committed before the first window is not known one by one, but all of it has lower numbers than `horizon`.
    fn cover(&mut self, horizon: u32) {
        if !self.covered {
            self.covered = true;
            self.delivered.upto(horizon);
        }
    }

    fn find(&mut self, id: WindowId) -> Option<&mut Open> {
        self.open.iter_mut().find(|o| o.id == id)
    }

    /// Takes the chunk that was read between the watermarks; its high watermark is not written yet.
    pub(super) fn chunk(&mut self, id: WindowId, chunk: Chunk) {
        if let Some(open) = self.find(id) {
            open.chunk = Some(chunk);
        }
    }

    /// Gives a window up: its chunk could not be read, or nobody wants it any more.
    pub(super) fn abandon(&mut self, id: WindowId) {
        self.open.retain(|o| o.id != id);
    }

    /// A watermark came through the stream, in a transaction of its own.
    pub(super) fn watermark(&mut self, content: &[u8]) -> Option<(WindowId, Closed)> {
        let (xid, count) = (self.current, self.count);
        let found = self.open.iter_mut().enumerate().find_map(|(at, open)| match &open.opening.marks {
            Marks::Messages { low, .. } if content == low.as_bytes() => Some((at, true)),
            Marks::Messages { high, .. } if content == high.as_bytes() => Some((at, false)),
            // Of a window that was given up, or of an earlier run.
            Marks::Messages { .. } | Marks::Positions { .. } => None,
        });
        match found? {
            (at, true) => {
                self.open[at].low = Some(count);
                if let Some(xid) = xid {
                    self.cover(xid);
                }
                None
            }
            (at, false) => Some(self.close(at)),
        }
    }

    /// The stream has passed a position: answers a window that this closes. Call until it answers `None`.
    pub(super) fn passed(&mut self, reached: Lsn) -> Option<(WindowId, Closed)> {
        let waits = |o: &Open| {
            matches!(o.opening.marks, Marks::Positions { .. }) && o.writing.is_none() && o.chunk.as_ref().is_some_and(|c| c.high <= reached)
        };
        let at = self.open.iter().position(waits)?;
        Some(self.close(at))
    }

    fn close(&mut self, at: usize) -> (WindowId, Closed) {
        let open = &mut self.open[at];
        let closed = match (open.low, open.chunk.as_mut().map(|c| c.snapshot.take()), open.trouble) {
            (Some(low), Some(Some(snapshot)), trouble) => {
                let visible = self.delivered.settle(&snapshot, low);
                open.writing = Some(Writing { snapshot: Some(snapshot), next: 0, evicted: 0 });
                match trouble {
                    Some(trouble) => Closed::Again(trouble),
                    None if !visible => Closed::Again(Again::NotVisible),
                    None => Closed::Ready,
                }
            }
            // Rows that the statement could not see yet come through the stream.
            (Some(_), Some(None), _) => {
                open.writing = Some(Writing { snapshot: None, next: 0, evicted: 0 });
                Closed::Ready
            }
            _ => Closed::Again(Again::Disorder),
        };
        let id = open.id;
        if closed != Closed::Ready {
            self.open.remove(at);
        }
        (id, closed)
    }

    /// The next row that may be written of a window that is ready. Its end closes the window.
    pub(super) fn next(&mut self, id: WindowId) -> Next {
        let Some(at) = self.open.iter().position(|o| o.id == id) else {
            return Next::Cut { why: Again::Disorder, after: None, evicted: 0 };
        };
        let next = self.open[at].next();
        if !matches!(next, Next::Row { .. }) {
            self.open.remove(at);
        }
        next
    }

    /// Leaves the visibility check out, to show what it is for.
    #[cfg(test)]
    pub(super) fn forget_delivered(&mut self) {
        self.delivered = Delivered::default();
    }
}

impl Open {
    fn next(&mut self) -> Next {
        let (Some(chunk), Some(writing)) = (&self.chunk, &mut self.writing) else {
            return Next::Cut { why: Again::Disorder, after: None, evicted: 0 };
        };
        let sees = |xid: u32| writing.snapshot.as_ref().is_some_and(|s| s.sees(xid));
        while writing.next < chunk.rows.len() {
            let row = writing.next;
            let mut cut = self.trouble;
            let mut evict = self.truncated_by.is_some_and(|xid| !sees(xid));
            if !evict && cut.is_none() && !self.touched.is_empty() {
                let texts = self.key.iter().map(|index| chunk.rows.get(row, *index).unwrap_or_default().as_bytes());
                if let Some(touch) = self.touched.get(&joined(texts)).filter(|touch| !sees(touch.xid)) {
                    evict = true;
                    cut = touch.incomplete.then_some(Again::Incomplete);
                }
            }
            if let Some(why) = cut {
                let key = |row: usize| {
                    let key = chunk.key.as_ref()?;
                    key.iter().map(|index| chunk.rows.get(row, *index).map(str::to_owned)).collect::<Option<Vec<_>>>().map(KeyTexts)
                };
                return Next::Cut { why, after: row.checked_sub(1).and_then(key), evicted: writing.evicted };
            }
            writing.next += 1;
            if evict {
                writing.evicted += 1;
            } else {
                return Next::Row { row, gone: row >= chunk.gone_from };
            }
        }
        Next::Done { evicted: writing.evicted }
    }

    fn touch(&mut self, xid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        if self.trouble.is_some() {
            return;
        }
        if !same_shape(&self.opening.table, table) {
            self.trouble = Some(Again::TableChanged);
            return;
        }
        let incomplete = new.is_some_and(|t| t.values().any(|v| v == TupleValue::Unchanged));
        let known = old.is_none_or(|t| self.touch_tuple(t, old, Touch { xid, incomplete: false }))
            && new.is_none_or(|t| self.touch_tuple(t, old, Touch { xid, incomplete }));
        if !known {
            self.trouble = Some(Again::KeyUnknown);
        } else if self.touched.len() > Windows::TOUCHED_MAX || self.touched_bytes > Windows::TOUCHED_BYTES_MAX {
            self.trouble = Some(Again::TooManyKeys);
        }
    }

    /// Remembers a tuple's key; false when it does not name it. A value that the server did not send again is the
    /// old one's.
    fn touch_tuple(&mut self, tuple: &Tuple<'_>, old: Option<&Tuple<'_>>, touch: Touch) -> bool {
        let mut texts = Vec::with_capacity(self.key.len());
        for index in &self.key {
            let value = match tuple.get(*index) {
                Some(TupleValue::Unchanged) => old.and_then(|o| o.get(*index)),
                value => value,
            };
            match value.and_then(TupleValue::text) {
                Some(text) => texts.push(text),
                None => return false,
            }
        }
        let key = joined(texts.into_iter());
        let bytes = key.len();
        if self.touched.insert(key, touch).is_none() {
            self.touched_bytes += bytes;
        }
        true
    }
}

/// The version of rows that are written once the stream has passed `reached`: above every event before it, below any
/// later one.
pub(super) fn as_of_passed(epoch: u32, reached: Lsn) -> Position {
    Position::new(epoch, Lsn(reached.0.saturating_sub(1)), 0)
}

/// The version of rows read up to a high watermark: above every event before it, below any later one.
pub(super) fn as_of(at: Position) -> Position {
    Position::new(at.epoch, at.commit_lsn, 0)
}

/// Key texts as one value. Each stands behind its length, so that two keys never look alike.
fn joined<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Box<[u8]> {
    let mut key = Vec::with_capacity(24);
    for text in texts {
        key.extend_from_slice(&(text.len() as u64).to_be_bytes());
        key.extend_from_slice(text);
    }
    key.into()
}

/// Whether rows of one look like rows of the other.
fn same_shape(a: &TableSchema, b: &TableSchema) -> bool {
    a.columns.len() == b.columns.len() && a.columns.iter().zip(&b.columns).all(|(a, b)| a.name == b.name && a.type_id == b.type_id)
}

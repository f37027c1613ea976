//! One chunk's window: which rows of a chunk may join the stream. A pure state machine; knows no clock, no socket.
//!
//! ```text
//!  stream   … T1 ── T2 ── LW ── T3 ── T4 ── HW ── …
//!                          └── chunk read ──┘
//!  T3, T4   keys changed by one that the chunk did not see are evicted: the stream has the newer image
//!  T1, T2   must be visible to the chunk's snapshot, or the chunk is read again
//! ```
//!
//! An update does not carry large values that it left alone. When such an update would evict a row, the chunk is read
//! again: dropping the row would drop the only copy of that value.
//!
//! The second rule closes a gap that watermarks alone leave open. PostgreSQL makes a commit visible to snapshots only
//! after its record is in the write-ahead log (and, with synchronous replication, after the standby has answered), so
//! a transaction may come through the stream before the low watermark and still be missing from a chunk read after
//! it. Such a chunk would write the old row *behind* the newer event. The snapshot itself tells: a transaction that
//! was delivered before the low watermark and is in progress for the snapshot makes the chunk unusable.
//!
//! What is visible once stays visible, so a transaction is forgotten as soon as one snapshot has seen it.

use std::collections::HashMap;
use std::sync::Arc;

use tillstream_schemas::{Position, TableSchema};

use crate::capture::catalog::Snapshot;
use crate::capture::pgoutput::{Tuple, TupleValue};

/// A row's values, one text per column as the server printed it.
pub(super) type Row = Vec<Option<String>>;

/// What a chunk's window is opened with, before its low watermark is written.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    /// OID of the table as the stream names it.
    pub oid: u32,
    /// The table as the catalogue describes it.
    pub table: Arc<TableSchema>,
    /// Content of the low watermark.
    pub low: String,
    /// Content of the high watermark.
    pub high: String,
}

/// What was read between the watermarks.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The rows in key order.
    pub rows: Vec<Row>,
    /// What the reading statement saw; `None` when it found no row.
    pub snapshot: Option<Snapshot>,
}

/// Why a chunk has to be read again. None of its rows was written.
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
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// These rows may be written, as of `as_of`; each with its number in the chunk.
    Survivors {
        /// The rows.
        rows: Vec<(u32, Row)>,
        /// How many were dropped because the stream has them.
        evicted: usize,
        /// The position of the high watermark's commit.
        as_of: Position,
    },
    /// Read it again.
    Again(Again),
}

#[derive(Debug)]
struct Open {
    opening: Opening,
    /// Positions of the key columns.
    key: Vec<usize>,
    low_seen: bool,
    /// The last transaction that emptied the table inside the window.
    truncated_by: Option<u32>,
    trouble: Option<Again>,
    /// Changed keys, each with its last change: rows are locked until their changer is visible, so if a chunk sees the
    /// last one, it sees all.
    touched: HashMap<Box<[u8]>, Touch>,
    touched_bytes: usize,
    chunk: Option<Chunk>,
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
    xids: Vec<u32>,
    /// Set when there were too many to remember one by one: nothing is usable until a snapshot sees everything below
    /// its own horizon up to this one.
    all_upto: Option<u32>,
}

/// Watches the stream for one chunk at a time.
#[derive(Debug, Default)]
pub(super) struct Window {
    open: Option<Open>,
    /// Delivered before the low watermark of the open window, or at any time when none is open.
    before: Delivered,
    /// Delivered inside the open window: they come before the next low watermark.
    inside: Delivered,
    current: Option<u32>,
    changes: bool,
}

impl Delivered {
    /// A million transactions, 4 MiB: what a busy point of sale commits in several minutes. They are forgotten with
    /// each chunk, so more gather only while the stream is far behind the chunks.
    const MAX: usize = 1 << 20;

    fn add(&mut self, xid: u32) {
        if self.xids.len() >= Self::MAX {
            let last = self.xids.drain(..).chain(self.all_upto).reduce(later);
            self.all_upto = last;
        }
        self.xids.push(xid);
    }

    /// Takes over what another one remembers.
    fn absorb(&mut self, other: &mut Delivered) {
        self.xids.append(&mut other.xids);
        self.all_upto = self.all_upto.into_iter().chain(other.all_upto.take()).reduce(later);
    }

    /// Forgets what the snapshot sees; answers whether nothing is left.
    fn settle(&mut self, snapshot: &Snapshot) -> bool {
        self.xids.retain(|xid| !snapshot.sees(*xid));
        if self.all_upto.is_some_and(|upto| below_horizon(snapshot, upto)) {
            self.all_upto = None;
        }
        self.xids.is_empty() && self.all_upto.is_none()
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

impl Window {
    /// Keys remembered in one window, at most: a chunk of usual size is a hundredth of that, so more can only come
    /// from a bulk change, after which the chunk is better read again.
    const TOUCHED_MAX: usize = 200_000;
    /// Their bytes, at most.
    const TOUCHED_BYTES_MAX: usize = 16 << 20;

    /// A transaction begins.
    pub(super) fn begin(&mut self, xid: u32) {
        self.current = Some(xid);
        self.changes = false;
    }

    /// A row of it.
    #[inline]
    pub(super) fn change(&mut self, oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        self.changes = true;
        let Some(xid) = self.current else { return };
        if let Some(open) = self.open.as_mut().filter(|o| o.low_seen && o.opening.oid == oid) {
            open.touch(xid, table, old, new);
        }
    }

    /// A table of it was emptied.
    pub(super) fn truncate(&mut self, oid: u32) {
        self.changes = true;
        if let Some(open) = self.open.as_mut().filter(|o| o.low_seen && o.opening.oid == oid) {
            open.truncated_by = self.current;
        }
    }

    /// It ends.
    pub(super) fn commit(&mut self) {
        if let Some(xid) = self.current.take().filter(|_| self.changes) {
            match &self.open {
                Some(open) if open.low_seen => self.inside.add(xid),
                _ => self.before.add(xid),
            }
        }
    }

    /// Opens a window. One that is open is given up.
    pub(super) fn open(&mut self, opening: Opening) {
        self.abandon();
        let key = opening.table.columns.iter().enumerate().filter(|(_, c)| c.in_key).map(|(index, _)| index).collect();
        self.open = Some(Open {
            opening,
            key,
            low_seen: false,
            truncated_by: None,
            trouble: None,
            touched: HashMap::new(),
            touched_bytes: 0,
            chunk: None,
        });
    }

    /// Takes the chunk that was read between the watermarks; its high watermark is not written yet.
    pub(super) fn chunk(&mut self, chunk: Chunk) {
        if let Some(open) = &mut self.open {
            open.chunk = Some(chunk);
        }
    }

    /// Gives the open window up: its chunk could not be read.
    pub(super) fn abandon(&mut self) {
        if self.open.take().is_some() {
            self.before.absorb(&mut self.inside);
        }
    }

    /// A watermark came through the stream, in a transaction of its own at `at`.
    pub(super) fn watermark(&mut self, content: &[u8], at: Position) -> Option<Closed> {
        let open = self.open.as_mut()?;
        if content == open.opening.low.as_bytes() {
            open.low_seen = true;
            return None;
        }
        if content != open.opening.high.as_bytes() {
            // Of a window that was given up, or of an earlier run.
            return None;
        }
        let mut open = self.open.take()?;
        let closed = match (open.chunk.take(), open.trouble) {
            (Some(Chunk { rows, snapshot: Some(snapshot) }), trouble) if open.low_seen => {
                let visible = self.before.settle(&snapshot);
                self.inside.settle(&snapshot);
                match trouble {
                    Some(trouble) => Closed::Again(trouble),
                    None if !visible => Closed::Again(Again::NotVisible),
                    None => open.survivors(rows, &snapshot, at),
                }
            }
            // Rows that the statement could not see yet come through the stream.
            (Some(Chunk { snapshot: None, .. }), _) if open.low_seen => {
                Closed::Survivors { rows: Vec::new(), evicted: 0, as_of: as_of(at) }
            }
            _ => Closed::Again(Again::Disorder),
        };
        self.before.absorb(&mut self.inside);
        Some(closed)
    }

    /// Leaves the visibility check out, to show what it is for.
    #[cfg(test)]
    pub(super) fn forget_delivered(&mut self) {
        self.before = Delivered::default();
    }

    /// Forgets everything: there is nothing left to read.
    pub(super) fn clear(&mut self) {
        *self = Window::default();
    }
}

impl Open {
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
        } else if self.touched.len() > Window::TOUCHED_MAX || self.touched_bytes > Window::TOUCHED_BYTES_MAX {
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

    fn survivors(&self, rows: Vec<Row>, snapshot: &Snapshot, at: Position) -> Closed {
        let all = rows.len();
        if self.truncated_by.is_some_and(|xid| !snapshot.sees(xid)) {
            return Closed::Survivors { rows: Vec::new(), evicted: all, as_of: as_of(at) };
        }
        let mut survivors = Vec::with_capacity(all);
        for (number, row) in (0..).zip(rows) {
            let texts = self.key.iter().map(|index| row.get(*index).and_then(Option::as_deref).unwrap_or_default().as_bytes());
            match self.touched.get(&joined(texts)) {
                Some(touch) if !snapshot.sees(touch.xid) => {
                    if touch.incomplete {
                        return Closed::Again(Again::Incomplete);
                    }
                }
                _ => survivors.push((number, row)),
            }
        }
        Closed::Survivors { evicted: all - survivors.len(), rows: survivors, as_of: as_of(at) }
    }
}

/// The version of rows read up to a high watermark: above every event before it, below any later one.
fn as_of(at: Position) -> Position {
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

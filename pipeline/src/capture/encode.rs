//! Tuples to envelope bytes: the event's JSON, written straight from the server's text into an entry's body.
//!
//! Owns the order and the form of the envelope's fields (version 1); never keeps anything between two events and
//! allocates nothing per event. Which entry the bytes go into, and whether they are needed, is the engine's.
//!
//! ```text
//! {"id":"e1-0/16B3748-17","op":"update","schema":"public","table":"order_item","layout":"5f0c6a1b9d3e","key":{"id":7},
//!  "before":null,"after":{"id":7,"qty":2},"unchanged":["receipt"],"commit_lsn":"0/16B3748","ordinal":17,"xid":753,
//!  "committed_at":"2026-11-22T10:00:00.123456Z"}
//! ```

use tillstream_schemas::partition::partition_of;
use tillstream_schemas::policy::write_guarded;
use tillstream_schemas::value::{instant, write_instant, write_string, write_value};
use tillstream_schemas::{Column, Half, Lsn, Op, Policy, TableSchema};

use super::pgoutput::{LogicalMessage, Tuple, TupleKind, TupleValue};
use super::read_rows::ReadRow;
use super::relations::{RelationError, check_columns};

/// What all events of a transaction share, printed once.
#[derive(Clone, Debug)]
pub struct TxContext {
    epoch: u32,
    commit_lsn: Lsn,
    /// `{"id":"e1-0/16B3748-`
    head: Inline,
    /// `,"commit_lsn":"0/16B3748","ordinal":`
    middle: Inline,
    /// `,"xid":753,"committed_at":"2026-11-22T10:00:00.123456Z"}`
    tail: Inline,
}

impl TxContext {
    /// A transaction, as its Begin names it. `commit_time` counts microseconds since 2000-01-01 00:00 UTC.
    #[must_use]
    pub fn new(epoch: u32, commit_lsn: Lsn, xid: u32, commit_time: i64) -> Self {
        TxContext::print(epoch, commit_lsn, Some((xid, commit_time)))
    }

    /// A logical message outside any transaction: its place is that of the last byte of its record, xid and commit time
    /// are null.
    ///
    /// The server names a message by the *end* of its record, which is where the next record begins: often a commit,
    /// whose transaction would have the same position. The byte before lies in the message's record and nowhere else,
    /// so positions stay different and in order. For the same reason `message.lsn` itself is what may be
    /// acknowledged, and not one byte more: the server would skip the commit that begins there.
    #[must_use]
    pub fn outside(epoch: u32, message: &LogicalMessage<'_>) -> Self {
        TxContext::print(epoch, Lsn(message.lsn.0.saturating_sub(1)), None)
    }

    fn print(epoch: u32, commit_lsn: Lsn, committed: Option<(u32, i64)>) -> Self {
        let head = Inline::default().text(b"{\"id\":\"e").number(epoch).text(b"-").lsn(commit_lsn).text(b"-");
        let middle = Inline::default().text(b",\"commit_lsn\":\"").lsn(commit_lsn).text(b"\",\"ordinal\":");
        let tail = match committed {
            Some((xid, commit_time)) => {
                Inline::default().text(b",\"xid\":").number(xid).text(b",\"committed_at\":\"").instant(commit_time).text(b"\"}")
            }
            None => Inline::default().text(b",\"xid\":null,\"committed_at\":null}"),
        };
        TxContext { epoch, commit_lsn, head, middle, tail }
    }

    /// The epoch of its events.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Where it commits; of a message outside a transaction its place.
    #[must_use]
    pub fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }

    #[inline]
    fn write_head(&self, out: &mut Vec<u8>, ordinal: u32, half: Half, op: Op) {
        out.extend_from_slice(self.head.as_bytes());
        write_number(out, ordinal);
        match half {
            Half::Whole => {}
            Half::Delete => out.push(b'd'),
            Half::Insert => out.push(b'i'),
        }
        write_op(out, op);
    }

    #[inline]
    fn write_tail(&self, out: &mut Vec<u8>, ordinal: u32) {
        out.extend_from_slice(self.middle.as_bytes());
        write_number(out, ordinal);
        out.extend_from_slice(self.tail.as_bytes());
    }
}

/// Text that lives in its owner: a context is made per transaction, and most have few rows.
#[derive(Clone, Debug)]
struct Inline {
    bytes: [u8; Inline::MAX],
    len: u8,
}

impl Inline {
    /// The longest piece is the tail: xid of 10 digits, an instant of at most 38 characters, 25 around them.
    const MAX: usize = 80;

    fn text(mut self, text: &[u8]) -> Self {
        let start = usize::from(self.len);
        self.bytes[start..start + text.len()].copy_from_slice(text);
        self.len += text.len() as u8;
        self
    }

    fn number(self, n: u32) -> Self {
        self.text(itoa::Buffer::new().format(n).as_bytes())
    }

    fn lsn(self, lsn: Lsn) -> Self {
        self.hex((lsn.0 >> 32) as u32).text(b"/").hex(lsn.0 as u32)
    }

    fn hex(self, n: u32) -> Self {
        let digits = (32 - n.leading_zeros()).div_ceil(4).max(1);
        let digit = |at: u32| b"0123456789ABCDEF"[(n >> (4 * at) & 15) as usize];
        let mut text = [0; 8];
        for (to, at) in text.iter_mut().zip((0..digits).rev()) {
            *to = digit(at);
        }
        self.text(&text[..digits as usize])
    }

    fn instant(self, micros: i64) -> Self {
        if let Some(text) = instant(micros) {
            return self.text(&text);
        }
        let mut text = Vec::new();
        write_instant(&mut text, micros);
        self.text(&text)
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Default for Inline {
    fn default() -> Self {
        Inline { bytes: [0; Inline::MAX], len: 0 }
    }
}

/// One row event, as the stream tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// A row was inserted.
    Insert(Tuple<'a>),
    /// A row was updated and kept its key.
    Update {
        /// The old row or key when the server sent one.
        old: Option<Tuple<'a>>,
        /// The row as it is now.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete(Tuple<'a>),
    /// First half of a key change: the old key goes.
    KeyDelete(Tuple<'a>),
    /// Second half of a key change: the row comes under its new key.
    KeyInsert {
        /// The old row or key, for values that the server did not send again.
        old: Tuple<'a>,
        /// The row as it is now.
        new: Tuple<'a>,
    },
}

impl<'a> Row<'a> {
    /// An UPDATE as one event, or as two under one ordinal when it changed the key (or the columns that choose the
    /// partition, which only identity FULL allows outside the key).
    #[inline]
    #[must_use]
    pub fn of_update(table: &TableSchema, old: Option<Tuple<'a>>, new: Tuple<'a>) -> (Row<'a>, Option<Row<'a>>) {
        match old {
            Some(old) if key_changed(table, &old, &new) => (Row::KeyDelete(old), Some(Row::KeyInsert { old, new })),
            _ => (Row::Update { old, new }, None),
        }
    }

    /// What the event says happened.
    #[inline]
    #[must_use]
    pub fn op(&self) -> Op {
        match self {
            Row::Insert(_) | Row::KeyInsert { .. } => Op::Insert,
            Row::Update { .. } => Op::Update,
            Row::Delete(_) | Row::KeyDelete(_) => Op::Delete,
        }
    }

    /// Which half of a key change it is: part of its position.
    #[inline]
    #[must_use]
    pub fn half(&self) -> Half {
        match self {
            Row::Insert(_) | Row::Update { .. } | Row::Delete(_) => Half::Whole,
            Row::KeyDelete(_) => Half::Delete,
            Row::KeyInsert { .. } => Half::Insert,
        }
    }

    /// The old tuple and the new one.
    #[inline]
    #[must_use]
    pub fn tuples(&self) -> (Option<Tuple<'a>>, Option<Tuple<'a>>) {
        match *self {
            Row::Insert(new) => (None, Some(new)),
            Row::Update { old, new } => (old, Some(new)),
            Row::Delete(old) | Row::KeyDelete(old) => (Some(old), None),
            Row::KeyInsert { old, new } => (Some(old), Some(new)),
        }
    }

    /// The row's values: the new ones completed by old ones that the server did not send again, or the old ones.
    #[inline]
    fn values<'t>(&self, table: &'t TableSchema) -> RowValues<'a, 't> {
        match *self {
            Row::Insert(new) => RowValues::new(table, new, None),
            Row::Update { old, new } => RowValues::new(table, new, old),
            Row::KeyInsert { old, new } => RowValues::new(table, new, Some(old)),
            Row::Delete(old) | Row::KeyDelete(old) => RowValues::new(table, old, None),
        }
    }
}

/// A row's columns with their values.
#[derive(Clone)]
struct RowValues<'a, 't> {
    columns: std::slice::Iter<'t, Column>,
    values: super::pgoutput::TupleValues<'a>,
    /// The old tuple's values and whether it is the whole row.
    old: Option<(super::pgoutput::TupleValues<'a>, bool)>,
}

impl<'a, 't> RowValues<'a, 't> {
    #[inline]
    fn new(table: &'t TableSchema, values: Tuple<'a>, old: Option<Tuple<'a>>) -> Self {
        let old = old.map(|o| (o.values(), o.kind() == TupleKind::OldRow));
        RowValues { columns: table.columns.iter(), values: values.values(), old }
    }
}

impl<'a, 't> Iterator for RowValues<'a, 't> {
    type Item = (&'t Column, TupleValue<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let column = self.columns.next()?;
        let value = self.values.next()?;
        let Some((old, whole)) = &mut self.old else { return Some((column, value)) };
        let old = old.next();
        match (value, old) {
            // Outside the key an old key's columns are null and say nothing.
            (TupleValue::Unchanged, Some(old)) if *whole || column.in_key => Some((column, old)),
            _ => Some((column, value)),
        }
    }
}

/// Whether an UPDATE changed the key or the columns that choose the partition.
#[must_use]
pub fn key_changed(table: &TableSchema, old: &Tuple<'_>, new: &Tuple<'_>) -> bool {
    let whole = old.kind() == TupleKind::OldRow;
    table.columns.iter().zip(old.values().zip(new.values())).enumerate().any(|(index, (column, (old, new)))| {
        let decides = column.in_key || (whole && table.partition_by.contains(&index));
        decides && new != TupleValue::Unchanged && old != new
    })
}

/// The partition, from 0, that a row event goes to. A TRUNCATE goes to all.
#[inline]
#[must_use]
pub fn partition(table: &TableSchema, row: &Row<'_>, count: u16) -> u16 {
    if count <= 1 {
        return 0;
    }
    let texts = table.partition_by.iter().map(|&index| row.values(table).nth(index).and_then(|(_, value)| value.text()));
    partition_of(texts, count)
}

/// The partition, from 0, that a backfill's row goes to: that of the live events of the same row.
#[must_use]
pub fn partition_of_read(row: &ReadRow, count: u16) -> u16 {
    if count <= 1 {
        return 0;
    }
    let text = |index: &usize| row.get(*index).map(str::as_bytes);
    partition_of(row.chunk.table.partition_by.iter().map(text), count)
}

/// Appends a row event.
///
/// # Errors
/// A tuple does not have the table's columns; then nothing was appended.
pub fn change(out: &mut Vec<u8>, tx: &TxContext, ordinal: u32, table: &TableSchema, row: &Row<'_>) -> Result<(), RelationError> {
    let (old, new) = row.tuples();
    for tuple in [&old, &new].into_iter().flatten() {
        check_columns(table, tuple)?;
    }
    let op = row.op();
    tx.write_head(out, ordinal, row.half(), op);
    out.extend_from_slice(&table.json_names);
    let values = row.values(table);
    out.extend_from_slice(b",\"key\":");
    write_key(out, values.clone());
    out.extend_from_slice(b",\"before\":");
    match old {
        Some(old) if op != Op::Insert && old.kind() == TupleKind::OldRow => {
            write_row(out, table, RowValues::new(table, old, None));
        }
        _ => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"after\":");
    if new.is_none() {
        out.extend_from_slice(b"null,\"unchanged\":[]");
    } else if write_row(out, table, values.clone()) {
        out.extend_from_slice(b",\"unchanged\":[");
        write_unchanged(out, values);
        out.push(b']');
    } else {
        out.extend_from_slice(b",\"unchanged\":[]");
    }
    tx.write_tail(out, ordinal);
    Ok(())
}

/// Appends a TRUNCATE of one table. Each emptied table has its own ordinal.
pub fn truncate(out: &mut Vec<u8>, tx: &TxContext, ordinal: u32, table: &TableSchema) {
    tx.write_head(out, ordinal, Half::Whole, Op::Truncate);
    out.extend_from_slice(&table.json_names);
    out.extend_from_slice(b",\"key\":null,\"before\":null,\"after\":null,\"unchanged\":[]");
    tx.write_tail(out, ordinal);
}

/// Appends a logical message: `after` holds its prefix and its content, as text when that is UTF-8, else as base64.
pub fn message(out: &mut Vec<u8>, tx: &TxContext, ordinal: u32, message: &LogicalMessage<'_>) {
    tx.write_head(out, ordinal, Half::Whole, Op::Message);
    out.extend_from_slice(b",\"schema\":null,\"table\":null,\"key\":null,\"before\":null,\"after\":{\"prefix\":");
    write_string(out, message.prefix);
    if std::str::from_utf8(message.content).is_ok() {
        out.extend_from_slice(b",\"content\":");
        write_string(out, message.content);
    } else {
        use base64::Engine;
        out.extend_from_slice(b",\"content_base64\":\"");
        out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(message.content).as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b"},\"unchanged\":[]");
    tx.write_tail(out, ordinal);
}

/// Appends the body of an `end` entry: `events` of the transaction went to this partition, `total` to all (each half
/// of a key change counts; a TRUNCATE counts once in `total` and once here).
pub fn end(out: &mut Vec<u8>, tx: &TxContext, events: u64, total: u64) {
    // `,"commit_lsn":"0/16B3748","ordinal":` holds what is needed up to the LSN's closing quote.
    let lsn = tx.middle.as_bytes();
    let lsn = lsn.strip_suffix(b",\"ordinal\":").unwrap_or(lsn);
    out.push(b'{');
    out.extend_from_slice(&lsn[1..]);
    let tail = tx.tail.as_bytes();
    out.extend_from_slice(tail.strip_suffix(b"}").unwrap_or(tail));
    out.extend_from_slice(b",\"events\":");
    write_number(out, events);
    out.extend_from_slice(b",\"total\":");
    write_number(out, total);
    out.push(b'}');
}

/// Appends a backfill's row. A row with fewer values than the table has columns lacks the last ones.
pub fn read(out: &mut Vec<u8>, row: &ReadRow) {
    let ReadRow { chunk, row: number, gone } = row;
    let (table, scope) = (&chunk.table, chunk.scope.as_deref());
    out.extend_from_slice(chunk.head());
    write_number(out, *number);
    write_op(out, if *gone { Op::Delete } else { Op::Read });
    out.extend_from_slice(&table.json_names);
    let omitted = scope.map_or(&[][..], |scope| &scope.omitted);
    let values = table.columns.iter().enumerate().map(|(index, column)| {
        let value = match row.get(index) {
            Some(text) => TupleValue::Text(text.as_bytes()),
            None if !omitted.is_empty() && omitted.binary_search(&index).is_ok() => TupleValue::Unchanged,
            None => TupleValue::Null,
        };
        (column, value)
    });
    out.extend_from_slice(b",\"key\":");
    write_key(out, values.clone());
    if *gone {
        out.extend_from_slice(b",\"before\":null,\"after\":null,\"unchanged\":[]");
    } else {
        out.extend_from_slice(b",\"before\":null,\"after\":");
        if write_row(out, table, values.clone()) {
            out.extend_from_slice(b",\"unchanged\":[");
            write_unchanged(out, values);
            out.push(b']');
        } else {
            out.extend_from_slice(b",\"unchanged\":[]");
        }
    }
    out.extend_from_slice(chunk.middle());
    write_number(out, *number);
    out.extend_from_slice(b",\"xid\":null,\"committed_at\":null}");
}

#[inline]
fn write_number(out: &mut Vec<u8>, n: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

#[inline]
fn write_op(out: &mut Vec<u8>, op: Op) {
    out.extend_from_slice(match op {
        Op::Insert => b"\",\"op\":\"insert\"",
        Op::Update => b"\",\"op\":\"update\"",
        Op::Delete => b"\",\"op\":\"delete\"",
        Op::Truncate => b"\",\"op\":\"truncate\"",
        Op::Read => b"\",\"op\":\"read\"",
        Op::Message => b"\",\"op\":\"message\"",
    });
}

/// Writes the key columns as an object; `null` for a table without a key.
#[inline]
fn write_key<'a, 't>(out: &mut Vec<u8>, values: impl Iterator<Item = (&'t Column, TupleValue<'a>)>) {
    let start = out.len();
    write_object(out, values.filter(|(column, _)| column.in_key));
    if out.len() == start + 2 {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// Writes a row as an object, as its columns' policies allow; tells whether the server did not send some of it.
#[inline]
fn write_row<'a, 't>(out: &mut Vec<u8>, table: &TableSchema, values: impl Iterator<Item = (&'t Column, TupleValue<'a>)>) -> bool {
    if table.guarded { write_guarded_object(out, table, values) } else { write_object(out, values) }
}

/// As [`write_object`], column by column under its policy. What the server did not send of a column that is always
/// null is null.
fn write_guarded_object<'a, 't>(
    out: &mut Vec<u8>,
    table: &TableSchema,
    values: impl Iterator<Item = (&'t Column, TupleValue<'a>)>,
) -> bool {
    let start = out.len();
    let mut unchanged = false;
    for (column, value) in values.filter(|(column, _)| column.policy.appears()) {
        match (value, column.policy) {
            (TupleValue::Text(text), Policy::Pass) => {
                out.extend_from_slice(&column.json_key);
                write_value(out, column.class, column.array, column.delimiter, text);
            }
            (TupleValue::Text(text), policy) => {
                out.extend_from_slice(&column.json_key);
                write_guarded(out, policy, table.hash_key.as_deref(), text);
            }
            (TupleValue::Null, _) | (TupleValue::Unchanged, Policy::Null) => {
                out.extend_from_slice(&column.json_key);
                out.extend_from_slice(b"null");
            }
            (TupleValue::Unchanged, _) => unchanged = true,
        }
    }
    close_object(out, start);
    unchanged
}

/// Every column wrote its comma first: that of the first one becomes the brace.
#[inline]
fn close_object(out: &mut Vec<u8>, start: usize) {
    match out.get_mut(start) {
        Some(first) => *first = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

/// Writes columns as an object, without those that the server did not send; tells whether there were such.
#[inline]
fn write_object<'a, 't>(out: &mut Vec<u8>, values: impl Iterator<Item = (&'t Column, TupleValue<'a>)>) -> bool {
    let start = out.len();
    let mut unchanged = false;
    for (column, value) in values {
        match value {
            TupleValue::Text(text) => {
                out.extend_from_slice(&column.json_key);
                write_value(out, column.class, column.array, column.delimiter, text);
            }
            TupleValue::Null => {
                out.extend_from_slice(&column.json_key);
                out.extend_from_slice(b"null");
            }
            TupleValue::Unchanged => unchanged = true,
        }
    }
    close_object(out, start);
    unchanged
}

/// Writes the names of the columns that the server did not send, without brackets.
fn write_unchanged<'a, 't>(out: &mut Vec<u8>, values: impl Iterator<Item = (&'t Column, TupleValue<'a>)>) {
    let start = out.len();
    for (column, value) in values {
        if value == TupleValue::Unchanged && column.policy.appears() && column.policy != Policy::Null {
            if out.len() > start {
                out.push(b',');
            }
            // `,"name":` without comma and colon.
            out.extend_from_slice(&column.json_key[1..column.json_key.len() - 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tillstream_schemas::Position;
    use tillstream_schemas::event_id::ReadId;
    use tillstream_schemas::table::Identity;

    use super::*;
    use crate::capture::pgoutput::{Message, parse};
    use crate::capture::read_rows::{ReadChunk, ReadRows};
    use crate::capture::relations::{ColumnSpec, TableOptions, table_schema};

    fn table(identity: Identity, partition_by: Option<&[&str]>) -> TableSchema {
        let column = |name: &str, type_oid, in_identity| ColumnSpec { name: name.to_owned(), type_oid, type_modifier: -1, in_identity };
        let full = identity == Identity::Full;
        let columns = [column("id", 20, true), column("location", 25, full), column("note", 25, full)];
        let partition_by = partition_by.map(|names| names.iter().map(|n| (*n).to_owned()).collect());
        let options = TableOptions { partition_by, primary_key: vec!["id".to_owned()], ..TableOptions::default() };
        table_schema(1, ("public", "stock"), ("public", "stock"), identity, columns.into_iter(), &options).expect("a good table")
    }

    /// An UPDATE's bytes; `u` is an unchanged value, `n` NULL, anything else text behind `=`.
    fn update(old: Option<(u8, &[&str])>, new: &[&str]) -> Vec<u8> {
        fn tuple(to: &mut Vec<u8>, values: &[&str]) {
            to.extend_from_slice(&(values.len() as u16).to_be_bytes());
            for value in values {
                match value.strip_prefix('=') {
                    Some(text) => {
                        to.push(b't');
                        to.extend_from_slice(&(text.len() as u32).to_be_bytes());
                        to.extend_from_slice(text.as_bytes());
                    }
                    None => to.push(value.as_bytes()[0]),
                }
            }
        }
        let mut bytes = b"U\0\0\0\x01".to_vec();
        if let Some((mark, values)) = old {
            bytes.push(mark);
            tuple(&mut bytes, values);
        }
        bytes.push(b'N');
        tuple(&mut bytes, new);
        bytes
    }

    fn rows<'a>(table: &TableSchema, bytes: &'a [u8]) -> (Row<'a>, Option<Row<'a>>) {
        let Ok(Message::Update { old, new, .. }) = parse(bytes) else { panic!("an update") };
        Row::of_update(table, old, new)
    }

    #[test]
    fn an_update_splits_only_when_its_key_or_partition_changed() {
        let halves = |table: &TableSchema, old, new: &[&str]| {
            let bytes = update(old, new);
            let (first, second) = rows(table, &bytes);
            (first.half(), second.map(|s| s.half()))
        };
        let (whole, split) = ((Half::Whole, None), (Half::Delete, Some(Half::Insert)));
        let by_key = table(Identity::Default, None);
        assert_eq!(halves(&by_key, None, &["=1", "=north", "n"]), whole);
        assert_eq!(halves(&by_key, Some((b'K', &["=1", "n", "n"])), &["=2", "=north", "n"]), split);
        // The server also sends the key when it is stored out of line and did not change.
        assert_eq!(halves(&by_key, Some((b'K', &["=1", "n", "n"])), &["u", "=north", "n"]), whole);
        assert_eq!(halves(&by_key, Some((b'K', &["=1", "n", "n"])), &["=1", "=north", "n"]), whole);
        let full = table(Identity::Full, None);
        assert_eq!(halves(&full, Some((b'O', &["=1", "=north", "n"])), &["=1", "=south", "n"]), whole);
        let by_location = table(Identity::Full, Some(&["location"]));
        assert_eq!(halves(&by_location, Some((b'O', &["=1", "=north", "n"])), &["=1", "=south", "n"]), split);
        assert_eq!(halves(&by_location, Some((b'O', &["=1", "=north", "n"])), &["=1", "u", "n"]), whole);
    }

    #[test]
    fn a_key_that_was_not_sent_again_comes_from_the_old_one() {
        let table = table(Identity::Default, None);
        let bytes = update(Some((b'K', &["=1", "n", "n"])), &["u", "=north", "u"]);
        let (row, _) = rows(&table, &bytes);
        let mut out = Vec::new();
        change(&mut out, &TxContext::new(1, Lsn(16), 7, 0), 0, &table, &row).expect("fits");
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(text.contains(r#""key":{"id":1},"before":null,"after":{"id":1,"location":"north"},"unchanged":["note"]"#), "{text}");
        let sent = update(None, &["=1", "=north", "n"]);
        assert_eq!(partition(&table, &row, 1000), partition(&table, &rows(&table, &sent).0, 1000));
    }

    #[test]
    fn a_backfilled_row_goes_where_its_changes_go() {
        let table = Arc::new(table(Identity::Full, Some(&["location", "id"])));
        for (id, location) in [("1", Some("north")), ("77", Some("Zürich")), ("8", None)] {
            let new = [format!("={id}"), location.map_or("n".to_owned(), |l| format!("={l}")), "n".to_owned()];
            let bytes = update(None, &[&new[0], &new[1], &new[2]]);
            let mut rows_read = ReadRows::new(3);
            rows_read.push([Some(id), location, None]);
            let first = ReadId { epoch: 1, job: "j".to_owned(), table: "t".to_owned(), chunk: 0, attempt: 0, row: 0 };
            let chunk = ReadChunk::new(Arc::clone(&table), Arc::new(rows_read), None, first, Position::NONE);
            let read = ReadRow { chunk: Arc::new(chunk), row: 0, gone: false };
            assert_eq!(partition(&table, &rows(&table, &bytes).0, 997), partition_of_read(&read, 997));
        }
    }

    #[test]
    fn a_row_of_another_shape_is_refused_before_a_byte_is_written() {
        let table = table(Identity::Default, None);
        let bytes = update(None, &["=1", "=north"]);
        let mut out = b"before".to_vec();
        let error = change(&mut out, &TxContext::new(1, Lsn(16), 7, 0), 0, &table, &rows(&table, &bytes).0).expect_err("two of three");
        assert_eq!((error.code(), out.as_slice()), ("capture.malformed_message", b"before".as_slice()));
    }

    #[test]
    fn the_widest_context_fits() {
        let tx = TxContext::new(u32::MAX, Lsn(u64::MAX), u32::MAX, i64::MIN);
        let mut out = Vec::new();
        end(&mut out, &tx, u64::MAX, u64::MAX);
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{}", out.escape_ascii());
        for lsn in [0, 1, 0xf, 0x10, 0x16_B3748, u64::from(u32::MAX), 1 << 32, 0x00ab_cdef_0123_4567, u64::MAX] {
            out.clear();
            truncate(&mut out, &TxContext::new(7, Lsn(lsn), 1, 0), 3, &table(Identity::Default, None));
            let event = tillstream_schemas::Event::parse(out.clone().into()).expect("an event");
            assert_eq!(event.id(), format!("e7-{}-3", Lsn(lsn)));
            assert_eq!(event.commit_lsn(), Lsn(lsn));
        }
    }
}

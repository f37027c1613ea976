//! Rows that a backfill read, many in one buffer: a chunk of fifty thousand rows is two allocations, not half a million.
//!
//! The text comes from `COPY … TO STDOUT`, which prints each value with its type's own output function: the very text
//! that the replication stream carries.

use std::sync::Arc;

use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::value::write_string;
use tillstream_schemas::{EventId, Position, TableSchema};

/// Marks a value that is NULL in the list of ends.
const NULL: u32 = 1 << 31;

/// A line of COPY output that is not one. Says nothing of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("COPY printed something that is no row of so many columns")]
pub struct NotARow;

/// Rows of one table, each with the same number of columns.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ReadRows {
    text: String,
    /// Where each value ends, column by column; a NULL has no text and is marked.
    ends: Vec<u32>,
    columns: usize,
}

/// Shows sizes, no value.
impl std::fmt::Debug for ReadRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadRows({} rows, {} bytes)", self.len(), self.text.len())
    }
}

impl ReadRows {
    /// No rows yet.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        ReadRows { text: String::new(), ends: Vec::new(), columns }
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Adds a row.
    pub fn push<'a>(&mut self, values: impl IntoIterator<Item = Option<&'a str>>) {
        for value in values {
            self.text.push_str(value.unwrap_or_default());
            self.end(value.is_none());
        }
    }

    fn end(&mut self, null: bool) {
        let end = u32::try_from(self.text.len()).unwrap_or(NULL - 1).min(NULL - 1);
        self.ends.push(if null { end | NULL } else { end });
    }

    /// Adds a row as COPY prints it: values between tabs, backslashes before what would be taken for something else.
    ///
    /// # Errors
    /// When it has another number of columns or is not UTF-8; nothing is added then.
    pub fn push_copied(&mut self, line: &[u8]) -> Result<(), NotARow> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| NotARow)?;
        let (text_before, ends_before) = (self.text.len(), self.ends.len());
        if text_before + line.len() >= NULL as usize {
            return Err(NotARow);
        }
        if memchr::memchr(b'\\', line.as_bytes()).is_none() {
            let mut from = 0;
            for tab in memchr::memchr_iter(b'\t', line.as_bytes()) {
                self.text.push_str(&line[from..tab]);
                self.end(false);
                from = tab + 1;
            }
            self.text.push_str(&line[from..]);
            self.end(false);
        } else {
            for value in line.split('\t') {
                let null = value == "\\N";
                if !null {
                    self.unescape(value);
                }
                self.end(null);
            }
        }
        if self.ends.len() != ends_before + self.columns {
            self.text.truncate(text_before);
            self.ends.truncate(ends_before);
            return Err(NotARow);
        }
        Ok(())
    }

    fn unescape(&mut self, mut value: &str) {
        while let Some(at) = memchr::memchr(b'\\', value.as_bytes()) {
            self.text.push_str(&value[..at]);
            let mut rest = value[at + 1..].chars();
            let plain = match rest.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(other) => other,
                None => '\\',
            };
            self.text.push(plain);
            value = rest.as_str();
        }
        self.text.push_str(value);
    }

    /// Bytes of one row's values.
    #[inline]
    #[must_use]
    pub fn row_bytes(&self, row: usize) -> usize {
        let end_of = |rows: usize| (rows * self.columns).checked_sub(1).and_then(|at| self.ends.get(at)).map_or(0, |end| end & !NULL);
        end_of(row + 1).saturating_sub(end_of(row)) as usize
    }

    /// A value; `None` is NULL (and whatever lies outside).
    #[inline]
    #[must_use]
    pub fn get(&self, row: usize, column: usize) -> Option<&str> {
        if column >= self.columns {
            return None;
        }
        let at = row * self.columns + column;
        let end = *self.ends.get(at)?;
        if end & NULL != 0 {
            return None;
        }
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| end & !NULL);
        self.text.get(start as usize..end as usize)
    }
}

/// What all rows of a backfill have in common beside their table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadScope {
    /// The only connector that takes them; `None` means all.
    pub connector: Option<String>,
    /// Columns of the table that were not read: sinks leave them alone. In order.
    pub omitted: Vec<usize>,
}

/// Rows that were read together, and what their events have in common, printed once.
#[derive(Debug)]
pub struct ReadChunk {
    /// Their table, from the catalogue or from the stream's Relation.
    pub table: Arc<TableSchema>,
    /// One text per column of `table`, as the server printed it under the pinned settings.
    pub rows: Arc<ReadRows>,
    /// What the backfill's rows have in common; `None` when nothing is special.
    pub scope: Option<Arc<ReadScope>>,
    /// The position as of which they were read: that of the high watermark's commit, ordinal 0.
    pub as_of: Position,
    /// `e1-b<job>-<table>-<chunk>.<attempt>-`
    ids: String,
    /// `{"id":"e1-b<job>-<table>-<chunk>.<attempt>-`
    head: Vec<u8>,
    /// `,"connector":"…","commit_lsn":"0/16B3748","ordinal":`
    middle: Vec<u8>,
}

impl ReadChunk {
    /// Rows whose ids are `first`'s but for the number of the row.
    #[must_use]
    pub fn new(table: Arc<TableSchema>, rows: Arc<ReadRows>, scope: Option<Arc<ReadScope>>, first: ReadId, as_of: Position) -> Self {
        let mut ids = EventId::Read(ReadId { row: 0, ..first }).to_string();
        ids.pop();
        let mut head = b"{\"id\":".to_vec();
        write_string(&mut head, ids.as_bytes());
        // The closing quote follows the row's number.
        head.pop();
        let mut middle = Vec::new();
        if let Some(connector) = scope.as_deref().and_then(|scope| scope.connector.as_ref()) {
            middle.extend_from_slice(b",\"connector\":");
            write_string(&mut middle, connector.as_bytes());
        }
        middle.extend_from_slice(format!(",\"commit_lsn\":\"{}\",\"ordinal\":", as_of.commit_lsn).as_bytes());
        ReadChunk { table, rows, scope, as_of, ids, head, middle }
    }

    /// A row's event up to the number in its id.
    #[inline]
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// A row's event from behind its values up to its ordinal.
    #[inline]
    #[must_use]
    pub fn middle(&self) -> &[u8] {
        &self.middle
    }
}

/// One row of a [`ReadChunk`], ready to be written; cheap to hand on.
#[derive(Clone, Debug)]
pub struct ReadRow {
    /// Where it stands.
    pub chunk: Arc<ReadChunk>,
    /// Its number there, from 0; the last number of its event id.
    pub row: u32,
    /// It was asked for by its key and is not there: only the key's values count.
    pub gone: bool,
}

impl ReadRow {
    /// Its event id, printed (`e1-b<job>-<table>-<chunk>.<attempt>-<row>`).
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}{}", self.chunk.ids, self.row)
    }

    /// A column's value; `None` is NULL.
    #[inline]
    #[must_use]
    pub fn get(&self, column: usize) -> Option<&str> {
        self.chunk.rows.get(self.row as usize, column)
    }

    /// Bytes of all values.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunk.rows.row_bytes(self.row as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_lines_become_values() {
        let mut rows = ReadRows::new(3);
        rows.push_copied(b"1\tplain\t\n").expect("three");
        rows.push_copied(b"\\N\ta\\tb\\\\N\\nc\t\\\\N\n").expect("three");
        rows.push_copied("ü\t\\b\\f\\r\\v\t\\N\n".as_bytes()).expect("three");
        assert_eq!(rows.len(), 3);
        let row = |n: usize| (0..3).map(|c| rows.get(n, c)).collect::<Vec<_>>();
        assert_eq!(row(0), [Some("1"), Some("plain"), Some("")]);
        assert_eq!(row(1), [None, Some("a\tb\\N\nc"), Some("\\N")]);
        assert_eq!(row(2), [Some("ü"), Some("\u{8}\u{c}\r\u{b}"), None]);
        assert_eq!((rows.get(0, 3), rows.get(3, 0)), (None, None));
        assert_eq!((0..4).map(|n| rows.row_bytes(n)).collect::<Vec<_>>(), [6, 9, 6, 0]);
    }

    #[test]
    fn lines_of_another_shape_add_nothing() {
        let mut rows = ReadRows::new(2);
        rows.push_copied(b"a\tb\n").expect("two");
        for line in [&b"a\n"[..], b"a\tb\tc\n", b"a\\tb\n", b"a\t\xff\n"] {
            assert_eq!(rows.push_copied(line), Err(NotARow));
        }
        assert_eq!((rows.len(), rows.bytes()), (1, 2));
    }
}

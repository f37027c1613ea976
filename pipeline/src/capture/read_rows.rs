//! Rows that a backfill read, many in one buffer: a chunk of fifty thousand rows is two allocations, not half a million.
//!
//! The text comes from `COPY … TO STDOUT`, which prints each value with its type's own output function: the very text
//! that the replication stream carries.

use std::sync::Arc;

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

    /// A value; `None` is NULL (and whatever lies outside).
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

/// One row of [`ReadRows`]; cheap to hand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadValues {
    rows: Arc<ReadRows>,
    row: usize,
}

impl ReadValues {
    /// Row number `row`.
    #[must_use]
    pub fn new(rows: Arc<ReadRows>, row: usize) -> Self {
        ReadValues { rows, row }
    }

    /// A column's value; `None` is NULL.
    #[inline]
    #[must_use]
    pub fn get(&self, column: usize) -> Option<&str> {
        self.rows.get(self.row, column)
    }

    /// Bytes of all values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (0..self.rows.columns).filter_map(|column| self.get(column)).map(str::len).sum()
    }
}

impl From<Vec<Option<String>>> for ReadValues {
    fn from(values: Vec<Option<String>>) -> Self {
        let mut rows = ReadRows::new(values.len());
        rows.push(values.iter().map(Option::as_deref));
        ReadValues::new(Arc::new(rows), 0)
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

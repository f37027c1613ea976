//! A batch's events as rows to write: one per key, the newest, because a row's older states need not pass through the
//! target.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use tillstream_schemas::Position;

/// A column's value in a row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// Write this; `None` is NULL.
    Value(Option<Cow<'a, str>>),
    /// The change did not touch it and the source did not send it: leave the target's value alone.
    Unchanged,
}

/// What happens to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// It has these values, in the order of the table's columns.
    Write(Vec<Cell<'a>>),
    /// It is gone.
    Delete,
}

/// One event, translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Translated<'a> {
    /// A change of one row.
    Row {
        /// Index of the target table.
        table: usize,
        /// Texts of the key's columns.
        key: Vec<Cow<'a, str>>,
        /// What happens to it.
        change: Change<'a>,
        /// Whether the source says that it was not there before.
        fresh: bool,
        /// Orders the changes of the row.
        version: Position,
    },
    /// The table was emptied.
    Truncate {
        /// Index of the target table.
        table: usize,
        /// Rows below it are gone.
        version: Position,
    },
}

/// The newest state of a row within a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub(super) key: &'a [Cow<'a, str>],
    pub(super) change: Cow<'a, Change<'a>>,
    pub(super) version: Position,
    /// Whether the source says that it was not there before the batch.
    pub(super) fresh: bool,
    /// The first item of the batch that it stands for, and the others.
    first: usize,
    others: Vec<usize>,
}

impl Row<'_> {
    /// Which items of the batch it stands for.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// The text to write into a column; `None` for NULL, and for a column that has no value.
    pub(super) fn value(&self, column: usize) -> Option<&str> {
        match &*self.change {
            Change::Write(cells) => match cells.get(column) {
                Some(Cell::Value(value)) => value.as_deref(),
                Some(Cell::Unchanged) | None => None,
            },
            Change::Delete => None,
        }
    }
}

/// What is written together: rows of one table that take the same statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Distinct rows.
    Rows {
        /// Index of the target table.
        table: usize,
        /// `None` for deletes, else which columns have a value.
        present: Option<Vec<bool>>,
        /// The rows.
        rows: Vec<Row<'a>>,
    },
    /// A truncate.
    Truncate {
        /// Index of the target table.
        table: usize,
        /// Rows below it are gone.
        version: Position,
        /// Its item.
        member: usize,
    },
}

/// Folds items (index and translation, in order) into parts.
pub(super) fn fold<'a>(items: &'a [(usize, Translated<'a>)]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut open = Open::default();
    for (member, item) in items {
        match item {
            Translated::Truncate { table, version } => {
                std::mem::take(&mut open).close(&mut parts);
                parts.push(Part::Truncate { table: *table, version: *version, member: *member });
            }
            Translated::Row { table, key, change, fresh, version } => open.add((*table, key), change, *fresh, *version, *member),
        }
    }
    open.close(&mut parts);
    parts
}

/// Rows since the last truncate.
#[derive(Default)]
struct Open<'a> {
    rows: Vec<(usize, Row<'a>)>,
    /// Hashes of tables and keys, each raised by one until it is free, to indexes of `rows`.
    index: HashMap<u64, usize, RandomState>,
    hasher: RandomState,
}

impl<'a> Open<'a> {
    fn add(&mut self, (table, key): (usize, &'a [Cow<'a, str>]), change: &'a Change<'a>, fresh: bool, version: Position, member: usize) {
        let mut hash = self.hasher.hash_one((table, key));
        let at = loop {
            let at = *self.index.entry(hash).or_insert(self.rows.len());
            match self.rows.get(at) {
                Some((other, row)) if (*other, row.key) != (table, key) => hash = hash.wrapping_add(1),
                _ => break at,
            }
        };
        let Some((_, row)) = self.rows.get_mut(at) else {
            self.rows.push((table, Row { key, change: Cow::Borrowed(change), version, fresh, first: member, others: Vec::new() }));
            return;
        };
        row.others.push(member);
        if version <= row.version {
            return;
        }
        row.version = version;
        let mut change = Cow::Borrowed(change);
        if let (Change::Write(cells), Change::Write(before)) = (&*change, &*row.change)
            && cells.contains(&Cell::Unchanged)
        {
            // What this change left alone has the value that the one before it wrote.
            let merged = cells.iter().zip(before).map(|(cell, before)| if *cell == Cell::Unchanged { before } else { cell });
            change = Cow::Owned(Change::Write(merged.cloned().collect()));
        }
        row.change = change;
    }

    fn close(self, parts: &mut Vec<Part<'a>>) {
        let first = parts.len();
        let room = self.rows.len();
        for (table, row) in self.rows {
            let has = |present: &Option<Vec<bool>>| match (&*row.change, present) {
                (Change::Write(cells), Some(present)) => cells.iter().map(|c| *c != Cell::Unchanged).eq(present.iter().copied()),
                (Change::Delete, None) => true,
                _ => false,
            };
            let found = parts[first..].iter_mut().find_map(|part| match part {
                Part::Rows { table: t, present, rows } if *t == table && has(present) => Some(rows),
                _ => None,
            });
            if let Some(rows) = found {
                rows.push(row);
                continue;
            }
            let present = match &*row.change {
                Change::Write(cells) => Some(cells.iter().map(|c| *c != Cell::Unchanged).collect()),
                Change::Delete => None,
            };
            let mut rows = Vec::with_capacity(room);
            rows.push(row);
            parts.push(Part::Rows { table, present, rows });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillstream_schemas::Lsn;

    fn at(lsn: u64) -> Position {
        Position::new(1, Lsn(lsn), 0)
    }

    fn write(key: &'static str, lsn: u64, cells: &[Option<&'static str>]) -> Translated<'static> {
        let cell = |c: &Option<&'static str>| c.map_or(Cell::Unchanged, |v| Cell::Value(Some(v.into())));
        Translated::Row {
            table: 0,
            key: vec![key.into()],
            change: Change::Write(cells.iter().map(cell).collect()),
            fresh: false,
            version: at(lsn),
        }
    }

    fn delete(key: &'static str, lsn: u64) -> Translated<'static> {
        Translated::Row { table: 0, key: vec![key.into()], change: Change::Delete, fresh: false, version: at(lsn) }
    }

    /// Each part in a word.
    fn check(items: Vec<Translated<'static>>, expected: &[&str]) {
        let items: Vec<_> = items.into_iter().enumerate().collect();
        let shown: Vec<String> = fold(&items)
            .iter()
            .map(|part| match part {
                Part::Truncate { member, .. } => format!("truncate {member}"),
                Part::Rows { rows, .. } => rows
                    .iter()
                    .map(|row| {
                        let change = match &*row.change {
                            Change::Delete => "gone".to_owned(),
                            Change::Write(cells) => {
                                let cell = |c: &Cell<'_>| match c {
                                    Cell::Value(v) => v.clone().unwrap_or_default().into_owned(),
                                    Cell::Unchanged => "-".into(),
                                };
                                cells.iter().map(cell).collect::<Vec<_>>().join("/")
                            }
                        };
                        format!("{}={change}@{:X}{:?}", row.key[0], row.version.commit_lsn.0, row.members().collect::<Vec<_>>())
                    })
                    .collect::<Vec<_>>()
                    .join(" "),
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_newest_state_of_each_row_is_written_once() {
        let items = vec![write("a", 1, &[Some("1")]), write("b", 2, &[Some("2")]), write("a", 3, &[Some("3")]), delete("b", 4)];
        check(items, &["a=3@3[0, 2]", "b=gone@4[1, 3]"]);
    }

    #[test]
    fn what_a_later_change_left_alone_keeps_the_earlier_value() {
        let items = vec![write("a", 1, &[Some("1"), Some("long")]), write("a", 2, &[Some("2"), None]), write("b", 3, &[Some("3"), None])];
        check(items, &["a=2/long@2[0, 1]", "b=3/-@3[2]"]);
        check(vec![delete("a", 1), write("a", 2, &[Some("2")])], &["a=2@2[0, 1]"]);
    }

    #[test]
    fn an_older_state_never_wins() {
        check(vec![write("a", 5, &[Some("5")]), write("a", 3, &[Some("3")])], &["a=5@5[0, 1]"]);
    }

    #[test]
    fn nothing_crosses_a_truncate() {
        let truncate = Translated::Truncate { table: 0, version: at(2) };
        check(vec![write("a", 1, &[Some("1")]), truncate, write("a", 3, &[Some("3")])], &["a=1@1[0]", "truncate 1", "a=3@3[2]"]);
    }
}

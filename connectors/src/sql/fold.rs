//! A batch's events as rows to write: one per key, the newest, because a row's older states need not pass through the
//! target.

use std::borrow::Cow;
use std::collections::HashMap;

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
    pub(super) key: Vec<Cow<'a, str>>,
    pub(super) change: Change<'a>,
    pub(super) version: Position,
    /// Which items of the batch it stands for.
    pub(super) members: Vec<usize>,
}

/// What is written together: rows of one table that take the same statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
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

/// Folds items (index and translation, in order) into steps.
pub(super) fn fold<'a>(items: &[(usize, Translated<'a>)]) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let mut open = Open::default();
    for (member, item) in items {
        match item {
            Translated::Truncate { table, version } => {
                std::mem::take(&mut open).close(&mut steps);
                steps.push(Step::Truncate { table: *table, version: *version, member: *member });
            }
            Translated::Row { table, key, change, version } => open.add(*table, key, change, *version, *member),
        }
    }
    open.close(&mut steps);
    steps
}

/// Rows since the last truncate.
#[derive(Default)]
struct Open<'a> {
    rows: Vec<(usize, Row<'a>)>,
    index: HashMap<(usize, Vec<Cow<'a, str>>), usize>,
}

impl<'a> Open<'a> {
    fn add(&mut self, table: usize, key: &[Cow<'a, str>], change: &Change<'a>, version: Position, member: usize) {
        let at = *self.index.entry((table, key.to_vec())).or_insert(self.rows.len());
        let Some((_, row)) = self.rows.get_mut(at) else {
            self.rows.push((table, Row { key: key.to_vec(), change: change.clone(), version, members: vec![member] }));
            return;
        };
        row.members.push(member);
        if version <= row.version {
            return;
        }
        row.version = version;
        let mut change = change.clone();
        if let (Change::Write(cells), Change::Write(before)) = (&mut change, &row.change) {
            // What this change left alone has the value that the one before it wrote.
            for (cell, before) in cells.iter_mut().zip(before) {
                if *cell == Cell::Unchanged {
                    cell.clone_from(before);
                }
            }
        }
        row.change = change;
    }

    fn close(self, steps: &mut Vec<Step<'a>>) {
        let first = steps.len();
        for (table, row) in self.rows {
            let shape = match &row.change {
                Change::Write(cells) => Some(cells.iter().map(|c| *c != Cell::Unchanged).collect::<Vec<_>>()),
                Change::Delete => None,
            };
            let found = steps[first..].iter_mut().find_map(|step| match step {
                Step::Rows { table: t, present, rows } if *t == table && *present == shape => Some(rows),
                _ => None,
            });
            match found {
                Some(rows) => rows.push(row),
                None => steps.push(Step::Rows { table, present: shape, rows: vec![row] }),
            }
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
        Translated::Row { table: 0, key: vec![key.into()], change: Change::Write(cells.iter().map(cell).collect()), version: at(lsn) }
    }

    fn delete(key: &'static str, lsn: u64) -> Translated<'static> {
        Translated::Row { table: 0, key: vec![key.into()], change: Change::Delete, version: at(lsn) }
    }

    /// Each step in a word.
    fn check(items: Vec<Translated<'static>>, expected: &[&str]) {
        let items: Vec<_> = items.into_iter().enumerate().collect();
        let shown: Vec<String> = fold(&items)
            .iter()
            .map(|step| match step {
                Step::Truncate { member, .. } => format!("truncate {member}"),
                Step::Rows { rows, .. } => rows
                    .iter()
                    .map(|row| {
                        let change = match &row.change {
                            Change::Delete => "gone".to_owned(),
                            Change::Write(cells) => {
                                let cell = |c: &Cell<'_>| match c {
                                    Cell::Value(v) => v.clone().unwrap_or_default().into_owned(),
                                    Cell::Unchanged => "-".into(),
                                };
                                cells.iter().map(cell).collect::<Vec<_>>().join("/")
                            }
                        };
                        format!("{}={change}@{:X}{:?}", row.key[0], row.version.commit_lsn.0, row.members)
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

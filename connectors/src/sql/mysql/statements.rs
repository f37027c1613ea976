//! The SQL that finds and writes rows. Pure.
//!
//! Every statement takes one JSON text: a list of rows, each a list of the key's texts, the columns' and the version.

use super::super::convert::Form;
use super::super::dialect::{Column, Layout};

/// Name of the table of marks.
pub(super) const MARKS: &str = "tillstream_mark";

/// Creates it.
pub(super) const CREATE_MARKS: &str = "CREATE TABLE IF NOT EXISTS tillstream_mark (connector varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, \
     `partition` int NOT NULL, lane int NOT NULL, mark varbinary(1024) NOT NULL, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP \
     ON UPDATE CURRENT_TIMESTAMP, PRIMARY KEY (connector, `partition`, lane)) ENGINE = InnoDB;";

/// Reads a mark.
pub(super) const READ_MARK: &str = "SELECT mark FROM tillstream_mark WHERE connector = ? AND `partition` = ? AND lane = ?";

/// Locks a mark, and tells whether it may be followed by another.
pub(super) const FIND_MARK: &str = "SELECT mark <= ? FROM tillstream_mark WHERE connector = ? AND `partition` = ? AND lane = ? FOR UPDATE";

pub(super) const INSERT_MARK: &str = "INSERT INTO tillstream_mark (mark, connector, `partition`, lane) VALUES (?, ?, ?, ?)";

pub(super) const UPDATE_MARK: &str = "UPDATE tillstream_mark SET mark = ? WHERE connector = ? AND `partition` = ? AND lane = ?";

/// An identifier, quoted.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

const TEXT: &str = "longtext CHARACTER SET utf8mb4";

/// `u`: the rows, with the ordinal `n` (from 1), keys as they are looked up (`k0…`) and as texts (`t0…`), columns `c0…` and the version `v`.
fn rows(layout: &Layout, present: &[usize]) -> String {
    let mut columns = String::from("n FOR ORDINALITY");
    for (n, key) in layout.keys.iter().enumerate() {
        columns.push_str(&format!(", k{n} {} PATH '$[{n}]', t{n} {TEXT} PATH '$[{n}]'", key.cast));
    }
    let keys = layout.keys.len();
    for (at, n) in present.iter().enumerate() {
        columns.push_str(&format!(", c{n} {TEXT} PATH '$[{}]'", keys + at));
    }
    let version = keys + present.len();
    format!("JSON_TABLE(?, '$[*]' COLUMNS({columns}, v varchar(255) CHARACTER SET ascii COLLATE ascii_bin PATH '$[{version}]')) AS u")
}

/// The rows beside those of the target that have their keys.
fn joined(layout: &Layout, present: &[usize]) -> String {
    let same = |(n, key): (usize, &Column)| format!("t.{} = u.k{n}", key.quoted);
    let same: Vec<String> = layout.keys.iter().enumerate().map(same).collect();
    format!("{} STRAIGHT_JOIN {} AS t FORCE INDEX ({}) ON {}", rows(layout, present), layout.target, layout.index, same.join(" AND "))
}

/// A text as the column's value.
fn value(column: &Column, text: String) -> String {
    match column.form {
        Form::Base64 => format!("FROM_BASE64({text})"),
        // A bit's text would be taken for its bytes.
        _ if column.exact.starts_with("bit") => format!("CAST({text} AS UNSIGNED)"),
        _ => text,
    }
}

/// A column's value as a text; of bytes in hexadecimal.
fn text(column: &Column) -> String {
    match column.form {
        Form::Base64 => format!("LOWER(HEX(t.{}))", column.quoted),
        _ if column.exact.starts_with("bit") => format!("CAST(CAST(t.{} AS UNSIGNED) AS CHAR CHARACTER SET utf8mb4)", column.quoted),
        _ => format!("CAST(t.{} AS CHAR CHARACTER SET utf8mb4)", column.quoted),
    }
}

/// Locks the rows that are there; answers ordinals, and whether each is older than what is to be written.
pub(super) fn find(layout: &Layout) -> String {
    format!("SELECT u.n, t._version IS NULL OR CAST(t._version AS BINARY) < CAST(u.v AS BINARY) FROM {} FOR UPDATE", joined(layout, &[]))
}

/// Inserts rows that are not there.
pub(super) fn insert(layout: &Layout, present: &[usize], deleted: bool) -> String {
    let keys = layout.keys.iter().enumerate().map(|(n, c)| (c, format!("u.t{n}")));
    let columns = present.iter().map(|n| (&layout.columns[*n], format!("u.c{n}")));
    let (names, values): (Vec<_>, Vec<_>) = keys.chain(columns).map(|(c, text)| (c.quoted.clone(), value(c, text))).unzip();
    format!(
        "INSERT INTO {} ({}, _version, _deleted) SELECT {}, u.v, {} FROM {}",
        layout.target,
        names.join(", "),
        values.join(", "),
        u8::from(deleted),
        rows(layout, present)
    )
}

/// Updates rows that are there.
pub(super) fn update(layout: &Layout, present: &[usize], deleted: bool) -> String {
    let set = |n: &usize| format!("t.{} = {}, ", layout.columns[*n].quoted, value(&layout.columns[*n], format!("u.c{n}")));
    let set: String = present.iter().map(set).collect();
    format!("UPDATE {} SET {set}t._version = u.v, t._deleted = {}", joined(layout, present), u8::from(deleted))
}

/// Deletes rows.
pub(super) fn delete(layout: &Layout) -> String {
    format!("DELETE t FROM {}", joined(layout, &[]))
}

/// Every row older than the truncate goes, or becomes a tombstone. Takes the version twice, or once.
pub(super) fn truncate(layout: &Layout, tombstones: bool) -> String {
    let older = "(_version IS NULL OR CAST(_version AS BINARY) < CAST(? AS BINARY))";
    if tombstones {
        format!("UPDATE {} SET _version = ?, _deleted = 1 WHERE {older}", layout.target)
    } else {
        format!("DELETE FROM {} WHERE {older}", layout.target)
    }
}

/// The texts of living rows behind their ordinals.
pub(super) fn read(layout: &Layout) -> String {
    let texts: String = layout.columns.iter().map(|c| format!(", {}", text(c))).collect();
    format!("SELECT u.n{texts} FROM {} WHERE NOT t._deleted", joined(layout, &[]))
}

/// The next keys of living rows. Takes the last one's texts.
pub(super) fn keys_after(layout: &Layout, after: bool, limit: u32) -> String {
    let names: Vec<String> = layout.keys.iter().map(|k| format!("t.{}", k.quoted)).collect();
    let texts: Vec<String> = layout.keys.iter().map(text).collect();
    let from = if after {
        // By way of the row's own type: a number is no text.
        let keys: Vec<String> = (0..layout.keys.len()).map(|n| format!("u.k{n}")).collect();
        format!("{} STRAIGHT_JOIN {} AS t ON ({}) > ({})", rows(layout, &[]), layout.target, names.join(", "), keys.join(", "))
    } else {
        format!("{} AS t", layout.target)
    };
    format!("SELECT {} FROM {from} WHERE NOT t._deleted ORDER BY {} LIMIT {limit}", texts.join(", "), names.join(", "))
}

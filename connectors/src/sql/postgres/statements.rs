//! The SQL that writes rows. Pure.
//!
//! Every statement takes one array per column, of the column's own type, and one of versions. All but [`upsert`] answer the ordinals (from 1) of the
//! rows that they wrote; the others had this version or a newer one already.

use super::super::convert::Form;
use super::super::dialect::{Column, Layout};

/// Name of the table of marks, found by the role's search path.
pub(super) const MARKS: &str = "tillstream_mark";

/// Creates it.
pub(super) const CREATE_MARKS: &str = "CREATE TABLE IF NOT EXISTS tillstream_mark (connector text NOT NULL, partition integer NOT NULL, lane integer NOT NULL, \
     mark bytea NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (connector, partition, lane));";

/// Stores a mark, but never over a later owner's.
pub(super) const STORE_MARK: &str = "INSERT INTO tillstream_mark AS m (connector, partition, lane, mark) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (connector, partition, lane) DO UPDATE SET mark = excluded.mark, updated_at = now() WHERE m.mark <= excluded.mark RETURNING 1";

/// Reads a mark.
pub(super) const READ_MARK: &str = "SELECT mark FROM tillstream_mark WHERE connector = $1 AND partition = $2 AND lane = $3";

/// An identifier, quoted.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names and arrays of the parameters as rows: `k0…`, `c0…` and `v`. An array of arrays can not be taken apart again, so those go as texts.
fn arrays(layout: &Layout, present: &[usize]) -> (Vec<String>, Vec<String>) {
    let keys = layout.keys.iter().enumerate().map(|(n, c)| (format!("k{n}"), c));
    let columns = present.iter().map(|n| (format!("c{n}"), &layout.columns[*n]));
    let (mut names, mut arrays) = (Vec::new(), Vec::new());
    for (name, column) in keys.chain(columns) {
        names.push(name);
        let kind = if matches!(column.form, Form::Array { .. }) { "text" } else { &column.cast };
        arrays.push(format!("${}::{kind}[]", names.len()));
    }
    names.push("v".to_owned());
    arrays.push(format!("${}::text[]", names.len()));
    (names, arrays)
}

/// `u`: the parameters as rows and the ordinal `n`.
fn parameters(layout: &Layout, present: &[usize]) -> String {
    let (names, arrays) = arrays(layout, present);
    format!("u AS (SELECT * FROM unnest({}) WITH ORDINALITY AS u({}, n))", arrays.join(", "), names.join(", "))
}

/// `t.k = u.k` over the key.
fn same_key(keys: &[Column], left: &str) -> String {
    let same = |(n, key): (usize, &Column)| format!("{left}.{} = u.k{n}::{}", key.quoted, key.cast);
    keys.iter().enumerate().map(same).collect::<Vec<_>>().join(" AND ")
}

const OLDER: &str = "(t._version IS NULL OR t._version COLLATE \"C\" < u.v COLLATE \"C\")";

/// Inserts or updates rows whose every column has a value. Its count tells how many were written.
pub(super) fn upsert(layout: &Layout) -> String {
    format!("{}{}", inserts(layout), on_conflict(layout))
}

/// Inserts rows that are not there: without looking for each first, and without the lock that the server takes for each row of an upsert. The arrays
/// are taken apart side by side in a list of what is selected: in a FROM clause each would be written to a store of its own first, a tenth of
/// the server's time.
pub(super) fn inserts(layout: &Layout) -> String {
    let all: Vec<usize> = (0..layout.columns.len()).collect();
    let (names, arrays) = arrays(layout, &all);
    let taken: Vec<String> = arrays.iter().zip(&names).map(|(array, name)| format!("unnest({array}) AS {name}")).collect();
    format!("{} FROM (SELECT {}) u", insert(layout, &all), taken.join(", "))
}

/// As [`upsert`], and answers which were written: for a third more of the server's time.
pub(super) fn upsert_telling(layout: &Layout) -> String {
    let all: Vec<usize> = (0..layout.columns.len()).collect();
    format!(
        "WITH {}, w AS ({} FROM u{} RETURNING {}) SELECT u.n FROM u JOIN w ON {}",
        parameters(layout, &all),
        insert(layout, &all),
        on_conflict(layout),
        returned_keys(layout),
        same_key(&layout.keys, "w"),
    )
}

fn insert(layout: &Layout, present: &[usize]) -> String {
    let (names, values) = names_and_values(layout, present);
    format!("INSERT INTO {} AS t ({names}, _version, _deleted) SELECT {values}, u.v, false", layout.target)
}

fn on_conflict(layout: &Layout) -> String {
    let keys = layout.keys.iter().map(|k| k.quoted.as_str()).collect::<Vec<_>>().join(", ");
    let set: String = layout.columns.iter().map(|c| format!("{0} = excluded.{0}, ", c.quoted)).collect();
    format!(
        " ON CONFLICT ({keys}) DO UPDATE SET {set}_version = excluded._version, _deleted = false \
         WHERE t._version IS NULL OR t._version COLLATE \"C\" < excluded._version COLLATE \"C\""
    )
}

/// Updates rows of which some columns are left alone; a row that is not there is inserted without them. Not an upsert:
/// PostgreSQL checks NOT NULL of the row to insert before it looks for the one to update.
pub(super) fn partial(layout: &Layout, present: &[bool]) -> String {
    let present: Vec<usize> = present.iter().enumerate().filter(|(_, p)| **p).map(|(n, _)| n).collect();
    let (names, values) = names_and_values(layout, &present);
    let set = |n: &usize| format!("{} = u.c{n}::{}, ", layout.columns[*n].quoted, layout.columns[*n].cast);
    let set: String = present.iter().map(set).collect();
    write_existing(layout, &present, &set, false, Some((&names, &values)))
}

/// Marks rows as deleted. A row that is not there becomes a tombstone where the table's columns allow it.
pub(super) fn tombstone(layout: &Layout) -> String {
    let (names, values) = names_and_values(layout, &[]);
    write_existing(layout, &[], "", true, layout.can_insert_tombstones.then_some((&names, &values)))
}

fn write_existing(layout: &Layout, present: &[usize], set: &str, deleted: bool, insert: Option<(&str, &str)>) -> String {
    let target = &layout.target;
    let mut sql = format!(
        "WITH {}, w AS (UPDATE {target} AS t SET {set}_version = u.v, _deleted = {deleted} FROM u WHERE {} AND {OLDER} RETURNING u.n)",
        parameters(layout, present),
        same_key(&layout.keys, "t"),
    );
    match insert {
        None => sql.push_str(" SELECT n FROM w"),
        Some((names, values)) => {
            let keys = same_key(&layout.keys, "t");
            sql.push_str(&format!(
                ", i AS (INSERT INTO {target} AS t ({names}, _version, _deleted) SELECT {values}, u.v, {deleted} FROM u \
                 WHERE NOT EXISTS (SELECT FROM {target} AS t WHERE {keys}) ON CONFLICT DO NOTHING RETURNING {}) \
                 SELECT n FROM w UNION ALL SELECT u.n FROM u JOIN i ON {}",
                returned_keys(layout),
                same_key(&layout.keys, "i"),
            ));
        }
    }
    sql
}

/// Deletes rows.
pub(super) fn delete(layout: &Layout) -> String {
    format!(
        "WITH {} DELETE FROM {} AS t USING u WHERE {} AND {OLDER} RETURNING u.n",
        parameters(layout, &[]),
        layout.target,
        same_key(&layout.keys, "t")
    )
}

/// Every row older than the truncate goes, or becomes a tombstone. Takes the version alone.
pub(super) fn truncate(layout: &Layout, tombstones: bool) -> String {
    let older = "(_version IS NULL OR _version COLLATE \"C\" < $1 COLLATE \"C\")";
    if tombstones {
        format!("UPDATE {} SET _version = $1, _deleted = true WHERE {older}", layout.target)
    } else {
        format!("DELETE FROM {} WHERE {older}", layout.target)
    }
}

/// `u`: the parameters as rows, columns `k0…`, `c0…` and the ordinal `n`.
fn rows(keys: usize, columns: usize) -> String {
    let names: Vec<String> = (0..keys).map(|n| format!("k{n}")).chain((0..columns).map(|n| format!("c{n}"))).collect();
    let arrays: Vec<String> = (1..=names.len()).map(|n| format!("${n}::text[]")).collect();
    format!("u AS (SELECT * FROM unnest({}) WITH ORDINALITY AS u({}, n))", arrays.join(", "), names.join(", "))
}

/// One digest of the rows with these keys, in their order: of each its columns' texts behind their lengths.
pub(super) fn digest(layout: &Layout) -> String {
    let part = |c: &Column| {
        let text = format!("t.{}::text", c.quoted);
        format!(" || CASE WHEN t.{} IS NULL THEN '~' ELSE octet_length({text}) || ':' || {text} END", c.quoted)
    };
    let parts: String = layout.columns.iter().map(part).collect();
    format!(
        "WITH {} SELECT encode(sha256(convert_to(coalesce(string_agg(CASE WHEN t._deleted IS NULL THEN '-' ELSE '+'{parts} END, '' ORDER BY u.n), ''), 'UTF8')), 'hex') \
         FROM u LEFT JOIN {} AS t ON {} AND NOT t._deleted",
        rows(layout.keys.len(), 0),
        layout.target,
        same_key(&layout.keys, "t"),
    )
}

/// The ordinals of rows that are not there, or not as they should be.
pub(super) fn unlike(layout: &Layout) -> String {
    let unlike = |(n, c): (usize, &Column)| format!(" OR t.{}::text IS DISTINCT FROM u.c{n}::{}::{}::text", c.quoted, c.cast, c.exact);
    let unlike: String = layout.columns.iter().enumerate().map(unlike).collect();
    format!(
        "WITH {} SELECT u.n FROM u LEFT JOIN {} AS t ON {} AND NOT t._deleted WHERE t._deleted IS NULL{unlike}",
        rows(layout.keys.len(), layout.columns.len()),
        layout.target,
        same_key(&layout.keys, "t"),
    )
}

/// The ordinals of rows that are there.
pub(super) fn there(layout: &Layout) -> String {
    format!(
        "WITH {} SELECT u.n FROM u JOIN {} AS t ON {} AND NOT t._deleted",
        rows(layout.keys.len(), 0),
        layout.target,
        same_key(&layout.keys, "t"),
    )
}

/// The next keys in the target's own order. Takes the last one's texts.
pub(super) fn keys_after(layout: &Layout, after: bool, limit: u32) -> String {
    let names: Vec<&str> = layout.keys.iter().map(|k| k.quoted.as_str()).collect();
    let texts: Vec<String> = layout.keys.iter().map(|k| format!("{}::text", k.quoted)).collect();
    let values: Vec<String> = layout.keys.iter().enumerate().map(|(n, k)| format!("${}::text::{}", n + 1, k.cast)).collect();
    let behind = if after { format!(" AND ROW({}) > ROW({})", names.join(", "), values.join(", ")) } else { String::new() };
    format!("SELECT {} FROM {} WHERE NOT _deleted{behind} ORDER BY {} LIMIT {limit}", texts.join(", "), layout.target, names.join(", "))
}

fn names_and_values(layout: &Layout, present: &[usize]) -> (String, String) {
    let keys = layout.keys.iter().enumerate().map(|(n, c)| (c, format!("u.k{n}")));
    let columns = present.iter().map(|n| (&layout.columns[*n], format!("u.c{n}")));
    let (names, values): (Vec<_>, Vec<_>) = keys.chain(columns).map(|(c, v)| (c.quoted.clone(), format!("{v}::{}", c.cast))).unzip();
    (names.join(", "), values.join(", "))
}

fn returned_keys(layout: &Layout) -> String {
    layout.keys.iter().map(|k| format!("t.{}", k.quoted)).collect::<Vec<_>>().join(", ")
}

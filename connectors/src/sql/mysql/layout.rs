//! What the target's catalogue says of a table, and what has to be done before rows can be written.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::super::config::{SqlConfig, Table};
use super::super::convert::Form;
use super::super::dialect::{Column, Inspection, Layout};
use super::errors::failure;
use super::statements::{CREATE_MARKS, MARKS, quote};
use crate::sink::{OnDelete, SinkError};

const COLUMNS: &str = "SELECT c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.CHARACTER_SET_NAME, c.COLLATION_NAME, c.PRIVILEGES, \
     c.IS_NULLABLE = 'NO' AND c.COLUMN_DEFAULT IS NULL AND c.EXTRA NOT LIKE '%auto_increment%' AND c.EXTRA NOT LIKE '%GENERATED%' \
     FROM information_schema.COLUMNS c WHERE c.TABLE_SCHEMA = COALESCE(?, DATABASE()) AND c.TABLE_NAME = ? ORDER BY c.ORDINAL_POSITION";

/// MariaDB's JSON is a text with a check.
const CHECKS: &str = "SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = COALESCE(?, DATABASE()) \
     AND TABLE_NAME = ? AND CHECK_CLAUSE LIKE 'json_valid(%'";

const INDEXES: &str = "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART IS NULL FROM information_schema.STATISTICS \
     WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ? AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX";

const ENGINE: &str = "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?";

/// Looks everything up. Changes nothing.
pub(super) async fn inspect(conn: &mut Conn, config: &SqlConfig, _on_delete: OnDelete) -> Result<Inspection, SinkError> {
    let mut found = Inspection::default();
    if engine(conn, None, MARKS).await?.is_none() {
        found.statements.push(CREATE_MARKS.to_owned());
    }
    for ((schema, table), wanted) in &config.tables {
        inspect_table(conn, &format!("{schema}.{table}"), wanted, &mut found).await?;
    }
    Ok(found)
}

async fn rows(conn: &mut Conn, sql: &str, schema: Option<&str>, table: &str) -> Result<Vec<Row>, SinkError> {
    conn.exec(sql, (schema, table)).await.map_err(|e| failure(&e).whole())
}

/// The table's engine; of a view an empty text.
async fn engine(conn: &mut Conn, schema: Option<&str>, table: &str) -> Result<Option<String>, SinkError> {
    let rows = rows(conn, ENGINE, schema, table).await?;
    Ok(rows.first().map(|row| text(row, 0).unwrap_or_default()))
}

fn text(row: &Row, column: usize) -> Option<String> {
    row.get_opt::<Option<String>, _>(column)?.ok().flatten()
}

fn flag(row: &Row, column: usize) -> bool {
    row.get_opt::<Option<i64>, _>(column).and_then(Result::ok).flatten() == Some(1)
}

/// A column as the catalogue has it.
struct Known {
    column: Column,
    kind: String,
    collation: Option<String>,
    privileges: String,
    required: bool,
}

async fn inspect_table(conn: &mut Conn, source: &str, wanted: &Table, found: &mut Inspection) -> Result<(), SinkError> {
    let (schema, name) = match wanted.into.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, wanted.into.as_str()),
    };
    let target = schema.map_or(quote(name), |schema| format!("{}.{}", quote(schema), quote(name)));
    match engine(conn, schema, name).await? {
        None => {
            found.problems.push(format!("{source}: target table {target} does not exist"));
            return Ok(());
        }
        Some(engine) if engine.eq_ignore_ascii_case("InnoDB") => {}
        Some(engine) => found.problems.push(format!("{source}: target table {target} must be of the engine InnoDB, it is of {engine}")),
    }
    let checks = match rows(conn, CHECKS, schema, name).await {
        Ok(rows) => rows.iter().filter_map(|r| text(r, 0)).collect(),
        // MySQL's catalogue of checks names no table, and its JSON needs none.
        Err(_) => Vec::new(),
    };
    let known = rows(conn, COLUMNS, schema, name).await?.iter().map(|row| column(row, &checks)).collect::<Vec<_>>();
    let get = |name: &str| known.iter().find(|k| k.column.name == name);
    let mut add = Vec::new();
    match get("_version") {
        None => add.push("ADD COLUMN _version varchar(255) CHARACTER SET ascii COLLATE ascii_bin"),
        Some(k) if k.kind != "varchar" => {
            found.problems.push(format!("{source}: column _version of {target} must be varchar, it is {}", k.kind))
        }
        Some(_) => {}
    }
    match get("_deleted") {
        None => add.push("ADD COLUMN _deleted boolean NOT NULL DEFAULT false"),
        Some(k) if k.kind != "tinyint" => {
            found.problems.push(format!("{source}: column _deleted of {target} must be boolean, it is {}", k.kind))
        }
        Some(_) => {}
    }
    if !add.is_empty() {
        found.statements.push(format!("ALTER TABLE {target} {};", add.join(", ")));
    }
    let mut pick = |names: &[String], key: bool| {
        let mut columns = Vec::new();
        for name in names {
            let Some(known) = get(name) else {
                found.problems.push(format!("{source}: target table {target} has no column {}", quote(name)));
                continue;
            };
            if key && let Some(why) = no_key(known) {
                found.problems.push(format!("{source}: {target}: column {} {why}", quote(name)));
            }
            let lacks: Vec<_> = ["select", "insert", "update"].into_iter().filter(|p| !known.privileges.contains(p)).collect();
            if !lacks.is_empty() {
                let lacks = lacks.join(", ").to_uppercase();
                found.problems.push(format!("{source}: the user lacks {lacks} on column {} of {target}", quote(name)));
            }
            let mut column = known.column.clone();
            if key && column.form == Form::Number && is_whole(&known.kind) {
                column.form = Form::Whole;
            }
            columns.push(column);
        }
        columns
    };
    let (keys, columns) = (pick(&wanted.key, true), pick(&wanted.columns, false));
    let own = |name: &str| name == "_version" || name == "_deleted" || wanted.key.iter().any(|k| k == name);
    let can_insert_tombstones = known.iter().all(|k| !k.required || own(&k.column.name));
    let index = unique(&rows(conn, INDEXES, schema, name).await?, &wanted.key);
    if index.is_none() {
        let names = wanted.key.iter().map(|k| quote(k)).collect::<Vec<_>>().join(", ");
        found.problems.push(format!(
            "{source}: no unique index of {target} covers exactly ({names}); ALTER TABLE {target} ADD UNIQUE INDEX ({names});"
        ));
    }
    found.layouts.push(Layout { target, keys, columns, can_insert_tombstones, index: index.unwrap_or_default() });
    Ok(())
}

/// The unique index over exactly these columns, whole.
fn unique(rows: &[Row], key: &[String]) -> Option<String> {
    let mut indexes: BTreeMap<String, (Vec<String>, bool)> = BTreeMap::new();
    let mut order = Vec::new();
    for row in rows {
        let name = text(row, 0)?;
        if !indexes.contains_key(&name) {
            order.push(name.clone());
        }
        let (columns, whole) = indexes.entry(name).or_insert((Vec::new(), true));
        columns.push(text(row, 1).unwrap_or_default());
        *whole &= flag(row, 2);
    }
    let fits = |name: &String| {
        indexes.get(name).is_some_and(|(columns, whole)| *whole && columns.len() == key.len() && key.iter().all(|k| columns.contains(k)))
    };
    order.into_iter().find(fits).map(|name| quote(&name))
}

fn is_whole(kind: &str) -> bool {
    matches!(kind, "tinyint" | "smallint" | "mediumint" | "int" | "bigint")
}

/// Why rows can not be named by the column.
fn no_key(known: &Known) -> Option<String> {
    match (known.kind.as_str(), &known.collation) {
        ("char" | "varchar" | "text" | "tinytext" | "mediumtext" | "longtext", Some(collation)) if !collation.ends_with("_bin") => {
            Some(format!("compares by {collation}, where keys that differ are equal: give it a collation that ends in _bin"))
        }
        ("char" | "varchar" | "text" | "tinytext" | "mediumtext" | "longtext" | "uuid" | "decimal" | "date", _) => None,
        (kind, _) if is_whole(kind) => None,
        (kind, _) => Some(format!("is of type {kind}, by which no row can be named: take whole numbers, texts, uuid, decimal or date")),
    }
}

fn column(row: &Row, checks: &[String]) -> Known {
    let (name, kind, exact) =
        (text(row, 0).unwrap_or_default(), text(row, 1).unwrap_or_default().to_lowercase(), text(row, 2).unwrap_or_default());
    let (charset, collation) = (text(row, 3), text(row, 4));
    let json = kind == "json" || checks.iter().any(|check| *check == format!("json_valid({})", quote(&name)));
    let form = match kind.as_str() {
        _ if json => Form::Json,
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "float" | "double" | "bit" | "year" => Form::Number,
        "datetime" | "timestamp" | "date" => Form::Moment,
        "binary" | "varbinary" | "blob" | "tinyblob" | "mediumblob" | "longblob" => Form::Base64,
        _ => Form::Text,
    };
    // As long as it likes: a key that was cut could be another row's.
    let cast = match (&charset, &collation) {
        (Some(charset), Some(collation)) => format!("longtext CHARACTER SET {charset} COLLATE {collation}"),
        _ if kind == "uuid" => "varchar(255) CHARACTER SET ascii".to_owned(),
        _ => exact.clone(),
    };
    let column = Column { quoted: quote(&name), cast, exact, form, name };
    Known { column, kind, collation, privileges: text(row, 5).unwrap_or_default(), required: flag(row, 6) }
}

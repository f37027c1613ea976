//! What the file's catalogue says of a table, and what has to be done before rows can be written.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use super::super::config::Table;
use super::super::convert::Form;
use super::super::dialect::{Column, Inspection, Layout};

/// Creates the table of marks.
const CREATE_MARKS: &str = "CREATE TABLE IF NOT EXISTS tillstream_mark (connector TEXT NOT NULL, \"partition\" INTEGER NOT NULL, lane INTEGER NOT NULL, \
     mark BLOB NOT NULL, updated_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (connector, \"partition\", lane));";

/// An identifier, quoted.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Looks everything up. Changes nothing.
pub(super) fn inspect(connection: &Connection, tables: &BTreeMap<(String, String), Table>) -> rusqlite::Result<Inspection> {
    let mut found = Inspection::default();
    if !exists(connection, "tillstream_mark")? {
        found.statements.push(CREATE_MARKS.to_owned());
    }
    for ((schema, table), wanted) in tables {
        inspect_table(connection, &format!("{schema}.{table}"), wanted, &mut found)?;
    }
    Ok(found)
}

fn exists(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    Ok(connection.query_row(sql, [table], |_| Ok(())).optional()?.is_some())
}

/// A column as the catalogue has it.
struct Known {
    column: Column,
    required: bool,
    /// From 1; 0 for a column outside the primary key.
    primary: u32,
}

fn inspect_table(connection: &Connection, source: &str, wanted: &Table, found: &mut Inspection) -> rusqlite::Result<()> {
    let target = quote(&wanted.into);
    if !exists(connection, &wanted.into)? {
        found.problems.push(format!("{source}: target table {target} does not exist"));
        return Ok(());
    }
    let mut statement =
        connection.prepare("SELECT name, type, \"notnull\" AND dflt_value IS NULL AND hidden = 0, pk FROM pragma_table_xinfo(?1)")?;
    let known = statement.query_map([&wanted.into], |row| Ok(column(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let known = known.collect::<rusqlite::Result<Vec<_>>>()?;
    let get = |name: &str| known.iter().find(|k| k.column.name == name);
    for (name, definition) in [("_version", "TEXT"), ("_deleted", "INTEGER NOT NULL DEFAULT 0")] {
        if get(name).is_none() {
            found.statements.push(format!("ALTER TABLE {target} ADD COLUMN {name} {definition};"));
        }
    }
    let mut pick = |names: &[String]| {
        let mut columns = Vec::new();
        for name in names {
            match get(name) {
                Some(known) => columns.push(known.column.clone()),
                None => found.problems.push(format!("{source}: target table {target} has no column {}", quote(name))),
            }
        }
        columns
    };
    let (keys, columns) = (pick(&wanted.key), pick(&wanted.columns));
    if keys.iter().any(|k| k.form == Form::Base64) {
        found.problems.push(format!("{source}: {target}: no row can be named by a column of type BLOB"));
    }
    let own = |name: &str| name == "_version" || name == "_deleted" || wanted.key.iter().any(|k| k == name);
    let can_insert_tombstones = known.iter().all(|k| !k.required || own(&k.column.name));
    let primary: Vec<&str> = known.iter().filter(|k| k.primary > 0).map(|k| k.column.name.as_str()).collect();
    match unique(connection, wanted)? {
        Unique::Yes => {}
        // A primary key of one INTEGER is the row's own number, and has no index.
        Unique::No if primary.len() == 1 && wanted.key.iter().map(String::as_str).eq(primary) => {}
        Unique::Folding => found
            .problems
            .push(format!("{source}: the unique index of {target} takes keys that differ for equal: it must be COLLATE BINARY")),
        Unique::No => {
            let names = wanted.key.iter().map(|k| quote(k)).collect::<Vec<_>>().join(", ");
            found.problems.push(format!(
                "{source}: no unique index of {target} covers exactly ({names}); CREATE UNIQUE INDEX {} ON {target} ({names});",
                quote(&format!("{}_key", wanted.into))
            ));
        }
    }
    found.layouts.push(Layout { target, keys, columns, can_insert_tombstones, index: String::new() });
    Ok(())
}

enum Unique {
    Yes,
    /// Not by bytes.
    Folding,
    No,
}

/// Whether a unique index that ON CONFLICT can use covers exactly the key.
fn unique(connection: &Connection, wanted: &Table) -> rusqlite::Result<Unique> {
    let sql = "SELECT l.name, i.name, i.coll = 'BINARY' FROM pragma_index_list(?1) l JOIN pragma_index_xinfo(l.name) i \
               WHERE l.\"unique\" AND NOT l.partial AND i.key";
    let mut statement = connection.prepare(sql)?;
    let mut indexes: BTreeMap<String, (Vec<String>, bool)> = BTreeMap::new();
    let rows = statement
        .query_map([&wanted.into], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, bool>(2)?)))?;
    for row in rows {
        let (index, column, binary) = row?;
        let (columns, all) = indexes.entry(index).or_insert((Vec::new(), true));
        columns.push(column.unwrap_or_default());
        *all &= binary;
    }
    let fits = |columns: &Vec<String>| columns.len() == wanted.key.len() && wanted.key.iter().all(|k| columns.contains(k));
    let fitting: Vec<bool> = indexes.values().filter(|(columns, _)| fits(columns)).map(|(_, binary)| *binary).collect();
    Ok(if fitting.contains(&true) {
        Unique::Yes
    } else if fitting.is_empty() {
        Unique::No
    } else {
        Unique::Folding
    })
}

/// By the rules of <https://www.sqlite.org/datatype3.html>, 3.1: what the declared type makes of values.
fn column(name: String, declared: String, required: bool, primary: u32) -> Known {
    let kind = declared.to_uppercase();
    let has = |part: &str| kind.contains(part);
    let form = if has("INT") {
        Form::Rounded
    } else if has("CHAR") || has("CLOB") || has("TEXT") || kind == "ANY" || kind.is_empty() {
        Form::Text
    } else if has("BLOB") {
        Form::Base64
    } else if has("JSON") {
        Form::Json
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Form::Number
    } else {
        Form::Rounded
    };
    let column = Column { quoted: quote(&name), cast: String::new(), exact: kind.to_lowercase(), form, name };
    Known { column, required, primary }
}

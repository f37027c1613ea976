//! What the target's catalogue says of a table, and what has to be done before rows can be written.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::super::config::{SqlConfig, Table};
use super::super::convert::Form;
use super::super::dialect::{Column, Inspection, Layout};
use super::errors::classify;
use super::statements::{CREATE_MARKS, MARKS, quote};
use crate::sink::{OnDelete, SinkError};

const COLUMNS: &str = "
SELECT a.attname::text, format_type(a.atttypid, -1), b.oid::regtype::text = ANY ('{json,jsonb}'), b.oid = 'bytea'::regtype,
       b.typcategory = 'A', e.oid::regtype::text = ANY ('{json,jsonb}'), e.oid = 'bytea'::regtype,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '', format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = COALESCE(NULLIF(t.typbasetype, 0), t.oid)
LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";

/// Whether a unique index that ON CONFLICT can use covers exactly these columns.
const UNIQUE: &str = "
SELECT EXISTS (
  SELECT FROM pg_index i
  WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text)
         FROM generate_series(0, i.indnkeyatts - 1) AS n JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n])
      = (SELECT array_agg(k ORDER BY k) FROM unnest($2::text[]) AS k))";

const PRIVILEGES: &str = "
SELECT p FROM unnest($2::text[]) AS p
WHERE NOT CASE WHEN p = 'DELETE' THEN has_table_privilege($1::oid, p) ELSE has_any_column_privilege($1::oid, p) END";

/// Looks everything up. Changes nothing.
pub(super) async fn inspect(client: &Client, config: &SqlConfig, on_delete: OnDelete) -> Result<Inspection, SinkError> {
    let mut found = Inspection::default();
    if oid(client, MARKS).await?.is_none() {
        found.statements.push(CREATE_MARKS.to_owned());
    }
    for ((schema, table), wanted) in &config.tables {
        inspect_table(client, &format!("{schema}.{table}"), wanted, on_delete, &mut found).await?;
    }
    Ok(found)
}

async fn oid(client: &Client, name: &str) -> Result<Option<u32>, SinkError> {
    let row = client.query_one("SELECT to_regclass($1)::oid", &[&name]).await.map_err(|e| classify(&e))?;
    row.try_get(0).map_err(|e| classify(&e))
}

async fn inspect_table(
    client: &Client,
    source: &str,
    wanted: &Table,
    on_delete: OnDelete,
    found: &mut Inspection,
) -> Result<(), SinkError> {
    let target = match wanted.into.split_once('.') {
        Some((schema, table)) => format!("{}.{}", quote(schema), quote(table)),
        None => quote(&wanted.into),
    };
    let Some(oid) = oid(client, &target).await? else {
        found.problems.push(format!("{source}: target table {target} does not exist"));
        return Ok(());
    };
    let rows = client.query(COLUMNS, &[&oid]).await.map_err(|e| classify(&e))?;
    let mut there: HashMap<String, (Column, bool)> = HashMap::new();
    for row in &rows {
        let (column, required) = column(row).map_err(|e| classify(&e))?;
        there.insert(column.name.clone(), (column, required));
    }
    let mut add = Vec::new();
    match there.get("_version") {
        None => add.push("ADD COLUMN IF NOT EXISTS _version text COLLATE \"C\""),
        Some((c, _)) if c.cast != "text" => {
            found.problems.push(format!("{source}: column _version of {target} must be text, it is {}", c.cast))
        }
        Some(_) => {}
    }
    match there.get("_deleted") {
        None => add.push("ADD COLUMN IF NOT EXISTS _deleted boolean NOT NULL DEFAULT false"),
        Some((c, _)) if c.cast != "boolean" => {
            found.problems.push(format!("{source}: column _deleted of {target} must be boolean, it is {}", c.cast));
        }
        Some(_) => {}
    }
    if !add.is_empty() {
        found.statements.push(format!("ALTER TABLE {target} {};", add.join(", ")));
    }
    let mut pick = |names: &[String]| {
        let mut columns = Vec::new();
        for name in names {
            match there.get(name) {
                Some((column, _)) => columns.push(column.clone()),
                None => found.problems.push(format!("{source}: target table {target} has no column {}", quote(name))),
            }
        }
        columns
    };
    let (keys, columns) = (pick(&wanted.key), pick(&wanted.columns));
    let own = |name: &str| name == "_version" || name == "_deleted" || wanted.key.iter().any(|k| k == name);
    let can_insert_tombstones = there.values().all(|(c, required)| !required || own(&c.name));
    let unique = client.query_one(UNIQUE, &[&oid, &wanted.key]).await.and_then(|r| r.try_get::<_, bool>(0)).map_err(|e| classify(&e))?;
    if !unique {
        let names = wanted.key.iter().map(|k| quote(k)).collect::<Vec<_>>().join(", ");
        found
            .problems
            .push(format!("{source}: no unique index of {target} covers exactly ({names}); CREATE UNIQUE INDEX ON {target} ({names});"));
    }
    let mut privileges = vec!["SELECT", "INSERT", "UPDATE"];
    if on_delete == OnDelete::Delete {
        privileges.push("DELETE");
    }
    let missing = client.query(PRIVILEGES, &[&oid, &privileges]).await.map_err(|e| classify(&e))?;
    let missing = missing.iter().map(|r| r.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>().map_err(|e| classify(&e))?;
    if !missing.is_empty() {
        let role: String = client.query_one("SELECT current_user::text", &[]).await.and_then(|r| r.try_get(0)).map_err(|e| classify(&e))?;
        found.problems.push(format!(
            "{source}: the role lacks {0} on {target}; GRANT {0} ON {target} TO {1};",
            missing.join(", "),
            quote(&role)
        ));
    }
    found.layouts.push(Layout { target, keys, columns, can_insert_tombstones, index: String::new() });
    Ok(())
}

fn column(row: &Row) -> Result<(Column, bool), tokio_postgres::Error> {
    let name: String = row.try_get(0)?;
    let flag = |n: usize| row.try_get::<_, Option<bool>>(n).map(Option::unwrap_or_default);
    let form = if flag(2)? {
        Form::Json
    } else if flag(3)? {
        Form::Bytes
    } else if flag(4)? {
        Form::Array { json: flag(5)?, bytes: flag(6)? }
    } else {
        Form::Text
    };
    Ok((Column { quoted: quote(&name), cast: row.try_get(1)?, exact: row.try_get(8)?, form, name }, flag(7)?))
}

//! What the catalogue says, as plain values.
//!
//! Views that differ between versions are read as JSON, so that a column that a version lacks is simply absent.

use std::collections::HashMap;

use serde::Deserialize;
use tillstream_schemas::table::Identity;
use tillstream_schemas::{Lsn, TableSchema};
use tokio_postgres::Client;
use tokio_postgres::types::Oid;

use super::sql_error;
use crate::capture::CaptureError;
use crate::capture::relations::{ColumnSpec, TableOptions, table_schema};
use crate::config::{ColumnRules, SourceTable};

/// The server and the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, as 150018.
    pub version_num: i32,
    /// `server_version`, as printed.
    pub version: String,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The connected database.
    pub database: String,
    /// Its encoding, as `UTF8`.
    pub encoding: String,
    /// The role we are.
    pub user: String,
}

impl ServerFacts {
    /// Major version.
    #[must_use]
    pub fn major(&self) -> i32 {
        self.version_num / 10_000
    }
}

/// A row of `pg_replication_slots`. What a version does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SlotFacts {
    /// Name.
    pub slot_name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// `logical` or `physical`.
    pub slot_type: String,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Whether it ends with its session.
    pub temporary: bool,
    /// Whether somebody streams from it.
    pub active: bool,
    /// Who does.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Oldest WAL it keeps.
    restart_lsn: Option<String>,
    /// What its reader has acknowledged.
    confirmed_flush_lsn: Option<String>,
    /// WAL bytes that can still be written before it is in danger of being lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// Why it was invalidated (17 and later).
    pub invalidation_reason: Option<String>,
    /// Whether it conflicted with recovery (16 and later).
    pub conflicting: Option<bool>,
    /// Whether it follows a failover (17 and later).
    pub failover: Option<bool>,
}

impl SlotFacts {
    /// Oldest WAL it keeps.
    #[must_use]
    pub fn restart(&self) -> Option<Lsn> {
        self.restart_lsn.as_deref()?.parse().ok()
    }

    /// What its reader has acknowledged: where the stream resumes.
    #[must_use]
    pub fn confirmed(&self) -> Option<Lsn> {
        self.confirmed_flush_lsn.as_deref()?.parse().ok()
    }

    /// WAL bytes it keeps, given how far the server has written.
    #[must_use]
    pub fn retained_bytes(&self, current: Lsn) -> Option<u64> {
        Some(current.0.saturating_sub(self.restart()?.0))
    }

    /// Why it can never stream again, if so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        if let Some(reason) = &self.invalidation_reason {
            return Some(format!("invalidation_reason = {reason}"));
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Some("wal_status = lost".to_owned());
        }
        (self.conflicting == Some(true)).then(|| "it conflicted with recovery on the standby".to_owned())
    }
}

/// A publication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PublicationFacts {
    /// Name.
    #[serde(rename = "pubname")]
    pub name: String,
    /// FOR ALL TABLES.
    #[serde(rename = "puballtables")]
    pub all_tables: bool,
    /// Publishes inserts.
    #[serde(rename = "pubinsert")]
    pub insert: bool,
    /// Publishes updates.
    #[serde(rename = "pubupdate")]
    pub update: bool,
    /// Publishes deletes.
    #[serde(rename = "pubdelete")]
    pub delete: bool,
    /// Publishes truncates.
    #[serde(rename = "pubtruncate")]
    pub truncate: bool,
    /// Partitions appear as their root.
    #[serde(rename = "pubviaroot")]
    pub via_root: bool,
    /// Stored generated columns: `s` (18 and later).
    #[serde(rename = "pubgencols")]
    pub generated: Option<String>,
    /// What it holds, sorted by name.
    #[serde(skip)]
    pub tables: Vec<PublishedTable>,
}

impl PublicationFacts {
    /// The entry of a table.
    #[must_use]
    pub fn table(&self, schema: &str, table: &str) -> Option<&PublishedTable> {
        self.tables.iter().find(|t| t.schema == schema && t.table == table)
    }
}

/// A table as published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// OID.
    pub oid: Oid,
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// Published columns; `None` where the version has no column lists (all are).
    pub columns: Option<Vec<String>>,
    /// The row filter, if there is one.
    pub row_filter: Option<String>,
    /// Whether generated columns are published where `columns` names them.
    pub generated: bool,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFacts {
    /// OID.
    pub oid: Oid,
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// `r` a table, `p` a partitioned one, `f` foreign, `v` view and so on.
    pub kind: char,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Whether it is a partition of another table.
    pub is_partition: bool,
    /// Whether row security is on: a backfill may see fewer rows than the stream.
    pub row_security: bool,
    /// Replica identity as declared.
    pub identity: Identity,
    /// Columns of the primary key, in its order.
    pub primary_key: Vec<String>,
    /// Columns that old rows carry: of the primary key or the chosen index; empty for FULL and NOTHING, and where
    /// the declared identity does not exist.
    pub identity_columns: Vec<String>,
    /// All columns, in order.
    pub columns: Vec<ColumnFacts>,
    /// Estimated rows, by the last ANALYZE; negative when never analyzed.
    pub rows_estimate: f64,
    /// Updates and deletes since the server's statistics began: 0 for a table that is only appended to.
    pub rewrites: i64,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// Name.
    pub name: String,
    /// OID of its type.
    pub type_oid: Oid,
    /// Modifier of its type, -1 for none.
    pub type_modifier: i32,
    /// The type as SQL writes it, qualified where needed.
    pub type_name: String,
    /// Whether it is NOT NULL.
    pub not_null: bool,
    /// Whether it is generated: not published before version 18, and then only if asked.
    pub generated: bool,
}

impl TableFacts {
    /// Whether the server can say which row an UPDATE or DELETE meant. If not, publishing makes them fail.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.identity == Identity::Full || !self.identity_columns.is_empty()
    }

    /// The columns that the publication lets through, in the table's order.
    pub fn published_columns<'a>(&'a self, published: &'a PublishedTable) -> impl Iterator<Item = &'a ColumnFacts> {
        self.columns
            .iter()
            .filter(|c| (!c.generated || published.generated) && published.columns.as_ref().is_none_or(|list| list.contains(&c.name)))
    }

    /// The table's schema as the stream would announce it now.
    ///
    /// # Errors
    /// `partition_by` or a policy does not fit the table.
    pub fn schema(&self, published: &PublishedTable, configured: &SourceTable, rules: &ColumnRules) -> Result<TableSchema, CaptureError> {
        let columns = self.published_columns(published).map(|c| ColumnSpec {
            name: c.name.clone(),
            type_oid: c.type_oid,
            type_modifier: c.type_modifier,
            in_identity: self.identity == Identity::Full || self.identity_columns.contains(&c.name),
        });
        let options = TableOptions::of(configured, rules, &self.primary_key);
        let name = (self.schema.as_str(), self.table.as_str());
        Ok(table_schema(self.oid, name, name, self.identity, columns, &options)?)
    }
}

/// Primary keys by (schema, table).
pub(super) fn primary_keys<'a>(tables: impl Iterator<Item = &'a TableFacts>) -> HashMap<(String, String), Vec<String>> {
    tables.filter(|t| !t.primary_key.is_empty()).map(|t| ((t.schema.clone(), t.table.clone()), t.primary_key.clone())).collect()
}

pub(super) async fn server(client: &Client) -> Result<ServerFacts, CaptureError> {
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), current_setting('wal_level'), \
                      pg_is_in_recovery(), datname::text, pg_encoding_to_char(encoding)::text, current_user::text \
               FROM pg_database WHERE datname = current_database()";
    let row = client.query_one(sql, &[]).await.map_err(sql_error)?;
    Ok(ServerFacts {
        version_num: row.get(0),
        version: row.get(1),
        wal_level: row.get(2),
        in_recovery: row.get(3),
        database: row.get(4),
        encoding: row.get(5),
        user: row.get(6),
    })
}

pub(super) async fn slot(client: &Client, name: &str) -> Result<Option<SlotFacts>, CaptureError> {
    let sql = "SELECT to_jsonb(s)::text FROM pg_replication_slots s WHERE slot_name = $1::text::name";
    client.query_opt(sql, &[&name]).await.map_err(sql_error)?.map(|row| from_json(row.get(0))).transpose()
}

pub(super) async fn publication(client: &Client, name: &str) -> Result<Option<PublicationFacts>, CaptureError> {
    let sql = "SELECT to_jsonb(p)::text FROM pg_publication p WHERE pubname = $1::text::name";
    let Some(row) = client.query_opt(sql, &[&name]).await.map_err(sql_error)? else { return Ok(None) };
    let mut publication: PublicationFacts = from_json(row.get(0))?;
    let sql = "SELECT c.oid, t.schemaname::text, t.tablename::text, \
                      ARRAY(SELECT jsonb_array_elements_text(CASE jsonb_typeof(j.t -> 'attnames') WHEN 'array' THEN j.t -> 'attnames' ELSE '[]' END)), \
                      jsonb_typeof(j.t -> 'attnames') IS NOT DISTINCT FROM 'array', j.t ->> 'rowfilter' \
               FROM pg_publication_tables t \
               JOIN pg_namespace n ON n.nspname = t.schemaname \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
               CROSS JOIN LATERAL (SELECT to_jsonb(t) AS t) j \
               WHERE t.pubname = $1::text::name ORDER BY 2, 3";
    // Since version 18, which publishes generated columns, the list holds what is published and nothing else.
    let generated = publication.generated.is_some();
    for row in client.query(sql, &[&name]).await.map_err(sql_error)? {
        let (columns, listed): (Vec<String>, bool) = (row.get(3), row.get(4));
        publication.tables.push(PublishedTable {
            oid: row.get(0),
            schema: row.get(1),
            table: row.get(2),
            columns: listed.then_some(columns),
            row_filter: row.get(5),
            generated,
        });
    }
    Ok(Some(publication))
}

pub(super) async fn tables(client: &Client, names: &[(String, String)]) -> Result<Vec<Option<TableFacts>>, CaptureError> {
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().map(|(s, t)| (s.as_str(), t.as_str())).unzip();
    // A deferrable primary key does not identify rows for replication.
    let key = |condition: &str| {
        format!(
            "ARRAY(SELECT a.attname::text FROM pg_index i \
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, ord) \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
             WHERE i.indrelid = c.oid AND i.indisvalid AND {condition} AND k.ord <= i.indnkeyatts ORDER BY k.ord)"
        )
    };
    let sql = format!(
        "SELECT w.ord, c.oid, c.relkind::text, c.relpersistence::text, c.relispartition, c.relrowsecurity, c.relreplident::text, c.reltuples::float8, \
                pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid), \
                {}, {} \
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(s, t, ord) \
         JOIN pg_namespace n ON n.nspname = w.s JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
         WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')",
        key("i.indisprimary"),
        key("CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END"),
    );
    let mut found: Vec<Option<TableFacts>> = names.iter().map(|_| None).collect();
    for row in client.query(&sql, &[&schemas, &tables]).await.map_err(sql_error)? {
        let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        let (Some(slot), Some((schema, table))) = (found.get_mut(at), names.get(at)) else { continue };
        *slot = Some(TableFacts {
            oid: row.get(1),
            schema: schema.clone(),
            table: table.clone(),
            kind: letter(row.get(2)),
            persistence: letter(row.get(3)),
            is_partition: row.get(4),
            row_security: row.get(5),
            identity: match letter(row.get(6)) {
                'f' => Identity::Full,
                'i' => Identity::Index,
                'n' => Identity::Nothing,
                _ => Identity::Default,
            },
            rows_estimate: row.get(7),
            rewrites: row.get::<_, Option<i64>>(8).unwrap_or(0),
            primary_key: row.get(9),
            identity_columns: row.get(10),
            columns: Vec::new(),
        });
    }
    add_columns(client, &mut found).await?;
    Ok(found)
}

async fn add_columns(client: &Client, tables: &mut [Option<TableFacts>]) -> Result<(), CaptureError> {
    let oids: Vec<Oid> = tables.iter().flatten().map(|t| t.oid).collect();
    let sql = "SELECT attrelid, attname::text, atttypid, atttypmod, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '' \
               FROM pg_attribute WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum";
    let mut columns: HashMap<Oid, Vec<ColumnFacts>> = HashMap::new();
    for row in client.query(sql, &[&oids]).await.map_err(sql_error)? {
        columns.entry(row.get(0)).or_default().push(ColumnFacts {
            name: row.get(1),
            type_oid: row.get(2),
            type_modifier: row.get(3),
            type_name: row.get(4),
            not_null: row.get(5),
            generated: row.get(6),
        });
    }
    for table in tables.iter_mut().flatten() {
        table.columns = columns.get(&table.oid).cloned().unwrap_or_default();
    }
    Ok(())
}

fn letter(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}

fn from_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CaptureError> {
    serde_json::from_str(text).map_err(|e| CaptureError::Unavailable(format!("the catalogue cannot be read: {e}")))
}

//! The checks before a session: whatever would fail later, or lose changes silently, is said here with its fix.

use std::collections::HashMap;

use tillstream_schemas::table::Identity;

use super::sql::{self, Published};
use super::{Catalog, PublicationFacts, ServerFacts, SlotFacts, TableFacts, facts};
use crate::capture::CaptureError;
use crate::capture::wire::{ORIGIN_MAJOR, definite, origin_unsupported, slot_lost, slot_missing, slot_unusable, wal_level};
use crate::config;

/// The oldest major version that is supported: logical messages in the stream begin with it.
const MAJOR_MIN: i32 = 14;

/// What a session may rely on.
#[derive(Clone, Debug)]
pub struct StartFacts {
    /// The server.
    pub server: ServerFacts,
    /// The slot.
    pub slot: SlotFacts,
    /// The publication.
    pub publication: PublicationFacts,
    /// The configured tables, in the order of the configuration.
    pub tables: Vec<TableFacts>,
    /// What does not stop capture and should be known.
    pub warnings: Vec<Warning>,
}

impl StartFacts {
    /// The configured tables by OID.
    #[must_use]
    pub fn oids(&self) -> HashMap<u32, (String, String)> {
        self.tables.iter().map(|t| (t.oid, (t.schema.clone(), t.table.clone()))).collect()
    }

    /// Primary key columns by (schema, table).
    #[must_use]
    pub fn primary_keys(&self) -> HashMap<(String, String), Vec<String>> {
        facts::primary_keys(self.tables.iter())
    }
}

/// Something that works and may surprise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable dotted code.
    pub code: &'static str,
    /// What was found.
    pub what: String,
    /// What it means for the point of sale or for what is captured.
    pub why: String,
    /// The statement that mends it.
    pub fix: String,
}

/// Connects and checks server, publication, tables and slot. Reads only.
///
/// # Errors
/// A coded error that carries the fix for the first fault that would keep capture from working; the order is that in
/// which things have to be set up. A slot that is in use is none: only taking it decides.
pub async fn check_start(source: &config::Source, pipeline: &str) -> Result<StartFacts, CaptureError> {
    let catalog = Catalog::connect(source, pipeline, "check").await?;
    check_server(source, catalog.server())?;
    let publication = catalog.publication(&source.publication).await?.ok_or_else(|| publication_missing(source))?;
    let tables = catalog.configured_tables(source).await?;
    check_publication(source, &publication, &tables)?;
    for (table, configured) in tables.iter().zip(&source.tables) {
        if let Some(published) = publication.table(&table.schema, &table.table) {
            table.schema(published, configured, &source.columns)?;
        }
    }
    let slot = catalog.slot(&source.slot).await?.ok_or_else(|| slot_missing(&source.slot, Some(catalog.server().major())))?;
    check_slot(source, &slot, catalog.server())?;
    let warnings = warnings(source, &publication, &tables);
    Ok(StartFacts { server: catalog.server().clone(), slot, publication, tables, warnings })
}

fn check_server(source: &config::Source, server: &ServerFacts) -> Result<(), CaptureError> {
    if server.major() < MAJOR_MIN {
        return Err(definite(
            "capture.version_unsupported",
            format!("the server is PostgreSQL {}; {MAJOR_MIN} to 18 are supported", server.version),
            "older versions send no logical messages and get no corrections any more",
            "upgrade the server",
        ));
    }
    if source.origin == config::Origin::None && server.major() < ORIGIN_MAJOR.cast_signed() {
        return Err(origin_unsupported(&server.version));
    }
    if server.wal_level != "logical" {
        return Err(wal_level(&format!("wal_level = {}", server.wal_level)));
    }
    if server.in_recovery && server.major() < 16 {
        return Err(definite(
            "capture.standby",
            format!("the server is a standby, and PostgreSQL {} cannot decode there", server.version),
            "before version 16 only a primary has logical slots",
            "point the source's URL at the primary (several hosts with target_session_attrs=read-write find it)",
        ));
    }
    Ok(())
}

fn check_publication(source: &config::Source, publication: &PublicationFacts, tables: &[TableFacts]) -> Result<(), CaptureError> {
    let lacking: Vec<&TableFacts> = tables.iter().filter(|t| publication.table(&t.schema, &t.table).is_none()).collect();
    if let Some(root) = lacking.iter().find(|t| t.kind == 'p' && !publication.via_root) {
        return Err(definite(
            "capture.publication_lacks_table",
            format!("publication \"{}\" publishes the partitions of {}, not the table itself", source.publication, root.qualified()),
            "changes would come under the partitions' names",
            format!(
                "{} {}",
                sql::via_root(&source.publication, true),
                sql::add_tables(&source.publication, &[Published::whole(root.qualified())])
            ),
        ));
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let list = lacking.iter().map(|t| t.qualified()).collect::<Vec<_>>().join(", ");
    Err(definite(
        "capture.publication_lacks_table",
        format!("publication \"{}\" does not publish {list}", source.publication),
        "changes of these tables would be missed, silently",
        sql::add_tables(&source.publication, &lacking.iter().map(|t| Published::whole(t.qualified())).collect::<Vec<_>>()),
    ))
}

fn check_slot(source: &config::Source, slot: &SlotFacts, server: &ServerFacts) -> Result<(), CaptureError> {
    let major = Some(server.major());
    if let Some(evidence) = slot.lost() {
        return Err(slot_lost(&source.slot, &evidence, major));
    }
    if slot.slot_type != "logical" {
        return Err(slot_unusable(&source.slot, &format!("it is a {} slot", slot.slot_type), major));
    }
    if slot.plugin.as_deref() != Some("pgoutput") {
        return Err(slot_unusable(&source.slot, &format!("its plugin is {}", slot.plugin.as_deref().unwrap_or("none")), major));
    }
    if slot.database.as_deref() != Some(server.database.as_str()) {
        return Err(slot_unusable(
            &source.slot,
            &format!("it belongs to database \"{}\"", slot.database.as_deref().unwrap_or_default()),
            major,
        ));
    }
    if slot.confirmed().is_none() {
        return Err(CaptureError::Unavailable(format!(
            "slot \"{}\" is still being created: a transaction that is open holds it up",
            source.slot
        )));
    }
    Ok(())
}

fn warnings(source: &config::Source, publication: &PublicationFacts, tables: &[TableFacts]) -> Vec<Warning> {
    let mut found: Vec<Warning> = tables.iter().filter_map(|t| identity_warning(t, publication)).collect();
    for extra in &publication.tables {
        if !source.tables.iter().any(|t| t.schema == extra.schema && t.table == extra.table) {
            let table = format!("{}.{}", identifier(&extra.schema), identifier(&extra.table));
            found.push(Warning {
                code: "capture.publication_extra_table",
                what: format!("publication \"{}\" also publishes {table}", publication.name),
                why: "its changes are sent and dropped; without a replica identity its UPDATEs fail in the point of sale".to_owned(),
                fix: format!("add it to source.tables, or {}", sql::drop_tables(&source.publication, std::slice::from_ref(&table))),
            });
        }
    }
    let missing: Vec<&str> = [
        ("insert", publication.insert),
        ("update", publication.update),
        ("delete", publication.delete),
        ("truncate", publication.truncate),
    ]
    .into_iter()
    .filter_map(|(op, on)| (!on).then_some(op))
    .collect();
    if !missing.is_empty() {
        found.push(Warning {
            code: "capture.publication_partial",
            what: format!("publication \"{}\" does not publish: {}", publication.name, missing.join(", ")),
            why: "targets keep rows that the point of sale has changed or removed".to_owned(),
            fix: sql::publish_all(&source.publication),
        });
    }
    for filtered in publication.tables.iter().filter(|t| t.row_filter.is_some()) {
        found.push(Warning {
            code: "capture.publication_row_filter",
            what: format!("publication \"{}\" filters the rows of {}.{}", publication.name, filtered.schema, filtered.table),
            why: "rows outside the filter are not captured; an update across it comes as an insert or a delete".to_owned(),
            fix: "nothing, if that is meant".to_owned(),
        });
    }
    found
}

/// What is wrong with how a published table names its rows.
pub(crate) fn identity_warning(table: &TableFacts, publication: &PublicationFacts) -> Option<Warning> {
    if table.has_identity() || !(publication.update || publication.delete) {
        return None;
    }
    let name = table.qualified();
    let (what, fix) = match table.identity {
        Identity::Nothing => (format!("{name} has REPLICA IDENTITY NOTHING"), format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;")),
        _ => (
            format!("{name} has no usable key and no other replica identity"),
            format!("add a primary key, or ALTER TABLE {name} REPLICA IDENTITY FULL;"),
        ),
    };
    Some(Warning {
        code: "capture.keyless_table",
        what,
        why: format!("while it is published, UPDATE and DELETE on {name} FAIL in the point of sale"),
        fix,
    })
}

impl TableFacts {
    /// `"schema"."table"`, quoted where needed.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.table))
    }
}

/// A name as SQL takes it: bare where that is safe, quoted otherwise.
pub(crate) fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A text as SQL takes it.
pub(crate) fn literal(text: &str) -> String {
    // With standard_conforming_strings, which we pin, a backslash stands for itself.
    format!("'{}'", text.replace('\'', "''"))
}

/// Reserved words that people do use as table or column names; quoting one more does no harm, one less does.
const RESERVED: [&str; 40] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "default",
    "desc",
    "do",
    "else",
    "end",
    "fetch",
    "for",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "into",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "or",
    "order",
    "select",
    "table",
    "to",
    "union",
    "user",
];

fn publication_missing(source: &config::Source) -> CaptureError {
    let table = |t: &config::SourceTable| Published::whole(format!("{}.{}", identifier(&t.schema), identifier(&t.table)));
    let tables: Vec<Published> = source.tables.iter().map(table).collect();
    definite(
        "capture.publication_missing",
        format!("publication \"{}\" does not exist", source.publication),
        "it says which tables the server sends",
        format!("{} a slot that is older than it has to be created anew", sql::create_publication(&source.publication, &tables)),
    )
}

pub(super) fn table_missing(name: &(String, String), database: &str) -> CaptureError {
    definite(
        "capture.table_missing",
        format!("table {}.{} does not exist in database \"{database}\"", identifier(&name.0), identifier(&name.1)),
        "a configured table that is not there cannot be captured",
        "mend source.tables, or the database in the source's URL",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_needed() {
        for (name, sql) in
            [("orders", "orders"), ("order", "\"order\""), ("Order Item", "\"Order Item\""), ("a\"b", "\"a\"\"b\""), ("1st", "\"1st\"")]
        {
            assert_eq!(identifier(name), sql);
        }
    }
}

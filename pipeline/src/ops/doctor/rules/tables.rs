//! How published tables name their rows: what is wrong here makes the application's own statements fail.

use tillstream_schemas::table::Identity;

use super::{Facts, Findings};
use crate::capture::catalog::{PublicationFacts, TableFacts, identifier, identity_warning};
use crate::ops::doctor::finding::Severity;

/// From here on a FULL row costs visibly more WAL than its key.
const WIDE: usize = 30;

pub(super) fn judge(found: &mut Findings, facts: &Facts) {
    keyless(found, facts);
    partitions(found, facts);
    published_identity(found, facts);
    others(found, facts);
    full(found, facts);
}

fn all(facts: &Facts) -> impl Iterator<Item = &TableFacts> {
    facts.tables.iter().filter_map(|(_, t)| t.as_ref()).chain(&facts.extra)
}

/// A table that is only appended to works as it is; the first correction by hand would not.
fn by_rewrites(rewrites: i64) -> Severity {
    if rewrites > 0 { Severity::Fail } else { Severity::Warn }
}

fn keyless(found: &mut Findings, facts: &Facts) {
    let whole = PublicationFacts { update: true, delete: true, ..PublicationFacts::default() };
    let mut fine = 0;
    for table in all(facts) {
        let published = facts.publication.as_ref().is_some_and(|p| p.table(&table.schema, &table.table).is_some());
        let effective = if published { facts.publication.as_ref().unwrap_or(&whole) } else { &whole };
        match identity_warning(table, effective) {
            None => fine += 1,
            Some(risk) => {
                let when = if published { "now" } else { "once it is published" };
                let name = table.qualified();
                let impact = format!("UPDATE and DELETE on {name} FAIL in the point of sale {when}; {} seen so far", table.rewrites);
                found.add(by_rewrites(table.rewrites), risk.code, risk.what, impact, risk.fix);
            }
        }
    }
    found.ok("capture.keyless_table", format!("{fine} tables name their rows by a key or the whole row"));
}

fn partitions(found: &mut Findings, facts: &Facts) {
    for keyless in &facts.partitions {
        found.add(
            by_rewrites(keyless.rewrites),
            "capture.keyless_partition",
            format!("{}, a partition of {}, has no usable replica identity of its own", keyless.table, keyless.of),
            format!(
                "UPDATE and DELETE on its rows FAIL in the point of sale while {} is published; {} seen so far",
                keyless.of, keyless.rewrites
            ),
            format!("add a primary key to it, or ALTER TABLE {} REPLICA IDENTITY FULL;", keyless.table),
        );
    }
    if facts.partitions.is_empty() && all(facts).any(|t| t.kind == 'p') {
        found.ok("capture.keyless_partition", "every partition names its rows");
    }
}

/// The server refuses an UPDATE whose old row it may not send, or cannot hold against a filter.
fn published_identity(found: &mut Findings, facts: &Facts) {
    let Some(publication) = &facts.publication else { return };
    if !(publication.update || publication.delete) {
        return;
    }
    let name = identifier(&publication.name);
    let (mut lists, mut filters) = (true, true);
    for table in all(facts).filter(|t| t.has_identity()) {
        let Some(published) = publication.table(&table.schema, &table.table) else { continue };
        let qualified = table.qualified();
        let needed: Vec<&str> = match table.identity {
            Identity::Full => table.columns.iter().filter(|c| !c.generated).map(|c| c.name.as_str()).collect(),
            _ => table.identity_columns.iter().map(String::as_str).collect(),
        };
        let hidden: Vec<&str> =
            needed.iter().copied().filter(|c| published.columns.as_ref().is_some_and(|list| !list.iter().any(|l| l == c))).collect();
        if !hidden.is_empty() {
            lists = false;
            let columns = published.columns.iter().flatten().map(String::as_str).chain(hidden.iter().copied());
            let columns: Vec<String> = columns.map(identifier).collect();
            let fix = if table.identity == Identity::Full {
                format!("ALTER TABLE {qualified} REPLICA IDENTITY DEFAULT; (it needs a primary key within the column list)")
            } else {
                format!(
                    "set the table's list in publication {name} to ({}), by ALTER PUBLICATION {name} SET TABLE … with all its tables",
                    columns.join(", ")
                )
            };
            found.fail(
                "capture.identity_not_published",
                format!("the column list of {qualified} lacks {} of its replica identity", hidden.join(", ")),
                format!("UPDATE and DELETE on {qualified} FAIL in the point of sale; {} seen so far", table.rewrites),
                fix,
            );
        }
        let foreign: Vec<&str> = match (table.identity, facts.filters.get(&table.oid)) {
            (Identity::Full, _) | (_, None) => Vec::new(),
            (_, Some(columns)) => columns.iter().map(String::as_str).filter(|c| !needed.contains(c)).collect(),
        };
        if !foreign.is_empty() {
            filters = false;
            found.fail(
                "capture.filter_beyond_identity",
                format!("the row filter of {qualified} asks for {}, which its replica identity lacks", foreign.join(", ")),
                format!("UPDATE and DELETE on {qualified} FAIL in the point of sale; {} seen so far", table.rewrites),
                format!("filter in the connector's `when:` instead, or ALTER TABLE {qualified} REPLICA IDENTITY FULL;"),
            );
        }
    }
    if lists {
        found.ok("capture.identity_not_published", "what names a row is published");
    }
    if filters {
        found.ok("capture.filter_beyond_identity", "no row filter asks for more than old rows carry");
    }
}

fn others(found: &mut Findings, facts: &Facts) {
    for keyless in &facts.others {
        found.warn(
            "capture.other_publication_keyless",
            format!("publication {} holds {}, which has no usable key", keyless.of, keyless.table),
            format!(
                "UPDATE and DELETE on {} FAIL in the point of sale, whoever that publication is for; {} seen so far",
                keyless.table, keyless.rewrites
            ),
            format!("add a primary key, or ALTER PUBLICATION {} DROP TABLE {}; if nobody needs it", identifier(&keyless.of), keyless.table),
        );
    }
    if facts.others.is_empty() {
        found.ok("capture.other_publication_keyless", "no other publication makes statements fail");
    }
}

fn full(found: &mut Findings, facts: &Facts) {
    for table in facts.tables.iter().filter_map(|(_, t)| t.as_ref()) {
        if table.identity == Identity::Full && table.columns.len() >= WIDE && !table.primary_key.is_empty() {
            found.warn(
                "capture.identity_full",
                format!("{} has REPLICA IDENTITY FULL, {} columns and a primary key", table.qualified(), table.columns.len()),
                "every UPDATE writes the whole old row to WAL",
                format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT;", table.qualified()),
            );
        }
    }
}

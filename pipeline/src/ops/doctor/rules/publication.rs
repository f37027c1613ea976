//! The publication, against what the configuration wants captured.

use super::{Facts, Findings};
use crate::capture::catalog::sql::{self, Published};
use crate::capture::catalog::{PublicationFacts, TableFacts, identifier};
use crate::config;

pub(super) fn judge(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let present: Vec<&TableFacts> = facts.tables.iter().filter_map(|(_, t)| t.as_ref()).collect();
    tables(found, facts, &present);
    let name = identifier(&source.publication);
    let Some(publication) = &facts.publication else {
        if facts.unread.iter().all(|u| u.what != "the publication") {
            found.fail(
                "capture.publication_missing",
                format!("publication \"{}\" does not exist", source.publication),
                "nothing is sent",
                sql::create_publication(&source.publication, &whole(&present)),
            );
        }
        return;
    };
    coverage(found, publication, facts, &present);
    breadth(found, publication, facts, &present, &name);
    filters(found, publication, &present);
}

fn whole(tables: &[&TableFacts]) -> Vec<Published> {
    tables.iter().map(|t| Published::whole(t.qualified())).collect()
}

fn list(tables: &[&TableFacts]) -> String {
    tables.iter().map(|t| t.qualified()).collect::<Vec<_>>().join(", ")
}

fn tables(found: &mut Findings, facts: &Facts, present: &[&TableFacts]) {
    for ((schema, table), _) in facts.tables.iter().filter(|(_, t)| t.is_none()) {
        found.fail(
            "capture.table_missing",
            format!("table {}.{} does not exist", identifier(schema), identifier(table)),
            "it cannot be captured, and the pipeline does not start",
            "mend source.tables, or the database in the source's URL",
        );
    }
    let strange: Vec<&&TableFacts> = present.iter().filter(|t| t.persistence != 'p' || !matches!(t.kind, 'r' | 'p')).collect();
    for table in &strange {
        let fix = match table.kind {
            'r' => format!("take it out of source.tables, or ALTER TABLE {} SET LOGGED; (which rewrites and locks it)", table.qualified()),
            _ => "take it out of source.tables and capture the tables behind it".to_owned(),
        };
        let what = format!("{} is not an ordinary, logged table", table.qualified());
        found.fail("capture.table_unsupported", what, "its changes are not in WAL", fix);
    }
    if strange.is_empty() {
        found.ok("capture.table_unsupported", "all configured tables are ordinary, logged ones");
    }
    let mut left = vec!["DDL", "sequences"];
    if facts.state.as_ref().is_some_and(|s| s.large_objects) {
        left.push("large objects, of which this database has some");
    }
    found.note(
        "capture.not_captured",
        format!("logical replication does not carry {}", left.join(", ")),
        "targets learn of a new layout with the next change of the table; values of sequences and large objects they never learn",
        "",
    );
}

fn coverage(found: &mut Findings, publication: &PublicationFacts, facts: &Facts, present: &[&TableFacts]) {
    let lacking: Vec<&TableFacts> = present.iter().copied().filter(|t| publication.table(&t.schema, &t.table).is_none()).collect();
    if lacking.is_empty() {
        found.ok("capture.publication_lacks_table", format!("publication \"{}\" holds all configured tables", publication.name));
    } else {
        let via_root = if !publication.via_root && lacking.iter().any(|t| t.kind == 'p') {
            format!("{} ", sql::via_root(&publication.name, true))
        } else {
            String::new()
        };
        found.fail(
            "capture.publication_lacks_table",
            format!("publication \"{}\" does not publish {}", publication.name, list(&lacking)),
            "changes of these tables would be missed; the pipeline does not start",
            via_root + &sql::add_tables(&publication.name, &whole(&lacking)),
        );
    }
    if !facts.extra.is_empty() {
        let extra: Vec<&TableFacts> = facts.extra.iter().collect();
        found.warn(
            "capture.publication_extra_table",
            format!("publication \"{}\" also publishes {}", publication.name, list(&extra)),
            "their changes are sent and dropped",
            format!(
                "add them to source.tables, or {}",
                sql::drop_tables(&publication.name, &extra.iter().map(|t| t.qualified()).collect::<Vec<_>>())
            ),
        );
    }
    if publication.insert && publication.update && publication.delete && publication.truncate {
        found.ok("capture.publication_partial", "inserts, updates, deletes and truncates are published");
    } else {
        found.warn(
            "capture.publication_partial",
            format!("publication \"{}\" does not publish all of insert, update, delete, truncate", publication.name),
            "targets keep rows that the point of sale has changed or removed",
            sql::publish_all(&publication.name),
        );
    }
}

/// A publication that takes in whatever is created later.
fn breadth(found: &mut Findings, publication: &PublicationFacts, facts: &Facts, present: &[&TableFacts], name: &str) {
    let holds = if publication.all_tables {
        "all tables".to_owned()
    } else if !facts.schemas.is_empty() {
        format!("every table of schema {}", facts.schemas.join(", "))
    } else {
        return found.ok("capture.publication_open_ended", "the publication names its tables one by one");
    };
    found.warn(
        "capture.publication_open_ended",
        format!("publication \"{}\" holds {holds}, also those made later", publication.name),
        "the day somebody creates a table without a key, its UPDATEs and DELETEs FAIL in the point of sale",
        format!(
            "CREATE PUBLICATION … FOR TABLE {}; under a new name, drop {name}, and name the new one in source.publication",
            list(present)
        ),
    );
}

fn filters(found: &mut Findings, publication: &PublicationFacts, present: &[&TableFacts]) {
    for table in present {
        let Some(published) = publication.table(&table.schema, &table.table) else { continue };
        let qualified = table.qualified();
        if published.row_filter.is_some() {
            found.warn(
                "capture.publication_row_filter",
                format!("publication \"{}\" filters the rows of {qualified}", publication.name),
                "rows outside the filter are not captured; an update across it comes as an insert or a delete",
                "nothing, if that is meant",
            );
        }
        let sent: Vec<&str> = table.published_columns(published).map(|c| c.name.as_str()).collect();
        let unsent: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).filter(|c| !sent.contains(c)).collect();
        if !unsent.is_empty() {
            found.note(
                "capture.columns_not_published",
                format!("columns of {qualified} that are not published: {}", unsent.join(", ")),
                "events do not have them; generated columns are published from version 18 on, if asked for",
                "nothing, if that is meant",
            );
        }
    }
}

//! Drift between the pipeline's file and its source: tables, columns, operations and grants that one has and the other lacks, each with
//! the SQL that mends it. Reads only; [`judge`] is pure.

use std::fmt::Write as _;

use secrecy::SecretString;
use serde::Serialize;

use crate::capture::CaptureError;
use crate::capture::catalog::sql::{self, Published};
use crate::capture::catalog::{Catalog, PublicationFacts, TableFacts, identifier, identity_warning};
use crate::capture::wire::{Address, application_name};
use crate::config;

use super::provider::Provider;
use super::setup::{Facts, column_list, columns_shown};

/// Something that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Stable dotted code.
    pub code: &'static str,
    /// `schema.table`, or the publication's name.
    pub of: String,
    /// What differs.
    pub what: String,
    /// What it means.
    pub why: String,
    /// Statements that mend it, in order; none where a person has to decide.
    pub sql: Vec<String>,
    /// What has to be done beside the statements, or instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Changes are being missed, or the point of sale is hurt.
    pub loses: bool,
}

/// What differs between file and database.
#[derive(Clone, Debug, Serialize)]
pub struct Drift {
    /// Source, version, publication.
    pub subject: String,
    /// Worst first.
    pub differences: Vec<Difference>,
}

/// Compares, as whoever `admin_url` names (the source's own URL when `None`).
///
/// # Errors
/// The server is away or refuses.
pub async fn compare(source: &config::Source, pipeline: &str, admin_url: Option<&SecretString>) -> Result<Drift, CaptureError> {
    let catalog =
        Catalog::connect_url(admin_url.unwrap_or(&source.url), &application_name(pipeline, "publication"), source.allow_weak_auth).await?;
    let names: Vec<(String, String)> = source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
    let there = catalog.tables(&names).await?;
    let present = source.tables.iter().zip(&there).filter(|(_, found)| found.is_some()).map(|(table, _)| table.clone()).collect();
    let reader = match &source.backfill_url {
        Some(url) => Some(Address::parse(url)?.user),
        None => None,
    };
    let known = config::Source { tables: present, ..source.clone() };
    let roles = ("", reader.as_deref().unwrap_or_default());
    let facts = Facts::read(&catalog, &known, roles, Some(Provider::SelfHosted)).await?;
    let server = catalog.server();
    Ok(Drift {
        subject: format!(
            "source {}   PostgreSQL {}   database {}   publication {}",
            source.name, server.version, server.database, source.publication
        ),
        differences: judge(source, &facts),
    })
}

/// What differs, worst first. `facts` holds the configured tables that are there.
#[must_use]
pub fn judge(source: &config::Source, facts: &Facts) -> Vec<Difference> {
    let mut found = Vec::new();
    for table in &source.tables {
        if !facts.tables.iter().any(|t| t.schema == table.schema && t.table == table.table) {
            found.push(Difference {
                code: "coverage.table_missing",
                of: format!("{}.{}", table.schema, table.table),
                what: "it is in source.tables and not in the database".to_owned(),
                why: "it was dropped or renamed; the pipeline will not start".to_owned(),
                sql: Vec::new(),
                then: Some("name its new name in source.tables, or take it out there".to_owned()),
                loses: true,
            });
        }
    }
    match &facts.publication {
        None => found.push(missing_publication(source, facts)),
        Some(publication) => {
            for table in &facts.tables {
                match publication.table(&table.schema, &table.table) {
                    None => found.push(not_published(source, facts, publication, table)),
                    Some(_) => found.extend(columns(source, facts, publication, table)),
                }
            }
            found.extend(not_configured(source, publication));
            found.extend(operations(source, publication));
        }
    }
    for table in &facts.tables {
        found.extend(policies(source, table));
        found.extend(grants(source, facts, table));
    }
    found.sort_by_key(|difference| !difference.loses);
    found
}

fn missing_publication(source: &config::Source, facts: &Facts) -> Difference {
    let tables: Vec<Published> = facts.tables.iter().map(|t| wanted(source, facts, t)).collect();
    Difference {
        code: "coverage.publication_missing",
        of: source.publication.clone(),
        what: "the publication does not exist".to_owned(),
        why: "nothing is sent".to_owned(),
        sql: vec![sql::create_publication(&source.publication, &tables)],
        then: Some(
            "a slot that is older than it has to be dropped and created anew (`tillstream setup`), then `tillstream epoch bump`".to_owned(),
        ),
        loses: true,
    }
}

/// A table as it would be published anew.
fn wanted(source: &config::Source, facts: &Facts, table: &TableFacts) -> Published {
    Published { columns: column_list(source, table, facts.server.major(), false), ..Published::whole(table.qualified()) }
}

fn not_published(source: &config::Source, facts: &Facts, publication: &PublicationFacts, table: &TableFacts) -> Difference {
    let name = &source.publication;
    let mut statements = Vec::new();
    let whole = PublicationFacts { update: true, delete: true, ..PublicationFacts::default() };
    let risk = identity_warning(table, &whole);
    // Published without an identity, the point of sale's own updates would fail: that first.
    if let Some(risk) = &risk {
        statements.push(format!("-- first: {}", risk.fix));
    }
    if table.kind == 'p' && !publication.via_root {
        statements.push(sql::via_root(name, true));
    }
    statements.push(sql::add_tables(name, &[wanted(source, facts, table)]));
    Difference {
        code: "coverage.not_published",
        of: format!("{}.{}", table.schema, table.table),
        what: "it is in source.tables and not in the publication".to_owned(),
        why: match risk {
            Some(risk) => format!("its changes are missed; and {}: {}", risk.what, risk.why),
            None => "its changes are missed".to_owned(),
        },
        sql: statements,
        then: Some(format!("load what was missed:  tillstream backfill start --table {}.{}", table.schema, table.table)),
        loses: true,
    }
}

/// Columns that leave the database and should not, or the other way round.
fn columns(source: &config::Source, facts: &Facts, publication: &PublicationFacts, table: &TableFacts) -> Option<Difference> {
    let published = publication.table(&table.schema, &table.table)?;
    let listed = published.columns.as_ref()?;
    let shown = columns_shown(source, table);
    let lacking: Vec<&String> = shown.iter().filter(|c| !listed.contains(c)).collect();
    let generated = |name: &String| table.columns.iter().any(|c| c.generated && c.name == *name);
    let exposed: Vec<&String> = listed.iter().filter(|c| !shown.contains(c) && !generated(c)).collect();
    // With REPLICA IDENTITY FULL every column has to be published.
    let may_list = column_list(source, table, facts.server.major(), true).is_some();
    if lacking.is_empty() && (exposed.is_empty() || !may_list) {
        return None;
    }
    let names = |columns: &[&String]| columns.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(", ");
    let mut what = Vec::new();
    if !lacking.is_empty() {
        what.push(format!("columns {} are not published", names(&lacking)));
    }
    if !exposed.is_empty() {
        what.push(format!("columns {} are published, and the configuration drops or holds them", names(&exposed)));
    }
    let list: Vec<String> =
        table.columns.iter().map(|c| c.name.clone()).filter(|c| shown.contains(c) || (listed.contains(c) && generated(c))).collect();
    let again = Published {
        columns: may_list.then_some(list),
        row_filter: published.row_filter.as_ref().map(|f| format!("({f})")),
        table: table.qualified(),
    };
    Some(Difference {
        code: if lacking.is_empty() { "publication.column_exposed" } else { "coverage.column_list" },
        of: format!("{}.{}", table.schema, table.table),
        what: what.join("; "),
        why: if lacking.is_empty() {
            "their values leave the database and are thrown away here; with a column list they would stay there".to_owned()
        } else {
            "they are absent from events".to_owned()
        },
        sql: vec![
            // Both at one commit: no change falls between them.
            "BEGIN;".to_owned(),
            sql::drop_tables(&source.publication, &[table.qualified()]),
            sql::add_tables(&source.publication, &[again]),
            "COMMIT;".to_owned(),
        ],
        then: (!lacking.is_empty())
            .then(|| format!("where older rows need them:  tillstream backfill start --table {}.{}", table.schema, table.table)),
        loses: !lacking.is_empty(),
    })
}

fn not_configured(source: &config::Source, publication: &PublicationFacts) -> Vec<Difference> {
    let extra = publication.tables.iter().filter(|p| !source.tables.iter().any(|t| t.schema == p.schema && t.table == p.table));
    extra
        .map(|table| Difference {
            code: "capture.publication_extra_table",
            of: format!("{}.{}", table.schema, table.table),
            what: "it is in the publication and not in source.tables".to_owned(),
            why: "its changes are sent and dropped; without a replica identity its UPDATEs fail in the point of sale".to_owned(),
            sql: if publication.all_tables {
                Vec::new()
            } else {
                vec![sql::drop_tables(&publication.name, &[format!("{}.{}", identifier(&table.schema), identifier(&table.table))])]
            },
            then: Some(if publication.all_tables {
                "the publication is FOR ALL TABLES: create one that lists them (`tillstream setup` with another name)".to_owned()
            } else {
                "or add it to source.tables".to_owned()
            }),
            loses: false,
        })
        .collect()
}

fn operations(source: &config::Source, publication: &PublicationFacts) -> Option<Difference> {
    let all = [
        ("insert", publication.insert),
        ("update", publication.update),
        ("delete", publication.delete),
        ("truncate", publication.truncate),
    ];
    let lacking: Vec<&str> = all.iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
    (!lacking.is_empty()).then(|| Difference {
        code: "coverage.operation_missing",
        of: publication.name.clone(),
        what: format!("it does not publish {}", lacking.join(", ")),
        why: "targets keep rows that the point of sale has changed or removed".to_owned(),
        sql: vec![sql::publish_all(&source.publication)],
        then: None,
        loses: true,
    })
}

fn policies(source: &config::Source, table: &TableFacts) -> Vec<Difference> {
    let policies = source.columns.of(&table.schema, &table.table).into_iter().flatten();
    let gone = policies.filter(|(column, _)| !table.columns.iter().any(|c| c.name == **column));
    gone.map(|(column, policy)| Difference {
        code: "capture.policy_column_gone",
        of: format!("{}.{}", table.schema, table.table),
        what: format!("source.columns says `{column}: {policy}`, and the table has no such column"),
        why: "it was dropped or renamed; a renamed column would go out unprotected".to_owned(),
        sql: Vec::new(),
        then: Some("name the column that takes its place in source.columns; keep the former name while older changes may come".to_owned()),
        loses: false,
    })
    .collect()
}

fn grants(source: &config::Source, facts: &Facts, table: &TableFacts) -> Option<Difference> {
    let role = Some(&facts.backfill).filter(|role| role.exists)?;
    let at = facts.tables.iter().position(|t| t.oid == table.oid)?;
    let closed = role.columns_closed.get(at)?;
    let columns: Vec<String> = columns_shown(source, table).into_iter().filter(|c| closed.contains(c)).collect();
    (!columns.is_empty()).then(|| Difference {
        code: "backfill.no_permission",
        of: format!("{}.{}", table.schema, table.table),
        what: format!("role {} may not read {}", role.name, columns.join(", ")),
        why: "initial load and backfills of this table wait; its changes are captured".to_owned(),
        sql: vec![sql::grant_columns(&role.name, &table.qualified(), &columns)],
        then: None,
        loses: false,
    })
}

impl Drift {
    /// For people.
    #[must_use]
    pub fn human(&self) -> String {
        let mut out = format!("{}\n", self.subject);
        for difference in &self.differences {
            let Difference { code, of, what, why, sql, then, .. } = difference;
            let _ = writeln!(out, " {code}  {of}: {what}\n       impact  {why}");
            for statement in sql {
                let _ = writeln!(out, "       fix     {statement}");
            }
            if let Some(then) = then {
                let _ = writeln!(out, "       {}  {then}", if sql.is_empty() { "fix   " } else { "then  " });
            }
        }
        if self.differences.is_empty() {
            out.push_str("file and database agree\n");
        }
        out
    }

    /// Statements to be read and run.
    #[must_use]
    pub fn sql(&self) -> String {
        let mut out = format!("-- {}\n", self.subject);
        for difference in &self.differences {
            let _ = writeln!(out, "\n-- {}: {}", difference.of, difference.what);
            for statement in &difference.sql {
                let _ = writeln!(out, "{statement}");
            }
            if let Some(then) = &difference.then {
                let _ = writeln!(out, "--   {}{then}", if difference.sql.is_empty() { "" } else { "then: " });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::catalog::PublishedTable;
    use crate::config::SourceTable;
    use crate::ops::setup::testing;

    fn published(table: &str, columns: &[&str]) -> PublishedTable {
        PublishedTable {
            oid: 1,
            schema: "public".to_owned(),
            table: table.to_owned(),
            columns: Some(columns.iter().map(|c| (*c).to_owned()).collect()),
            row_filter: None,
            generated: false,
        }
    }

    fn case(tables: Vec<PublishedTable>) -> (config::Source, Facts) {
        let mut source = testing::source();
        source.tables = ["order", "audit"]
            .iter()
            .map(|t| SourceTable { schema: "public".to_owned(), table: (*t).to_owned(), partition_by: None })
            .collect();
        let mut facts = testing::facts(150_018);
        facts.tables.truncate(2);
        facts.publication = Some(PublicationFacts {
            name: "p".to_owned(),
            insert: true,
            update: true,
            delete: true,
            truncate: true,
            tables,
            ..PublicationFacts::default()
        });
        (source, facts)
    }

    fn codes(source: &config::Source, facts: &Facts) -> Vec<&'static str> {
        judge(source, facts).iter().map(|d| d.code).collect()
    }

    #[test]
    fn what_agrees_is_no_difference() {
        let (source, facts) = case(vec![published("order", &["id", "Note"]), published("audit", &["id", "Note"])]);
        assert_eq!(codes(&source, &facts), [""; 0]);
    }

    #[test]
    fn added_and_removed_tables_and_columns_come_with_their_statements() {
        let (mut source, mut facts) = case(vec![published("order", &["id"]), published("old", &["id"])]);
        source.tables.push(SourceTable { schema: "public".to_owned(), table: "gone".to_owned(), partition_by: None });
        facts.backfill.exists = true;
        facts.publication.as_mut().expect("one").truncate = false;
        let found = judge(&source, &facts);
        let sql = Drift { subject: "s".to_owned(), differences: found.clone() }.sql();
        for part in [
            "ALTER PUBLICATION p DROP TABLE public.\"order\";\nALTER PUBLICATION p ADD TABLE public.\"order\" (id, \"Note\");",
            "ALTER PUBLICATION p ADD TABLE public.audit;",
            "ALTER PUBLICATION p DROP TABLE public.old;",
            "SET (publish = 'insert, update, delete, truncate')",
            "GRANT SELECT (id, \"Note\") ON public.audit TO tillstream_backfill;",
        ] {
            assert!(sql.contains(part), "{part} in {sql}");
        }
        assert!(found.iter().any(|d| d.code == "coverage.table_missing" && d.of == "public.gone"));
        let losing = found.iter().take_while(|d| d.loses).count();
        assert_eq!(found.iter().filter(|d| d.loses).count(), losing, "worst first");
    }

    #[test]
    fn a_column_that_the_file_drops_stays_in_the_database_by_a_list() {
        let (mut source, facts) = case(vec![published("order", &["id", "Note"]), published("audit", &["id", "Note"])]);
        let policy = tillstream_schemas::Policy::Drop;
        source.columns.tables.insert(("public".to_owned(), "order".to_owned()), [("Note".to_owned(), policy)].into());
        let found = judge(&source, &facts);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].code, found[0].loses), ("publication.column_exposed", false));
        assert_eq!(found[0].sql[2], "ALTER PUBLICATION p ADD TABLE public.\"order\" (id);");
        source.columns.tables.insert(("public".to_owned(), "audit".to_owned()), [("mail".to_owned(), policy)].into());
        assert!(codes(&source, &facts).contains(&"capture.policy_column_gone"));
    }
}

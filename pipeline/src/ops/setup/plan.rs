//! The plan: from facts to statements. Pure but for reading the facts.

use std::fmt;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, ServerFacts, SlotFacts, TableFacts, identifier, identity_warning, literal};
use crate::config;

use super::{BACKFILL_ROLE, STREAM_ROLE};

/// What the plan depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server.
    pub server: ServerFacts,
    /// The configured tables, in order.
    pub tables: Vec<TableFacts>,
    /// The publication, if it is there.
    pub publication: Option<PublicationFacts>,
    /// The slot, if it is there.
    pub slot: Option<SlotFacts>,
    /// `max_slot_wal_keep_size` in MB; -1 for no limit.
    pub slot_keep_mb: i64,
    /// Whether the host gives REPLICATION through the role `rds_replication`.
    pub rds: bool,
}

impl Facts {
    /// Reads them.
    ///
    /// # Errors
    /// The server is away or refuses; a configured table is missing.
    pub async fn read(catalog: &Catalog, source: &config::Source) -> Result<Facts, CaptureError> {
        let sql = "SELECT (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                          EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication')";
        let row = catalog.client().query_one(sql, &[]).await.map_err(crate::capture::catalog::sql_error)?;
        Ok(Facts {
            server: catalog.server().clone(),
            tables: catalog.configured_tables(source).await?,
            publication: catalog.publication(&source.publication).await?,
            slot: catalog.slot(&source.slot).await?,
            slot_keep_mb: row.get::<_, Option<i64>>(0).unwrap_or(-1),
            rds: row.get(1),
        })
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Comment lines on top.
    pub header: Vec<String>,
    /// Steps.
    pub steps: Vec<Step>,
}

/// One step: what it is for, and its statements.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does, in a few words.
    pub title: String,
    /// Comment lines: why, how to take it back, what a person has to do.
    pub notes: Vec<String>,
    /// To be run one by one, in autocommit mode.
    pub statements: Vec<Statement>,
}

/// SQL that can run twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement(pub String);

impl Plan {
    /// Whether anything of it can be run by a program.
    pub fn statements(&self) -> impl Iterator<Item = (&Step, &Statement)> {
        self.steps.iter().flat_map(|step| step.statements.iter().map(move |s| (step, s)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.header {
            writeln!(f, "-- {line}")?;
        }
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "\n-- {}/{} {}", n + 1, self.steps.len(), step.title)?;
            for note in &step.notes {
                writeln!(f, "--     {note}")?;
            }
            for Statement(sql) in &step.statements {
                writeln!(f, "{sql}")?;
            }
        }
        Ok(())
    }
}

/// Makes the plan.
pub(super) fn plan(source: &config::Source, pipeline: &str, facts: &Facts) -> Result<Plan, CaptureError> {
    if facts.server.in_recovery {
        return Err(CaptureError::Definite {
            code: "setup.standby",
            what: "the server is a standby".to_owned(),
            why: "roles, publication and slot are made on the primary".to_owned(),
            fix: "name the primary by --admin-url".to_owned(),
        });
    }
    let header = vec![
        format!(
            "Tillstream: pipeline \"{}\", source \"{}\", PostgreSQL {}, database \"{}\"",
            pipeline, source.name, facts.server.version, facts.server.database
        ),
        "Every statement can run twice. Nothing here blocks readers or writers of a table.".to_owned(),
        "REPLICATION is a strong attribute: with it a role can read every change that WAL holds. Guard its password.".to_owned(),
    ];
    let steps =
        vec![stream_role(facts), backfill_role(facts), publication(source, facts), access(facts), guard_rails(facts), slot(source, facts)];
    Ok(Plan { header, steps })
}

fn create_role(role: &str, attributes: &str) -> Statement {
    Statement(format!(
        "DO $$ BEGIN\n  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN\n    CREATE ROLE {role} {attributes} PASSWORD NULL;\n  END IF;\nEND $$;",
        literal(role)
    ))
}

fn stream_role(facts: &Facts) -> Step {
    let mut statements =
        vec![create_role(STREAM_ROLE, if facts.rds { "LOGIN CONNECTION LIMIT 8" } else { "LOGIN REPLICATION CONNECTION LIMIT 8" })];
    if facts.rds {
        statements.push(Statement(format!("GRANT rds_replication TO {STREAM_ROLE};")));
    }
    statements.push(Statement(format!("GRANT CONNECT ON DATABASE {} TO {STREAM_ROLE};", identifier(&facts.server.database))));
    Step {
        title: "the role that streams; it has no right on any table and reads only through the publication".to_owned(),
        notes: vec![
            format!("then give it a password in psql:  \\password {STREAM_ROLE}   (with password_encryption = 'scram-sha-256')"),
            format!("to take back:  DROP OWNED BY {STREAM_ROLE}; DROP ROLE {STREAM_ROLE};"),
        ],
        statements,
    }
}

fn backfill_role(facts: &Facts) -> Step {
    let role = BACKFILL_ROLE;
    let mut statements = vec![
        create_role(role, "LOGIN CONNECTION LIMIT 8"),
        Statement(format!("ALTER ROLE {role} SET default_transaction_read_only = on;")),
        Statement(format!("ALTER ROLE {role} SET statement_timeout = '5s';")),
        Statement(format!("ALTER ROLE {role} SET lock_timeout = '100ms';")),
        Statement(format!("ALTER ROLE {role} SET idle_in_transaction_session_timeout = '10s';")),
        Statement(format!("GRANT CONNECT ON DATABASE {} TO {role};", identifier(&facts.server.database))),
    ];
    let mut schemas: Vec<&str> = facts.tables.iter().map(|t| t.schema.as_str()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    statements.extend(schemas.into_iter().map(|s| Statement(format!("GRANT USAGE ON SCHEMA {} TO {role};", identifier(s)))));
    for table in &facts.tables {
        let published = facts.publication.as_ref().and_then(|p| p.table(&table.schema, &table.table));
        let columns: Vec<String> = match published {
            Some(published) => table.published_columns(published).map(|c| identifier(&c.name)).collect(),
            None => table.columns.iter().filter(|c| !c.generated).map(|c| identifier(&c.name)).collect(),
        };
        // Without a column list a later column is published too, so it has to be readable.
        if columns.len() == table.columns.iter().filter(|c| !c.generated).count() {
            statements.push(Statement(format!("GRANT SELECT ON {} TO {role};", table.qualified())));
        } else if !columns.is_empty() {
            statements.push(Statement(format!("GRANT SELECT ({}) ON {} TO {role};", columns.join(", "), table.qualified())));
        }
    }
    Step {
        title: "the role that reads rows older than the slot: the published tables, read-only, short timeouts".to_owned(),
        notes: vec![
            format!("then give it a password in psql:  \\password {role}"),
            format!("to take back:  DROP OWNED BY {role}; DROP ROLE {role};"),
        ],
        statements,
    }
}

fn publication(source: &config::Source, facts: &Facts) -> Step {
    let name = identifier(&source.publication);
    let mut notes = Vec::new();
    let mut tables: Vec<&TableFacts> = Vec::new();
    let whole = PublicationFacts { update: true, delete: true, ..PublicationFacts::default() };
    for table in &facts.tables {
        match identity_warning(table, &whole) {
            Some(risk) if table.rewrites > 0 => {
                notes.push(format!("NOT INCLUDED: {}", risk.what));
                notes.push(format!("  {}; it has been updated or deleted from {} times", risk.why, table.rewrites));
                notes.push(format!("  first: {}", risk.fix));
            }
            Some(risk) => {
                notes.push(format!("MIND: {}", risk.what));
                notes.push(format!("  included because it has only been appended to so far; {}", risk.why));
                tables.push(table);
            }
            None => tables.push(table),
        }
    }
    let list = tables.iter().map(|t| t.qualified()).collect::<Vec<_>>().join(", ");
    notes.insert(0, format!("to take back:  DROP PUBLICATION {name};"));
    let mut statements = Vec::new();
    if let Some(existing) = &facts.publication {
        for table in tables.iter().filter(|t| existing.table(&t.schema, &t.table).is_none()) {
            statements.push(Statement(format!(
                "DO $$ BEGIN\n  IF NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid\n                 WHERE p.pubname = {} AND r.prrelid = {}::regclass) THEN\n    ALTER PUBLICATION {name} ADD TABLE {};\n  END IF;\nEND $$;",
                literal(&source.publication),
                literal(&table.qualified()),
                table.qualified()
            )));
        }
        if !existing.via_root && tables.iter().any(|t| t.kind == 'p') {
            statements.push(Statement(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true);")));
        }
        if statements.is_empty() {
            notes.push("it is there and complete".to_owned());
        }
    } else {
        let with = "WITH (publish_via_partition_root = true)";
        let create = if list.is_empty() {
            format!("CREATE PUBLICATION {name} {with}")
        } else {
            format!("CREATE PUBLICATION {name} FOR TABLE {list} {with}")
        };
        statements.push(Statement(format!(
            "DO $$ BEGIN\n  IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {}) THEN\n    {create};\n  END IF;\nEND $$;",
            literal(&source.publication)
        )));
    }
    Step { title: "the publication: what may leave the database, table by table, before the slot".to_owned(), notes, statements }
}

fn access(facts: &Facts) -> Step {
    let database = identifier(&facts.server.database);
    Step {
        title: "pg_hba.conf, by hand, then SELECT pg_reload_conf()".to_owned(),
        notes: vec![
            format!("hostssl  {database}  {STREAM_ROLE},{BACKFILL_ROLE}  <address of the pipeline>/32  scram-sha-256"),
            "the database's name, not the keyword \"replication\": logical replication connects to a database".to_owned(),
        ],
        statements: Vec::new(),
    }
}

fn guard_rails(facts: &Facts) -> Step {
    let mut notes = Vec::new();
    if facts.server.wal_level != "logical" {
        notes.push(format!("wal_level is {}. Needed, with a RESTART of PostgreSQL, before the slot:", facts.server.wal_level));
        notes.push("  ALTER SYSTEM SET wal_level = 'logical';".to_owned());
    }
    match facts.slot_keep_mb {
        -1 => {
            notes.push(
                "a pipeline that stands still makes the server keep WAL without limit; when the disk is full the point of sale stops."
                    .to_owned(),
            );
            notes.push("Choose what it may cost, a quarter of the free disk say, then reload:".to_owned());
            notes.push("  ALTER SYSTEM SET max_slot_wal_keep_size = '20GB';  SELECT pg_reload_conf();".to_owned());
        }
        mb => notes.push(format!(
            "max_slot_wal_keep_size is {mb} MB: a pipeline that falls further behind loses its slot, the point of sale stays safe"
        )),
    }
    Step { title: "guard-rails, by hand".to_owned(), notes, statements: Vec::new() }
}

fn slot(source: &config::Source, facts: &Facts) -> Step {
    let name = literal(&source.slot);
    // The fifth argument came with version 17: the slot follows a failover to a standby that is set up for it.
    let arguments =
        if facts.server.major() >= 17 { format!("{name}, 'pgoutput', false, false, true") } else { format!("{name}, 'pgoutput'") };
    let mut notes = vec![
        "from here on the server keeps WAL until the pipeline has it: start the pipeline soon".to_owned(),
        "it waits for every transaction that is open now".to_owned(),
        format!("to take back:  SELECT pg_drop_replication_slot({name});"),
    ];
    if let Some(existing) = &facts.slot {
        notes.push(match existing.lost() {
            Some(evidence) => format!("the slot is there and LOST ({evidence}): take it back first"),
            None => "it is there".to_owned(),
        });
    }
    Step {
        title: "the slot, last".to_owned(),
        notes,
        statements: vec![Statement(format!(
            "SELECT pg_create_logical_replication_slot({arguments})\n  WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {name});"
        ))],
    }
}

#[cfg(test)]
mod tests {
    use tillstream_schemas::table::Identity;

    use super::*;
    use crate::capture::catalog::ColumnFacts;

    fn table(name: &str, keyed: bool, rewrites: i64) -> TableFacts {
        let column = |name: &str, generated| ColumnFacts {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: false,
            generated,
        };
        TableFacts {
            oid: 1,
            schema: "public".to_owned(),
            table: name.to_owned(),
            kind: 'r',
            persistence: 'p',
            is_partition: false,
            row_security: false,
            identity: Identity::Default,
            primary_key: if keyed { vec!["id".to_owned()] } else { Vec::new() },
            identity_columns: if keyed { vec!["id".to_owned()] } else { Vec::new() },
            columns: vec![column("id", false), column("Note", false), column("total", true)],
            rows_estimate: -1.0,
            rewrites,
        }
    }

    fn facts(version_num: i32) -> Facts {
        Facts {
            server: ServerFacts {
                version_num,
                version: "x".to_owned(),
                wal_level: "logical".to_owned(),
                in_recovery: false,
                database: "pos".to_owned(),
                encoding: "UTF8".to_owned(),
                user: "postgres".to_owned(),
            },
            tables: vec![table("order", true, 9), table("audit", false, 0), table("queue", false, 3)],
            publication: None,
            slot: None,
            slot_keep_mb: -1,
            rds: false,
        }
    }

    fn source() -> config::Source {
        config::Source {
            name: "pos".to_owned(),
            url: "postgres://u:hunter2@localhost/pos".to_owned().into(),
            backfill_url: None,
            slot: "s".to_owned(),
            publication: "p".to_owned(),
            tables: Vec::new(),
            hold_back: config::HoldBack { time: std::time::Duration::ZERO, bytes: 0 },
            wal_budget: 5 << 30,
            initial_load: false,
            allow_weak_auth: false,
            columns: Default::default(),
            streaming: Default::default(),
            origin: Default::default(),
        }
    }

    #[test]
    fn the_plan_goes_from_roles_to_the_slot_and_holds_no_secret() {
        let text = plan(&source(), "demo", &facts(150_018)).expect("a plan").to_string();
        let places: Vec<usize> = [
            "CREATE ROLE tillstream LOGIN REPLICATION",
            "CREATE ROLE tillstream_backfill",
            "CREATE PUBLICATION p",
            "hostssl",
            "max_slot_wal_keep_size",
            "pg_create_logical",
        ]
        .iter()
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{part}")))
        .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(text.contains("GRANT SELECT ON public.\"order\" TO tillstream_backfill"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn a_keyless_table_that_is_rewritten_is_left_out_with_its_reason() {
        let text = plan(&source(), "demo", &facts(150_018)).expect("a plan").to_string();
        assert!(text.contains("FOR TABLE public.\"order\", public.audit WITH"), "{text}");
        assert!(text.contains("NOT INCLUDED: public.queue") && text.contains("MIND: public.audit"), "{text}");
    }

    #[test]
    fn what_a_version_does_not_know_is_not_said() {
        let slot = |version| plan(&source(), "demo", &facts(version)).expect("a plan").to_string();
        assert!(!slot(160_009).contains("false, false, true"));
        assert!(slot(170_005).contains("'pgoutput', false, false, true"));
    }

    #[test]
    fn a_standby_is_not_set_up() {
        let mut standby = facts(160_009);
        standby.server.in_recovery = true;
        assert_eq!(plan(&source(), "demo", &standby).expect_err("refused").code(), "setup.standby");
    }
}

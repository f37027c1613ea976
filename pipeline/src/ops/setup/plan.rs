//! The plan: from facts to statements and to what takes each of them back. Pure.

use std::fmt;

use serde::Serialize;
use tillstream_schemas::table::Identity;

use crate::capture::CaptureError;
use crate::capture::catalog::sql::{self, Published};
use crate::capture::catalog::{PublicationFacts, TableFacts, identifier, identity_warning, literal};
use crate::config;

use super::clouds;
use super::facts::{Facts, RoleFacts, columns_shown, hides_columns};
use super::{Options, title};

/// What is to be done, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Comment lines on top.
    pub header: Vec<String>,
    /// Steps.
    pub steps: Vec<Step>,
}

/// One step: what it is for, and its statements.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    /// What it does, in a few words.
    pub title: String,
    /// Comment lines: why, what a person has to do.
    pub notes: Vec<String>,
    /// To be run one by one, in autocommit mode.
    pub statements: Vec<Statement>,
    /// What takes back exactly what the statements change of the catalogue as it was when the plan was made, in the order to run it.
    pub undo: Vec<Statement>,
}

/// SQL that can run twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Statement(pub String);

impl Plan {
    /// Whether anything of it can be run by a program.
    pub fn statements(&self) -> impl Iterator<Item = (&Step, &Statement)> {
        self.steps.iter().flat_map(|step| step.statements.iter().map(move |s| (step, s)))
    }

    /// The plan that takes this one back: the catalogue as it was when the plan was made. Nothing that was there before is dropped.
    #[must_use]
    pub fn rollback(&self) -> Plan {
        let mut header = vec![format!("Takes back: {}", self.header.first().map_or("", |line| line.as_str()))];
        header.push(
            "It leaves the catalogue as it was when this file was written: what had been there before stays. End the pipeline first."
                .to_owned(),
        );
        header.push("Every statement can run twice.".to_owned());
        let steps = self.steps.iter().rev().filter(|step| !step.undo.is_empty());
        let steps: Vec<Step> = steps.map(|s| Step { title: s.title.clone(), statements: s.undo.clone(), ..Step::default() }).collect();
        if steps.is_empty() {
            header.push("There is nothing to take back: everything was there already.".to_owned());
        }
        Plan { header, steps }
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

/// Refuses a server on which nothing can be made.
pub(super) fn primary_only(facts: &Facts) -> Result<(), CaptureError> {
    if !facts.server.in_recovery {
        return Ok(());
    }
    Err(CaptureError::Definite {
        code: "setup.standby",
        what: "the server is a standby".to_owned(),
        why: "roles, publication and slot are made on the primary".to_owned(),
        fix: "name the primary by --admin-url".to_owned(),
    })
}

/// Makes the plan.
pub(super) fn plan(source: &config::Source, pipeline: &str, facts: &Facts, options: &Options) -> Result<Plan, CaptureError> {
    primary_only(facts)?;
    let header = vec![
        title(source, pipeline, facts),
        "Every statement can run twice. Nothing here blocks readers or writers of a table.".to_owned(),
        "REPLICATION is a strong attribute: with it a role can read every change that WAL holds. Guard its password.".to_owned(),
        "`tillstream setup --rollback-script FILE` writes what takes it back; `tillstream setup --remove` leaves nothing behind."
            .to_owned(),
    ];
    let steps = vec![
        stream_role(facts),
        backfill_role(source, facts),
        publication(source, facts, options),
        access(facts),
        guard_rails(facts),
        slot(source, facts),
    ];
    Ok(Plan { header, steps })
}

fn role_missing(role: &str) -> String {
    format!("NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {})", literal(role))
}

/// The condition under which a role is there.
pub(super) fn role_there(role: &str) -> String {
    format!("EXISTS (SELECT FROM pg_roles WHERE rolname = {})", literal(role))
}

fn create_role(role: &str, attributes: &str) -> Statement {
    Statement(sql::only_if(&role_missing(role), &[format!("CREATE ROLE {} {attributes} PASSWORD NULL;", identifier(role))]))
}

/// What takes a role back: of a new one everything, of one that was there only what was added.
fn undo_role(role: &RoleFacts, mut added: Vec<String>) -> Vec<Statement> {
    if !role.exists {
        added.push(format!("DROP ROLE {};", identifier(&role.name)));
    }
    if added.is_empty() { Vec::new() } else { vec![Statement(sql::only_if(&role_there(&role.name), &added))] }
}

fn connect(facts: &Facts, role: &RoleFacts, statements: &mut Vec<Statement>, undo: &mut Vec<String>) {
    // Where everybody may connect, a grant would only be something more to take back.
    if !role.connects {
        let (database, name) = (identifier(&facts.server.database), identifier(&role.name));
        statements.push(Statement(format!("GRANT CONNECT ON DATABASE {database} TO {name};")));
        undo.push(format!("REVOKE CONNECT ON DATABASE {database} FROM {name};"));
    }
}

fn stream_role(facts: &Facts) -> Step {
    let role = &facts.stream;
    if clouds::streams_as_owner(facts.provider, facts.server.major()) {
        let notes = clouds::roles(facts.provider, facts.server.major()).iter().map(|n| (*n).to_owned()).collect();
        return Step { title: "the role that streams: the one that is there".to_owned(), notes, ..Step::default() };
    }
    let name = identifier(&role.name);
    let member = clouds::grants_by_membership(facts.provider);
    let mut statements =
        vec![create_role(&role.name, if member { "LOGIN CONNECTION LIMIT 8" } else { "LOGIN REPLICATION CONNECTION LIMIT 8" })];
    let mut undo = Vec::new();
    if member {
        statements.push(Statement(format!("GRANT rds_replication TO {name};")));
        if role.exists && !role.replicates {
            undo.push(format!("REVOKE rds_replication FROM {name};"));
        }
    } else if role.exists && !role.replicates {
        statements.push(Statement(format!("ALTER ROLE {name} REPLICATION;")));
        undo.push(format!("ALTER ROLE {name} NOREPLICATION;"));
    }
    connect(facts, role, &mut statements, &mut undo);
    let mut notes: Vec<String> = clouds::roles(facts.provider, facts.server.major()).iter().map(|n| (*n).to_owned()).collect();
    notes.push(format!("then give it a password in psql:  \\password {name}   (with password_encryption = 'scram-sha-256')"));
    Step {
        title: "the role that streams; it has no right on any table and reads only through the publication".to_owned(),
        notes,
        statements,
        undo: undo_role(role, undo),
    }
}

/// Reads and no more, and never holds anybody up.
const BACKFILL_SETTINGS: [(&str, &str); 4] = [
    ("default_transaction_read_only", "on"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "100ms"),
    ("idle_in_transaction_session_timeout", "10s"),
];

fn backfill_role(source: &config::Source, facts: &Facts) -> Step {
    let role = &facts.backfill;
    let name = identifier(&role.name);
    let mut statements = vec![create_role(&role.name, "LOGIN CONNECTION LIMIT 8")];
    let mut undo = Vec::new();
    for (setting, value) in BACKFILL_SETTINGS {
        let before = role.settings.iter().find_map(|s| s.strip_prefix(setting)?.strip_prefix('='));
        let quoted = if value == "on" { value.to_owned() } else { literal(value) };
        statements.push(Statement(format!("ALTER ROLE {name} SET {setting} = {quoted};")));
        match before {
            _ if !role.exists => {}
            Some(before) if before == value => {}
            Some(before) => undo.push(format!("ALTER ROLE {name} SET {setting} = {};", literal(before))),
            None => undo.push(format!("ALTER ROLE {name} RESET {setting};")),
        }
    }
    connect(facts, role, &mut statements, &mut undo);
    for schema in &role.schemas_closed {
        statements.push(Statement(format!("GRANT USAGE ON SCHEMA {} TO {name};", identifier(schema))));
        undo.push(format!("REVOKE USAGE ON SCHEMA {} FROM {name};", identifier(schema)));
    }
    let mut readable = 0;
    for (table, closed) in facts.tables.iter().zip(&role.columns_closed) {
        let columns: Vec<String> = readable_columns(source, facts, table).into_iter().filter(|c| closed.contains(c)).collect();
        if columns.is_empty() {
            readable += 1;
        } else {
            statements.push(Statement(sql::grant_columns(&role.name, &table.qualified(), &columns)));
            undo.push(sql::revoke_columns(&role.name, &table.qualified(), &columns));
        }
    }
    let mut notes = vec![format!("then give it a password in psql:  \\password {name}")];
    notes.push(
        "columns, not tables: a column that is added later is granted by running setup again (`tillstream publication diff` tells)"
            .to_owned(),
    );
    if readable > 0 {
        notes.push(format!("{readable} of {} tables it may read already", facts.tables.len()));
    }
    Step {
        title: "the role that reads rows older than the slot: the columns that events show, read-only, short timeouts".to_owned(),
        notes,
        statements,
        undo: undo_role(role, undo),
    }
}

/// What the reading role needs of a table: what is published and shown.
pub(crate) fn readable_columns(source: &config::Source, facts: &Facts, table: &TableFacts) -> Vec<String> {
    let shown = columns_shown(source, table);
    match facts.publication.as_ref().and_then(|p| p.table(&table.schema, &table.table)) {
        Some(published) if published.generated || published.columns.is_some() => {
            let generated = |name: &str| table.columns.iter().any(|c| c.generated && c.name == name);
            table.published_columns(published).map(|c| c.name.clone()).filter(|c| shown.contains(c) || generated(c)).collect()
        }
        _ => shown,
    }
}

/// The columns that a publication should list for a table; `None`: all of them, also later ones.
pub(crate) fn column_list(source: &config::Source, table: &TableFacts, major: i32, always: bool) -> Option<Vec<String>> {
    // With FULL the whole row names itself, so every column has to be published.
    let possible = major >= sql::COLUMN_LISTS_MAJOR && table.identity != Identity::Full;
    (possible && (always || source.columns.hold_new)).then(|| columns_shown(source, table))
}

fn publication(source: &config::Source, facts: &Facts, options: &Options) -> Step {
    let name = &source.publication;
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
    let publish = |table: &TableFacts| Published {
        columns: column_list(source, table, facts.server.major(), options.column_lists),
        ..Published::whole(table.qualified())
    };
    let published: Vec<Published> = tables.iter().map(|t| publish(t)).collect();
    let hidden: Vec<String> = tables
        .iter()
        .zip(&published)
        .filter(|(t, p)| p.columns.is_none() && hides_columns(source, t))
        .map(|(t, _)| t.qualified())
        .collect();
    if !hidden.is_empty() {
        notes.push(format!("columns that the configuration drops still leave the database with {}:", hidden.join(", ")));
        notes.push("  --column-lists keeps them in (PostgreSQL 15 or newer, no REPLICA IDENTITY FULL); later columns then have to be added by hand".to_owned());
    }
    let (mut statements, mut undo) = (Vec::new(), Vec::new());
    if let Some(existing) = &facts.publication {
        // First: a partitioned table may have a column list only when its changes come under its own name.
        let root = !existing.via_root && tables.iter().any(|t| t.kind == 'p');
        if root {
            statements.push(Statement(sql::via_root(name, true)));
        }
        for table in tables.iter().filter(|t| existing.table(&t.schema, &t.table).is_none()) {
            let (holds, add) = (holds(name, table), sql::add_tables(name, &[publish(table)]));
            statements.push(Statement(sql::only_if(&format!("NOT {holds}"), &[add])));
            undo.push(Statement(sql::only_if(&holds, &[sql::drop_tables(name, &[table.qualified()])])));
        }
        if root {
            undo.push(Statement(sql::via_root(name, false)));
        }
        if statements.is_empty() {
            notes.push("it is there and holds every table; `tillstream publication diff` compares columns and options too".to_owned());
        }
    } else {
        let missing = format!("NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {})", literal(name));
        statements.push(Statement(sql::only_if(&missing, &[sql::create_publication(name, &published)])));
        undo.push(Statement(format!("DROP PUBLICATION IF EXISTS {};", identifier(name))));
    }
    Step { title: "the publication: what may leave the database, table by table, before the slot".to_owned(), notes, statements, undo }
}

/// The condition under which a publication holds a table.
fn holds(publication: &str, table: &TableFacts) -> String {
    format!(
        "EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid\n             WHERE p.pubname = {} AND r.prrelid = {}::regclass)",
        literal(publication),
        literal(&table.qualified())
    )
}

fn access(facts: &Facts) -> Step {
    let database = identifier(&facts.server.database);
    let network = clouds::network(facts.provider);
    if network.is_empty() {
        return Step {
            title: "pg_hba.conf, by hand, then SELECT pg_reload_conf()".to_owned(),
            notes: vec![
                format!(
                    "hostssl  {database}  {},{}  <address of the pipeline>/32  scram-sha-256",
                    identifier(&facts.stream.name),
                    identifier(&facts.backfill.name)
                ),
                "the database's name, not the keyword \"replication\": logical replication connects to a database".to_owned(),
            ],
            ..Step::default()
        };
    }
    Step {
        title: format!("the way in, by hand ({})", facts.provider.name()),
        notes: network.iter().map(|line| (*line).to_owned()).collect(),
        ..Step::default()
    }
}

fn guard_rails(facts: &Facts) -> Step {
    let mut notes = Vec::new();
    if facts.server.wal_level != "logical" {
        notes.push(format!("wal_level is {}. Needed before the slot:", facts.server.wal_level));
        notes.push(format!("  {}", facts.provider.logical_wal()));
    }
    match facts.slot_keep_mb {
        -1 => {
            notes.push(
                "a pipeline that stands still makes the server keep WAL without limit; when the disk is full the point of sale stops."
                    .to_owned(),
            );
            if clouds::can_bound_wal(facts.provider) {
                notes.push("Choose what it may cost, a quarter of the free disk say, then reload:".to_owned());
            } else {
                notes.push("Here the server takes no limit; `source.wal_budget` in the pipeline's file warns and sheds:".to_owned());
            }
            notes.push(format!("  {}", facts.provider.set("max_slot_wal_keep_size", "20GB")));
        }
        mb => notes.push(format!(
            "max_slot_wal_keep_size is {mb} MB: a pipeline that falls further behind loses its slot, the point of sale stays safe"
        )),
    }
    Step { title: "guard-rails, by hand".to_owned(), notes, ..Step::default() }
}

fn slot(source: &config::Source, facts: &Facts) -> Step {
    let mut notes = vec![
        "from here on the server keeps WAL until the pipeline has it: start the pipeline soon".to_owned(),
        "it waits for every transaction that is open now".to_owned(),
    ];
    notes.extend(clouds::slot(facts.provider).iter().map(|n| (*n).to_owned()));
    let mut undo = Vec::new();
    match &facts.slot {
        Some(existing) => notes.push(match existing.lost() {
            Some(evidence) => format!("the slot is there and LOST ({evidence}): drop it first, `tillstream slot drop {}`", source.slot),
            None => "it is there".to_owned(),
        }),
        None => undo.push(Statement(sql::drop_slot_once(&source.slot))),
    }
    Step {
        title: "the slot, last".to_owned(),
        notes,
        statements: vec![Statement(sql::create_slot_once(&source.slot, facts.server.major()))],
        undo,
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Granted;
    use super::super::testing::{facts, source};
    use super::*;
    use crate::ops::provider::Provider;

    fn text(facts: &Facts) -> String {
        plan(&source(), "demo", facts, &Options::default()).expect("a plan").to_string()
    }

    #[test]
    fn the_plan_goes_from_roles_to_the_slot_and_holds_no_secret() {
        let text = text(&facts(150_018));
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
        assert!(text.contains("GRANT SELECT (id, \"Note\") ON public.\"order\" TO tillstream_backfill"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn a_keyless_table_that_is_rewritten_is_left_out_with_its_reason() {
        let text = text(&facts(150_018));
        assert!(text.contains("FOR TABLE public.\"order\", public.audit WITH"), "{text}");
        assert!(text.contains("NOT INCLUDED: public.queue") && text.contains("MIND: public.audit"), "{text}");
    }

    #[test]
    fn what_a_version_does_not_know_is_not_said() {
        assert!(!text(&facts(160_009)).contains("false, false, true"));
        assert!(text(&facts(170_005)).contains("'pgoutput', false, false, true"));
        let listed =
            |version| plan(&source(), "demo", &facts(version), &Options { column_lists: true, ..Options::default() }).expect("a plan");
        assert!(!listed(140_020).to_string().contains("public.\"order\" (id"));
        assert!(listed(150_013).to_string().contains("FOR TABLE public.\"order\" (id, \"Note\"), public.audit"));
    }

    #[test]
    fn a_standby_is_not_set_up() {
        let mut standby = facts(160_009);
        standby.server.in_recovery = true;
        assert_eq!(plan(&source(), "demo", &standby, &Options::default()).expect_err("refused").code(), "setup.standby");
    }

    #[test]
    fn a_rollback_takes_back_what_was_not_there_in_the_other_order() {
        let made = plan(&source(), "demo", &facts(150_018), &Options::default()).expect("a plan");
        let text = made.rollback().to_string();
        let places: Vec<usize> =
            ["pg_drop_replication_slot", "DROP PUBLICATION IF EXISTS p", "DROP ROLE tillstream_backfill", "DROP ROLE tillstream;"]
                .iter()
                .map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}")))
                .collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn a_rollback_leaves_alone_what_had_been_there() {
        let mut facts = facts(150_018);
        for role in [&mut facts.stream, &mut facts.backfill] {
            (role.exists, role.replicates, role.connects) = (true, true, true);
            role.schemas_closed.clear();
            role.columns_closed.iter_mut().for_each(Vec::clear);
            role.settings = BACKFILL_SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect();
            role.granted = Granted { connect: true, ..Granted::default() };
        }
        let text = plan(&source(), "demo", &facts, &Options::default()).expect("a plan").rollback().to_string();
        assert!(!text.contains("ROLE") && text.contains("DROP PUBLICATION"), "{text}");
    }

    #[test]
    fn each_provider_gets_what_works_there() {
        let on = |provider, version| {
            let mut facts = facts(version);
            facts.provider = provider;
            facts.server.wal_level = "replica".to_owned();
            text(&facts)
        };
        let rds = on(Provider::Rds, 160_009);
        assert!(rds.contains("GRANT rds_replication TO tillstream;") && rds.contains("reboot"), "{rds}");
        assert!(!rds.contains("ALTER SYSTEM") && !rds.contains("hostssl") && !rds.contains("LOGIN REPLICATION"), "{rds}");
        assert!(on(Provider::Aurora, 160_009).contains("cluster's parameter group"));
        assert!(on(Provider::CloudSql, 160_009).contains("cloudsql.logical_decoding = on"));
        let azure = on(Provider::Azure, 160_009);
        assert!(azure.contains("read-only") && azure.contains("source.wal_budget"), "{azure}");
        let supabase = on(Provider::Supabase, 150_013);
        assert!(supabase.contains("no other role than postgres") && !supabase.contains("CREATE ROLE tillstream LOGIN"), "{supabase}");
        assert!(!on(Provider::Supabase, 170_005).contains("no other role than postgres"));
        assert!(on(Provider::Neon, 170_005).contains("about 40 hours"));
        assert!(on(Provider::SelfHosted, 160_009).contains("ALTER SYSTEM SET wal_level = 'logical'"));
    }
}

//! A good server, one fault after another, and what the doctor says of each: found by its id, told with what mends it, and gone afterwards.

use std::time::{Duration, Instant};

use tillstream::capture::source::Replication;
use tillstream::capture::wire::PgSource;
use tillstream::config::{HoldBack, Source, SourceTable};
use tillstream::ops::doctor::{FailOn, Finding, Report, Severity, checks, examine_as};
use tillstream::ops::setup::{Options, apply, prepare};
use tokio_postgres::Client;

use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, RabbitMq, connect, free_port, wait_for};

/// Ten of the faults whose words are printed, to be read by people.
const SHOWN: [&str; 10] = [
    "capture.keyless_table",
    "capture.keyless_partition",
    "capture.identity_not_published",
    "capture.files_invalid",
    "capture.wal_unlimited",
    "capture.other_slot_idle",
    "capture.slot_lost",
    "capture.wal_level",
    "capture.publication_open_ended",
    "capture.backfill_not_permitted",
];

/// The captured tables and what stands beside them.
const SCHEMA: &str = "
    CREATE SCHEMA pos;
    CREATE TABLE pos.sale (id int PRIMARY KEY, store int NOT NULL, total numeric);
    CREATE TABLE pos.item (id int, day date, sku text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE pos.item_now PARTITION OF pos.item DEFAULT;
    CREATE TABLE pos.queue (n int);
    INSERT INTO pos.queue VALUES (1);
    UPDATE pos.queue SET n = 2;
    CREATE ROLE reader LOGIN";

fn source(server: &Postgres, database: &str) -> Source {
    let table = |table: &str| SourceTable { schema: "pos".to_owned(), table: table.to_owned(), partition_by: None };
    Source {
        name: "pos".to_owned(),
        url: server.url_as("tillstream", database).into(),
        backfill_url: Some(server.url_as("tillstream_backfill", database).into()),
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        tables: vec![table("sale"), table("item")],
        hold_back: HoldBack { time: Duration::ZERO, bytes: 0 },
        wal_budget: 5 << 30,
        initial_load: false,
        allow_weak_auth: false,
        columns: Default::default(),
        streaming: Default::default(),
        origin: Default::default(),
    }
}

/// Counts faults, and looks until one is found: a reload takes effect a moment after it was asked for.
struct Field<'a> {
    server: &'a Postgres,
    source: Source,
    admin: Client,
    found: usize,
    slowest: Duration,
}

impl Field<'_> {
    /// By a login that may not write.
    async fn look(&mut self, source: &Source, login: &str) -> Report {
        let began = Instant::now();
        let report = examine_as(source, "test", Some(&self.server.url_as(login, "postgres").into())).await;
        self.slowest = self.slowest.max(began.elapsed());
        report
    }

    /// The fault is there: each of these ids is found, worse than a note.
    async fn expect(&mut self, ids: &[&'static str]) {
        let source = self.source.clone();
        self.expect_of(&source, "reader", ids).await;
    }

    async fn expect_of(&mut self, source: &Source, login: &str, ids: &[&'static str]) {
        let deadline = Instant::now() + PATIENCE;
        let report = loop {
            let report = self.look(source, login).await;
            let missing: Vec<&&str> = ids.iter().filter(|id| bad(&report, id).is_none()).collect();
            if missing.is_empty() {
                break report;
            }
            assert!(Instant::now() < deadline, "not found: {missing:?} in\n{}", report.render(true));
        };
        for id in ids {
            let finding = bad(&report, id).expect("found");
            assert!(!finding.impact.is_empty() && !finding.fix.is_empty(), "{finding:?}");
            self.found += 1;
            if SHOWN.contains(id) {
                let one = Report { subject: format!("found {}", self.found), findings: vec![finding.clone()], unchecked: Vec::new() };
                println!("{}", one.render(false));
            }
        }
    }

    async fn sql(&self, sql: &str) {
        // One by one: some do not run within a transaction.
        for statement in sql.split(';').filter(|s| !s.trim().is_empty()) {
            self.admin.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
    }

    /// Sows, expects, takes back.
    async fn fault(&mut self, sow: &str, ids: &[&'static str], undo: &str) {
        self.sql(sow).await;
        self.expect(ids).await;
        self.sql(undo).await;
    }
}

fn bad<'a>(report: &'a Report, id: &str) -> Option<&'a Finding> {
    report.findings.iter().find(|f| f.id == id && f.severity <= Severity::Warn)
}

fn reset(names: &[&str]) -> String {
    names.iter().map(|n| format!("ALTER SYSTEM RESET {n};")).collect::<String>() + "SELECT pg_reload_conf()"
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_that_is_sown_is_found_and_a_good_server_has_none() {
    let server = Postgres::private("doctor", "max_slot_wal_keep_size = '20GB'\nmax_prepared_transactions = 2").await;
    let admin = server.connect("postgres").await;
    let major: i32 = admin.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.expect("asked").get(0);
    admin.batch_execute(SCHEMA).await.expect("made");
    let source = source(&server, "postgres");
    let url = server.url("postgres").into();
    let prepared = prepare(&source, "test", Some(&url), &Options::default()).await.expect("a plan");
    apply(&prepared.plan, &prepared.catalog, |_| {}).await.expect("applied");
    drop(prepared);
    let mut field = Field { server: &server, source: source.clone(), admin, found: 0, slowest: Duration::ZERO };

    // As setup leaves it: nothing to mend but what a version's end brings, by a login that may not write.
    let good = field.look(&source, "reader").await;
    let wrong: Vec<_> = good.findings.iter().filter(|f| f.severity <= Severity::Warn && f.id != "capture.version_ends").collect();
    assert!(wrong.is_empty() && good.exit_code(FailOn::Fail) == 0, "{wrong:#?}");
    assert!(good.unchecked.iter().any(|u| u.what.contains("long transactions")), "{:?}", good.unchecked);
    let refused = server.connect("postgres").await;
    refused.batch_execute("SET ROLE reader").await.expect("set");
    assert!(refused.execute("INSERT INTO pos.sale VALUES (1, 1, 1)", &[]).await.is_err());

    settings(&mut field, major).await;
    tables(&mut field, major).await;
    access(&mut field).await;
    open_transactions(&mut field).await;
    encoding(&mut field).await;

    // Everything was taken back.
    wait_for("a good server again", PATIENCE, || async {
        let report = examine_as(&source, "test", None).await;
        (report.count(Severity::Fail) == 0).then_some(())
    })
    .await;

    slots(&mut field, major).await;
    let (found, slowest) = (field.found, field.slowest);
    drop(field);
    let found = found + restarts().await;
    println!("doctor on PostgreSQL {major}: {found} of {found} faults found; the slowest look took {:.2} s", slowest.as_secs_f64());
    assert!(found >= 30);
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

async fn settings(field: &mut Field<'_>, major: i32) {
    field
        .fault(
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; ALTER SYSTEM SET wal_sender_timeout = 0; ALTER SYSTEM SET logical_decoding_work_mem = '64kB';
             ALTER SYSTEM SET password_encryption = 'md5'; ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_wal_senders = 41; SELECT pg_reload_conf()",
            &[
                "capture.wal_unlimited",
                "capture.no_sender_timeout",
                "capture.decoding_memory_small",
                "capture.auth_weak",
                "capture.not_durable",
                "capture.restart_pending",
            ],
            &reset(&["logical_decoding_work_mem", "password_encryption", "fsync", "max_wal_senders"]),
        )
        .await;
    field
        .fault(
            "ALTER SYSTEM SET max_slot_wal_keep_size = 0; ALTER SYSTEM SET wal_sender_timeout = '5s'; SELECT pg_reload_conf()",
            &["capture.wal_none_kept", "capture.sender_timeout_short"],
            &reset(&["wal_sender_timeout"]),
        )
        .await;
    field
        .fault(
            "ALTER SYSTEM SET max_slot_wal_keep_size = '500MB'; SELECT pg_reload_conf()",
            &["capture.wal_little_kept"],
            &reset(&["max_slot_wal_keep_size"]),
        )
        .await;
    if major >= 18 {
        field
            .fault(
                "ALTER SYSTEM SET idle_replication_slot_timeout = '1h'; SELECT pg_reload_conf()",
                &["capture.idle_timeout"],
                &reset(&["idle_replication_slot_timeout"]),
            )
            .await;
    }
    // Only a superuser sees the server's files; for others they are not checked, which they say.
    let before = field.server.append_hba("host all all 0.0.0.0/0 trust\nhost nonsense\n").await;
    let source = field.source.clone();
    field.expect_of(&source, "postgres", &["capture.files_invalid", "capture.auth_none"]).await;
    let report = field.look(&source, "reader").await;
    assert!(report.unchecked.iter().any(|u| u.what.contains("pg_hba.conf") && u.why.contains("superuser")), "{:?}", report.unchecked);
    field.server.write_hba(&before).await;
}

async fn tables(field: &mut Field<'_>, major: i32) {
    field
        .fault(
            "ALTER PUBLICATION p ADD TABLE pos.queue",
            &["capture.keyless_table", "capture.publication_extra_table"],
            "ALTER PUBLICATION p DROP TABLE pos.queue",
        )
        .await;
    field
        .fault(
            "ALTER TABLE pos.item_now REPLICA IDENTITY NOTHING",
            &["capture.keyless_partition"],
            "ALTER TABLE pos.item_now REPLICA IDENTITY DEFAULT",
        )
        .await;
    field.fault("CREATE PUBLICATION theirs FOR TABLE pos.queue", &["capture.other_publication_keyless"], "DROP PUBLICATION theirs").await;
    let columns = (0..30).map(|n| format!("c{n} text")).collect::<Vec<_>>().join(", ");
    field.sql(&format!("CREATE TABLE pos.wide (id int PRIMARY KEY, {columns}); ALTER TABLE pos.wide REPLICA IDENTITY FULL; CREATE UNLOGGED TABLE pos.quick (id int PRIMARY KEY)")).await;
    let mut more = field.source.clone();
    for table in ["wide", "quick", "gone"] {
        more.tables.push(SourceTable { schema: "pos".to_owned(), table: table.to_owned(), partition_by: None });
    }
    let ids = ["capture.identity_full", "capture.publication_lacks_table", "capture.table_unsupported", "capture.table_missing"];
    field.expect_of(&more, "reader", &ids).await;
    field.sql("DROP TABLE pos.wide, pos.quick").await;
    field
        .fault(
            "ALTER PUBLICATION p SET (publish = 'insert')",
            &["capture.publication_partial"],
            "ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')",
        )
        .await;
    if major >= 15 {
        let whole = "ALTER PUBLICATION p SET TABLE pos.sale, pos.item";
        field.fault("ALTER PUBLICATION p SET TABLE pos.sale (store), pos.item", &["capture.identity_not_published"], whole).await;
        field
            .fault(
                "ALTER PUBLICATION p SET TABLE pos.sale WHERE (store = 1), pos.item",
                &["capture.filter_beyond_identity", "capture.publication_row_filter"],
                whole,
            )
            .await;
        field.fault("ALTER PUBLICATION p SET TABLES IN SCHEMA pos", &["capture.publication_open_ended"], whole).await;
    }
    let mut other = field.source.clone();
    other.publication = "nobodys".to_owned();
    field.expect_of(&other, "reader", &["capture.publication_missing"]).await;
}

async fn access(field: &mut Field<'_>) {
    field.fault("ALTER ROLE tillstream NOREPLICATION", &["capture.not_permitted"], "ALTER ROLE tillstream REPLICATION").await;
    field.fault("ALTER ROLE tillstream SUPERUSER", &["capture.role_superuser"], "ALTER ROLE tillstream NOSUPERUSER").await;
    field
        .fault(
            "ALTER ROLE tillstream CONNECTION LIMIT 2 VALID UNTIL '2020-01-01'",
            &["capture.role_connection_limit", "capture.role_expires"],
            "ALTER ROLE tillstream CONNECTION LIMIT 8 VALID UNTIL 'infinity'",
        )
        .await;
    field.fault("ALTER ROLE tillstream NOLOGIN", &["capture.role_no_connect", "capture.auth_refused"], "ALTER ROLE tillstream LOGIN").await;
    let mut nobody = field.source.clone();
    nobody.url = field.server.url_as("nobody_here", "postgres").into();
    field.expect_of(&nobody, "reader", &["capture.role_missing"]).await;
    field
        .fault(
            "REVOKE ALL ON pos.sale FROM tillstream_backfill",
            &["capture.backfill_not_permitted"],
            "GRANT SELECT ON pos.sale TO tillstream_backfill",
        )
        .await;
    field
        .fault(
            "GRANT UPDATE ON pos.sale TO tillstream_backfill; ALTER TABLE pos.sale ENABLE ROW LEVEL SECURITY",
            &["capture.backfill_writes", "capture.row_security"],
            "REVOKE UPDATE ON pos.sale FROM tillstream_backfill; ALTER TABLE pos.sale DISABLE ROW LEVEL SECURITY",
        )
        .await;
    let mut away = field.source.clone();
    away.url = format!("postgres://tillstream@127.0.0.1:{}/postgres", free_port()).into();
    let report = examine_as(&away, "test", None).await;
    assert!(bad(&report, "capture.source_unavailable").is_some() && report.exit_code(FailOn::Fail) == 1, "{}", report.render(true));
    assert!(report.unchecked.iter().any(|u| u.why.contains("--login-url")), "{:?}", report.unchecked);
    field.found += 1;
}

/// A transaction that was left open, by an application and by a transaction manager. Nobody waits for a quarter of an hour here: the
/// server's clock is set forward, as far as ages are told by it.
async fn open_transactions(field: &mut Field<'_>) {
    let ids = ["capture.long_transaction", "capture.prepared_transaction"];
    // One of its own: a login without pg_read_all_stats sees no other role's.
    let forgetful = connect(&field.server.url_as("reader", "postgres")).await;
    forgetful.batch_execute("SET application_name = 'back office'; BEGIN; SELECT 1").await.expect("begun");
    field.sql("BEGIN; INSERT INTO pos.sale VALUES (1, 1, 1); PREPARE TRANSACTION 'forgotten'").await;
    let source = field.source.clone();
    let report = field.look(&source, "reader").await;
    assert!(ids.iter().all(|id| bad(&report, id).is_none()), "neither is old yet: {}", report.render(true));
    field
        .fault(
            "ALTER FUNCTION pg_catalog.now() RENAME TO present;
             CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT pg_catalog.present() + interval '16 minutes' $$",
            &ids,
            "DROP FUNCTION pg_catalog.now(); ALTER FUNCTION pg_catalog.present() RENAME TO now; ROLLBACK PREPARED 'forgotten'",
        )
        .await;
}

async fn encoding(field: &mut Field<'_>) {
    field.sql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let mut latin = field.source.clone();
    latin.url = field.server.url_as("tillstream", "latin").into();
    let report = examine_as(&latin, "test", Some(&field.server.url_as("reader", "latin").into())).await;
    let ids = ["capture.encoding", "capture.slot_unusable"];
    assert!(ids.iter().all(|id| bad(&report, id).is_some()), "{}", report.render(true));
    field.found += ids.len();
    field.sql("DROP DATABASE latin").await;
}

/// The last of the first server: its slots are lost in the end.
async fn slots(field: &mut Field<'_>, major: i32) {
    let mut other = field.source.clone();
    other.slot = "nobodys".to_owned();
    field.expect_of(&other, "reader", &["capture.slot_missing"]).await;

    let mut reader = PgSource::new(&field.source, "another").log_in().await.expect("logs in");
    reader.start().await.expect("streams");
    field.expect(&["capture.slot_active"]).await;
    reader.stop().await;

    field.sql("SELECT pg_create_physical_replication_slot('standby_of_old', true)").await;
    for _ in 0..6 {
        field.sql("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()").await;
    }
    let mut tight = field.source.clone();
    tight.wal_budget = 90 << 20;
    field.expect_of(&tight, "reader", &["capture.other_slot_idle", "capture.wal_shed"]).await;
    if major >= 17 {
        field.sql("SELECT pg_create_logical_replication_slot('f', 'pgoutput', false, false, true); ALTER SYSTEM SET synchronized_standby_slots = 'nobody'; SELECT pg_reload_conf()").await;
        let mut followed = field.source.clone();
        followed.slot = "f".to_owned();
        field.expect_of(&followed, "reader", &["capture.standby_slot_absent"]).await;
        field.sql(&reset(&["synchronized_standby_slots"])).await;
    }
    field.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'; SELECT pg_reload_conf()").await;
    wait_for("the limit", PATIENCE, || async {
        let row = field.admin.query_one("SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'", &[]).await.ok()?;
        (row.get::<_, &str>(0) == "16").then_some(())
    })
    .await;
    field.sql("CHECKPOINT").await;
    field.expect(&["capture.slot_lost", "capture.other_slot_lost"]).await;
}

/// What only a start of the server can set: on one of its own.
async fn restarts() -> usize {
    let conf = "wal_level = replica\nmax_replication_slots = 1\nmax_wal_senders = 1\nlisten_addresses = '*'";
    let server = Postgres::private("doctor-restarts", conf).await;
    let admin = server.connect("postgres").await;
    admin.batch_execute("CREATE ROLE reader LOGIN; SELECT pg_create_physical_replication_slot('taken')").await.expect("made");
    let report = examine_as(&source(&server, "postgres"), "test", Some(&server.url_as("reader", "postgres").into())).await;
    let ids = ["capture.wal_level", "capture.slots_full", "capture.senders_full", "capture.tls_off"];
    assert!(ids.iter().all(|id| bad(&report, id).is_some()), "{}", report.render(true));
    let finding = bad(&report, "capture.wal_level").expect("found").clone();
    println!("{}", Report { subject: "found".to_owned(), findings: vec![finding], unchecked: Vec::new() }.render(false));
    ids.len()
}

/// The SQL that is printed as evidence runs as it is, by whoever may see it.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_can_be_copied_and_run() {
    let server = Postgres::shared().await;
    let client = server.connect("postgres").await;
    let major: i32 = client.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.expect("asked").get(0);
    for check in checks::ALL.iter().filter(|c| !c.evidence.is_empty() && !c.evidence.contains("pg_stat_statements")) {
        let result = client.simple_query(check.evidence).await;
        assert!(result.is_ok(), "PostgreSQL {major}: {}: {}: {result:?}", check.id, check.evidence);
    }
}

/// The command itself: what is away is said of each part, `--only` leaves the rest alone, and words that mean nothing are refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_looks_at_journal_and_targets_as_well() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("doctor-command", server, Journal::Local, |text| text).await;
    pipeline.set_up().await;
    let run = async |name: &str, arguments: &[&str]| {
        let process = pipeline.start(name, &[&["doctor"], arguments].concat());
        let status = process.wait(PATIENCE).await;
        let text = std::fs::read_to_string(pipeline.dir.join(format!("{name}.out"))).unwrap_or_default();
        (status.code(), text)
    };
    // No pretend API runs: its connector fails; the inventory is there. The journal's logs come with the first run.
    let (code, text) = run("whole", &["--only", "journal,targets"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  connector.target") && text.contains("engagement") && text.contains("journal.missing"), "{text}");
    assert!(text.contains("not checked: free disk of the journal's directory") && !text.contains("capture."), "{text}");
    let (code, text) = run("json", &["--only", "journal", "--format", "json", "--fail-on", "warn"]).await;
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["fail"]), (Some(1), &serde_json::json!(0)), "{text}");
    assert_eq!(run("never", &["--fail-on", "never"]).await.0, Some(0));
    assert_eq!(run("unknown", &["--only", "wal"]).await.0, Some(2));
    let (code, text) = run("explain", &["--explain", "capture.keyless_table"]).await;
    assert!(code == Some(0) && text.contains("(identity)") && text.contains("see      SELECT"), "{text}");
    let (_, text) = run("versions", &["--explain", "versions"]).await;
    assert!(text.contains("PostgreSQL 13") && text.contains("PostgreSQL 18") && text.contains("from 15.13 on"), "{text}");
    pipeline.pos.drop(server).await;
    pipeline.inventory.drop(server).await;
}

/// Source, journal and targets of a pipeline that has run: nothing fails, and each part says that it was looked at.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_at_a_pipeline_that_works() {
    let (server, broker) = (Postgres::shared().await, RabbitMq::shared().await);
    let pipeline = Pipeline::new("doctor-works", server, Journal::Rabbit(broker), |text| text).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    pipeline.drain().await;
    let began = Instant::now();
    let text = pipeline.command("doctor", &["doctor", "--verbose"]).await;
    println!("{text}\n{:.2} s in all", began.elapsed().as_secs_f64());
    for said in [
        "OK    capture.wal_level",
        "OK    journal.unavailable",
        "OK    journal.missing",
        "OK    journal.no_leader",
        "NOTE  journal.one_copy",
        "OK    journal.retention_near",
        "OK    journal.clock_offset",
        "connector inventory: its target answers and permits",
        "connector inventory: the clocks agree",
        "connector engagement: the clocks agree",
        "not checked: the broker's alarms",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    target.terminate(PATIENCE).await;
    pipeline.drop(server).await;
}

//! Setup and doctor, as the owner of a source database meets them.

use tillstream::capture::catalog::{Catalog, check_start};
use tillstream::config::{Source, SourceTable};
use tillstream::ops::doctor::{FailOn, Severity, examine};
use tillstream::ops::setup::{Options, Plan, apply, prepare};

use super::log_in;
use super::server::{Server, source};

fn at(url: String, tables: &[&str]) -> Source {
    let mut source = source(&url);
    source.tables =
        tables.iter().map(|t| SourceTable { schema: "public".to_owned(), table: (*t).to_owned(), partition_by: None }).collect();
    source
}

async fn set_up(source: &Source, admin: &str) -> (Plan, usize) {
    let admin = admin.to_owned().into();
    let prepared = prepare(source, "test", Some(&admin), &Options::default()).await.expect("a plan");
    let mut done = 0;
    apply(&prepared.plan, &prepared.catalog, |_| done += 1).await.expect("applied");
    (prepared.plan, done)
}

async fn findings(source: &Source) -> Vec<(Severity, &'static str)> {
    let report = examine(source, "test").await;
    eprintln!("{}", report.render(false));
    assert_eq!(report.exit_code(FailOn::Fail) == 1, report.count(Severity::Fail) > 0);
    report.findings.iter().filter(|f| f.severity <= Severity::Warn).map(|f| (f.severity, f.id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_prepares_a_server_twice_and_the_doctor_finds_what_is_then_broken() {
    let server = Server::start("max_slot_wal_keep_size = '20GB'");
    let admin = server.url("postgres", "postgres", "");
    server.sql("postgres", "CREATE TABLE \"order\" (id int, day date, note text, doubled int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)");
    server.sql("postgres", "CREATE TABLE order_any PARTITION OF \"order\" DEFAULT; CREATE TABLE t (id int PRIMARY KEY, \"No\" int)");
    server.sql("postgres", "CREATE TABLE log (line text); CREATE TABLE queue (id int); INSERT INTO queue VALUES (1)");
    server.sql("postgres", "UPDATE queue SET id = 2");
    let source = at(server.url("tillstream", "postgres", ""), &["order", "t", "log"]);

    // Before: the role does not exist.
    assert_eq!(findings(&source).await, [(Severity::Fail, "capture.auth_refused")]);

    // Applied twice, then printed and run twice by hand.
    let (plan, done) = set_up(&source, &admin).await;
    assert_eq!(done, plan.statements().count());
    set_up(&source, &admin).await;
    let text = plan.to_string();
    server.write("setup.sql", &text);
    let file = server.data().join("setup.sql").display().to_string();
    for _ in 0..2 {
        server.psql("postgres", &["-f", &file]);
    }
    assert_eq!(server.sql("postgres", "SELECT string_agg(rolname || ' ' || coalesce(rolpassword, 'none'), ', ' ORDER BY 1) FROM pg_authid WHERE rolname LIKE 'tillstream%'"), "tillstream none, tillstream_backfill none");

    // The streaming role can do its work and nothing else; the backfill role reads the listed columns.
    let facts = check_start(&source, "test").await.expect("ready");
    assert_eq!(facts.warnings.iter().map(|w| w.code).collect::<Vec<_>>(), ["capture.keyless_table"]);
    log_in(&server.url("tillstream", "postgres", "")).await.expect("logs in");
    let stream = Catalog::connect(&source, "test", "test").await.expect("connects");
    assert!(stream.client().query("SELECT * FROM public.t", &[]).await.is_err());
    let mut reading = source.clone();
    reading.backfill_url = Some(server.url("tillstream_backfill", "postgres", "").into());
    let backfill = Catalog::connect_backfill(&reading, "test").await.expect("connects");
    backfill.client().query("SELECT id, day, note FROM public.\"order\"", &[]).await.expect("granted");
    assert!(backfill.client().query("SELECT id FROM public.queue", &[]).await.is_err());
    assert!(backfill.client().execute("CREATE TABLE public.x ()", &[]).await.is_err());
    let limit: String = backfill.client().query_one("SHOW statement_timeout", &[]).await.expect("asked").get(0);
    assert_eq!(limit, "5s");

    // A good server: only the append-only table without a key is worth a word.
    assert_eq!(findings(&source).await, [(Severity::Warn, "capture.keyless_table")]);
    let good = at(server.url("tillstream", "postgres", ""), &["order", "t"]);
    server.sql("postgres", "ALTER PUBLICATION p DROP TABLE log");
    assert_eq!(findings(&good).await, []);

    // Three faults.
    server.sql("postgres", "ALTER PUBLICATION p ADD TABLE queue");
    server.sql("postgres", "ALTER SYSTEM SET max_slot_wal_keep_size = 0");
    server.sql("postgres", "SELECT pg_reload_conf(); SELECT pg_drop_replication_slot('s')");
    assert_eq!(
        findings(&good).await,
        [
            (Severity::Fail, "capture.keyless_table"),
            (Severity::Fail, "capture.wal_none_kept"),
            (Severity::Fail, "capture.slot_missing"),
            (Severity::Warn, "capture.publication_extra_table")
        ]
    );
    assert!(!server.try_sql("postgres", "UPDATE queue SET id = 3"), "what the doctor said would happen does");

    // A keyless table that is rewritten is not published by setup.
    server.sql("postgres", "ALTER PUBLICATION p DROP TABLE queue");
    let (plan, _) = set_up(&at(server.url("tillstream", "postgres", ""), &["order", "t", "queue"]), &admin).await;
    assert!(plan.to_string().contains("NOT INCLUDED: public.queue"), "{plan}");
    assert!(server.try_sql("postgres", "UPDATE queue SET id = 3"));
    assert_eq!(findings(&source).await.iter().filter(|(severity, _)| *severity == Severity::Fail).count(), 2, "no log, no WAL kept");

    // Without the right to do so nothing is half done silently.
    let prepared = prepare(&source, "test", None, &Options::default()).await.expect("a plan");
    server.sql("postgres", "DROP OWNED BY tillstream_backfill; DROP ROLE tillstream_backfill");
    assert_eq!(apply(&prepared.plan, &prepared.catalog, |_| {}).await.expect_err("refused").code(), "setup.not_permitted");
}

//! A point of sale with six faults of its own making: each is named, the named index helps, and no value is shown.

use std::time::{Duration, Instant};

use tillstream::config::{HoldBack, Source, SourceTable};
use tillstream::ops::doctor::{Severity, examine_as};
use tillstream::ops::queries::{Queries, Wish, look};
use tokio_postgres::Client;

use crate::harness::{Database, Level, PATIENCE, Postgres, wait_for};

/// Stands in rows and in statements, and must stand in no report.
const CANARY: &str = "canary-7319";

const WISH: Wish = Wish { top: 10, over: None };

fn source(database: &Database) -> Source {
    Source {
        name: "pos".to_owned(),
        url: database.url_as("tillstream").into(),
        backfill_url: None,
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        tables: vec![SourceTable { schema: "public".to_owned(), table: "customer".to_owned(), partition_by: None }],
        hold_back: HoldBack { time: Duration::ZERO, bytes: 0 },
        wal_budget: 5 << 30,
        initial_load: false,
        allow_weak_auth: false,
        columns: Default::default(),
        streaming: Default::default(),
        origin: Default::default(),
    }
}

const BY_PHONE: &str = "SELECT id, name FROM customer WHERE phone = $1";
const BY_EMAIL: &str = "SELECT count(*) FROM customer WHERE lower(email) = $1";

/// Runs a statement with other values each time; answers the mean time of one.
async fn run(client: &Client, sql: &str, times: u32) -> Duration {
    let statement = client.prepare(sql).await.expect("prepared");
    let began = Instant::now();
    for n in 0..times {
        client.query(&statement, &[&format!("{CANARY}-{n}")]).await.expect("runs");
    }
    began.elapsed() / times
}

fn finding<'a>(queries: &'a Queries, id: &str, about: &str) -> Option<&'a str> {
    let found = queries.report.findings.iter().find(|f| f.id == id && f.severity <= Severity::Warn && f.what.contains(about));
    found.map(|f| f.fix.as_str())
}

/// Whether an extension is there to be created.
async fn has(client: &Client, extension: &str) -> bool {
    client.query_opt("SELECT FROM pg_available_extensions WHERE name = $1", &[&extension]).await.expect("asked").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn six_planted_problems_are_named_and_the_index_advice_helps() {
    let server = Postgres::private("doctor-queries", "shared_preload_libraries = 'pg_stat_statements'").await;
    let database = Database::pos(&server, "pos").await;
    let admin = database.connect().await;
    let rows = Level::pick(60_000, 60_000, 400_000);
    admin
        .batch_execute(&format!(
            "CREATE EXTENSION pg_stat_statements; CREATE ROLE dba LOGIN; GRANT pg_monitor TO dba; GRANT SELECT ON customer TO dba;
             CREATE ROLE reader LOGIN; CREATE ROLE tillstream LOGIN REPLICATION;
             INSERT INTO customer (external_ref, name, email, phone) SELECT '{CANARY}-r' || n, 'Guest ' || n, 'G' || n || '@{CANARY}.example', '+1' || n
               FROM generate_series(1, {rows}) n;
             INSERT INTO shift (id, location_id, employee_id, business_date, opened_at)
               SELECT gen_random_uuid(), location_id, id, '2026-11-01', now() FROM employee, generate_series(1, 3000) LIMIT 5000;
             CREATE INDEX customer_name ON customer (name);
             ANALYZE"
        ))
        .await
        .expect("planted");
    let hypopg = has(&admin, "hypopg").await;
    if hypopg {
        admin.batch_execute("CREATE EXTENSION hypopg").await.expect("created");
    }
    let source = source(&database);
    let dba = database.url_as("dba").into();

    // One session does nothing within its transaction, two wait behind it.
    let (idle, second, third) = (database.connect().await, database.connect().await, database.connect().await);
    idle.batch_execute(&format!("SET application_name = 'register-7'; BEGIN; UPDATE customer SET name = '{CANARY}' WHERE id = 1"))
        .await
        .expect("held");
    let waiting: Vec<_> = [second, third]
        .into_iter()
        .map(|client| tokio::spawn(async move { client.batch_execute("UPDATE customer SET phone = '0' WHERE id = 1").await }))
        .collect();
    let ours = crate::harness::Postgres::connect(&server, &database.name).await;
    ours.batch_execute("SET application_name = 'tillstream/test/watch'; SELECT 1").await.expect("ours");

    admin.batch_execute("ANALYZE customer; SELECT pg_stat_statements_reset()").await.expect("begun anew");
    // Peak: one statement reads a table as a whole, another hides its column behind a function.
    let before = (run(&admin, BY_PHONE, 40).await, run(&admin, BY_EMAIL, 40).await);

    let queries = wait_for("all six", PATIENCE, || async {
        let queries = look(&source, "test", Some(&dba), &WISH).await;
        let six = [
            finding(&queries, "queries.unindexed_foreign_key", "shift"),
            finding(&queries, "queries.sequential_scan", "public.customer"),
            finding(&queries, "queries.unused_index", "customer_name"),
            finding(&queries, "queries.idle_in_transaction", "register-7"),
            finding(&queries, "queries.lock_chain", "2 sessions"),
            finding(&queries, "queries.heavy_statement", "lower(email)"),
        ];
        six.iter().all(Option::is_some).then_some(queries)
    })
    .await;
    let text = queries.render(true).to_string();
    println!("{}", queries.render(false));
    let json = serde_json::to_string(&queries).expect("JSON");
    assert!(!text.contains(CANARY) && !json.contains(CANARY), "a value is shown: {text}");
    assert!(queries.ours.sessions >= 1 && queries.ours.statements_share.is_some(), "{:?}", queries.ours);
    assert!(
        finding(&queries, "queries.unindexed_foreign_key", "shift")
            .is_some_and(|fix| fix.contains("CREATE INDEX CONCURRENTLY ON public.shift ("))
    );

    // What is advised is made as it is printed, and helps.
    idle.batch_execute("ROLLBACK").await.expect("ended");
    for task in waiting {
        task.await.expect("no panic").expect("goes on");
    }
    assert!(queries.advice.len() >= 2, "{:?}", queries.advice);
    for advice in &queries.advice {
        assert_eq!(advice.cost.is_some(), hypopg, "{advice:?}");
        if let Some((without, with)) = advice.cost {
            println!("{} the planner's cost: {without:.0} -> {with:.0}", advice.ddl);
        }
        admin.batch_execute(&advice.ddl).await.expect("as printed");
    }
    admin.batch_execute("ANALYZE customer").await.expect("analysed");
    let after = (run(&admin, BY_PHONE, 40).await, run(&admin, BY_EMAIL, 40).await);
    for (name, before, after) in [("sequential scan", before.0, after.0), ("function on a column", before.1, after.1)] {
        let ratio = before.as_secs_f64() / after.as_secs_f64();
        println!("{name}: {before:.2?} before its index, {after:.2?} after: {ratio:.0} times as fast");
        assert!(ratio > 3.0, "{name}: {before:?} {after:?}");
    }

    // A login that may not see much is told so, and nothing fails.
    let little = look(&source, "test", Some(&database.url_as("reader").into()), &WISH).await;
    assert_eq!(little.report.count(Severity::Fail), 0, "{}", little.report.render(true));
    assert!(little.report.unchecked.iter().any(|u| u.why.contains("pg_read_all_stats")), "{:?}", little.report.unchecked);
    assert!(!little.render(true).to_string().contains(CANARY));

    // What of just now: two looks, and only what came between counts.
    let over = Wish { over: Some(Duration::from_secs(1)), ..WISH };
    let (now, _) = tokio::join!(look(&source, "test", Some(&dba), &over), async {
        // The first look is over when its session waits for the second one.
        wait_for("the pause", PATIENCE, || async {
            let sql = "SELECT FROM pg_stat_activity WHERE application_name = 'tillstream/test/doctor' AND state = 'idle' LIMIT 1";
            admin.query_opt(sql, &[]).await.expect("asked").map(drop)
        })
        .await;
        run(&admin, "SELECT count(*) FROM customer WHERE external_ref < $1", 5).await
    });
    assert!(now.seconds <= 1.5 && now.top.iter().all(|t| t.calls < 40), "{:?}", now.top);

    // The doctor's own look is light.
    admin.batch_execute("SELECT pg_stat_statements_reset()").await.expect("reset");
    examine_as(&source, "test", Some(&database.url_as("reader").into())).await;
    let sql = "SELECT sum(calls)::int8, sum(total_exec_time + total_plan_time) FROM pg_stat_statements WHERE userid = 'reader'::regrole";
    let row = admin.query_one(sql, &[]).await.expect("counted");
    let (calls, ms): (i64, f64) = (row.get(0), row.get(1));
    println!("the doctor asked {calls} queries, {ms:.1} ms of the server's time in all");
    assert!((5..20).contains(&calls), "{calls}");
}

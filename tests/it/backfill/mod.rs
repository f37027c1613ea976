//! The initial load against a real server: rows older than the slot join the stream, and a target that keeps the
//! highest version of each row ends up equal to the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tillstream::backfill::{INITIAL_LOAD, TableState};
use tillstream_schemas::Op;
use tokio_postgres::Client;

mod capture;
mod commands;
mod gap;
mod long;
mod shop;
mod speed;
mod unreadable;

use capture::{Bench, Run};

use crate::harness::{Level, Postgres, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

async fn loaded(run: &Run) {
    wait_for("the initial load", PATIENCE, async || run.is_loaded().then_some(())).await;
}

/// The table's rows as the envelope prints them, for columns that are text or integers.
async fn table(client: &Client, sql: &str) -> Vec<BTreeMap<String, String>> {
    let rows = client.query(sql, &[]).await.expect("rows");
    let mut rows: Vec<BTreeMap<String, String>> = rows
        .iter()
        .map(|row| {
            let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(row.get(0)).expect("an object");
            json.into_iter().map(|(name, value)| (name, value.to_string())).collect()
        })
        .collect();
    rows.sort();
    rows
}

/// What a many-typed row looks like must not depend on how it came.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_row_has_the_bytes_of_the_same_row_updated() {
    let server = Postgres::shared().await;
    let sql = r#"
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE >= 0);
        CREATE TYPE pair AS (a int, b text);
        CREATE TABLE types (
            id uuid, "Key 2" char(5), PRIMARY KEY (id, "Key 2"), touched int NOT NULL DEFAULT 0,
            b boolean, s smallint, i int, l bigint, r real, d double precision, n numeric, p percent, m money, t text, v varchar(9),
            c char(4), "c""x" "char", na name, by bytea, ts timestamp, tz timestamptz, da date, ti time, tt timetz, iv interval,
            j json, jb jsonb, x xml, ip inet, ci cidr, mac macaddr, bi bit(3), vb varbit, pt point, bx box, o mood, oid oid, rc regclass,
            tsv tsvector, ir int4range, co pair, ia int[], ta text[][], ba box[], ma mood[], ba2 bytea[], tza timestamptz[], big text,
            gen int GENERATED ALWAYS AS (2) STORED);
        INSERT INTO types VALUES
            ('8f6d1c1e-55aa-4f0e-9b1b-0a2f6f3c9d11', 'k', 0, true, -1, 2147483647, -9223372036854775808, 0.1, 1e-300, 1.10, 12.5, '1234.5',
             E'tab\tquote"\\ \u00fc\U0001F9FE', 'v', 'ab', 'q', 'na', '\x00ff', '2026-11-22 10:00:00.1', '2026-11-22 10:00:00+02',
             '0044-03-15 BC', '24:00', '10:00+02', '1 year -2 days 03:04:05.6', '{"a" : 1.10, "a":2}', '{"b": [1, null]}', '<a/>',
             '192.168.1.5', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '1', '(1,2)', '(1,2),(3,4)', 'sad', 42, 'pg_catalog.pg_class',
             'a fat cat', '[1,5)', '(1,"x y")', '{1,NULL,3}', '{{"a,b",NULL},{"c\"d",""}}', '{(1,2),(3,4);(5,6),(7,8)}', '{glad,sad}',
             '{"\\x01"}', '{"2026-01-01 00:00+00",infinity}', repeat('toast ', 20)),
            ('8f6d1c1e-55aa-4f0e-9b1b-0a2f6f3c9d12', 'k''\', 0, NULL, NULL, NULL, NULL, 'NaN', '-Infinity', 'NaN', NULL, NULL, '', NULL,
             NULL, NULL, NULL, '', 'infinity', '-infinity', 'infinity', NULL, NULL, NULL, 'null', '"x"', NULL, NULL, NULL, NULL, NULL, NULL,
             NULL, NULL, NULL, NULL, NULL, NULL, 'empty', NULL, '{}', '[2:3]={x,y}', NULL, NULL, NULL, NULL, NULL);
    "#;
    let bench = Bench::new("types", server, sql, &["types"]).await;
    let client = bench.database.connect().await;
    client
        .batch_execute(&format!(
            "ALTER DATABASE {} SET timezone = 'Asia/Kolkata'; ALTER DATABASE {0} SET datestyle = 'German'",
            bench.database.name
        ))
        .await
        .expect("settings");
    let run = bench.start().await;
    loaded(&run).await;
    client.batch_execute("UPDATE types SET touched = touched").await.expect("updates");
    run.stop().await;
    bench.catch_up().await;
    let rows = bench.read().await;
    let by_op = |op: Op| {
        let events = rows.events.iter().filter(|e| e.op() == op);
        let of = |e: &tillstream_schemas::Event| -> Vec<(String, String)> {
            e.key().chain(e.after()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let mut rows: Vec<_> = events.map(of).collect();
        rows.sort();
        rows
    };
    let (reads, updates) = (by_op(Op::Read), by_op(Op::Update));
    assert_eq!((reads.len(), updates.len()), (2, 2));
    for (read, update) in reads.iter().zip(&updates) {
        for (read, update) in read.iter().zip(update) {
            assert_eq!(read, update);
        }
        assert_eq!(read.len(), update.len());
    }
    bench.end(server).await;
}

const SALES: &str = "
    CREATE TABLE sale (shop text COLLATE \"C\", n int, PRIMARY KEY (shop, n), total bigint NOT NULL, note text);
    ALTER TABLE sale ALTER note SET STORAGE EXTERNAL;
    INSERT INTO sale SELECT 'shop ''' || (n % 7), n, n, CASE WHEN n % 5 = 0 THEN repeat('x', 3000) END FROM generate_series(1, ROWS) n;
    CREATE TABLE part (id int, day date, PRIMARY KEY (id, day), v int) PARTITION BY RANGE (day);
    CREATE TABLE part_a PARTITION OF part FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE part_b PARTITION OF part FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    INSERT INTO part SELECT n, date '2026-01-01' + n % 365, n FROM generate_series(1, 2000) n;
    CREATE TABLE whole (id int PRIMARY KEY, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
    INSERT INTO whole SELECT n, 'v' || n FROM generate_series(1, 500) n;
    CREATE TABLE empty (id int PRIMARY KEY);
    CREATE TABLE keyless (v int); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1);
";

/// Changes rows at random until told to stop. Keys change, rows come and go, notes stay out of the stream.
async fn churn(client: Client, seed: u64, rows: i32, stop: Arc<AtomicBool>) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = rng.random_range(1..=rows);
        let sql = match rng.random_range(0..10) {
            0 => format!("DELETE FROM sale WHERE n = {n}"),
            1 => format!(
                "INSERT INTO sale VALUES ('shop ''' || {n} % 7, {n}, {n}, repeat('y', 3000)) ON CONFLICT (shop, n) DO UPDATE SET note = 'back'"
            ),
            // A key change carries its whole row here, so the note does not get lost with it.
            2 => format!("UPDATE sale SET shop = 'moved ' || shop, note = 'short' WHERE n = {n} AND length(shop) < 40"),
            3 => format!(
                "BEGIN; UPDATE sale SET total = total + 1 WHERE n = {n}; UPDATE whole SET v = v || '+' WHERE id = {n} % 500; COMMIT"
            ),
            4 => format!("UPDATE part SET day = date '2026-01-01' + {n} % 365, v = v + 1 WHERE id = {n} % 2000"),
            5 => format!("UPDATE sale SET note = repeat('z', {n} % 4000) WHERE n = {n}"),
            _ => format!("UPDATE sale SET total = total + 1 WHERE n = {n}"),
        };
        // Two writers may meet on one key; the loser's statement fails as a whole.
        if client.batch_execute(&sql).await.is_ok() {
            changes += 1;
        } else {
            let _ = client.batch_execute("ROLLBACK").await;
        }
    }
    changes
}

/// The load runs among changes, loses its connections and its process on the way, and everything ends equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_among_changes_and_kills_ends_equal() {
    let server = Postgres::shared().await;
    let rows = Level::pick(6_000, 40_000, 300_000);
    let bench =
        Bench::new("churn", server, &SALES.replace("ROWS", &rows.to_string()), &["sale", "part", "whole", "empty", "keyless"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for seed in 0..3 {
        writers.push(tokio::spawn(churn(bench.database.connect().await, seed, rows, stop.clone())));
    }
    let client = bench.database.connect().await;

    // Crash the process three times, each after some rows of the load; then cut its connections under it.
    let mut sessions = 0;
    for _ in 0..3 {
        let run = bench.start().await;
        let stats = run.backfill.stats();
        wait_for("rows of the load", PATIENCE, async || (stats.progress().rows > 300 || run.is_loaded()).then_some(())).await;
        sessions += 1;
        run.crash().await;
    }
    let run = bench.start().await;
    let stats = run.backfill.stats();
    for purpose in ["%backfill%", "%"] {
        wait_for("rows of the load", PATIENCE, async || (stats.progress().rows > 300 || run.is_loaded()).then_some(())).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name LIKE 'tillstream%' AND application_name LIKE $1";
        client.query(sql, &[&purpose]).await.expect("terminates");
    }
    loaded(&run).await;
    stop.store(true, Ordering::Relaxed);
    let mut changes = 0;
    for writer in writers {
        changes += writer.await.expect("no panic");
    }
    let progress = run.backfill.stats().progress();
    run.stop().await;
    bench.catch_up().await;

    let journal = bench.read().await;
    println!(
        "{rows} rows, {changes} changes, {sessions} crashes, {} events, {} reads, {} evicted, {} chunks not visible, {} read again",
        journal.events.len(),
        journal.reads,
        progress.rows_evicted,
        progress.chunks_not_visible,
        progress.chunks_again
    );
    let mut expected = table(&client, "SELECT row_to_json(t)::text FROM sale t").await;
    expected.extend(table(&client, "SELECT row_to_json(t)::text FROM part t").await);
    expected.extend(table(&client, "SELECT row_to_json(t)::text FROM whole t").await);
    expected.sort();
    let live = journal.live();
    assert_eq!(live.len(), expected.len());
    for (live, expected) in live.iter().zip(&expected) {
        assert_eq!(live, expected);
    }
    assert!(journal.reads > 2_000 && changes > 50, "{} reads, {changes} changes", journal.reads);

    // Status says what was read and what could not be; the control journal says that it is over.
    let state_of = |name: &str| progress.tables.iter().find(|t| t.table == name).map(|t| (t.state, t.code.clone()));
    assert_eq!(state_of("public.sale"), Some((TableState::Done, None)));
    assert_eq!(state_of("public.empty"), Some((TableState::Done, None)));
    assert_eq!(state_of("public.keyless"), Some((TableState::Refused, Some("backfill.no_key".to_owned()))));
    let control = bench.control().await;
    assert_eq!(control.load(INITIAL_LOAD).map(|l| l.tables), Some(4));

    // What is loaded is not loaded again.
    let again = bench.start().await;
    loaded(&again).await;
    again.stop().await;
    assert_eq!(bench.read().await.reads, journal.reads);
    bench.end(server).await;
}

/// A commit that waits for its standby is in WAL and in the stream, and no snapshot sees it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_streamed_before_it_is_visible_is_not_overwritten() {
    let server = Postgres::private("gap", "synchronous_standby_names = ''").await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 100) n";
    let bench = Bench::new("gap", &server, sql, &["t"]).await;
    let admin = server.connect("postgres").await;
    let standby = async |names: &str| {
        // Neither may wait for the standby that does not exist.
        admin.batch_execute("SET synchronous_commit = local").await.expect("sets");
        admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.expect("alters");
        admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
        let shown = async || {
            // A session takes the new value with its next command.
            let now: String = admin.query_one("SHOW synchronous_standby_names", &[]).await.expect("shows").get(0);
            (now == names).then_some(())
        };
        wait_for("the setting", PATIENCE, shown).await;
    };
    let client = bench.database.connect().await;
    client.batch_execute("CREATE TABLE before (id int)").await.expect("creates");
    standby("nobody").await;
    // The checkpointer tells the others some time after it took the new value: until then commits wait for nobody.
    let waited = async || {
        let insert = client.batch_execute("INSERT INTO before VALUES (1)");
        tokio::pin!(insert);
        let cancelled = async || {
            let sql = "SELECT count(pg_cancel_backend(pid)) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            wait_for("a commit that waits", PATIENCE, async || {
                admin.query_one(sql, &[]).await.expect("asks").get::<_, bool>(0).then_some(())
            })
            .await;
        };
        tokio::select! {
            _ = &mut insert => None,
            () = cancelled() => {
                insert.await.expect("inserts");
                Some(())
            }
        }
    };
    wait_for("commits to wait for a standby", PATIENCE, waited).await;
    let update = tokio::spawn(async move { client.batch_execute("UPDATE t SET v = 'new' WHERE id = 50").await });
    let waits = async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        admin.query_opt(sql, &[]).await.expect("asks").map(|_| ())
    };
    wait_for("the commit to wait", PATIENCE, waits).await;

    let run = bench.start().await;
    let stats = run.backfill.stats();
    wait_for("a chunk that has to be read again", PATIENCE, async || (stats.progress().chunks_not_visible >= 2).then_some(())).await;
    assert!(!run.is_loaded() && stats.progress().rows == 0, "nothing is written while the chunk cannot be trusted");
    standby("").await;
    update.await.expect("no panic").expect("commits");
    loaded(&run).await;
    run.stop().await;
    bench.catch_up().await;
    let journal = bench.read().await;
    let live = journal.live();
    assert_eq!(live.len(), 100);
    let of_50 = live.iter().find(|row| row["id"] == "50").expect("the row");
    assert_eq!(of_50["v"], "\"new\"");
    // The update came through the stream before the chunk: the read row outranks it, and has it.
    assert_eq!(journal.reads, 100);
}

/// The role that `setup` makes for reading may do what a load does, and no more.
/// Pipelines that load from one server share the role's connections; two are enough for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_reads_on_the_connections_that_are_left() {
    let server = Postgres::shared().await;
    let names: Vec<String> = (0..30).map(|n| format!("t{n}")).collect();
    let sql: String = names.iter().map(|t| format!("CREATE TABLE {t} (id int PRIMARY KEY); INSERT INTO {t} VALUES (1), (2); ")).collect();
    let mut bench = Bench::new("few", server, &sql, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let client = bench.database.connect().await;
    let role = format!("reader_{}", bench.database.name);
    let sql = format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}");
    client.batch_execute(&sql).await.expect("a role");
    bench.source.backfill_url = Some(bench.database.url_as(&role).into());
    let begun = Instant::now();
    let run = bench.start().await;
    loaded(&run).await;
    // A round that fails for want of a connection costs a second, and reads one table.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    run.stop().await;
    assert_eq!(bench.read().await.reads, 60);
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.expect("drops");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_role_can_load() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 10) n; \
               CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1)";
    let mut bench = Bench::new("role", server, sql, &["t", "secret"]).await;
    let client = bench.database.connect().await;
    let role = format!("reader_{}", bench.database.name);
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET default_transaction_read_only = on; GRANT SELECT (id, v) ON t TO {role}"
        ))
        .await
        .expect("a role");
    bench.source.backfill_url = Some(bench.database.url_as(&role).into());
    let run = bench.start().await;
    let stats = run.backfill.stats();
    let table = |name: &str| stats.progress().tables.into_iter().find(|t| t.table == name).expect("listed");
    let refused = || stats.progress().tables.iter().any(|t| t.table == "public.secret" && t.state == TableState::Failing);
    let loaded_first = || stats.progress().tables.iter().any(|t| t.table == "public.t" && t.state == TableState::Done);
    wait_for("the refusal", PATIENCE, async || (refused() && loaded_first()).then_some(())).await;
    assert_eq!(table("public.secret").code.as_deref(), Some("backfill.no_permission"));
    assert_eq!((table("public.t").state, table("public.t").rows), (TableState::Done, 10));
    client.batch_execute(&format!("GRANT SELECT ON secret TO {role}")).await.expect("grants");
    loaded(&run).await;
    run.stop().await;
    assert_eq!(bench.read().await.reads, 11);
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.expect("drops");
    bench.end(server).await;
}

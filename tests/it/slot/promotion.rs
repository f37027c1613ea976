//! A standby becomes the primary: with our slot on it, without it, and without what we have already captured.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{bump, code, code_of_run, inserted, standing};
use crate::e2e::assert_sound;
use crate::harness::{Database, Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq, wait_for};
use crate::matrix::Bench;

const CREATE: &str = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";

/// Waits until a standby has replayed everything that its primary has now.
async fn replayed(primary: &Client, standby: &Client) {
    let upto: String = primary.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.expect("asked").get(0);
    wait_for("the standby to replay", PATIENCE, || async {
        let row = standby.query_one("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", &[&upto]).await.ok()?;
        row.get::<_, Option<bool>>(0)?.then_some(())
    })
    .await;
}

/// A pipeline that knows both servers, under traffic, when the first one dies and the second, which has the slot, takes its place.
async fn a_failover(major: u32) {
    let settings = "sync_replication_slots = on\nhot_standby_feedback = on\nwal_sender_timeout = '10s'";
    let primary = Postgres::private_on(Some(major), "failover-primary", settings).await;
    let standby = primary.standby("failover-standby").await;
    let admin = primary.connect("postgres").await;
    // Nothing is sent to a logical reader before the standby has it.
    admin.batch_execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await.expect("set");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
    let mut pipeline = Pipeline::new("failover", &primary, Journal::Rabbit(RabbitMq::shared().await), |file| file).await;
    let both = |role: &str| {
        format!("postgres://{role}@{},{}/{}?target_session_attrs=read-write", primary.address(), standby.address(), pipeline.pos.name)
    };
    let (stream, backfill) = (both("tillstream"), both("tillstream_backfill"));
    pipeline.set("DEMO_SOURCE_URL", stream);
    pipeline.set("DEMO_BACKFILL_URL", backfill);
    pipeline.set_up().await;
    // The target is another server: the first one dies.
    pipeline.inventory = Database::inventory(Postgres::shared().await, "failover").await;
    pipeline.set("DEMO_INVENTORY_URL", pipeline.inventory.url.clone());
    let mirrored = standby.connect("postgres").await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    running.ready().await;
    wait_for("the slot to be on the standby", PATIENCE, || async {
        let sql = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = $1";
        mirrored.query_opt(sql, &[&pipeline.slot]).await.ok()??.get::<_, bool>(0).then_some(())
    })
    .await;

    let traffic = pipeline.traffic(500, 3600, &["--even"]);
    running.until("events to flow", |status| status["source"]["events_per_second"].as_f64() > Some(200.0)).await;
    let before = running.status().await.expect("answers");
    primary.control("kill9").await;
    let died = Instant::now();
    standby.promote().await;
    traffic.kill9().await;
    // The same database, in its new place.
    pipeline.pos.move_to(&standby);
    running.ready().await;
    println!("PostgreSQL {major}: streaming from the new primary {:.1} s after the old one died", died.elapsed().as_secs_f64());
    let traffic = pipeline.traffic(500, Level::pick(4, 6, 20), &["--even", "--seed", "9"]);
    running.until("events to flow again", |status| status["source"]["events_per_second"].as_f64() > Some(200.0)).await;
    traffic.finish(PATIENCE).await;
    let after = running.status().await.expect("answers");
    assert!(after["source"]["events"].as_u64() > before["source"]["events"].as_u64(), "{after}");
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    let line = pipeline.verify().await;
    println!("PostgreSQL {major}: {line}");
    assert_sound(&line);
    let shown = pipeline.command("epoch", &["epoch", "show", "--format", "json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        (&shown["epoch"], &shown["server"]["timeline"], &shown["verdict"]["continues"]),
        (&1.into(), &2.into(), &true.into()),
        "{shown}"
    );
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.inventory.drop(Postgres::shared().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_with_a_failover_slot_loses_and_doubles_nothing() {
    let majors = match Postgres::asked() {
        Some(major) => vec![major],
        // These versions are fetched when they are not there: not in every run.
        None => Level::pick(vec![], vec![], vec![17, 18]),
    };
    for major in majors {
        a_failover(major).await;
    }
}

/// Before version 17, or without setting it up, the slot stays behind; and a standby may lack what was captured already.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_without_the_slot_or_without_the_events_halts() {
    let first = Postgres::private("promoted-0", "").await;
    let second = first.standby("promoted-1").await;
    let sql = "CREATE TABLE t (id bigint PRIMARY KEY)";
    let mut bench = Bench::new("promoted", &first, sql, "FOR TABLE t", &["t"]).await;
    bench.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    replayed(&bench.client, &second.connect("postgres").await).await;
    first.control("kill9").await;
    second.promote().await;

    // Everything that was captured is there; the slot is not, and one made by hand begins too late.
    bench.database.move_to(&second);
    bench.source.url = bench.database.url.clone().into();
    bench.client = bench.database.connect().await;
    assert_eq!(code_of_run(&bench).await, "capture.slot_missing");
    bench.sql("INSERT INTO t VALUES (2)").await;
    bench.client.execute(CREATE, &[&bench.source.slot]).await.expect("a slot");
    assert_eq!(code_of_run(&bench).await, "capture.slot_advanced");
    assert_eq!(inserted(&bench).await, [1]);
    bump(&bench, true).await;
    bench.sql("INSERT INTO t VALUES (3)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    assert_eq!(inserted(&bench).await, [1, 3]);

    // The next standby misses the last sale, which is captured already: on the new primary it never happened.
    let third = second.standby("promoted-2").await;
    bench.client = bench.database.connect().await;
    replayed(&bench.client, &third.connect("postgres").await).await;
    third.hear_no_more().await;
    bench.sql("INSERT INTO t VALUES (4)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    second.control("kill9").await;
    third.promote().await;
    bench.database.move_to(&third);
    bench.source.url = bench.database.url.clone().into();
    bench.client = bench.database.connect().await;
    let _ = bench.client.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots", &[]).await;
    bench.client.execute(CREATE, &[&bench.source.slot]).await.expect("a slot");
    let stand = standing(&bench).await;
    println!("{:?}", stand.verdict);
    assert_eq!(code(stand.verdict), "capture.source_diverged");
    assert_eq!(code_of_run(&bench).await, "capture.source_diverged");
    let ids: Vec<i64> = bench.client.query("SELECT id FROM t ORDER BY id", &[]).await.expect("read").iter().map(|r| r.get(0)).collect();
    assert_eq!(ids, [1, 2, 3], "the event of sale 4 is a phantom");
    bump(&bench, true).await;
    bench.sql("INSERT INTO t VALUES (4)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    let events = bench.read().await;
    let last =
        events.iter().filter(|e| e.op() == "insert").map(|e| e.id.split('-').next().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    assert_eq!(last, ["e1", "e2", "e2", "e3"], "the real sale 4 has an id of its own");
}

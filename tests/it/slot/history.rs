//! Does the database continue the history in the journal? Every case ends in going on, or in a coded halt with its way out.

use tillstream::capture::catalog::check_start;
use tillstream::capture::source::Source as _;
use tillstream::capture::wire::PgSource;

use super::{bump, code, code_of_run, inserted, standing};
use crate::harness::{Database, Postgres, wait_for};
use crate::matrix::Bench;

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n text)";

async fn bench(name: &str, server: &Postgres) -> Bench {
    Bench::new(name, server, TABLE, "FOR TABLE t", &["t"]).await
}

async fn slot(bench: &Bench, statement: &str) {
    bench.client.execute(statement, &[&bench.source.slot]).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

const DROP: &str = "SELECT pg_drop_replication_slot($1)";
const CREATE: &str = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_recreated_or_advanced_halts_until_an_epoch_begins() {
    let server = Postgres::shared().await;
    let bench = bench("moved_slot", server).await;
    bench.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    assert_eq!(code_of_run(&bench).await, "continue", "nothing new is no reason to doubt");

    // Dropped while nobody reads it, with a change behind it.
    slot(&bench, DROP).await;
    bench.sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(code_of_run(&bench).await, "capture.slot_missing");
    assert_eq!(code(standing(&bench).await.verdict), "capture.slot_missing");

    // Created again: PostgreSQL would go on behind the change without a word.
    slot(&bench, CREATE).await;
    bench.sql("INSERT INTO t VALUES (3)").await;
    assert_eq!(code(standing(&bench).await.verdict), "capture.slot_advanced", "seen without taking the slot");
    assert_eq!(code_of_run(&bench).await, "capture.slot_advanced");
    assert_eq!(code_of_run(&bench).await, "capture.slot_advanced", "a second start does not talk itself out of it");
    assert_eq!(inserted(&bench).await, [1], "nothing was taken from it");

    bump(&bench, true).await;
    assert_eq!(code_of_run(&bench).await, "continue");
    assert_eq!(inserted(&bench).await, [1, 3]);
    let ids: Vec<String> = bench.read().await.iter().map(|e| e.id.clone()).collect();
    assert!(ids[0].starts_with("e1-") && ids[1].starts_with("e2-"), "{ids:?}");
    let state = bench.control().await;
    assert!(state.audit().any(|a| a.what.contains("epoch 2") && a.why == "a test of it" && a.who == "tester"), "the decision is on record");

    // Advanced by hand, over a change.
    bench.sql("INSERT INTO t VALUES (4)").await;
    slot(&bench, "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())").await;
    assert_eq!(code_of_run(&bench).await, "capture.slot_advanced");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_every_transaction_neither_loses_nor_doubles() {
    let server = Postgres::shared().await;
    let bench = bench("restarts", server).await;
    for id in 0..12 {
        bench.sql(&format!("INSERT INTO t VALUES ({id})")).await;
        assert_eq!(code_of_run(&bench).await, "continue");
        // What was acknowledged is the next byte behind the commit: WAL of others in between changes nothing.
        bench.sql("SELECT pg_logical_emit_message(false, 'tillstream/none', 'x')").await;
    }
    assert_eq!(inserted(&bench).await, (0..12).collect::<Vec<_>>());
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_under_the_same_name_is_refused_and_an_upgraded_one_goes_on() {
    let server = Postgres::shared().await;
    let other = Postgres::private("other-server", "").await;
    let mut bench = bench("two_servers", server).await;
    bench.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(code_of_run(&bench).await, "continue");

    // A server with another system identifier, as pg_upgrade leaves one, that has slot and publication of the same names.
    let upgraded = Database::empty(&other, "upgraded").await;
    let client = upgraded.connect().await;
    client.batch_execute(&format!("{TABLE}; INSERT INTO t VALUES (1); CREATE PUBLICATION p FOR TABLE t")).await.expect("made");
    client.execute(CREATE, &[&bench.source.slot]).await.expect("a slot");
    let first = std::mem::replace(&mut bench.source.url, upgraded.url.clone().into());
    assert_eq!(code_of_run(&bench).await, "capture.source_changed");
    assert_eq!(code(standing(&bench).await.verdict), "capture.source_changed");

    // Two databases behind one name: back at the first, all is well; at the second one again, it is not.
    let second = std::mem::replace(&mut bench.source.url, first);
    assert_eq!(code_of_run(&bench).await, "continue");
    bench.source.url = second;
    assert_eq!(code_of_run(&bench).await, "capture.source_changed");

    // The slot was drained before the upgrade, so nothing has to be loaded again.
    bump(&bench, false).await;
    client.batch_execute("INSERT INTO t VALUES (2)").await.expect("inserts");
    assert_eq!(code_of_run(&bench).await, "continue");
    assert_eq!(inserted(&bench).await, [1, 2]);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_from_a_base_backup_is_refused_with_the_way_out() {
    let server = Postgres::private("restored", "").await;
    let bench = bench("restored", &server).await;
    bench.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(code_of_run(&bench).await, "continue");

    // Everything as of now, slot included, as a snapshot of the disk would have it.
    server.control("stop").await;
    let backup = server.copy_data().await;
    server.control("start").await;
    let lively = bench.database.connect().await;
    lively.batch_execute("INSERT INTO t SELECT i FROM generate_series(2, 50) i; SELECT pg_switch_wal()").await.expect("inserts");
    lively.batch_execute("INSERT INTO t VALUES (51)").await.expect("inserts");
    assert_eq!(code_of_run(&bench).await, "continue");
    assert_eq!(inserted(&bench).await.len(), 51);

    server.control("stop").await;
    server.put_data(&backup).await;
    server.control("start").await;
    assert_eq!(code_of_run(&bench).await, "capture.source_regressed");
    assert_eq!(code(standing(&bench).await.verdict), "capture.source_regressed");

    // Sales go on, past everything that the journal holds: the position alone looks right now, the history does not.
    let lively = bench.database.connect().await;
    for id in 0..40 {
        lively.batch_execute(&format!("INSERT INTO t VALUES ({})", 1000 + id)).await.expect("inserts");
    }
    lively.batch_execute("SELECT pg_switch_wal()").await.expect("switches");
    lively.batch_execute("INSERT INTO t VALUES (2000)").await.expect("inserts");
    let before = inserted(&bench).await;
    assert_eq!(code_of_run(&bench).await, "capture.source_diverged");
    assert_eq!(inserted(&bench).await, before, "nothing of the other history was stored");
    bump(&bench, true).await;
    assert_eq!(code_of_run(&bench).await, "continue");
    let since = inserted(&bench).await.iter().filter(|id| **id >= 1000).count();
    assert_eq!(since, 41, "every sale since the restore: nothing was acknowledged before the decision");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_the_wal_although_we_do_not_is_named() {
    let server = Postgres::private("pinned", "").await;
    let bench = bench("pinned", &server).await;
    let mut open = bench.database.connect().await;
    let pid: i32 = open.query_one("SELECT pg_backend_pid()", &[]).await.expect("asked").get(0);
    let transaction = open.transaction().await.expect("begins");
    transaction.execute("INSERT INTO t VALUES (1)", &[]).await.expect("inserts");
    bench.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 50)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    let source = PgSource::new(&bench.source, "test");
    let slot = source.look().await.expect("looks").slot.expect("there");
    assert!(slot.pinned_by.as_ref().is_some_and(|by| by.contains(&pid.to_string())), "{slot:?}");
    transaction.commit().await.expect("commits");
    assert_eq!(code_of_run(&bench).await, "continue");
    bench.sql("CHECKPOINT").await;
    let free = wait_for("the slot to move on", crate::harness::PATIENCE, || async {
        assert_eq!(code_of_run(&bench).await, "continue");
        let slot = source.look().await.ok()?.slot?;
        slot.pinned_by.is_none().then_some(slot)
    });
    free.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_still_being_created_is_waited_for() {
    let server = Postgres::private("creating", "").await;
    let bench = bench("creating", &server).await;
    slot(&bench, DROP).await;
    let mut open = bench.database.connect().await;
    let transaction = open.transaction().await.expect("begins");
    transaction.execute("INSERT INTO t VALUES (1)", &[]).await.expect("inserts");
    let creator = bench.database.connect().await;
    let name = bench.source.slot.clone();
    let creating = tokio::spawn(async move { creator.execute(CREATE, &[&name]).await.map(|_| ()) });
    let waits = wait_for("the slot to show", crate::harness::PATIENCE, || async {
        let error = check_start(&bench.source, "test").await.err()?;
        (error.code() != "capture.slot_missing").then_some(error)
    })
    .await;
    assert!(waits.is_transient() && waits.to_string().contains("a transaction that is open holds it up"), "{waits}");
    transaction.commit().await.expect("commits");
    creating.await.expect("no panic").expect("created");
    check_start(&bench.source, "test").await.expect("ready");
}

/// PostgreSQL 18 can drop the claim of a slot that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_idle_for_too_long_is_lost_and_says_why() {
    let server = Postgres::private("idle_slot", "").await;
    let bench = bench("idle_slot", &server).await;
    if bench.major < 18 {
        let has: i64 = bench
            .client
            .query_one("SELECT count(*) FROM pg_settings WHERE name LIKE 'idle_replication_slot%'", &[])
            .await
            .expect("asked")
            .get(0);
        assert_eq!(has, 0, "this version has no such timeout");
        return;
    }
    bench.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(code_of_run(&bench).await, "continue");
    bench.sql("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'").await.sql("SELECT pg_reload_conf()").await;
    let lost = wait_for("the slot to be given up", crate::harness::PATIENCE, || async {
        bench.sql("CHECKPOINT").await;
        check_start(&bench.source, "test").await.err()
    })
    .await;
    assert!(lost.code() == "capture.slot_lost" && lost.to_string().contains("idle_timeout"), "{lost}");
}

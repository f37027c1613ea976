//! How fast both sinks take what stands in the journal. Prints; only a collapse fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use serde_json::json;
use tillstream::journal::Journal;
use tillstream_connectors::registry::Registry;

use super::pos::{Capture, catch_up, connector, insert, journal};
use crate::harness::{Database, Level, Postgres};

/// A journal with this many rows, ten a transaction.
async fn filled(count: u64) -> (tempfile::TempDir, Arc<dyn Journal>) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for id in (0..count).step_by(10) {
        let rows: Vec<_> = (id..count.min(id + 10)).map(|id| insert("a", id, id % 900)).collect();
        capture.write(0, &rows).await;
    }
    capture.flush().await;
    (dir, journal)
}

fn report(what: &str, count: u64, begun: Instant) {
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!("{what}: {count} events in {:?}, {rate:.0} a second", begun.elapsed());
    assert!(rate > 50.0, "{what}: {rate:.0} events a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_both_sinks_is_printed() {
    let count = Level::pick(2_000, 20_000, 200_000);
    let (_dir, journal) = filled(count).await;
    let server = Postgres::shared().await;
    let database = Database::empty(server, "delivery").await;
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE a (id bigint PRIMARY KEY, qty integer NOT NULL)").await.expect("creates");
    let block = json!({"url": database.url, "create": true, "tables": {"public.a": {"key": ["id"], "columns": ["qty"]}}});
    let sql = Registry::built_in().get("sql").expect("built in").validate(&block, false).expect("valid");
    let mut inventory = connector("inventory", sql);
    inventory.delivery.batch_items_max = 1_000;
    inventory.delivery.linger = Duration::from_millis(20);
    let begun = Instant::now();
    catch_up(&journal, vec![inventory]).await.expect("catches up");
    report("sql, two lanes, batches of 1000", count, begun);
    let rows: i64 = client.query_one("SELECT count(*) FROM a", &[]).await.expect("reads").get(0);
    assert_eq!(u64::try_from(rows), Ok(count));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/v1/events", listener.local_addr().expect("bound"));
    let router = Router::new().route("/v1/events", axum::routing::post(|_: axum::body::Bytes| async { "" }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    for (mode, lanes, items) in [("single", 2, 100), ("single", 8, 100), ("batch", 2, 500)] {
        let block = json!({"url": url, "allow_private": true, "mode": mode, "columns": {"public.a": ["id", "qty"]}});
        let http = Registry::built_in().get("http").expect("built in").validate(&block, false).expect("valid");
        let mut engagement = connector(&format!("engagement-{mode}-{lanes}"), http);
        engagement.delivery.lanes = std::num::NonZeroU16::new(lanes).expect("not zero");
        engagement.delivery.batch_items_max = items;
        engagement.delivery.linger = Duration::from_millis(20);
        let begun = Instant::now();
        let stats = catch_up(&journal, vec![engagement]).await.expect("catches up");
        assert_eq!(stats.connectors()[0].delivered.load(Ordering::Relaxed), count);
        report(&format!("http {mode}, {lanes} lanes, batches of {items}"), count, begun);
    }
}

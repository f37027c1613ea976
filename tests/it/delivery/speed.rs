//! How fast a journal's events reach a target: over HTTP against a rate, into PostgreSQL against the fastest way to write the same rows.
//!
//! Short in every run, where rows are compared and no rate is judged; `tests/bench.sh delivery` runs the whole.

use std::fmt::Write as _;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use futures_util::SinkExt as _;
use serde_json::json;
use tillstream::config::Connector;
use tillstream::journal::Journal;
use tillstream_connectors::registry::{Registry, Target};
use tillstream_schemas::Op;
use tokio_postgres::Client;

use super::pos::{Capture, Change, connector, journal, start};
use crate::bench::figures::{Asked, Figures};
use crate::harness::{Database, Level, Postgres};

const COLUMNS: [&str; 8] = ["id", "order_id", "item", "quantity", "unit_price", "status", "note", "updated_at"];

/// What a point of sale writes most of: the id is the key.
const TABLE: &str = "(id bigint PRIMARY KEY, order_id bigint NOT NULL, item text NOT NULL, quantity numeric(10,3) NOT NULL, \
     unit_price numeric(10,2) NOT NULL, status text NOT NULL, note text, updated_at timestamptz NOT NULL)";

/// The values of a row, as PostgreSQL prints them; `None` is NULL.
fn values(id: u64) -> [Option<String>; 8] {
    let some = |text: String| Some(text);
    [
        some(id.to_string()),
        some((id / 3).to_string()),
        some(format!("Espresso doppio no. {}", id % 50)),
        some(format!("{}.000", 1 + id % 4)),
        some(format!("{}.{:02}", 2 + id % 9, id % 100)),
        some(["fired", "served", "paid"][(id % 3) as usize].to_owned()),
        id.is_multiple_of(10).then(|| "no sugar, please".to_owned()),
        some(format!("2026-11-22 10:{:02}:{:02}.{:06}+00", id / 60 % 60, id % 60, id % 1_000_000)),
    ]
}

fn event(id: u64) -> Change {
    let mut after = String::from("{");
    for (n, (name, value)) in COLUMNS.iter().zip(values(id)).enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let _ = match (value, n) {
            (None, _) => write!(after, "{comma}\"{name}\":null"),
            (Some(value), 0 | 1) => write!(after, "{comma}\"{name}\":{value}"),
            (Some(value), _) => {
                write!(after, "{comma}\"{name}\":\"{}\"", value.replace("+00", "Z").replacen(' ', if n == 7 { "T" } else { " " }, 1))
            }
        };
    }
    after.push('}');
    Change { op: Op::Insert, table: "a", key: format!("{{\"id\":{id}}}"), after: Some(after) }
}

/// A journal with this many rows, ten a transaction.
async fn filled(count: u64) -> (tempfile::TempDir, Arc<dyn Journal>) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for id in (0..count).step_by(10) {
        let rows: Vec<_> = (id..count.min(id + 10)).map(event).collect();
        capture.write(0, &rows).await;
    }
    capture.flush().await;
    (dir, journal)
}

fn target(kind: &str, block: &serde_json::Value) -> Arc<dyn Target> {
    Registry::built_in().get(kind).expect("built in").validate(block, false).expect("valid")
}

/// A connector that nothing has delivered for, with this many lanes and batches of this size.
fn fresh(name: &str, target: Arc<dyn Target>, lanes: u16, items: usize) -> Connector {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut connector = connector(&format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)), target);
    connector.tables = vec![("public".into(), "a".into())];
    connector.delivery.lanes = NonZeroU16::new(lanes).expect("not zero");
    connector.delivery.batch_items_max = items;
    connector.delivery.batch_bytes_max = 4 << 20;
    connector.delivery.linger = Duration::from_millis(20);
    connector
}

/// Delivers the journal and answers the events a second.
async fn delivered(journal: &Arc<dyn Journal>, connector: Connector, count: u64) -> f64 {
    let begun = Instant::now();
    let running = start(journal, vec![connector], tillstream::delivery::Mode::UntilCaughtUp);
    let stats = running.stats.clone();
    tokio::time::timeout(Duration::from_secs(600), running.ended()).await.expect("ends").expect("catches up");
    assert_eq!(stats.connectors()[0].delivered.load(Ordering::Relaxed), count);
    count as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_a_second_over_http() {
    let (count, rounds) = Level::pick((4_000, 1), (20_000, 1), (200_000, 5));
    let (_dir, journal) = filled(count).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/v1/events", listener.local_addr().expect("bound"));
    let requests = Arc::new(AtomicU64::new(0));
    let counted = requests.clone();
    let answer = move |_: Bytes| {
        counted.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5))
    };
    let router = Router::new().route("/v1/events", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let block = json!({"url": url, "mode": "batch", "allow_private": true, "columns": {"public.a": COLUMNS}});
    let mut figures = Figures::new(
        "delivery-http",
        "Two hundred thousand events of a local journal over HTTP: 8 lanes, batches of 100, a target that answers in 5 ms.",
    );
    for _ in 0..rounds {
        let rate = delivered(&journal, fresh("engagement", target("http", &block), 8, 100), count).await;
        figures.add("http", "events over HTTP", "events/s", rate);
    }
    let requests = requests.load(Ordering::Relaxed);
    assert!(requests >= rounds * count / 100, "{requests} requests");
    figures.ask("http", "events over HTTP", Asked::AtLeast(60_000.0));
    figures.done();
}

/// Writes rows as fast as one session can: COPY into a table of its own, then one upsert. Answers the rows a second.
async fn bare(client: &mut Client, rows: &[Bytes], count: u64) -> f64 {
    client.batch_execute("TRUNCATE bare").await.expect("empties");
    let begun = Instant::now();
    let transaction = client.transaction().await.expect("begins");
    transaction.batch_execute("CREATE TEMP TABLE stage (LIKE bare) ON COMMIT DROP").await.expect("creates");
    let copy = transaction.copy_in("COPY stage FROM STDIN").await.expect("copies");
    futures_util::pin_mut!(copy);
    for piece in rows {
        copy.send(piece.clone()).await.expect("copies");
    }
    assert_eq!(copy.finish().await.expect("copied"), count);
    let set: Vec<String> = COLUMNS[1..].iter().map(|c| format!("{c} = excluded.{c}")).collect();
    let upsert = format!("INSERT INTO bare SELECT * FROM stage ON CONFLICT (id) DO UPDATE SET {}", set.join(", "));
    transaction.batch_execute(&upsert).await.expect("writes");
    transaction.commit().await.expect("commits");
    count as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_a_second_into_postgres_beside_copy_and_upsert() {
    let (count, rounds) = Level::pick((4_000, 1), (20_000, 1), (1_000_000, 5));
    let (_dir, journal) = filled(count).await;
    let server = Postgres::shared().await;
    let database = Database::empty(server, "delivery").await;
    let mut client = database.connect().await;
    client.batch_execute(&format!("CREATE TABLE a {TABLE}; CREATE TABLE bare {TABLE}")).await.expect("creates");
    let mut rows = Vec::new();
    for id in (0..count).step_by(500) {
        let mut text = String::new();
        for id in id..count.min(id + 500) {
            let line: Vec<_> = values(id).into_iter().map(|v| v.unwrap_or("\\N".to_owned())).collect();
            text.push_str(&line.join("\t"));
            text.push('\n');
        }
        rows.push(Bytes::from(text));
    }
    let block = json!({"url": database.url, "create": true, "tables": {"public.a": {"key": ["id"], "columns": COLUMNS}}});
    let mut figures = Figures::new(
        "delivery-sql",
        "A million events of a local journal into PostgreSQL: 4 lanes, batches of 2000; beside one session that writes the same rows by COPY and one upsert.",
    );
    for _ in 0..rounds {
        let limit = bare(&mut client, &rows, count).await;
        client.batch_execute("TRUNCATE a").await.expect("empties");
        let ours = delivered(&journal, fresh("inventory", target("sql", &block), 4, 2_000), count).await;
        figures.add("sql", "COPY and upsert", "rows/s", limit);
        figures.add("sql", "Tillstream", "rows/s", ours);
        figures.add("sql", "beside COPY and upsert", "ratio", ours / limit);
    }
    let differing = "SELECT count(*) FROM a FULL JOIN bare USING (id) WHERE to_jsonb(a) - '{_version,_deleted}'::text[] IS DISTINCT FROM to_jsonb(bare)";
    let wrong: i64 = client.query_one(differing, &[]).await.expect("reads").get(0);
    assert_eq!(wrong, 0, "both wrote the same rows");
    figures.ask("sql", "beside COPY and upsert", Asked::AtLeast(0.7));
    figures.done();
}

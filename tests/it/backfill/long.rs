//! A long table is backfilled while its rows are inserted, updated, deleted and re-keyed, and the pipeline is killed again and again.
//!
//! The journal is read from its beginning and judged row by row: the last event by version is the table's row, no value goes back, no row
//! comes back, and what a kill made to be read twice is one chunk a reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tillstream::config;
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::journal::{self, From, Log};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::{Event, EventId, Kind, Op, Position};
use tokio_postgres::Client;

use super::shop::{Plan, Shop};
use crate::harness::{Level, PATIENCE, Postgres, RabbitMq, wait_for};

/// Rows that one statement changes.
const BATCH: i64 = 20;
/// Readers of one job.
const READERS: u64 = 3;

/// Changes rows at a rate until told to stop; keys move between bands, and a key that was given up may come back.
async fn churn(client: Client, seed: u64, rows: i64, per_second: u64, stop: Arc<AtomicBool>, changes: Arc<AtomicU64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut next = Instant::now();
    let every = Duration::from_secs_f64(BATCH as f64 / per_second as f64);
    while !stop.load(Ordering::Relaxed) {
        let from = rng.random_range(1..rows * 2);
        let band = format!("id BETWEEN {from} AND {}", from + BATCH - 1);
        let sql = match rng.random_range(0..10) {
            0 => format!("DELETE FROM item WHERE {band}"),
            1 | 2 => format!(
                "INSERT INTO item SELECT n, nextval('changes'), 'new ' || n, n % 100, clock_timestamp() FROM generate_series({from}, {}) n \
                 ON CONFLICT (id) DO NOTHING",
                from + BATCH - 1
            ),
            // To keys of another band, where they are free.
            3 => {
                let to = rng.random_range(1..rows * 2) - from;
                format!(
                    "UPDATE item i SET id = id + {to}, v = nextval('changes') WHERE {band} \
                     AND NOT EXISTS (SELECT FROM item o WHERE o.id = i.id + {to})"
                )
            }
            _ => format!("UPDATE item SET v = nextval('changes'), price = v % 1000, updated_at = clock_timestamp() WHERE {band}"),
        };
        // Two writers may meet on a key; the loser's statement fails as a whole.
        if let Ok(n) = client.execute(&sql, &[]).await {
            changes.fetch_add(n, Ordering::Relaxed);
        }
        next += every;
        tokio::time::sleep_until(next.into()).await;
    }
}

/// What is known of one key.
#[derive(Clone, Copy, Default)]
struct Held {
    version: Position,
    /// The highest value seen so far.
    v: i64,
    live: bool,
    /// The last row's value.
    last_v: i64,
    reads: u32,
}

#[derive(Default)]
struct Judgement {
    rows: HashMap<i64, Held>,
    events: u64,
    reads: u64,
    went_back: u64,
    /// Chunks with rows that another chunk had brought before.
    repeated: HashMap<(u32, u32), u64>,
}

impl Judgement {
    fn take(&mut self, event: &Event) {
        let number = |value: Option<&str>| value.and_then(|v| v.parse::<i64>().ok());
        let Some(id) = number(event.key().next().map(|(_, v)| v)) else { panic!("an event without a key") };
        let held = self.rows.entry(id).or_default();
        if let EventId::Read(read) = event.event_id() {
            self.reads += 1;
            held.reads += 1;
            if held.reads > 1 {
                *self.repeated.entry((read.attempt, read.chunk)).or_default() += 1;
            }
        } else {
            self.events += 1;
        }
        let v = number(event.column("v")).filter(|_| event.op() != Op::Delete);
        if let Some(v) = v {
            // Every change takes a higher number, so in the order of the journal a row's never falls.
            self.went_back += u64::from(v < held.v);
            held.v = held.v.max(v);
        }
        if event.version() >= held.version {
            (held.version, held.live) = (event.version(), event.op() != Op::Delete);
            held.last_v = v.unwrap_or(0);
        }
    }
}

async fn judge(shop: &Shop) -> Judgement {
    let pipeline = config::load(&shop.dir.join("tillstream.yaml"), &Registry::built_in()).expect("the file is right");
    let journal = journal::open(&pipeline.journal, "test").expect("opens");
    let mut judgement = Judgement::default();
    for partition in 0..journal.partitions() {
        let Some(bounds) = journal.bounds(Log::Data(partition)).await.expect("bounds") else { continue };
        let mut reader = journal.reader(Log::Data(partition), From::First).await.expect("a reader");
        let mut filter = Filter::new();
        loop {
            let chunk = reader.next().await.expect("a chunk");
            let end = chunk.first_offset.0 + u64::from(chunk.records);
            filter
                .chunk::<FilterError>(&chunk, |_, verdict| {
                    if let Verdict::Pass(passed) = verdict
                        && matches!(passed.header.kind, Kind::Event | Kind::Read)
                    {
                        judgement.take(&Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event"));
                    }
                    Ok(())
                })
                .expect("no gap");
            if end > bounds.last.0 {
                break;
            }
        }
    }
    judgement
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_among_changes_and_kill_9_ends_equal() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::shared().await;
    let rows = Level::pick(10_000, 60_000, 2_000_000_u32);
    let kill_every = Duration::from_secs(Level::pick(3, 4, 20));
    // Slow enough that several kills fall into it.
    let max_rate = Level::pick("2k", "6k", "16k");
    let shop = Shop::new(server, Plan { broker: Some(broker), delivers: false, ..Plan::new("long", rows) }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let changes = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    // Half of the keys are not there, and not every statement finds what it looks for.
    for seed in 0..6 {
        writers.push(tokio::spawn(churn(shop.pos.connect().await, seed, i64::from(rows), 1_600, stop.clone(), changes.clone())));
    }
    let mut running = shop.run();
    running.ready().await;
    let began = Instant::now();
    let (code, _, err) = shop
        .command(&["backfill", "start", "--table", "public.item", "--id", "all", "--max-rate", max_rate, "--no-brakes", "--detach"])
        .await;
    assert_eq!(code, 0, "{err}");
    let mut kills = 0_u64;
    let state = async || {
        let shown = shop.command(&["backfill", "show", "all", "--format", "json"]).await.1;
        serde_json::from_str::<serde_json::Value>(&shown).ok()
    };
    loop {
        let until = Instant::now() + kill_every;
        let mut done = false;
        while Instant::now() < until && !done {
            tokio::time::sleep(Duration::from_millis(300)).await;
            done = state().await.is_some_and(|view| view["state"].as_str() == Some("done"));
        }
        if done {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(1_200), "it does not come to its end");
        running.process.kill9().await;
        kills += 1;
        running = shop.run();
        running.ready().await;
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no panic");
    }
    let view = wait_for("the last view", PATIENCE, async || state().await).await;
    running.process.terminate(PATIENCE).await;
    let drain = shop.start("drain", &["run", "--until-caught-up"]);
    drain.finish(PATIENCE * 4).await;

    let judgement = judge(&shop).await;
    let client = shop.pos.connect().await;
    let table: HashMap<i64, i64> =
        client.query("SELECT id, v FROM item", &[]).await.expect("rows").iter().map(|row| (row.get(0), row.get(1))).collect();
    let live = judgement.rows.iter().filter(|(_, held)| held.live);
    let resurrected = live.clone().filter(|(id, _)| !table.contains_key(id)).count();
    let differing = table.iter().filter(|(id, v)| judgement.rows.get(id).is_none_or(|held| !held.live || held.last_v != **v)).count();
    let most_reads = judgement.rows.values().map(|held| held.reads).max().unwrap_or(0);
    println!(
        "{rows} rows backfilled in {:.0} s among {} changed rows ({:.0}/s), {kills} kills; journal: {} events, {} reads; table: {} rows; \
         {differing} differ, {resurrected} resurrected, {} values went back; {} chunks repeated, one key read at most {most_reads} times; {} rows evicted",
        took.as_secs_f64(),
        changes.load(Ordering::Relaxed),
        changes.load(Ordering::Relaxed) as f64 / took.as_secs_f64(),
        judgement.events,
        judgement.reads,
        table.len(),
        judgement.went_back,
        judgement.repeated.len(),
        view["progress"]["rows_evicted"],
    );
    assert_eq!((differing, resurrected, judgement.went_back), (0, 0, 0));
    assert!(kills > 0 && judgement.reads > u64::from(rows) / 2);
    // A key that moved may be read where it was and where it came to; a chunk is repeated once a kill by each reader.
    let repeated = judgement.repeated.values().filter(|rows| **rows > 50).count() as u64;
    assert!(repeated <= kills * READERS, "{repeated} chunks repeated");
    shop.drop(server).await;
}

//! How fast a backfill is beside COPY of the same table, what it takes, and what it does to everybody else. Only ratios within one run mean
//! anything on a shared machine; `tests/bench.sh backfill` runs these with two million rows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tillstream::config;
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::journal::{self, From, Journal, Log};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::{Event, Kind, Op};

use super::shop::{Plan, Shop};
use crate::bench::figures::{Asked, Figures};
use crate::harness::{Level, PATIENCE, Postgres, RabbitMq};

/// RabbitMQ's own default. Each time it begins a segment it stands still for some 60 ms (4.0.5, here), whoever writes.
const SEGMENT: &str = ", segment: 500MB";

/// Seconds that COPY of the table takes into a program that throws it away.
async fn copy_seconds(server: &Postgres, shop: &Shop) -> f64 {
    let began = Instant::now();
    let status = tokio::process::Command::new(server.program("psql").await)
        .args([&shop.pos.url, "-qAtc", "COPY (SELECT * FROM item) TO STDOUT"])
        .stdout(std::process::Stdio::null())
        .status()
        .await
        .expect("psql runs");
    assert!(status.success());
    began.elapsed().as_secs_f64()
}

async fn throughput(figures: &mut Figures, kind: &str, broker: Option<&RabbitMq>, rabbitmq: &str) {
    let server = Postgres::shared().await;
    let rows = Level::pick(20_000, 100_000, 2_000_000_u32);
    let rounds = Level::pick(1, 1, 5);
    let shop = Shop::new(server, Plan { broker, rabbitmq, delivers: false, wide: true, ..Plan::new("speed", rows) }).await;
    let running = shop.run();
    running.ready().await;
    copy_seconds(server, &shop).await;
    for round in 0..rounds {
        let copy = copy_seconds(server, &shop).await;
        let id = format!("speed-{round}");
        let (code, summary) = shop.summary(&["backfill", "start", "--table", "public.item", "--id", &id, "--no-brakes"]).await;
        assert_eq!((code, summary["rows"].as_u64()), (0, Some(u64::from(rows))), "{summary}");
        let seconds = summary["seconds"].as_f64().expect("seconds");
        let (copy_rate, rate) = (f64::from(rows) / copy, f64::from(rows) / seconds);
        figures.add(kind, "COPY to /dev/null", "rows/s", copy_rate);
        figures.add(kind, &format!("backfill into {kind}"), "rows/s", rate);
        figures.add(kind, &format!("backfill into {kind} beside COPY"), "ratio", rate / copy_rate);
    }
    let rss = running.process.peak_rss_kib() as f64 / 1024.0;
    figures.add(kind, &format!("backfill into {kind}: peak memory"), "MiB", rss);
    running.process.terminate(PATIENCE).await;
    assert!(rss < 192.0, "{rss} MiB");
    shop.drop(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_a_second_beside_copy() {
    let mut figures =
        Figures::new("backfill", "Two million rows of thirteen columns on one connection, beside text COPY of the same table.");
    throughput(&mut figures, "RabbitMQ", Some(RabbitMq::shared().await), "").await;
    throughput(&mut figures, "RabbitMQ, uncompressed", Some(RabbitMq::shared().await), ", compression: none").await;
    throughput(&mut figures, "a local journal", None, "").await;
    figures.ask("RabbitMQ", "backfill into RabbitMQ beside COPY", Asked::AtLeast(0.6));
    figures.done();
}

/// What each live event said of its `v`, when it was readable in the journal, and how many milliseconds after the time of its commit: read until
/// told to stop.
async fn arrivals(journal: Arc<dyn Journal>, stop: Arc<AtomicBool>) -> Vec<(i64, Instant, f64)> {
    let mut all = Vec::new();
    let from = journal.bounds(Log::Data(0)).await.expect("bounds").map_or(From::First, |b| From::Offset(b.last));
    let mut reader = journal.reader(Log::Data(0), from).await.expect("a reader");
    let mut filter = Filter::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(chunk) = tokio::time::timeout(Duration::from_millis(500), reader.next()).await else { continue };
        let arrived = Instant::now();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros() as i64;
        filter
            .chunk::<FilterError>(&chunk.expect("a chunk"), |_, verdict| {
                if let Verdict::Pass(passed) = verdict
                    && passed.header.kind == Kind::Event
                {
                    let event = Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event");
                    if event.op() == Op::Update
                        && let Some(committed) = event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok())
                    {
                        let body: serde_json::Value = serde_json::from_slice(passed.body).expect("JSON");
                        let v = body["after"]["v"].as_i64().expect("a number");
                        all.push((v, arrived, (now - committed.as_microsecond()) as f64 / 1000.0));
                    }
                }
                Ok(())
            })
            .expect("no gap");
    }
    all
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

/// Live events while nothing else happens and while a backfill runs as fast as it can, in turn.
#[tokio::test(flavor = "multi_thread")]
async fn live_events_beside_a_backfill_at_full_speed() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::shared().await;
    let rows = Level::pick(20_000, 50_000, 2_000_000_u32);
    let seconds = Level::pick(1, 2, 15);
    let shop =
        Shop::new(server, Plan { broker: Some(broker), delivers: false, wide: true, rabbitmq: SEGMENT, ..Plan::new("live", rows) }).await;
    // One partition: what is measured must not be split.
    let path = shop.dir.join("tillstream.yaml");
    let text = std::fs::read_to_string(&path).expect("readable").replace("partitions: 2", "partitions: 1");
    std::fs::write(&path, text).expect("writable");
    let running = shop.run();
    running.ready().await;
    let pipeline = config::load(&path, &Registry::built_in()).expect("the file is right");
    let journal = journal::open(&pipeline.journal, "test").expect("opens");
    let client = shop.pos.connect().await;
    let stop_writing = Arc::new(AtomicBool::new(false));
    let stopping = stop_writing.clone();
    let returned: Arc<Mutex<HashMap<i64, Instant>>> = Arc::default();
    let returns = returned.clone();
    let writer = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let mut id = 0;
        while !stopping.load(Ordering::Relaxed) {
            tick.tick().await;
            id = id % 1_000 + 1;
            let update = "UPDATE item SET v = nextval('changes') WHERE id = $1 RETURNING v";
            let v: i64 = client.query_one(update, &[&i64::from(id)]).await.expect("updates").get(0);
            returns.lock().expect("not poisoned").insert(v, Instant::now());
        }
    });
    let mut p99 = [Vec::new(), Vec::new()];
    for round in 0..Level::pick(1, 1, 3) {
        for with in [false, true] {
            let stop = Arc::new(AtomicBool::new(false));
            let reading = tokio::spawn(arrivals(journal.clone(), stop.clone()));
            let mut loads = Vec::new();
            let began = Instant::now();
            let mut count = 0;
            while began.elapsed() < Duration::from_secs(seconds) {
                if with {
                    let id = format!("flat-out-{round}-{count}");
                    let (code, summary) = shop.summary(&["backfill", "start", "--table", "public.item", "--id", &id, "--no-brakes"]).await;
                    assert_eq!(code, 0, "{summary}");
                    loads.push(f64::from(rows) / summary["seconds"].as_f64().expect("seconds"));
                    count += 1;
                } else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            stop.store(true, Ordering::Relaxed);
            let arrived = reading.await.expect("no panic");
            // From the moment COMMIT came back: before that nobody was told that anything is committed. The time of the commit itself lies
            // before the flush of the WAL, which waits for a disk that the broker of these tests writes to as well; it is printed beside.
            let back = std::mem::take(&mut *returned.lock().expect("not poisoned"));
            let after = |(v, at, _): &(i64, Instant, f64)| Some(at.saturating_duration_since(*back.get(v)?).as_secs_f64() * 1000.0);
            let mut all: Vec<f64> = arrived.iter().filter_map(after).collect();
            let mut stamped: Vec<f64> = arrived.iter().map(|(_, _, ms)| *ms).collect();
            all.sort_by(f64::total_cmp);
            stamped.sort_by(f64::total_cmp);
            println!(
                "{}: {} events, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms after COMMIT (p99 {:.1} ms after its time stamp){}",
                if with { "with a backfill" } else { "without" },
                all.len(),
                quantile(&all, 0.5),
                quantile(&all, 0.99),
                quantile(&all, 1.0),
                quantile(&stamped, 0.99),
                loads.first().map_or_else(String::new, |rate| format!(" ({count} backfills, the first at {rate:.0} rows/s)"))
            );
            p99[usize::from(with)].push(quantile(&all, 0.99));
        }
    }
    for side in &mut p99 {
        side.sort_by(f64::total_cmp);
    }
    let [without, with] = p99.map(|side| side[side.len() / 2]);
    println!("median p99: {without:.1} ms without, {with:.1} ms with a backfill, ratio {:.2}", with / without);
    assert!(Level::get() != Level::Long || with < without * 2.0);
    stop_writing.store(true, Ordering::Relaxed);
    writer.await.expect("no panic");
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

/// A busy source: transactions a second without, with a backfill that minds its brakes, and without again.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_source_does_not_notice_a_backfill_with_brakes() {
    let server = Postgres::shared().await;
    let rows = Level::pick(20_000, 50_000, 2_000_000_u32);
    let seconds = Level::pick(1, 2, 20);
    let more = "protect: {active_sessions: 3}\n";
    let shop = Shop::new(server, Plan { more, delivers: false, ..Plan::new("busy", rows) }).await;
    let pgbench = server.program("pgbench").await;
    let bench = async |arguments: &[&str]| {
        let output = tokio::process::Command::new(&pgbench).args(arguments).arg(&shop.pos.url).output().await.expect("pgbench runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    bench(&["-i", "-q", "-s", Level::pick("1", "1", "10")]).await;
    let running = shop.run();
    running.ready().await;
    let for_seconds = seconds.to_string();
    let tps = async || {
        let text = bench(&["-n", "-c", "6", "-j", "2", "-T", &for_seconds]).await;
        let line = text.lines().find(|l| l.starts_with("tps = ")).expect("a rate");
        line.split_whitespace().nth(2).and_then(|t| t.parse::<f64>().ok()).expect("a number")
    };
    tps().await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..Level::pick(1, 1, 3) {
        without.push(tps().await);
        let id = format!("busy-{round}");
        let job = shop.start(&format!("backfill-{round}"), &["backfill", "start", "--table", "public.item", "--id", &id]);
        with.push(tps().await);
        let shown = shop.command(&["backfill", "show", &id]).await.1;
        println!("{}", shown.lines().next().unwrap_or_default());
        shop.command(&["backfill", "cancel", &id]).await;
        job.wait(PATIENCE).await;
        without.push(tps().await);
    }
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let spread = (without.iter().copied().fold(f64::MIN, f64::max) - without.iter().copied().fold(f64::MAX, f64::min)) / mean(&without);
    println!(
        "pgbench: without {without:.0?}, with {with:.0?} tps; mean {:.0} and {:.0}: a drop of {:.1} %, the A/A spread is {:.1} %",
        mean(&without),
        mean(&with),
        (1.0 - mean(&with) / mean(&without)) * 100.0,
        spread * 100.0
    );
    let drop = 1.0 - mean(&with) / mean(&without);
    assert!(Level::get() != Level::Long || drop < 0.05 || drop < spread);
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

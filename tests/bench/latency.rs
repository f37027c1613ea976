//! How long after its commit a change is readable in the journal and takes effect in targets, beside bare receipt and the peer; and how long a start takes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::journal::{From, Log, Reader};
use tillstream_schemas::{Event, Kind};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_postgres::{AsyncMessage, NoTls};

use super::capture::open;
use super::debezium;
use super::figures::{Asked, Figures};
use super::shop::{Shop, write};
use crate::harness::{Database, Level, PATIENCE, Process, RabbitMq, free_port, judge_log, wait_for};
use crate::wire::receiver;

/// Sales a second: a thousand rows.
const RATE: u32 = 77;

/// The first sales of a round only warm up, a second of them in a long run.
const WARM: u64 = RATE as u64;

/// When something was seen, by the payment's number.
type Seen = Arc<Mutex<HashMap<u64, Instant>>>;

/// Sells at a steady rate, and answers when each COMMIT came back.
async fn sell(shop: &Shop, from: u64, count: u64) -> HashMap<u64, Instant> {
    let statement = shop.pos.prepare("CALL sell($1)").await.expect("prepares");
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut returned = HashMap::new();
    for n in from..from + count {
        tick.tick().await;
        shop.pos.execute(&statement, &[&(n as i64)]).await.expect("sells");
        returned.insert(n, Instant::now());
    }
    returned
}

/// Median and 99th percentile of the milliseconds between, without the first sales; every sale has to be seen.
fn quantiles(what: &str, returned: &HashMap<u64, Instant>, seen: &HashMap<u64, Instant>, warm: u64) -> [f64; 2] {
    let first = returned.keys().min().copied().unwrap_or(0) + warm;
    let mut all: Vec<f64> = returned
        .iter()
        .filter(|(n, _)| **n >= first)
        .map(|(n, at)| {
            let seen = seen.get(n).unwrap_or_else(|| panic!("{what}: sale {n} was not seen"));
            seen.saturating_duration_since(*at).as_secs_f64() * 1000.0
        })
        .collect();
    all.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|q| all[((all.len() - 1) as f64 * q) as usize])
}

/// Waits until as many were seen.
async fn all(what: &str, seen: &Seen, returned: &HashMap<u64, Instant>) {
    wait_for(what, PATIENCE, async || returned.keys().all(|n| seen.lock().expect("never poisoned").contains_key(n)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_there_within_milliseconds() {
    let shop = Shop::new("latency").await;
    let broker = RabbitMq::shared().await;
    let (sales, warm) = Level::pick((20, 2), (40, 5), (10 * u64::from(RATE), WARM));
    let mut figures = Figures::new(
        "latency",
        "A thousand rows a second in sales of thirteen changes, each committed before the next; milliseconds from COMMIT's return. What a round shows is its own median and 99th percentile.",
    );
    let peer = debezium::classes().filter(|_| Level::get() == Level::Long);
    if peer.is_none() {
        figures.incomplete = Some("without Debezium".to_owned());
    }
    let mut next = 1;
    for round in 0..Level::pick(1, 1, 5) {
        let mut add = |who: &str, [p50, p99]: [f64; 2]| {
            figures.add("live", &format!("{who}: p50"), "ms", p50);
            figures.add("live", &format!("{who}: p99"), "ms", p99);
        };
        add("bare receipt", bare(&shop, round, next, sales, warm).await);
        next += sales;
        for (who, times) in tillstream(&shop, broker, round, next, sales, warm).await {
            add(who, times);
        }
        next += sales;
        let Some(classes) = &peer else { continue };
        for (who, settings) in [("Debezium, poll.interval.ms=5", &["poll.interval.ms=5"][..]), ("Debezium, defaults", &[])] {
            let (times, used) = embedded(classes, &shop, &format!("peer{round}_{}", settings.len()), next, sales, warm, settings).await;
            add(who, times);
            next = used;
        }
    }
    figures.ask("live", "readable in RabbitMQ: p50", Asked::AtMost(2.5));
    figures.ask("live", "readable in RabbitMQ: p99", Asked::AtMost(10.0));
    figures.ask("live", "effect in PostgreSQL: p99", Asked::AtMost(30.0));
    figures.ask("live", "effect over HTTP: p99", Asked::AtMost(30.0));
    figures.done();
}

async fn slot(shop: &Shop, name: &str) {
    shop.pos.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&name]).await.expect("a slot");
}

/// Our connection alone: the order of commits is that of sales.
async fn bare(shop: &Shop, round: u32, from: u64, sales: u64, warm: u64) -> [f64; 2] {
    let name = format!("bare{round}");
    slot(shop, &name).await;
    let (url, of) = (shop.database.url.clone(), name.clone());
    let receiving = tokio::spawn(async move { receiver::times(&url, &of, "till", sales as usize).await });
    let returned = sell(shop, from, sales).await;
    let times = tokio::time::timeout(PATIENCE, receiving).await.expect("every sale is received").expect("no panic");
    let seen = (from..).zip(times).collect();
    shop.drop_slot(&name).await;
    quantiles("bare receipt", &returned, &seen, warm)
}

/// The whole of it: into RabbitMQ, and from there into PostgreSQL and to an API, all at once.
async fn tillstream(shop: &Shop, broker: &RabbitMq, round: u32, from: u64, sales: u64, warm: u64) -> [(&'static str, [f64; 2]); 3] {
    let name = format!("live{round}");
    slot(shop, &name).await;
    let stock = Database::empty(&shop.server, "stock").await;
    let in_stock: Seen = Arc::default();
    stock_up(&stock, in_stock.clone()).await;
    let port = free_port();
    let api: Seen = Arc::default();
    let address = listen(api.clone()).await;
    let file = shop.file(
        &name,
        broker,
        "",
        &format!("admin: {{listen: \"127.0.0.1:{port}\"}}\nconnectors: [stock{round}.yaml, guests{round}.yaml]\n"),
    );
    write(
        &shop.dir.join(format!("stock{round}.yaml")),
        &format!(
            "version: 1\nconnector: stock\nfrom: {{tables: [public.sale, public.sale_item, public.payment]}}\non_delete: tombstone\nto:\n  sql:\n    url: {}\n    create: true\n    \
             tables:\n      public.sale: {{key: [id], columns: [status, total]}}\n      public.sale_item: {{key: [id], columns: [sale_id, item, quantity]}}\n      \
             public.payment: {{key: [id], columns: [sale_id, amount]}}\n",
            stock.url
        ),
    );
    write(
        &shop.dir.join(format!("guests{round}.yaml")),
        &format!(
            "version: 1\nconnector: guests\nfrom: {{tables: [public.sale, public.sale_item, public.payment]}}\non_delete: tombstone\nto:\n  http: {{url: \"http://{address}/events\", \
             allow_private: true, mode: batch, columns: {{public.sale: [status], public.sale_item: [item], public.payment: [amount]}}}}\n",
        ),
    );
    let journal = open(&file);
    let process = Process::start(&shop.dir, &name, &["run", "--config", file.to_str().expect("UTF-8")], &[]);
    wait_for("the pipeline to be ready", PATIENCE, async || {
        reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.ok().filter(|answer| answer.status().is_success())
    })
    .await;
    let stored: Seen = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let newest = journal.bounds(Log::Data(0)).await.expect("bounds").map_or(From::First, |bounds| From::Offset(bounds.last));
    let reader = journal.reader(Log::Data(0), newest).await.expect("a reader");
    let reading = tokio::spawn(payments(reader, stored.clone(), stop.clone()));
    let returned = sell(shop, from, sales).await;
    for (what, seen) in [("every sale in the journal", &stored), ("every sale in PostgreSQL", &in_stock), ("every sale over HTTP", &api)] {
        all(what, seen, &returned).await;
    }
    stop.store(true, Ordering::Relaxed);
    process.terminate(PATIENCE).await;
    reading.await.expect("no panic");
    judge_log(&shop.dir.join(format!("{name}.err")), &[]);
    shop.drop_slot(&name).await;
    stock.drop(&shop.server).await;
    let of = |what: &str, seen: &Seen| quantiles(what, &returned, &seen.lock().expect("never poisoned"), warm);
    [
        ("readable in RabbitMQ", of("the journal", &stored)),
        ("effect in PostgreSQL", of("PostgreSQL", &in_stock)),
        ("effect over HTTP", of("HTTP", &api)),
    ]
}

/// An API that answers at once and remembers when each payment came.
async fn listen(seen: Seen) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let take = move |body: Bytes| {
        let now = Instant::now();
        let list: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let mut seen = seen.lock().expect("never poisoned");
        for event in list["items"].as_array().into_iter().flatten().filter(|event| event["table"] == "payment") {
            seen.entry(event["key"]["id"].as_u64().expect("a number")).or_insert(now);
        }
        std::future::ready(())
    };
    let router = Router::new().route("/events", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Makes a target's tables, and remembers when each payment was committed there.
async fn stock_up(target: &Database, seen: Seen) {
    let client = target.connect().await;
    client
        .batch_execute(
            "CREATE TABLE sale (id bigint PRIMARY KEY, status text, total numeric(10,2), _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false);
             CREATE TABLE sale_item (id bigint PRIMARY KEY, sale_id bigint, item text, quantity numeric(10,3), _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false);
             CREATE TABLE payment (id bigint PRIMARY KEY, sale_id bigint, amount numeric(10,2), _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false);
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('paid', NEW.id::text); RETURN NEW; END $$;
             CREATE TRIGGER tell AFTER INSERT OR UPDATE ON payment FOR EACH ROW EXECUTE FUNCTION tell()",
        )
        .await
        .expect("a trigger");
    let (listener, mut connection) = tokio_postgres::connect(&target.url, NoTls).await.expect("the server accepts");
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(paid) = message {
                let now = Instant::now();
                seen.lock().expect("never poisoned").entry(paid.payload().parse().expect("a number")).or_insert(now);
            }
        }
    });
    listener.batch_execute("LISTEN paid").await.expect("listens");
    // It listens for as long as the database is there.
    std::mem::forget(listener);
}

/// Reads the journal and remembers when each payment was readable.
async fn payments(mut reader: Box<dyn Reader>, seen: Seen, stop: Arc<AtomicBool>) {
    let mut filter = Filter::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(chunk) = tokio::time::timeout(Duration::from_millis(200), reader.next()).await else { continue };
        let now = Instant::now();
        filter
            .chunk::<FilterError>(&chunk.expect("a chunk"), |_, verdict| {
                if let Verdict::Pass(passed) = verdict
                    && passed.header.kind == Kind::Event
                {
                    let event = Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event");
                    if event.table() == Some("payment") {
                        let id = event.column("id").and_then(|id| id.parse().ok()).expect("a number");
                        seen.lock().expect("never poisoned").entry(id).or_insert(now);
                    }
                }
                Ok(())
            })
            .expect("no gap");
    }
}

/// The peer, which tells each payment with the wall clock's time. Answers the next sale's number too.
async fn embedded(
    classes: &std::path::Path,
    shop: &Shop,
    name: &str,
    from: u64,
    sales: u64,
    warm: u64,
    settings: &[&str],
) -> ([f64; 2], u64) {
    slot(shop, name).await;
    let mut child = debezium::start(classes, &shop.server, &shop.database.name, name, 0, settings);
    let told: Arc<Mutex<HashMap<u64, u64>>> = Arc::default();
    let (lines, tells) = (BufReader::new(child.stdout.take().expect("piped")), told.clone());
    tokio::spawn(async move {
        let mut lines = lines.lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["payment", id, at] = words[..] {
                tells.lock().expect("never poisoned").insert(id.parse().expect("a number"), at.parse().expect("microseconds"));
            }
        }
    });
    // It streams once it has told something.
    let mut next = from;
    let deadline = Instant::now() + PATIENCE * 2;
    while told.lock().expect("never poisoned").is_empty() {
        assert!(Instant::now() < deadline, "the peer tells nothing");
        next += sell(shop, next, 10).await.len() as u64;
    }
    let (instant, wall) = (Instant::now(), SystemTime::now());
    let returned = sell(shop, next, sales).await;
    wait_for("every sale at the peer", PATIENCE, async || {
        returned.keys().all(|n| told.lock().expect("never poisoned").contains_key(n)).then_some(())
    })
    .await;
    child.kill().await.expect("a child can be killed");
    wait_for("the slot to be free", PATIENCE, async || shop.pos.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.ok()).await;
    let wall = wall.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let seen = told
        .lock()
        .expect("never poisoned")
        .iter()
        .map(|(n, us)| (*n, instant + Duration::from_micros(*us).saturating_sub(wall)))
        .collect();
    (quantiles("the peer", &returned, &seen, warm), next + sales)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_event_is_streamed_soon_after_the_start() {
    let shop = Shop::new("start").await;
    let broker = RabbitMq::shared().await;
    let mut figures = Figures::new(
        "start",
        "From the start of the program, with a slot that has something to tell, to the first event that can be read from RabbitMQ.",
    );
    let rounds = Level::pick(1, 1, 5);
    shop.sell(1).await;
    for round in 0..rounds {
        let name = format!("start{round}");
        shop.slot(&name).await;
        let file = shop.file(&name, broker, "", "");
        let journal = open(&file);
        journal.set_up().await.expect("sets up");
        let mut reader = journal.reader(Log::Data(0), From::First).await.expect("a reader");
        let began = Instant::now();
        let process = Process::start(
            &shop.dir,
            &name,
            &["run", "--config", file.to_str().expect("UTF-8"), "--only", "capture", "--listen", &format!("127.0.0.1:{}", free_port())],
            &[],
        );
        let mut filter = Filter::new();
        let first = async {
            while filter.counts().events == 0 {
                let chunk = reader.next().await.expect("a chunk");
                filter.chunk(&chunk, |_, _| Ok::<(), FilterError>(())).expect("a sound log");
            }
        };
        tokio::time::timeout(PATIENCE, first).await.expect("an event comes");
        figures.add("start", "start to the first event streamed", "ms", began.elapsed().as_secs_f64() * 1000.0);
        process.terminate(PATIENCE).await;
        shop.drop_slot(&name).await;
    }
    figures.ask("start", "start to the first event streamed", Asked::AtMost(300.0));
    figures.done();
}

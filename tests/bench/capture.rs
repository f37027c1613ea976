//! Backlogs captured into RabbitMQ and into a journal that throws everything away, beside `pg_recvlogical`, a bare receiver, a bare publisher, and the
//! peer, on the same slot contents, in turn, in the same minutes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tillstream::capture::catalog::Catalog;
use tillstream::capture::wire::PgSource;
use tillstream::capture::{self, CaptureParts, Mode, Settings};
use tillstream::config;
use tillstream::delivery::filter::{Filter, FilterError};
use tillstream::journal::{self, Batch, From, Journal, Log, ProducerName, PublishId};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::Lsn;
use tokio::process::Command;

use super::debezium;
use super::discard::Discard;
use super::figures::{Asked, Figures};
use super::process::{Measured, Spent, usage};
use super::shop::{SALE, Shop};
use crate::harness::{Level, PATIENCE, Process, RabbitMq, free_port, judge_log};
use crate::wire::receiver;

/// The most a draining process may hold in any run, MiB.
const RSS_MIB_MAX: f64 = 128.0;

/// Time for the slowest reader.
const DEADLINE: Duration = Duration::from_secs(600);

/// How often a reader's processes are looked at.
const LOOK: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_many_rows_drains_in_constant_memory() {
    let rows = Level::pick(20_000, 200_000, 1_000_000);
    let shop = Shop::new("bulk").await;
    shop.deliver(rows).await;
    drain("bulk", "One transaction of a million rows.", &shop, rows, [1.0, 0.8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_small_transactions_drains_in_constant_memory() {
    let sales = Level::pick(1_500, 15_000, 100_000);
    let shop = Shop::new("small").await;
    shop.sell(sales).await;
    drain("small", "A hundred thousand sales of thirteen changes each.", &shop, sales * SALE, [2.0, 0.5]).await;
}

/// `asked`: the least rate and the most CPU time of the server beside `pg_recvlogical`.
async fn drain(name: &str, about: &str, shop: &Shop, changes: u64, asked: [f64; 2]) {
    let broker = RabbitMq::shared().await;
    let end = shop.flushed().await;
    let peer = debezium::classes().filter(|_| Level::get() == Level::Long);
    let rounds = Level::pick(1, 1, 5);
    let mut figures = Figures::new(
        &format!("capture-{name}"),
        &format!("{about} Every reader takes a copy of the same slot, one after the other in each round."),
    );
    let version: String = shop.pos.query_one("SHOW server_version", &[]).await.expect("reads").get(0);
    figures.versions.push(format!("PostgreSQL {}", version.split_whitespace().next().unwrap_or_default()));
    match &peer {
        Some(_) => figures.versions.push("Debezium 3.6.3".to_owned()),
        None => figures.incomplete = Some("without Debezium".to_owned()),
    }
    for round in 0..rounds {
        let theirs = pg_recvlogical(shop, &end, changes, round).await;
        let bare = bare(shop, "bare", &end, changes, round).await;
        let ours = tillstream(shop, broker, changes, round).await;
        let again = self::bare(shop, "again", &end, changes, round).await;
        let discard = discard(shop, changes, round).await;
        let (published, broker_us) = publish(broker, &shop.dir, changes).await;
        let peer = match &peer {
            Some(classes) => Some(embedded(classes, shop, changes, round).await),
            None => None,
        };
        assert!(ours.rss_mib < RSS_MIB_MAX, "{} MiB for {changes} changes", ours.rss_mib);
        let mut add = |what: &str, unit: &str, value: f64| figures.add(name, what, unit, value);
        for (who, m) in [
            ("pg_recvlogical to /dev/null", Some(theirs)),
            ("bare receiver", Some(bare)),
            ("Tillstream into RabbitMQ", Some(ours)),
            ("Debezium's engine, discarding", peer),
        ] {
            let Some(m) = m else { continue };
            add(&format!("{who}: rate"), "changes/s", m.per_second);
            if who != "bare receiver" {
                add(&format!("{who}: own CPU"), "us/change", m.own_us);
                add(&format!("{who}: peak memory"), "MiB", m.rss_mib);
            }
            add(&format!("{who}: server CPU"), "us/change", m.server_us);
        }
        add("Tillstream into RabbitMQ: broker CPU", "us/change", ours.broker_us);
        add("Tillstream, discarding: rate", "changes/s", discard.per_second);
        add("Tillstream, discarding: server CPU", "us/change", discard.server_us);
        add("bare publisher of ready batches: rate", "entries/s", published);
        add("bare publisher of ready batches: broker CPU", "us/entry", broker_us);
        let limit = (bare.per_second + again.per_second) / 2.0;
        add("noise: bare receiver beside itself", "ratio", again.per_second / bare.per_second);
        add("into RabbitMQ beside the bare receiver: rate", "ratio", ours.per_second / limit);
        add("discarding beside the bare receiver: rate", "ratio", discard.per_second / again.per_second);
        add("into RabbitMQ beside pg_recvlogical: rate", "ratio", ours.per_second / theirs.per_second);
        add("into RabbitMQ beside pg_recvlogical: server CPU", "ratio", ours.server_us / theirs.server_us);
        if let Some(peer) = peer {
            add("beside Debezium, which discards: rate", "ratio", ours.per_second / peer.per_second);
            add("Debezium's own CPU beside ours", "ratio", peer.own_us / ours.own_us);
        }
    }
    let complete = peer.is_some();
    let asked = [
        ("into RabbitMQ beside the bare receiver: rate", Asked::AtLeast(0.85)),
        ("discarding beside the bare receiver: rate", Asked::AtLeast(0.95)),
        ("into RabbitMQ beside pg_recvlogical: rate", Asked::AtLeast(asked[0])),
        ("into RabbitMQ beside pg_recvlogical: server CPU", Asked::AtMost(asked[1])),
        ("Tillstream into RabbitMQ: broker CPU", Asked::AtMost(1.0)),
        ("Tillstream into RabbitMQ: own CPU", Asked::AtMost(2.3)),
        ("Tillstream into RabbitMQ: peak memory", Asked::AtMost(64.0)),
        ("Debezium's own CPU beside ours", Asked::AtLeast(30.0)),
    ];
    for (what, asked) in asked.into_iter().filter(|(what, _)| complete || !what.starts_with("Debezium")) {
        figures.ask(name, what, asked);
    }
    figures.done();
    for entry in std::fs::read_dir(&shop.dir).expect("readable").flatten() {
        if entry.path().extension().is_some_and(|e| e == "err") {
            judge_log(&entry.path(), &[]);
        }
    }
}

/// Drains a copy of the slot into a stream of its own.
async fn tillstream(shop: &Shop, broker: &RabbitMq, changes: u64, round: u32) -> Measured {
    let name = format!("till{round}");
    shop.slot(&name).await;
    let file = shop.file(&name, broker, "", "");
    drained(shop, broker, &name, &file, changes).await
}

/// `tillstream run --only capture --until-caught-up`, from its start to its end, with a pipeline's file whose slot has this name and is dropped then.
pub(super) async fn drained(shop: &Shop, broker: &RabbitMq, name: &str, file: &Path, changes: u64) -> Measured {
    let journal = open(file);
    journal.set_up().await.expect("sets up");
    let broker = broker.pid().await.trim().parse().expect("a process");
    let before = usage(broker).expect("the broker runs").0;
    let began = Instant::now();
    let listen = format!("127.0.0.1:{}", free_port());
    let arguments = ["run", "--config", file.to_str().expect("UTF-8"), "--only", "capture", "--until-caught-up", "--listen", &listen];
    let mut process = Process::start(&shop.dir, name, &arguments, &[]);
    let (mut spent, mut walsender) = (Spent::default(), None);
    let status = loop {
        if let Some(status) = process.ended() {
            break status;
        }
        spent.look(process.pid(), &mut walsender, &shop.pos, name).await;
        assert!(began.elapsed() < DEADLINE, "the drain does not end; {}", process.stderr());
        tokio::time::sleep(LOOK).await;
    };
    let elapsed = began.elapsed();
    let after = usage(broker).expect("the broker runs").0;
    assert!(status.success(), "{status}: {}", process.stderr());
    shop.drop_slot(name).await;
    assert_eq!(events(journal.as_ref()).await, changes, "every change is in the journal, once");
    spent.measured(changes, elapsed, after.saturating_sub(before))
}

pub(super) fn open(file: &Path) -> Arc<dyn Journal> {
    let config = config::load(file, &Registry::built_in()).unwrap_or_else(|report| panic!("{}", report.render(false)));
    journal::open(&config.journal, "bench").expect("a journal")
}

/// Changes that a journal holds.
async fn events(journal: &dyn Journal) -> u64 {
    let mut events = 0;
    for partition in 0..journal.partitions() {
        let log = Log::Data(partition);
        let Some(bounds) = journal.bounds(log).await.expect("bounds") else { continue };
        let mut reader = journal.reader(log, From::First).await.expect("a reader");
        let mut filter = Filter::new();
        loop {
            let chunk = reader.next().await.expect("a chunk");
            filter.chunk(&chunk, |_, _| Ok::<(), FilterError>(())).expect("a sound log");
            if chunk.next_offset() > bounds.last {
                break;
            }
        }
        events += filter.counts().events;
    }
    events
}

/// Capture without a broker, in this process.
async fn discard(shop: &Shop, changes: u64, round: u32) -> Measured {
    let name = format!("discard{round}");
    shop.slot(&name).await;
    let source = config::Source {
        slot: name.clone(),
        publication: "till".to_owned(),
        tables: shop.tables(),
        ..crate::wire::server::source(&shop.database.url)
    };
    let catalog = Catalog::connect(&source, "bench", "bench").await.expect("the server accepts");
    let primary_keys = catalog.primary_keys(&source.tables).await.expect("keys");
    drop(catalog);
    let journal = Discard::new();
    let parts = CaptureParts {
        source: Arc::new(PgSource::new(&source, "bench")),
        journal: Arc::new(journal.clone()),
        settings: Settings {
            pipeline: "bench".to_owned(),
            source,
            primary_keys,
            oids: Default::default(),
            row_bytes_max: capture::ROW_BYTES_MAX,
            owner: "bench".to_owned(),
            seed: None,
        },
        hooks: None,
        stats: Arc::default(),
        stop: Default::default(),
    };
    let began = Instant::now();
    let capturing = tokio::spawn(capture::run(parts, Mode::UntilCaughtUp));
    let (mut spent, mut walsender) = (Spent::default(), None);
    while !capturing.is_finished() {
        spent.look(std::process::id(), &mut walsender, &shop.pos, &name).await;
        assert!(began.elapsed() < DEADLINE, "the drain does not end");
        tokio::time::sleep(LOOK).await;
    }
    let elapsed = began.elapsed();
    capturing.await.expect("no panic").expect("catches up");
    let (entries, bytes) = journal.counted();
    assert!(entries >= changes && bytes > changes * 100, "{entries} entries, {bytes} bytes");
    shop.drop_slot(&name).await;
    spent.measured(changes, elapsed, Duration::ZERO)
}

/// The limit: our connection, whose frames are counted and thrown away. It runs in this process, so its memory and CPU time mean nothing.
async fn bare(shop: &Shop, kind: &str, end: &str, changes: u64, round: u32) -> Measured {
    let name = format!("{kind}{round}");
    shop.slot(&name).await;
    let end: Lsn = end.parse().expect("an LSN");
    let (url, slot) = (shop.database.url.clone(), name.clone());
    let began = Instant::now();
    let counting = tokio::spawn(async move { receiver::count(&url, &slot, "till", end).await });
    let (mut spent, mut walsender) = (Spent::default(), None);
    while !counting.is_finished() {
        spent.look(std::process::id(), &mut walsender, &shop.pos, &name).await;
        assert!(began.elapsed() < DEADLINE, "the bare receiver does not end");
        tokio::time::sleep(LOOK).await;
    }
    let elapsed = began.elapsed();
    assert_eq!(counting.await.expect("no panic"), changes);
    shop.drop_slot(&name).await;
    spent.measured(changes, elapsed, Duration::ZERO)
}

async fn pg_recvlogical(shop: &Shop, end: &str, changes: u64, round: u32) -> Measured {
    let slot = format!("recv{round}");
    shop.slot(&slot).await;
    let program = shop.server.program("pg_recvlogical").await;
    let began = Instant::now();
    let child = Command::new(program)
        .args(["--dbname", &shop.database.url, "--slot", &slot, "--start", "--file", "/dev/null", "--endpos", end])
        .args(["--no-loop", "--status-interval", "1", "--option", "proto_version=1", "--option", "publication_names=till"])
        .kill_on_drop(true)
        .spawn()
        .expect("pg_recvlogical comes with the server");
    let (spent, elapsed) = watch(child, shop, &slot, began).await;
    spent.measured(changes, elapsed, Duration::ZERO)
}

/// The peer, from its start to its last event. Its rate is that between its first and its last, so that a virtual machine's start is not held against it.
async fn embedded(classes: &Path, shop: &Shop, changes: u64, round: u32) -> Measured {
    let slot = format!("peer{round}");
    shop.slot(&slot).await;
    let began = Instant::now();
    let mut child = debezium::start(classes, &shop.server, &shop.database.name, &slot, changes, &[]);
    let mut said = child.stdout.take().expect("piped");
    let (spent, elapsed) = watch(child, shop, &slot, began).await;
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut said, &mut text).await.expect("readable");
    let last: Vec<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("last "))
        .expect("the peer's last event")
        .split(' ')
        .filter_map(|n| n.parse().ok())
        .collect();
    assert!(last[0] >= changes, "{text}");
    let measured = spent.measured(changes, elapsed, Duration::ZERO);
    Measured { per_second: changes as f64 / (last[1] as f64 / 1e9), ..measured }
}

/// Follows a reader of a slot to its end.
async fn watch(mut child: tokio::process::Child, shop: &Shop, slot: &str, began: Instant) -> (Spent, Duration) {
    let pid = child.id().expect("it runs");
    let (mut spent, mut walsender) = (Spent::default(), None);
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            break status;
        }
        spent.look(pid, &mut walsender, &shop.pos, slot).await;
        assert!(began.elapsed() < DEADLINE, "a reader does not end");
        tokio::time::sleep(LOOK).await;
    };
    assert!(status.success(), "{status}");
    let elapsed = began.elapsed();
    crate::harness::wait_for("the slot to be free", PATIENCE, || async {
        shop.pos.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await.ok()
    })
    .await;
    (spent, elapsed)
}

/// The other limit: entries that are ready, of the size that a change has, published as fast as the broker takes them. Answers entries a second
/// and the broker's microseconds an entry.
async fn publish(broker: &RabbitMq, dir: &Path, entries: u64) -> (f64, f64) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    const ENTRY: usize = 480;
    const BATCH: u64 = 500;
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("publish{n}.yaml"));
    let text = format!(
        "version: 1\npipeline: bench\nsource: {{name: pos, url: \"postgres://nobody@127.0.0.1:1/pos\", slot: unused, publication: unused, tables: [public.a]}}\n\
         journal: {{rabbitmq: {{urls: [\"{}/%2f\"], stream: bench-publish-{}-{n}, compression: none}}}}\n",
        broker.url,
        std::process::id()
    );
    super::shop::write(&path, &text);
    let journal = open(&path);
    journal.set_up().await.expect("sets up");
    let mut bytes = Vec::new();
    for n in 0..BATCH {
        bytes.extend_from_slice(&(ENTRY as u32).to_be_bytes());
        bytes.extend((0..ENTRY).map(|i| b' ' + ((n as usize * 7 + i * 13) % 90) as u8));
    }
    let batch = Batch { bytes: Bytes::from(bytes), records: BATCH as u32 };
    let pid = broker.pid().await.trim().parse().expect("a process");
    let mut writer = journal.writer(&ProducerName("bench".into())).await.expect("a writer");
    let (began, before) = (Instant::now(), usage(pid).expect("the broker runs").0);
    for id in 1..=entries / BATCH {
        writer.append(Log::Data(0), PublishId(id), batch.clone()).await.expect("appends");
    }
    writer.flush().await.expect("stores");
    let (elapsed, spent) = (began.elapsed(), usage(pid).expect("the broker runs").0.saturating_sub(before));
    (entries as f64 / elapsed.as_secs_f64(), spent.as_secs_f64() * 1e6 / entries as f64)
}

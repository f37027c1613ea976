//! How fast the RabbitMQ journal is, and what it costs: a measurement, run by hand.
//!
//! `cargo test --release -p tillstream-tests --test it contract::speed -- --ignored --nocapture`

use std::time::{Duration, Instant};

use super::*;
use crate::harness::scratch;

const RECORD: usize = 200;
const RECORDS: u64 = 3_000_000;
const ROUNDS: usize = 3;

/// Processor time of a process so far.
fn cpu(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in parentheses").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("user time") + fields[12].parse::<u64>().expect("system time");
    Duration::from_millis(ticks * 10)
}

fn status(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    status.lines().find_map(|line| line.strip_prefix(key)).expect("the key is there").trim().to_owned()
}

struct Measured {
    per_second: f64,
    client_us: f64,
    broker_us: f64,
}

async fn measure(broker: &str, records: u64, work: impl Future<Output = ()>) -> Measured {
    let (begun, client, server) = (Instant::now(), cpu("self"), cpu(broker));
    work.await;
    let each = |d: Duration| d.as_secs_f64() * 1e6 / records as f64;
    Measured {
        per_second: records as f64 / begun.elapsed().as_secs_f64(),
        client_us: each(cpu("self") - client),
        broker_us: each(cpu(broker) - server),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn publishing_and_reading_ready_batches() {
    let server = RabbitMq::private("speed").await;
    let broker = server.pid().await;
    println!("{:<16}{:>12}{:>12}{:>12}", "", "records/s", "client us", "broker us");
    for _ in 0..ROUNDS {
        for (name, batch_bytes, compression) in [
            ("none 20 KiB", 20 << 10, Compression::None),
            ("none 64 KiB", 64 << 10, Compression::None),
            ("none 256 KiB", 256 << 10, Compression::None),
            ("lz4 64 KiB", 64 << 10, Compression::Lz4),
        ] {
            let config = RabbitJournal { compression, segment_bytes: 500_000_000, ..config(&server.url) };
            let journal = journal(&config);
            journal.set_up().await.expect("set-up");
            let count = (batch_bytes / (RECORD + 4)) as u64;
            let batches: Vec<_> = (0..64).map(|n| entries(n * count..(n + 1) * count, RECORD)).collect();
            let records = RECORDS / count * count;
            let write = measure(&broker, records, async {
                let mut writer = journal.writer(&ProducerName("speed".into())).await.expect("a writer");
                for id in 1..=records / count {
                    writer.append(LOG, PublishId(id), batches[id as usize % 64].clone()).await.expect("append");
                }
                writer.flush().await.expect("flush");
            });
            let write = write.await;
            let read = measure(&broker, records, async {
                let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
                let mut read = 0;
                while read < records {
                    read += u64::from(reader.next().await.expect("a chunk").records);
                }
            });
            let read = read.await;
            for (what, m) in [("write", write), ("read", read)] {
                println!("{:<16}{:>12.0}{:>12.2}{:>12.2}", format!("{what} {name}"), m.per_second, m.client_us, m.broker_us);
            }
            delete(&server.url, &config).await;
        }
    }
    println!("peak resident {}", status("VmHWM:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_batch_from_append_to_confirm_and_to_the_reader() {
    let server = RabbitMq::private("latency").await;
    let config = config(&server.url);
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut writer = journal.writer(&ProducerName("latency".into())).await.expect("a writer");
    let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
    let (mut confirmed, mut read) = (Vec::new(), Vec::new());
    for id in 1..=2_000 {
        let begun = Instant::now();
        writer.append(LOG, PublishId(id), entries(id * 10..id * 10 + 10, RECORD)).await.expect("append");
        writer.flush().await.expect("flush");
        confirmed.push(begun.elapsed());
        reader.next().await.expect("a chunk");
        read.push(begun.elapsed());
    }
    for (what, times) in [("confirm", &mut confirmed), ("read", &mut read)] {
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}, worst {:?}", times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn the_local_journal_on_this_disk() {
    let config = config::LocalJournal { dir: scratch("local-speed"), partitions: NonZeroU16::MIN, retention: Retention::default() };
    let journal = open(&config::Journal::Local(config), "speed").expect("a good configuration");
    journal.set_up().await.expect("set-up");
    let mut writer = journal.writer(&ProducerName("speed".into())).await.expect("a writer");
    let count = ((64 << 10) / (RECORD + 4)) as u64;
    let batch = entries(0..count, RECORD);
    let records = 1_000_000 / count * count;
    let write = measure("self", records, async {
        for id in 1..=records / count {
            writer.append(LOG, PublishId(id), batch.clone()).await.expect("append");
        }
        writer.flush().await.expect("flush");
    });
    let write = write.await;
    let read = measure("self", records, async {
        let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
        let mut read = 0;
        while read < records {
            read += u64::from(reader.next().await.expect("a chunk").records);
        }
    });
    let read = read.await;
    println!(
        "write {:.0} records/s, {:.2} us; read {:.0} records/s, {:.2} us",
        write.per_second, write.client_us, read.per_second, read.client_us
    );
    let mut times = Vec::new();
    for id in 0..200 {
        let begun = Instant::now();
        writer.append(LOG, PublishId(1_000_000 + id), entries(0..10, RECORD)).await.expect("append");
        writer.flush().await.expect("flush");
        times.push(begun.elapsed());
    }
    times.sort();
    println!("confirm: p50 {:?}, p99 {:?}", times[100], times[197]);
}

//! A journal that stands still: the slot is kept, the server is not kept from anything.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::e2e::assert_sound;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq};

fn flows(status: &Value) -> bool {
    status["source"]["events_per_second"].as_f64() > Some(50.0)
}

async fn freeze(broker: &RabbitMq, signal: &str) {
    let sent = tokio::process::Command::new("kill").args([signal, &broker.pid().await]).status().await.expect("kill runs");
    assert!(sent.success());
}

/// Stalls the broker for longer than several `wal_sender_timeout`s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_broker_costs_no_reconnect_no_loss_and_no_memory() {
    let server = Postgres::private("stalled", "wal_sender_timeout = '10s'").await;
    let broker = RabbitMq::private("stalled").await;
    let pipeline = Pipeline::new("stalled", &server, Journal::Rabbit(&broker), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &["--only", "capture"]);
    let traffic = pipeline.traffic(500, 3600, &["--even"]);
    running.until("events to flow", flows).await;
    let sessions = running.status().await.expect("answers")["source"]["sessions"].clone();
    freeze(&broker, "-STOP").await;
    running.until("the stall to show", |status| status["source"]["doing"] == "waiting_for_journal").await;
    let stall = Duration::from_secs(Level::pick(12, 25, 600));
    let began = Instant::now();
    let mut status = Value::Null;
    while began.elapsed() < stall {
        status = running.status().await.expect("answers");
        assert_eq!(status["source"]["sessions"], sessions, "no reconnect: {status}");
        assert_eq!(status["source"]["doing"], "waiting_for_journal");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(status["source"]["retained_wal_bytes"].as_u64() > Some(0), "{status}");
    assert!(status["source"]["slot"]["seconds_to_ceiling"].as_u64() > Some(0), "the time left is told: {status}");
    freeze(&broker, "-CONT").await;
    running.until("events to flow again", |s| s["source"]["doing"] == "streaming" && flows(s)).await;
    assert_eq!(running.status().await.expect("answers")["source"]["sessions"], sessions, "no reconnect");
    let rss = running.process.peak_rss_kib() / 1024;
    println!(
        "stalled for {} s: sessions {sessions}, {} MiB at most, {} of WAL kept at the end, {} s to the ceiling",
        stall.as_secs(),
        rss,
        status["source"]["retained_wal_bytes"],
        status["source"]["slot"]["seconds_to_ceiling"]
    );
    assert!(rss < 256, "{rss} MiB");
    traffic.terminate(PATIENCE).await;
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
}

/// Stops the server while the broker is gone, and while it merely stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_shuts_down_does_not_wait_for_a_journal_that_is_away() {
    let server = Postgres::private("fast-stop", "").await;
    let broker = RabbitMq::private("fast-stop").await;
    let pipeline = Pipeline::new("fast-stop", &server, Journal::Rabbit(&broker), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &["--only", "capture"]);
    for gone in [false, true] {
        running.ready().await;
        let before = running.status().await.expect("answers")["source"]["events"].as_u64().unwrap_or(0);
        let traffic = pipeline.traffic(800, 3600, &["--even"]);
        running
            .until("events to flow", |s| s["source"]["doing"] == "streaming" && s["source"]["events"].as_u64() > Some(before + 500))
            .await;
        if gone {
            broker.control("stop").await;
            running.until("the stall to show", |status| status["source"]["doing"] == "waiting_for_journal").await;
        } else {
            freeze(&broker, "-STOP").await;
        }
        let began = Instant::now();
        server.control("stop").await;
        let took = began.elapsed();
        println!("pg_ctl stop -m fast with the broker {}: {:.1} s", if gone { "stopped" } else { "stalled" }, took.as_secs_f64());
        assert!(took < Duration::from_secs(10), "{took:?}");
        traffic.end().await;
        if gone {
            broker.control("start").await;
        } else {
            freeze(&broker, "-CONT").await;
        }
        server.control("start").await;
    }
    // With a journal that answers the server hardly waits at all.
    running.ready().await;
    let before = running.status().await.expect("answers")["source"]["events"].as_u64().unwrap_or(0);
    let traffic = pipeline.traffic(800, 3600, &["--even"]);
    running.until("events to flow", |s| s["source"]["doing"] == "streaming" && s["source"]["events"].as_u64() > Some(before + 500)).await;
    let began = Instant::now();
    server.control("stop").await;
    println!("pg_ctl stop -m fast with everything well: {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    traffic.end().await;
    server.control("start").await;
    running.ready().await;
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
}

//! Two readers of one slot, and links that are dead without saying so.

use std::time::{Duration, Instant};

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, Proxy, RabbitMq, Running, wait_for};

async fn signal(running: &Running, signal: &str) {
    let pid = running.process.pid().to_string();
    let sent = tokio::process::Command::new("kill").args([signal, &pid]).status().await.expect("kill runs");
    assert!(sent.success());
}

/// The second reader names the first, takes over when it stalls, and the first cannot write once it wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_names_the_holder_takes_over_and_fences_it_off() {
    let server = Postgres::private("readers", "wal_sender_timeout = '4s'").await;
    let pipeline = Pipeline::new("readers", &server, Journal::Rabbit(RabbitMq::shared().await), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let first = pipeline.run("first", &["--only", "capture"]);
    first.ready().await;
    let second = pipeline.run("second", &["--only", "capture"]);
    let waiting = second.until("the second to wait", |status| status["source"]["doing"] == "waiting_for_slot").await;
    let why = waiting["source"]["why"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains(&format!("tillstream/{}/capture", waiting["pipeline"].as_str().unwrap_or("-"))), "the session is named: {why}");
    assert!(why.contains(&first.process.pid().to_string()), "the process is named: {why}");

    // A stalled process: alive, silent, with entries under way.
    let traffic = pipeline.traffic(500, 14, &["--even"]);
    first.until("events to flow", |status| status["source"]["events_per_second"].as_f64() > Some(50.0)).await;
    signal(&first, "-STOP").await;
    let stalled = Instant::now();
    second.until("the second to stream", |status| status["source"]["doing"] == "streaming").await;
    let took = stalled.elapsed();
    println!("took over {:.1} s after the stall (wal_sender_timeout 4 s)", took.as_secs_f64());
    assert!(took < Duration::from_secs(10), "{took:?}");
    signal(&first, "-CONT").await;
    first.until("the first to notice", |status| status["source"]["sessions"].as_u64() > Some(1)).await;
    traffic.finish(PATIENCE).await;

    // A dead process: seconds, not the timeout.
    second.until("the second to hold the slot", |status| status["source"]["doing"] == "streaming").await;
    let died = Instant::now();
    second.process.kill9().await;
    first.until("the first to stream again", |status| status["source"]["doing"] == "streaming").await;
    println!("took over {:.1} s after the death", died.elapsed().as_secs_f64());
    assert!(died.elapsed() < Duration::from_secs(6), "{:?}", died.elapsed());
    first.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_passes_nothing_on_is_found_and_replaced() {
    let server = Postgres::private("half-open", "wal_sender_timeout = '6s'").await;
    let mut pipeline = Pipeline::new("half-open", &server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let proxy = Proxy::start(server.address()).await;
    pipeline.set("DEMO_SOURCE_URL", format!("postgres://tillstream@{}/{}", proxy.address(), pipeline.pos.name));
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &["--only", "capture"]);
    running.ready().await;
    let sessions = |status: &serde_json::Value| status["source"]["sessions"].as_u64().unwrap_or(0);
    let before = sessions(&running.status().await.expect("answers"));
    proxy.stall(true);
    let stalled = Instant::now();
    wait_for("the dead link to be given up", PATIENCE, || async { running.status().await.filter(|s| s["source"]["doing"] != "streaming") })
        .await;
    println!("the dead link was given up after {:.1} s", stalled.elapsed().as_secs_f64());
    assert!(stalled.elapsed() < Duration::from_secs(12), "{:?}", stalled.elapsed());
    proxy.cut();
    proxy.stall(false);
    running.ready().await;
    running.until("a new session", |status| sessions(status) > before).await;
    pipeline.traffic(300, 2, &[]).finish(PATIENCE).await;
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
}

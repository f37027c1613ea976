//! Two readers of one slot, and links that are dead without saying so.

use std::time::{Duration, Instant};

use super::refill::segments;
use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, Proxy, RabbitMq, Running, wait_for};

/// A password and a row's value that must not turn up where they do not belong.
const PASSWORD: &str = "c4nary-of-the-password";
const VALUE: &str = "c4nary-of-a-row";

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

/// The password is in no log, no output, no metric and no entry; the row's value is in data entries only.
async fn assert_nothing_leaked(pipeline: &Pipeline, running: &Running, broker: &RabbitMq) {
    let files = std::fs::read_dir(&pipeline.dir).expect("readable").flatten().map(|entry| entry.path());
    for file in files.filter(|path| path.extension().is_some_and(|e| e == "err" || e == "out")) {
        let text = std::fs::read(&file).expect("readable");
        assert!(!holds(&text, PASSWORD) && !holds(&text, VALUE), "{}", file.display());
    }
    for page in ["metrics", "api/status", "readyz"] {
        let text = reqwest::get(format!("{}/{page}", running.admin)).await.expect("answers").bytes().await.expect("a body");
        assert!(!text.is_empty() && !holds(&text, PASSWORD) && !holds(&text, VALUE), "{page}");
    }
    let mut files = Vec::new();
    segments(broker.dir(), &mut files);
    let (mut data, mut control) = (0, 0);
    for file in files.iter().filter(|file| file.to_string_lossy().contains(&pipeline.stream)) {
        let bytes = std::fs::read(file).expect("readable");
        assert!(!holds(&bytes, PASSWORD), "{}", file.display());
        if file.to_string_lossy().contains("_control_") {
            assert!(!holds(&bytes, VALUE), "{}", file.display());
            control += usize::from(holds(&bytes, "\"type\":\"session\""));
        } else {
            data += usize::from(holds(&bytes, VALUE));
        }
    }
    assert!(data > 0 && control > 0, "the search looks at the right files: {data} {control}");
}

async fn signal(running: &Running, signal: &str) {
    let pid = running.process.pid().to_string();
    let sent = tokio::process::Command::new("kill").args([signal, &pid]).status().await.expect("kill runs");
    assert!(sent.success());
}

/// The second reader names the first, takes over when it stalls, and the first cannot write once it wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_names_the_holder_takes_over_and_fences_it_off() {
    let server = Postgres::private("readers", "wal_sender_timeout = '4s'").await;
    let broker = RabbitMq::shared().await;
    // The files are searched for texts.
    let plain = |file: String| file.replace("    retention: {age: 1d}", "    retention: {age: 1d}\n    compression: none");
    let mut pipeline = Pipeline::new("readers", &server, Journal::Rabbit(broker), plain).await;
    pipeline.set_up().await;
    let admin = server.connect("postgres").await;
    for (role, name) in [("tillstream", "DEMO_SOURCE_URL"), ("tillstream_backfill", "DEMO_BACKFILL_URL")] {
        admin.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await.expect("alters");
        pipeline.set(name, pipeline.pos.url_as(&format!("{role}:{PASSWORD}")));
    }
    server.require_passwords(&["tillstream", "tillstream_backfill"]).await;
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
    let pos = pipeline.pos.connect().await;
    pos.execute("UPDATE customer SET email = $1 WHERE id = (SELECT min(id) FROM customer)", &[&VALUE]).await.expect("updates");
    let before = first.status().await.expect("answers")["source"]["events"].as_u64();
    pos.execute("UPDATE customer SET phone = '1' WHERE id = (SELECT min(id) FROM customer)", &[]).await.expect("updates");
    first
        .until("the value to be stored", |status| {
            status["source"]["events"].as_u64() > before && status["journal"]["unconfirmed_bytes"] == 0
        })
        .await;
    assert_nothing_leaked(&pipeline, &first, broker).await;
    first.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);

    // An epoch, decided while capture runs: it goes on in the new one.
    let running = pipeline.run("third", &["--only", "capture"]);
    running.ready().await;
    let refused = pipeline.start("refused", &["epoch", "bump", "--reason", "a test", "--confirm", "demo epoch 7"]);
    assert_eq!(refused.wait(PATIENCE).await.code(), Some(2), "another confirmation is none");
    pipeline.command("bump", &["epoch", "bump", "--reason", "a test of it", "--confirm", "demo epoch 2"]).await;
    running
        .until("the session to change", |status| {
            status["source"]["sessions"].as_u64() > Some(1) && status["source"]["doing"] == "streaming"
        })
        .await;
    let shown = pipeline.command("epoch", &["epoch", "show", "--format", "json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        (&shown["epoch"], &shown["last_run"]["epoch"], &shown["verdict"]["continues"]),
        (&2.into(), &2.into(), &true.into()),
        "{shown}"
    );
    running.until("the tables to be loaded again", |status| status["initial_load"]["finished"] == true).await;
    assert_nothing_leaked(&pipeline, &running, broker).await;
    running.process.terminate(Duration::from_secs(10)).await;
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

//! A broker that loses what it had confirmed but not synced: PostgreSQL, held back, fills it again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, RabbitMq};

/// Segment files below a directory.
pub(super) fn segments(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            segments(&path, found);
        } else if path.extension().is_some_and(|e| e == "segment") {
            found.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lost_its_unsynced_tail_is_filled_again() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::private("refill").await;
    // Held back for the whole test.
    let edit = |file: String| {
        let file: Vec<&str> = file.lines().filter(|l| !l.trim_start().starts_with("hold_back:")).collect();
        file.join("\n").replace("  publication:", "  hold_back: {time: 10m, bytes: 1GiB}\n  publication:")
    };
    let pipeline = Pipeline::new("refill", server, Journal::Rabbit(&broker), edit).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &["--only", "capture"]);
    running.ready().await;
    // A stream that stands still for ten seconds is acknowledged all the same, and what is lost here may be the record of that.
    let client = pipeline.pos.connect().await;
    let beat = tokio::spawn(async move {
        loop {
            let update = "UPDATE menu_item SET updated_at = now() WHERE id = (SELECT min(id) FROM menu_item)";
            client.execute(update, &[]).await.expect("updates");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    running.until("the initial load", |status| status["initial_load"]["finished"] == true).await;
    pipeline.traffic(600, 5, &["--even"]).finish(PATIENCE).await;
    let settled = running
        .until("everything to be confirmed", |s| s["journal"]["unconfirmed_bytes"] == 0 && s["source"]["events"].as_u64() > Some(500))
        .await;
    let (sessions, events) = (settled["source"]["sessions"].as_u64(), settled["source"]["events"].as_u64().unwrap_or(0));

    // What a power cut leaves of files that were never synced: their first part.
    broker.control("kill9").await;
    let mut files = Vec::new();
    segments(broker.dir(), &mut files);
    assert!(files.len() >= 2, "a data log and the control log: {files:?}");
    let mut lost = 0;
    for file in &files {
        let length = std::fs::metadata(file).expect("there").len();
        let keep = length - length * 2 / 5;
        std::fs::OpenOptions::new().write(true).open(file).expect("writable").set_len(keep).expect("cut");
        lost += length - keep;
    }
    broker.control("start").await;
    let again = running
        .until("the lost part to be written again", |s| {
            s["source"]["sessions"].as_u64() > sessions && s["source"]["events"].as_u64() > Some(events) && s["ready"] == true
        })
        .await;
    beat.abort();
    pipeline.traffic(300, 2, &["--even", "--seed", "5"]).finish(PATIENCE).await;
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    let line = pipeline.verify().await;
    println!(
        "{lost} bytes cut off {} files; {} events written again; {line}",
        files.len(),
        again["source"]["events"].as_u64().unwrap_or(0) - events
    );
    assert_sound(&line);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

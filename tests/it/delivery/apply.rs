//! Connectors that are given other files while they run: between two transactions, once each, and back when the new one does worse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use tillstream::config::Connector;
use tillstream_connectors::mapping::Mapping;

use super::http::{Api, mapped_target};
use super::pos::{Capture, connector, insert, journal, start_switching, until};
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq, wait_for};

fn telling(url: &str, file: u64) -> Connector {
    let map = json!({"id": "{{ idempotency_key }}", "event": "{{ id }}", "commit": "{{ commit_lsn }}", "file": file});
    let mapping = Mapping::compile(None, Some(&map)).expect("sound");
    Connector { mapping: Some(Arc::new(mapping)), ..connector("loyalty", mapped_target(url, json!({"mode": "batch"}))) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transaction_is_told_by_one_file_and_once_however_often_files_change() {
    let (dir, changes) = (tempfile::tempdir().expect("a directory"), Level::pick(8, 15, 100));
    let journal = journal(dir.path(), 2).await;
    let (api, url) = Api::start(|_, _| axum::Json(json!({"ok": true})).into_response()).await;
    let (running, switches) = start_switching(&journal, vec![telling(&url, 0)]);
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (journal, done) = (journal.clone(), done.clone());
        async move {
            let mut capture = Capture::new(journal.as_ref(), 1).await;
            let mut written = 0;
            while !done.load(Ordering::Relaxed) {
                let rows: Vec<_> = (0..37).map(|n| insert("a", written + n, n)).collect();
                // A transaction whose second half comes later, as from a long one.
                capture.commit_in_halves(u16::try_from(written / 37 % 2).unwrap_or(0), &rows).await;
                written += 37;
            }
            written
        }
    });
    for file in 1..=changes {
        switches.switch(Arc::new(telling(&url, file))).await.expect("switches");
        let before = running.stats.connectors()[0].delivered.load(Ordering::Relaxed);
        until("something is delivered by it", || running.stats.connectors()[0].delivered.load(Ordering::Relaxed) > before + 40).await;
    }
    done.store(true, Ordering::Relaxed);
    let written = writing.await.expect("writes");
    until("all is delivered", || api.items().len() as u64 >= written).await;
    running.stop().await.expect("stops");
    api.assert_once(usize::try_from(written).expect("few"));
    let mut told: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for item in api.items() {
        let files = told.entry(item["commit"].as_str().expect("a commit").to_owned()).or_default();
        files.push(item["file"].as_u64().expect("a file"));
    }
    assert!(told.values().all(|files| files.len() == 37 && files.iter().all(|f| *f == files[0])), "{told:?}");
    let used: std::collections::BTreeSet<u64> = told.values().map(|files| files[0]).collect();
    println!("{changes} changes of file over {} transactions: each told once, by one file; {} files were used", told.len(), used.len());
    assert!(used.len() as u64 >= changes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_given_while_the_session_fails_is_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let (answer, asked) = std::sync::mpsc::sync_channel::<()>(1);
    let asked = std::sync::Mutex::new(asked);
    let (refusing, url) = Api::start(move |_, _| {
        let wait = || asked.lock().expect("sound").recv_timeout(PATIENCE);
        tokio::task::block_in_place(wait).expect("an answer is wanted");
        axum::http::StatusCode::UNAUTHORIZED.into_response()
    })
    .await;
    let (running, switches) = start_switching(&journal, vec![telling(&url, 0)]);
    Capture::new(journal.as_ref(), 1).await.commit(0, &[insert("a", 1, 1), insert("a", 2, 2)]).await;
    until("a call is under way", || refusing.requests() > 0).await;
    let (api, url) = Api::start(|_, _| axum::Json(json!({"ok": true})).into_response()).await;
    let switch = tokio::spawn(async move { switches.switch(Arc::new(telling(&url, 1))).await });
    tokio::task::yield_now().await;
    answer.send(()).expect("somebody waits");
    // The other lane may have a call under way too.
    let _ = answer.try_send(());
    assert_eq!(switch.await.expect("ends"), Ok(()));
    until("all is delivered", || api.items().len() == 2).await;
    running.stop().await.expect("stops");
    api.assert_once(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapping_that_fails_is_rolled_back_and_a_sound_one_is_applied() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("apply", server, Journal::Rabbit(RabbitMq::shared().await), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    let traffic = pipeline.traffic(300, Level::pick(12, 15, 60), &[]);
    let delivered = |status: &Value| status["connectors"][1]["delivered"].as_u64() > Some(50);
    running.until("deliveries", |status| delivered(status)).await;

    let same = pipeline.command("plan", &["plan", "--url", &running.admin]).await;
    assert_eq!(same, "the running process delivers by these files\n");
    let path = pipeline.dir.join("engagement.yaml");
    let good = std::fs::read_to_string(&path).expect("the connector's file");
    // The tests in the file see payments only, and this fails for points.
    let broken = good.replace("{{ after.points if", "{{ after.points.total if");
    assert_ne!(broken, good);
    std::fs::write(&path, &broken).expect("written");
    let plan = pipeline.command("plan", &["plan", "--url", &running.admin]).await;
    assert!(plan.starts_with("engagement: from-now (map): ") && plan.contains("\n  + ") && plan.contains("after.points.total"), "{plan}");
    let apply = pipeline.start("apply-broken", &["apply", "--url", &running.admin, "--probation", "60s", "--reason", "points in total"]);
    let out = pipeline.dir.join("apply-broken.out");
    let status = apply.wait(PATIENCE).await;
    let said = std::fs::read_to_string(out).expect("its output");
    println!("{}", said.lines().last().unwrap_or_default());
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("ROLLED BACK") && said.contains("mapping.failed: `map.points`"), "{said}");
    wait_for("what was refused to be delivered by the file before", PATIENCE, || async {
        let listed = pipeline.command("list", &["dead-letters", "list", "--format", "json"]).await;
        (serde_json::from_str::<Value>(&listed).expect("JSON") == json!([])).then_some(())
    })
    .await;

    // A file whose own test fails does not come that far.
    std::fs::write(&path, good.replace("cents: 1250", "cents: 12")).expect("written");
    let status = pipeline.start("apply-untrue", &["apply", "--url", &running.admin]).wait(PATIENCE).await;
    let said = std::fs::read_to_string(pipeline.dir.join("apply-untrue.err")).expect("its messages");
    assert!(status.code() == Some(1) && said.contains("apply.test_failed"), "{said}");

    std::fs::write(
        &path,
        good.replace("items: 50", "items: 40")
            .replace("\n  event_id:", "\n  told_by: two\n  event_id:")
            .replace("\n      event_id:", "\n      told_by: two\n      event_id:"),
    )
    .expect("written");
    let said = pipeline.command("apply", &["apply", "--url", &running.admin, "--probation", "2s"]).await;
    assert!(said.contains("engagement: applied; "), "{said}");
    traffic.finish(PATIENCE).await;
    running.process.terminate(std::time::Duration::from_secs(10)).await;
    pipeline.drain().await;
    crate::e2e::assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&["apply.rolled_back"]);
    pipeline.drop(server).await;
}

//! The `jsonl` sink behind a delivery that is killed again and again: each event is in the files once, in its row's order.

use std::collections::HashMap;

use serde_json::{Value, json};
use tillstream::delivery::Mode;
use tillstream_connectors::registry::Registry;
use tokio::time::timeout;

use super::pos::{Capture, DEADLINE, catch_up, connector, insert, journal, start, truncate, until, update};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_a_line_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 2).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for change in 0..10 {
        for row in 0..200 {
            capture.write((row % 2) as u16, &[if change == 0 { insert("a", row, 0) } else { update("a", row, change) }]).await;
        }
    }
    for partition in 0..2 {
        capture.write(partition, &[truncate("a")]).await;
    }
    capture.flush().await;
    let target = || Registry::built_in().get("jsonl").expect("built in").validate(&json!({"dir": out.path()}), false).expect("valid");
    let lines = || -> Vec<Value> {
        let files = std::fs::read_dir(out.path()).expect("there").flatten().map(|entry| entry.path());
        let lines = files.filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
        let text: String = lines.map(|path| std::fs::read_to_string(path).expect("text")).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    for part in 1..4 {
        let running = start(&journal, vec![connector("out", target())], Mode::Continuous);
        timeout(DEADLINE, until("it goes on", || lines().len() >= part * 400)).await.expect("in time");
        running.kill().await;
    }
    catch_up(&journal, vec![connector("out", target())]).await.expect("catches up");
    let mut rows: HashMap<String, Vec<Value>> = HashMap::new();
    let mut truncates = 0;
    for line in lines() {
        match line["op"].as_str() {
            Some("truncate") => truncates += 1,
            _ => rows.entry(line["key"].to_string()).or_default().push(line["after"]["qty"].clone()),
        }
    }
    assert_eq!((rows.len(), truncates), (200, 1));
    let wanted: Vec<Value> = (0..10).map(Value::from).collect();
    assert!(rows.values().all(|quantities| *quantities == wanted), "lost, doubled or out of order: {rows:?}");
}

//! The peer: Debezium's embedded engine, which makes JSON of every change and throws it away. `tests/bench.sh` fetches and compiles it.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::harness::{Postgres, target};

/// Where the engine and its classes are; none where they were not fetched.
pub(super) fn classes() -> Option<PathBuf> {
    let dir = target().join("bench").join("debezium");
    dir.join("classes").join("Engine.class").exists().then_some(dir)
}

/// Starts the engine on a slot; it ends after so many changes, or tells every payment when that is none.
pub(super) fn start(dir: &std::path::Path, server: &Postgres, database: &str, slot: &str, changes: u64, settings: &[&str]) -> Child {
    let (host, port) = server.address().split_once(':').expect("an address");
    let classes = format!("{0}/classes:{0}/libs/*", dir.display());
    let log = std::fs::File::create(dir.join("engine.log")).expect("target/ can be written");
    Command::new("java")
        .args(["-Xmx1g", "-cp", &classes, "Engine", host, port, database, slot, "till", &changes.to_string()])
        .args(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("java runs")
}

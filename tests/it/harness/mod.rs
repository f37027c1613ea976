//! Private servers, databases and child processes for the other tests.
//!
//! Servers are started by the project's own scripts (`docker/postgres.sh`, `docker/rabbitmq.sh`) below `target/tests/`. The
//! shared ones start with the first test that asks, and stay: the next run finds them, `tests/run.sh` ends them. A test
//! that kills a server takes one of its own, which goes with the value.

// Each test module uses its own part of the harness.
#![allow(dead_code, unused_imports)]

mod database;
mod pipeline;
mod process;
mod proxy;
mod server;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use database::Database;
pub(crate) use pipeline::{Journal, PATIENCE, Pipeline, Running, free_port};
pub(crate) use process::{Process, judge_log};
pub(crate) use proxy::Proxy;
pub(crate) use server::{MariaDb, Pooler, Postgres, RabbitMq, connect};

/// How much there is time for: `quick` after every change, `full` in CI, `long` before a release. From `TILLSTREAM_TESTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Quick,
    Full,
    Long,
}

impl Level {
    /// What this run was asked for.
    pub(crate) fn get() -> Level {
        match std::env::var("TILLSTREAM_TESTS").as_deref() {
            Ok("quick") => Level::Quick,
            Ok("long") => Level::Long,
            _ => Level::Full,
        }
    }

    /// Of three sizes the one for this run.
    pub(crate) fn pick<T>(quick: T, full: T, long: T) -> T {
        match Level::get() {
            Level::Quick => quick,
            Level::Full => full,
            Level::Long => long,
        }
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// A new directory below `target/tests/`, named for people. Removed by the next `tests/run.sh`, so that logs survive a failure.
pub(crate) fn scratch(name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = target().join("tests").join("scratch").join(format!("{name}-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("target/ can be written");
    dir
}

/// Cargo's target directory: this binary lies in `<target>/release/deps`.
pub(crate) fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    exe.ancestors().nth(3).expect("test binaries lie three levels below the target directory").to_owned()
}

/// The program under test. `cargo build --release` made it; `cargo test` alone does not.
pub(crate) fn program() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let program = exe.ancestors().nth(2).expect("test binaries lie in deps/").join("tillstream");
    assert!(program.exists(), "{} is missing: run `cargo build --release` first, or tests/run.sh", program.display());
    program
}

/// Polls `probe` until it answers, and fails the test at the deadline. The one place that waits by the clock: what is
/// waited for lives in other processes, which have no signal to give.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, within: Duration, mut probe: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

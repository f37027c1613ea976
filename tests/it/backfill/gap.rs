//! The visibility gap with a real, slow standby: a plain watermark window writes stale rows, ours does not.
//!
//! With `synchronous_standby_names` set a commit is in the write-ahead log, and in the stream, before any snapshot sees it; it stays so
//! for as long as the standby is slow. The standby here is a `pg_receivewal` that is stopped and continued.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tillstream::capture::catalog::Catalog;
use tillstream::capture::hook::{Hook, Hooks, Write};
use tillstream::capture::pgoutput::{Tuple, TupleValue};
use tillstream::capture::read_rows::{ReadChunk, ReadRow, ReadRows};
use tillstream::config::Source;
use tillstream::control::State;
use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::{Lsn, Position, TableSchema};
use tokio::sync::mpsc;

use super::capture::Bench;
use crate::harness::{Level, PATIENCE, Postgres, scratch, wait_for};

const ROWS: i32 = 40;

/// A plain watermark window: the chunk joins the stream at the high watermark, without the keys that changed since the low one. What was
/// delivered before the low watermark is taken to be visible, which is what is wrong with it.
struct Plain {
    source: Source,
    finished: Arc<Mutex<bool>>,
}

enum Step {
    Open { low: String, high: String },
    Chunk(Vec<Vec<Option<String>>>),
}

struct PlainHook {
    steps: mpsc::Receiver<Step>,
    epoch: u32,
    marks: Option<(String, String)>,
    low_seen: bool,
    touched: HashSet<String>,
    chunk: Vec<Vec<Option<String>>>,
    table: Option<Arc<TableSchema>>,
    out: VecDeque<Write>,
    finished: Arc<Mutex<bool>>,
}

impl Hooks for Plain {
    fn session(&self, _state: &State, epoch: u32) -> Option<Box<dyn Hook>> {
        let (sender, steps) = mpsc::channel(4);
        tokio::spawn(read_once(self.source.clone(), sender));
        let finished = self.finished.clone();
        let (marks, touched, chunk, out) = (None, HashSet::new(), Vec::new(), VecDeque::new());
        Some(Box::new(PlainHook { steps, epoch, marks, low_seen: false, touched, chunk, table: None, out, finished }))
    }
}

async fn read_once(source: Source, steps: mpsc::Sender<Step>) {
    let catalog = Catalog::connect_backfill(&source, "test").await.expect("connects");
    catalog.client().batch_execute("SET synchronous_commit = local").await.expect("sets");
    let (low, high) = ("plain/low".to_owned(), "plain/high".to_owned());
    steps.send(Step::Open { low: low.clone(), high: high.clone() }).await.ok();
    catalog.emit_message("tillstream/watermark", &low).await.expect("a watermark");
    let rows = catalog.client().query("SELECT id::text, v FROM public.t ORDER BY id", &[]).await.expect("rows");
    let rows = rows.iter().map(|row| vec![row.get(0), row.get(1)]).collect();
    steps.send(Step::Chunk(rows)).await.ok();
    catalog.emit_message("tillstream/watermark", &high).await.expect("a watermark");
}

impl PlainHook {
    fn take(&mut self) {
        while let Ok(step) = self.steps.try_recv() {
            match step {
                Step::Open { low, high } => self.marks = Some((low, high)),
                Step::Chunk(chunk) => self.chunk = chunk,
            }
        }
    }
}

impl Hook for PlainHook {
    fn live(&mut self, _live: bool) {}

    fn watches(&self) -> bool {
        true
    }

    fn begin(&mut self, _xid: u32, _commit_lsn: Lsn) {}

    fn change(&mut self, _oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        self.table.get_or_insert_with(|| Arc::new(table.clone()));
        if self.low_seen {
            for tuple in [old, new].into_iter().flatten() {
                let text = tuple.get(0).and_then(TupleValue::text).unwrap_or_default();
                self.touched.insert(String::from_utf8_lossy(text).into_owned());
            }
        }
    }

    fn truncate(&mut self, _oid: u32, _table: &TableSchema) {}

    fn message(&mut self, _prefix: &[u8], content: &[u8], at: Position) {
        self.take();
        let Some((low, high)) = &self.marks else { return };
        if content == low.as_bytes() {
            self.low_seen = true;
        }
        if content == high.as_bytes()
            && let Some(table) = &self.table
        {
            let mut rows = ReadRows::new(2);
            for values in std::mem::take(&mut self.chunk) {
                if !self.touched.contains(values[0].as_deref().unwrap_or_default()) {
                    rows.push(values.iter().map(Option::as_deref));
                }
            }
            let (count, name) = (rows.len() as u32, "public.t".to_owned());
            let first = ReadId { epoch: self.epoch, job: "plain".to_owned(), table: name, chunk: 0, attempt: 0, row: 0 };
            let as_of = Position::new(at.epoch, at.commit_lsn, 0);
            let chunk = Arc::new(ReadChunk::new(table.clone(), Arc::new(rows), None, first, as_of));
            self.out.extend((0..count).map(|row| Write::Row(ReadRow { chunk: chunk.clone(), row, gone: false })));
            *self.finished.lock().expect("not poisoned") = true;
        }
    }

    fn commit(&mut self, _xid: u32, _end: Lsn) {}

    fn idle(&mut self, _reached: Lsn) {}

    fn write(&mut self) -> Option<Write> {
        self.out.pop_front()
    }

    fn stored(&mut self, _upto: tillstream::capture::hook::HandOver) {}

    fn is_done(&self) -> bool {
        self.out.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(step)) = self.steps.poll_recv(cx) {
            match step {
                Step::Open { low, high } => self.marks = Some((low, high)),
                Step::Chunk(chunk) => self.chunk = chunk,
            }
        }
        if self.out.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

/// The standby.
struct Standby(tokio::process::Child);

impl Standby {
    async fn start(server: &Postgres) -> Standby {
        let dir = scratch("standby");
        let (host, port) = server.address().split_once(':').expect("host:port");
        let child = tokio::process::Command::new(server.program("pg_receivewal").await)
            .args(["--synchronous", "--no-password", "-h", host, "-p", port, "-U", "postgres", "-D"])
            .arg(&dir)
            .env("PGAPPNAME", "slow")
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("pg_receivewal starts");
        let admin = server.connect("postgres").await;
        wait_for("the standby", PATIENCE, async || {
            let sql = "SELECT FROM pg_stat_replication WHERE application_name = 'slow' AND state = 'streaming'";
            admin.query_opt(sql, &[]).await.expect("asks").map(|_| ())
        })
        .await;
        Standby(child)
    }

    async fn signal(&self, name: &str) {
        let pid = self.0.id().expect("runs").to_string();
        tokio::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().await.expect("kill runs");
    }
}

/// One schedule: some rows are changed, the commits wait for the standby, the load begins among them, and the standby comes back sooner
/// or later. Answers how many rows of the journal are stale in the end.
async fn schedule(server: &Postgres, standby: &Standby, seed: u64, plain: bool) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    standby.signal("CONT").await;
    let sql = format!("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, {ROWS}) n");
    let mut bench = Bench::new("gap", server, &sql, &["t"]).await;
    // Nothing may be read a second time with the visibility check.
    bench.source.initial_load = !plain;
    let admin = server.connect("postgres").await;
    standby.signal("STOP").await;
    let mut waiting = Vec::new();
    let writers = rng.random_range(1..=3_usize);
    for writer in 0..writers {
        let client = bench.database.connect().await;
        // Apart from each other: a row is locked until its change is visible.
        let changes: Vec<String> = (0..rng.random_range(1..=4))
            .map(|_| {
                let id = rng.random_range(0..ROWS / 3) * 3 + writer as i32 + 1;
                match rng.random_range(0..3) {
                    0 => format!("DELETE FROM t WHERE id = {id}"),
                    _ => format!("UPDATE t SET v = 'new {}' WHERE id = {id}", rng.random::<u16>()),
                }
            })
            .collect();
        waiting.push(tokio::spawn(async move { client.batch_execute(&format!("BEGIN; {}; COMMIT", changes.join("; "))).await }));
    }
    wait_for("the commits to wait", PATIENCE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = $1";
        let n: i64 = admin.query_one(sql, &[&bench.database.name]).await.expect("asks").get(0);
        (n == writers as i64).then_some(())
    })
    .await;
    let back_after = Duration::from_millis(rng.random_range(50..600));
    let finished = Arc::new(Mutex::new(false));
    let run = if plain {
        bench.start_with(Arc::new(Plain { source: bench.source.clone(), finished: finished.clone() })).await
    } else {
        bench.start().await
    };
    let loaded = || if plain { *finished.lock().expect("not poisoned") } else { run.is_loaded() };
    let began = std::time::Instant::now();
    wait_for("the load or the standby's return", PATIENCE, async || (loaded() || began.elapsed() >= back_after).then_some(())).await;
    let client = bench.database.connect().await;
    client.batch_execute("SET synchronous_commit = local").await.expect("sets");
    standby.signal("CONT").await;
    for writer in waiting {
        writer.await.expect("no panic").expect("commits");
    }
    wait_for("the load", PATIENCE, async || loaded().then_some(())).await;
    run.stop().await;
    bench.catch_up().await;
    let rows = client.query("SELECT id, v FROM t ORDER BY id", &[]).await.expect("rows");
    let expected: BTreeMap<String, String> =
        rows.iter().map(|row| (row.get::<_, i32>(0).to_string(), format!("\"{}\"", row.get::<_, String>(1)))).collect();
    let live: BTreeMap<String, String> = bench.read().await.live().into_iter().map(|row| (row["id"].clone(), row["v"].clone())).collect();
    let stale =
        expected.iter().filter(|(id, v)| live.get(*id) != Some(v)).count() + live.keys().filter(|id| !expected.contains_key(*id)).count();
    drop(client);
    bench.end(server).await;
    stale
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_window_writes_stale_rows_and_ours_does_not() {
    let schedules = Level::pick(1, 5, 200);
    let server = Postgres::private("slow_standby", "").await;
    let standby = Standby::start(&server).await;
    let admin = server.connect("postgres").await;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'slow'").await.expect("alters");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
    let mut plain_stale = 0;
    for seed in 0..schedules {
        assert_eq!(schedule(&server, &standby, seed, false).await, 0, "seed {seed}");
        plain_stale += usize::from(schedule(&server, &standby, seed, true).await > 0);
    }
    println!("{schedules} schedules: ours has no stale row in any; the plain window has some in {plain_stale}");
    assert!(plain_stale > 0, "the schedules reach the gap");
    standby.signal("CONT").await;
}

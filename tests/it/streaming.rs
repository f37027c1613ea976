//! Transactions that come before they commit: whatever is rolled back, interleaved or altered meanwhile, the events are those
//! that would have come without.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tillstream::capture::CaptureError;
use tillstream::capture::appender::Ready;
use tillstream::capture::intake::Intake;
use tillstream::capture::streamed::{Next, Streamed};
use tillstream::config::{self, Retention};
use tillstream::journal::Journal;
use tillstream::journal::local::LocalJournal;
use tillstream_schemas::Lsn;

use crate::harness::{Level, PATIENCE, Postgres, scratch, wait_for};
use crate::matrix::Bench;
use crate::mutations::intake;
use crate::pgoutput_writer::{self as write, Value, column};

/// Takes a message as a session does that asks for streamed transactions.
pub(crate) fn take(streamed: &mut Streamed, intake: &mut Intake, message: &[u8]) -> Result<(), CaptureError> {
    match streamed.take(message)? {
        Next::Kept => {}
        Next::Direct => {
            while let Some(description) = streamed.needed(message) {
                intake.take(&description)?;
            }
            intake.take(message)?;
        }
        Next::Replay => {
            while let Some(message) = streamed.next_message()? {
                intake.take(message)?;
            }
        }
    }
    Ok(())
}

/// A change that waits for its transaction.
#[derive(Clone)]
struct Change {
    xid: u32,
    /// The table, and how often it had been altered.
    table: Option<(u32, usize)>,
    message: Vec<u8>,
}

/// An open transaction of the simulated server.
struct Open {
    xid: u32,
    /// The savepoints it is in, innermost last.
    within: Vec<u32>,
    /// Everything that is not rolled back.
    changes: Vec<Change>,
    /// How many of these were sent in blocks.
    sent: usize,
    /// Which parts were sent in blocks.
    streamed: BTreeSet<u32>,
    /// Which parts hold which tables locked, so that nobody alters them.
    locks: BTreeSet<(u32, u32)>,
    blocks: bool,
    may_roll_back: bool,
}

/// A server with three tables that sends what happens twice: in commit order, and large transactions before they commit.
struct Server {
    random: SmallRng,
    lsn: u64,
    next_xid: u32,
    next_row: u32,
    altered: BTreeMap<u32, usize>,
    open: Vec<Open>,
    whole: Vec<Vec<u8>>,
    /// Tables that the reader of `whole` knows.
    whole_knows: BTreeSet<u32>,
    early: Vec<Vec<u8>>,
    early_knows: BTreeSet<u32>,
    /// Tables that streamed transactions have described since they were last altered.
    described: BTreeSet<(u32, u32)>,
    commits: usize,
}

const TABLES: [(u32, &str); 3] = [(11, "t"), (12, "u"), (13, "k")];

/// A table that was altered so often has so many columns more.
fn description((oid, altered): (u32, usize)) -> Vec<u8> {
    let name = TABLES.iter().find(|(known, _)| *known == oid).map_or("", |(_, name)| *name);
    let mut columns = vec![column("id", 23, true)];
    columns.extend((0..=altered % 4).map(|n| column(&format!("c{altered}_{n}"), 25, false)));
    write::relation(oid, "public", name, b'd', &columns)
}

impl Server {
    fn new(seed: u64) -> Server {
        Server {
            random: SmallRng::seed_from_u64(seed),
            lsn: 0x1000,
            next_xid: 700,
            next_row: 0,
            altered: TABLES.iter().map(|(oid, _)| (*oid, 0)).collect(),
            open: Vec::new(),
            whole: Vec::new(),
            whole_knows: BTreeSet::new(),
            early: Vec::new(),
            early_knows: BTreeSet::new(),
            described: BTreeSet::new(),
            commits: 0,
        }
    }

    fn xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid
    }

    fn step(&mut self) {
        self.lsn += 0x10;
        let n = self.open.len();
        if n == 0 || (n < 4 && self.random.random_ratio(1, 12)) {
            let (xid, blocks) = (self.xid(), self.random.random_ratio(3, 4));
            let may_roll_back = self.random.random_ratio(4, 5);
            let open = Open {
                xid,
                within: Vec::new(),
                changes: Vec::new(),
                sent: 0,
                streamed: BTreeSet::new(),
                locks: BTreeSet::new(),
                blocks,
                may_roll_back,
            };
            return self.open.push(open);
        }
        let at = self.random.random_range(0..n);
        match self.random.random_range(0..100) {
            0..45 => self.row(at),
            45..60 => {
                let xid = self.xid();
                self.open[at].within.push(xid);
            }
            60..75 => self.leave(at),
            75..80 => self.alter(),
            80..92 => self.block(at),
            92..97 => self.commit(at),
            _ => self.abort(at),
        }
    }

    fn row(&mut self, at: usize) {
        self.next_row += 1;
        let (oid, _) = TABLES[self.random.random_range(0..TABLES.len())];
        let (altered, id) = (self.altered[&oid], self.next_row.to_string());
        let lsn = Lsn(self.lsn);
        let as_message = self.random.random_ratio(1, 20);
        let open = &mut self.open[at];
        let xid = open.within.last().copied().unwrap_or(open.xid);
        let change = if !open.may_roll_back && as_message {
            Change { xid: open.xid, table: None, message: write::message(true, lsn, "outbox", id.as_bytes()) }
        } else {
            open.locks.insert((xid, oid));
            let mut values = vec![Value::from(id.as_str())];
            values.extend((0..=altered % 4).map(|_| Value::from(id.as_str())));
            Change { xid, table: Some((oid, altered)), message: write::insert(oid, &values) }
        };
        open.changes.push(change);
    }

    /// Releases or rolls back to a savepoint, and with it those inside.
    fn leave(&mut self, at: usize) {
        let depth = self.open[at].within.len();
        if depth == 0 {
            return;
        }
        let to = self.random.random_range(0..depth);
        let release = !self.open[at].may_roll_back || self.random.random_ratio(1, 3);
        let open = &mut self.open[at];
        let left = open.within.split_off(to);
        if release {
            // Its parts go on as what they were; their numbers stay.
            return;
        }
        for xid in left.iter().rev() {
            if open.streamed.remove(xid) {
                self.early.push(write::stream_abort(open.xid, *xid));
            }
        }
        let sent = open.changes[..open.sent].iter().filter(|change| !left.contains(&change.xid)).count();
        open.changes.retain(|change| !left.contains(&change.xid));
        open.sent = sent;
        open.locks.retain(|(xid, _)| !left.contains(xid));
    }

    /// Alters a table that nobody holds.
    fn alter(&mut self) {
        let (oid, _) = TABLES[self.random.random_range(0..TABLES.len())];
        if self.open.iter().any(|open| open.locks.iter().any(|(_, held)| *held == oid)) {
            return;
        }
        *self.altered.entry(oid).or_default() += 1;
        self.whole_knows.remove(&oid);
        self.early_knows.remove(&oid);
        self.described.retain(|(_, described)| *described != oid);
    }

    /// Sends what an open transaction has so far.
    fn block(&mut self, at: usize) {
        let open = &mut self.open[at];
        if !open.blocks || open.sent == open.changes.len() {
            return;
        }
        let first = open.streamed.insert(open.xid);
        self.early.push(write::stream_start(open.xid, first));
        for change in &open.changes[open.sent..] {
            open.streamed.insert(change.xid);
            if let Some(table) = change.table
                && self.described.insert((open.xid, table.0))
            {
                self.early.push(write::in_block(change.xid, &description(table)));
            }
            self.early.push(write::in_block(change.xid, &change.message));
        }
        self.early.push(write::stream_stop());
        open.sent = open.changes.len();
    }

    fn commit(&mut self, at: usize) {
        let (commit, end, time) = (Lsn(self.lsn), Lsn(self.lsn + 8), self.commits as i64);
        self.commits += 1;
        if !self.open[at].streamed.is_empty() {
            self.block(at);
        }
        let open = self.open.swap_remove(at);
        let whole = |to: &mut Vec<Vec<u8>>, knows: &mut BTreeSet<u32>| {
            to.push(write::begin(commit, time, open.xid));
            for change in &open.changes {
                if let Some(table) = change.table
                    && knows.insert(table.0)
                {
                    to.push(description(table));
                }
                to.push(change.message.clone());
            }
            to.push(write::commit(commit, end, time));
        };
        whole(&mut self.whole, &mut self.whole_knows);
        if open.streamed.is_empty() {
            return whole(&mut self.early, &mut self.early_knows);
        }
        self.early.push(write::stream_commit(open.xid, commit, end, time));
        self.early_knows.extend(self.described.iter().filter(|(xid, _)| *xid == open.xid).map(|(_, oid)| *oid));
    }

    fn abort(&mut self, at: usize) {
        if !self.open[at].may_roll_back {
            return;
        }
        let open = self.open.swap_remove(at);
        if open.streamed.is_empty() {
            return;
        }
        for xid in open.streamed.iter().filter(|xid| **xid != open.xid) {
            self.early.push(write::stream_abort(open.xid, *xid));
        }
        self.early.push(write::stream_abort(open.xid, open.xid));
        self.described.retain(|(xid, _)| *xid != open.xid);
    }
}

fn entries(mut take: impl FnMut(&mut Intake, &[u8]) -> Result<(), CaptureError>, messages: &[Vec<u8>]) -> Vec<Ready> {
    let mut intake = intake();
    for message in messages {
        take(&mut intake, message).unwrap_or_else(|error| panic!("{error}"));
    }
    intake.appender.cut_all();
    std::iter::from_fn(|| intake.appender.take_ready()).collect()
}

/// Batches, too: both runs give the same entries in the same order to the same logs.
#[test]
fn any_interleaving_tells_what_the_commit_order_tells() {
    let seed = std::env::var("TILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random::<u64>());
    let runs = Level::pick(50, 400, 20_000);
    println!("TILLSTREAM_SEED={seed}: {runs} runs");
    let (mut blocks, mut aborts, mut events) = (0, 0, 0);
    for run in 0..runs {
        let mut server = Server::new(seed.wrapping_add(run));
        for _ in 0..600 {
            server.step();
        }
        while !server.open.is_empty() {
            server.lsn += 0x10;
            server.commit(0);
        }
        let expected = entries(|intake, message| intake.take(message), &server.whole);
        let mut streamed = Streamed::new(&std::env::temp_dir(), 1 << 30);
        let found = entries(|intake, message| take(&mut streamed, intake, message), &server.early);
        assert!(found == expected, "run {run} of seed {seed}: the entries differ");
        assert_eq!(streamed.held(), 0, "run {run} of seed {seed}: nothing is left");
        let count = |tag: u8| server.early.iter().filter(|m| m[0] == tag).count();
        blocks += count(b'S');
        aborts += count(b'A');
        events += server.whole.iter().filter(|m| m[0] == b'I').count();
    }
    println!("{events} events, {blocks} blocks, {aborts} of them or their parts rolled back");
    assert!(blocks > 10 * runs as usize && aborts > runs as usize, "the runs were too tame");
}

/// Rows of three kinds, in savepoints that are kept and rolled back; more than stays in memory; a table altered and put back.
const LARGE: [&str; 7] = [
    "BEGIN; INSERT INTO t SELECT g, repeat('a', 300), 'glad' FROM generate_series(1, 6000) g",
    "SAVEPOINT a; INSERT INTO t SELECT g, repeat('b', 300), 'sad' FROM generate_series(6001, 9000) g; SAVEPOINT b; UPDATE t SET s = 'gone' WHERE id % 3 = 0; ROLLBACK TO b; UPDATE t SET s = 'kept' WHERE id % 1000 = 0; RELEASE a",
    "SAVEPOINT c; ALTER TABLE k ADD COLUMN extra text DEFAULT 'x'; INSERT INTO k SELECT 'c' || g, g, 'y' FROM generate_series(1, 3000) g; ROLLBACK TO c",
    "SAVEPOINT d; INSERT INTO f SELECT g, repeat('d', 200) FROM generate_series(1, 2000) g; ROLLBACK TO d; INSERT INTO f SELECT g, repeat('e', 200) FROM generate_series(1, 2000) g",
    "DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO t VALUES (10000 + i, repeat('z', 400), 'glad'); IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
    "UPDATE t SET id = id + 100000 WHERE id < 1500; UPDATE f SET b = 'short' WHERE a < 100; DELETE FROM t WHERE id BETWEEN 3000 AND 4000; INSERT INTO t VALUES (7000000, (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 4000) g), 'sad'); UPDATE t SET mood = 'glad' WHERE id = 7000000",
    "COMMIT",
];

#[tokio::test(flavor = "multi_thread")]
async fn events_are_the_same_with_and_without_streaming() {
    let server = Postgres::shared().await;
    let sql = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE t (id int PRIMARY KEY, s text, mood mood);
        CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL; CREATE TABLE k (code text PRIMARY KEY, n int)";
    let mut bench = Bench::new("streaming", server, sql, "FOR TABLE t, f, k", &["t", "f", "k"]).await;
    bench.sql(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", bench.database.name)).await;
    let streamed_slot = format!("{}_streamed", bench.source.slot);
    bench.sql(&format!("SELECT pg_create_logical_replication_slot('{streamed_slot}', 'pgoutput')")).await;
    let journal = || {
        let partitions = NonZeroU16::new(2).expect("not zero");
        LocalJournal::new(&config::LocalJournal { dir: scratch("streamed"), partitions, retention: Retention::default() })
    };
    let streamed_journal = journal();
    streamed_journal.set_up().await.expect("a journal");
    let mut other: (String, Arc<dyn Journal>) = (streamed_slot.clone(), Arc::new(streamed_journal));
    let mut swap = |bench: &mut Bench| {
        std::mem::swap(&mut bench.source.slot, &mut other.0);
        std::mem::swap(&mut bench.journal, &mut other.1);
        bench.source.streaming.on = !bench.source.streaming.on;
    };

    let beside = bench.database.connect().await;
    let run = async |sql: &str| beside.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
    bench.sql("INSERT INTO k VALUES ('first', 1)").await;
    // A second large transaction lies across the first, and small ones, and one that comes to nothing.
    run("BEGIN; INSERT INTO k SELECT 'beside' || g, g FROM generate_series(1, 4000) g; SAVEPOINT x; INSERT INTO f SELECT g, 'x' FROM generate_series(1, 3000) g; ROLLBACK TO x").await;
    let nothing = bench.database.connect().await;
    nothing.batch_execute("BEGIN; INSERT INTO f SELECT g, repeat('n', 100) FROM generate_series(1, 3000) g").await.expect("rows");
    bench.sql(LARGE[0]).await;
    bench.sql(LARGE[1]).await;
    // Runs end in the middle of all of them: what was streamed of them is forgotten and comes again.
    for _ in 0..2 {
        let events = bench.events().await;
        assert_eq!(events.len(), 1, "of what is open nothing is told");
        swap(&mut bench);
    }
    nothing.batch_execute("ROLLBACK").await.expect("ends");
    // Its lock on f went with the savepoint: the table is altered between its descriptions.
    run("COMMIT; ALTER TABLE f ADD COLUMN c text; INSERT INTO f VALUES (-1, 'altered', 'c')").await;
    for step in &LARGE[2..6] {
        bench.sql(step).await;
        run("INSERT INTO k VALUES (gen_random_uuid()::text, 1)").await;
    }
    bench.sql(LARGE[6]).await;
    bench
        .sql("INSERT INTO f VALUES (-2, 'after', 'c'); INSERT INTO k VALUES ('after', 1); INSERT INTO t VALUES (-1, 'after', 'sad')")
        .await;

    let whole = bench.events().await;
    swap(&mut bench);
    assert!(bench.source.streaming.on);
    let streamed = bench.events().await;
    assert!(whole.len() > 12_000, "{} events", whole.len());
    assert_eq!(whole.len(), streamed.len());
    for (whole, streamed) in whole.iter().zip(&streamed) {
        assert_eq!((whole.partition, &whole.id, &whole.body), (streamed.partition, &streamed.id, &streamed.body));
    }
    let layouts = |state: tillstream::control::State| state.layouts().cloned().collect::<Vec<_>>();
    let streamed_layouts = layouts(bench.control().await);
    swap(&mut bench);
    assert_eq!(layouts(bench.control().await), streamed_layouts, "a layout that was rolled back is none");
    // Whether the server did what it was asked for.
    let count = format!("SELECT stream_txns::text FROM pg_stat_replication_slots WHERE slot_name = '{streamed_slot}'");
    let shown =
        wait_for("the server's counters", PATIENCE, async || Some(bench.text(&count).await).filter(|n| n != "0" && !n.is_empty())).await;
    println!("{} events, {shown} transactions streamed", streamed.len());
    bench.sql(&format!("SELECT pg_drop_replication_slot('{streamed_slot}')")).await;
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_streamed_beyond_the_spool_stops_capture_and_loses_nothing() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new("spool", server, "CREATE TABLE t (id int PRIMARY KEY, s text)", "FOR TABLE t", &["t"]).await;
    bench.sql(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", bench.database.name)).await;
    bench.source.streaming.on = true;
    bench.source.streaming.spool_max = 1 << 20;
    bench.sql("INSERT INTO t VALUES (0, 'small')").await;
    bench.sql("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g").await;
    let error = bench.try_catch_up().await.expect_err("the spool is full");
    assert_eq!(error.code(), "capture.spool_full");
    let CaptureError::Definite { fix, .. } = &error else { panic!("{error}") };
    assert!(fix.contains("source.streaming: off"), "{fix}");
    bench.source.streaming.on = false;
    assert_eq!(bench.events().await.len(), 5001, "the slot still held everything");

    // A message in a savepoint: the server does not say which one it belongs to.
    bench.source.streaming.on = true;
    bench.source.streaming.spool_max = 1 << 30;
    bench.sql("BEGIN; SAVEPOINT a; SELECT pg_logical_emit_message(true, 'outbox', 'void'); INSERT INTO t SELECT -g, repeat('x', 500) FROM generate_series(1, 5000) g; ROLLBACK TO a; SELECT pg_logical_emit_message(true, 'outbox', 'told'); COMMIT").await;
    let error = bench.try_catch_up().await.expect_err("doubtful");
    assert_eq!(error.code(), "capture.streamed_message");
    bench.source.streaming.on = false;
    let events = bench.events().await;
    assert_eq!(events.len(), 5002, "the message that was told, and no other");
    bench.end(server).await;
}

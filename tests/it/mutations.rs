//! Hostile replication messages: a corpus of what must never be taken, and recorded messages altered at random.
//!
//! All of them go the whole way that a real message goes: parsed, judged against those before, encoded, put into batches. Whatever
//! the bytes, the answer is events or a coded error: no panic, no hang, no memory beyond what the message itself holds.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tillstream::capture::appender::{Appender, Run, Tail};
use tillstream::capture::intake::Intake;
use tillstream::capture::progress::Progress;
use tillstream::capture::source::{Frame, Replication};
use tillstream::capture::streamed::Streamed;
use tillstream::capture::wire::PgSource;
use tillstream::capture::{CaptureError, Settings};
use tillstream::config::{HoldBack, Source, SourceTable};
use tillstream::control::Stamp;
use tillstream_schemas::{Lineage, Lsn};

use crate::harness::{Level, PATIENCE, Postgres, scratch};
use crate::matrix::Bench;
use crate::pgoutput_writer::{self as write, Old, Value, column};

/// The tables of the corpus and of the recording.
const TABLES: [&str; 5] = ["t", "u", "f", "k", "s"];

pub(crate) fn intake() -> Intake {
    intake_of(2)
}

/// An intake for so many data logs, none of which holds anything yet.
pub(crate) fn intake_of(logs: usize) -> Intake {
    let none = HoldBack { time: Duration::ZERO, bytes: 0 };
    let table = |name: &str| SourceTable { schema: "public".to_owned(), table: name.to_owned(), partition_by: None };
    let source = Source {
        name: "pos".to_owned(),
        url: String::new().into(),
        backfill_url: None,
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        tables: TABLES.map(table).to_vec(),
        hold_back: none,
        wal_budget: 1 << 30,
        initial_load: false,
        allow_weak_auth: false,
        columns: Default::default(),
        streaming: Default::default(),
        origin: Default::default(),
    };
    let settings = Settings {
        pipeline: "test".to_owned(),
        source,
        primary_keys: HashMap::new(),
        oids: HashMap::new(),
        row_bytes_max: 64 << 20,
        owner: "test".to_owned(),
        seed: None,
    };
    let run = Run { token: 1, epoch: 1, lineage: Lineage(7), source: "pos".to_owned() };
    let stamp = Stamp { token: 1, writer: "w".to_owned(), source: "pos".to_owned(), lineage: Lineage(7) };
    let appender = Appender::new(run, 1 << 20, &vec![Tail::default(); logs]);
    Intake::new(&settings, appender, Progress::new(logs + 1, none), stamp, 1 << 20, Arc::default())
}

/// Feeds messages until one is refused; answers how many bytes of batches they became.
fn feed<'m>(messages: impl IntoIterator<Item = &'m [u8]>) -> Result<usize, CaptureError> {
    let mut intake = intake();
    let mut bytes = 0;
    let mut result = Ok(());
    let mut streamed = None;
    for message in messages {
        // A transaction that comes in blocks was asked for; what begins otherwise is of a session that asks for none.
        if message.first() == Some(&b'S') && streamed.is_none() {
            streamed = Some(Streamed::new(&std::env::temp_dir(), 64 << 20));
        }
        result = match &mut streamed {
            Some(streamed) => crate::streaming::take(streamed, &mut intake, message),
            None => intake.take(message),
        };
        if result.is_err() {
            break;
        }
    }
    intake.appender.cut_all();
    while let Some(ready) = intake.appender.take_ready() {
        bytes += ready.batch.bytes.len();
    }
    result.map(|()| bytes)
}

fn relation(oid: u32, name: &str) -> Vec<u8> {
    write::relation(oid, "public", name, b'd', &[column("id", 23, true), column("n", 23, false)])
}

#[test]
fn the_corpus_is_refused_with_a_code() {
    let (at, end) = (Lsn(0x1000), Lsn(0x1030));
    let begin = write::begin(at, 0, 7);
    let commit = write::commit(at, end, 0);
    let known = relation(1, "t");
    let row = [Value::from("1"), Value::Null];
    let insert = write::insert(1, &row);
    let with = |mut bytes: Vec<u8>, at: usize, new: &[u8]| {
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let cut = |bytes: &[u8], n: usize| bytes[..bytes.len() - n].to_vec();
    let message = |flags: u8, length: u32| {
        let mut bytes = write::message(true, at, "m", b"abc");
        bytes[1] = flags;
        let place = bytes.len() - 7;
        bytes[place..place + 4].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let well = [begin.clone(), known.clone(), insert.clone(), commit.clone()];
    assert!(feed(well.iter().map(Vec::as_slice)).expect("a good transaction") > 0);

    let corpus: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("no byte at all", vec![vec![]], "capture.malformed_message"),
        ("an unknown message", vec![vec![b'?']], "capture.unknown_message"),
        ("a byte that is no letter", vec![vec![0]], "capture.unknown_message"),
        ("a commit without its begin", vec![commit.clone()], "capture.malformed_message"),
        ("a begin in a transaction", vec![begin.clone(), begin.clone()], "capture.malformed_message"),
        ("a commit elsewhere than announced", vec![begin.clone(), write::commit(Lsn(0x2000), Lsn(0x2030), 0)], "capture.malformed_message"),
        ("a commit that ends before it begins", vec![begin.clone(), write::commit(at, Lsn(0), 0)], "capture.malformed_message"),
        (
            "a transaction below the one before",
            vec![begin.clone(), commit.clone(), write::begin(Lsn(0x10), 0, 8)],
            "capture.malformed_message",
        ),
        ("a row outside a transaction", vec![insert.clone()], "capture.malformed_message"),
        ("a row after the commit", vec![begin.clone(), known.clone(), commit.clone(), insert.clone()], "capture.malformed_message"),
        ("a table described outside a transaction", vec![known.clone()], "capture.malformed_message"),
        ("a row of a table that nobody described", vec![begin.clone(), insert.clone()], "capture.malformed_message"),
        ("a truncate of one", vec![begin.clone(), write::truncate(&[9])], "capture.malformed_message"),
        ("a truncate of none", vec![begin.clone(), write::truncate(&[])], "capture.malformed_message"),
        (
            "a truncate of more than it names",
            vec![begin.clone(), known.clone(), with(write::truncate(&[1]), 1, &65_535u32.to_be_bytes())],
            "capture.malformed_message",
        ),
        (
            "a truncate with unknown options",
            vec![begin.clone(), known.clone(), with(write::truncate(&[1]), 5, &[0x84])],
            "capture.malformed_message",
        ),
        ("fewer values than columns", vec![begin.clone(), known.clone(), write::insert(1, &row[..1])], "capture.malformed_message"),
        (
            "more values than columns",
            vec![begin.clone(), known.clone(), write::insert(1, &[Value::from("1"), Value::Null, Value::Null])],
            "capture.malformed_message",
        ),
        (
            "a table that shrinks between a row and the next",
            vec![
                begin.clone(),
                known.clone(),
                insert.clone(),
                write::relation(1, "public", "t", b'd', &[column("id", 23, true)]),
                insert.clone(),
            ],
            "capture.malformed_message",
        ),
        (
            "two columns of one name",
            vec![begin.clone(), write::relation(1, "public", "t", b'd', &[column("a", 23, true), column("a", 23, false)])],
            "capture.malformed_message",
        ),
        ("an identity that does not exist", vec![begin.clone(), write::relation(1, "public", "t", b'x', &[])], "capture.malformed_message"),
        ("a name without its end", vec![begin.clone(), known[..12].to_vec()], "capture.malformed_message"),
        (
            "more columns than there can be",
            vec![begin.clone(), with(insert.clone(), 6, &u16::MAX.to_be_bytes())],
            "capture.malformed_message",
        ),
        (
            "a value of negative length",
            vec![begin.clone(), known.clone(), with(insert.clone(), 9, &u32::MAX.to_be_bytes())],
            "capture.malformed_message",
        ),
        (
            "a value of two gigabytes",
            vec![begin.clone(), known.clone(), with(insert.clone(), 9, &0x7fff_ffffu32.to_be_bytes())],
            "capture.malformed_message",
        ),
        ("an unknown kind of value", vec![begin.clone(), known.clone(), with(insert.clone(), 8, b"x")], "capture.malformed_message"),
        ("a binary value", vec![begin.clone(), known.clone(), with(insert.clone(), 8, b"b")], "capture.malformed_message"),
        (
            "an unchanged value in an old key",
            vec![begin.clone(), known.clone(), write::delete(1, Old::Key(&[Value::Unchanged, Value::Null]))],
            "capture.malformed_message",
        ),
        (
            "a delete without an old row",
            vec![begin.clone(), known.clone(), with(write::delete(1, Old::Key(&row)), 5, b"N")],
            "capture.malformed_message",
        ),
        (
            "an update without a new row",
            vec![begin.clone(), known.clone(), with(write::update(1, None, &row), 5, b"K")],
            "capture.malformed_message",
        ),
        ("bytes left behind a message", vec![[begin.clone(), vec![0]].concat()], "capture.malformed_message"),
        ("a message that says it is longer than it is", vec![begin.clone(), message(1, 1 << 30)], "capture.malformed_message"),
        (
            "a message shorter than it says",
            vec![begin.clone(), cut(&write::message(true, at, "m", b"abc"), 1)],
            "capture.malformed_message",
        ),
        ("a message with unknown flags", vec![begin.clone(), message(2, 3)], "capture.malformed_message"),
        (
            "a message outside that stands before what came",
            vec![begin.clone(), commit.clone(), write::message(false, at, "m", b"")],
            "capture.malformed_message",
        ),
        ("a type without its end", vec![cut(&write::type_name(9, "public", "mood"), 1)], "capture.malformed_message"),
        ("an origin without its end", vec![begin.clone(), cut(&write::origin(at, "berlin"), 1)], "capture.malformed_message"),
    ];
    let mut corpus = corpus;
    let (start, stop) = (write::stream_start(7, true), write::stream_stop());
    let in_block = write::in_block(7, &write::insert(1, &row));
    let stream_commit = write::stream_commit(7, at, end, 0);
    let streamed: [(&str, Vec<Vec<u8>>, &str); 16] = [
        ("a block in a block", vec![start.clone(), write::stream_start(8, true)], "capture.malformed_message"),
        ("a block that ends twice", vec![start.clone(), stop.clone(), stop.clone()], "capture.malformed_message"),
        ("a transaction that goes on without its first block", vec![write::stream_start(7, false)], "capture.malformed_message"),
        ("two first blocks", vec![start.clone(), stop.clone(), start.clone()], "capture.malformed_message"),
        ("a commit inside a block", vec![start.clone(), stream_commit.clone()], "capture.malformed_message"),
        ("a begin inside a block", vec![start.clone(), write::begin(at, 0, 9)], "capture.malformed_message"),
        (
            "a commit of a streamed transaction that did not begin",
            vec![start.clone(), stop.clone(), write::stream_commit(8, at, end, 0)],
            "capture.malformed_message",
        ),
        (
            "a commit of one that was rolled back",
            vec![start.clone(), stop.clone(), write::stream_abort(7, 7), stream_commit.clone()],
            "capture.malformed_message",
        ),
        ("a part of nothing rolled back", vec![start.clone(), stop.clone(), write::stream_abort(8, 9)], "capture.malformed_message"),
        ("a transaction without number", vec![write::stream_start(0, true)], "capture.malformed_message"),
        ("a mark that is neither yes nor no", vec![with(start.clone(), 5, &[2])], "capture.malformed_message"),
        ("bytes behind the end of a block", vec![start.clone(), vec![b'E', 0]], "capture.malformed_message"),
        ("an abort without its part", vec![start.clone(), stop.clone(), cut(&write::stream_abort(7, 8), 1)], "capture.malformed_message"),
        (
            "a row of a table that nobody described",
            vec![start.clone(), in_block.clone(), stop.clone(), stream_commit.clone()],
            "capture.malformed_message",
        ),
        (
            "a row cut off behind its number",
            vec![start.clone(), write::in_block(7, &known), in_block[..7].to_vec(), stop.clone(), stream_commit.clone()],
            "capture.malformed_message",
        ),
        (
            "messages of which some may be void",
            vec![
                start.clone(),
                write::in_block(7, &write::message(true, at, "m", b"abc")),
                stop.clone(),
                write::stream_abort(7, 8),
                stream_commit.clone(),
            ],
            "capture.streamed_message",
        ),
    ];
    corpus.extend(streamed);
    let well = [start, write::in_block(7, &known), in_block, stop, stream_commit];
    assert!(feed(well.iter().map(Vec::as_slice)).expect("a good streamed transaction") > 0);
    // Prepared transactions, which we do not ask for, and streamed ones where they were not asked for.
    for tag in b"EcAbPKrp" {
        corpus.push((
            "a message of an option that was not asked for",
            vec![[&[*tag][..], &[0; 40]].concat()],
            "capture.unexpected_message",
        ));
    }
    for (what, messages, code) in &corpus {
        let error = feed(messages.iter().map(Vec::as_slice)).err().unwrap_or_else(|| panic!("{what}: taken"));
        assert_eq!(error.code(), *code, "{what}");
        assert!(!error.is_transient(), "{what}: trying again does not help");
    }
    // Odd, and none of them wrong.
    for (what, messages) in [
        ("an origin twice", vec![begin.clone(), write::origin(at, "a"), write::origin(at, "b"), commit.clone()]),
        ("a type that nobody uses", vec![write::type_name(9, "", ""), begin.clone(), commit.clone()]),
        ("a table described twice", vec![begin.clone(), known.clone(), known.clone(), insert, commit.clone()]),
        ("a table without columns", vec![begin.clone(), write::relation(1, "", "t", b'n', &[]), write::insert(1, &[]), commit.clone()]),
        ("an empty transaction", vec![begin, commit]),
    ] {
        if let Err(error) = feed(messages.iter().map(Vec::as_slice)) {
            panic!("{what}: {error}");
        }
    }
    println!("{} hostile sequences refused", corpus.len());
}

/// Changes of many kinds, by a real server.
const SCRIPT: [&str; 9] = [
    "INSERT INTO t SELECT g, g FROM generate_series(1, 5) g; UPDATE t SET n = -n; UPDATE t SET id = id + 100 WHERE id < 3; DELETE FROM t WHERE id = 5",
    "INSERT INTO u VALUES (1, 'glad', '{a,NULL,\"b c\"}', '{\"a\": [1, null]}', '\\x00ff', 'NaN', now(), '1 day', '{1,2}', E'tab\\t\"quote\\\\', repeat('x', 4000))",
    "UPDATE u SET n = 2; UPDATE u SET big = NULL",
    "INSERT INTO f VALUES (1, 'a'), (1, 'a'), (NULL, NULL); UPDATE f SET b = repeat('y', 3000); DELETE FROM f",
    "BEGIN; INSERT INTO k VALUES ('code', 1); UPDATE k SET code = 'other'; TRUNCATE k, t; INSERT INTO k VALUES ('x', 2); COMMIT",
    "SELECT pg_logical_emit_message(true, 'outbox/x', '{\"a\": 1}'); SELECT pg_logical_emit_message(false, 'outside', 'y')",
    "ALTER TABLE t ADD c text DEFAULT 'd'; INSERT INTO t VALUES (9, 9, 'c'); ALTER TABLE t DROP n; UPDATE t SET c = 'e'",
    "INSERT INTO s SELECT g, date '2026-01-01' + g FROM generate_series(1, 60, 20) g; UPDATE s SET at = at + 31; TRUNCATE s",
    "SELECT pg_logical_emit_message(true, 'the', 'end')",
];

/// Records what a server sends for the script: transactions, each with the descriptions that it needs.
async fn record() -> Vec<Vec<Vec<u8>>> {
    let server = Postgres::shared().await;
    let sql = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE t (id int PRIMARY KEY, n int);
        CREATE TABLE u (n int PRIMARY KEY, m mood, a text[], j jsonb, b bytea, d numeric, z timestamptz, i interval, l int[], s text, big text);
        ALTER TABLE u ALTER big SET STORAGE EXTERNAL;
        CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL;
        CREATE TABLE k (code text PRIMARY KEY, n int);
        CREATE TABLE s (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE s_1 PARTITION OF s FOR VALUES FROM ('2026-01-01') TO ('2026-02-01'); CREATE TABLE s_2 PARTITION OF s DEFAULT;";
    let publication = "FOR TABLE t, u, f, k, s WITH (publish_via_partition_root = true)";
    let bench = Bench::new("record", server, sql, publication, &TABLES).await;
    for step in SCRIPT {
        bench.sql(step).await;
    }
    let mut connection = PgSource::new(&bench.source, "record").log_in().await.expect("logs in");
    connection.start().await.expect("takes the slot");
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let reading = async {
        loop {
            connection.fill(true).await.expect("bytes");
            while let Some(frame) = connection.next().expect("frames") {
                let Frame::XLogData { data, .. } = frame else { continue };
                frames.push(data.to_vec());
                let last = frames.iter().rev().nth(1).is_some_and(|m| m.ends_with(b"the\0\0\0\0\x03end"));
                if data.first() == Some(&b'C') && last {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the end comes");
    connection.stop().await;
    bench.end(server).await;

    let mut described: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let (mut transactions, mut open) = (Vec::new(), Vec::new());
    for frame in frames {
        let tag = frame[0];
        let oid = frame.get(1..5).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
        match tag {
            b'R' => drop(described.insert(oid, frame.clone())),
            b'T' => {
                // Its tables may have been described in another transaction.
                for known in described.values() {
                    if !open.contains(known) {
                        open.push(known.clone());
                    }
                }
            }
            b'I' | b'U' | b'D' => {
                if let Some(known) = described.get(&oid).filter(|known| !open.contains(*known)) {
                    open.push(known.clone());
                }
            }
            _ => {}
        }
        open.push(frame);
        if tag == b'C' || (tag == b'M' && open.len() == 1) {
            transactions.push(std::mem::take(&mut open));
        }
    }
    transactions
}

/// A transaction as it comes before it commits.
fn in_blocks(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let Some((begin, rest)) = messages.split_first() else { return Vec::new() };
    let Some((commit, changes)) = rest.split_last() else { return Vec::new() };
    let number = |bytes: &[u8], at: usize| bytes[at..].first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b));
    let xid = (number(begin, 13) & u64::from(u32::MAX)) as u32;
    let has_messages = changes.iter().any(|m| m[0] == b'M');
    let (first, second) = changes.split_at(changes.len() / 2);
    let mut blocks = vec![write::stream_start(xid, true)];
    blocks.extend(first.iter().map(|m| write::in_block(xid, m)));
    blocks.extend([write::stream_stop(), write::stream_start(xid, false)]);
    blocks.extend(second.iter().map(|m| write::in_block(xid, m)));
    blocks.push(write::in_block(xid + 1, &write::insert(1, &[])));
    blocks.push(write::stream_stop());
    if !has_messages {
        blocks.push(write::stream_abort(xid, xid + 1));
    } else {
        blocks.truncate(blocks.len() - 2);
        blocks.push(write::stream_stop());
    }
    blocks.push(write::stream_commit(xid, Lsn(number(commit, 2)), Lsn(number(commit, 10)), number(commit, 18).cast_signed()));
    blocks
}

fn alter(bytes: &mut Vec<u8>, donor: &[u8], random: &mut SmallRng) {
    let at = random.random_range(0..bytes.len().max(1));
    match random.random_range(0..9) {
        _ if bytes.is_empty() => bytes.push(random.random()),
        0 => bytes[at] = random.random(),
        1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => bytes.insert(at, random.random()),
        3 => drop(bytes.remove(at)),
        4 => bytes.truncate(at),
        // Lengths and counts at their limits.
        5 | 6 => {
            let extremes = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0x4000_0000, 65_535, 1600];
            let extreme = extremes[random.random_range(0..extremes.len())].to_be_bytes();
            let width = [2, 4][random.random_range(0..2)];
            for (to, from) in bytes[at..].iter_mut().zip(&extreme[4 - width..]) {
                *to = *from;
            }
        }
        7 => bytes.extend_from_slice(&donor[random.random_range(0..donor.len())..]),
        _ => {
            let end = random.random_range(at..bytes.len());
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

/// Virtual memory at its highest so far, in KiB: a reservation shows even if nobody touches it.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux /proc");
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:")).expect("VmPeak");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

/// Alters and feeds `TILLSTREAM_MUTATIONS` messages of the recording in the file `TILLSTREAM_RECORDING`, in a process of its own:
/// nobody else's memory is measured.
#[test]
#[ignore = "started by another test"]
fn in_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"));
    let bytes = std::fs::read(variable("TILLSTREAM_RECORDING")).expect("readable");
    let transactions: Vec<Vec<Vec<u8>>> = serde_json::from_slice(&bytes).expect("a recording");
    let wanted: u64 = variable("TILLSTREAM_MUTATIONS").parse().expect("a number");
    let mut random = SmallRng::seed_from_u64(variable("TILLSTREAM_SEED").parse().expect("a number"));
    // Each of them once more in two blocks, with a part that is rolled back.
    let mut transactions = transactions;
    let streamed: Vec<_> = transactions.iter().filter(|messages| messages[0][0] == b'B').map(|messages| in_blocks(messages)).collect();
    transactions.extend(streamed);
    let frames: Vec<&Vec<u8>> = transactions.iter().flatten().collect();
    for transaction in &transactions {
        feed(transaction.iter().map(Vec::as_slice)).expect("the recording itself is sound");
    }
    let (mut altered, mut taken, mut slowest) = (0u64, 0u64, Duration::ZERO);
    let before = peak_kib();
    let mut messages: Vec<Vec<u8>> = Vec::new();
    while altered < wanted {
        messages.clone_from(&transactions[random.random_range(0..transactions.len())]);
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..messages.len());
            let donor = frames[random.random_range(0..frames.len())];
            alter(&mut messages[at], donor, &mut random);
            altered += 1;
        }
        let began = Instant::now();
        let size: usize = messages.iter().map(Vec::len).sum();
        if let Ok(written) = feed(messages.iter().map(Vec::as_slice)) {
            taken += 1;
            // Every byte may be escaped as six, in two partitions, in before and after; each event has its frame.
            assert!(written <= 24 * size + 2048 * messages.len(), "{written} bytes from {size}");
        }
        slowest = slowest.max(began.elapsed());
    }
    let grown = peak_kib().saturating_sub(before);
    println!("mutated {altered}, taken as another message {taken}, slowest {slowest:?}, virtual memory grew {grown} KiB");
    assert!(slowest < Duration::from_secs(2), "a message took {slowest:?}");
    assert!(grown < 64 << 10, "virtual memory grew by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_messages_altered_at_random_are_taken_or_refused() {
    let transactions = record().await;
    let frames: usize = transactions.iter().map(Vec::len).sum();
    let seed = std::env::var("TILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random::<u64>());
    let count = Level::pick(50_000u64, 300_000, 10_000_000);
    println!("TILLSTREAM_SEED={seed}: {count} mutations of {frames} messages in {} transactions", transactions.len());
    let file = scratch("mutations").join("recording.json");
    std::fs::write(&file, serde_json::to_vec(&transactions).expect("bytes")).expect("target/ can be written");
    let output = tokio::task::spawn_blocking(move || child(&file, count, seed)).await.expect("no panic");
    println!("{output}");
}

fn child(recording: &Path, count: u64, seed: u64) -> String {
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "mutations::in_a_process_of_its_own", "--ignored", "--nocapture", "--test-threads=1"])
        .env("TILLSTREAM_RECORDING", recording)
        .env("TILLSTREAM_MUTATIONS", count.to_string())
        .env("TILLSTREAM_SEED", seed.to_string())
        .output()
        .expect("the test binary runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "seed {seed}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    let line = printed.lines().find_map(|l| l.find("mutated ").map(|at| l[at..].to_owned()));
    line.expect("the child tells what it did")
}

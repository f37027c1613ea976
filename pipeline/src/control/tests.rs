//! The control journal against a journal in memory that behaves as a broker does: what is fenced off is dropped *and
//! confirmed*, and retention drops beginnings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Lineage, Lsn, Position};
use tokio::sync::watch;

use super::*;
use crate::journal::{Batch, Bounds, Chunk, From, Journal, Log, ProducerName, PublishId, Reader};

#[derive(Default)]
struct Inner {
    /// One entry each, length-prefixed; the offset is the index.
    entries: Vec<Bytes>,
    first: u64,
    ids: HashMap<String, PublishId>,
}

struct Memory {
    inner: Mutex<Inner>,
    grown: watch::Sender<u64>,
    batch_bytes_max: usize,
}

impl Memory {
    fn new(batch_bytes_max: usize) -> Arc<Memory> {
        Arc::new(Memory { inner: Mutex::default(), grown: watch::channel(0).0, batch_bytes_max })
    }

    fn append(&self, name: &str, id: PublishId, batch: &Batch) {
        let mut inner = self.inner.lock().expect("no holder panicked");
        let highest = inner.ids.entry(name.to_owned()).or_default();
        if id <= *highest {
            return;
        }
        *highest = id;
        for record in Records::new(&batch.bytes) {
            let record = record.expect("framed");
            let mut bytes = u32::try_from(record.len()).expect("short").to_be_bytes().to_vec();
            bytes.extend_from_slice(record);
            inner.entries.push(bytes.into());
        }
        self.grown.send_replace(inner.entries.len() as u64);
    }

    fn put(&self, record: &Record, token: u32, writer: &str, id: &mut u64) {
        let stamp = Stamp { token, writer: writer.to_owned(), source: "pos".to_owned(), lineage: Lineage(1) };
        for batch in encode(record, &stamp, self.batch_bytes_max) {
            assert!(batch.bytes.len() <= self.batch_bytes_max, "{} bytes", batch.bytes.len());
            *id += 1;
            self.append(writer, PublishId::new(1, *id), &batch);
        }
    }

    fn drop_below(&self, offset: u64) {
        self.inner.lock().expect("no holder panicked").first = offset;
    }

    fn len(&self) -> u64 {
        self.inner.lock().expect("no holder panicked").entries.len() as u64
    }

    /// The state by applying every entry one after the other, from the true beginning.
    fn state_at(&self, upto: u64) -> State {
        let inner = self.inner.lock().expect("no holder panicked");
        let mut state = State::default();
        for (offset, bytes) in inner.entries.iter().take(upto as usize).enumerate() {
            let entry = Entry::decode(&bytes[4..]).expect("an entry");
            state.apply(Offset(offset as u64), &entry.header, entry.body).expect("applies");
        }
        state.take_snapshot();
        state
    }
}

struct MemoryWriter(Arc<Memory>, String, PublishId);

#[async_trait]
impl crate::journal::Writer for MemoryWriter {
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        assert_eq!(log, Log::Control);
        self.0.append(&self.1, id, &batch);
        self.2 = id;
        Ok(())
    }
    fn confirmed(&self, _: Log) -> PublishId {
        self.2
    }
    async fn progress(&mut self) -> Result<(), JournalError> {
        Ok(())
    }
    fn unconfirmed_bytes(&self) -> usize {
        0
    }
    async fn flush(&mut self) -> Result<(), JournalError> {
        Ok(())
    }
}

struct MemoryReader(Arc<Memory>, u64, watch::Receiver<u64>);

#[async_trait]
impl Reader for MemoryReader {
    async fn next(&mut self) -> Result<Chunk, JournalError> {
        let at = self.1;
        self.2.wait_for(|len| *len > at).await.expect("the journal lives");
        let inner = self.0.inner.lock().expect("no holder panicked");
        // Chunks of up to three entries.
        let entries = &inner.entries[at as usize..inner.entries.len().min(at as usize + 3)];
        let records = entries.len() as u32;
        self.1 += u64::from(records);
        Ok(Chunk { first_offset: Offset(at), stored_at_ms: 0, bytes: entries.concat().into(), records })
    }
}

/// What tests hold: the trait wants `Arc<dyn Journal>` and the writer wants the memory.
struct Shared(Arc<Memory>);

#[async_trait]
impl Journal for Shared {
    async fn set_up(&self) -> Result<(), JournalError> {
        Ok(())
    }
    fn partitions(&self) -> u16 {
        1
    }
    async fn describe(&self) -> Result<String, JournalError> {
        Ok("memory".to_owned())
    }
    fn batch_bytes_max(&self) -> usize {
        self.0.batch_bytes_max
    }
    async fn writer(&self, name: &ProducerName) -> Result<Box<dyn crate::journal::Writer>, JournalError> {
        Ok(Box::new(MemoryWriter(self.0.clone(), name.0.clone(), PublishId(0))))
    }
    async fn reader(&self, _: Log, from: From) -> Result<Box<dyn Reader>, JournalError> {
        let first = self.0.inner.lock().expect("no holder panicked").first;
        let at = match from {
            From::First => first,
            From::Offset(offset) if offset.0 < first => return Err(JournalError::Expired { wanted: offset, first: Offset(first) }),
            // Attaching lands on a chunk's start, below the wanted offset.
            From::Offset(offset) => (offset.0 - offset.0 % 3).max(first),
            From::Next | From::Time(_) => self.0.len(),
        };
        Ok(Box::new(MemoryReader(self.0.clone(), at, self.0.grown.subscribe())))
    }
    async fn tail(&self, _: Log) -> Result<Option<Chunk>, JournalError> {
        Ok(None)
    }
    async fn bounds(&self, _: Log) -> Result<Option<Bounds>, JournalError> {
        let inner = self.0.inner.lock().expect("no holder panicked");
        Ok((inner.entries.len() as u64 > inner.first)
            .then(|| Bounds { first: Offset(inner.first), last: Offset(inner.entries.len() as u64 - 1) }))
    }
}

fn session(token: u32, nonce: &str) -> Record {
    Record::Session(Session {
        token,
        nonce: nonce.to_owned(),
        owner: "host/1".to_owned(),
        pipeline: "shop".to_owned(),
        source: "pos".to_owned(),
        system_id: u64::MAX,
        timeline: 1,
        slot: "shop".to_owned(),
        epoch: 1,
        lineage: Lineage(0xABC),
        partitioning: None,
        confirmed: None,
        at_ms: 1,
    })
}

fn lease(lease: u32, nonce: &str) -> Record {
    let (nonce, owner) = (nonce.to_owned(), "host/1".to_owned());
    Record::Lease(Lease {
        connector: "stock".to_owned(),
        partition: 0,
        lease,
        nonce,
        owner,
        member: String::new(),
        released: false,
        at_ms: 1,
    })
}

fn checkpoint(lease: u32, offset: u64) -> Record {
    Record::Checkpoint(Checkpoint {
        connector: "stock".to_owned(),
        partition: 0,
        lease,
        offset: Offset(offset),
        position: Position::new(1, Lsn(offset), 3),
        token: 2,
        ledger: vec![(offset + 2, offset + 4)],
        replay: None,
        at_ms: 1,
    })
}

fn wish(number: u32) -> Record {
    Record::ReplayRequested(ReplayRequested {
        connector: "stock".to_owned(),
        partition: 0,
        number,
        from: Some(Spot { offset: Offset(3), position: Position::new(1, Lsn(3), 1), token: 1 }),
        to: Some(Offset(9)),
        row: Some("00000000000000ff".to_owned()),
        by: "op".to_owned(),
        at_ms: 1,
    })
}

fn letter(event: &str, body: &str) -> Record {
    Record::DeadLetter(DeadLetter {
        connector: "stock".to_owned(),
        partition: 0,
        offset: Offset(7),
        event_id: event.to_owned(),
        event: Body::new(body.as_bytes()),
        code: "http.status_422".to_owned(),
        message: "refused".to_owned(),
        attempts: 1,
        first_at_ms: 1,
        last_at_ms: 2,
        idempotency_key: "k".to_owned(),
        version: Position::new(1, Lsn(9), 0),
    })
}

fn settled(event: &str) -> Record {
    Record::DeadLetterSettled(DeadLetterSettled {
        connector: "stock".to_owned(),
        event_id: event.to_owned(),
        how: Settled::Discarded,
        reason: "test".to_owned(),
        by: "op".to_owned(),
        at_ms: 1,
    })
}

fn accepted(layout: &str, refuse: bool) -> Record {
    let (connector, table) = ("stock".to_owned(), "public.orders".to_owned());
    Record::LayoutAccepted(LayoutAccepted { connector, table, layout: layout.to_owned(), refuse, by: "op".to_owned(), at_ms: 1 })
}

fn pause(at_ms: i64, over: bool) -> Record {
    let (reason, by) = ("it moves".to_owned(), "anna pid 7: connector pause".to_owned());
    Record::Pause(Pause { connector: "stock".to_owned(), over, reason, by, at_ms })
}

fn redrive(event: &str) -> Record {
    let event_ids = vec![event.to_owned()];
    Record::RedriveRequested(RedriveRequested { connector: "stock".to_owned(), event_ids, code: None, by: "op".to_owned(), at_ms: 1 })
}

fn cursor(chunk: u32, attempt: u32) -> Record {
    Record::Cursor(Cursor {
        job: "load".to_owned(),
        table: "public.orders".to_owned(),
        part: String::new(),
        epoch: 1,
        chunk,
        attempt,
        after: Some(KeyTexts(vec!["1".to_owned(), "ü\"\u{1}".to_owned()])),
        bound: None,
        rows: 10,
        done: false,
        started_at_ms: 1,
        at_ms: 1,
    })
}

fn applied(records: &[(u32, Record)]) -> State {
    let mut state = State::default();
    for (offset, (token, record)) in records.iter().enumerate() {
        let stored = Stored { offset: Offset(offset as u64), token: *token, bytes: 1, record: record.clone() };
        state.apply_record(stored).expect("applies");
    }
    state
}

#[test]
fn records_keep_their_stored_form() {
    let records = [
        session(3, "n"),
        lease(2, "n"),
        checkpoint(2, 5),
        letter("e1-0/1-1", "{\"id\":\"e1-0/1-1\",\"after\":{\"p\":1.10}}"),
        settled("e1-0/1-1"),
        redrive("e1-0/1-1"),
        wish(4),
        pause(1, false),
        pause(2, true),
        cursor(3, 1),
        Record::LoadFinished(LoadFinished { job: "load".to_owned(), epoch: 1, tables: 2, rows: 3, at_ms: 4 }),
        Record::Released(Released { epoch: 1, upto: Lsn(0x18), at_ms: 1 }),
        Record::Epoch(Epoch { epoch: 2, after: Lsn(0x10), reload: true, why: "restore".to_owned(), by: "op".to_owned(), at_ms: 1 }),
        Record::Audit(Audit { who: "op".to_owned(), what: "discard".to_owned(), why: "test".to_owned(), at_ms: 1 }),
        accepted("a", true),
        Record::Operator(Operator { token: 1, nonce: "n".to_owned(), who: "op".to_owned(), at_ms: 1 }),
        Record::Snapshot(Box::new(applied(&[(0, letter("e1-0/1-1", "{}")), (0, checkpoint(1, 2))]).snapshot().expect("whole"))),
    ];
    for record in &records {
        assert_eq!(&Record::from_json(&record.to_json()).expect("reads what it wrote"), record);
    }
    // Stored logs outlive programs: this text must be read for ever.
    let golden = r#"{"v":1,"type":"checkpoint","connector":"stock","partition":0,"lease":2,"offset":5,"position":"1-0/5-3","token":2,"ledger":[[7,9]],"at_ms":1}"#;
    assert_eq!(String::from_utf8(checkpoint(2, 5).to_json()).expect("UTF-8"), golden);
    let golden = r#"{"v":1,"type":"replay_requested","connector":"stock","partition":0,"number":4,"from":{"offset":3,"position":"1-0/3-1","token":1},"to":9,"row":"00000000000000ff","by":"op","at_ms":1}"#;
    assert_eq!(String::from_utf8(wish(4).to_json()).expect("UTF-8"), golden);
    let golden = r#"{"v":1,"type":"pause","connector":"stock","reason":"it moves","by":"anna pid 7: connector pause","at_ms":5}"#;
    assert_eq!(String::from_utf8(pause(5, false).to_json()).expect("UTF-8"), golden);
    let golden = r#"{"v":1,"type":"session","token":3,"nonce":"n","owner":"host/1","pipeline":"shop","source":"pos","system_id":"18446744073709551615","timeline":1,"slot":"shop","epoch":1,"lineage":"0000000000000abc","at_ms":1}"#;
    assert_eq!(String::from_utf8(session(3, "n").to_json()).expect("UTF-8"), golden);
}

#[test]
fn a_replay_counts_until_a_checkpoint_says_that_it_was_taken_up() {
    let taken = |lease, number| {
        let Record::Checkpoint(checkpoint) = checkpoint(lease, 3) else { unreachable!("a checkpoint") };
        let until = Spot { offset: Offset(20), position: Position::NONE, token: 2 };
        Record::Checkpoint(Checkpoint { replay: Some(ReplayTaken { number, lease, until, found: Offset(20) }), ..checkpoint })
    };
    let pending = |state: &State| state.pending_replay("stock", 0).map(|r| r.number);
    let asked = [(0, checkpoint(1, 20)), (0, wish(4))];
    let state = applied(&asked);
    assert_eq!((pending(&state), state.pending_replay("stock", 1)), (Some(4), None));
    // A lower offset under a higher lease is in force, and an earlier request that comes late is none.
    let state = applied(&[asked[0].clone(), asked[1].clone(), (0, taken(2, 4)), (0, wish(3))]);
    assert_eq!((pending(&state), state.checkpoint("stock", 0).map(|c| c.offset)), (None, Some(Offset(3))));
    let again = State::from_snapshot(state.snapshot().expect("whole"));
    assert_eq!((pending(&again), again.replay("stock", 0).map(|r| r.number)), (None, Some(4)));
    assert_eq!(pending(&applied(&[(0, taken(2, 4)), (0, wish(5))])), Some(5));
    let Record::ReplayRequested(request) = wish(1) else { unreachable!("a request") };
    assert_eq!((request.row(), request.is_bounded()), (Some(255), true));
    assert!(!ReplayRequested { to: None, row: None, ..request.clone() }.is_bounded());
    assert!(ReplayRequested { to: None, row: None, from: None, ..request }.is_bounded());
}

#[test]
fn a_pause_lasts_until_somebody_ends_it_and_the_first_one_says_since_when() {
    let since = |state: &State| state.pause("stock").map(|p| (p.at_ms, p.who().to_owned(), p.since()));
    let state = applied(&[(0, pause(1_000, false)), (0, pause(2_000, false))]);
    assert_eq!(since(&state), Some((1_000, "anna".to_owned(), "1970-01-01 00:00:01 UTC".to_owned())));
    assert!(state.pause("crm").is_none());
    let mut again = State::from_snapshot(state.snapshot().expect("whole"));
    assert_eq!(since(&again), since(&state), "a start from a snapshot knows of it");
    again.apply_record(Stored { offset: again.next(), token: 0, bytes: 1, record: pause(3_000, true) }).expect("applies");
    assert_eq!(since(&again), None);
    assert_eq!(
        since(&applied(&[(0, pause(1, false)), (0, pause(2, true)), (0, pause(3, true)), (0, pause(4, false))])).map(|s| s.0),
        Some(4)
    );
    // A snapshot that was stored before there were any.
    let earlier = Record::Snapshot(Box::new(applied(&[(0, checkpoint(1, 2))]).snapshot().expect("whole")));
    let stored = String::from_utf8(earlier.to_json()).expect("UTF-8");
    assert!(!stored.contains("pauses"), "{stored}");
    assert_eq!(Record::from_json(stored.as_bytes()).expect("reads"), earlier);
}

#[test]
fn foreign_bytes_are_an_error_without_their_content() {
    assert!(matches!(Record::from_json(b"{\"v\":2,\"type\":\"later\"}"), Err(ControlError::Version(2))));
    for bad in [&b""[..], b"{", b"[]", b"{\"v\":1}", b"{\"v\":1,\"type\":\"secretvalue\"}", b"\xff\xfe", b"{\"v\":1,\"type\":\"piece\"}"] {
        let error = Record::from_json(bad).expect_err("no record");
        assert!(!error.to_string().contains("secretvalue"), "{error}");
    }
    let shown = format!("{:?} {:?}", letter("e1-0/1-1", "canary"), cursor(1, 1));
    assert!(!shown.contains("canary") && !shown.contains('ü'), "{shown}");
}

#[test]
fn the_highest_lease_wins_then_the_highest_offset() {
    let state = applied(&[(0, lease(1, "a")), (0, checkpoint(1, 50)), (0, lease(2, "b")), (0, checkpoint(2, 40)), (0, checkpoint(1, 90))]);
    assert_eq!(state.checkpoint("stock", 0).map(|c| (c.lease, c.offset)), Some((2, Offset(40))));
    let state = applied(&[(0, checkpoint(2, 40)), (0, checkpoint(2, 60)), (0, checkpoint(2, 50))]);
    assert_eq!(state.checkpoint("stock", 0).map(|c| c.offset), Some(Offset(60)));
    // Of two that claim one number the first holds it.
    let state = applied(&[(0, lease(2, "first")), (0, lease(2, "second")), (0, lease(1, "late"))]);
    assert_eq!(state.lease("stock", 0).map(|l| l.nonce.as_str()), Some("first"));
}

#[test]
fn a_fenced_off_run_moves_no_cursor() {
    let state = applied(&[(1, session(1, "a")), (1, cursor(1, 0)), (2, session(2, "b")), (1, cursor(9, 0)), (2, cursor(1, 1))]);
    assert_eq!(state.token(), 2);
    assert_eq!(state.cursors_of("load").next().map(|c| (c.chunk, c.attempt)), Some((1, 1)));
    let state = applied(&[(2, session(2, "a")), (2, session(2, "b"))]);
    assert_eq!(state.session().map(|s| s.nonce.as_str()), Some("a"));
    assert_eq!(state.rival().map(|s| s.nonce.as_str()), Some("b"));
}

#[test]
fn a_dead_letter_opens_waits_for_its_redrive_and_closes() {
    let (a, b) = ("e1-0/1-1", "e1-0/1-2");
    let state = applied(&[(0, letter(a, "{}")), (0, letter(b, "{}")), (0, redrive(a))]);
    assert_eq!(state.dead_letters().filter(|l| l.redrive_requested).map(|l| l.letter.event_id.clone()).collect::<Vec<_>>(), [a]);
    // A failed redrive is a new letter, which waits for a new request.
    let state = applied(&[(0, letter(a, "{}")), (0, redrive(a)), (0, letter(a, "{}"))]);
    assert!(state.dead_letter("stock", a).is_some_and(|l| !l.redrive_requested));
    let state = applied(&[(0, letter(a, "{}")), (0, letter(b, "{}")), (0, settled(a))]);
    assert_eq!(state.dead_letters().count(), 1);
    // A letter that comes after its settlement was attempted again, so it is open again.
    let state = applied(&[(0, letter(a, "{}")), (0, settled(a)), (0, letter(a, "{}"))]);
    assert_eq!(state.dead_letters().count(), 1);
}

#[test]
fn open_dead_letters_are_bounded_loudly() {
    let mut state = State::default();
    assert!(state.room_for_letter(State::LETTER_BYTES_MAX * 2).is_ok(), "a single huge one still fits");
    let half = "x".repeat(State::LETTER_BYTES_MAX / 2 + 1);
    state.apply_record(Stored { offset: Offset(0), token: 0, bytes: 1, record: letter("e1-0/1-1", &half) }).expect("applies");
    assert!(state.room_for_letter(10).is_ok());
    assert_eq!(state.room_for_letter(half.len()).expect_err("full").code(), "control.dead_letters_full");
}

/// A record drawn at random; small pools of names so that records meet.
fn any_record(rng: &mut StdRng, token: u32) -> (u32, Record, &'static str) {
    let event = format!("e1-0/1-{}", rng.random_range(0..6));
    let delivery = "tillstream/shop/delivery/stock/0";
    let operator = "tillstream/shop/operator";
    let capture = "tillstream/shop/capture";
    match rng.random_range(0..14) {
        0 => (0, lease(rng.random_range(1..5), "n"), delivery),
        1..=3 => (0, checkpoint(rng.random_range(1..5), rng.random_range(0..99)), delivery),
        4 => (0, letter(&event, &"\"\\ü".repeat(rng.random_range(0..700))), delivery),
        5 => (0, letter(&event, "{}"), operator),
        6 => (0, settled(&event), operator),
        7 => (0, redrive(&event), operator),
        8 => (token, cursor(rng.random_range(0..9), rng.random_range(0..3)), capture),
        9 => (token, session(token, if rng.random() { "a" } else { "b" }), capture),
        11 | 12 => (0, pause(rng.random_range(0..9), rng.random()), operator),
        10 => (0, accepted(["a", "b", "c"][rng.random_range(0..3)], rng.random()), delivery),
        _ => (0, Record::Audit(Audit { who: "op".to_owned(), what: "w".to_owned(), why: event, at_ms: 1 }), operator),
    }
}

/// Whatever is written, whoever dies in the middle of a piece, wherever retention cuts: starting from the last
/// snapshot says what reading everything says, and so does following from any moment.
#[tokio::test]
async fn a_replay_from_the_last_snapshot_equals_a_replay_of_everything() {
    for seed in 0..300u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let memory = Memory::new(2048);
        let journal: Arc<dyn Journal> = Arc::new(Shared(memory.clone()));
        let mut id = 0;
        let mut token = 1;
        // A snapshot says what was known a little while before it is written.
        let mut known = State::default();
        let mut covered = None;
        for _ in 0..rng.random_range(1..80) {
            token += u32::from(rng.random_ratio(1, 12));
            if rng.random_ratio(1, 10) {
                known = memory.state_at(memory.len());
            }
            if let Some(snapshot) = known.snapshot().filter(|s| s.covers > Offset(0) && rng.random_ratio(1, 12)) {
                let whole = rng.random_ratio(3, 4);
                let covers = snapshot.covers.0;
                let record = Record::Snapshot(Box::new(snapshot));
                let stamp = Stamp { token, writer: "tillstream/shop/capture".to_owned(), source: "pos".to_owned(), lineage: Lineage(1) };
                let batches = encode(&record, &stamp, 2048);
                // Its writer may die half-way.
                let upto = if whole { batches.len() } else { rng.random_range(0..batches.len()) };
                for batch in &batches[..upto] {
                    id += 1;
                    memory.append("all", PublishId::new(1, id), batch);
                }
                if whole && token >= memory.state_at(memory.len()).token() {
                    covered = Some(covers);
                }
                continue;
            }
            let (token, record, writer) = any_record(&mut rng, token);
            let stamp = Stamp { token, writer: writer.to_owned(), source: "pos".to_owned(), lineage: Lineage(1) };
            let batches = encode(&record, &stamp, 2048);
            let upto = if rng.random_ratio(1, 8) { rng.random_range(0..batches.len()) } else { batches.len() };
            for batch in &batches[..upto] {
                id += 1;
                memory.append("all", PublishId::new(1, id), batch);
            }
        }
        if memory.len() == 0 {
            continue;
        }
        let whole = memory.state_at(memory.len());
        // Retention may drop anything below what the last whole snapshot covers.
        if let Some(covers) = covered {
            memory.drop_below(rng.random_range(0..=covers));
        }
        let replayed = replay(journal.as_ref()).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(replayed.same_facts(&whole), "seed {seed}: {replayed:?}\n{whole:?}");

        // Repeats change nothing.
        let mut repeated = whole.clone();
        for offset in 0..memory.len() {
            let bytes = memory.inner.lock().expect("no holder panicked").entries[offset as usize].clone();
            let entry = Entry::decode(&bytes[4..]).expect("an entry");
            repeated.apply(Offset(offset), &entry.header, entry.body).expect("applies");
        }
        repeated.take_snapshot();
        assert!(repeated.same_facts(&whole), "seed {seed}: {repeated:?}\n{whole:?}");

        // A follower sees what comes later.
        let (mut follower, task) = Follower::start(journal.clone()).await.expect("follows");
        let task = tokio::spawn(task);
        memory.put(&letter("e9-0/1-1", "{}"), 0, "late", &mut id);
        let seen = follower.wait_for(|s| s.dead_letter("stock", "e9-0/1-1").is_some()).await;
        assert!(seen.is_some(), "seed {seed}");
        drop(follower);
        task.await.expect("no panic").expect("ends well");
    }
}

#[tokio::test]
async fn a_log_without_its_beginning_is_refused() {
    let memory = Memory::new(1 << 20);
    let mut id = 0;
    for n in 0..9 {
        memory.put(&checkpoint(1, n), 0, "d", &mut id);
    }
    memory.drop_below(3);
    let journal = Shared(memory.clone());
    assert!(matches!(replay(&journal).await, Err(ControlError::Incomplete { first: Offset(3) })));
    // A snapshot that covers less than what is gone does not help either.
    memory.put(&Record::Snapshot(Box::new(memory.state_at(2).snapshot().expect("whole"))), 0, "c", &mut id);
    assert!(matches!(replay(&journal).await, Err(ControlError::Incomplete { .. })));
    memory.put(&Record::Snapshot(Box::new(memory.state_at(9).snapshot().expect("whole"))), 0, "c", &mut id);
    assert!(replay(&journal).await.is_ok());
}

#[tokio::test]
async fn racing_owners_get_different_leases_and_the_loser_learns_it() {
    let memory = Memory::new(1 << 20);
    let journal: Arc<dyn Journal> = Arc::new(Shared(memory.clone()));
    // Both choose by the same, empty state; the broker drops the second announcement and confirms it.
    let state = State::default();
    let take = || Writer::take_lease(journal.clone(), "shop", "pos", &state, "stock", 0, "host/1", "");
    let (mut first, held) = take().await.expect("a lease");
    assert_eq!(held.lease, 1);
    let (mut second, held) = take().await.expect("a lease");
    assert_eq!(held.lease, 2);
    second.store_proven(&letter("e1-0/1-1", "{}")).await.expect("stored");
    // The first is fenced off: its letter is confirmed, never stored, and the proof says so.
    let error = first.store_proven(&letter("e1-0/1-2", "{}")).await.expect_err("fenced");
    assert_eq!(error.code(), "control.rival");
    let state = replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 1);
    assert_eq!(state.lease("stock", 0).map(|l| l.lease), Some(2));

    let mut one = Writer::take_operator(journal.clone(), "shop", "pos", &State::default(), "op").await.expect("a token");
    let mut two = Writer::take_operator(journal.clone(), "shop", "pos", &State::default(), "op").await.expect("a token");
    assert_ne!(one.lease(), two.lease());
    assert!(one.store_proven(&redrive("e1-0/1-1")).await.is_err());
    two.store_proven(&redrive("e1-0/1-1")).await.expect("stored");
}

#[tokio::test]
async fn a_record_in_pieces_is_proven_by_its_last() {
    let memory = Memory::new(2048);
    let journal: Arc<dyn Journal> = Arc::new(Shared(memory.clone()));
    let (mut writer, _) =
        Writer::take_lease(journal.clone(), "shop", "pos", &State::default(), "stock", 0, "h", "").await.expect("a lease");
    let body = "\u{1F9FE}\"\\".repeat(5_000);
    let proof = writer.store_proven(&letter("e1-0/1-1", &body)).await.expect("stored");
    assert_eq!(proof.offset.0 + 1, memory.len());
    let state = replay(journal.as_ref()).await.expect("replays");
    let open = state.dead_letter("stock", "e1-0/1-1").expect("open");
    assert_eq!(open.letter.event.bytes().expect("kept"), body.as_bytes());
}

#[test]
fn a_snapshot_is_due_after_enough_bytes_and_not_twice() {
    let mut state = State::default();
    let mut at = 0;
    let mut feed = |state: &mut State, bytes: u64, record: Record| {
        state.apply_record(Stored { offset: Offset(at), token: 0, bytes: bytes as usize, record }).expect("applies");
        at += 1;
    };
    let mut snapshotter = Snapshotter::new();
    feed(&mut state, Snapshotter::BYTES_MIN - 1, checkpoint(1, 1));
    assert!(snapshotter.take(&state).is_none());
    feed(&mut state, 1, checkpoint(1, 2));
    let snapshot = snapshotter.take(&state).expect("due");
    assert!(snapshotter.take(&state).is_none(), "it is on its way");
    // A run that starts now sees that the log has none yet; once it is there, nobody writes another.
    assert!(Snapshotter::new().take(&state).is_some());
    feed(&mut state, 3 * Snapshotter::BYTES_MIN, snapshot);
    assert!(Snapshotter::new().take(&state).is_none());
    // A large snapshot is not repeated before twice its size came by.
    feed(&mut state, 5 * Snapshotter::BYTES_MIN, checkpoint(1, 3));
    assert!(Snapshotter::new().take(&state).is_none());
    feed(&mut state, Snapshotter::BYTES_MIN, checkpoint(1, 4));
    assert!(Snapshotter::new().take(&state).is_some());
}

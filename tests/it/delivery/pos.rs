//! Writes journal entries as capture would, and runs delivery on them.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tillstream::config::{self, Connector, Delivery, Later, LocalJournal, Retention, Retry};
use tillstream::delivery::{self, DeliveryError, Mode, Stats};
use tillstream::journal::{Batch, Journal, Log, ProducerName, PublishId, Writer};
use tillstream_connectors::registry::Target;
use tillstream_connectors::sink::OnDelete;
use tillstream_schemas::entry::BatchBuffer;
use tillstream_schemas::{Header, Kind, Lineage, Lsn, Op, Position};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A local journal in this directory.
pub(crate) async fn journal(dir: &Path, partitions: u16) -> Arc<dyn Journal> {
    let config =
        LocalJournal { dir: dir.to_owned(), partitions: NonZeroU16::new(partitions).expect("not zero"), retention: Retention::default() };
    let journal = tillstream::journal::open(&config::Journal::Local(config), "test").expect("opens");
    journal.set_up().await.expect("sets up");
    journal
}

/// One change to write.
pub(crate) struct Change {
    pub(crate) op: Op,
    pub(crate) table: &'static str,
    pub(crate) key: String,
    pub(crate) after: Option<String>,
}

/// An insert of a row `{"id": id, "qty": qty}`.
pub(crate) fn insert(table: &'static str, id: u64, qty: u64) -> Change {
    Change { op: Op::Insert, table, key: format!("{{\"id\":{id}}}"), after: Some(format!("{{\"id\":{id},\"qty\":{qty}}}")) }
}

pub(crate) fn update(table: &'static str, id: u64, qty: u64) -> Change {
    Change { op: Op::Update, ..insert(table, id, qty) }
}

pub(crate) fn delete(table: &'static str, id: u64) -> Change {
    Change { op: Op::Delete, after: None, ..insert(table, id, 0) }
}

pub(crate) fn truncate(table: &'static str) -> Change {
    Change { op: Op::Truncate, table, key: "null".into(), after: None }
}

/// A capture run that has the journal to itself.
pub(crate) struct Capture {
    writer: Box<dyn Writer>,
    token: u32,
    count: u64,
    lsn: u64,
    prev: Vec<Position>,
}

impl Capture {
    pub(crate) async fn new(journal: &dyn Journal, token: u32) -> Capture {
        let writer = journal.writer(&ProducerName("tillstream/test/capture".into())).await.expect("opens");
        let mut capture = Capture { writer, token, count: 0, lsn: 0x1000, prev: vec![Position::NONE; usize::from(journal.partitions())] };
        for partition in 0..journal.partitions() {
            let mut batch = BatchBuffer::default();
            batch.push(&capture.header(Kind::Fence, partition, Position::NONE), b"{}");
            capture.append(partition, &batch).await;
        }
        capture
    }

    fn header(&self, kind: Kind, partition: u16, position: Position) -> Header<'static> {
        let prev = self.prev[usize::from(partition)];
        Header { kind, whole: kind, token: self.token, position, prev, lineage: Lineage(1), part: None, source: "pos" }
    }

    async fn append(&mut self, partition: u16, batch: &BatchBuffer) {
        let id = PublishId::new(self.token, self.count);
        self.count += 1;
        let batch = Batch { bytes: Bytes::copy_from_slice(batch.as_bytes()), records: batch.records() };
        self.writer.append(Log::Data(partition), id, batch).await.expect("appends");
    }

    /// Commits a transaction into one partition and waits until it is stored.
    pub(crate) async fn commit(&mut self, partition: u16, changes: &[Change]) {
        self.write(partition, changes).await;
        self.writer.flush().await.expect("stores");
    }

    /// As [`Self::commit`], without waiting.
    pub(crate) async fn write(&mut self, partition: u16, changes: &[Change]) {
        self.write_unchanged(partition, changes, &[]).await;
    }

    /// As [`Self::commit`], in two batches, the second after the first is stored.
    pub(crate) async fn commit_in_halves(&mut self, partition: u16, changes: &[Change]) {
        match changes.split_at(changes.len() / 2) {
            ([], all) => self.commit(partition, all).await,
            (first, second) => {
                let begun = self.begin(partition, first).await;
                self.end(partition, begun, second).await;
            }
        }
    }

    /// As [`Self::commit`], with columns whose large values the server did not send.
    pub(crate) async fn commit_unchanged(&mut self, partition: u16, changes: &[Change], unchanged: &[&str]) {
        self.write_unchanged(partition, changes, unchanged).await;
        self.writer.flush().await.expect("stores");
    }

    async fn write_unchanged(&mut self, partition: u16, changes: &[Change], unchanged: &[&str]) {
        self.lsn += 0x100;
        let mut batch = BatchBuffer::default();
        self.push(&mut batch, partition, 0, changes, unchanged);
        self.push_end(&mut batch, partition);
        self.append(partition, &batch).await;
    }

    /// Stores the beginning of a transaction, and answers how many changes it has so far.
    pub(crate) async fn begin(&mut self, partition: u16, changes: &[Change]) -> u32 {
        self.lsn += 0x100;
        let mut batch = BatchBuffer::default();
        self.push(&mut batch, partition, 0, changes, &[]);
        self.append(partition, &batch).await;
        self.flush().await;
        changes.len() as u32
    }

    /// Stores the rest of it and its end.
    pub(crate) async fn end(&mut self, partition: u16, begun: u32, changes: &[Change]) {
        let mut batch = BatchBuffer::default();
        self.push(&mut batch, partition, begun, changes, &[]);
        self.push_end(&mut batch, partition);
        self.append(partition, &batch).await;
        self.flush().await;
    }

    fn push(&mut self, batch: &mut BatchBuffer, partition: u16, from: u32, changes: &[Change], unchanged: &[&str]) {
        let unchanged = serde_json::json!(unchanged);
        for (n, change) in (from..).zip(changes) {
            let position = Position::new(1, Lsn(self.lsn), n);
            let Change { op, table, key, after } = change;
            let after = after.as_deref().unwrap_or("null");
            let body = format!(
                "{{\"id\":\"e{position}\",\"op\":\"{op}\",\"schema\":\"public\",\"table\":\"{table}\",\"key\":{key},\"before\":null,\"after\":{after},\
                 \"unchanged\":{unchanged},\"commit_lsn\":\"{}\",\"ordinal\":{n},\"xid\":7,\"committed_at\":\"2026-11-22T10:00:00.000000Z\"}}",
                Lsn(self.lsn)
            );
            batch.push(&self.header(Kind::Event, partition, position), body.as_bytes());
            self.prev[usize::from(partition)] = position;
        }
    }

    fn push_end(&mut self, batch: &mut BatchBuffer, partition: u16) {
        let end = Position::end(1, Lsn(self.lsn));
        batch.push(&self.header(Kind::End, partition, end), b"{}");
        self.prev[usize::from(partition)] = end;
    }

    /// Pretends that the entry before the next one was lost.
    pub(crate) fn lose_one(&mut self, partition: u16) {
        self.lsn += 0x100;
        self.prev[usize::from(partition)] = Position::end(1, Lsn(self.lsn));
    }

    pub(crate) async fn flush(&mut self) {
        self.writer.flush().await.expect("stores");
    }
}

/// A connector to this target: every table the tests use, two lanes, quick repeats.
pub(crate) fn connector(name: &str, target: Arc<dyn Target>) -> Connector {
    Connector {
        mapping: None,
        tests: Vec::new(),
        name: name.into(),
        tables: ["a", "b", "stock_level", "typed"].map(|t| ("public".to_owned(), t.to_owned())).to_vec(),
        ops: Op::ALL.to_vec(),
        on_delete: OnDelete::Tombstone,
        target,
        kind: "scripted",
        delivery: Delivery {
            lanes: NonZeroU16::new(2).expect("not zero"),
            batch_items_max: 10,
            batch_bytes_max: 1 << 20,
            linger: Duration::from_millis(1),
            in_flight: None,
            rate: None,
            timeout: None,
        },
        retry: Retry { base: Duration::from_millis(2), max: Duration::from_millis(20), give_up_after: None, later: Later::Wait },
        keep: config::Keep::default(),
        schema_change: config::SchemaChange::default(),
        secrets: config::Secrets::default(),
    }
}

/// A running delivery.
pub(crate) struct Running {
    pub(crate) stats: Arc<Stats>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), DeliveryError>>,
}

/// As [`start`], until it is stopped, with connectors that can be given other files.
pub(crate) fn start_switching(journal: &Arc<dyn Journal>, connectors: Vec<Connector>) -> (Running, delivery::Switches) {
    let (switches, listeners) = delivery::Switches::new(connectors.iter().map(|c| c.name.as_str()));
    let (parts, stats, stop) = parts(journal, connectors, Mode::Continuous);
    (Running { stats, stop, task: tokio::spawn(delivery::run_with(parts, listeners)) }, switches)
}

fn parts(journal: &Arc<dyn Journal>, connectors: Vec<Connector>, mode: Mode) -> (delivery::Parts, Arc<Stats>, CancellationToken) {
    let stats = Stats::new(connectors.iter().map(|c| c.name.clone()));
    let stop = CancellationToken::new();
    let parts = delivery::Parts {
        journal: journal.clone(),
        pipeline: "test".into(),
        source: "pos".into(),
        owner: "test".into(),
        connectors,
        stop: stop.clone(),
        mode,
        stats: stats.clone(),
    };
    (parts, stats, stop)
}

pub(crate) fn start(journal: &Arc<dyn Journal>, connectors: Vec<Connector>, mode: Mode) -> Running {
    let (parts, stats, stop) = parts(journal, connectors, mode);
    Running { stats, stop, task: tokio::spawn(delivery::run(parts)) }
}

impl Running {
    /// As after SIGTERM.
    pub(crate) async fn stop(self) -> Result<(), DeliveryError> {
        self.stop.cancel();
        self.ended().await
    }

    pub(crate) async fn ended(self) -> Result<(), DeliveryError> {
        tokio::time::timeout(DEADLINE, self.task).await.expect("ends in time").expect("does not panic")
    }

    /// As after SIGKILL: every task is dropped where it stands.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Delivers what stands in the journal, to the end.
pub(crate) async fn catch_up(journal: &Arc<dyn Journal>, connectors: Vec<Connector>) -> Result<Arc<Stats>, DeliveryError> {
    let running = start(journal, connectors, Mode::UntilCaughtUp);
    let stats = running.stats.clone();
    running.ended().await?;
    Ok(stats)
}

/// Waits until `done` says so; looks every few milliseconds, since what it looks at are counters.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}");
}

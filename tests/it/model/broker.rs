//! The simulated broker: logs with a leader, RabbitMQ's deduplication, delayed confirms, lost connections.
//!
//! The rules that matter: a batch whose id is not above the highest of its producer's name *in the leader's log* is
//! dropped and still confirmed; what the leader has but has not replicated is invisible, unconfirmed and may be lost
//! with the leader; bytes that a client has written may still arrive after the client has died.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tillstream::journal::{Batch, Bounds, Chunk, From, Journal, JournalError, Log, Offset, ProducerName, PublishId, Reader, Writer};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::checker::Checker;
use super::dice::Dice;
use super::process::Process;

/// Unconfirmed bytes of a writer, in all logs: small, so that back-pressure happens.
const WINDOW_BYTES: usize = 24_000;

struct Stored {
    name: String,
    id: PublishId,
    batch: Batch,
    first_offset: u64,
}

/// Confirms a batch once so many of the leader's batches are committed.
struct Pending {
    link: Arc<Link>,
    generation: u64,
    id: PublishId,
    needs: usize,
}

#[derive(Default)]
struct LogState {
    batches: Vec<Stored>,
    committed: usize,
    high: BTreeMap<String, PublishId>,
    pending: VecDeque<Pending>,
    slow: bool,
    /// Rises with every change of the leader: connections to the old one are dead, with all that is on its way.
    term: u64,
}

impl LogState {
    fn next_offset(&self) -> u64 {
        self.batches.last().map_or(0, |b| b.first_offset + u64::from(b.batch.records))
    }
}

struct LogQueue {
    state: Mutex<LogState>,
    /// The leader got something.
    arrived: Notify,
    /// Readers have something new.
    visible: Notify,
}

struct Inner {
    logs: Vec<LogQueue>,
    links: Mutex<Vec<Arc<Link>>>,
    dice: Dice,
    checker: Checker,
    partitions: u16,
    tempo: Tempo,
}

/// How the broker behaves in one run.
#[derive(Clone, Copy)]
pub(crate) struct Tempo {
    /// The most bytes of a batch.
    pub(crate) batch_max: usize,
    /// A batch is on its way to the leader for at most so many milliseconds,
    pub(crate) network_ms: u64,
    /// and from there to the followers.
    pub(crate) commit_ms: u64,
}

/// The broker.
#[derive(Clone)]
pub(crate) struct Broker(Arc<Inner>);

impl Broker {
    pub(crate) fn new(dice: Dice, checker: Checker, partitions: u16, tempo: Tempo) -> Self {
        let queue = || LogQueue { state: Mutex::new(LogState::default()), arrived: Notify::new(), visible: Notify::new() };
        let logs = (0..=partitions).map(|_| queue()).collect();
        let broker = Broker(Arc::new(Inner { logs, links: Mutex::new(Vec::new()), dice, checker, partitions, tempo }));
        for log in broker.all_logs() {
            tokio::spawn(broker.clone().replicate(log));
        }
        broker
    }

    fn all_logs(&self) -> Vec<Log> {
        (0..self.0.partitions).map(Log::Data).chain([Log::Control]).collect()
    }

    fn queue(&self, log: Log) -> &LogQueue {
        match log {
            Log::Data(partition) => &self.0.logs[usize::from(partition)],
            Log::Control => &self.0.logs[usize::from(self.0.partitions)],
        }
    }

    fn with<T>(&self, log: Log, f: impl FnOnce(&mut LogState) -> T) -> T {
        f(&mut self.queue(log).state.lock().expect("never poisoned"))
    }

    /// Followers catch up with the leader, some batches at a time.
    async fn replicate(self, log: Log) {
        let dice = &self.0.dice;
        loop {
            if self.with(log, |s| s.committed == s.batches.len()) {
                self.queue(log).arrived.notified().await;
            }
            let slow = self.with(log, |s| s.slow);
            sleep(if slow { dice.millis(500, 4_000) } else { dice.millis(0, self.0.tempo.commit_ms) }).await;
            self.with(log, |s| {
                let open = s.batches.len() - s.committed;
                if open == 0 {
                    return;
                }
                for _ in 0..=dice.below(open) {
                    let stored = &s.batches[s.committed];
                    self.0.checker.committed(log, stored.first_offset, &stored.batch.bytes);
                    s.committed += 1;
                }
            });
            dice.step();
            self.confirm(log);
            self.queue(log).visible.notify_waiters();
        }
    }

    fn confirm(&self, log: Log) {
        let done: Vec<Pending> = self.with(log, |s| {
            let committed = s.committed;
            let (done, open) = std::mem::take(&mut s.pending).into_iter().partition(|p| p.needs <= committed);
            s.pending = open;
            Vec::from_iter::<VecDeque<Pending>>(done)
        });
        for pending in done {
            pending.link.confirmed(pending.generation, pending.id);
        }
    }

    /// A batch reaches the leader.
    fn deliver(&self, log: Log, name: &str, id: PublishId, batch: &Batch, confirm_to: Option<(&Arc<Link>, u64)>) {
        self.with(log, |s| {
            if s.high.get(name).is_some_and(|high| id <= *high) {
                self.0.checker.dropped();
            } else {
                s.high.insert(name.to_owned(), id);
                // Now and then the broker spends an offset on its own bookkeeping.
                let first_offset = s.next_offset() + u64::from(self.0.dice.chance(4));
                s.batches.push(Stored { name: name.to_owned(), id, batch: batch.clone(), first_offset });
            }
            if let Some((link, generation)) = confirm_to {
                s.pending.push_back(Pending { link: link.clone(), generation, id, needs: s.batches.len() });
            }
        });
        self.0.dice.step();
        self.queue(log).arrived.notify_one();
        self.confirm(log);
    }

    /// A new leader takes over: some of what was not replicated is lost, and every connection to the log breaks.
    pub(crate) fn change_leader(&self, log: Log) {
        let dice = &self.0.dice;
        self.with(log, |s| {
            let keep = s.committed + dice.below(s.batches.len() - s.committed + 1);
            s.batches.truncate(keep);
            s.term += 1;
            s.pending.clear();
            s.high.clear();
            for stored in &s.batches {
                let high = s.high.entry(stored.name.clone()).or_default();
                *high = stored.id.max(*high);
            }
        });
        self.cut(log, 100);
    }

    /// Some connections to a log break.
    pub(crate) fn cut(&self, log: Log, percent: u64) {
        let links: Vec<Arc<Link>> = {
            let mut links = self.0.links.lock().expect("never poisoned");
            links.retain(|link| !link.with(|l| l.closed));
            links.iter().filter(|link| link.log == log).cloned().collect()
        };
        for link in links {
            if self.0.dice.chance(percent) {
                link.with(|l| l.cut = true);
                link.wake.notify_one();
            }
        }
    }

    /// Some writers find out that they cannot go on.
    pub(crate) fn fail_writers(&self) {
        let writers: Vec<Arc<Moved>> = self.0.links.lock().expect("never poisoned").iter().map(|link| link.moved.clone()).collect();
        for moved in writers {
            if self.0.dice.chance(50) {
                *moved.failed.lock().expect("never poisoned") = true;
                moved.notify.notify_waiters();
            }
        }
    }

    pub(crate) fn set_slow(&self, log: Log, slow: bool) {
        self.with(log, |s| s.slow = slow);
    }

    pub(crate) fn some_log(&self) -> Log {
        let logs = self.all_logs();
        logs[self.0.dice.below(logs.len())]
    }
}

#[derive(Default)]
struct LinkState {
    /// Handed over and not confirmed.
    unconfirmed: VecDeque<(PublishId, Batch)>,
    /// Written to the socket and not yet at the leader.
    socket: VecDeque<(PublishId, Batch)>,
    connected: bool,
    generation: u64,
    /// The leader's term when this connection was made.
    term: u64,
    confirmed: PublishId,
    cut: bool,
    closed: bool,
}

/// A writer's connection to one log, through its reconnects.
struct Link {
    log: Log,
    name: String,
    state: Mutex<LinkState>,
    wake: Notify,
    /// Tells the writer that a watermark moved or room came.
    moved: Arc<Moved>,
}

#[derive(Default)]
struct Moved {
    count: Mutex<u64>,
    failed: Mutex<bool>,
    notify: Notify,
}

impl Moved {
    fn check(&self) -> Result<(), JournalError> {
        if *self.failed.lock().expect("never poisoned") { Err(JournalError::Unavailable("the writer failed".into())) } else { Ok(()) }
    }
}

impl Link {
    fn with<T>(&self, f: impl FnOnce(&mut LinkState) -> T) -> T {
        f(&mut self.state.lock().expect("never poisoned"))
    }

    fn confirmed(&self, generation: u64, id: PublishId) {
        let moved = self.with(|l| {
            // A confirm travels on the connection that carried the batch.
            if l.closed || l.cut || l.generation != generation {
                return false;
            }
            l.confirmed = l.confirmed.max(id);
            while l.unconfirmed.front().is_some_and(|(first, _)| *first <= id) {
                l.unconfirmed.pop_front();
            }
            true
        });
        if moved {
            *self.moved.count.lock().expect("never poisoned") += 1;
            self.moved.notify.notify_waiters();
        }
    }
}

/// Carries bytes from the writer's socket to the leader, and connects again when that breaks.
async fn carry(broker: Broker, link: Arc<Link>, process: Process) {
    let dice = broker.0.dice.clone();
    loop {
        let (closed, cut, waiting, connected) = link.with(|l| (l.closed, l.cut, !l.socket.is_empty(), l.connected));
        if closed || cut {
            // What was written may still arrive, in order, up to somewhere, soon or late.
            let mut late: VecDeque<_> = link.with(|l| std::mem::take(&mut l.socket));
            late.truncate(dice.below(late.len() + 1));
            let ghost = (broker.clone(), link.log, link.name.clone());
            let term = link.with(|l| l.term);
            let pause = if dice.chance(80) { dice.millis(0, 50) } else { dice.millis(50, 90_000) };
            tokio::spawn(async move {
                let (broker, log, name) = ghost;
                sleep(pause).await;
                for (id, batch) in late {
                    if broker.with(log, |s| s.term) != term {
                        return;
                    }
                    broker.deliver(log, &name, id, &batch, None);
                    sleep(broker.0.dice.millis(0, 20)).await;
                }
            });
            if closed {
                return;
            }
            link.with(|l| (l.cut, l.connected) = (false, false));
            sleep(dice.millis(5, 1_500)).await;
        } else if !connected {
            process.running().await;
            let term = broker.with(link.log, |s| s.term);
            link.with(|l| {
                l.term = term;
                l.connected = true;
                l.generation += 1;
                // Everything unconfirmed, in order, before anything new.
                l.socket = l.unconfirmed.clone();
            });
        } else if waiting {
            if dice.chance(40) {
                sleep(dice.millis(0, broker.0.tempo.network_ms)).await;
            }
            let next = link.with(|l| if l.closed || l.cut { None } else { l.socket.pop_front().map(|b| (b, l.generation)) });
            if let Some(((id, batch), generation)) = next {
                broker.deliver(link.log, &link.name, id, &batch, Some((&link, generation)));
            }
        } else {
            link.wake.notified().await;
        }
    }
}

/// The broker as one process reaches it.
pub(crate) struct SimJournal {
    pub(crate) broker: Broker,
    pub(crate) process: Process,
}

#[async_trait]
impl Journal for SimJournal {
    async fn set_up(&self) -> Result<(), JournalError> {
        Ok(())
    }

    fn partitions(&self) -> u16 {
        self.broker.0.partitions
    }

    async fn describe(&self) -> Result<String, JournalError> {
        Ok("model".to_owned())
    }

    fn batch_bytes_max(&self) -> usize {
        self.broker.0.tempo.batch_max
    }

    async fn writer(&self, name: &ProducerName) -> Result<Box<dyn Writer>, JournalError> {
        sleep(self.broker.0.dice.millis(0, 10)).await;
        let moved = Arc::new(Moved::default());
        let mut links = BTreeMap::new();
        for log in self.broker.all_logs() {
            let link = Arc::new(Link {
                log,
                name: name.0.clone(),
                state: Mutex::new(LinkState::default()),
                wake: Notify::new(),
                moved: moved.clone(),
            });
            self.broker.0.links.lock().expect("never poisoned").push(link.clone());
            tokio::spawn(carry(self.broker.clone(), link.clone(), self.process.clone()));
            links.insert(log, link);
        }
        Ok(Box::new(SimWriter { links, moved, seen: 0 }))
    }

    async fn reader(&self, log: Log, from: From) -> Result<Box<dyn Reader>, JournalError> {
        sleep(self.broker.0.dice.millis(0, 10)).await;
        let next = match from {
            From::First => 0,
            From::Offset(offset) => offset.0,
            From::Next | From::Time(_) => return Err(JournalError::Unusable("the model does not need it".into())),
        };
        Ok(Box::new(SimReader { broker: self.broker.clone(), log, next }))
    }

    async fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError> {
        sleep(self.broker.0.dice.millis(0, 10)).await;
        let dice = &self.broker.0.dice;
        Ok(self.broker.with(log, |s| {
            // A replica may answer that lags behind.
            let seen = if dice.chance(25) { s.committed.saturating_sub(dice.below(4)) } else { s.committed };
            (seen > 0).then(|| chunk(&s.batches[seen - 1..seen]))
        }))
    }

    async fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError> {
        sleep(self.broker.0.dice.millis(0, 10)).await;
        Ok(self.broker.with(log, |s| {
            let last = s.batches[..s.committed].last()?;
            let first = Offset(s.batches[0].first_offset);
            Some(Bounds { first, last: Offset(last.first_offset + u64::from(last.batch.records) - 1) })
        }))
    }
}

fn chunk(batches: &[Stored]) -> Chunk {
    let mut bytes = BytesMut::new();
    for stored in batches {
        bytes.extend_from_slice(&stored.batch.bytes);
    }
    let records = batches.iter().map(|b| b.batch.records).sum();
    Chunk { first_offset: Offset(batches[0].first_offset), stored_at_ms: 0, bytes: Bytes::from(bytes), records }
}

struct SimReader {
    broker: Broker,
    log: Log,
    next: u64,
}

#[async_trait]
impl Reader for SimReader {
    async fn next(&mut self) -> Result<Chunk, JournalError> {
        loop {
            let visible = self.broker.queue(self.log).visible.notified();
            let found = self.broker.with(self.log, |s| {
                let committed = &s.batches[..s.committed];
                // Lands on the start of the batch that holds the offset.
                let index = committed.partition_point(|b| b.first_offset + u64::from(b.batch.records) <= self.next);
                (index < committed.len()).then(|| chunk(&committed[index..=index]))
            });
            if self.broker.0.dice.chance(1) && self.broker.0.dice.chance(30) {
                return Err(JournalError::Unavailable("the reader failed".into()));
            }
            if let Some(chunk) = found {
                self.next = chunk.first_offset.0 + u64::from(chunk.records);
                return Ok(chunk);
            }
            visible.await;
        }
    }
}

struct SimWriter {
    links: BTreeMap<Log, Arc<Link>>,
    moved: Arc<Moved>,
    seen: u64,
}

#[async_trait]
impl Writer for SimWriter {
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        loop {
            let moved = self.moved.notify.notified();
            self.moved.check()?;
            if self.unconfirmed_bytes() < WINDOW_BYTES {
                break;
            }
            moved.await;
        }
        let link = &self.links[&log];
        link.with(|l| {
            l.unconfirmed.push_back((id, batch.clone()));
            if l.connected && !l.cut {
                l.socket.push_back((id, batch));
            }
        });
        link.wake.notify_one();
        Ok(())
    }

    fn confirmed(&self, log: Log) -> PublishId {
        self.links[&log].with(|l| l.confirmed)
    }

    async fn progress(&mut self) -> Result<(), JournalError> {
        loop {
            let moved = self.moved.notify.notified();
            self.moved.check()?;
            let count = *self.moved.count.lock().expect("never poisoned");
            if count > self.seen {
                self.seen = count;
                return Ok(());
            }
            moved.await;
        }
    }

    fn unconfirmed_bytes(&self) -> usize {
        self.links.values().map(|link| link.with(|l| l.unconfirmed.iter().map(|(_, b)| b.bytes.len()).sum::<usize>())).sum()
    }

    fn unconfirmed_age(&self) -> Option<Duration> {
        None
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        while self.unconfirmed_bytes() > 0 {
            self.progress().await?;
        }
        Ok(())
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        for link in self.links.values() {
            link.with(|l| l.closed = true);
            link.wake.notify_one();
        }
    }
}

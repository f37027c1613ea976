//! Entries into batches: publishing ids, the `prev` chain, parts of large rows, and what the tail says to skip.
//!
//! Pure and synchronous: no clock, no I/O. The session takes finished batches with [`Appender::take_ready`] and hands
//! them to the journal's writer.
//!
//! ```text
//!  event(partition, …) ──▶ skip? (position ≤ tail) ──▶ buffer of the partition ──cut──▶ ready: (log, id, batch)
//! ```
//!
//! What it promises, per partition: ids rise without gaps from the fence's (count 0); every entry's `prev` is the live
//! position before it; an event is written exactly when its position lies above the tail; the parts of a split body
//! stand in consecutive batches. It never looks into a body.

use std::collections::VecDeque;

use bytes::Bytes;
use tillstream_schemas::entry::{BatchBuffer, PartInfo};
use tillstream_schemas::value::write_instant;
use tillstream_schemas::{Header, Kind, Lineage, Lsn, Position};

use crate::journal::{Batch, Log, PublishId};

/// Batches are cut at this size. A frame, a confirm and an allocation per batch vanish beside several hundred rows,
/// while the first row of a backlog is stored after milliseconds and the buffer stays in the processor's cache.
/// Four of them make a Publish frame of a megabyte.
pub const BATCH_BYTES_TARGET: usize = 250 << 10;

/// A batch's record count travels as 16 bits.
const RECORDS_MAX: u32 = 65_535;

/// A buffer that one huge row made grow beyond this is given back to the allocator.
const KEEP_BYTES_MAX: usize = 4 << 20;

/// Who writes: what every entry of a run says in its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the run, from 1.
    pub token: u32,
    /// The epoch in which its positions stand.
    pub epoch: u32,
    /// The history they belong to.
    pub lineage: Lineage,
    /// The configured name of the source.
    pub source: String,
}

/// What a partition held when the run began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The last live position before the run's fence: what is at or below it is stored already.
    pub position: Position,
    /// Which transaction that was, when the log still says.
    pub evidence: Option<Evidence>,
}

/// What tells a transaction from another one with the same commit LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Its transaction id.
    pub xid: u32,
    /// Its commit time, as events print it.
    pub committed_at: String,
}

/// The server sends a history that is not the one in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diverged {
    /// Another transaction stands where the journal's last one should.
    #[error(
        "the transaction at {at} is not the one that is stored: xid {found} was sent, xid {stored} is stored (or its commit time differs)"
    )]
    Other {
        /// Commit LSN.
        at: Lsn,
        /// What the server sent.
        found: u32,
        /// What the journal holds.
        stored: u32,
    },
    /// The journal's last transaction should have been sent again and was not.
    #[error("the stored transaction at {at} was not sent again although an earlier one was and the stream has reached {next}")]
    PassedOver {
        /// Commit LSN of the stored transaction.
        at: Lsn,
        /// Commit LSN of the one that came instead, or how far the stream is.
        next: Lsn,
    },
    /// The transaction is shorter than what the journal holds of it.
    #[error("the transaction at {at} ends after {changes} changes, but change {stored} of it is stored")]
    Shorter {
        /// Commit LSN.
        at: Lsn,
        /// Changes that the server sent.
        changes: u32,
        /// Ordinal that the journal holds.
        stored: u32,
    },
}

/// A finished batch and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The log.
    pub log: Log,
    /// Its publishing id.
    pub id: PublishId,
    /// The entries.
    pub batch: Batch,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It stands in the partition's buffer.
    Written,
    /// It is stored already.
    Skipped,
}

#[derive(Debug)]
struct Partition {
    buffer: BatchBuffer,
    /// Count of the next batch; 0 was the fence.
    count: u64,
    /// The live position after everything written so far.
    prev: Position,
    /// Live positions up to this one are stored already.
    tail: Position,
    /// Events of the open transaction that belong here, the skipped ones included.
    here: u32,
    /// The transaction of `prev`.
    last: Last,
}

/// The transaction of a partition's last live entry.
#[derive(Clone, Debug)]
enum Last {
    /// What the tail said of it.
    Stored(Option<Evidence>),
    /// This run wrote it: transaction id and commit time.
    Written(u32, i64),
}

#[derive(Clone, Copy, Debug)]
struct Transaction {
    commit_lsn: Lsn,
    xid: u32,
    commit_time: i64,
    /// Changes so far: the next ordinal.
    ordinal: u32,
    /// Events so far; an event in every partition counts once.
    total: u32,
}

/// Batches of one run.
#[derive(Debug)]
pub struct Appender {
    run: Run,
    batch_target: usize,
    batch_max: usize,
    partitions: Vec<Partition>,
    /// Count of the control log's next batch; 0 was the fence.
    control_count: u64,
    /// The last batch of each log that carries anything, the control log last.
    required: Vec<PublishId>,
    transaction: Option<Transaction>,
    /// Partitions that hold events of the open transaction.
    touched: Vec<u16>,
    replay: Replay,
    /// Bounded by the largest row: the session empties it after every message.
    ready: VecDeque<Ready>,
    handed: Handed,
    scratch: Vec<u8>,
}

impl Appender {
    /// A run whose fences (count 0 in every log) are stored and whose partitions end in `tails`.
    ///
    /// # Panics
    /// When a batch of `batch_max` bytes could not hold one entry with a body.
    #[must_use]
    pub fn new(run: Run, batch_max: usize, tails: &[Tail]) -> Self {
        assert!(batch_max >= 1024, "a journal takes batches of at least a KiB");
        let batch_target = batch_max.min(BATCH_BYTES_TARGET);
        let partition = |tail: &Tail| Partition {
            buffer: BatchBuffer::default(),
            count: 1,
            prev: tail.position,
            tail: tail.position,
            here: 0,
            // Of an earlier epoch's history nothing is compared.
            last: Last::Stored(tail.evidence.clone().filter(|_| tail.position.epoch == run.epoch)),
        };
        Appender {
            batch_target,
            batch_max,
            partitions: tails.iter().map(partition).collect(),
            control_count: 1,
            required: vec![PublishId::new(run.token, 0); tails.len() + 1],
            transaction: None,
            touched: Vec::with_capacity(tails.len()),
            replay: Replay::new(run.epoch, tails),
            ready: VecDeque::new(),
            handed: Handed::default(),
            scratch: Vec::new(),
            run,
        }
    }

    /// Who writes.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// A transaction begins.
    ///
    /// # Errors
    /// [`Diverged`] when it contradicts what is stored.
    ///
    /// # Panics
    /// When the last one was not ended; the session checks that.
    pub fn begin(&mut self, commit_lsn: Lsn, xid: u32, commit_time: i64) -> Result<(), Diverged> {
        assert!(self.transaction.is_none(), "transactions do not nest");
        self.replay.begin(commit_lsn, xid, commit_time)?;
        self.transaction = Some(Transaction { commit_lsn, xid, commit_time, ordinal: 0, total: 0 });
        Ok(())
    }

    /// Whether a transaction is open.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The ordinal that the next change of the open transaction will have; 0 outside one.
    #[must_use]
    pub fn next_ordinal(&self) -> u32 {
        self.transaction.as_ref().map_or(0, |transaction| transaction.ordinal)
    }

    /// Counts a change of the open transaction, whether it will be written or not, and returns its position. `None`
    /// when the transaction has more changes than ordinals.
    ///
    /// # Panics
    /// Outside a transaction; the session checks that.
    #[inline]
    pub fn change(&mut self) -> Option<Position> {
        let transaction = self.transaction.as_mut().expect("a change belongs to a transaction");
        let position = Position::new(self.run.epoch, transaction.commit_lsn, transaction.ordinal);
        transaction.ordinal += 1;
        (position.ordinal < Position::END_ORDINAL - 1).then_some(position)
    }

    /// Counts an event that goes to one partition and writes it unless it is stored already.
    ///
    /// # Errors
    /// What `encode` answers; nothing is written then.
    #[inline]
    pub fn event<E>(&mut self, partition: u16, position: Position, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Put, E> {
        if let Some(transaction) = &mut self.transaction {
            transaction.total += 1;
        }
        self.put(partition, position, encode)
    }

    /// As [`Self::event`], for an event that goes to every partition under one id; `encode` is called for each.
    ///
    /// # Errors
    /// What `encode` answers.
    pub fn event_everywhere<E>(&mut self, position: Position, mut encode: impl FnMut(&mut Vec<u8>) -> Result<(), E>) -> Result<Put, E> {
        if let Some(transaction) = &mut self.transaction {
            transaction.total += 1;
        }
        let mut put = Put::Skipped;
        for partition in 0..self.partitions.len() as u16 {
            if self.put(partition, position, &mut encode)? == Put::Written {
                put = Put::Written;
            }
        }
        Ok(put)
    }

    #[inline]
    fn put<E>(&mut self, partition: u16, position: Position, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Put, E> {
        let p = &mut self.partitions[usize::from(partition)];
        if self.transaction.is_some() {
            if p.here == 0 {
                self.touched.push(partition);
            }
            p.here += 1;
        }
        if position <= p.tail {
            return Ok(Put::Skipped);
        }
        if self.transaction.is_none() {
            p.last = Last::Stored(None);
        }
        self.write(partition, Kind::Event, position, encode)?;
        Ok(Put::Written)
    }

    /// Ends the open transaction: an `end` entry in every partition that holds events of it. `body` gets the number of
    /// its events in that partition and in all, those stored by an earlier run included.
    ///
    /// # Errors
    /// [`Diverged`] when it contradicts what is stored.
    pub fn commit(&mut self, mut body: impl FnMut(&mut Vec<u8>, u32, u32)) -> Result<(), Diverged> {
        let transaction = self.transaction.take().expect("a commit ends a transaction");
        if transaction.commit_lsn <= self.replay.until {
            self.replay.commit(transaction, &self.partitions)?;
        }
        let position = Position::end(self.run.epoch, transaction.commit_lsn);
        for i in 0..self.touched.len() {
            let partition = self.touched[i];
            let p = &mut self.partitions[usize::from(partition)];
            let here = std::mem::take(&mut p.here);
            if position > p.tail {
                p.last = Last::Written(transaction.xid, transaction.commit_time);
                let written: Result<(), std::convert::Infallible> = self.write(partition, Kind::End, position, |to| {
                    body(to, here, transaction.total);
                    Ok(())
                });
                let Ok(()) = written;
            }
        }
        self.touched.clear();
        Ok(())
    }

    /// Writes an entry that does not move the partition's position: a backfill's row or a marker.
    ///
    /// # Errors
    /// What `encode` answers.
    pub fn aside<E>(
        &mut self,
        partition: u16,
        kind: Kind,
        position: Position,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(matches!(kind, Kind::Read | Kind::Marker), "live entries have their own ways");
        self.write(partition, kind, position, encode)
    }

    /// Writes a marker into every partition: an object with these fields, and the transaction of the partition's position, so
    /// that the next start finds it in the last entry even when nothing else follows.
    pub fn mark(&mut self, fields: &str) {
        for partition in 0..self.partitions() {
            let mut body = format!("{{{fields}");
            match &self.partitions[usize::from(partition)].last {
                Last::Stored(None) => {}
                Last::Stored(Some(last)) => body += &format!(r#","xid":{},"committed_at":"{}""#, last.xid, last.committed_at),
                Last::Written(xid, commit_time) => {
                    let mut committed_at = Vec::new();
                    write_instant(&mut committed_at, *commit_time);
                    body += &format!(r#","xid":{xid},"committed_at":"{}""#, String::from_utf8_lossy(&committed_at));
                }
            }
            body.push('}');
            let written: Result<(), std::convert::Infallible> = self.aside(partition, Kind::Marker, Position::NONE, |to| {
                to.extend_from_slice(body.as_bytes());
                Ok(())
            });
            let Ok(()) = written;
        }
    }

    /// Hands over a batch for the control log.
    pub fn control(&mut self, batch: Batch) -> PublishId {
        let id = PublishId::new(self.run.token, self.control_count);
        self.control_count += 1;
        if let Some(required) = self.required.last_mut() {
            *required = id;
        }
        self.ready.push_back(Ready { log: Log::Control, id, batch });
        id
    }

    #[inline]
    fn write<E>(
        &mut self,
        partition: u16,
        kind: Kind,
        position: Position,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = usize::from(partition);
        let p = &mut self.partitions[index];
        let header = Header {
            kind,
            whole: kind,
            token: self.run.token,
            position,
            prev: p.prev,
            lineage: self.run.lineage,
            part: None,
            source: &self.run.source,
        };
        let before = p.buffer.len();
        p.buffer.begin(&header);
        if let Err(error) = encode(p.buffer.buffer()) {
            p.buffer.cancel();
            return Err(error);
        }
        if p.buffer.len() <= self.batch_max {
            p.buffer.finish();
        } else {
            let entry_bytes = p.buffer.len() - before;
            self.scratch.clear();
            self.scratch.extend_from_slice(p.buffer.open_body());
            p.buffer.cancel();
            cut(p, partition, self.run.token, &mut self.ready, &mut self.handed);
            if entry_bytes <= self.batch_max {
                p.buffer.push(&header, &self.scratch);
            } else {
                split(p, partition, &header, &self.scratch, self.batch_max, &mut self.ready, &mut self.handed);
                if p.buffer.is_empty() {
                    // Whatever follows in this partition stands in a later batch than the last part.
                    self.required[index] = PublishId::new(self.run.token, p.count - 1);
                }
            }
            if self.scratch.capacity() > KEEP_BYTES_MAX {
                self.scratch = Vec::new();
                p.buffer = BatchBuffer::default();
            }
        }
        p.prev = header.live_after();
        if p.buffer.records() > 0 {
            self.required[index] = PublishId::new(self.run.token, p.count);
        }
        if p.buffer.len() >= self.batch_target || p.buffer.records() >= RECORDS_MAX {
            cut(p, partition, self.run.token, &mut self.ready, &mut self.handed);
        }
        Ok(())
    }

    /// Cuts what every partition has gathered, however little.
    pub fn cut_all(&mut self) {
        for (partition, p) in (0..).zip(&mut self.partitions) {
            cut(p, partition, self.run.token, &mut self.ready, &mut self.handed);
        }
    }

    /// The backlog is over: memory that was kept for its batches is given back.
    pub fn rest(&mut self) {
        self.handed = Handed::default();
    }

    /// Whether a finished batch waits.
    #[inline]
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next finished batch; ids of one log come in order.
    pub fn take_ready(&mut self) -> Option<Ready> {
        self.ready.pop_front()
    }

    /// Whether anything written has not been taken yet.
    #[must_use]
    pub fn has_unwritten(&self) -> bool {
        self.has_ready() || self.partitions.iter().any(|p| !p.buffer.is_empty())
    }

    /// The last batch of each log, the control log last, that carries anything written so far: once these are
    /// confirmed, all of it is.
    #[inline]
    #[must_use]
    pub fn required(&self) -> &[PublishId] {
        &self.required
    }

    /// Takes note that the server has sent everything before `at`, outside a transaction.
    ///
    /// # Errors
    /// [`Diverged`] when what is stored should have been among it.
    pub fn reached(&mut self, at: Lsn) -> Result<(), Diverged> {
        self.replay.reached(at)
    }

    /// Takes note of a message outside a transaction.
    pub fn outside(&mut self, at: Lsn) {
        self.replay.newest = self.replay.newest.max(at);
    }

    /// Whether the server is sending again what is stored and has not passed its end: until then it is not certain that
    /// its history is the one in the journal.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_under_way()
    }

    /// Number of data partitions.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.partitions.len() as u16
    }
}

/// Makes a batch of what the partition has gathered.
fn cut(p: &mut Partition, partition: u16, token: u32, ready: &mut VecDeque<Ready>, handed: &mut Handed) {
    let records = p.buffer.records();
    if records == 0 {
        return;
    }
    let batch = Batch { bytes: handed.take(&mut p.buffer), records };
    ready.push_back(Ready { log: Log::Data(partition), id: PublishId::new(token, p.count), batch });
    p.count += 1;
}

/// Full batches that were handed over: the memory of those that are confirmed is written to again. Fresh memory for every batch of a backlog
/// would be zeroed by the kernel each time, and the allocator would keep more of it than is ever in use.
#[derive(Debug, Default)]
struct Handed(VecDeque<Bytes>);

impl Handed {
    /// As many as a journal lets be unconfirmed.
    const MAX: usize = 17;

    /// What the buffer has gathered.
    fn take(&mut self, buffer: &mut BatchBuffer) -> Bytes {
        if buffer.len() < BATCH_BYTES_TARGET {
            // A batch holds its own size and no more.
            let bytes = Bytes::copy_from_slice(buffer.as_bytes());
            buffer.clear();
            return bytes;
        }
        let bytes = Bytes::from(buffer.replace(self.free()));
        if bytes.len() <= KEEP_BYTES_MAX && self.0.len() < Self::MAX {
            self.0.push_back(bytes.clone());
        }
        bytes
    }

    /// Memory for a batch.
    fn free(&mut self) -> Vec<u8> {
        match self.0.pop_front_if(|oldest| oldest.is_unique()) {
            Some(mut confirmed) => {
                // A byte stays: what is empty holds no memory, and what is long is moved.
                confirmed.truncate(1);
                confirmed.into()
            }
            None => Vec::with_capacity(BATCH_BYTES_TARGET + (BATCH_BYTES_TARGET >> 3)),
        }
    }
}

/// Cuts a body into entries of kind `part`, one batch each.
fn split(
    p: &mut Partition,
    partition: u16,
    header: &Header<'_>,
    body: &[u8],
    batch_max: usize,
    ready: &mut VecDeque<Ready>,
    handed: &mut Handed,
) {
    let info = PartInfo {
        index: 0,
        count: 0,
        length: u32::try_from(body.len()).expect("a row is shorter than 4 GiB"),
        crc: crc32fast::hash(body),
    };
    p.buffer.begin(&Header { kind: Kind::Part, part: Some(info), ..*header });
    let room = batch_max - p.buffer.len();
    p.buffer.cancel();
    let count = u16::try_from(body.len().div_ceil(room)).expect("the row limit keeps the number of parts below 65,536");
    for (index, piece) in (0..count).zip(body.chunks(room)) {
        p.buffer.push(&Header { kind: Kind::Part, part: Some(PartInfo { index, count, ..info }), ..*header }, piece);
        cut(p, partition, header.token, ready, handed);
    }
}

/// Compares what is sent again with what is stored.
#[derive(Debug)]
struct Replay {
    /// Stored transactions that must match when they are sent again, by commit LSN.
    expected: VecDeque<(Lsn, Evidence)>,
    /// The first transaction of the session: everything from there on must come.
    first: Option<Lsn>,
    /// The newest one that began.
    newest: Lsn,
    /// Nothing above it is stored.
    until: Lsn,
}

impl Replay {
    fn new(epoch: u32, tails: &[Tail]) -> Self {
        // Positions of another epoch are positions of another history.
        let tails: Vec<&Tail> = tails.iter().filter(|tail| tail.position.epoch == epoch).collect();
        let known = |tail: &Tail| tail.evidence.clone().map(|evidence| (tail.position.commit_lsn, evidence));
        let mut expected: Vec<_> = tails.iter().copied().filter_map(known).collect();
        expected.sort_by_key(|(lsn, _)| *lsn);
        let until = tails.iter().map(|tail| tail.position.commit_lsn).max().unwrap_or_default();
        Replay { expected: expected.into(), first: None, newest: Lsn(0), until }
    }

    /// An earlier transaction was sent again and everything before `at` is sent: then what is stored below has come too.
    fn reached(&self, at: Lsn) -> Result<(), Diverged> {
        if self.is_under_way() && at > self.until {
            return Err(Diverged::PassedOver { at: self.until, next: at });
        }
        Ok(())
    }

    fn is_under_way(&self) -> bool {
        self.first.is_some() && self.newest < self.until
    }

    fn begin(&mut self, commit_lsn: Lsn, xid: u32, commit_time: i64) -> Result<(), Diverged> {
        let first = *self.first.get_or_insert(commit_lsn);
        self.newest = commit_lsn;
        while let Some((at, stored)) = self.expected.front() {
            if *at > commit_lsn {
                break;
            }
            if *at < commit_lsn && first < *at {
                return Err(Diverged::PassedOver { at: *at, next: commit_lsn });
            }
            if *at == commit_lsn {
                let mut committed_at = Vec::new();
                write_instant(&mut committed_at, commit_time);
                if stored.xid != xid || stored.committed_at.as_bytes() != committed_at {
                    return Err(Diverged::Other { at: *at, found: xid, stored: stored.xid });
                }
            }
            self.expected.pop_front();
        }
        Ok(())
    }

    fn commit(&self, transaction: Transaction, partitions: &[Partition]) -> Result<(), Diverged> {
        for tail in partitions.iter().map(|p| p.tail) {
            let inside = tail.commit_lsn == transaction.commit_lsn && tail.ordinal != Position::END_ORDINAL;
            if inside && tail.ordinal >= transaction.ordinal {
                return Err(Diverged::Shorter { at: tail.commit_lsn, changes: transaction.ordinal, stored: tail.ordinal });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tillstream_schemas::Entry;
    use tillstream_schemas::entry::Records;

    use super::*;

    const MAX: usize = 4096;

    fn run() -> Run {
        Run { token: 7, epoch: 1, lineage: Lineage(9), source: "pos".to_owned() }
    }

    fn at(lsn: u64, ordinal: u32) -> Position {
        Position::new(1, Lsn(lsn), ordinal)
    }

    fn tail(position: Position) -> Tail {
        Tail { position, evidence: None }
    }

    fn appender(tails: &[Position]) -> Appender {
        Appender::new(run(), MAX, &tails.iter().copied().map(tail).collect::<Vec<_>>())
    }

    fn event(a: &mut Appender, partition: u16, body: &[u8]) -> Put {
        let position = a.change().expect("few changes");
        let put: Result<Put, Infallible> = a.event(partition, position, |to| {
            to.extend_from_slice(body);
            Ok(())
        });
        let Ok(put) = put;
        put
    }

    /// A transaction with one event per given partition.
    fn transaction(a: &mut Appender, lsn: u64, partitions: &[u16]) {
        a.begin(Lsn(lsn), 1, 0).expect("fits");
        for partition in partitions {
            event(a, *partition, b"{}");
        }
        end(a);
    }

    fn end(a: &mut Appender) {
        a.commit(|to, here, total| to.extend_from_slice(format!("{here}/{total}").as_bytes())).expect("fits");
    }

    /// Takes everything and prints it: log, id's count, then kind, position, prev and short bodies.
    fn taken(a: &mut Appender) -> Vec<String> {
        a.cut_all();
        std::iter::from_fn(|| a.take_ready())
            .map(|ready| {
                let mut text = format!("{:?}#{}", ready.log, ready.id.0 & 0xFF_FFFF);
                assert_eq!(ready.id.0 >> 40, 7);
                let mut records = 0;
                for record in Records::new(&ready.batch.bytes) {
                    let Entry { header: h, body } = Entry::decode(record.expect("framed")).expect("decodes");
                    let part = h.part.map(|p| format!("({}/{})", p.index + 1, p.count)).unwrap_or_default();
                    let body = if h.kind == Kind::End { String::from_utf8_lossy(body).into_owned() } else { String::new() };
                    text += &format!(" {}{part} {}<{}{body}", h.kind.as_str(), h.position, h.prev);
                    records += 1;
                }
                assert_eq!(records, ready.batch.records);
                assert!(ready.batch.bytes.len() <= MAX);
                text.replace("1-0/", "").replace("0-0/0-0", "-")
            })
            .collect()
    }

    #[test]
    fn each_partition_has_its_own_ids_and_its_own_chain() {
        let mut a = appender(&[Position::NONE, Position::NONE]);
        transaction(&mut a, 0x10, &[0, 1, 0]);
        transaction(&mut a, 0x20, &[1]);
        assert_eq!(
            taken(&mut a),
            [
                "Data(0)#1 event 10-0<- event 10-2<10-0 end 10-end<10-22/3",
                "Data(1)#1 event 10-1<- end 10-end<10-11/3 event 20-0<10-end end 20-end<20-01/1",
            ]
        );
        transaction(&mut a, 0x30, &[0]);
        assert_eq!(taken(&mut a), ["Data(0)#2 event 30-0<10-end end 30-end<30-01/1"]);
    }

    #[test]
    fn what_the_tail_holds_is_skipped_and_still_counted() {
        let mut a = appender(&[at(0x10, 2), at(0x10, Position::END_ORDINAL)]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        let puts = [0, 1, 0, 0].map(|partition| event(&mut a, partition, b"{}"));
        assert_eq!(puts, [Put::Skipped, Put::Skipped, Put::Skipped, Put::Written]);
        end(&mut a);
        assert_eq!(taken(&mut a), ["Data(0)#1 event 10-3<10-2 end 10-end<10-33/4"]);
    }

    #[test]
    fn an_event_everywhere_counts_once() {
        let mut a = appender(&[Position::NONE, at(0x10, 0)]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        let position = a.change().expect("few changes");
        let put: Result<Put, Infallible> = a.event_everywhere(position, |to| {
            to.extend_from_slice(b"{}");
            Ok(())
        });
        assert_eq!(put, Ok(Put::Written));
        end(&mut a);
        assert_eq!(taken(&mut a), ["Data(0)#1 event 10-0<- end 10-end<10-01/1", "Data(1)#1 end 10-end<10-01/1"]);
    }

    #[test]
    fn a_large_row_is_cut_into_consecutive_batches_and_only_its_end_moves_the_chain() {
        let mut a = appender(&[Position::NONE]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        event(&mut a, 0, b"{}");
        event(&mut a, 0, &[b'x'; 9_000]);
        let required = a.required()[0];
        event(&mut a, 0, b"{}");
        end(&mut a);
        assert_eq!(
            taken(&mut a),
            [
                "Data(0)#1 event 10-0<-",
                "Data(0)#2 part(1/3) 10-1<10-0",
                "Data(0)#3 part(2/3) 10-1<10-0",
                "Data(0)#4 part(3/3) 10-1<10-0",
                "Data(0)#5 event 10-2<10-1 end 10-end<10-23/3",
            ]
        );
        assert_eq!(required, PublishId::new(7, 4), "the row is stored once its last part is");
    }

    #[test]
    fn batches_of_a_backlog_are_written_into_the_memory_of_confirmed_ones() {
        let mut a = Appender::new(run(), 1 << 20, &[tail(Position::NONE)]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        let full = |a: &mut Appender| {
            while !a.has_ready() {
                event(a, 0, &[b'x'; 1_000]);
            }
            a.take_ready().expect("it is there").batch.bytes
        };
        let (first, second) = (full(&mut a), full(&mut a));
        let (at, held) = (first.as_ptr(), second.clone());
        drop(first);
        // The buffer that was open while the first was under way, then the first one's.
        let (third, fourth) = (full(&mut a), full(&mut a));
        assert!(fourth.as_ptr() == at && third.as_ptr() != at, "confirmed memory is used again");
        assert!(held == second && third.len() >= BATCH_BYTES_TARGET, "and no other");
        a.rest();
        assert!(fourth.is_unique(), "nothing is kept when the backlog is over");
    }

    #[test]
    fn a_row_that_fits_alone_gets_a_batch_of_its_own() {
        let mut a = appender(&[Position::NONE]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        event(&mut a, 0, &[b'x'; 2_000]);
        event(&mut a, 0, &[b'x'; 3_000]);
        assert_eq!(taken(&mut a), ["Data(0)#1 event 10-0<-", "Data(0)#2 event 10-1<10-0"]);
    }

    #[test]
    fn required_names_the_batch_that_will_carry_what_is_still_in_the_buffer() {
        let mut a = appender(&[Position::NONE, Position::NONE]);
        transaction(&mut a, 0x10, &[1]);
        assert_eq!(a.required(), [PublishId::new(7, 0), PublishId::new(7, 1), PublishId::new(7, 0)]);
        taken(&mut a);
        assert_eq!(a.required(), [PublishId::new(7, 0), PublishId::new(7, 1), PublishId::new(7, 0)]);
        let batch = Batch { bytes: Bytes::from_static(b"x"), records: 1 };
        assert_eq!(a.control(batch), PublishId::new(7, 1));
        transaction(&mut a, 0x20, &[1]);
        assert_eq!(a.required(), [PublishId::new(7, 0), PublishId::new(7, 2), PublishId::new(7, 1)]);
        assert!(a.has_unwritten());
    }

    fn evidence(lsn: u64, ordinal: u32, xid: u32) -> Tail {
        let mut committed_at = Vec::new();
        write_instant(&mut committed_at, 5);
        let committed_at = String::from_utf8(committed_at).expect("text");
        Tail { position: at(lsn, ordinal), evidence: Some(Evidence { xid, committed_at }) }
    }

    #[test]
    fn another_history_is_noticed() {
        let sent = |tails: &[Tail], transactions: &[(u64, u32, i64)]| {
            let mut a = Appender::new(run(), MAX, tails);
            transactions.iter().try_for_each(|(lsn, xid, time)| {
                a.begin(Lsn(*lsn), *xid, *time)?;
                event(&mut a, 0, b"{}");
                a.commit(|_, _, _| ())
            })
        };
        let one = [evidence(0x20, Position::END_ORDINAL, 5)];
        assert_eq!(sent(&one, &[(0x10, 4, 5), (0x20, 5, 5), (0x30, 6, 5)]), Ok(()));
        assert_eq!(sent(&one, &[(0x30, 6, 5)]), Ok(()), "nothing sent again is normal");
        assert_eq!(sent(&one, &[(0x20, 6, 5)]), Err(Diverged::Other { at: Lsn(0x20), found: 6, stored: 5 }));
        assert_eq!(sent(&one, &[(0x20, 5, 6)]), Err(Diverged::Other { at: Lsn(0x20), found: 5, stored: 5 }));
        assert_eq!(sent(&one, &[(0x10, 4, 5), (0x30, 6, 5)]), Err(Diverged::PassedOver { at: Lsn(0x20), next: Lsn(0x30) }));
        let inside = [tail(at(0x20, 3))];
        assert_eq!(sent(&inside, &[(0x20, 5, 5)]), Err(Diverged::Shorter { at: Lsn(0x20), changes: 1, stored: 3 }));
        let other_epoch = [Tail { position: Position { epoch: 9, ..at(0x20, 3) }, ..evidence(0x20, 3, 5) }];
        assert_eq!(sent(&other_epoch, &[(0x10, 4, 5), (0x30, 6, 5)]), Ok(()), "positions of another epoch are not compared");
        let two = [evidence(0x20, 0, 5), evidence(0x40, 0, 7)];
        assert_eq!(sent(&two, &[(0x30, 6, 5), (0x40, 7, 5)]), Ok(()), "the slot is behind the second partition only");
        assert_eq!(sent(&two, &[(0x30, 6, 5), (0x50, 8, 5)]), Err(Diverged::PassedOver { at: Lsn(0x40), next: Lsn(0x50) }));
    }

    #[test]
    fn what_is_sent_again_is_believed_once_its_end_has_passed() {
        let mut a = Appender::new(run(), MAX, &[evidence(0x20, Position::END_ORDINAL, 5)]);
        assert!(!a.is_replaying(), "nothing may have to be sent again");
        assert_eq!(a.reached(Lsn(0x90)), Ok(()));
        for (lsn, xid, replaying) in [(0x10, 4, true), (0x20, 5, false), (0x30, 6, false)] {
            a.begin(Lsn(lsn), xid, 5).expect("fits");
            event(&mut a, 0, b"{}");
            end(&mut a);
            assert_eq!(a.is_replaying(), replaying, "{lsn:x}");
            assert_eq!(a.reached(Lsn(lsn + 2)), Ok(()));
            let passed = Err(Diverged::PassedOver { at: Lsn(0x20), next: Lsn(0x28) });
            assert_eq!(a.reached(Lsn(0x28)), if replaying { passed } else { Ok(()) });
        }
    }

    #[test]
    fn a_row_that_cannot_be_encoded_leaves_nothing_behind() {
        let mut a = appender(&[Position::NONE]);
        a.begin(Lsn(0x10), 1, 0).expect("fits");
        let position = a.change().expect("few changes");
        let failed = a.event(0, position, |to| {
            to.extend_from_slice(b"half");
            Err("cannot")
        });
        assert_eq!(failed, Err("cannot"));
        event(&mut a, 0, b"{}");
        assert_eq!(taken(&mut a), ["Data(0)#1 event 10-1<-"]);
    }

    #[test]
    fn markers_stand_in_every_partition_beside_the_transaction_of_its_position() {
        let evidence = Some(Evidence { xid: 5, committed_at: "2026-11-22T10:00:00.000000Z".to_owned() });
        let tails = [Tail { position: at(50, 0), evidence: evidence.clone() }, Tail { position: at(40, 0), evidence: None }];
        let mut a = Appender::new(run(), MAX, &tails);
        let bodies = |a: &mut Appender| -> Vec<String> {
            a.cut_all();
            let batches: Vec<Ready> = std::iter::from_fn(|| a.take_ready()).collect();
            let marker = |ready: &Ready| {
                let last = Records::new(&ready.batch.bytes).last().expect("an entry").expect("framed");
                let entry = Entry::decode(last).expect("decodes");
                assert_eq!((entry.header.kind, entry.header.position), (Kind::Marker, Position::NONE));
                format!("{:?}<{} {}", ready.log, entry.header.prev, String::from_utf8_lossy(entry.body))
            };
            batches.iter().map(marker).collect()
        };
        a.mark(r#""marker":"x""#);
        let stored = r#"{"marker":"x","xid":5,"committed_at":"2026-11-22T10:00:00.000000Z"}"#;
        assert_eq!(bodies(&mut a), [format!("Data(0)<{} {stored}", at(50, 0)), format!("Data(1)<{} {{\"marker\":\"x\"}}", at(40, 0))]);
        a.begin(Lsn(60), 6, 0).expect("fits");
        event(&mut a, 1, b"{}");
        end(&mut a);
        a.mark(r#""marker":"y""#);
        let written = r#"{"marker":"y","xid":6,"committed_at":"2000-01-01T00:00:00.000000Z"}"#;
        let again = stored.replace('x', "y").replace("yid", "xid");
        let end_of_60 = Position::end(1, Lsn(60));
        assert_eq!(bodies(&mut a), [format!("Data(0)<{} {again}", at(50, 0)), format!("Data(1)<{end_of_60} {written}")]);
        // A message outside a transaction has none, and an earlier epoch's counts for nothing.
        let written: Result<Put, Infallible> = a.event(0, at(70, 0), |_| Ok(()));
        assert_eq!(written, Ok(Put::Written));
        a.mark(r#""marker":"z""#);
        assert_eq!(bodies(&mut a)[0], format!("Data(0)<{} {{\"marker\":\"z\"}}", at(70, 0)));
        let earlier = Tail { position: Position::new(1, Lsn(50), 0), evidence };
        let mut later = Appender::new(Run { epoch: 2, ..run() }, MAX, &[earlier]);
        later.mark(r#""marker":"epoch""#);
        assert!(bodies(&mut later)[0].ends_with("{\"marker\":\"epoch\"}"));
    }
}

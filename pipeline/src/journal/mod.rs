//! The journal: the one durable log between capture and delivery.
//!
//! A journal has a fixed number of data partitions and one control log. It stores *batches* of entries under rising
//! ids and knows nothing of what an entry says. Two implementations: RabbitMQ streams ([`rabbit`]) and one SQLite
//! file ([`local`]); both pass the same suite ([`contract`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};

use crate::config;

pub mod contract;
pub mod local;
pub mod rabbit;
mod window;

/// A log that seems to end before what was read of it is asked again for so long: a broker that comes back says for a moment that nothing is
/// confirmed, as if the log were empty.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is asked meanwhile.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(200);

/// One of the journal's logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Log {
    /// A data partition, from 0.
    Data(u16),
    /// The control log beside the data.
    Control,
}

/// An address in one log. Never a count: RabbitMQ spends offsets on its own bookkeeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// The name a writer writes under. The journal keeps the highest id of each name and log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProducerName(pub String);

/// Orders what one producer name writes into one log: `token << 40 | count in that run`, so that a later run outranks an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub u64);

impl PublishId {
    /// Bits that count within a run: 1.1 million million batches.
    pub const COUNT_BITS: u32 = 40;
    /// The highest token: 24 bits, 16.7 million runs.
    pub const TOKEN_MAX: u32 = (1 << 24) - 1;

    /// The id of batch `count` (from 0) of the run with this token (from 1: an id of 0 cannot be told from "never published").
    ///
    /// # Panics
    /// When either number does not fit its bits.
    #[must_use]
    pub fn new(token: u32, count: u64) -> Self {
        assert!(token <= Self::TOKEN_MAX && count < 1 << Self::COUNT_BITS, "a token has 24 bits, a count 40");
        PublishId((u64::from(token) << Self::COUNT_BITS) | count)
    }
}

/// Encoded entries, each behind its length as u32 (`tillstream_schemas::entry`).
/// Stored or dropped as a whole; each entry gets an offset of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The entries' bytes, at most [`Journal::batch_bytes_max`].
    pub bytes: Bytes,
    /// How many entries, 1 to 65,535.
    pub records: u32,
}

/// Entries as a reader gets them: one or more stored batches, uncompressed.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Offset of the first entry in `bytes`; each next entry has the next offset.
    pub first_offset: Offset,
    /// When the journal stored it, milliseconds since the Unix epoch, by the journal's clock.
    pub stored_at_ms: i64,
    /// The entries' bytes, each behind its length as u32.
    pub bytes: Bytes,
    /// How many entries.
    pub records: u32,
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The oldest entry still there.
    First,
    /// This offset. Attaching lands on a chunk's start; the reader skips what lies before. An offset that retention
    /// has deleted is [`JournalError::Expired`], never a silent jump; one beyond the end is waited for.
    Offset(Offset),
    /// Entries stored after the call.
    Next,
    /// About this moment or a little earlier, milliseconds since the Unix epoch.
    Time(i64),
}

/// The extent of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the oldest entry, or of bookkeeping of the journal just before it.
    pub first: Offset,
    /// Offset of the newest confirmed entry.
    pub last: Offset,
}

/// Where the copies of a log are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// The log.
    pub log: Log,
    /// The node that is written to; `None` while none is.
    pub leader: Option<String>,
    /// The other nodes that hold it.
    pub replicas: Vec<String>,
}

/// What a journal reports when it fails. Unknown failures are transient.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Broker away, connection lost, disk busy: try again with backoff.
    #[error("journal unavailable: {0}")]
    Unavailable(String),
    /// A later run wrote under this producer name: this run must end. Only journals that can tell report it.
    #[error("fenced: a later run writes to this journal")]
    Fenced,
    /// The wanted offset was deleted by retention.
    #[error("offset {wanted:?} was deleted by retention; the oldest entry is at {first:?}")]
    Expired {
        /// What was asked for.
        wanted: Offset,
        /// What is there.
        first: Offset,
    },
    /// The log does not exist (deleted, or never set up).
    #[error("journal log {0} does not exist")]
    Missing(String),
    /// Credentials or permissions.
    #[error("journal refuses access: {0}")]
    Refused(String),
    /// Stored bytes are damaged: failed checksum, impossible length.
    #[error("journal entry is damaged: {0}")]
    Damaged(String),
    /// The configuration cannot work with this journal (version, partitions, frame size).
    #[error("journal cannot be used: {0}")]
    Unusable(String),
}

impl JournalError {
    /// Whether trying again can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            JournalError::Unavailable(_) => true,
            JournalError::Fenced
            | JournalError::Expired { .. }
            | JournalError::Missing(_)
            | JournalError::Refused(_)
            | JournalError::Damaged(_)
            | JournalError::Unusable(_) => false,
        }
    }

    /// Stable code: the name of a page, a metric label and an `explain` topic.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            JournalError::Unavailable(_) => "journal.unavailable",
            JournalError::Fenced => "journal.fenced",
            JournalError::Expired { .. } => "journal.expired",
            JournalError::Missing(_) => "journal.missing",
            JournalError::Refused(_) => "journal.refused",
            JournalError::Damaged(_) => "journal.damaged",
            JournalError::Unusable(_) => "journal.unusable",
        }
    }
}

/// A durable log with data partitions and a control log.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Creates what is missing (streams, tables) and checks what is there against the configuration. Idempotent.
    async fn set_up(&self) -> Result<(), JournalError>;

    /// Number of data partitions.
    fn partitions(&self) -> u16;

    /// Kind and version, as `rabbitmq 4.0.5` or `local`.
    async fn describe(&self) -> Result<String, JournalError>;

    /// The most bytes a [`Batch`] may have.
    fn batch_bytes_max(&self) -> usize;

    /// A writer under `name`. Opening fences nobody: ids do.
    async fn writer(&self, name: &ProducerName) -> Result<Box<dyn Writer>, JournalError>;

    /// Reads a log. Only confirmed entries are seen.
    async fn reader(&self, log: Log, from: From) -> Result<Box<dyn Reader>, JournalError>;

    /// The last stored chunk of a log, or `None` while it is empty: a start needs the last entry only, since every
    /// entry carries what came before it.
    async fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError>;

    /// First and last offset, or `None` while the log is empty.
    async fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError>;

    /// Where each log's copies are; empty for a journal that is one file.
    async fn copies(&self) -> Result<Vec<Copies>, JournalError> {
        Ok(Vec::new())
    }
}

/// Appends batches under rising ids. Nothing is lost between `append` and its confirm: a writer that loses its
/// connection reconnects by itself and re-sends everything unconfirmed, unchanged and in order, before anything new.
#[async_trait]
pub trait Writer: Send {
    /// Hands a batch over. Waits only for room (unconfirmed bytes and batches are bounded), never for its confirm.
    /// Ids of one log must rise. A batch whose id is not above the highest stored under this name in this log is
    /// dropped and *still confirmed* (RabbitMQ) or reported as [`JournalError::Fenced`] (local): a confirm is not proof of storage.
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError>;

    /// The watermark of a log: every batch handed over with an id up to it is confirmed. Cheap; never goes back.
    fn confirmed(&self, log: Log) -> PublishId;

    /// Resolves when a watermark has moved since the last call, or fails when the writer can not go on.
    /// Cancel-safe.
    async fn progress(&mut self) -> Result<(), JournalError>;

    /// Bytes handed over and not confirmed, in all logs.
    fn unconfirmed_bytes(&self) -> usize;

    /// How long the oldest unconfirmed batch has been waiting: what tells a slow journal from one that is away or blocked.
    fn unconfirmed_age(&self) -> Option<Duration> {
        None
    }

    /// Waits until everything handed over is confirmed.
    async fn flush(&mut self) -> Result<(), JournalError>;
}

/// Reads one log in order.
#[async_trait]
pub trait Reader: Send {
    /// The next entries; waits for them. Reconnects by itself and goes on where it was. Cancel-safe.
    async fn next(&mut self) -> Result<Chunk, JournalError>;
}

/// Opens the configured journal. Touches neither network nor disk yet.
///
/// `client` names this process to the broker (in its connection list), as `tillstream/main/run`.
///
/// # Errors
/// [`JournalError::Unusable`] when the configuration cannot work, as a URL that names no host.
pub fn open(config: &config::Journal, client: &str) -> Result<Arc<dyn Journal>, JournalError> {
    match config {
        config::Journal::Rabbitmq(config) => Ok(Arc::new(rabbit::RabbitJournal::new(config, client)?)),
        config::Journal::Local(config) => Ok(Arc::new(local::LocalJournal::new(config))),
    }
}

impl Chunk {
    /// The offset after the last entry.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset(self.first_offset.0 + u64::from(self.records))
    }

    /// Drops the entries before `offset`, so that the chunk begins there; unchanged when it already begins at or after it.
    /// The chunk is empty when all its entries lie before `offset`.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when a length points past the end.
    pub fn skip_to(mut self, offset: Offset) -> Result<Chunk, JournalError> {
        while self.first_offset < offset && self.records > 0 {
            let len = self.bytes.get(..4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize);
            match len {
                Some(len) if len <= self.bytes.len() - 4 => self.bytes.advance(4 + len),
                _ => return Err(JournalError::Damaged(format!("the entry at {:?} is longer than its chunk", self.first_offset))),
            }
            self.first_offset.0 += 1;
            self.records -= 1;
        }
        Ok(self)
    }
}

/// How many length-prefixed entries `bytes` holds; `None` when they do not end where `bytes` ends.
fn count_records(bytes: &[u8]) -> Option<u32> {
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        let len = bytes.get(at..at + 4)?;
        at += 4 + u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
        count += 1;
    }
    (at == bytes.len()).then_some(count)
}

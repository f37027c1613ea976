//! The seam between the capture engine and the database it reads, so that the protocol can be driven by a simulated
//! source as well as by PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use tillstream_schemas::Lsn;

use super::CaptureError;

/// What `IDENTIFY_SYSTEM` and the like answer on the replication connection itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's system identifier.
    pub system_id: u64,
    /// The timeline that is being written.
    pub timeline: u32,
    /// The server's flush position at that moment.
    pub wal_flush: Lsn,
    /// Where each earlier timeline of this server ended, oldest first.
    pub switches: Vec<(u32, Lsn)>,
    /// Whether it is a standby: its position lags behind that of its primary.
    pub standby: bool,
    /// `wal_sender_timeout`; `None` when the server waits for ever.
    pub sender_timeout: Option<Duration>,
}

/// What an ordinary connection says of the slot, the WAL it keeps, and who reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The server's flush position.
    pub wal: Lsn,
    /// The slot; `None` when there is none of that name.
    pub slot: Option<SlotLook>,
    /// `max_slot_wal_keep_size` in bytes; `None` for no limit.
    pub keep_bytes: Option<u64>,
}

/// A slot at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotLook {
    /// Oldest WAL that it keeps; `None` once it is lost.
    pub restart: Option<Lsn>,
    /// What its reader has acknowledged.
    pub confirmed: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// WAL bytes that can still be written before it is in danger; `None` without a limit.
    pub safe_bytes: Option<u64>,
    /// Who streams from it, for people: application and address.
    pub holder: Option<String>,
    /// What the server counts of its decoding; `None` until it has counted anything.
    pub decoding: Option<Decoding>,
    /// What keeps its oldest WAL although its reader has acknowledged more: a transaction that is open, with its process.
    pub pinned_by: Option<String>,
}

/// What the server has decoded for a slot since its counters were reset: `pg_stat_replication_slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoding {
    /// Transactions that did not fit `logical_decoding_work_mem` and went to the server's disk.
    pub spill_txns: u64,
    /// What was written there.
    pub spill_bytes: u64,
    /// Transactions that were sent before they committed.
    pub stream_txns: u64,
    /// What was sent of them.
    pub stream_bytes: u64,
    /// All transactions sent.
    pub total_txns: u64,
    /// What was decoded of them.
    pub total_bytes: u64,
}

/// Opens replication connections.
#[async_trait]
pub trait Source: Send + Sync {
    /// Connects, authenticates and identifies the server. Takes no slot.
    async fn connect(&self) -> Result<Box<dyn Replication>, CaptureError>;

    /// Looks at slot and WAL over an ordinary connection, which is closed again: one that stayed would keep the server
    /// from an orderly ("smart") shutdown. [`CaptureError::NotAccepting`] while the server starts or shuts down.
    async fn look(&self) -> Result<Looked, CaptureError>;
}

/// A message of the replication stream, borrowed from the connection's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of WAL as pgoutput decoded it.
    XLogData {
        /// Where the piece begins in WAL (0 for what has no place of its own).
        wal_start: Lsn,
        /// The server's end of WAL when it was sent; PostgreSQL repeats `wal_start` here, so only a keepalive tells how far
        /// the server is.
        wal_end: Lsn,
        /// The pgoutput message.
        data: &'a [u8],
    },
    /// The server is alive.
    Keepalive {
        /// How far the server has sent; nothing for us lies before it.
        wal_end: Lsn,
        /// The server wants an answer at once.
        reply_requested: bool,
    },
}

/// What we tell PostgreSQL. `flush` never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received so far.
    pub write: Lsn,
    /// PostgreSQL may forget WAL up to here.
    pub flush: Lsn,
    /// Ask for an answer, to find out whether the link lives.
    pub reply_requested: bool,
}

/// One replication connection. Losing it ends the capture session.
#[async_trait]
pub trait Replication: Send {
    /// Who answered.
    fn identity(&self) -> &SystemIdentity;

    /// Takes the slot and starts streaming from what it has confirmed. "Active" is [`CaptureError::SlotActive`].
    async fn start(&mut self) -> Result<(), CaptureError>;

    /// Waits until at least one whole message is in the buffer. Cancel-safe. `behind` allows it to let bytes gather
    /// in the socket (bulk reading); otherwise it returns with the first message.
    async fn fill(&mut self, behind: bool) -> Result<(), CaptureError>;

    /// Takes the next whole message out of the buffer; `None` when it has to be filled again.
    fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError>;

    /// Sends a status update. Must not wait for the server to read anything but its own socket buffer.
    async fn send_status(&mut self, status: StandbyStatus) -> Result<(), CaptureError>;

    /// Takes a little out of the socket although nobody reads it yet, so that the server's answers still reach us: a receive
    /// window that is closed for good shuts out its acknowledgements of what *we* send, and soon our status reaches
    /// nobody. Bounded; returns at once when there is nothing, and does nothing once enough is kept.
    async fn sip(&mut self) -> Result<(), CaptureError>;

    /// Ends streaming politely, within a short deadline, and closes. The slot is free afterwards.
    async fn stop(&mut self);
}

//! The seam between the capture engine and the database it reads, so that the protocol can be driven by a simulated
//! source as well as by PostgreSQL.

use async_trait::async_trait;
use tillstream_schemas::Lsn;

use super::CaptureError;

/// What `IDENTIFY_SYSTEM` answers on the replication connection itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's system identifier.
    pub system_id: u64,
    /// The timeline that is being written.
    pub timeline: u32,
    /// The server's flush position at that moment.
    pub wal_flush: Lsn,
}

/// Opens replication connections.
#[async_trait]
pub trait Source: Send + Sync {
    /// Connects, authenticates and identifies the server. Takes no slot.
    async fn connect(&self) -> Result<Box<dyn Replication>, CaptureError>;
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

    /// Ends streaming politely, within a short deadline, and closes. The slot is free afterwards.
    async fn stop(&mut self);
}

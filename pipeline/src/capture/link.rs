//! The connection that holds the slot, as a session keeps it: what the server was told, and whether it wants to end.

use std::sync::Arc;
use std::time::Duration;

use tillstream_schemas::Lsn;
use tokio::time::{Instant, sleep_until};

use super::CaptureError;
use super::source::{Replication, StandbyStatus};
use super::stats::Stats;

/// The server gives a slot away after `wal_sender_timeout` (60 s by default) without a word from us; a sixth of that
/// leaves room for a slow network and for lower settings.
pub(super) const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// So many requests for an answer, one right after another at the same position, are what a server does that shuts
/// down; its ordinary ones are half a `wal_sender_timeout` apart.
const SHUTDOWN_PINGS: u32 = 3;
const SHUTDOWN_PING_GAP: Duration = Duration::from_millis(250);

/// The connection that holds the slot, and what the server knows from us.
pub(super) struct Link {
    pub(super) replication: Box<dyn Replication>,
    pub(super) sent: StandbyStatus,
    pub(super) sent_at: Instant,
    stats: Arc<Stats>,
}

impl Link {
    pub(super) fn new(replication: Box<dyn Replication>, stats: Arc<Stats>) -> Self {
        Link { replication, sent: StandbyStatus::default(), sent_at: Instant::now(), stats }
    }

    /// Sends a status. What was acknowledged once stays acknowledged.
    pub(super) async fn send(&mut self, write: Lsn, flush: Lsn, reply_requested: bool) -> Result<(), CaptureError> {
        assert!(flush >= self.sent.flush, "an acknowledgement never goes back");
        self.sent = StandbyStatus { write: write.max(self.sent.write).max(flush), flush, reply_requested };
        self.replication.send_status(self.sent).await?;
        self.sent_at = Instant::now();
        Stats::lsn(&self.stats.acknowledged_lsn, flush);
        Ok(())
    }

    /// Sends the last status again.
    pub(super) async fn repeat(&mut self) -> Result<(), CaptureError> {
        self.send(self.sent.write, self.sent.flush, false).await
    }

    /// Does something that may take long, without the server missing us meanwhile.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, CaptureError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = sleep_until(self.sent_at + STATUS_INTERVAL) => self.repeat().await?,
            }
        }
    }
}

/// Whether the server waits for us in order to shut down.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    pings: u32,
    at: Lsn,
    last: Option<Instant>,
    pub(super) since: Option<Instant>,
}

impl Shutdown {
    /// A keepalive came that wants an answer.
    pub(super) fn ping(&mut self, wal_end: Lsn, now: Instant) {
        let again = wal_end == self.at && self.last.is_some_and(|last| now - last < SHUTDOWN_PING_GAP);
        self.pings = if again { self.pings + 1 } else { 1 };
        (self.at, self.last) = (wal_end, Some(now));
        if self.pings >= SHUTDOWN_PINGS {
            self.since.get_or_insert(now);
        }
    }
}

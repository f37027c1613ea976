//! The connection that holds the slot: what the server was told, when it is missed, and whether it is shutting down.
//!
//! The server hears from us at least every third of its `wal_sender_timeout`, also while the journal takes nothing, because it
//! would otherwise give the slot away. Never decides what may be acknowledged.

use std::sync::Arc;
use std::time::Duration;

use tillstream_schemas::Lsn;
use tokio::time::{Instant, sleep_until};

use super::CaptureError;
use super::source::{Replication, StandbyStatus};
use super::stats::Stats;
use super::watch::Watch;

/// The longest time without a status. The server gives a slot away after `wal_sender_timeout` (60 s by default) without a
/// word from us.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The longest silence before we ask the server for an answer; after twice that the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// A server that shuts down waits until we have acknowledged everything. What the journal cannot take by then is sent again
/// after the restart. With the two seconds in which a stall and a shutdown are noticed this stays below five.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

/// So many requests for an answer, one right after another at the same position, are what a server does that shuts
/// down; its ordinary ones are half a `wal_sender_timeout` apart.
const SHUTDOWN_PINGS: u32 = 3;
const SHUTDOWN_PING_GAP: Duration = Duration::from_millis(250);

/// The connection that holds the slot, and what the server knows from us.
pub(super) struct Link {
    pub(super) replication: Box<dyn Replication>,
    pub(super) sent: StandbyStatus,
    pub(super) sent_at: Instant,
    /// Longest time without a status.
    pub(super) status_interval: Duration,
    /// Silence after which the server is asked for an answer.
    pub(super) silence: Duration,
    stats: Arc<Stats>,
    watch: Watch,
    pings: Pings,
}

/// Requests for an answer that come as fast as they are answered.
#[derive(Debug, Default)]
struct Pings {
    count: u32,
    at: Lsn,
    last: Option<Instant>,
    /// When there were enough to be sure.
    since: Option<Instant>,
}

impl Pings {
    fn count(&mut self, wal_end: Lsn, now: Instant) {
        let again = wal_end == self.at && self.last.is_some_and(|last| now - last < SHUTDOWN_PING_GAP);
        self.count = if again { self.count + 1 } else { 1 };
        (self.at, self.last) = (wal_end, Some(now));
        if self.count >= SHUTDOWN_PINGS {
            self.since.get_or_insert(now);
        }
    }
}

impl Link {
    pub(super) fn new(replication: Box<dyn Replication>, stats: Arc<Stats>, watch: Watch) -> Self {
        let timeout = replication.identity().sender_timeout.unwrap_or(Duration::MAX);
        Link {
            replication,
            sent: StandbyStatus::default(),
            sent_at: Instant::now(),
            status_interval: STATUS_INTERVAL.min(timeout / 3),
            silence: SILENCE.min(timeout / 2),
            stats,
            watch,
            pings: Pings::default(),
        }
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

    /// Sends the last status again although nothing is read meanwhile, over a window that is opened a little for it.
    pub(super) async fn repeat_unread(&mut self) -> Result<(), CaptureError> {
        self.replication.sip().await?;
        self.repeat().await
    }

    /// A keepalive came that wants an answer.
    pub(super) fn pinged(&mut self, wal_end: Lsn) {
        self.pings.count(wal_end, Instant::now());
    }

    /// Changes came: whatever the server was waiting for, it was not the end.
    pub(super) fn moved(&mut self) {
        self.pings = Pings::default();
    }

    /// Whether the server has sent everything and waits for our last acknowledgement in order to end.
    pub(super) fn is_pressed(&self) -> bool {
        self.pings.since.is_some()
    }

    /// Since when the server shuts down.
    pub(super) fn ends_since(&self) -> Option<Instant> {
        [self.pings.since, self.watch.ending()].into_iter().flatten().min()
    }

    /// When a server that shuts down has waited long enough for us.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ends_since().map(|since| since + SHUTDOWN_DEADLINE)
    }

    /// Waits until a message is there (true) or the server's end may have been noticed (false). Cancel-safe.
    pub(super) async fn filled(&mut self, behind: bool) -> Result<bool, CaptureError> {
        tokio::select! {
            biased;
            () = self.watch.changed() => Ok(false),
            filled = self.replication.fill(behind) => filled.map(|()| true),
        }
    }

    /// Resolves when [`Self::ends_since`] may have changed. Cancel-safe.
    pub(super) async fn end_noticed(&mut self) {
        self.watch.changed().await;
    }

    /// Does something that may take long, without the server missing us meanwhile. Gives up when the server shuts down
    /// and it takes too long for that.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, CaptureError> {
        tokio::pin!(work);
        let began = Instant::now();
        loop {
            let patience = self.deadline().map(|at| at.max(began + SHUTDOWN_DEADLINE));
            let status = self.sent_at + self.status_interval;
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = sleep_until(status) => self.repeat().await?,
                () = until(patience) => return Err(shutting_down()),
                () = self.end_noticed() => {}
            }
        }
    }
}

/// Waits for a moment; for ever when there is none.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The server wants to end and we cannot give it what it waits for.
pub(super) fn shutting_down() -> CaptureError {
    CaptureError::Unavailable("the server shuts down, and the journal does not take what it waits for; it is sent again afterwards".into())
}

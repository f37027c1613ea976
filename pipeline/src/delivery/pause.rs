//! A connector that somebody paused: what waits for it meanwhile, and since when, which tells when retention will reach it.
//!
//! Its partitions end as at a stop, but without hurry: calls in the air finish however long they may take, what came of them is booked, and the leases are
//! given back. The pause itself is a record of the control log, so that every process obeys it, and whoever starts later too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::stats::{ConnectorStats, PartitionProgress};
use crate::control::Follower;
use crate::journal::{From, Journal, JournalError, Log, Offset};

/// Between two looks at what waits.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The partitions of a paused connector that this process would deliver.
pub(super) struct Resting {
    pub(super) journal: Arc<dyn Journal>,
    pub(super) follower: Follower,
    pub(super) partitions: BTreeSet<u16>,
    pub(super) stats: Arc<ConnectorStats>,
}

/// The oldest entry that waits.
struct Oldest {
    stored_at_ms: i64,
    /// Bytes of an entry beside it, about.
    entry_bytes: u64,
}

impl Resting {
    /// Keeps their progress true until it is dropped. A journal that does not answer is told of by others.
    pub(super) async fn watch(self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for partition in &self.partitions {
                if let Err(error) = self.look(*partition).await {
                    tracing::debug!(connector = self.stats.name(), partition, %error, "what waits is not known");
                }
            }
        }
    }

    async fn look(&self, partition: u16) -> Result<(), JournalError> {
        let log = Log::Data(partition);
        let bounds = self.journal.bounds(log).await?;
        let checkpoint = self.follower.state().checkpoint(self.stats.name(), partition).map(|c| (c.offset, c.position));
        let (settled, position) = checkpoint.unwrap_or((bounds.map_or(Offset(0), |b| b.first), Default::default()));
        let before = self.stats.partitions().get(&partition).copied();
        let mut progress = PartitionProgress { in_flight: 0, full: false, read: settled, settled, position, ..before.unwrap_or_default() };
        let known = before.filter(|before| before.resting && before.settled == settled && before.oldest_commit_ms.is_some());
        if known.is_none() {
            let oldest = match bounds.filter(|bounds| bounds.last >= settled) {
                Some(_) => Some(self.oldest(log, settled).await?),
                None => None,
            };
            progress.oldest_commit_ms = oldest.as_ref().map(|oldest| oldest.stored_at_ms);
            progress.entry_bytes = oldest.map(|oldest| oldest.entry_bytes).or(progress.entry_bytes);
        }
        progress.resting = true;
        self.stats.set_progress(partition, progress);
        Ok(())
    }

    async fn oldest(&self, log: Log, settled: Offset) -> Result<Oldest, JournalError> {
        let read = async |from| self.journal.reader(log, from).await?.next().await;
        let chunk = match read(From::Offset(settled)).await {
            // Retention was faster: what is oldest now is the next to go.
            Err(JournalError::Expired { .. }) => read(From::First).await?,
            chunk => chunk?,
        };
        Ok(Oldest { stored_at_ms: chunk.stored_at_ms, entry_bytes: chunk.bytes.len() as u64 / u64::from(chunk.records.max(1)) })
    }
}

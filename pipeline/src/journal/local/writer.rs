//! Stores what a writer is handed: one task per writer takes everything queued for a log and stores it in one transaction.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::warn;

use super::store::Store;
use super::{BATCH_BYTES_MAX, Shared, blocking};
use crate::journal::window::{Handle, Limits, Portion, Window};
use crate::journal::{Batch, JournalError, Log, ProducerName, PublishId, Writer};
use crate::retry::Delays;

const LIMITS: Limits = Limits {
    // Enough to fill a transaction while the one before it syncs; it is memory that a stalled disk costs.
    bytes_max: 8 << 20,
    batches_max: 4_096,
    batch_bytes_max: BATCH_BYTES_MAX,
};

/// What one transaction takes: large enough that the sync is a small part of its cost, small enough that readers follow closely.
const TRANSACTION: Portion = Portion { bytes_max: 4 << 20, beside: 0, busy: usize::MAX };

pub(super) struct LocalWriter {
    window: Handle,
}

impl LocalWriter {
    pub(super) async fn open(shared: Arc<Shared>, name: ProducerName) -> Result<Self, JournalError> {
        let opened = Arc::clone(&shared);
        let store = blocking(move || Store::open(&opened.dir, opened.partitions)).await?;
        let window = Window::new(LIMITS);
        let handle = window.handle();
        tokio::spawn(async move {
            if let Err(error) = run(&shared, &window, &name, store).await {
                window.fail(error);
            }
        });
        Ok(LocalWriter { window: handle })
    }
}

/// Stores what is handed over until the writer is dropped or can not go on.
async fn run(shared: &Arc<Shared>, window: &Window, name: &ProducerName, store: Store) -> Result<(), JournalError> {
    // A busy or full disk passes; somebody has to see it, so that every attempt that failed is logged, at most every 5 seconds.
    let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut store = Some(store);
    let mut work = window.work();
    while !window.is_closed() {
        work.mark_unchanged();
        let mut idle = true;
        for log in window.logs() {
            let batches = Arc::new(window.take(log, TRANSACTION));
            if batches.is_empty() {
                continue;
            }
            idle = false;
            shared.check(Some(log))?;
            let taken = store.take().expect("every turn puts the file back");
            let (back, result) = append(shared, name, log, &batches, taken).await?;
            store = Some(back);
            match result {
                Ok(stored) => {
                    delays.reset();
                    window.confirm(log, batches[..stored].iter().map(|(id, _)| *id));
                    shared.stored.send_modify(|n| *n += 1);
                    if stored < batches.len() {
                        return Err(JournalError::Fenced);
                    }
                }
                Err(error) if error.is_transient() => {
                    warn!(error = %error, "the journal file does not take entries; trying again");
                    window.rewind(log);
                    tokio::time::sleep(delays.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
        if idle {
            let _ = work.changed().await;
        }
    }
    Ok(())
}

type Appended = (Store, Result<usize, JournalError>);

async fn append(
    shared: &Arc<Shared>,
    name: &ProducerName,
    log: Log,
    batches: &Arc<Vec<(PublishId, Batch)>>,
    mut store: Store,
) -> Result<Appended, JournalError> {
    let (name, batches, retention) = (name.clone(), Arc::clone(batches), shared.retention(log));
    blocking(move || {
        let result = store.append(&name.0, log, &batches, retention);
        Ok((store, result))
    })
    .await
}

#[async_trait]
impl Writer for LocalWriter {
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        self.window.append(log, id, batch).await
    }

    fn confirmed(&self, log: Log) -> PublishId {
        self.window.confirmed(log)
    }

    async fn progress(&mut self) -> Result<(), JournalError> {
        self.window.progress().await
    }

    fn unconfirmed_bytes(&self) -> usize {
        self.window.unconfirmed_bytes()
    }

    fn unconfirmed_age(&self) -> Option<Duration> {
        self.window.unconfirmed_age()
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        self.window.flush().await
    }
}

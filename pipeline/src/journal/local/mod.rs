//! The journal in one SQLite file: a laptop, a single small site, tests.
//!
//! ```text
//! <dir>/journal.sqlite   log       one row per log: next offset, stored bytes
//!                        chunk     one row per stored batch: offsets, time, checksum, bytes
//!                        producer  the highest id of each producer name and log
//! ```
//!
//! Several processes share the file (`run`, `tap`, `status`): write-ahead mode, a full sync per transaction, and several
//! queued batches in one transaction. Recovery after a crash is SQLite's. All work on the file happens on blocking threads,
//! never on the runtime's. Every batch has a checksum that is checked when it is read.
//!
//! A batch whose id is not above the stored one fails its writer with [`JournalError::Fenced`]: the comparison happens in
//! the transaction that stores the batch.

mod reader;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Bounds, Chunk, From, Journal, JournalError, Log, ProducerName, Reader, Writer};
use crate::config::{self, Retention};
use store::Store;

/// The most bytes of one batch: what the default frame of RabbitMQ allows too, so that both journals cut alike.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The control log goes by its own bound: its owner writes a snapshot that replaces older entries long before (every few MiB), so this
/// much never drops what the last snapshot does not hold.
const CONTROL_BYTES_MAX: u64 = 1 << 30;

/// A journal in one SQLite file.
#[derive(Debug)]
pub struct LocalJournal {
    shared: Arc<Shared>,
}

/// What writers and readers of one [`LocalJournal`] have in common.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    partitions: u16,
    retention: Retention,
    /// Counts the transactions of this process, so that its readers need not wait for their next look at the file.
    stored: watch::Sender<u64>,
}

impl LocalJournal {
    /// A journal in the configured directory. Touches nothing yet.
    #[must_use]
    pub fn new(config: &config::LocalJournal) -> Self {
        let shared = Shared {
            dir: config.dir.clone(),
            partitions: config.partitions.get(),
            retention: config.retention,
            stored: watch::Sender::new(0),
        };
        LocalJournal { shared: Arc::new(shared) }
    }

    /// Opens the file on a blocking thread and asks it one thing.
    async fn ask<T: Send + 'static>(
        &self,
        log: Option<Log>,
        question: fn(&mut Store, Option<Log>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.check(log)?;
            question(&mut Store::open(&shared.dir, shared.partitions)?, log)
        })
        .await
    }
}

impl Shared {
    fn check(&self, log: Option<Log>) -> Result<(), JournalError> {
        match log {
            Some(Log::Data(n)) if n >= self.partitions => Err(JournalError::Missing(format!("partition {n} of {}", self.partitions))),
            _ => Ok(()),
        }
    }

    /// The retention of a log.
    fn retention(&self, log: Log) -> Retention {
        match log {
            Log::Data(_) => self.retention,
            Log::Control => Retention { age: None, bytes: Some(CONTROL_BYTES_MAX) },
        }
    }
}

/// Runs work on the file away from the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, JournalError> + Send + 'static) -> Result<T, JournalError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(JournalError::Unavailable("the process is ending".into())),
    }
}

#[async_trait]
impl Journal for LocalJournal {
    async fn set_up(&self) -> Result<(), JournalError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || Store::create(&shared.dir, shared.partitions)).await
    }

    fn partitions(&self) -> u16 {
        self.shared.partitions
    }

    async fn describe(&self) -> Result<String, JournalError> {
        self.ask(None, |_, _| Ok("local".to_owned())).await
    }

    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX
    }

    async fn writer(&self, name: &ProducerName) -> Result<Box<dyn Writer>, JournalError> {
        Ok(Box::new(writer::LocalWriter::open(Arc::clone(&self.shared), name.clone()).await?))
    }

    async fn reader(&self, log: Log, from: From) -> Result<Box<dyn Reader>, JournalError> {
        self.shared.check(Some(log))?;
        Ok(Box::new(reader::LocalReader::open(Arc::clone(&self.shared), log, from).await?))
    }

    async fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError> {
        self.ask(Some(log), |store, log| store.tail(log.expect("asked with a log"))).await
    }

    async fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError> {
        self.ask(Some(log), |store, log| store.bounds(log.expect("asked with a log"))).await
    }
}

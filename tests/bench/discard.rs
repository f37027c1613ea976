//! A journal that confirms everything at once and keeps nothing but what a start reads: what capture itself costs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tillstream::journal::{Batch, Bounds, Chunk, From, Journal, JournalError, Log, Offset, ProducerName, PublishId, Reader, Writer};
use tokio::sync::watch;

/// A fence is read back from a log's beginning; what comes later is only counted.
const KEPT: usize = 64;

#[derive(Default)]
struct Kept {
    batches: Vec<Chunk>,
    next: u64,
}

#[derive(Default)]
struct Logs {
    of: BTreeMap<Log, Kept>,
    entries: u64,
    bytes: u64,
}

/// A journal with one data log.
#[derive(Clone)]
pub(super) struct Discard {
    logs: Arc<Mutex<Logs>>,
    stored: watch::Sender<()>,
}

impl Discard {
    pub(super) fn new() -> Discard {
        Discard { logs: Arc::default(), stored: watch::Sender::new(()) }
    }

    /// Entries of the data log, and their bytes.
    pub(super) fn counted(&self) -> (u64, u64) {
        let logs = self.logs.lock().expect("never poisoned");
        (logs.entries, logs.bytes)
    }
}

#[async_trait]
impl Journal for Discard {
    async fn set_up(&self) -> Result<(), JournalError> {
        Ok(())
    }

    fn partitions(&self) -> u16 {
        1
    }

    async fn describe(&self) -> Result<String, JournalError> {
        Ok("discard".to_owned())
    }

    fn batch_bytes_max(&self) -> usize {
        // As RabbitMQ's.
        1 << 20
    }

    async fn writer(&self, _: &ProducerName) -> Result<Box<dyn Writer>, JournalError> {
        Ok(Box::new(DiscardWriter { to: self.clone(), highest: BTreeMap::new(), moved: false }))
    }

    async fn reader(&self, log: Log, from: From) -> Result<Box<dyn Reader>, JournalError> {
        let next = match from {
            From::First => Offset(0),
            From::Offset(offset) => offset,
            From::Next | From::Time(_) => return Err(JournalError::Unusable("nobody asks for it here".into())),
        };
        Ok(Box::new(DiscardReader { of: self.clone(), log, next, stored: self.stored.subscribe() }))
    }

    async fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError> {
        Ok(self.logs.lock().expect("never poisoned").of.get(&log).and_then(|kept| kept.batches.last().cloned()))
    }

    async fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError> {
        let logs = self.logs.lock().expect("never poisoned");
        Ok(logs.of.get(&log).filter(|kept| kept.next > 0).map(|kept| Bounds { first: Offset(0), last: Offset(kept.next - 1) }))
    }
}

struct DiscardWriter {
    to: Discard,
    highest: BTreeMap<Log, PublishId>,
    moved: bool,
}

#[async_trait]
impl Writer for DiscardWriter {
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        {
            let mut logs = self.to.logs.lock().expect("never poisoned");
            if log != Log::Control {
                logs.entries += u64::from(batch.records);
                logs.bytes += batch.bytes.len() as u64;
            }
            let kept = logs.of.entry(log).or_default();
            if log == Log::Control || kept.batches.len() < KEPT {
                // A copy: the memory of a confirmed batch is written again.
                let bytes = Bytes::copy_from_slice(&batch.bytes);
                kept.batches.push(Chunk { first_offset: Offset(kept.next), stored_at_ms: 0, bytes, records: batch.records });
                self.to.stored.send_replace(());
            }
            kept.next += u64::from(batch.records);
        }
        self.highest.insert(log, id);
        self.moved = true;
        Ok(())
    }

    fn confirmed(&self, log: Log) -> PublishId {
        self.highest.get(&log).copied().unwrap_or_default()
    }

    async fn progress(&mut self) -> Result<(), JournalError> {
        if !std::mem::take(&mut self.moved) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn unconfirmed_bytes(&self) -> usize {
        0
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        Ok(())
    }
}

struct DiscardReader {
    of: Discard,
    log: Log,
    next: Offset,
    stored: watch::Receiver<()>,
}

#[async_trait]
impl Reader for DiscardReader {
    async fn next(&mut self) -> Result<Chunk, JournalError> {
        loop {
            let found = {
                let logs = self.of.logs.lock().expect("never poisoned");
                logs.of.get(&self.log).and_then(|kept| kept.batches.iter().find(|chunk| chunk.next_offset() > self.next).cloned())
            };
            if let Some(chunk) = found {
                let chunk = chunk.skip_to(self.next)?;
                self.next = chunk.next_offset();
                return Ok(chunk);
            }
            self.stored.changed().await.map_err(|_| JournalError::Unavailable("the journal is gone".into()))?;
        }
    }
}

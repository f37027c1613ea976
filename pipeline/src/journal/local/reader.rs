//! Reads one log of the file: one task per reader reads ahead and waits for what is not there yet.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::store::Store;
use super::{Shared, blocking};
use crate::journal::{Chunk, From, JournalError, Log, Offset, Reader};
use crate::retry::Delays;

/// Chunks read ahead of the consumer: with the largest batches 4 MiB.
const AHEAD_CHUNKS: usize = 4;

/// The most bytes read from the file at once, beside one chunk.
const READ_BYTES: usize = 1 << 20;

/// How often a waiting reader looks for what another process stored. A look costs some ten microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(25);

pub(super) struct LocalReader {
    chunks: mpsc::Receiver<Result<Chunk, JournalError>>,
    /// Why reading ended; told again on every later call.
    ended: Option<JournalError>,
}

impl LocalReader {
    pub(super) async fn open(shared: Arc<Shared>, log: Log, from: From) -> Result<Self, JournalError> {
        let stored = shared.stored.subscribe();
        let (store, at) = blocking(move || {
            let store = Store::open(&shared.dir, shared.partitions)?;
            let at = store.locate(log, from)?;
            Ok((store, at))
        })
        .await?;
        let (sender, chunks) = mpsc::channel(AHEAD_CHUNKS);
        tokio::spawn(async move {
            tokio::select! {
                Err(error) = run(store, log, at, stored, &sender) => { let _ = sender.send(Err(error)).await; }
                () = sender.closed() => {}
            }
        });
        Ok(LocalReader { chunks, ended: None })
    }
}

/// Sends chunks from `at` on, for ever. Ends with an error only; its caller drops it when nobody reads any more.
async fn run(
    mut store: Store,
    log: Log,
    mut at: Offset,
    mut stored: watch::Receiver<u64>,
    sender: &mpsc::Sender<Result<Chunk, JournalError>>,
) -> Result<std::convert::Infallible, JournalError> {
    let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut seen = None;
    loop {
        stored.mark_unchanged();
        let (back, read) = blocking(move || {
            let read = look(&store, log, at, seen);
            Ok((store, read))
        })
        .await?;
        store = back;
        match read {
            Ok((version, chunks)) => {
                delays.reset();
                let idle = chunks.is_empty();
                for chunk in chunks {
                    let chunk = chunk.skip_to(at)?;
                    at = chunk.next_offset();
                    // The receiver is gone: the caller is about to drop this task.
                    let _ = sender.send(Ok(chunk)).await;
                }
                seen = idle.then_some(version);
                if idle {
                    let _ = tokio::time::timeout(LOOK_EVERY, stored.changed()).await;
                }
            }
            Err(error) if error.is_transient() => {
                warn!(error = %error, "the journal file can not be read; trying again");
                seen = None;
                tokio::time::sleep(delays.next_delay()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads on from `at` unless nothing was stored since `seen`.
fn look(store: &Store, log: Log, at: Offset, seen: Option<i64>) -> Result<(i64, Vec<Chunk>), JournalError> {
    let version = store.data_version()?;
    if seen == Some(version) {
        return Ok((version, Vec::new()));
    }
    Ok((version, store.read(log, at, READ_BYTES)?))
}

#[async_trait]
impl Reader for LocalReader {
    async fn next(&mut self) -> Result<Chunk, JournalError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        match self.chunks.recv().await {
            Some(Ok(chunk)) => Ok(chunk),
            Some(Err(error)) => {
                self.ended = Some(error.clone());
                Err(error)
            }
            None => Err(JournalError::Unavailable("the process is ending".into())),
        }
    }
}

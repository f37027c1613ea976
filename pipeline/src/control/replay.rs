//! Reading the control log: once at start, and following it.

use std::sync::Arc;

use tillstream_schemas::Entry;
use tillstream_schemas::entry::{EntryError, Records};
use tokio::sync::watch;

use super::ControlError;
use super::record::{Record, Snapshot};
use super::state::{State, Stored};
use crate::journal::{Chunk, From, Journal, Log, Offset, Reader};

/// The state as of the newest confirmed entry. Reads from the oldest entry; when a snapshot is met, a second pass
/// begins at the offset it covers, so that records between that offset and the snapshot's own place are kept.
///
/// # Errors
/// [`ControlError::Incomplete`] when the log's beginning is gone and no snapshot replaces it, and whatever reading meets.
pub async fn replay(journal: &dyn Journal) -> Result<State, ControlError> {
    let Some(bounds) = journal.bounds(Log::Control).await? else { return Ok(State::default()) };
    let mut reader = journal.reader(Log::Control, From::First).await?;
    let mut pass = Pass::default();
    pass.run(reader.as_mut(), bounds.last).await?;
    match pass.snapshot {
        Some(snapshot) if snapshot.covers < bounds.first => Err(ControlError::Incomplete { first: bounds.first }),
        Some(snapshot) => {
            let covers = snapshot.covers;
            let mut second = Pass { state: State::from_snapshot(snapshot), snapshot: None };
            if covers <= bounds.last {
                let mut reader = journal.reader(Log::Control, From::Offset(covers)).await?;
                second.run(reader.as_mut(), bounds.last).await?;
            }
            Ok(second.state)
        }
        // A log begins at 0 or 1; anything else means that retention was here.
        None if bounds.first > Offset(1) => Err(ControlError::Incomplete { first: bounds.first }),
        None => Ok(pass.state),
    }
}

#[derive(Default)]
struct Pass {
    state: State,
    /// The last complete snapshot met.
    snapshot: Option<Snapshot>,
}

impl Pass {
    async fn run(&mut self, reader: &mut dyn Reader, last: Offset) -> Result<(), ControlError> {
        loop {
            let chunk = reader.next().await?;
            let end = Offset(chunk.first_offset.0 + u64::from(chunk.records.max(1)) - 1);
            self.take(&chunk)?;
            if end >= last {
                return Ok(());
            }
        }
    }

    fn take(&mut self, chunk: &Chunk) -> Result<(), ControlError> {
        each_record(chunk, self.state.next(), |stored| {
            self.state.apply_record(stored)?;
            if let Some(snapshot) = self.state.take_snapshot() {
                self.snapshot = Some(*snapshot);
            }
            Ok(())
        })
    }
}

impl State {
    /// Applies the entries of a chunk that were not applied yet.
    ///
    /// # Errors
    /// Those of [`State::apply`]; an entry of another producer is malformed.
    pub fn apply_chunk(&mut self, chunk: &Chunk) -> Result<(), ControlError> {
        each_record(chunk, self.next(), |stored| {
            self.apply_record(stored)?;
            self.take_snapshot();
            Ok(())
        })
    }
}

/// Decodes the records of a chunk at or above `from`. Entries of other producers are none of ours and an error.
pub(super) fn each_record(
    chunk: &Chunk,
    from: Offset,
    mut apply: impl FnMut(Stored) -> Result<(), ControlError>,
) -> Result<(), ControlError> {
    let malformed = |offset: u64| move |e: EntryError| ControlError::Malformed(format!("offset {offset}: {e}"));
    for (offset, bytes) in (chunk.first_offset.0..).zip(Records::new(&chunk.bytes)) {
        let entry = Entry::decode(bytes.map_err(malformed(offset))?).map_err(malformed(offset))?;
        if Offset(offset) >= from {
            let (token, bytes) = (entry.header.token, entry.body.len());
            apply(Stored { offset: Offset(offset), token, bytes, record: Record::from_json(entry.body)? })?;
        }
    }
    Ok(())
}

/// Keeps a [`State`] up to date for every part of a process.
///
/// One task reads; all others look at the shared state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Follower {
    state: watch::Receiver<Arc<State>>,
}

impl Follower {
    /// Replays the log and goes on following it. The returned future runs until the journal fails for good or every
    /// `Follower` is gone; the caller owns it.
    ///
    /// # Errors
    /// Those of [`replay`].
    pub async fn start(
        journal: Arc<dyn Journal>,
    ) -> Result<(Follower, impl Future<Output = Result<(), ControlError>> + Send + 'static), ControlError> {
        let state = replay(journal.as_ref()).await?;
        let (publish, receiver) = watch::channel(Arc::new(state));
        Ok((Follower { state: receiver }, follow(journal, publish)))
    }

    /// The state as of now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Whether the state still follows the log; a state that does not is as old as its last change.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.state.has_changed().is_ok()
    }

    /// Waits until the state has changed since this clone last looked here, and returns it; `None` when nobody
    /// follows any more. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<State>> {
        self.state.changed().await.ok()?;
        Some(self.state.borrow_and_update().clone())
    }

    /// Waits until the state satisfies `wanted`; `None` when nobody follows any more. Cancel-safe.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&State) -> bool) -> Option<Arc<State>> {
        self.state.wait_for(|state| wanted(state)).await.ok().map(|state| state.clone())
    }
}

async fn follow(journal: Arc<dyn Journal>, publish: watch::Sender<Arc<State>>) -> Result<(), ControlError> {
    let mut reader: Option<Box<dyn Reader>> = None;
    loop {
        let next = publish.borrow().next();
        let chunk = match &mut reader {
            Some(reader) => tokio::select! {
                chunk = reader.next() => chunk?,
                () = publish.closed() => return Ok(()),
            },
            None => {
                // A log that holds nothing yet has no offset to begin at.
                let from = if next == Offset(0) { From::First } else { From::Offset(next) };
                reader = Some(journal.reader(Log::Control, from).await?);
                continue;
            }
        };
        let mut result = Ok(());
        publish.send_modify(|state| {
            let state = Arc::make_mut(state);
            result = state.apply_chunk(&chunk);
        });
        result?;
    }
}

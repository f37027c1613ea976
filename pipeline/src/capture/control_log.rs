//! The control log as a capture session sees it: replayed at start, then followed from the session's own fence.
//!
//! Following it serves three ends. A record counts as stored only when it is *read back* under the own fence: a
//! fenced-off writer's records are confirmed and dropped. A later run's fence is seen at once, since fences go to the
//! control log first. And the state is at hand when a snapshot is due.

use tillstream_schemas::Entry;
use tillstream_schemas::entry::{EntryError, Records};

use super::CaptureError;
use crate::control::{self, ControlError, Record, Session, Snapshotter, State};
use crate::journal::{Chunk, From, Journal, Log, Offset, PublishId, Reader};

/// The control log behind the own fence.
pub(super) struct ControlLog {
    reader: Box<dyn Reader>,
    state: State,
    snapshotter: Snapshotter,
    token: u32,
    epoch: u32,
    /// Entries of the own run seen, its fence included: each is one batch, and batches are counted.
    own: u64,
}

impl ControlLog {
    /// Reads on from `state` until the own session's fence is seen, or a rival's.
    pub(super) async fn open(journal: &dyn Journal, state: State, own: &Session) -> Result<Self, CaptureError> {
        let from = if state.next() == Offset(0) { From::First } else { From::Offset(state.next()) };
        let reader = journal.reader(Log::Control, from).await?;
        let mut log = ControlLog { reader, state, snapshotter: Snapshotter::new(), token: own.token, epoch: own.epoch, own: 0 };
        loop {
            let chunk = log.reader.next().await?;
            log.apply(&chunk)?;
            match log.state.session() {
                // The first fence under a token holds it.
                Some(seen) if seen.token == own.token && seen.nonce == own.nonce => return Ok(log),
                Some(seen) if seen.token >= own.token => return Err(CaptureError::Fenced { token: seen.token }),
                _ => {}
            }
        }
    }

    /// The next entries; cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Chunk, CaptureError> {
        Ok(self.reader.next().await?)
    }

    /// Applies them, and answers which of the own records are now known to be stored.
    pub(super) fn take(&mut self, chunk: &Chunk) -> Result<PublishId, CaptureError> {
        self.apply(chunk)?;
        Ok(PublishId::new(self.token, self.own.saturating_sub(1)))
    }

    fn apply(&mut self, chunk: &Chunk) -> Result<(), CaptureError> {
        let next = self.state.next();
        for (offset, record) in (chunk.first_offset.0..).zip(Records::new(&chunk.bytes)) {
            let entry = record.and_then(Entry::decode).map_err(|error| malformed(offset, error))?;
            if Offset(offset) >= next {
                self.own += u64::from(entry.header.token == self.token);
            }
        }
        self.state.apply_chunk(chunk).map_err(control)?;
        let highest = self.state.token();
        if highest > self.token {
            return Err(CaptureError::Fenced { token: highest });
        }
        let epoch = self.state.epoch();
        if epoch > self.epoch {
            return Err(CaptureError::EpochBegan { epoch });
        }
        Ok(())
    }

    /// What the control journal says as of the last entry read.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// The snapshot to write now, if one is due.
    pub(super) fn snapshot(&mut self) -> Option<Record> {
        self.snapshotter.take(&self.state)
    }
}

/// Replays the control log.
pub(super) async fn replay(journal: &dyn Journal) -> Result<State, CaptureError> {
    control::replay(journal).await.map_err(control)
}

fn malformed(offset: u64, error: EntryError) -> CaptureError {
    control(ControlError::Malformed(format!("offset {offset}: {error}")))
}

fn control(error: ControlError) -> CaptureError {
    match error {
        ControlError::Journal(error) => error.into(),
        other => CaptureError::Definite {
            code: other.code(),
            what: format!("the control log cannot be used: {other}"),
            why: "it says which run writes and what was decided; going on without it could repeat or lose work".to_owned(),
            fix: "if a later version of this program wrote it, run that version; if the log is damaged, begin a new stream and load it \
                  afresh"
                .to_owned(),
        },
    }
}

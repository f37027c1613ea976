//! When the control log needs a new snapshot. Pure; the capture run that holds the token writes it.

use super::record::Record;
use super::state::State;
use crate::journal::Offset;

/// Decides when a snapshot is due.
///
/// A start reads everything since the last snapshot, twice at most, so the log stays within a small multiple of the
/// state's own size.
#[derive(Clone, Debug, Default)]
pub struct Snapshotter {
    /// Where the log stood when the last snapshot was taken; `None` before this run's first.
    last: Option<Offset>,
    last_bytes: u64,
    /// What the state had applied then.
    applied_bytes: u64,
}

impl Snapshotter {
    /// Bytes of control entries after which a snapshot pays, unless the last one was larger: a checkpoint takes
    /// about 400 bytes, so that this is some ten thousand of them and a replay of a few tens of milliseconds.
    pub const BYTES_MIN: u64 = 4 << 20;

    /// A snapshotter at the start of a capture run: its first snapshot is due at once, if the log says anything.
    #[must_use]
    pub fn new() -> Self {
        Snapshotter::default()
    }

    /// The snapshot to write now, if one is due. Cheap when none is; once a second is often enough.
    pub fn take(&mut self, state: &State) -> Option<Record> {
        let due = match self.last {
            None => state.next() > Offset(0),
            Some(last) => {
                let since = state.applied_bytes().saturating_sub(self.applied_bytes);
                state.next() > last && since >= Self::BYTES_MIN.max(2 * self.last_bytes)
            }
        };
        if !due {
            return None;
        }
        let record = Record::Snapshot(Box::new(state.snapshot()?));
        self.last = Some(state.next());
        self.last_bytes = record.to_json().len() as u64;
        self.applied_bytes = state.applied_bytes();
        Some(record)
    }
}

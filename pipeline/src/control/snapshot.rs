//! When the control log needs a new snapshot. Pure; the capture run that holds the token writes it.

use super::record::Record;
use super::state::State;

/// Decides when a snapshot is due.
///
/// A start reads everything since the last snapshot, twice at most, so the log stays within a small multiple of the
/// state's own size. What the log itself says of its last snapshot decides, so that runs that follow each other
/// quickly do not write one each.
#[derive(Clone, Debug, Default)]
pub struct Snapshotter {
    /// What the state had applied when this run last took a snapshot, which may still be on its way.
    taken_at: Option<u64>,
}

impl Snapshotter {
    /// Bytes of control entries after which a snapshot pays, unless the last one was larger: a checkpoint takes
    /// about 400 bytes, so that this is some ten thousand of them and a replay of a few tens of milliseconds.
    pub const BYTES_MIN: u64 = 4 << 20;

    /// A snapshotter at the start of a capture run.
    #[must_use]
    pub fn new() -> Self {
        Snapshotter::default()
    }

    /// The snapshot to write now, if one is due. Cheap when none is; once a second is often enough.
    pub fn take(&mut self, state: &State) -> Option<Record> {
        let enough = Self::BYTES_MIN.max(2 * state.snapshot_bytes());
        let taken_since = self.taken_at.map(|at| state.applied_bytes().saturating_sub(at));
        if state.bytes_since_snapshot() < enough || taken_since.is_some_and(|bytes| bytes < enough) {
            return None;
        }
        let record = Record::Snapshot(Box::new(state.snapshot()?));
        self.taken_at = Some(state.applied_bytes());
        Some(record)
    }
}

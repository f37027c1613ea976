//! The control journal: the small log beside the data that holds who writes, how far everyone is, what was refused
//! and what was decided.
//!
//! ```text
//!  capture    Session (a fence) · Released · Layout · Cursor · LoadFinished · Backfill · Snapshot ┐
//!  delivery   Member · Lease · Checkpoint · DeadLetter · DeadLetterSettled · LayoutAccepted ──────────┼──▶ control log ──replay──▶ State
//!  operator   Operator · RedriveRequested · ReplayRequested · Pause · DeadLetterSettled · LayoutAccepted · Epoch · Audit ┘
//! ```
//!
//! Every fact has one owner and every process learns all facts by reading the same log, so any node can take over
//! with no local state. [`State`] is a pure function of the log. A [`Snapshot`](record::Snapshot) holds everything
//! that the records below an offset amount to, open dead letters with their bodies included; a reader may start from
//! the last one, and retention may drop what lies before it.
//!
//! This module never reads data logs, never talks to PostgreSQL or to a target, and decides nothing: it stores and
//! replays what others decided.

mod backfill;
mod encode;
mod history;
mod member;
mod pause;
mod record;
mod replay;
mod snapshot;
mod state;
mod stretch;
#[cfg(test)]
mod tests;
mod writer;

pub use backfill::{BackfillJob, BackfillOptions, BackfillSpec, BackfillState};
pub use encode::{Stamp, encode};
pub use history::{Happened, history};
pub use member::{Member, Place, Presence};
pub use pause::Pause;
pub use record::{
    Audit, Body, Checkpoint, Cursor, DeadLetter, DeadLetterSettled, Epoch, KeyTexts, LayoutAccepted, LayoutColumn, Lease, LoadFinished,
    OpenLetter, Operator, Partitioning, Piece, Record, RedriveRequested, Released, Session, Settled, Snapshot, TableLayout, now_ms,
};
pub use replay::{Follower, replay};
pub use snapshot::Snapshotter;
pub use state::{Letter, State, Stored};
pub use stretch::{ReplayRequested, ReplayTaken, Spot};
pub use writer::{Proof, Writer, delivery_producer, member_producer, operator_producer};

use crate::journal::{JournalError, Offset};

/// What goes wrong with the control journal.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A later program wrote a record.
    #[error("control record of version {0}; this program reads version {current}", current = record::VERSION)]
    Version(u32),
    /// An entry of the control log is no record of ours.
    #[error("malformed control record: {0}")]
    Malformed(String),
    /// The log begins above its first record and holds no snapshot that covers the gap.
    #[error("the control log begins at offset {} and holds no snapshot of what was before", first.0)]
    Incomplete {
        /// The oldest entry still there.
        first: Offset,
    },
    /// Another process wrote under the same name and a higher (or the same) lease: this one must stop writing.
    #[error("a rival holds lease {lease} of {name}")]
    Rival {
        /// The producer's name.
        name: String,
        /// The rival's lease.
        lease: u32,
    },
    /// Open dead letters reached their bound; delivery stops until some are redriven or discarded.
    #[error("{letters} open dead letters with {bytes} bytes: at the bound")]
    Full {
        /// How many.
        letters: usize,
        /// Bytes of their bodies.
        bytes: usize,
    },
}

impl ControlError {
    /// Whether trying again can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            ControlError::Journal(e) => e.is_transient(),
            ControlError::Version(_)
            | ControlError::Malformed(_)
            | ControlError::Incomplete { .. }
            | ControlError::Rival { .. }
            | ControlError::Full { .. } => false,
        }
    }

    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            ControlError::Journal(e) => e.code(),
            ControlError::Version(_) => "control.version",
            ControlError::Malformed(_) => "control.malformed",
            ControlError::Incomplete { .. } => "control.incomplete",
            ControlError::Rival { .. } => "control.rival",
            ControlError::Full { .. } => "control.dead_letters_full",
        }
    }
}

//! Capture: reads the replication stream, turns changes into entries, stores them in the journal and acknowledges
//! to PostgreSQL what is stored.

pub mod appender;
pub mod catalog;
pub mod encode;
pub mod hook;
pub mod pgoutput;
pub mod progress;
pub mod relations;
pub mod session;
pub mod source;
pub mod wire;

/// What stops a capture session.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The connection failed or was lost: begin a new session.
    #[error("source unavailable: {0}")]
    Unavailable(String),
    /// Another process holds the slot.
    #[error("slot \"{slot}\" is active for PID {pid}")]
    SlotActive {
        /// The slot.
        slot: String,
        /// The server process that serves its holder.
        pid: i32,
    },
    /// A later capture run took over: this one ends.
    #[error("fenced by a later run (token {token})")]
    Fenced {
        /// The rival's token.
        token: u32,
    },
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// Something that a person has to mend: `code` says what, `fix` how.
    #[error("{code}: {what}")]
    Definite {
        /// Stable dotted code, as `capture.slot_lost`.
        code: &'static str,
        /// What was found, where.
        what: String,
        /// Why that matters.
        why: String,
        /// The command or statement that mends it.
        fix: String,
    },
}

impl CaptureError {
    /// Whether a new session can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            CaptureError::Unavailable(_) | CaptureError::SlotActive { .. } | CaptureError::Fenced { .. } => true,
            CaptureError::Journal(e) => e.is_transient(),
            CaptureError::Definite { .. } => false,
        }
    }

    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            CaptureError::Unavailable(_) => "capture.source_unavailable",
            CaptureError::SlotActive { .. } => "capture.slot_active",
            CaptureError::Fenced { .. } => "capture.fenced",
            CaptureError::Journal(e) => e.code(),
            CaptureError::Definite { code, .. } => code,
        }
    }
}

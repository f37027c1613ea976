//! When to connect again, and when to believe a bad answer.

use std::time::{Duration, Instant};

use crate::journal::JournalError;
use crate::retry::Delays;

/// How long "no such stream" and "no access" must stay true before a client that was once connected believes them: a broker that
/// stops or starts says both for a moment.
const DOUBT: Duration = Duration::from_secs(5);

/// What one reconnecting client has gone through.
#[derive(Debug)]
pub(super) struct Patience {
    delays: Delays,
    was_connected: bool,
    doubted_since: Option<Instant>,
}

impl Patience {
    pub(super) fn new() -> Self {
        // The first attempt follows at once for a connection that was merely cut; a broker that starts takes 10 seconds and more.
        Patience { delays: Delays::new(Duration::from_millis(100), Duration::from_secs(5)), was_connected: false, doubted_since: None }
    }

    /// There was a connection; `useful` when something came of it, so that one which breaks at once does not start a storm.
    pub(super) fn connected(&mut self, useful: bool) {
        self.was_connected = true;
        self.doubted_since = None;
        if useful {
            self.delays.reset();
        }
    }

    /// How long to wait before the next attempt, or the error when there should be none.
    pub(super) fn judge(&mut self, error: JournalError) -> Result<(Duration, JournalError), JournalError> {
        match &error {
            JournalError::Unavailable(_) => {}
            JournalError::Missing(_) | JournalError::Refused(_) if self.was_connected => {
                if self.doubted_since.get_or_insert_with(Instant::now).elapsed() > DOUBT {
                    return Err(error);
                }
            }
            _ => return Err(error),
        }
        Ok((self.delays.next_delay(), error))
    }
}

//! When rows of a backfill may be written beside the stream. Pure: the session tells the time.
//!
//! ```text
//!  quiet stream   slice slice slice …            as long as little enough is unconfirmed
//!  live stream    slice ─ confirmed ─ rest ─ slice ─ confirmed ─ rest …      each rest as long as its slice took
//! ```
//!
//! On the way of a live change stand the server's processes, ours and the brokers', and a backfill at full speed keeps all
//! of them busy. Resting as long as the last slice took from its writing to its confirm leaves the change half of the
//! time whatever is slow: more load makes slices slower, and rests longer.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::PublishId;

/// While nothing else happens, rows wait while more than this is unconfirmed: what the stream brings next stands behind it
/// in the journal's window. A broker's answer takes milliseconds, in which a backfill at full speed fills less than this.
const UNCONFIRMED_MAX: usize = 2 << 20;

/// The stream counts as live for so long after its last change.
const LIVE_FOR: Duration = Duration::from_secs(1);

/// The longest rest: a broker that stands still must not be taken for a busy one.
const REST_MAX: Duration = Duration::from_millis(100);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Change events so far, and when the last one came.
    events: u64,
    live_at: Option<Instant>,
    /// The slice under way: when it was written, and what has to be confirmed until it is stored.
    slice: Option<(Instant, Vec<PublishId>)>,
    rest_until: Option<Instant>,
}

impl Turns {
    /// Takes note of how many change events the stream has brought.
    pub(super) fn events(&mut self, events: u64, now: Instant) {
        if events != self.events {
            (self.events, self.live_at) = (events, Some(now));
        }
    }

    /// Whether the stream brings changes at present.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.live_at.is_some_and(|at| now - at < LIVE_FOR)
    }

    /// Whether a slice may be written.
    pub(super) fn may_write(&self, now: Instant, unconfirmed_bytes: usize) -> bool {
        match self.is_live(now) {
            true => self.slice.is_none() && self.rest_until.is_none_or(|until| now >= until),
            false => unconfirmed_bytes < UNCONFIRMED_MAX,
        }
    }

    /// A slice was written; `required` is what has to be confirmed until it is stored.
    pub(super) fn wrote(&mut self, now: Instant, required: &[PublishId]) {
        self.slice = self.is_live(now).then(|| (now, required.to_vec()));
    }

    /// Takes note of what is confirmed: a slice that is stored ends its turn.
    pub(super) fn confirm(&mut self, now: Instant, confirmed: impl Fn(usize) -> PublishId) {
        if let Some((written, required)) = &self.slice
            && required.iter().enumerate().all(|(log, id)| confirmed(log) >= *id)
        {
            self.rest_until = Some(now + (now - *written).min(REST_MAX));
            self.slice = None;
        }
    }

    /// When a slice may be written that may not be now, unless a confirm comes first.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.rest_until.filter(|until| self.slice.is_none() && *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_live_stream_has_every_other_turn() {
        let ms = Duration::from_millis;
        let begin = Instant::now();
        let id = |count| PublishId::new(1, count);
        let mut turns = Turns::default();
        assert!(turns.may_write(begin, 1 << 20) && !turns.may_write(begin, UNCONFIRMED_MAX), "a quiet stream");
        turns.wrote(begin, &[id(3)]);
        assert!(turns.may_write(begin, 1 << 20), "one slice behind the other");

        turns.events(5, begin);
        assert!(turns.is_live(begin) && turns.may_write(begin, 1 << 20));
        turns.wrote(begin, &[id(3), id(7)]);
        turns.confirm(begin + ms(2), |log| [id(3), id(6)][log]);
        assert!(!turns.may_write(begin + ms(50), 0), "the slice is under way");
        turns.confirm(begin + ms(4), |log| [id(3), id(7)][log]);
        assert!(!turns.may_write(begin + ms(7), 0));
        assert_eq!(turns.due(begin + ms(7)), Some(begin + ms(8)));
        assert!(turns.may_write(begin + ms(8), 0), "it has rested as long as it took");
        assert_eq!(turns.due(begin + ms(8)), None);

        turns.events(5, begin + ms(1_000));
        assert!(!turns.is_live(begin + ms(1_000)), "no change for a second");
    }
}

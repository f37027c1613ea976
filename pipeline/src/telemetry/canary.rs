//! A canary: a message that goes the whole way of a change, from the source to every connector, and is timed at each stage.
//!
//! It carries the moment of its sending, so nobody keeps a list of those under way. The process that sent it tells its age by
//! its own monotonic clock; another process only by the wall clocks of the two.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Prefix of the logical message at the source.
pub const PREFIX: &str = "tillstream/canary";

/// What the `marker` of its entry in the journal says.
pub const MARKER: &str = "canary";

/// This process, and its clock.
struct Here {
    process: u64,
    began: Instant,
}

static HERE: LazyLock<Here> = LazyLock::new(|| Here { process: rand::random(), began: Instant::now() });

/// One canary, as it stands in the message and in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Drawn by the process that sent it.
    process: u64,
    /// Counts them, from 1.
    number: u64,
    /// When it was sent, microseconds since that process looked at its clock first.
    sent_us: u64,
    /// The same by its wall clock, milliseconds since the Unix epoch.
    sent_ms: i64,
}

/// The body of its entry in the journal, as far as it matters here.
#[derive(Deserialize)]
struct Marker {
    canary: Option<Canary>,
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

impl Canary {
    /// One that is sent now.
    #[must_use]
    pub fn now(number: u64) -> Canary {
        let sent_us = u64::try_from(HERE.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Canary { process: HERE.process, number, sent_us, sent_ms: now_ms() }
    }

    /// Whether this process sent it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.process == HERE.process
    }

    /// Time since it was sent; nothing when clocks of two processes contradict each other.
    #[must_use]
    pub fn age(&self) -> Duration {
        if self.is_own() {
            HERE.began.elapsed().saturating_sub(Duration::from_micros(self.sent_us))
        } else {
            Duration::from_millis(u64::try_from(now_ms().saturating_sub(self.sent_ms)).unwrap_or(0))
        }
    }

    /// Whether it was sent later than another one.
    #[must_use]
    pub fn is_later_than(&self, other: &Canary) -> bool {
        if self.process == other.process { self.number > other.number } else { self.sent_ms > other.sent_ms }
    }

    /// The message's content, a JSON object.
    #[must_use]
    pub fn content(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads a message's content; `None` when it is none of ours.
    #[must_use]
    pub fn of_content(content: &[u8]) -> Option<Canary> {
        serde_json::from_slice(content).ok()
    }

    /// Reads a marker's body; `None` for markers of other kinds.
    #[must_use]
    pub fn of_marker(body: &[u8]) -> Option<Canary> {
        serde_json::from_slice::<Marker>(body).ok()?.canary
    }
}

/// A canary at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Which.
    pub canary: Canary,
    /// From its sending to here.
    pub took: Duration,
}

/// What canaries did at one place, which they enter and leave: capture (come by the stream, confirmed by the journal) or a
/// partition of a connector (read, and everything before it settled).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// The first one that came.
    first: Option<Canary>,
    /// The latest that came.
    pub came: Option<Passed>,
    /// The latest that is through.
    pub through: Option<Passed>,
}

impl Passage {
    /// One came.
    fn came(&mut self, canary: Canary) {
        self.first.get_or_insert(canary);
        note(&mut self.came, canary);
    }

    /// How old the latest is that is through; while none is, the first one that came. `None` before that.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.through.map(|passed| passed.canary).or(self.first).map(|canary| canary.age())
    }

    /// How old the first one is that came.
    #[must_use]
    pub fn since_first(&self) -> Option<Duration> {
        self.first.map(|canary| canary.age())
    }
}

/// What was seen already says nothing when it comes again.
fn note(last: &mut Option<Passed>, canary: Canary) {
    if last.is_none_or(|last| canary.is_later_than(&last.canary)) {
        *last = Some(Passed { canary, took: canary.age() });
    }
}

/// A [`Passage`] that one task writes, once in some seconds, and others read. The lock is held for a copy.
#[derive(Debug, Default)]
pub struct Passages(Mutex<Passage>);

impl Passages {
    /// One came.
    pub fn came(&self, canary: Canary) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).came(canary);
    }

    /// One is through.
    pub fn through(&self, canary: Canary) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).through, canary);
    }

    /// As it stands.
    #[must_use]
    pub fn get(&self) -> Passage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_survives_its_way_and_tells_who_sent_it() {
        let own = Canary::now(7);
        assert_eq!(Canary::of_content(own.content().as_bytes()), Some(own));
        let marker = format!("{{\"marker\":\"canary\",\"canary\":{},\"xid\":3}}", own.content());
        assert_eq!(Canary::of_marker(marker.as_bytes()), Some(own));
        assert_eq!(Canary::of_marker(b"{\"marker\":\"resume\",\"xid\":3}"), None);
        assert_eq!((Canary::of_marker(b"null"), Canary::of_content(b"")), (None, None));
        assert!(own.is_own() && own.age() < Duration::from_secs(60));
        let other = Canary { process: own.process ^ 1, sent_ms: own.sent_ms - 5000, ..own };
        assert!(!other.is_own() && other.age() >= Duration::from_secs(5), "by the wall clock");
        assert!(own.is_later_than(&other) && Canary::now(8).is_later_than(&own) && !Canary::now(7).is_later_than(&own));
        assert_eq!(Canary { sent_ms: i64::MAX, ..other }.age(), Duration::ZERO);
    }

    #[test]
    fn a_passage_never_goes_back_and_grows_old_until_one_is_through() {
        let passages = Passages::default();
        assert_eq!(passages.get().age(), None);
        let old = Canary { process: HERE.process ^ 1, number: 1, sent_us: 0, sent_ms: now_ms() - 60_000 };
        passages.came(old);
        assert!(passages.get().age() >= Some(Duration::from_secs(60)) && passages.get().through.is_none());
        let newer = Canary { number: 2, sent_ms: old.sent_ms + 30_000, ..old };
        passages.came(newer);
        passages.through(newer);
        let through = passages.get();
        assert!(through.age().is_some_and(|age| age < Duration::from_secs(59)));
        // A replay reads what was read.
        passages.came(old);
        passages.through(old);
        assert_eq!(passages.get(), through);
    }
}

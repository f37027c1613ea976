//! One vocabulary for the state of anything, and the rules that lead to it. Pure: facts in, state and reason out.

use std::time::Duration;

use serde::Serialize;

use crate::capture::stats::{Pressure, SlotReport, State as CaptureState};
use crate::delivery::stats::ConnectorState;

/// The state of a source, a journal or a connector, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Works, and is up to date.
    Healthy,
    /// Works, and is on its way to be up to date.
    CatchingUp,
    /// Stopped on request.
    Paused,
    /// Not known: it has just begun, or tells nothing.
    Unknown,
    /// Works, but not as it should.
    Degraded,
    /// Waits for something outside; goes on by itself when that is there.
    Blocked,
    /// Waits for a person.
    Failed,
}

impl Health {
    /// The word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::CatchingUp => "catching up",
            Health::Paused => "paused",
            Health::Unknown => "unknown",
            Health::Degraded => "degraded",
            Health::Blocked => "blocked",
            Health::Failed => "failed",
        }
    }
}

/// A state and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The state.
    pub health: Health,
    /// Why, in one sentence without values.
    pub why: String,
}

fn verdict(health: Health, why: impl Into<String>) -> Verdict {
    Verdict { health, why: why.into() }
}

/// How long a journal may leave what it was given unconfirmed before that is worth a word: a broker's leader moves in a few seconds.
pub const CONFIRM_SLOW: Duration = Duration::from_secs(10);

/// What is known of capture.
#[derive(Clone, Debug, Default)]
pub struct CaptureFacts {
    /// What it does.
    pub state: CaptureState,
    /// It reads more than it can forward at once.
    pub behind: bool,
    /// WAL not yet received.
    pub lag_bytes: u64,
    /// Code and message of the last error.
    pub last_error: Option<String>,
    /// The slot as the server showed it last.
    pub slot: Option<SlotReport>,
    /// Changes that are being missed, because the stream does not hold them.
    pub missed: Option<String>,
}

/// What the WAL that is kept for the slot means; `None` while it is far from its ceiling.
fn slot_in_danger(slot: &SlotReport) -> Option<Verdict> {
    let size = crate::config::units::show_size;
    let mut why = format!("{} of WAL are kept for the slot, {} may be", size(slot.retained_bytes), size(slot.ceiling_bytes));
    if let Some(seconds) = slot.seconds_to_ceiling {
        why += &format!("; {} to go at the present rate", crate::config::units::show_duration(Duration::from_secs(seconds)));
    }
    if let Some(pin) = &slot.pinned_by {
        why += &format!("; held by {pin}");
    }
    match slot.pressure {
        Pressure::Calm | Pressure::Warn => None,
        Pressure::Page | Pressure::Shed => Some(verdict(Health::Degraded, why)),
    }
}

/// The state of the source.
#[must_use]
pub fn source(facts: &CaptureFacts) -> Verdict {
    let error = || facts.last_error.clone().unwrap_or_else(|| "no error was reported".to_owned());
    let danger = facts.slot.as_ref().and_then(slot_in_danger);
    match (facts.state, danger) {
        (CaptureState::Streaming | CaptureState::WaitingForJournal, Some(danger)) => return danger,
        (CaptureState::WaitingForSlot, _) => {
            let by = facts.last_error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
            return verdict(Health::Blocked, format!("another process streams from the slot; this one is its standby{by}"));
        }
        _ => {}
    }
    match facts.state {
        CaptureState::Streaming if facts.missed.is_some() => verdict(Health::Degraded, facts.missed.clone().unwrap_or_default()),
        CaptureState::Streaming if facts.behind => {
            verdict(Health::CatchingUp, format!("{} of WAL to read", crate::config::units::show_size(facts.lag_bytes)))
        }
        CaptureState::Streaming => verdict(Health::Healthy, "bytes are moving, or could"),
        CaptureState::WaitingForJournal => verdict(Health::Degraded, "changes wait because the journal takes no more"),
        CaptureState::WaitingForSlot | CaptureState::Retrying => verdict(Health::Blocked, error()),
        CaptureState::Starting | CaptureState::Fencing => verdict(Health::Unknown, "it is starting"),
        CaptureState::Idle => verdict(Health::Unknown, "it has not begun"),
        CaptureState::Stopping | CaptureState::Stopped => verdict(Health::Paused, "it was asked to stop"),
        CaptureState::Failed => verdict(Health::Failed, error()),
    }
}

/// The state of the journal, from what capture has handed over.
#[must_use]
pub fn journal(oldest_unconfirmed: Option<Duration>, reachable: Option<&str>) -> Verdict {
    match (oldest_unconfirmed, reachable) {
        (_, Some(error)) => verdict(Health::Blocked, error),
        (Some(age), None) if age > CONFIRM_SLOW => {
            verdict(Health::Degraded, format!("nothing was confirmed for {}", crate::config::units::show_duration(age)))
        }
        _ => verdict(Health::Healthy, "it confirms what it is given"),
    }
}

/// What is known of a connector.
#[derive(Clone, Debug)]
pub struct ConnectorFacts {
    /// What it does.
    pub state: ConnectorState,
    /// Age of the oldest event that is not settled.
    pub lag: Option<Duration>,
    /// Code and message of the last error.
    pub last_error: Option<String>,
    /// Why it waits for somebody to see that a table has changed.
    pub held: Option<String>,
    /// Who paused it, and why.
    pub paused: Option<String>,
}

/// Younger lag than this is the normal work of batches and lanes.
const LAG_NORMAL: Duration = Duration::from_secs(10);

/// The state of a connector.
#[must_use]
pub fn connector(facts: &ConnectorFacts) -> Verdict {
    let error = || facts.last_error.clone().unwrap_or_else(|| "no error was reported".to_owned());
    if let Some(paused) = &facts.paused {
        return verdict(Health::Paused, paused.clone());
    }
    match (facts.state, facts.lag) {
        (ConnectorState::Starting, _) => verdict(Health::Unknown, "it is starting"),
        (ConnectorState::Running, Some(lag)) if lag > LAG_NORMAL => {
            verdict(Health::CatchingUp, format!("the oldest event waits for {}", crate::config::units::show_duration(lag)))
        }
        (ConnectorState::Running, _) => verdict(Health::Healthy, "events are delivered, or none wait"),
        (ConnectorState::Standby, _) => verdict(Health::Healthy, "other processes deliver its partitions"),
        (ConnectorState::Retrying, _) => verdict(Health::Blocked, error()),
        (ConnectorState::Failed, _) => verdict(Health::Failed, error()),
        (ConnectorState::Paused, _) => verdict(Health::Paused, facts.held.clone().unwrap_or_else(error)),
        (ConnectorState::Stopped, _) => verdict(Health::Paused, "it has ended: asked to stop, or caught up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_lives_but_moves_nothing_is_not_healthy() {
        let of = |state| {
            source(&CaptureFacts { state, last_error: Some("capture.source_unavailable: refused".to_owned()), ..CaptureFacts::default() })
        };
        assert_eq!(of(CaptureState::Streaming).health, Health::Healthy);
        let missed =
            CaptureFacts { state: CaptureState::Streaming, missed: Some("t is not published".to_owned()), ..CaptureFacts::default() };
        assert_eq!(source(&missed), verdict(Health::Degraded, "t is not published"));
        assert_eq!(of(CaptureState::Retrying), verdict(Health::Blocked, "capture.source_unavailable: refused"));
        assert_eq!(of(CaptureState::Starting).health, Health::Unknown);
        assert_eq!(of(CaptureState::Failed).health, Health::Failed);
        let full = SlotReport { pressure: Pressure::Page, seconds_to_ceiling: Some(90), ..SlotReport::default() };
        let full = source(&CaptureFacts { state: CaptureState::Streaming, slot: Some(full), ..CaptureFacts::default() });
        assert!(full.health == Health::Degraded && full.why.contains("1 m 30 s"), "{full:?}");
        assert_eq!(journal(Some(Duration::from_secs(11)), None).health, Health::Degraded);
        assert_eq!(journal(None, Some("away")).health, Health::Blocked);
        let lag = |s| ConnectorFacts {
            state: ConnectorState::Running,
            lag: Some(Duration::from_secs(s)),
            last_error: None,
            held: None,
            paused: None,
        };
        assert_eq!(connector(&lag(2)).health, Health::Healthy);
        assert_eq!(connector(&lag(20)).health, Health::CatchingUp);
        // Whoever paused it wants it so, whatever else is wrong with it.
        let paused = ConnectorFacts { state: ConnectorState::Failed, paused: Some("paused by anna".to_owned()), ..lag(20) };
        assert_eq!(connector(&paused), verdict(Health::Paused, "paused by anna"));
    }
}

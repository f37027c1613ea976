//! How the last canary got through: to the stream, to the journal, and to each connector. Read when somebody asks.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::observer::Observer;
use crate::capture::stats::State;
use crate::config::units;
use crate::delivery::stats::{ConnectorState, ConnectorStats};
use crate::telemetry::canary::Passage;
use crate::telemetry::names::{self, Metric};

/// So many turns without one that is through, and the last one's times are no news any more.
const LATE_TURNS: u32 = 3;

/// As `status` has it. Ages and times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Look {
    /// How often one is sent.
    pub every_seconds: f64,
    /// Why none is sent although one is configured.
    pub refused: Option<String>,
    /// Capture; `None` when this process does not capture.
    pub capture: Option<Captured>,
    /// The connectors that this process delivers.
    pub connectors: Vec<Delivered>,
}

/// The last one, as far as the journal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captured {
    /// From its sending until it came by the stream.
    pub stream_seconds: Option<f64>,
    /// Until the journal had confirmed it in every partition.
    pub journal_seconds: Option<f64>,
    /// Time since the sending of the last one that was confirmed.
    pub age_seconds: Option<f64>,
    /// The last one is long ago.
    pub late: bool,
}

/// The last one at a connector: in the slowest of the partitions that this process delivers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delivered {
    /// The connector.
    pub name: String,
    /// From its sending until it was read.
    pub read_seconds: Option<f64>,
    /// Until everything before it was settled.
    pub settled_seconds: Option<f64>,
    /// Time since the sending of the last one that was settled.
    pub age_seconds: Option<f64>,
    /// The last one is long ago.
    pub late: bool,
    /// Another process sent it: it was timed by the wall clocks of both.
    pub wall_clock: bool,
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

/// How the last canary got through; `None` when none is configured.
#[must_use]
pub fn look(observer: &Observer) -> Option<Look> {
    let every = observer.observed.canary?;
    let late = |age: Option<Duration>| age.is_some_and(|age| age > every * LATE_TURNS);
    let capture = observer.observed.capture.as_ref();
    let refused = capture.and_then(|stats| stats.canary_refused()).map(|error| format!("{}: {}", error.code, error.message));
    let sent = capture.map(|stats| stats.canary.get());
    // What is not sent is not late.
    let age = |age: Option<Duration>| age.filter(|_| refused.is_none());
    // A standby's last one is from when it held the slot.
    let stands_by = capture.is_some_and(|stats| stats.state().0 == State::WaitingForSlot);
    let captured = sent.filter(|_| !stands_by).map(|passage| Captured {
        stream_seconds: passage.came.map(|passed| seconds(passed.took)),
        journal_seconds: passage.through.map(|passed| seconds(passed.took)),
        age_seconds: age(passage.age()).map(seconds),
        late: late(age(passage.age())),
    });
    let connector = |stats: &ConnectorStats| {
        let passages = stats.canaries();
        let slowest = |took: &dyn Fn(&Passage) -> Option<Duration>| passages.values().filter_map(took).max().map(seconds);
        // What somebody paused is not late.
        let oldest = age(oldest(stats, sent.as_ref())).filter(|_| observer.pause(stats.name()).is_none());
        Delivered {
            name: stats.name().to_owned(),
            read_seconds: slowest(&|passage| Some(passage.came?.took)),
            settled_seconds: slowest(&|passage| Some(passage.through?.took)),
            age_seconds: oldest.map(seconds),
            late: late(oldest),
            wall_clock: passages.values().any(|passage| passage.through.is_some_and(|passed| !passed.canary.is_own())),
        }
    };
    let connectors = observer.observed.delivery.iter().flat_map(|stats| stats.connectors()).map(|stats| connector(stats)).collect();
    Some(Look { every_seconds: every.as_secs_f64(), refused, capture: captured, connectors })
}

/// How old the last one is in the partition that is furthest behind. Where none came although this process sent some, the first one
/// of these counts.
fn oldest(stats: &ConnectorStats, sent: Option<&Passage>) -> Option<Duration> {
    let passages = stats.canaries();
    let first = sent.and_then(Passage::since_first);
    let without = stats.partitions().keys().any(|partition| !passages.contains_key(partition));
    let nowhere = passages.is_empty() && stats.state() != ConnectorState::Standby;
    let seen = passages.values().filter_map(Passage::age).max();
    if without || nowhere { seen.max(first) } else { seen }
}

/// The samples of one metric: label values and number.
pub(super) fn samples(observer: &Observer, metric: &Metric) -> Vec<(Vec<String>, f64)> {
    let Some(look) = look(observer) else { return Vec::new() };
    let capture = look.capture.iter().map(|c| ("capture", [("stream", c.stream_seconds), ("journal", c.journal_seconds)], c.age_seconds));
    let connectors =
        look.connectors.iter().map(|c| (c.name.as_str(), [("read", c.read_seconds), ("settled", c.settled_seconds)], c.age_seconds));
    let all = capture.chain(connectors);
    if metric.name == names::CANARY_AGE.name {
        return all.filter_map(|(entity, _, age)| Some((vec![entity.to_owned()], age?))).collect();
    }
    let stage = |entity: &str, (stage, took): (&str, Option<f64>)| Some((vec![entity.to_owned(), stage.to_owned()], took?));
    all.flat_map(|(entity, stages, _)| stages.into_iter().filter_map(|s| stage(entity, s)).collect::<Vec<_>>()).collect()
}

fn time(seconds: f64) -> String {
    // What took less than a millisecond did take something.
    Duration::try_from_secs_f64(seconds.max(0.001)).map_or_else(|_| "-".to_owned(), units::show_duration)
}

/// The status document's `canary` in a sentence; `None` where there is none. Another process may have sent it, so nothing in it is taken
/// for granted.
#[must_use]
pub fn sentence(canary: &Value) -> Option<String> {
    if !canary.is_object() {
        return None;
    }
    if let Some(why) = canary["refused"].as_str() {
        return Some(format!("none is sent: {why}"));
    }
    let is_late = |of: &Value| of["late"].as_bool() == Some(true);
    let age = |of: &Value| of["age_seconds"].as_f64().map(time);
    let (capture, mut parts) = (&canary["capture"], Vec::new());
    match (is_late(capture), age(capture)) {
        (true, Some(age)) => parts.push(format!("none stored for {age}")),
        _ => {
            let stages = [("stream_seconds", "to the stream"), ("journal_seconds", "to the journal")];
            parts.extend(stages.iter().filter_map(|(key, word)| Some(format!("{} {word}", time(capture[*key].as_f64()?)))));
        }
    }
    for connector in canary["connectors"].as_array().into_iter().flatten() {
        let name = connector["name"].as_str().unwrap_or("-");
        match (is_late(connector), age(connector), connector["settled_seconds"].as_f64()) {
            (true, Some(age), _) => parts.push(format!("none settled by {name} for {age}")),
            (_, _, Some(settled)) => parts.push(format!("{} settled by {name}", time(settled))),
            _ => {}
        }
    }
    Some(if parts.is_empty() { "none came through yet".to_owned() } else { parts.join(", ") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sentence_tells_times_what_is_late_and_takes_nothing_for_granted() {
        let connectors = json!([{"name": "stock", "settled_seconds": 0.0192, "age_seconds": 3.0, "late": false}, {"name": "crm", "settled_seconds": 0.02, "age_seconds": 130.0, "late": true}]);
        let capture = json!({"stream_seconds": 0.008, "journal_seconds": 1.25, "age_seconds": 3.0, "late": false});
        let said = sentence(&json!({"capture": capture, "connectors": connectors}));
        assert_eq!(
            said.as_deref(),
            Some("8 ms to the stream, 1.2 s to the journal, 19 ms settled by stock, none settled by crm for 2 m 10 s")
        );
        let late = json!({"capture": {"stream_seconds": 0.008, "age_seconds": 45.0, "late": true}});
        assert_eq!(sentence(&late).as_deref(), Some("none stored for 45 s"));
        assert_eq!(sentence(&json!({"refused": "capture.canary_refused: x"})).as_deref(), Some("none is sent: capture.canary_refused: x"));
        assert_eq!(sentence(&json!({"connectors": [7]})).as_deref(), Some("none came through yet"));
        assert_eq!((sentence(&Value::Null), sentence(&json!([1]))), (None, None));
        assert!(sentence(&json!({"capture": {"stream_seconds": 1e300}})).is_some());
    }
}

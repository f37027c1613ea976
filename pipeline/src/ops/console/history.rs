//! What was measured since the process began, as lines over time: of the last hour every ten seconds, of the last day every four minutes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Points of a line: enough for its width.
const POINTS: usize = 360;
/// Seconds between two points of the hour.
pub(super) const STEP: u64 = 10;
/// Points of the hour that make one of the day.
const OF_DAY: u64 = 24;
/// Lines that are kept: of each connector one, and a few.
const LINES_MAX: usize = 600;

#[derive(Debug, Default)]
struct Line {
    hour: VecDeque<Option<f64>>,
    day: VecDeque<Option<f64>>,
    /// The highest since the day's last point: what stood out has to be seen in the day too.
    highest: Option<f64>,
}

fn push(line: &mut VecDeque<Option<f64>>, value: Option<f64>) {
    if line.len() == POINTS {
        line.pop_front();
    }
    line.push_back(value);
}

/// All points of a line's time; what was before the process began is not known.
fn whole(line: &VecDeque<Option<f64>>) -> Vec<Option<f64>> {
    std::iter::repeat_n(None, POINTS - line.len().min(POINTS)).chain(line.iter().copied()).collect()
}

/// Lines over time.
#[derive(Debug, Default)]
pub(crate) struct History {
    lines: Mutex<(u64, BTreeMap<String, Line>)>,
}

impl History {
    /// Takes a point of every line from a status document.
    pub(super) fn take(&self, status: &Value) {
        let mut points: BTreeMap<String, Option<f64>> = BTreeMap::new();
        let slot = &status["source"]["slot"];
        points.insert("events".to_owned(), status["source"]["events_per_second"].as_f64());
        points.insert("retained".to_owned(), status["source"]["retained_wal_bytes"].as_f64());
        points.insert("wal".to_owned(), slot["wal_bytes_per_second"].as_f64());
        for connector in status["connectors"].as_array().into_iter().flatten() {
            let name = connector["name"].as_str().unwrap_or_default();
            points.insert(format!("lag {name}"), connector["lag_seconds"].as_f64());
            points.insert(format!("rate {name}"), connector["events_per_second"].as_f64());
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0 += 1;
        let whole = lines.0.is_multiple_of(OF_DAY);
        for (name, value) in points.into_iter().take(LINES_MAX) {
            let line = lines.1.entry(name).or_default();
            push(&mut line.hour, value);
            line.highest = match (line.highest, value) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            };
            if whole {
                let highest = line.highest.take();
                push(&mut line.day, highest);
            }
        }
    }

    /// The last hour of a line.
    pub(super) fn hour(&self, name: &str) -> Vec<Option<f64>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.get(name).map(|line| whole(&line.hour)).unwrap_or_default()
    }

    /// The last day of a line, of each four minutes the highest.
    pub(super) fn day(&self, name: &str) -> Vec<Option<f64>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.get(name).filter(|line| line.day.len() > 1).map(|line| whole(&line.day)).unwrap_or_default()
    }
}

/// The value below which this part of the known ones lies.
pub(super) fn quantile(values: &[Option<f64>], part: f64) -> Option<f64> {
    let mut known: Vec<f64> = values.iter().flatten().copied().filter(|v| v.is_finite()).collect();
    known.sort_by(f64::total_cmp);
    let at = ((known.len() as f64 * part).ceil() as usize).saturating_sub(1);
    known.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_day_keeps_what_stood_out_and_neither_grows() {
        let history = History::default();
        for n in 0..(POINTS as u64 + 2) * OF_DAY {
            let lag = if n == 30 { 99.0 } else { 1.0 };
            history.take(&json!({"connectors": [{"name": "crm", "lag_seconds": lag}]}));
            if n == 47 {
                assert_eq!(history.day("lag crm")[POINTS - 3..], [None, Some(1.0), Some(99.0)]);
            }
        }
        assert_eq!((history.hour("lag crm").len(), history.day("lag crm").len()), (POINTS, POINTS));
        assert_eq!(history.hour("events").last(), Some(&None), "not known is not zero");
        assert!(history.hour("no").is_empty());
    }

    #[test]
    fn quantiles_are_of_what_is_known() {
        let values: Vec<Option<f64>> = (1..=100).map(|n| Some(f64::from(n))).chain([None]).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.95), quantile(&[None], 0.5)), (Some(50.0), Some(95.0), None));
    }
}

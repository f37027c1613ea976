//! What was measured since the process began, as lines over time: of the last hour every ten seconds, of the last day every four minutes, of the last week
//! every half an hour.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Points of a line: enough for its width.
const POINTS: usize = 360;
/// Seconds between two points of the hour.
pub(super) const STEP: u64 = 10;
/// Points of the hour that make one of the day.
const OF_DAY: u64 = 24;
/// Points of the hour that make one of the week.
const OF_WEEK: u64 = 180;
/// Lines that are kept: of each connector one, and a few.
const LINES_MAX: usize = 600;

#[derive(Debug, Default)]
struct Line {
    hour: VecDeque<Option<f64>>,
    day: VecDeque<Option<f64>>,
    week: VecDeque<Option<f64>>,
    /// The highest since the last point of the day, and of the week: what stood out has to be seen there too.
    highest: [Option<f64>; 2],
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
        let taken = lines.0;
        for (name, value) in points.into_iter().take(LINES_MAX) {
            let line = lines.1.entry(name).or_default();
            push(&mut line.hour, value);
            for highest in &mut line.highest {
                *highest = match (*highest, value) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    (a, b) => a.or(b),
                };
            }
            let Line { day, week, highest, .. } = line;
            for ((longer, of), highest) in [(day, OF_DAY), (week, OF_WEEK)].into_iter().zip(highest) {
                if taken.is_multiple_of(of) {
                    push(longer, highest.take());
                }
            }
        }
    }

    /// The last hour of a line.
    pub(super) fn hour(&self, name: &str) -> Vec<Option<f64>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.get(name).map(|line| whole(&line.hour)).unwrap_or_default()
    }

    /// The last week of a line, of each half an hour the highest; nothing before there is more than a day has.
    pub(super) fn week(&self, name: &str) -> Vec<Option<f64>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.get(name).filter(|line| line.week.len() >= 48).map(|line| whole(&line.week)).unwrap_or_default()
    }

    /// The last day of a line, of each four minutes the highest.
    pub(super) fn day(&self, name: &str) -> Vec<Option<f64>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.get(name).filter(|line| line.day.len() > 1).map(|line| whole(&line.day)).unwrap_or_default()
    }
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
        let week = history.week("lag crm");
        assert_eq!((week.len(), week.iter().flatten().count()), (POINTS, (POINTS + 2) * 24 / 180));
    }
}

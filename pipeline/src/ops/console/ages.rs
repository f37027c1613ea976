//! How old events were when they took effect, by connector: histograms of each minute, quarter of an hour and hour, which add up to true quantiles of
//! the last hour, day and week. Made from the histogram behind `tillstream_connector_end_to_end_seconds`, since the process began.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::telemetry::times::Reading;

/// A stretch of time up to now, in as many points as a line has.
#[derive(Debug)]
pub(super) struct Window {
    /// In addresses and documents.
    pub(super) name: &'static str,
    /// For people.
    pub(super) label: &'static str,
    /// Milliseconds that a point stands for.
    pub(super) step_ms: i64,
    /// Points.
    pub(super) points: usize,
    /// Where its line has a tick: so many milliseconds apart, and how one is written.
    pub(super) tick_ms: i64,
}

/// The last hour, day and week.
pub(super) const WINDOWS: [Window; 3] = [
    Window { name: "hour", label: "1 h", step_ms: 60_000, points: 60, tick_ms: 900_000 },
    Window { name: "day", label: "24 h", step_ms: 900_000, points: 96, tick_ms: 6 * 3_600_000 },
    Window { name: "week", label: "7 d", step_ms: 3_600_000, points: 168, tick_ms: 86_400_000 },
];

/// Connectors that are remembered.
pub(super) const CONNECTORS_MAX: usize = 128;

/// What one connector takes at most: every point of every window.
pub(super) const CONNECTOR_BYTES: usize = (WINDOWS[0].points + WINDOWS[1].points + WINDOWS[2].points) * size_of::<Reading>();

impl Window {
    /// Of all three together.
    pub(super) fn span_ms(&self) -> i64 {
        self.step_ms * self.points as i64
    }
}

/// The points of one window: the last is the one under way.
#[derive(Debug, Default)]
struct Ring {
    /// Number of the last point: its time over the step.
    last: i64,
    points: VecDeque<Reading>,
}

impl Ring {
    fn add(&mut self, window: &Window, at_ms: i64, reading: &Reading) {
        let at = at_ms.div_euclid(window.step_ms);
        if self.points.is_empty() || (at - self.last).abs() > window.points as i64 {
            self.points.clear();
            self.points.push_back(Reading::default());
            self.last = at;
        }
        // A clock that is set back a little adds to what is newest.
        while self.last < at {
            if self.points.len() == window.points {
                self.points.pop_front();
            }
            self.points.push_back(Reading::default());
            self.last += 1;
        }
        if let Some(point) = self.points.back_mut() {
            *point = point.and(reading);
        }
    }

    /// All points of the window that ends now; nothing is known of what is not there.
    fn read(&self, window: &Window, now_ms: i64) -> Vec<Reading> {
        let now = now_ms.div_euclid(window.step_ms).max(self.last);
        let first = now - window.points as i64 + 1;
        let begin = self.last - self.points.len() as i64 + 1;
        let at = |number: i64| usize::try_from(number - begin).ok().and_then(|i| self.points.get(i)).copied();
        (first..=now).map(|number| at(number).unwrap_or_default()).collect()
    }
}

#[derive(Debug, Default)]
struct Age {
    /// The histogram as it was seen last.
    seen: Reading,
    rings: [Ring; WINDOWS.len()],
}

/// The ages of all connectors' events. At most [`CONNECTORS_MAX`] times [`CONNECTOR_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Ages(Mutex<BTreeMap<String, Age>>);

impl Ages {
    /// Takes what a connector's histogram holds now.
    pub(super) fn take(&self, connector: &str, at_ms: i64, reading: &Reading) {
        let mut ages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !ages.contains_key(connector) && ages.len() == CONNECTORS_MAX {
            return;
        }
        let age = ages.entry(connector.to_owned()).or_default();
        let news = reading.since(&age.seen);
        age.seen = *reading;
        for (window, ring) in WINDOWS.iter().zip(&mut age.rings) {
            ring.add(window, at_ms, &news);
        }
    }

    /// The points of one of [`WINDOWS`], the last one the present; empty ones of a connector that is not remembered.
    pub(super) fn read(&self, connector: &str, window: usize, now_ms: i64) -> Vec<Reading> {
        let ages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Age::default();
        ages.get(connector).unwrap_or(&none).rings[window].read(&WINDOWS[window], now_ms)
    }
}

/// All of them together.
pub(super) fn together(readings: &[Reading]) -> Reading {
    readings.iter().fold(Reading::default(), |sum, reading| sum.and(reading))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::times::Times;

    const MINUTE: i64 = 60_000;

    #[test]
    fn quantiles_of_a_window_are_those_of_all_its_events_and_leave_it_with_them() {
        let (ages, times) = (Ages::default(), Times::default());
        let start = 1_000_000 * MINUTE;
        // A quick minute with many events, a quiet one, a slow one with few.
        times.observe_many(Duration::from_millis(40), 990);
        ages.take("crm", start, &times.read());
        ages.take("crm", start + MINUTE, &times.read());
        times.observe_many(Duration::from_secs(4), 10);
        ages.take("crm", start + 2 * MINUTE, &times.read());
        let now = start + 2 * MINUTE + 5_000;
        for (window, of) in WINDOWS.iter().enumerate() {
            let points = ages.read("crm", window, now);
            let all = together(&points);
            assert_eq!((points.len(), all.count()), (of.points, 1000), "{}", of.name);
            let quantile = |part| all.quantile(part).expect("there are some");
            assert!(quantile(0.5) < 0.05 && quantile(0.95) < 0.05 && quantile(0.999) > 2.0, "{}", of.name);
        }
        let minutes: Vec<u64> = ages.read("crm", 0, now).iter().rev().take(4).map(Reading::count).collect();
        assert_eq!(minutes, [10, 0, 990, 0]);
        // An hour on only the slow minute is left of it, a day on nothing, while the week has all.
        let count = |window, at| together(&ages.read("crm", window, at)).count();
        assert_eq!(count(0, start + 60 * MINUTE), 10);
        assert_eq!((count(0, start + 70 * MINUTE), count(1, start + 2_000 * MINUTE), count(2, start + 2_000 * MINUTE)), (0, 0, 1000));
        assert_eq!(ages.read("nobody", 1, now).len(), WINDOWS[1].points);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_the_clock_does() {
        let (ages, times) = (Ages::default(), Times::default());
        times.observe(Duration::from_millis(5));
        for n in 0..1_000 {
            ages.take("crm", n * 7 * MINUTE, &times.read());
        }
        // Far ahead, and back again.
        for at in [i64::MAX / 2, 0, 5 * MINUTE] {
            ages.take("crm", at, &times.read());
        }
        for n in 0..2 * CONNECTORS_MAX {
            ages.take(&format!("c{n}"), 0, &times.read());
        }
        let kept = ages.0.lock().expect("not poisoned");
        assert_eq!(kept.len(), CONNECTORS_MAX);
        let points = |age: &Age| age.rings.iter().map(|ring| ring.points.len()).sum::<usize>();
        assert!(kept.values().all(|age| points(age) * size_of::<Reading>() <= CONNECTOR_BYTES));
        println!("{CONNECTOR_BYTES} bytes a connector, {} at most", CONNECTOR_BYTES * CONNECTORS_MAX);
    }
}

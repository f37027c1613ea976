//! How long things take: a histogram on one fixed ladder, written with relaxed atomics once a batch or a call, read by
//! whoever looks. Two readings, subtracted, tell what happened in between.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds. Three rungs a decade where calls and confirms lie, so that a quantile read between two of them is
/// off by a quarter at most; two an order of magnitude above, where only the size matters.
pub const BOUNDS: [f64; 24] = [
    0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0,
    100.0, 600.0,
];

/// Rungs, with the one above the last bound.
const RUNGS: usize = BOUNDS.len() + 1;

/// Times since the process began.
#[derive(Debug, Default)]
pub struct Times {
    counts: [AtomicU64; RUNGS],
    sum_us: AtomicU64,
}

impl Times {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        self.observe_many(took, 1);
    }

    /// Counts several that took as long.
    pub fn observe_many(&self, took: Duration, n: u64) {
        let seconds = took.as_secs_f64();
        let rung = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[rung].fetch_add(n, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us.saturating_mul(n), Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading { counts: std::array::from_fn(|rung| self.counts[rung].load(Relaxed)), sum_us: self.sum_us.load(Relaxed) }
    }
}

/// What a histogram held at one moment, or what came between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    counts: [u64; RUNGS],
    sum_us: u64,
}

impl Reading {
    /// What came after an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Reading) -> Reading {
        Reading {
            counts: std::array::from_fn(|rung| self.counts[rung].saturating_sub(earlier.counts[rung])),
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Reading) -> Reading {
        Reading {
            counts: std::array::from_fn(|rung| self.counts[rung] + other.counts[rung]),
            sum_us: self.sum_us.saturating_add(other.sum_us),
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// The mean in seconds; `None` of nothing.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum_seconds() / count as f64)
    }

    /// The value in seconds below which this part (0 to 1) lies, read between the bounds; `None` of nothing.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let wanted = part.clamp(0.0, 1.0) * total as f64;
        let mut below = 0.0;
        for (rung, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let low = rung.checked_sub(1).map_or(0.0, |before| BOUNDS[before]);
                // Above the last bound nothing is known but that.
                let high = BOUNDS.get(rung).copied().unwrap_or(low);
                return Some(low + (high - low) * ((wanted - below) / count));
            }
            below += count;
        }
        BOUNDS.last().copied()
    }

    /// Bounds and how many lie in each rung, for the exposition; the last bound is above everything.
    pub fn rungs(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().chain([f64::MAX]).zip(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_bounds_and_two_readings_tell_what_came_in_between() {
        let times = Times::default();
        for ms in 1..=1000 {
            times.observe(Duration::from_millis(ms));
        }
        let first = times.read();
        assert_eq!(first.count(), 1000);
        for (part, expected) in [(0.5, 0.5), (0.95, 0.95), (0.05, 0.05)] {
            let got = first.quantile(part).expect("there are some");
            assert!((got - expected).abs() < expected * 0.25, "{part}: {got}");
        }
        times.observe_many(Duration::from_secs(2), 10);
        let later = times.read().since(&first);
        assert_eq!((later.count(), later.mean()), (10, Some(2.0)));
        assert!(later.quantile(0.5).is_some_and(|s| s > 1.0 && s <= 2.0));
        assert_eq!(first.and(&later), times.read());
        assert_eq!(Reading::default().quantile(0.5), None);
        times.observe(Duration::from_secs(3600));
        assert_eq!(times.read().since(&first).quantile(1.0), Some(600.0));
    }
}

//! The delays of every retry in the pipeline: exponential growth with jitter, for ever.
//!
//! Owns the arithmetic (crate `backoff`); never sleeps, never decides whether to try again.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// The delays of one retry loop. They grow by half each time, vary by half to both sides so that many clients of one
/// server do not come back in step, and never end: giving up is the caller's decision.
#[derive(Debug)]
pub struct Delays {
    inner: ExponentialBackoff,
}

impl Delays {
    /// Delays that start around `base` and level off around `max`.
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        let inner = ExponentialBackoff {
            current_interval: base,
            initial_interval: base,
            max_interval: max.max(base),
            // The library's default gives up after fifteen minutes.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Delays { inner }
    }

    /// The same without jitter, for a loop that contends with nobody: the next delay follows from the count alone.
    #[must_use]
    pub fn steady(base: Duration, max: Duration) -> Self {
        let mut delays = Delays::new(base, max);
        delays.inner.randomization_factor = 0.0;
        delays
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.inner.next_backoff().expect("a backoff without a time limit never ends")
    }

    /// Begins anew; called when an attempt has succeeded.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_level_off_and_begin_anew() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut delays = Delays::new(base, max);
        let mut nominal = base;
        for _ in 0..1_000 {
            let delay = delays.next_delay();
            assert!(delay >= nominal / 2 && delay <= nominal * 3 / 2 + Duration::from_millis(1), "{delay:?} around {nominal:?}");
            nominal = (nominal * 3 / 2).min(max);
        }
        delays.reset();
        assert!(delays.next_delay() <= base * 3 / 2 + Duration::from_millis(1));
    }
}

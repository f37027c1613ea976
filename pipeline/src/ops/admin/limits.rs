//! How often somebody may ask: a bucket of requests for each address or name, refilled at a rate.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Buckets that are kept; full ones are forgotten first, since a new one is full too.
const KEPT_MAX: usize = 4096;

/// What a bucket holds and how fast it fills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Requests at once.
    pub(crate) burst: f64,
    /// Requests a second.
    pub(crate) refill: f64,
}

/// Buckets of one kind.
#[derive(Debug)]
pub(crate) struct Limit {
    rate: Rate,
    buckets: Mutex<BTreeMap<String, (f64, Instant)>>,
}

impl Limit {
    pub(crate) fn new(rate: Rate) -> Limit {
        Limit { rate, buckets: Mutex::default() }
    }

    /// Takes one; `Err` says how long to wait for the next.
    pub(crate) fn take(&self, who: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Rate { burst, refill } = self.rate;
        let level = |(held, at): (f64, Instant)| (held + now.duration_since(at).as_secs_f64() * refill).min(burst);
        if buckets.len() >= KEPT_MAX && !buckets.contains_key(who) {
            buckets.retain(|_, bucket| level(*bucket) < burst);
            if buckets.len() >= KEPT_MAX {
                return Err(Duration::from_secs(1));
            }
        }
        let held = buckets.get(who).map_or(burst, |bucket| level(*bucket));
        if held < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - held) / refill));
        }
        buckets.insert(who.to_owned(), (held - 1.0, now));
        Ok(())
    }

    /// Whether there is one, without taking it.
    pub(crate) fn has(&self, who: &str, now: Instant) -> bool {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.get(who).is_none_or(|(held, at)| held + now.duration_since(*at).as_secs_f64() * self.rate.refill >= 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let limit = Limit::new(Rate { burst: 2.0, refill: 0.5 });
        let now = Instant::now();
        assert!(limit.take("a", now).is_ok() && limit.has("a", now) && limit.take("a", now).is_ok());
        assert_eq!(limit.take("a", now), Err(Duration::from_secs(2)));
        assert!(!limit.has("a", now) && limit.take("b", now).is_ok(), "each has its own");
        assert!(limit.take("a", now + Duration::from_secs(2)).is_ok());
    }

    #[test]
    fn many_names_take_no_more_room() {
        let limit = Limit::new(Rate { burst: 1.0, refill: 1.0 });
        let now = Instant::now();
        for n in 0..2 * KEPT_MAX {
            let _ = limit.take(&n.to_string(), now);
        }
        assert_eq!(limit.buckets.lock().expect("sound").len(), KEPT_MAX);
        assert!(limit.take("new", now + Duration::from_secs(2)).is_ok(), "full ones make room");
    }
}

//! What a reader passes before each chunk: requests to stop, the rate, the calendar and the brakes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::brakes::Brakes;
use super::stats::Stats;
use crate::config::calendar::Calendar;
use crate::control::now_ms;

/// What a job was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Read.
    #[default]
    Run,
    /// Stop after the chunk under way and keep the progress.
    Pause {
        /// Stable code.
        code: &'static str,
        /// Why.
        why: String,
    },
    /// As a pause, and the progress counts for nothing.
    Cancel,
}

/// The job has been asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Halt;

/// How a reader may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speed {
    /// As the chunk's own budget allows.
    Full,
    /// In small steps with long rests.
    Trickle,
}

/// Waiting is cut into pieces, so that what slows the job is looked at again.
const PIECE: Duration = Duration::from_millis(500);
/// A trickling reader rests at most this long between two steps.
const REST_MAX: Duration = Duration::from_secs(60);

/// Rows that were taken in advance of a rate.
#[derive(Debug)]
pub(super) struct Bucket(Mutex<(f64, Instant)>);

impl Default for Bucket {
    fn default() -> Self {
        Bucket(Mutex::new((0.0, Instant::now())))
    }
}

impl Bucket {
    /// Takes rows.
    pub(super) fn charge(&self, rows: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += rows as f64;
    }

    /// How long until what was taken is paid for at this rate.
    pub(super) fn pause(&self, rate: f64) -> Duration {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        bucket.0 = (bucket.0 - now.duration_since(bucket.1).as_secs_f64() * rate).max(0.0);
        bucket.1 = now;
        Duration::from_secs_f64((bucket.0 / rate.max(1e-3)).min(3600.0))
    }
}

/// One job's gate, shared by its readers.
#[derive(Debug)]
pub(super) struct Gate {
    wanted: watch::Receiver<Wanted>,
    brakes: Option<Arc<Brakes>>,
    /// Whether targets take no more than their share of it. The initial load is exempt: nothing is delivered before it.
    shares_sinks: bool,
    rate: Option<(f64, Bucket)>,
    deadline_ms: Option<i64>,
    window: Option<Calendar>,
    stats: Arc<Stats>,
}

impl Gate {
    /// A gate that only knows requests to stop; the rest is added.
    pub(super) fn new(wanted: watch::Receiver<Wanted>, stats: Arc<Stats>) -> Gate {
        Gate { wanted, brakes: None, shares_sinks: false, rate: None, deadline_ms: None, window: None, stats }
    }

    /// With the brakes.
    pub(super) fn braked(self, brakes: Arc<Brakes>, shares_sinks: bool) -> Gate {
        Gate { brakes: Some(brakes), shares_sinks, ..self }
    }

    /// With the bounds that the job itself was given.
    pub(super) fn bounded(self, max_rate: Option<u64>, deadline_ms: Option<i64>, window: Option<Calendar>) -> Gate {
        Gate { rate: max_rate.map(|rate| (rate as f64, Bucket::default())), deadline_ms, window, ..self }
    }

    /// What was asked for; the deadline is a pause too.
    pub(super) fn wanted(&self) -> Wanted {
        let wanted = self.wanted.borrow().clone();
        match (wanted, self.deadline_ms) {
            (Wanted::Run, Some(deadline)) if now_ms() >= deadline => {
                Wanted::Pause { code: "backfill.deadline", why: "its deadline was reached; its progress is saved".to_owned() }
            }
            (wanted, _) => wanted,
        }
    }

    /// Waits until the next chunk may be read. `rows` were read by the last one of this reader, which took `took`.
    pub(super) async fn pass(&self, rows: u64, took: Duration) -> Result<Speed, Halt> {
        if let Some((_, bucket)) = &self.rate {
            bucket.charge(rows);
        }
        if let Some(brakes) = self.sinks() {
            brakes.sinks.charge(rows);
        }
        self.stats.blind(self.brakes.as_ref().and_then(|b| b.blind()));
        let mut rested = Duration::ZERO;
        loop {
            if self.wanted() != Wanted::Run {
                self.stats.slowed(None);
                return Err(Halt);
            }
            let (pause, cause, text) = match self.slowed_by(took, rested) {
                Ok(speed) => {
                    self.stats.slowed(None);
                    return Ok(speed);
                }
                Err(slowed) => slowed,
            };
            self.stats.slowed(Some((cause, text)));
            let began = Instant::now();
            self.sleep(pause.min(PIECE)).await;
            rested += began.elapsed();
            self.stats.throttled(cause, began.elapsed());
        }
    }

    fn sinks(&self) -> Option<&Arc<Brakes>> {
        self.brakes.as_ref().filter(|_| self.shares_sinks)
    }

    /// How to go on, or for how long not, and why.
    fn slowed_by(&self, took: Duration, rested: Duration) -> Result<Speed, (Duration, &'static str, String)> {
        if let Some(until) = self.window.as_ref().and_then(|w| w.outside_until(jiff::Timestamp::now())) {
            return Err((PIECE, "window", format!("outside its window until {until}")));
        }
        if let Some((rate, bucket)) = &self.rate {
            let pause = bucket.pause(*rate);
            if !pause.is_zero() {
                return Err((pause, "max_rate", format!("its limit of {rate:.0} rows/s")));
            }
        }
        if let Some(brakes) = self.sinks()
            && let Some((rate, connector)) = brakes.sink_rate()
        {
            let pause = brakes.sinks.pause(rate);
            if !pause.is_zero() {
                return Err((pause, "sink", format!("connector {connector}: its share of what the target takes is {rate:.0} rows/s")));
            }
        }
        let Some(slow) = self.brakes.as_ref().and_then(|b| b.slow()) else { return Ok(Speed::Full) };
        match slow.share {
            None => Err((PIECE, slow.cause, slow.text)),
            Some(share) => {
                let rest = took.mul_f64((1.0 - share) / share).min(REST_MAX);
                match rest.saturating_sub(rested) {
                    Duration::ZERO => Ok(Speed::Trickle),
                    left => Err((left, slow.cause, slow.text)),
                }
            }
        }
    }

    /// Sleeps, but not through a request to stop.
    async fn sleep(&self, pause: Duration) {
        let mut wanted = self.wanted.clone();
        wanted.mark_unchanged();
        if self.wanted() != Wanted::Run {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = wanted.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_asks_for_the_time_that_its_rows_take() {
        let bucket = Bucket::default();
        assert_eq!(bucket.pause(100.0), Duration::ZERO);
        bucket.charge(50);
        let pause = bucket.pause(100.0);
        assert!(pause > Duration::from_millis(400) && pause <= Duration::from_millis(500), "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_to_stop_and_a_deadline_end_the_waiting() {
        let (ask, wanted) = watch::channel(Wanted::Run);
        let gate = Gate::new(wanted, Arc::default()).bounded(Some(1), None, None);
        assert_eq!(gate.pass(0, Duration::ZERO).await, Ok(Speed::Full));
        let pass = gate.pass(1_000, Duration::ZERO);
        tokio::pin!(pass);
        tokio::select! {
            _ = &mut pass => panic!("a thousand rows at one a second"),
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
        ask.send_replace(Wanted::Cancel);
        assert_eq!(pass.await, Err(Halt));
        let late = Gate::new(watch::channel(Wanted::Run).1, Arc::default()).bounded(None, Some(now_ms() - 1), None);
        assert_eq!(late.pass(0, Duration::ZERO).await, Err(Halt));
        assert!(matches!(late.wanted(), Wanted::Pause { code: "backfill.deadline", .. }));
    }
}

//! Looks at the server from outside the stream: how much WAL it keeps for us, how fast that grows, and whether it is
//! shutting down.
//!
//! The stream itself cannot tell the last while the journal takes nothing: a server that shuts down wants to send what it
//! has first, behind bytes that we do not read. Ordinary connections are refused from the first moment. Each look is a
//! connection of its own, since one that stayed would keep the server from an orderly shutdown. Decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tillstream_schemas::Lsn;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::CaptureError;
use super::source::{Looked, Source};
use super::stats::{Pressure, SlotReport, State, Stats};
use crate::config::units;
use crate::control::now_ms;

/// How often it looks: WAL of the busiest point of sale grows by some megabytes meanwhile.
const CALM_EVERY: Duration = Duration::from_secs(5);

/// While the journal takes nothing this is how long a shutdown of the server may go unnoticed.
const STALLED_EVERY: Duration = Duration::from_secs(1);

/// Looks that the rate is taken over: a minute.
const RATE_LOOKS: usize = 13;

/// A task that looks; ends with the value.
pub(super) struct Watch {
    ending: watch::Receiver<Option<Instant>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Starts looking. `budget` is the configured ceiling in bytes.
    pub(super) fn start(source: Arc<dyn Source>, stats: Arc<Stats>, budget: u64) -> Watch {
        let (sender, ending) = watch::channel(None);
        Watch { ending, task: tokio::spawn(look(source, stats, budget, sender)) }
    }

    /// Since when the server lets nobody in.
    pub(super) fn ending(&self) -> Option<Instant> {
        *self.ending.borrow()
    }

    /// Resolves when that changes. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.ending.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn look(source: Arc<dyn Source>, stats: Arc<Stats>, budget: u64, ending: watch::Sender<Option<Instant>>) {
    let mut rate = Rate::default();
    let mut said = Pressure::Calm;
    let mut looked_at: Option<Instant> = None;
    loop {
        let every = if stats.state().0 == State::WaitingForJournal { STALLED_EVERY } else { CALM_EVERY };
        if looked_at.is_some_and(|at| at.elapsed() < every) {
            sleep(STALLED_EVERY).await;
            continue;
        }
        looked_at = Some(Instant::now());
        match source.look().await {
            Ok(looked) => {
                let report = judge(&looked, budget, rate.sample(Instant::now(), looked.wal));
                if report.pressure != said {
                    tell(&report, said);
                    said = report.pressure;
                }
                stats.report(report);
                ending.send_if_modified(|since| since.take().is_some());
            }
            Err(CaptureError::NotAccepting(why)) => {
                ending.send_if_modified(|since| {
                    let first = since.is_none();
                    since.get_or_insert_with(Instant::now);
                    first
                });
                tracing::info!(why, "the server lets nobody in: it shuts down");
            }
            Err(error) => tracing::debug!(%error, "the server could not be looked at"),
        }
    }
}

fn tell(report: &SlotReport, before: Pressure) {
    let (kept, ceiling) = (units::show_size(report.retained_bytes), units::show_size(report.ceiling_bytes));
    let left = report.seconds_to_ceiling.map_or_else(|| "-".to_owned(), |s| units::show_duration(Duration::from_secs(s)));
    let code = report.pressure.code();
    match report.pressure {
        Pressure::Calm => tracing::info!(kept, ceiling, "the WAL kept for the slot is back within bounds"),
        Pressure::Warn if before > Pressure::Warn => tracing::info!(kept, ceiling, left, "less WAL is kept for the slot"),
        Pressure::Warn => tracing::warn!(code, kept, ceiling, left, "WAL piles up for the slot"),
        Pressure::Page => tracing::error!(code, kept, ceiling, left, "WAL piles up for the slot: the server will need its room"),
        Pressure::Shed => {
            tracing::error!(
                code,
                kept,
                ceiling,
                left,
                "the slot is about to be lost: nothing is held back any more; the server may drop it"
            );
        }
    }
}

/// What a look means against the configured ceiling and the server's own.
fn judge(looked: &Looked, budget: u64, bytes_per_second: f64) -> SlotReport {
    let ceiling = ceiling(looked, budget);
    let slot = looked.slot.clone().unwrap_or_default();
    let retained = slot.restart.map_or(0, |restart| looked.wal.0.saturating_sub(restart.0));
    let remaining = ceiling.saturating_sub(retained).min(slot.safe_bytes.unwrap_or(u64::MAX));
    let pressure = Pressure::of(retained, ceiling, &slot.wal_status);
    SlotReport {
        at_ms: now_ms(),
        restart: slot.restart.unwrap_or_default(),
        confirmed: slot.confirmed.unwrap_or_default(),
        wal_status: slot.wal_status,
        retained_bytes: retained,
        ceiling_bytes: ceiling,
        wal_bytes_per_second: bytes_per_second,
        seconds_to_ceiling: (bytes_per_second >= 1.0).then(|| (remaining as f64 / bytes_per_second) as u64),
        pressure,
        pinned_by: slot.pinned_by,
        decoding: slot.decoding,
    }
}

/// The lower of both ceilings. A server that is set to keep nothing is a matter of the doctor's.
pub(super) fn ceiling(looked: &Looked, budget: u64) -> u64 {
    budget.min(looked.keep_bytes.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX))
}

/// How fast WAL grows, over the last minute.
#[derive(Default)]
struct Rate {
    samples: VecDeque<(Instant, Lsn)>,
}

impl Rate {
    fn sample(&mut self, now: Instant, wal: Lsn) -> f64 {
        if self.samples.len() == RATE_LOOKS {
            self.samples.pop_front();
        }
        self.samples.push_back((now, wal));
        let Some((from, at)) = self.samples.front() else { return 0.0 };
        let seconds = (now - *from).as_secs_f64();
        if seconds > 0.0 { wal.0.saturating_sub(at.0) as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::source::SlotLook;

    fn looked(kept: u64, keep_bytes: Option<u64>, wal_status: &str) -> Looked {
        let slot =
            SlotLook { restart: Some(Lsn(1000)), confirmed: Some(Lsn(1000)), wal_status: wal_status.to_owned(), ..SlotLook::default() };
        Looked { wal: Lsn(1000 + kept), slot: Some(slot), keep_bytes }
    }

    #[test]
    fn the_lower_ceiling_decides() {
        for (kept, keep, status, pressure, left) in [
            (100, None, "reserved", Pressure::Calm, 9),
            (250, None, "reserved", Pressure::Warn, 7),
            (600, None, "extended", Pressure::Page, 4),
            (900, None, "extended", Pressure::Shed, 1),
            (100, Some(200), "reserved", Pressure::Warn, 1),
            (190, Some(200), "reserved", Pressure::Shed, 0),
            (100, Some(0), "reserved", Pressure::Calm, 9),
            (100, None, "unreserved", Pressure::Shed, 9),
        ] {
            let report = judge(&looked(kept, keep, status), 1000, 100.0);
            assert_eq!((report.pressure, report.seconds_to_ceiling), (pressure, Some(left)), "{kept} {keep:?} {status}");
        }
        assert_eq!(judge(&looked(100, None, "reserved"), 1000, 0.0).seconds_to_ceiling, None, "a server that writes nothing");
        assert_eq!(judge(&Looked::default(), 1000, 0.0).retained_bytes, 0, "no slot");
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut last = 0.0;
        for n in 0..40 {
            let wal = if n < 20 { 0 } else { (n - 20) * 5000 };
            last = rate.sample(start + Duration::from_secs(5 * n), Lsn(wal));
        }
        assert!((last - 1000.0).abs() < 1.0, "{last}");
    }
}

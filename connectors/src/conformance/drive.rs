//! Delivery in small: one lane, driven as the real one drives it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, Subject};
use crate::sink::{Batch, Class, Item, LaneId, Mark, OnDelete, Outcome, Sink};

/// What a call may take beyond what the sink's plan says.
const SLACK: Duration = Duration::from_secs(2);
/// Between two attempts where the target asks for no pause.
const BACKOFF: Duration = Duration::from_millis(25);
/// The longest pause that is waited for: the kit asks for about a second.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// One lane and its sink.
pub(super) struct Lane {
    id: LaneId,
    sink: Box<dyn Sink>,
    call_timeout: Duration,
    /// Of the next batch.
    mark: u64,
}

/// How items were settled.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// One for each item: never [`Outcome::Retry`].
    pub(super) outcomes: Vec<Outcome>,
    /// Pauses that the sink passed on.
    pub(super) pauses: Vec<Duration>,
    /// Calls that failed as a whole, and items that were put off.
    pub(super) repeats: usize,
}

impl Lane {
    pub(super) fn new(subject: &dyn Subject, number: u16) -> Lane {
        let id = LaneId { connector: "conformance".into(), partition: 0, lane: number };
        let target = subject.target();
        // Deletes are no part of what the kit sends.
        let sink = target.build(id.clone(), OnDelete::Tombstone);
        Lane { id, sink, call_timeout: target.plan().call_timeout, mark: 0 }
    }

    /// The next batch, under the next mark.
    pub(super) fn batch(&mut self, items: Vec<Item>) -> Batch {
        self.mark += 1;
        Batch { items, mark: Mark(self.mark.to_be_bytes().into()) }
    }

    /// The sink as it is, for a call that is going to be given up.
    pub(super) fn sink(&mut self) -> &mut dyn Sink {
        self.sink.as_mut()
    }

    /// A killed process and its successor: a new sink, and the mark that it finds.
    pub(super) async fn restart(&mut self, subject: &dyn Subject) -> Result<Option<Mark>, String> {
        let target = subject.target();
        // The old one first: it may hold what the new one needs.
        self.sink = Box::new(Gone);
        self.sink = target.build(self.id.clone(), OnDelete::Tombstone);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.sink.resume().await {
                Ok(mark) => return Ok(mark),
                Err(error) if error.class == Class::Transient && Instant::now() < deadline => sleep(BACKOFF).await,
                Err(error) => return Err(format!("cannot resume: {error}")),
            }
        }
    }

    /// Delivers until every item is settled.
    pub(super) async fn settle(&mut self, batch: Batch) -> Result<Settled, String> {
        let Batch { items, mark } = batch;
        let mut settled = Settled { outcomes: Vec::new(), ..Settled::default() };
        let mut ends: Vec<Option<Outcome>> = vec![None; items.len()];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left: Vec<usize> = (0..items.len()).filter(|n| ends[*n].is_none()).collect();
            if left.is_empty() && !items.is_empty() {
                settled.outcomes = ends.into_iter().flatten().collect();
                return Ok(settled);
            }
            if Instant::now() > deadline {
                return Err(format!("{} of {} items were never settled", left.len(), items.len()));
            }
            let call = Batch { items: left.iter().map(|n| items[*n].clone()).collect(), mark: mark.clone() };
            let limit = self.call_timeout + SLACK;
            let answer = timeout(limit, self.sink.deliver(&call)).await.map_err(|_| format!("a call took longer than {limit:?}"))?;
            let mut wait = BACKOFF;
            match answer {
                Err(error) if error.class == Class::Definite => return Err(format!("stops with {error}")),
                Err(error) => {
                    settled.repeats += 1;
                    settled.pauses.extend(error.after);
                    wait = error.after.unwrap_or(wait);
                }
                Ok(outcomes) if outcomes.len() > left.len() => {
                    return Err(format!("{} outcomes for {} items", outcomes.len(), left.len()));
                }
                Ok(outcomes) => {
                    // What is not reported was not attempted, or nobody knows what became of it.
                    settled.repeats += left.len() - outcomes.len();
                    for (n, outcome) in left.iter().zip(outcomes) {
                        match outcome {
                            Outcome::Retry(retry) => {
                                settled.repeats += 1;
                                settled.pauses.extend(retry.after);
                                wait = retry.after.unwrap_or(wait);
                            }
                            end => ends[*n] = Some(end),
                        }
                    }
                }
            }
            if ends.iter().any(Option::is_none) {
                sleep(wait.min(PAUSE_MAX)).await;
            }
        }
    }
}

/// Stands in for a sink between two.
struct Gone;

#[async_trait::async_trait]
impl Sink for Gone {
    async fn check(&mut self) -> Result<(), crate::sink::SinkError> {
        Ok(())
    }

    async fn deliver(&mut self, _batch: &Batch) -> Result<Vec<Outcome>, crate::sink::SinkError> {
        Ok(Vec::new())
    }
}

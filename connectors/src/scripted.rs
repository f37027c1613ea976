//! A sink that does what a test tells it: applies, refuses, fails before or after applying, holds its answer.
//!
//! Keeps what a real target would keep (effects by idempotency key, marks by lane), so that a test can compare what
//! was meant with what happened. Every lane of a connector, and every restart of it, shares one [`Script`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::registry::{SinkPlan, Target};
use crate::sink::{Batch, Class, Idempotency, Item, LaneId, Mark, OnDelete, Outcome, Reason, Retry, Sink, SinkError};

/// What the target does with one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Applies every item.
    Apply,
    /// Applies every item, and the answer is lost.
    ApplyAndLose,
    /// Applies nothing and fails as a whole.
    Fail(Class),
    /// Answers item by item; applies those it calls delivered.
    Answer(Vec<Outcome>),
    /// Waits until [`Script::release`], then applies every item.
    Hold,
}

/// Decides about each call: the lane, the batch, and how many calls there were before.
pub type Decide = dyn Fn(&LaneId, &Batch, u64) -> Act + Send + Sync;

/// One effect at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The event.
    pub event_id: String,
    /// Its key.
    pub idempotency_key: String,
    /// Names its row.
    pub row: String,
    /// The lane that brought it.
    pub lane: u16,
}

#[derive(Default)]
struct State {
    effects: Vec<Effect>,
    keys: HashSet<String>,
    marks: HashMap<LaneId, Vec<u8>>,
    calls: u64,
    absorbed: u64,
}

/// A target made up for a test.
pub struct Script {
    plan: SinkPlan,
    decide: Box<Decide>,
    state: Mutex<State>,
    released: watch::Sender<u64>,
    seen: watch::Sender<usize>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Script {
    /// A target with this guard against repeats, whose calls go as `decide` says.
    pub fn new(idempotency: Idempotency, decide: impl Fn(&LaneId, &Batch, u64) -> Act + Send + Sync + 'static) -> Arc<Script> {
        let plan = SinkPlan::new(idempotency, Duration::from_secs(5));
        Arc::new(Script {
            plan,
            decide: Box::new(decide),
            state: Mutex::default(),
            released: watch::Sender::new(0),
            seen: watch::Sender::new(0),
        })
    }

    /// As a connector's target.
    #[must_use]
    pub fn target(self: &Arc<Self>) -> Arc<dyn Target> {
        Arc::new(Scripted(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every effect so far, in order.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        self.state().effects.clone()
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Items that were sent again and had no second effect.
    #[must_use]
    pub fn absorbed(&self) -> u64 {
        self.state().absorbed
    }

    /// Lets every held call go on.
    pub fn release(&self) {
        self.released.send_modify(|n| *n += 1);
    }

    /// Waits until there are at least so many effects. For tests, with a deadline around it.
    pub async fn wait_for_effects(&self, count: usize) {
        // The sender lives as long as we do.
        let _ = self.seen.subscribe().wait_for(|seen| *seen >= count).await;
    }

    fn apply(&self, lane: &LaneId, item: &Item) -> Outcome {
        let mut state = self.state();
        let remembers = matches!(self.plan.idempotency, Idempotency::Key | Idempotency::Transactional);
        if !state.keys.insert(item.idempotency_key.clone()) && remembers {
            state.absorbed += 1;
            return Outcome::Absorbed;
        }
        let (event_id, row) = (item.event.id().to_owned(), item.event.key_text());
        state.effects.push(Effect { event_id, idempotency_key: item.idempotency_key.clone(), row, lane: lane.lane });
        Outcome::Delivered
    }

    fn apply_all(&self, lane: &LaneId, batch: &Batch) -> Vec<Outcome> {
        let outcomes = batch.items.iter().map(|item| self.apply(lane, item)).collect();
        self.store(lane, &batch.mark);
        outcomes
    }

    fn store(&self, lane: &LaneId, mark: &Mark) {
        if self.plan.idempotency == Idempotency::Transactional {
            self.state().marks.insert(lane.clone(), mark.0.clone());
        }
    }

    fn show(&self) {
        let count = self.state().effects.len();
        self.seen.send_replace(count);
    }
}

#[derive(Debug)]
struct Scripted(Arc<Script>);

impl Target for Scripted {
    fn plan(&self) -> &SinkPlan {
        &self.0.plan
    }

    fn build(&self, lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(ScriptedSink { script: self.0.clone(), lane })
    }
}

struct ScriptedSink {
    script: Arc<Script>,
    lane: LaneId,
}

/// A refusal with this code.
#[must_use]
pub fn refuse(code: &str) -> Outcome {
    Outcome::Rejected(Reason { code: code.to_owned(), message: "refused by the script".into() })
}

/// A wish for a repeat, after the given pause or by the runtime's own choice.
#[must_use]
pub fn retry(after: Option<Duration>) -> Outcome {
    Outcome::Retry(Retry { reason: Reason { code: "scripted.busy".into(), message: "busy by the script".into() }, after })
}

fn error(class: Class) -> SinkError {
    SinkError { code: "scripted.failed".into(), message: "failed by the script".into(), class, after: None }
}

#[async_trait]
impl Sink for ScriptedSink {
    async fn check(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn resume(&mut self) -> Result<Option<Mark>, SinkError> {
        Ok(self.script.state().marks.get(&self.lane).cloned().map(Mark))
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let script = self.script.clone();
        let call = {
            let mut state = script.state();
            state.calls += 1;
            state.calls - 1
        };
        let answer = match (script.decide)(&self.lane, batch, call) {
            Act::Apply => Ok(script.apply_all(&self.lane, batch)),
            Act::ApplyAndLose => {
                script.apply_all(&self.lane, batch);
                Err(error(Class::Transient))
            }
            Act::Fail(class) => Err(error(class)),
            Act::Answer(outcomes) => {
                let answer = |(item, outcome): (&Item, Outcome)| match outcome {
                    Outcome::Delivered => script.apply(&self.lane, item),
                    other => other,
                };
                let complete = outcomes.len() == batch.items.len();
                let outcomes: Vec<Outcome> = batch.items.iter().zip(outcomes).map(answer).collect();
                if complete && outcomes.iter().all(|o| matches!(o, Outcome::Delivered | Outcome::Absorbed)) {
                    script.store(&self.lane, &batch.mark);
                }
                Ok(outcomes)
            }
            Act::Hold => {
                let mut released = script.released.subscribe();
                let now = *released.borrow_and_update();
                let _ = released.wait_for(|n| *n > now).await;
                Ok(script.apply_all(&self.lane, batch))
            }
        };
        script.show();
        answer
    }
}

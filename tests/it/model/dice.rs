//! The one source of chance of a run: everything follows from the seed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::watch;

/// Shared by everything in a run. Draws come in the order in which tasks run, which a current-thread runtime under a
/// paused clock repeats exactly.
#[derive(Clone)]
pub(crate) struct Dice {
    rng: Arc<Mutex<StdRng>>,
    /// Counts the steps of the simulated world, so that faults can strike between two of them.
    steps: watch::Sender<u64>,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice { rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))), steps: watch::Sender::new(0) }
    }

    /// Something moved: a frame, a batch, a confirm, an acknowledgement.
    pub(crate) fn step(&self) {
        self.steps.send_modify(|n| *n += 1);
    }

    /// Waits until `n` more steps were made.
    pub(crate) async fn steps(&self, n: u64) {
        let until = *self.steps.borrow() + n;
        // The sender lives as long as the dice do.
        let _ = self.steps.subscribe().wait_for(|now| *now >= until).await;
    }

    pub(crate) fn number(&self) -> u64 {
        self.rng.lock().expect("never poisoned").next_u64()
    }

    /// From `low` up to and including `high`.
    pub(crate) fn within(&self, low: u64, high: u64) -> u64 {
        self.rng.lock().expect("never poisoned").random_range(low..=high)
    }

    pub(crate) fn below(&self, n: usize) -> usize {
        self.within(0, n as u64 - 1) as usize
    }

    /// True `percent` times of a hundred.
    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.within(0, 99) < percent
    }

    pub(crate) fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(low, high))
    }
}

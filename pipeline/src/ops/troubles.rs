//! Times in which something was not as it should be: what began when, why, and when it was over. Kept while the process runs.

use std::collections::VecDeque;

use serde::Serialize;

use super::health::{Health, Verdict};

/// As many are kept; older ones are forgotten. A state flaps at most once a second, and what flaps for minutes says nothing new.
const KEPT: usize = 256;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// `source`, `journal`, or `connector NAME`.
    pub of: String,
    /// Its state.
    pub state: Health,
    /// Why, when it began; without values.
    pub why: String,
    /// When it began, milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// When it was over; `None` while it lasts.
    pub until_ms: Option<i64>,
}

/// The newest of them.
#[derive(Debug, Default)]
pub struct Troubles(VecDeque<Trouble>);

impl Troubles {
    /// An entity has come into another state.
    pub fn note(&mut self, of: &str, verdict: &Verdict, at_ms: i64) {
        for open in self.0.iter_mut().filter(|trouble| trouble.until_ms.is_none() && trouble.of == of) {
            open.until_ms = Some(at_ms);
        }
        // What is starting is not known; that is no trouble yet.
        if matches!(verdict.health, Health::Healthy | Health::CatchingUp | Health::Unknown) {
            return;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Trouble { of: of.to_owned(), state: verdict.health, why: verdict.why.clone(), since_ms: at_ms, until_ms: None });
    }

    /// All that are kept, in the order in which they began.
    #[must_use]
    pub fn all(&self) -> Vec<Trouble> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_lasts_until_the_state_is_another_and_old_ones_are_forgotten() {
        let mut troubles = Troubles::default();
        let verdict = |health| Verdict { health, why: "because".to_owned() };
        for (at, of, health) in [
            (1, "journal", Health::Unknown),
            (2, "journal", Health::Healthy),
            (3, "journal", Health::Degraded),
            (4, "source", Health::Blocked),
            (5, "journal", Health::Blocked),
            (6, "journal", Health::CatchingUp),
        ] {
            troubles.note(of, &verdict(health), at);
        }
        let told: Vec<_> = troubles.all().into_iter().map(|t| (t.of, t.state, t.since_ms, t.until_ms)).collect();
        let of = |of: &str| of.to_owned();
        assert_eq!(
            told,
            [
                (of("journal"), Health::Degraded, 3, Some(5)),
                (of("source"), Health::Blocked, 4, None),
                (of("journal"), Health::Blocked, 5, Some(6))
            ]
        );
        for at in 0..2 * KEPT as i64 {
            troubles.note("source", &verdict(if at % 2 == 0 { Health::Failed } else { Health::Paused }), at);
        }
        assert_eq!(troubles.all().len(), KEPT);
    }
}

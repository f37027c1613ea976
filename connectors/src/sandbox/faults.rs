//! What goes wrong: by chance, one request after another, or for certain items.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an act that waits does so unless told: longer than the timeouts of sinks.
const WAIT: Duration = Duration::from_secs(30);
/// How long a pause is that is asked for unless told.
const PAUSE: Duration = Duration::from_secs(1);

/// What happens to one request. Written as `status_500`, `slow 2s`, `status_429_date 1s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Nothing out of the ordinary.
    Serve,
    /// Answered 500 and not applied.
    Status500,
    /// Applied and answered 500.
    Status500Applied,
    /// Answered 503 and not applied.
    Status503,
    /// Answered 429 with `Retry-After` in seconds, rounded up; not applied.
    Status429(Duration),
    /// Answered 429 with `Retry-After` as a date, rounded up; not applied.
    Status429Date(Duration),
    /// Answered 429 without `Retry-After`; not applied.
    Status429Bare,
    /// Applied and answered after so long.
    Slow(Duration),
    /// Applied at once, answered after so long.
    Late(Duration),
    /// Not applied; the connection is cut after so long.
    Hang(Duration),
    /// Applied; the connection is cut instead of an answer.
    LostAnswer,
    /// Not applied; the connection is cut.
    Cut,
    /// Every second item (the second, the fourth…) is not applied and answered 503; one that stands alone is answered 503.
    Partial,
    /// Not applied and answered 200, with a body that says so.
    Error200,
}

/// A text that names no act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not what can happen to a request; that is one of {}", ACTS.join(", "))]
pub struct ActError;

const ACTS: [&str; 14] = [
    "serve",
    "status_500",
    "status_500_applied",
    "status_503",
    "status_429 [wait]",
    "status_429_date [wait]",
    "status_429_bare",
    "slow [for]",
    "late [for]",
    "hang [for]",
    "lost_answer",
    "cut",
    "partial",
    "error_200",
];

impl FromStr for Act {
    type Err = ActError;

    fn from_str(text: &str) -> Result<Act, ActError> {
        let mut words = text.split_whitespace();
        let (word, wait) = (words.next().unwrap_or_default(), words.next());
        let wait = wait.map(|w| crate::block::duration(w).filter(|w| *w <= Duration::from_secs(3600)).ok_or(ActError)).transpose()?;
        let act = match (word, wait) {
            ("serve", None) => Act::Serve,
            ("status_500", None) => Act::Status500,
            ("status_500_applied", None) => Act::Status500Applied,
            ("status_503", None) => Act::Status503,
            ("status_429", wait) => Act::Status429(wait.unwrap_or(PAUSE)),
            ("status_429_date", wait) => Act::Status429Date(wait.unwrap_or(PAUSE)),
            ("status_429_bare", None) => Act::Status429Bare,
            ("slow", wait) => Act::Slow(wait.unwrap_or(WAIT)),
            ("late", wait) => Act::Late(wait.unwrap_or(WAIT)),
            ("hang", wait) => Act::Hang(wait.unwrap_or(WAIT)),
            ("lost_answer", None) => Act::LostAnswer,
            ("cut", None) => Act::Cut,
            ("partial", None) => Act::Partial,
            ("error_200", None) => Act::Error200,
            _ => return Err(ActError),
        };
        if words.next().is_some() { Err(ActError) } else { Ok(act) }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, wait) = match self {
            Act::Serve => ("serve", None),
            Act::Status500 => ("status_500", None),
            Act::Status500Applied => ("status_500_applied", None),
            Act::Status503 => ("status_503", None),
            Act::Status429(wait) => ("status_429", Some(wait)),
            Act::Status429Date(wait) => ("status_429_date", Some(wait)),
            Act::Status429Bare => ("status_429_bare", None),
            Act::Slow(wait) => ("slow", Some(wait)),
            Act::Late(wait) => ("late", Some(wait)),
            Act::Hang(wait) => ("hang", Some(wait)),
            Act::LostAnswer => ("lost_answer", None),
            Act::Cut => ("cut", None),
            Act::Partial => ("partial", None),
            Act::Error200 => ("error_200", None),
        };
        match wait {
            Some(wait) => write!(f, "{word} {}ms", wait.as_millis()),
            None => f.write_str(word),
        }
    }
}

impl Serialize for Act {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Act {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Act, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What goes wrong. As JSON: `{"rates": {"status_500": 0.02, "late 5s": 0.01}, "next": ["lost_answer"], "refuse": ["vip"], "seed": 7}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Which share of requests meets what, each between 0 and 1, together at most 1.
    pub rates: BTreeMap<Act, f64>,
    /// What happens to the next requests, one each; at most 10,000.
    pub next: VecDeque<Act>,
    /// Items that hold one of these texts are refused for good.
    pub refuse: Vec<String>,
    /// Where the dice begin: equal seeds give equal chances.
    pub seed: u64,
}

/// Most acts that wait their turn.
pub(super) const NEXT_MAX: usize = 10_000;

impl Faults {
    /// Whether rates and lengths are within their bounds; says what is not.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn check(&self) -> Result<(), String> {
        let whole: f64 = self.rates.values().sum();
        if self.rates.values().any(|r| !(0.0..=1.0).contains(r)) || whole > 1.0 {
            return Err("each rate lies between 0 and 1, and together they are at most 1".to_owned());
        }
        if self.next.len() > NEXT_MAX || self.refuse.len() > NEXT_MAX {
            return Err(format!("lists hold at most {NEXT_MAX} entries"));
        }
        if self.refuse.iter().any(String::is_empty) {
            return Err("an empty text in `refuse` would refuse everything".to_owned());
        }
        Ok(())
    }

    /// What happens to the next request.
    pub(super) fn draw(&mut self, dice: &mut Dice) -> Act {
        if let Some(act) = self.next.pop_front() {
            return act;
        }
        let mut left = dice.roll();
        for (act, rate) in &self.rates {
            left -= rate;
            if left < 0.0 {
                return *act;
            }
        }
        Act::Serve
    }
}

/// Chance that can be repeated (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// At least 0 and below 1.
    pub(super) fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // 53 bits are what a double holds exactly.
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_read_as_they_are_written() {
        for text in ["serve", "status_500", "status_429 1000ms", "status_429_date 2000ms", "late 50ms", "lost_answer", "error_200"] {
            assert_eq!(text.parse::<Act>().expect(text).to_string(), text);
        }
        assert_eq!("slow 2s".parse(), Ok(Act::Slow(Duration::from_secs(2))));
        assert_eq!("hang".parse(), Ok(Act::Hang(WAIT)));
        for wrong in ["", "status_418", "slow 2", "slow 2h", "cut 1s", "slow 1s 1s"] {
            assert_eq!(wrong.parse::<Act>(), Err(ActError), "{wrong}");
        }
    }

    #[test]
    fn rates_are_met_and_the_queue_comes_first() {
        let mut faults: Faults =
            serde_json::from_str(r#"{"rates": {"status_500": 0.25, "late 1s": 0.25}, "next": ["cut"], "seed": 3}"#).expect("faults");
        faults.check().expect("in bounds");
        let mut dice = Dice::new(faults.seed);
        assert_eq!(faults.draw(&mut dice), Act::Cut);
        let mut counts = BTreeMap::new();
        for _ in 0..10_000 {
            *counts.entry(faults.draw(&mut dice)).or_insert(0) += 1;
        }
        assert!(counts.values().all(|n| (2_300..=5_200).contains(n)) && counts.len() == 3, "{counts:?}");
        faults.rates.insert(Act::Cut, 0.9);
        assert!(faults.check().is_err());
    }
}

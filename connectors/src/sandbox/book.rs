//! What the sandbox knows: keys, rows, effects, requests. Pure but for the clock.

use std::collections::{HashSet, VecDeque};

use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Settings;
use super::faults::{Act, Dice, Faults, NEXT_MAX};
use super::memory::Memory;

/// The longest body, in bytes of its JSON, that can be read back with its effect.
const BODY_MAX: usize = 16 << 10;

/// A digest of what came under a key.
pub(super) type Digest = [u8; 32];

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// What a request wants done.
#[derive(Debug)]
pub(super) struct Wish {
    /// Names the whole request.
    pub(super) key: Option<String>,
    /// Of the whole body.
    pub(super) digest: Digest,
    pub(super) parts: Vec<Part>,
    /// Nothing is applied unless everything can be.
    pub(super) atomic: bool,
    /// What it is when a part's key is known.
    pub(super) known: Known,
}

/// What a target makes of a part whose key it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The same body is a repeat, another one is refused by name.
    Compared,
    /// The first one counts, whatever comes later.
    FirstCounts,
    /// The whole request is refused.
    Refused,
}

/// One thing to do.
#[derive(Debug)]
pub(super) struct Part {
    /// Names the effect; `None` where the request's key names them all.
    pub(super) key: Option<String>,
    /// What it is about.
    pub(super) row: Option<String>,
    /// For rows that are kept: what orders them; `Some(None)` when the last one to come counts.
    pub(super) state: Option<Option<String>>,
    pub(super) body: Value,
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Applied,
    /// Applied before.
    Repeated,
    /// The row is newer already.
    Older,
    /// Its key, or the request's, stands for another body.
    Conflict,
    /// For good, by the faults.
    Refused,
    /// Not this time, by the faults.
    Failed,
    /// Another part of an atomic request could not be applied.
    Withheld,
}

/// One thing that a pretend target did.
#[derive(Clone, Debug, Serialize)]
pub struct Effect {
    /// Counts effects from 1.
    pub number: u64,
    /// The API.
    pub api: &'static str,
    /// The request's number.
    pub request: u64,
    /// The key by which a repeat would be known.
    pub key: Option<String>,
    /// What it is about, where the API says so.
    pub row: Option<String>,
    /// The item as it came; null when it is longer than 16 KiB.
    pub body: Value,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Counts requests from 1.
    pub number: u64,
    /// When it came.
    pub at: String,
    /// The API.
    pub api: &'static str,
    /// What happened to it.
    pub act: Act,
    /// The status of its answer; `None` while there is none and where the connection was cut.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub bytes: usize,
    /// The key that names it.
    pub key: Option<String>,
    /// Items in it.
    pub items: usize,
    /// Items that had an effect.
    pub applied: usize,
    /// Items that were known.
    pub repeated: usize,
    /// Items whose key stood for another body.
    pub conflicts: usize,
}

/// What happened so far, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that came.
    pub requests: u64,
    /// Items that had an effect.
    pub applied: u64,
    /// Items that were known by their key.
    pub repeated: u64,
    /// Items older than their row.
    pub older: u64,
    /// Keys that came with another body.
    pub conflicts: u64,
    /// Items refused for good.
    pub refused: u64,
    /// Requests that something was done to.
    pub faults: u64,
    /// Requests that came within a pause that had been asked for.
    pub within_pause: u64,
}

#[derive(Debug)]
pub(super) struct Book {
    faults: Faults,
    dice: Dice,
    keys: Memory<Digest>,
    in_flight: HashSet<String>,
    rows: Memory<(Option<String>, Digest)>,
    /// Quantities in stock, by whatever names them.
    stock: Memory<Decimal>,
    effects: VecDeque<Effect>,
    requests: VecDeque<Entry>,
    log_max: usize,
    counts: Counts,
    paused_until: Option<tokio::time::Instant>,
}

impl Book {
    pub(super) fn new(settings: Settings) -> Book {
        let Settings { window, keys_max, log_max, faults } = settings;
        Book {
            dice: Dice::new(faults.seed),
            faults,
            keys: Memory::new(Some(window), keys_max),
            in_flight: HashSet::new(),
            rows: Memory::new(None, keys_max),
            stock: Memory::new(None, keys_max),
            effects: VecDeque::new(),
            requests: VecDeque::new(),
            log_max: log_max.max(1),
            counts: Counts::default(),
            paused_until: None,
        }
    }

    pub(super) fn faults(&self) -> Faults {
        self.faults.clone()
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.dice = Dice::new(faults.seed);
        self.faults = faults;
    }

    pub(super) fn queue(&mut self, acts: impl IntoIterator<Item = Act>) {
        let room = NEXT_MAX.saturating_sub(self.faults.next.len());
        self.faults.next.extend(acts.into_iter().take(room));
    }

    pub(super) fn effects(&self) -> Vec<Effect> {
        self.effects.iter().cloned().collect()
    }

    pub(super) fn requests(&self) -> Vec<Entry> {
        self.requests.iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    pub(super) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    /// Everything but the faults.
    pub(super) fn reset(&mut self) {
        self.keys.clear();
        self.rows.clear();
        self.stock.clear();
        self.effects.clear();
        self.requests.clear();
        self.counts = Counts::default();
        self.paused_until = None;
    }

    /// A request came: its number, and what happens to it.
    pub(super) fn enter(&mut self, api: &'static str, bytes: usize) -> (u64, Act) {
        let now = tokio::time::Instant::now();
        let act = self.faults.draw(&mut self.dice);
        self.counts.requests += 1;
        self.counts.faults += u64::from(act != Act::Serve);
        self.counts.within_pause += u64::from(self.paused_until.is_some_and(|until| now < until));
        if let Act::Status429(wait) | Act::Status429Date(wait) = act {
            self.paused_until = Some(now + wait);
        }
        let number = self.counts.requests;
        if self.requests.len() == self.log_max {
            self.requests.pop_front();
        }
        let at = jiff::Timestamp::now().to_string();
        let entry = Entry { number, at, api, act, status: None, bytes, key: None, items: 0, applied: 0, repeated: 0, conflicts: 0 };
        self.requests.push_back(entry);
        (number, act)
    }

    /// Notes in the log what became of a request.
    pub(super) fn note(&mut self, number: u64, note: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.requests.iter_mut().rev().find(|e| e.number == number) {
            note(entry);
        }
    }

    /// Takes the keys of a request that is worked on; false when another request with one of them is. Targets that keep the first one in silence
    /// do not look.
    pub(super) fn begin(&mut self, api: &'static str, wish: &Wish) -> bool {
        if wish.known == Known::FirstCounts {
            return true;
        }
        let names: Vec<String> = names(api, wish).collect();
        if names.iter().any(|name| self.in_flight.contains(name)) {
            return false;
        }
        self.in_flight.extend(names);
        true
    }

    /// Gives the keys back.
    pub(super) fn end(&mut self, api: &'static str, wish: &Wish) {
        if wish.known == Known::FirstCounts {
            return;
        }
        for name in names(api, wish) {
            self.in_flight.remove(&name);
        }
    }

    /// Does what can be done, and says what became of each part.
    pub(super) fn apply(&mut self, api: &'static str, request: u64, wish: &Wish, partial: bool) -> Vec<Fate> {
        let named = wish.key.as_ref().map(|key| name(api, key));
        let before = named.as_ref().and_then(|name| self.keys.get(name).copied());
        let fates: Vec<Fate> = match before {
            Some(known) if known == wish.digest => wish.parts.iter().map(|_| Fate::Repeated).collect(),
            Some(_) => wish.parts.iter().map(|_| Fate::Conflict).collect(),
            None => self.judge(api, wish, partial),
        };
        let works = |fate: &Fate| matches!(fate, Fate::Applied | Fate::Repeated | Fate::Older);
        let whole = fates.iter().all(works);
        if let (Some(name), None, true) = (named, before, whole) {
            self.keys.put(name, wish.digest);
        }
        let withheld = wish.atomic && !whole;
        let fates: Vec<Fate> = fates.into_iter().map(|f| if withheld && works(&f) { Fate::Withheld } else { f }).collect();
        for (part, fate) in wish.parts.iter().zip(&fates) {
            match fate {
                Fate::Applied => self.take_effect(api, request, wish, part),
                Fate::Repeated => self.counts.repeated += 1,
                Fate::Older => self.counts.older += 1,
                Fate::Conflict => self.counts.conflicts += 1,
                Fate::Refused => self.counts.refused += 1,
                Fate::Failed | Fate::Withheld => {}
            }
        }
        let count = |wanted: Fate| fates.iter().filter(|f| **f == wanted).count();
        self.note(request, |entry| {
            entry.key.clone_from(&wish.key);
            entry.items = wish.parts.len();
            (entry.applied, entry.repeated, entry.conflicts) = (count(Fate::Applied), count(Fate::Repeated), count(Fate::Conflict));
        });
        fates
    }

    /// What would become of the parts, each for itself. Two parts with one key are the first one and its repeat.
    fn judge(&mut self, api: &'static str, wish: &Wish, partial: bool) -> Vec<Fate> {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut fates = Vec::with_capacity(wish.parts.len());
        for (n, part) in wish.parts.iter().enumerate() {
            let text = part.body.to_string();
            let known = part.key.as_ref().and_then(|key| self.keys.get(&name(api, key)).copied());
            fates.push(if let Some(known) = known {
                match wish.known {
                    Known::Refused => Fate::Conflict,
                    Known::Compared if known != digest(text.as_bytes()) => Fate::Conflict,
                    Known::Compared | Known::FirstCounts => Fate::Repeated,
                }
            } else if part.key.as_ref().is_some_and(|key| !seen.insert(key)) {
                if wish.known == Known::Refused { Fate::Conflict } else { Fate::Repeated }
            } else if self.faults.refuse.iter().any(|word| text.contains(word.as_str())) {
                Fate::Refused
            } else if partial && (n % 2 == 1 || wish.parts.len() == 1) {
                Fate::Failed
            } else {
                self.judge_row(api, part, &text)
            });
        }
        fates
    }

    fn judge_row(&mut self, api: &'static str, part: &Part, text: &str) -> Fate {
        let (Some(row), Some(version)) = (&part.row, &part.state) else { return Fate::Applied };
        match (self.rows.get(&name(api, row)), version) {
            (Some((Some(before), _)), Some(version)) if before == version => Fate::Repeated,
            (Some((Some(before), _)), Some(version)) if before > version => Fate::Older,
            // Without versions the last one to come counts, and the same once more changes nothing.
            (Some((_, before)), None) if *before == digest(text.as_bytes()) => Fate::Repeated,
            _ => Fate::Applied,
        }
    }

    fn take_effect(&mut self, api: &'static str, request: u64, wish: &Wish, part: &Part) {
        let text = part.body.to_string();
        // Two versions of a row in one request were judged by what stood before them.
        if self.judge_row(api, part, &text) != Fate::Applied {
            self.counts.older += 1;
            return;
        }
        if let Some(key) = &part.key {
            self.keys.put(name(api, key), digest(text.as_bytes()));
        }
        if let (Some(row), Some(version)) = (&part.row, &part.state) {
            self.rows.put(name(api, row), (version.clone(), digest(text.as_bytes())));
        }
        self.counts.applied += 1;
        if self.effects.len() == self.log_max {
            self.effects.pop_front();
        }
        self.effects.push_back(Effect {
            number: self.counts.applied,
            api,
            request,
            key: part.key.clone().or_else(|| wish.key.clone()),
            row: part.row.clone(),
            body: if text.len() <= BODY_MAX { part.body.clone() } else { Value::Null },
        });
    }

    /// Changes what is in stock and answers the new quantity.
    pub(super) fn change_stock(&mut self, name: &str, change: impl FnOnce(Decimal) -> Decimal) -> Decimal {
        let quantity = change(self.stock.get(name).copied().unwrap_or_default());
        self.stock.put(name.to_owned(), quantity);
        quantity
    }
}

fn name(api: &str, key: &str) -> String {
    format!("{api} {key}")
}

fn names<'a>(api: &'static str, wish: &'a Wish) -> impl Iterator<Item = String> + 'a {
    wish.key.iter().chain(wish.parts.iter().filter_map(|p| p.key.as_ref())).map(move |key| name(api, key))
}

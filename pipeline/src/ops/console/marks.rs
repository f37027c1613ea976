//! What stands on the lines over time, so that a bend in them has a name: the start of the process, files taken over, peaks, troubles.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::Admin;
use super::ages::WINDOWS;
use crate::control::now_ms;
use crate::ops::apply::Running;

/// Changes of files that are kept.
const CHANGES_MAX: usize = 128;

/// What a mark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The process began: perhaps another version.
    Start,
    /// A connector took over another file.
    Config,
    /// The point of sale is busy, as the configuration says.
    Peak,
    /// Something was not as it should be.
    Incident,
}

impl Kind {
    /// All of them, with the letter on the line and the word.
    pub(super) const ALL: [(Kind, &'static str, &'static str); 4] = [
        (Kind::Start, "S", "start of the process"),
        (Kind::Config, "C", "other file"),
        (Kind::Peak, "P", "peak"),
        (Kind::Incident, "I", "incident"),
    ];

    pub(super) fn letter(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, letter, _)| letter)
    }

    pub(super) fn word(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(.., word)| word)
    }
}

/// A moment or a stretch of time with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mark {
    /// What it is about.
    pub(super) kind: Kind,
    /// When, or since when, milliseconds since the Unix epoch.
    pub(super) at_ms: i64,
    /// Until when; `None` of a moment, and while it lasts.
    pub(super) until_ms: Option<i64>,
    /// It lasts.
    pub(super) open: bool,
    /// The connector that it is about; `None` of what concerns all.
    pub(super) connector: Option<String>,
    /// In words, without values.
    pub(super) what: String,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of each connector the hash of its file.
    hashes: BTreeMap<String, String>,
    changes: VecDeque<Mark>,
}

/// Files that were taken over since the process began.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<Seen>);

impl Files {
    /// Looks what every connector runs by.
    pub(super) fn look(&self, running: &[Running]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for now in running {
            let Some(before) = seen.hashes.insert(now.name.clone(), now.hash.clone()).filter(|before| *before != now.hash) else {
                continue;
            };
            if seen.changes.len() == CHANGES_MAX {
                seen.changes.pop_front();
            }
            seen.changes.push_back(Mark {
                kind: Kind::Config,
                at_ms: now.since_ms,
                until_ms: None,
                open: false,
                connector: Some(now.name.clone()),
                what: format!("connector {}: file {} instead of {before}", now.name, now.hash),
            });
        }
    }

    fn all(&self) -> Vec<Mark> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).changes.iter().cloned().collect()
    }
}

/// When the process began, milliseconds since the Unix epoch.
pub(super) fn began_ms(admin: &Admin) -> i64 {
    now_ms() - i64::try_from(admin.observer.started.elapsed().as_millis()).unwrap_or(0)
}

/// Everything of the last week, oldest first.
pub(super) fn all(admin: &Admin) -> Vec<Mark> {
    let now = now_ms();
    let from = now - WINDOWS[2].span_ms();
    let mut marks = admin.console.files.all();
    marks.push(Mark {
        kind: Kind::Start,
        at_ms: began_ms(admin),
        until_ms: None,
        open: false,
        connector: None,
        what: format!("this process began, version {}", env!("CARGO_PKG_VERSION")),
    });
    let moment = |ms| jiff::Timestamp::from_millisecond(ms).ok();
    if let (Some(peak), Some(from), Some(to)) = (&admin.observer.observed.peak, moment(from), moment(now)) {
        marks.extend(peak.between(from, to).into_iter().map(|(from, to)| Mark {
            kind: Kind::Peak,
            at_ms: from.as_millisecond(),
            until_ms: Some(to.as_millisecond()),
            open: to.as_millisecond() == now,
            connector: None,
            what: "peak, as `protect.peak` has it".to_owned(),
        }));
    }
    marks.extend(admin.observer.troubles().into_iter().map(|trouble| Mark {
        kind: Kind::Incident,
        at_ms: trouble.since_ms,
        until_ms: trouble.until_ms,
        open: trouble.until_ms.is_none(),
        connector: trouble.of.strip_prefix("connector ").map(str::to_owned),
        what: format!("{} {}: {}", trouble.of, trouble.state.as_str(), trouble.why),
    }));
    marks.retain(|mark| mark.open || mark.until_ms.unwrap_or(mark.at_ms) >= from);
    marks.sort_by_key(|mark| mark.at_ms);
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_marked_once() {
        let files = Files::default();
        let running = |hash: &str, since_ms| {
            vec![Running {
                name: "crm".to_owned(),
                kind: "http".to_owned(),
                idempotency: "key",
                hash: hash.to_owned(),
                since_ms,
                text: String::new(),
                before: None,
            }]
        };
        for (hash, at) in [("a", 1), ("a", 1), ("b", 5), ("b", 5), ("a", 9)] {
            files.look(&running(hash, at));
        }
        let told: Vec<_> = files.all().into_iter().map(|mark| (mark.at_ms, mark.what)).collect();
        assert_eq!(told, [(5, "connector crm: file b instead of a".to_owned()), (9, "connector crm: file a instead of b".to_owned())]);
    }
}

//! How long the initial load of a run that is to end by itself tries what fails: pure.
//!
//! A service tries for ever, because somebody may mend it meanwhile. A job has to end, or its next start never comes.

use std::time::{Duration, Instant};

use super::stats::{TableProgress, TableState};

/// What a table fails with that may come right without anybody.
const PASSING: [&str; 2] = ["backfill.query_failed", "backfill.too_slow"];

/// After so long of nothing else what may come right is believed not to: as long as a job waits for a server at its start.
const PASSES_WITHIN: Duration = Duration::from_secs(60);

/// What keeps the rest of a load from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Stable code.
    pub(super) code: String,
    /// What, without values.
    pub(super) message: String,
    /// Whether it may come right without anybody.
    passes: bool,
}

impl Trouble {
    /// The server that is read from is away.
    pub(super) fn away(code: &str, message: String) -> Trouble {
        Trouble { code: code.to_owned(), message, passes: true }
    }

    /// Something is not as reading needs it.
    pub(super) fn wrong(code: &str, message: String) -> Trouble {
        Trouble { code: code.to_owned(), message, passes: PASSING.contains(&code) }
    }
}

/// What the failing tables tell.
pub(super) fn of(tables: &[TableProgress]) -> Vec<Trouble> {
    let failing = tables.iter().filter(|t| t.state == TableState::Failing);
    let told = |t: &TableProgress| {
        Trouble::wrong(t.code.as_deref().unwrap_or_default(), format!("{}: {}", t.table, t.message.as_deref().unwrap_or_default()))
    };
    failing.map(told).collect()
}

/// Since when rounds read nothing and fail.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
}

impl Patience {
    /// Takes what a round came to: what fails, and whether it read anything. Answers the failure to end with once everything else is read:
    /// one that lasts is looked at twice, one that may pass for a minute.
    pub(super) fn ends_with(&mut self, troubles: &[Trouble], read: bool, now: Instant) -> Option<Trouble> {
        let Some(first) = troubles.iter().find(|t| !t.passes).or(troubles.first()) else {
            self.since = None;
            return None;
        };
        let Some(since) = self.since.filter(|_| !read) else {
            self.since = Some(now);
            return None;
        };
        if troubles.iter().any(|t| t.passes) && now - since < PASSES_WITHIN {
            return None;
        }
        let more = match troubles.len() - 1 {
            0 => String::new(),
            1 => " (and another table)".to_owned(),
            n => format!(" (and {n} other tables)"),
        };
        Some(Trouble { message: format!("{}{more}", first.message), ..first.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(table: &str, code: &str) -> Trouble {
        Trouble::wrong(code, format!("public.{table}: no"))
    }

    #[test]
    fn what_lasts_is_looked_at_twice_and_what_may_pass_for_a_minute() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let denied = [trouble("a", "backfill.no_permission")];
        let mut patience = Patience::default();
        assert_eq!(patience.ends_with(&denied, true, now), None, "the first look");
        assert_eq!(patience.ends_with(&denied, true, after(1)), None, "something else was read");
        assert_eq!(patience.ends_with(&denied, false, after(2)), Some(denied[0].clone()));

        let mixed = [trouble("b", "backfill.query_failed"), trouble("a", "backfill.no_permission")];
        let mut patience = Patience::default();
        assert_eq!(patience.ends_with(&mixed, false, now), None);
        assert_eq!(patience.ends_with(&mixed, false, after(59)), None, "one of them may pass");
        let ended = patience.ends_with(&mixed, false, after(60)).expect("a minute is enough");
        assert_eq!((ended.code.as_str(), ended.message.as_str()), ("backfill.no_permission", "public.a: no (and another table)"));

        // A round that nothing is told of begins it anew.
        assert_eq!(patience.ends_with(&[], false, after(61)), None);
        assert_eq!(patience.ends_with(&denied, false, after(62)), None);
    }
}

//! From facts to findings. Pure: each rule looks at the facts and says fail, warn, note or fine.

use super::facts::Facts;
use super::finding::{Finding, Severity, Unchecked};
use crate::capture::catalog::identifier;
use crate::config;

mod access;
mod load;
mod publication;
mod server;
mod slots;
mod tables;

/// What the rules found.
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, id: &'static str, what: impl Into<String>, impact: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding::bad(severity, id, what, impact, fix));
    }

    fn fail(&mut self, id: &'static str, what: impl Into<String>, impact: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Fail, id, what, impact, fix);
    }

    fn warn(&mut self, id: &'static str, what: impl Into<String>, impact: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Warn, id, what, impact, fix);
    }

    fn note(&mut self, id: &'static str, what: impl Into<String>, impact: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Note, id, what, impact, fix);
    }

    fn ok(&mut self, id: &'static str, what: impl Into<String>) {
        self.0.push(Finding::ok(id, what));
    }
}

/// All findings about the source.
#[must_use]
pub fn judge(source: &config::Source, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    tables::judge(&mut found, facts);
    server::judge(&mut found, source, facts);
    publication::judge(&mut found, source, facts);
    slots::judge(&mut found, source, facts);
    load::judge(&mut found, facts);
    access::judge(&mut found, source, facts);
    found.0
}

/// What this login cannot see, and what no login can.
pub(super) fn unchecked(facts: &Facts) -> Vec<Unchecked> {
    let mut left = facts.unread.clone();
    if facts.state.as_ref().is_some_and(|s| !s.sees_activity) {
        let why = format!("hidden from this role; GRANT pg_read_all_stats TO {}; shows them", identifier(&facts.server.user));
        left.push(Unchecked::new("long transactions of other roles", why));
    }
    left.push(Unchecked::new(
        "free disk of the server",
        "SQL does not tell it; compare max_slot_wal_keep_size with what its volume has left",
    ));
    if facts.server.major() >= 17 && facts.standbys() > 0 {
        left.push(Unchecked::new("sync_replication_slots and hot_standby_feedback of the standbys", "only they tell; both have to be on"));
    }
    left
}

#[cfg(test)]
mod tests;

//! The text for a change ticket: what is changed, what it risks, how long it takes, how it is taken back and what to watch. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use crate::capture::catalog::{PublicationFacts, identity_warning};
use crate::config::{self, units};

use super::facts::Facts;
use super::plan::Plan;
use super::title;

/// Writes the ticket for a plan. The first line is the title.
#[must_use]
pub fn ticket(source: &config::Source, pipeline: &str, facts: &Facts, plan: &Plan) -> String {
    let mut out = format!("Prepare change capture. {}\n", title(source, pipeline, facts));
    let mut section = |name: &str, lines: &[String]| {
        let _ = write!(out, "\n{name}\n");
        for line in lines {
            let _ = writeln!(out, "- {line}");
        }
    };
    section("What changes", &changes(source, facts, plan));
    section("Restart", &[restart(facts)]);
    section("Duration", &duration(facts));
    section("Risk", &risks(source, facts));
    section(
        "Not affected",
        &[
            "No table, row, index or function is changed; no trigger is made.".to_owned(),
            "Readers and writers are not blocked: a publication takes SHARE UPDATE EXCLUSIVE on its tables for a moment, which only waits for maintenance (VACUUM, CREATE INDEX, ALTER TABLE).".to_owned(),
        ],
    );
    section(
        "Rollback",
        &[
            "End the pipeline, then run the file of `tillstream setup --rollback-script FILE`, written before the change: seconds, no restart. The catalogue is then as it was.".to_owned(),
            format!("In an emergency one statement frees the WAL: SELECT pg_drop_replication_slot('{}');", source.slot),
            "What has been delivered stays where it is.".to_owned(),
        ],
    );
    section(
        "Monitoring",
        &[
            "`tillstream slot show` (retained WAL, acknowledgement age, time to the ceiling), daily in the first week".to_owned(),
            "Alerts TillstreamWalCeilingSoon, TillstreamAckStalled and TillstreamDown (docker/prometheus), or without our tools: SELECT slot_name, wal_status, safe_wal_size, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) FROM pg_replication_slots;".to_owned(),
            "`tillstream doctor` before, after, and whenever tables change".to_owned(),
        ],
    );
    section(
        "Success",
        &["`tillstream doctor` finds nothing that fails; `tillstream status` says healthy; the slot's retained WAL stays below 100 MiB in normal operation".to_owned()],
    );
    out
}

fn changes(source: &config::Source, facts: &Facts, plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for role in [&facts.stream, &facts.backfill] {
        if !role.exists {
            lines.push(format!("New role {}", role.name));
        }
    }
    let count = |word: &str| plan.statements().filter(|(_, s)| s.0.contains(word)).count();
    match (&facts.publication, count("ADD TABLE")) {
        (None, _) => lines.push(format!("New publication {} of {}", source.publication, tables(facts.tables.len()))),
        (Some(_), 0) => {}
        (Some(_), n) => lines.push(format!("{} more in publication {}", tables(n), source.publication)),
    }
    let grants = count("GRANT SELECT (");
    if grants > 0 {
        lines.push(format!("SELECT on columns of {} for {}", tables(grants), facts.backfill.name));
    }
    if facts.slot.is_none() {
        lines.push(format!("New logical replication slot {}", source.slot));
    }
    if lines.is_empty() {
        lines.push("Nothing: everything is in place".to_owned());
    }
    lines
}

fn tables(n: usize) -> String {
    if n == 1 { "1 table".to_owned() } else { format!("{n} tables") }
}

fn restart(facts: &Facts) -> String {
    if facts.server.wal_level == "logical" {
        "None.".to_owned()
    } else {
        format!("Needed once, for wal_level: {}", facts.provider.logical_wal())
    }
}

fn duration(facts: &Facts) -> Vec<String> {
    let mut lines = vec!["Seconds for roles, grants and publication.".to_owned()];
    lines.push(match &facts.oldest {
        Some(oldest) => format!(
            "Creating the slot waits for the transactions that are open then. Now the oldest has been open for {} (process {}{}).",
            units::show_duration(Duration::from_secs_f64(oldest.seconds.max(0.0))),
            oldest.pid,
            if oldest.who.is_empty() { String::new() } else { format!(", {}", oldest.who) },
        ),
        None => "Creating the slot waits for the transactions that are open then; now none is.".to_owned(),
    });
    lines
}

fn risks(source: &config::Source, facts: &Facts) -> Vec<String> {
    let mut lines = vec![match facts.slot_keep_mb {
        -1 => "WAL is kept without limit while the pipeline stands still; with a full disk the point of sale stops. Set max_slot_wal_keep_size first.".to_owned(),
        mb => format!("While the pipeline stands still up to {mb} MB of WAL are kept; beyond that the slot is lost and the tables are loaded again. The point of sale is not affected."),
    }];
    let whole = PublicationFacts { update: true, delete: true, ..PublicationFacts::default() };
    for table in &facts.tables {
        if let Some(risk) = identity_warning(table, &whole) {
            let then = if table.rewrites > 0 { "left out of this change" } else { "included, because it is only appended to" };
            lines.push(format!("{}: {}. It is {then}.", risk.what, risk.why));
        }
    }
    lines.push(format!("Role {} may read every change that WAL holds. Its password belongs in the vault.", facts.stream.name));
    lines.push(format!(
        "The first load reads {} in chunks, no statement longer than 30 s and none that waits longer than 2 s for a lock; `protect:` holds the peak hours.",
        tables(source.tables.len())
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, source};
    use super::super::{Options, plan};
    use super::*;

    #[test]
    fn a_ticket_names_risk_duration_rollback_and_monitoring() {
        let mut facts = facts(150_018);
        facts.oldest = Some(super::super::facts::Oldest { pid: 9121, who: "nightly_report".to_owned(), seconds: 15_120.0 });
        let made = plan::plan(&source(), "demo", &facts, &Options::default()).expect("a plan");
        let text = ticket(&source(), "demo", &facts, &made);
        for part in [
            "What changes",
            "Restart\n- None.",
            "4 h 12 m (process 9121, nightly_report)",
            "Risk",
            "public.queue",
            "Rollback",
            "Monitoring",
            "slot show",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"));
    }
}

//! Our slot, and those of others: each can make the server keep WAL until its disk is full.

use super::{Facts, Findings};
use crate::capture::catalog::{literal, sql};
use crate::capture::stats::Pressure;
use crate::config::{self, units};
use crate::ops::doctor::facts::SlotState;
use crate::ops::doctor::finding::Severity;

/// An idle slot that keeps less than this is an ordinary pause.
const IDLE_KEEPS: u64 = 64 << 20;

/// Transactions that a slot may keep vacuum from cleaning up before tables visibly bloat.
const HORIZON_OLD: i64 = 10_000_000;

pub(super) fn judge(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let Some(slots) = &facts.slots else { return };
    ours(found, source, facts);
    others(found, source, slots);
}

fn ours(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let create = sql::create_slot(&source.slot, facts.server.major());
    let anew = format!("{} {create}", sql::drop_slot(&source.slot));
    let Some(state) = facts.slot(&source.slot) else {
        return found.fail(
            "capture.slot_missing",
            format!("slot \"{}\" does not exist", source.slot),
            "nothing is kept for the pipeline; changes made meanwhile are missed",
            create,
        );
    };
    let slot = &state.slot;
    if let Some(evidence) = slot.lost() {
        return found.fail(
            "capture.slot_lost",
            format!("slot \"{}\" was invalidated: {evidence}", source.slot),
            "what was committed since cannot be streamed any more; it has to be loaded",
            anew,
        );
    }
    let strange = match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(database)) if database == facts.server.database => None,
        (Some("pgoutput"), database) => Some(format!("it belongs to database \"{}\"", database.unwrap_or_default())),
        (plugin, _) => Some(format!("its plugin is {}", plugin.unwrap_or("none: it is a physical slot"))),
    };
    if let Some(evidence) = strange {
        return found.fail(
            "capture.slot_unusable",
            format!("slot \"{}\" cannot be used: {evidence}", source.slot),
            "the pipeline does not start",
            format!("name another slot in source.slot, or take this one: {anew}"),
        );
    }
    match slot.active_pid {
        Some(_) if state.reader == facts.ours => found.ok("capture.slot_active", "this pipeline streams from the slot"),
        Some(pid) => found.warn(
            "capture.slot_active",
            format!(
                "slot \"{}\" is taken by pid {pid} ({})",
                source.slot,
                if state.reader.is_empty() { "hidden from this role" } else { &state.reader }
            ),
            "this pipeline waits for it as a standby",
            "nothing, if that is meant; else end the other process",
        ),
        None => found.ok("capture.slot_active", "the slot is free"),
    }
    super::server::failover(found, facts, slot);
    spilled(found, facts, state);
    kept(found, source, facts, state);
}

/// What is kept against what may be: the same ids as the watch of a running pipeline.
fn kept(found: &mut Findings, source: &config::Source, facts: &Facts, state: &SlotState) {
    let limit = facts.number("max_slot_wal_keep_size").and_then(|mb| u64::try_from(mb).ok()).filter(|mb| *mb > 0).map(|mb| mb << 20);
    let ceiling = source.wal_budget.min(limit.unwrap_or(u64::MAX));
    let retained = state.retained_bytes.unwrap_or(0);
    let status = state.slot.wal_status.as_deref().unwrap_or_default();
    let kept = format!("slot \"{}\" keeps {} of WAL, {} may be", source.slot, units::show_size(retained), units::show_size(ceiling));
    let left = facts.wal_rate().filter(|rate| *rate >= 1.0).map(|rate| ceiling.saturating_sub(retained) as f64 / rate);
    let left = left.map_or_else(String::new, |s| {
        format!("; {} to go at the average rate, less at peak", units::show_duration(std::time::Duration::from_secs(s as u64)))
    });
    let pressure = Pressure::of(retained, ceiling, status);
    if pressure == Pressure::Calm {
        found.ok("capture.wal_warn", kept);
    } else {
        let severity = if pressure == Pressure::Warn { Severity::Warn } else { Severity::Fail };
        found.add(
            severity,
            pressure.code(),
            format!("{kept}{left}"),
            "at the ceiling the slot is lost, or the disk of the point of sale fills",
            "let the pipeline catch up: start it, or see by `tillstream status` what holds it; or raise max_slot_wal_keep_size",
        );
    }
    match status {
        "extended" | "unreserved" => found.add(
            if status == "unreserved" { Severity::Fail } else { Severity::Warn },
            "capture.slot_in_danger",
            format!("slot \"{}\" is {status}, keeps {}", source.slot, units::show_size(retained)),
            "the server will remove WAL that the pipeline still needs",
            "let the pipeline catch up, or raise max_slot_wal_keep_size",
        ),
        _ => found.ok("capture.slot_in_danger", format!("slot \"{}\" is sound", source.slot)),
    }
}

/// Whether large transactions take the way over the server's disk.
fn spilled(found: &mut Findings, facts: &Facts, state: &SlotState) {
    let memory = facts.number("logical_decoding_work_mem").and_then(|kib| u64::try_from(kib).ok());
    let memory = memory.map_or_else(|| "?".to_owned(), |kib| units::show_size(kib << 10));
    match state.spilled {
        Some((transactions @ 1.., bytes, all)) => found.warn(
            "capture.decoding_spills",
            format!(
                "the server wrote {transactions} of {all} transactions to its disk while decoding, {} in all; logical_decoding_work_mem = {memory}",
                units::show_size(bytes.unsigned_abs())
            ),
            "a transaction that does not fit is written and read once more at its commit, and comes later for it",
            format!("{} or set source.streaming: on", facts.provider.set("logical_decoding_work_mem", "256MB")),
        ),
        _ => found.ok("capture.decoding_spills", format!("what is decoded fits logical_decoding_work_mem ({memory})")),
    }
}

fn others(found: &mut Findings, source: &config::Source, slots: &[SlotState]) {
    let (mut idle, mut old) = (0, 0);
    for state in slots {
        let (slot, mine) = (&state.slot, state.slot.slot_name == source.slot);
        let name = literal(&slot.slot_name);
        let retained = state.retained_bytes.unwrap_or(0);
        if !mine && slot.lost().is_some() {
            found.warn(
                "capture.other_slot_lost",
                format!("slot {name} ({}) was invalidated: {}", slot.slot_type, slot.lost().unwrap_or_default()),
                "whoever read from it gets nothing any more; it still takes one of max_replication_slots",
                format!("ask whose it is, then {}", sql::drop_slot(&slot.slot_name)),
            );
            continue;
        }
        if !mine && !slot.active && retained >= IDLE_KEEPS {
            idle += 1;
            let since = state
                .idle_seconds
                .map_or_else(String::new, |s| format!(" for {}", units::show_duration(std::time::Duration::from_secs(s.max(0.0) as u64))));
            found.warn(
                "capture.other_slot_idle",
                format!("nobody reads from slot {name} ({}){since}, and it keeps {} of WAL", slot.slot_type, units::show_size(retained)),
                "it fills the disk of the point of sale, or is lost at max_slot_wal_keep_size, whosever it is",
                format!("start its reader; if nobody needs it any more, {}", sql::drop_slot(&slot.slot_name)),
            );
        }
        if let Some(age) = state.horizon.filter(|age| *age > HORIZON_OLD) {
            old += 1;
            found.warn(
                "capture.horizon_old",
                format!("slot {name} keeps vacuum from rows that are {age} transactions old"),
                "tables or catalogues of the point of sale bloat, and every query on them gets slower",
                "let its reader catch up; see capture.long_transaction for a transaction that holds it",
            );
        }
    }
    if idle == 0 {
        found.ok("capture.other_slot_idle", "no slot of others keeps WAL for nobody");
    }
    if old == 0 {
        found.ok("capture.horizon_old", "no slot keeps vacuum from its work");
    }
}

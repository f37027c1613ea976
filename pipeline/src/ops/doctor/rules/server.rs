//! Version and settings of the server, its standbys, its text and its clock.

use jiff::tz::TimeZone;

use super::{Facts, Findings};
use crate::capture::catalog::{SlotFacts, literal, sql};
use crate::capture::wire::{ORIGIN_MAJOR, origin_unsupported};
use crate::config::{self, units};
use crate::ops::doctor::finding::{Finding, Severity};
use crate::ops::doctor::versions::{self, FIRST_MAJOR, LAST_MAJOR};

/// An end of support that is nearer than this is worth planning for.
const ENDS_SOON_DAYS: i32 = 120;

/// A slower clock than this makes lags look wrong by as much.
const CLOCK_OFFSET_MAX: f64 = 2.0;

/// Below this, changes that are a few thousand rows at once already go over the server's disk.
const DECODING_MEMORY_MIN_KIB: i64 = 16 << 10;

/// A pause of our host that is no fault (a snapshot of a virtual machine) may last this long.
const SENDER_TIMEOUT_MIN_MS: i64 = 10_000;

pub(super) fn judge(found: &mut Findings, source: &config::Source, facts: &Facts) {
    version(found, facts);
    provider(found, facts);
    wal_level(found, facts);
    wal_limits(found, source, facts);
    timeouts(found, facts);
    head_room(found, source, facts);
    durability(found, facts);
    origin(found, source, facts);
    standby(found, facts);
    text_and_clock(found, facts);
}

fn version(found: &mut Findings, facts: &Facts) {
    let server = &facts.server;
    let known = versions::find(server.major());
    let corrected = known.map_or(0, |v| v.corrected);
    if server.major() < FIRST_MAJOR {
        let what = format!("PostgreSQL {}", server.version);
        found.fail("capture.version_unsupported", what, "nothing can be captured", format!("upgrade to {FIRST_MAJOR} or newer"));
    } else if server.version_num < corrected {
        found.fail(
            "capture.version_minor",
            format!("PostgreSQL {} lacks the correction of {}.{}", server.version, corrected / 10_000, corrected % 10_000),
            "DDL beside an open transaction can lose that transaction's changes, silently",
            "install the minor update",
        );
    } else if server.major() > LAST_MAJOR {
        found.warn(
            "capture.version_untested",
            format!("PostgreSQL {} is newer than what Tillstream is tested with ({LAST_MAJOR})", server.version),
            "it probably works",
            "try it beside production first",
        );
    } else {
        let brings = known.map_or_else(String::new, |v| format!(": {}; {}", v.brings, v.beware));
        found.ok("capture.version_unsupported", format!("PostgreSQL {}{brings}", server.version));
    }
    let Some(known) = known else { return };
    let today = facts.at.to_zoned(TimeZone::UTC).date();
    let left = (known.ends - today).get_days();
    let ends = format!("PostgreSQL {} gets no corrections after {}", known.major, known.ends);
    let fix = "upgrade to a newer major version; before 17 an upgrade loses the slot, so plan an epoch";
    if left < 0 {
        found.warn("capture.version_ends", ends, "faults that are found from now on stay, and nobody else will mend them", fix);
    } else if left < ENDS_SOON_DAYS {
        found.note("capture.version_ends", ends, "none yet", fix);
    } else {
        found.ok("capture.version_ends", ends);
    }
}

fn provider(found: &mut Findings, facts: &Facts) {
    match facts.provider.trap() {
        Some(trap) => found.note("capture.provider", format!("the server is on {}", facts.provider.name()), trap, ""),
        None => found.ok("capture.provider", format!("the server is {}", facts.provider.name())),
    }
}

fn wal_level(found: &mut Findings, facts: &Facts) {
    let level = &facts.server.wal_level;
    let pending = |name: &str| facts.settings.get(name).is_some_and(|s| s.pending);
    if level == "logical" {
        found.ok("capture.wal_level", "wal_level = logical");
    } else {
        let fix = if pending("wal_level") { "restart the server: the new value waits for it" } else { facts.provider.logical_wal() };
        found.fail("capture.wal_level", format!("wal_level = {level}"), "changes cannot be decoded from what the server writes", fix);
    }
    let mut waiting: Vec<&str> = facts.settings.iter().filter(|(_, s)| s.pending).map(|(name, _)| name.as_str()).collect();
    waiting.sort_unstable();
    if waiting.is_empty() {
        found.ok("capture.restart_pending", "no setting waits for a restart");
    } else {
        found.warn(
            "capture.restart_pending",
            format!("settings that wait for a restart: {}", waiting.join(", ")),
            "the server works otherwise than its files say, until a restart that somebody else may choose",
            "restart the server in a quiet hour, or take the change back",
        );
    }
}

fn wal_limits(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let fix = facts.provider.set("max_slot_wal_keep_size", "20GB");
    // The average hides the peak, so that times are said to be at most what they are.
    let rate = facts.wal_rate().map(|rate| format!("{} of WAL an hour on average", units::show_size((rate * 3600.0) as u64)));
    match facts.number("max_slot_wal_keep_size") {
        Some(-1) => found.warn(
            "capture.wal_unlimited",
            "max_slot_wal_keep_size = -1 (no limit)",
            format!(
                "a pipeline that stands still makes the server keep WAL{} until the disk is full, and then the point of sale stops",
                rate.map_or_else(String::new, |r| format!(" ({r})"))
            ),
            fix,
        ),
        Some(0) => found.fail(
            "capture.wal_none_kept",
            "max_slot_wal_keep_size = 0",
            "the slot is lost at the first checkpoint at which the pipeline is behind",
            fix,
        ),
        Some(mb @ 1..1024) => found.warn(
            "capture.wal_little_kept",
            format!("max_slot_wal_keep_size = {mb} MB"),
            format!("a pause of minutes at peak can lose the slot{}", rate.map_or_else(String::new, |r| format!("; {r}"))),
            fix,
        ),
        Some(mb) => {
            let bytes = u64::try_from(mb).unwrap_or(0) << 20;
            let hours = facts.wal_rate().map(|rate| bytes as f64 / rate.max(1.0) / 3600.0);
            match hours {
                Some(hours) if hours < 8.0 => found.warn(
                    "capture.wal_little_kept",
                    format!("max_slot_wal_keep_size = {mb} MB, {}", rate.unwrap_or_default()),
                    format!("a pipeline that stands still for {hours:.1} h loses its slot, sooner at peak: not one night"),
                    facts.provider.set("max_slot_wal_keep_size", &format!("{}GB", ((bytes * 4) >> 30).max(20))),
                ),
                _ => found.ok("capture.wal_unlimited", format!("max_slot_wal_keep_size = {mb} MB")),
            }
            if bytes < source.wal_budget {
                found.note(
                    "capture.wal_budget_above_limit",
                    format!("source.wal_budget is {}, the server keeps {mb} MB", units::show_size(source.wal_budget)),
                    "the lower of both counts: warnings come by the server's limit",
                    "nothing, or raise max_slot_wal_keep_size",
                );
            }
        }
        None => {}
    }
    match facts.number("idle_replication_slot_timeout") {
        Some(seconds @ 1..86_400) => found.warn(
            "capture.idle_timeout",
            format!("idle_replication_slot_timeout = {seconds} s"),
            "a planned stop of the pipeline that lasts longer loses the slot",
            facts.provider.set("idle_replication_slot_timeout", "3d"),
        ),
        Some(_) => found.ok("capture.idle_timeout", "an idle slot is kept for at least a day"),
        None => {}
    }
}

fn timeouts(found: &mut Findings, facts: &Facts) {
    let fix = facts.provider.set("wal_sender_timeout", "60s");
    match facts.number("wal_sender_timeout") {
        Some(0) => found.warn(
            "capture.no_sender_timeout",
            "wal_sender_timeout = 0",
            "after our host dies the slot stays taken for ever, and no successor can have it",
            fix,
        ),
        Some(ms) if ms < SENDER_TIMEOUT_MIN_MS => found.warn(
            "capture.sender_timeout_short",
            format!("wal_sender_timeout = {ms} ms"),
            "a short pause of our host or the network ends the stream, and begins it anew each time",
            fix,
        ),
        Some(_) => found.ok("capture.no_sender_timeout", "a dead reader loses the slot after wal_sender_timeout"),
        None => {}
    }
    match facts.number("logical_decoding_work_mem") {
        Some(kib) if kib < DECODING_MEMORY_MIN_KIB => found.warn(
            "capture.decoding_memory_small",
            format!("logical_decoding_work_mem = {kib} kB"),
            "transactions of a few thousand rows are written to the server's disk and read back before they are sent",
            facts.provider.set("logical_decoding_work_mem", "64MB"),
        ),
        Some(kib) => found.ok("capture.decoding_memory_small", format!("logical_decoding_work_mem = {kib} kB")),
        None => {}
    }
}

fn head_room(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let slot = facts.slot(&source.slot);
    let ours = i64::from(slot.is_none());
    let streaming = i64::from(!slot.is_some_and(|s| s.slot.active));
    let slots = facts.slots.as_ref().and_then(|s| i64::try_from(s.len()).ok());
    let senders = facts.state.as_ref().map(|s| s.senders);
    for (id, name, used, needed) in
        [("capture.slots_full", "max_replication_slots", slots, ours), ("capture.senders_full", "max_wal_senders", senders, streaming)]
    {
        let (Some(most), Some(used)) = (facts.number(name), used) else { continue };
        let what = format!("{name} = {most}, {used} in use");
        let fix = facts.provider.set(name, &(most + 4).max(10).to_string()).replace(" SELECT pg_reload_conf();", "");
        if most < used + needed {
            found.fail(id, what, "the pipeline finds none free", fix);
        } else if most < used + needed + facts.provider.spare() {
            found.warn(id, what, "a takeover or a backup may find none free", fix);
        } else {
            found.ok(id, what);
        }
    }
}

fn durability(found: &mut Findings, facts: &Facts) {
    let off: Vec<&str> = ["fsync", "full_page_writes"].into_iter().filter(|name| facts.setting(name) == Some("off")).collect();
    if off.is_empty() {
        found.ok("capture.not_durable", "the server keeps what it has committed");
    } else {
        found.fail(
            "capture.not_durable",
            format!("{} = off", off.join(" and ")),
            "after a crash of its machine the database may be damaged, and targets may hold sales that it has forgotten",
            off.iter().map(|name| facts.provider.set(name, "on")).collect::<Vec<_>>().join(" "),
        );
    }
    let Some(files) = &facts.files else { return };
    if files.settings.0 == 0 && files.hba_faulty.is_empty() {
        return found.ok("capture.files_invalid", "postgresql.conf and pg_hba.conf can be read");
    }
    let mut what = Vec::new();
    if files.settings.0 > 0 {
        what.push(format!("{} faulty settings in the server's files ({})", files.settings.0, files.settings.1));
    }
    if !files.hba_faulty.is_empty() {
        what.push(format!("faulty lines in pg_hba.conf: {}", files.hba_faulty));
    }
    found.fail(
        "capture.files_invalid",
        what.join("; "),
        "changes to these files do not take effect, and the server does not come back from its next restart",
        "mend the lines that the SQL below names, then SELECT pg_reload_conf();",
    );
}

/// Whether the server can leave out what it replicated from elsewhere, where that is asked for.
fn origin(found: &mut Findings, source: &config::Source, facts: &Facts) {
    if source.origin == config::Origin::Any {
        return;
    }
    if facts.server.major() < ORIGIN_MAJOR.cast_signed() {
        found.0.push(Finding::failed(&origin_unsupported(&facts.server.version)));
    } else {
        found.ok("capture.origin_unsupported", "the server tells its own changes from replicated ones");
    }
}

fn standby(found: &mut Findings, facts: &Facts) {
    if !facts.server.in_recovery {
        return found.ok("capture.standby", "the server is a primary");
    }
    let severity = if facts.server.major() < 16 { Severity::Fail } else { Severity::Warn };
    found.add(
        severity,
        "capture.standby",
        "the server is a standby",
        "before version 16 nothing can be decoded here; since then a conflict with recovery can lose the slot",
        "point the source's URL at the primary",
    );
    if facts.setting("hot_standby_feedback") == Some("off") {
        found.warn(
            "capture.standby_feedback",
            "hot_standby_feedback = off",
            "the primary removes catalogue rows that decoding here still needs, and the slot is lost",
            facts.provider.set("hot_standby_feedback", "on"),
        );
    } else {
        found.ok("capture.standby_feedback", "the primary keeps what decoding here needs");
    }
}

fn text_and_clock(found: &mut Findings, facts: &Facts) {
    let encoding = &facts.server.encoding;
    if encoding == "UTF8" {
        found.ok("capture.encoding", "the database is encoded in UTF8");
    } else {
        found.warn(
            "capture.encoding",
            format!("the database's encoding is {encoding}"),
            if encoding == "SQL_ASCII" {
                "text is not checked by the server; what is not UTF-8 stands as U+FFFD in events"
            } else {
                "the server converts; a character without a counterpart stops the stream"
            },
            "nothing, if all text is known to convert",
        );
    }
    let Some(state) = &facts.state else { return };
    if state.clock_offset.abs() > CLOCK_OFFSET_MAX {
        found.warn(
            "capture.clock_offset",
            format!("the server's clock is {:+.1} s from ours", state.clock_offset),
            "lags and times of events look wrong by as much",
            "let both hosts follow the same time server (chrony, systemd-timesyncd)",
        );
    } else {
        found.ok("capture.clock_offset", "the clocks agree");
    }
}

/// Whether a promotion would keep slot and events.
pub(super) fn failover(found: &mut Findings, facts: &Facts, slot: &SlotFacts) {
    let name = literal(&slot.slot_name);
    let listed = facts.setting("synchronized_standby_slots").unwrap_or_default();
    let physical = |name: &str| {
        let mut slots = facts.slots.iter().flatten().map(|s| &s.slot);
        slots.find(|s| s.slot_name == name && s.slot_type == "physical").map(|s| s.active)
    };
    let awaited: Vec<&str> = listed.split(',').map(|n| n.trim().trim_matches('"')).filter(|n| !n.is_empty()).collect();
    let stuck: Vec<&str> = awaited.iter().copied().filter(|name| physical(name) != Some(true)).collect();
    if slot.failover == Some(true) && !stuck.is_empty() {
        let absent = stuck.iter().any(|name| physical(name).is_none());
        let severity = if absent { Severity::Fail } else { Severity::Warn };
        found.add(
            severity,
            "capture.standby_slot_absent",
            format!("synchronized_standby_slots names {}, and no standby streams from it", stuck.join(", ")),
            "nothing is sent to the pipeline until such a standby has it: events stop, and WAL is kept meanwhile",
            "start that standby, or take its slot out of synchronized_standby_slots; SELECT pg_reload_conf();",
        );
    }
    if facts.standbys() == 0 {
        return;
    }
    let anew = format!("{} {}", sql::drop_slot(&slot.slot_name), sql::create_slot(&slot.slot_name, facts.server.major()));
    if facts.server.major() < 17 {
        found.warn(
            "capture.slot_no_failover",
            format!("there are standbys, and before version 17 slot {name} does not follow a promotion"),
            "after a promotion the slot is gone, and the tables have to be loaded again",
            "upgrade to 17 or newer and use a failover slot; until then the extension pg_failover_slots, or Patroni's `slots:`",
        );
    } else if slot.failover != Some(true) {
        found.warn(
            "capture.slot_no_failover",
            format!("there are standbys, and slot {name} does not follow a promotion"),
            "after a promotion the slot is gone, and the tables have to be loaded again",
            format!("stop the pipeline, {anew} then `tillstream epoch bump`; on the standbys sync_replication_slots = on"),
        );
    } else if awaited.is_empty() {
        found.warn(
            "capture.slot_ahead_of_standby",
            "synchronized_standby_slots is empty",
            "what a standby has not yet is captured all the same; if it is promoted then, such events never happened there, and capture halts",
            "ALTER SYSTEM SET synchronized_standby_slots = '<the standbys' physical slots>'; SELECT pg_reload_conf();",
        );
    } else {
        found.ok("capture.slot_no_failover", "the slot follows a promotion");
    }
}

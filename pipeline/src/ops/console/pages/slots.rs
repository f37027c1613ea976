//! All replication slots of the source's server: what somebody else's keeps fills the same disk.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::{parts, text};
use crate::ops::slots::Slot;

/// The slots as the watch saw them last, worst first; nothing before it has looked.
pub(super) fn document(admin: &Admin) -> Value {
    let Some((at, mut seen)) = admin.observer.observed.doctor.as_ref().and_then(|watched| watched.slots()) else { return Value::Null };
    seen.slots.sort_by_key(worst);
    json!({
        "at": text::moment(at),
        "keep_bytes": seen.keep_bytes,
        "idle_timeout_seconds": seen.idle_timeout_seconds,
        "wal_bytes_per_second": seen.wal_bytes_per_second,
        "slots": seen.slots,
    })
}

/// Lost ones first, then those that have the least time left, then those that keep the most.
fn worst(slot: &Slot) -> (bool, u64, std::cmp::Reverse<u64>) {
    (slot.invalidation_reason.is_none(), slot.seconds_to_ceiling.unwrap_or(u64::MAX), std::cmp::Reverse(slot.retained_bytes.unwrap_or(0)))
}

pub(super) fn table(slots: &Value) -> Markup {
    let empty = Vec::new();
    let all = slots["slots"].as_array().unwrap_or(&empty);
    let rows = all.iter().map(|slot| {
        let seconds = |key: &str| slot[key].as_f64().map(text::span);
        vec![
            html! { (parts::cell(&slot["name"])) " " span.dim { @if slot["ours"] == true { "(this pipeline's)" } @else { (parts::cell(&slot["kind"])) } } },
            status(slot),
            html! { (text::size(&slot["retained_bytes"])) },
            html! { (text::size(&slot["unacknowledged_bytes"])) },
            html! { @if slot["safe_wal_bytes"].is_u64() { (text::size(&slot["safe_wal_bytes"])) } @else { "no limit" } },
            html! { (seconds("seconds_to_ceiling").unwrap_or_else(|| "–".to_owned())) },
            html! {
                @match (slot["active_pid"].as_i64(), slot["reader"].as_str()) {
                    (Some(pid), Some(reader)) => { (parts::word(reader)) " " span.dim { "pid " (pid) } },
                    (Some(pid), None) => { "pid " (pid) },
                    (None, _) => { "nobody" @if let Some(span) = seconds("inactive_seconds") { " for " (span) } },
                }
            },
            html! { (text::count(&slot["catalog_xmin_age"])) },
            html! { (follows(slot)) },
        ]
    });
    let heads =
        ["Slot", "WAL status", "Keeps", "Unacknowledged", "Safe still", "To the ceiling", "Read by", "Catalog xmin age", "Failover"];
    html! {
        @if slots.is_null() { section.panel { h2 { "All slots of the server" } p.dim { "Not looked at yet. " (parts::command("tillstream slot list")) } } }
        @else {
            (parts::table("All slots of the server, worst first", &heads, &[2, 3, 4, 5, 7], rows.collect()))
            p.dim {
                "Seen " (parts::time(&slots["at"])) ", again every 30 s, with the average rate of WAL since the server's statistics began. "
                @match slots["keep_bytes"].as_u64() {
                    Some(_) => { "A slot may keep " (text::size(&slots["keep_bytes"])) " (max_slot_wal_keep_size)." },
                    None => { "The server keeps WAL for slots without limit: its disk is the ceiling." },
                }
                @if slots["idle_timeout_seconds"].is_u64() { " A slot that nobody reads for " (text::seconds(&slots["idle_timeout_seconds"])) " is invalidated." }
                " " (parts::command("tillstream slot list"))
            }
        }
    }
}

fn status(slot: &Value) -> Markup {
    let status = slot["wal_status"].as_str().unwrap_or("unknown");
    let state = match (slot["invalidation_reason"].is_string(), status) {
        (true, _) | (_, "lost") => "failed",
        (_, "unreserved") => "blocked",
        (_, "extended") => "degraded",
        (_, "reserved") => "healthy",
        _ => "unknown",
    };
    html! { (parts::named(state, status)) @if let Some(why) = slot["invalidation_reason"].as_str() { " " span.dim { (text::inert(why, 80)) } } }
}

fn follows(slot: &Value) -> &'static str {
    match (slot["failover"].as_bool(), slot["synced"].as_bool()) {
        (Some(true), Some(true)) => "follows, copied",
        (Some(true), _) => "follows",
        (Some(false), _) => "stays",
        (None, _) => "–",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_slot_comes_first() {
        let slot = |name: &str, left, kept, lost: bool| Slot {
            name: name.to_owned(),
            seconds_to_ceiling: left,
            retained_bytes: Some(kept),
            invalidation_reason: lost.then(|| "wal_removed".to_owned()),
            ..Slot::default()
        };
        let mut slots = vec![
            slot("calm", None, 10, false),
            slot("large", None, 99, false),
            slot("soon", Some(60), 1, false),
            slot("lost", None, 0, true),
        ];
        slots.sort_by_key(worst);
        assert_eq!(slots.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["lost", "soon", "large", "calm"]);
        let drawn = table(&json!({"at": "2026-11-23T10:00:00Z", "slots": slots})).into_string();
        assert!(drawn.contains("wal_removed") && drawn.contains("without limit") && drawn.contains("nobody"), "{drawn}");
        assert!(table(&Value::Null).into_string().contains("Not looked at yet"));
    }
}

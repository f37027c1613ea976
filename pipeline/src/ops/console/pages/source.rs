//! The source and its WAL: what the server keeps for the slot, and how long its room lasts.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::{View, nothing, parts, text, trusted};
use super::map::ceiling;
use super::slots;

pub(super) fn view(admin: &Admin) -> View {
    let status = trusted(admin);
    let source = &status["source"];
    if source.is_null() {
        let live = parts::none("This process does not capture. Ask the one that does.");
        return View { document: json!({"source": null}), headline: "This process does not capture.".to_owned(), live, still: nothing() };
    }
    let (slot, history) = (&source["slot"], &admin.console.history);
    let all = slots::document(admin);
    let document = json!({
        "source": source,
        "initial_load": status["initial_load"],
        "slots": all,
        "hour": {"retained_wal_bytes": history.hour("retained"), "wal_bytes_per_second": history.hour("wal")},
        "day": {"retained_wal_bytes": history.day("retained"), "wal_bytes_per_second": history.day("wal")},
        "week": {"retained_wal_bytes": history.week("retained"), "wal_bytes_per_second": history.week("wal")},
    });
    let bytes = |n: f64| crate::config::units::show_size(n as u64);
    let live = html! {
        (clock(source))
        div.grid {
            section.panel { h2 { "Capture" } (parts::standing(source))
                dl.facts {
                    (parts::fact("doing", html! { (text::inert(&source["doing"].as_str().unwrap_or("–").replace('_', " "), 40)) }))
                    (parts::fact("events", html! { (text::rate(&source["events_per_second"])) }))
                    (parts::fact("transactions", html! { (text::rate(&source["transactions_per_second"])) }))
                    (parts::fact("last commit", parts::time(&source["last_commit"])))
                    (parts::fact("captured since the start", html! { (text::count(&source["events"])) }))
                    (parts::fact("sessions", html! { (text::count(&source["sessions"])) }))
                    (parts::fact("spooled", html! { (text::size(&source["spool_bytes"])) }))
                }
                @if source["last_error"].is_object() {
                    p { "Last error " (parts::time(&source["last_error"]["at"])) ": " (parts::code(&source["last_error"]["code"])) }
                    p.why { (text::inert(source["last_error"]["message"].as_str().unwrap_or_default(), 400)) }
                }
            }
            section.panel { h2 { "Slot" }
                @if slot.is_null() { (parts::none("The server has not shown it yet.")) } @else {
                    dl.facts {
                        (parts::fact("status", parts::cell(&slot["wal_status"])))
                        (parts::fact("pressure", parts::cell(&slot["pressure"])))
                        (parts::fact("seen", parts::time(&slot["at"])))
                        (parts::fact("held by another", html! { @if slot["pinned_by"].is_string() { (parts::cell(&slot["pinned_by"])) } @else { "no" } }))
                        (parts::fact("spilled on the server", html! { (text::size(&slot["decoding"]["spill_bytes"])) }))
                        (parts::fact("sent before commit", html! { (text::size(&slot["decoding"]["stream_bytes"])) }))
                    }
                }
            }
            (ladder(source))
        }
        div.grid {
            section.panel { h2 { "WAL kept for the slot" } (over_time(&document, "retained_wal_bytes", "kept", bytes)) }
            section.panel { h2 { "WAL written by the whole server" } (over_time(&document, "wal_bytes_per_second", "written a second", bytes)) }
        }
        (findings(source))
        (gaps(source))
        (slots::table(&document["slots"]))
    };
    let headline = format!("{} of WAL are kept for the slot; its room lasts {}.", text::size(&source["retained_wal_bytes"]), ceiling(slot));
    View { headline, live, still: nothing(), document }
}

/// How long the slot survives if nothing is released any more.
fn clock(source: &Value) -> Markup {
    let slot = &source["slot"];
    let (kept, most) = (source["retained_wal_bytes"].as_f64().unwrap_or(0.0), slot["ceiling_bytes"].as_f64().unwrap_or(0.0));
    let ratio = if most > 0.0 { kept / most } else { 0.0 };
    html! {
        section.panel.clock aria-label="The slot's survival clock" {
            p.big { (ceiling(slot)) }
            p { "until the room for WAL is used up, if nothing is released and the server goes on writing " (text::size(&slot["wal_bytes_per_second"].as_f64().map(|n| n.max(0.0) as u64).into())) "/s." }
            (parts::gauge(ratio, &[0.25, 0.6, 0.9], &format!("{} of {} kept", text::size(&source["retained_wal_bytes"]), text::size(&slot["ceiling_bytes"]))))
            p.dim { (text::size(&source["retained_wal_bytes"])) " of " (text::size(&slot["ceiling_bytes"])) " kept (" (text::percent(ratio)) "); warned of at 25 %, a person is called at 60 %, at 90 % what is held back is given up." }
        }
    }
}

/// The last hour, and what is known of the day and the week.
fn over_time(document: &Value, key: &str, what: &str, unit: impl Fn(f64) -> String + Copy) -> Markup {
    html! {
        @for (window, title) in [("hour", "Last hour"), ("day", "Last day, of each four minutes the highest"), ("week", "Last week, of each half an hour the highest")] {
            @let line: Vec<Option<f64>> = document[window][key].as_array().into_iter().flatten().map(Value::as_f64).collect();
            @if !line.is_empty() { h3 { (title) } (parts::line(&line, what, unit)) }
        }
    }
}

/// What the doctor found at its last look.
fn findings(source: &Value) -> Markup {
    let doctor = &source["doctor"];
    let empty = Vec::new();
    let found = doctor["findings"].as_array().unwrap_or(&empty);
    html! {
        section.panel { h2 { "What the doctor says" }
            p.dim {
                @if doctor["at"].is_string() { "Looked at " (parts::time(&doctor["at"])) ", again every five minutes. " }
                @else { "It has not looked yet. " }
                "All checks, those of journal and targets too: " (parts::command("tillstream doctor"))
            }
            @if found.is_empty() && doctor["at"].is_string() { p { (parts::state(&Value::from("healthy"))) " Nothing at the source has to be mended." } }
            @for finding in found { (one(finding)) }
        }
    }
}

fn one(finding: &Value) -> Markup {
    let text = |key: &str| text::inert(finding[key].as_str().unwrap_or_default(), 600);
    let grave = finding["severity"] == "fail";
    let needs = match finding["needs"].as_str() {
        Some("reload") => " (a reload)",
        Some("restart") => " (a restart of PostgreSQL)",
        _ => "",
    };
    html! {
        div.finding {
            p { (if grave { parts::named("failed", "fails") } else { parts::named("degraded", "warning") }) " " (parts::code(&finding["id"])) }
            p.what { (text("what")) }
            @if finding["impact"].is_string() { p { (text("impact")) } }
            @if finding["fix"].is_string() { p { strong { "What helps" (needs) ": " } (text("fix")) } }
            @if finding["evidence"].is_string() { p.dim { "See for yourself: " (parts::command(&text("evidence"))) } }
        }
    }
}

/// The positions from the server's to what it may forget.
fn ladder(source: &Value) -> Markup {
    let steps = [
        ("written by the server", "server_lsn"),
        ("received", "received_lsn"),
        ("confirmed by the journal", "confirmed_lsn"),
        ("acknowledged: the server may forget", "acknowledged_lsn"),
    ];
    let lsn = |key: &str| source[key].as_str().and_then(|lsn| lsn.parse::<tillstream_schemas::Lsn>().ok()).map(|lsn| lsn.0);
    let server = lsn("server_lsn");
    let row = |(what, key): &(&str, &str)| {
        let behind = server.zip(lsn(key)).map(|(server, here)| server.saturating_sub(here));
        vec![html! { (what) }, html! { code { (text::cell(&source[*key])) } }, html! { (text::size(&behind.into())) }]
    };
    html! { section.panel { h2 { "Positions" } (parts::table("From the server's position down", &["Position", "LSN", "Behind"], &[2], steps.iter().map(row).collect())) } }
}

/// What is not captured.
fn gaps(source: &Value) -> Markup {
    let empty = Vec::new();
    let gaps = source["coverage"].as_array().unwrap_or(&empty);
    html! {
        @if !gaps.is_empty() {
            section.panel { h2 { "Not captured as configured" }
                @for gap in gaps {
                    p { (parts::code(&gap["code"])) " " (text::inert(gap["what"].as_str().unwrap_or_default(), 400)) }
                    @if let Some(fix) = gap["fix"].as_str() { p.dim { "What helps: " (text::inert(fix, 400)) } }
                }
            }
        }
    }
}

//! Connectors: what delivers to whom, by which file, and how the targets answer.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::super::admin::access::Caller;
use super::super::parts::Deed;
use super::super::{Fields, View, link, parts, text, trusted};
use super::{given, runs_by};
use crate::config::Role;
use crate::delivery::Answer;

pub(super) fn view(admin: &Admin, caller: &Caller, fields: &Fields) -> View {
    let status = trusted(admin);
    let connectors: Vec<Value> = status["connectors"].as_array().cloned().unwrap_or_default();
    let chosen = given(fields, "name").and_then(|name| connectors.iter().find(|c| c["name"] == name));
    match chosen {
        Some(connector) => one(admin, caller, connector, &status),
        None => all(admin, &connectors),
    }
}

fn all(admin: &Admin, connectors: &[Value]) -> View {
    let rows = connectors.iter().map(|c| {
        let name = c["name"].as_str().unwrap_or_default();
        vec![
            html! { a href=(link("/connectors", &[("name", name)])) { (parts::word(name)) } },
            parts::state(&c["state"]),
            parts::cell(&c["kind"]),
            html! { (text::rate(&c["events_per_second"])) },
            html! { (text::count(&c["lag_entries"])) },
            html! { (text::seconds(&c["lag_seconds"])) },
            html! { (text::count(&c["in_flight"])) },
            html! { (text::count(&c["delivered"])) },
            html! { (text::count(&c["retries"])) },
            html! { (text::count(&c["dead_letters"])) },
        ]
    });
    let heads = ["Connector", "State", "Kind", "Settled", "Behind", "Oldest waits", "In flight", "Delivered", "Repeated", "Dead letters"];
    let live = html! {
        (parts::table("Connectors of this process", &heads, &[3, 4, 5, 6, 7, 8, 9], rows.collect()))
        div.grid {
            @for c in connectors {
                @let name = c["name"].as_str().unwrap_or_default();
                section.panel { h2 { a href=(link("/connectors", &[("name", name)])) { (parts::word(name)) } } (parts::standing(c))
                    (parts::line(&admin.console.history.hour(&format!("rate {name}")), "settled, last hour", |n| format!("{}/s", text::short(n)))) }
            }
        }
        @if connectors.is_empty() { (parts::none("No connector is delivered by this process.")) }
    };
    let paused = connectors.iter().filter(|c| c["paused"].is_object()).count();
    let unwell =
        connectors.iter().filter(|c| !matches!(c["state"].as_str(), Some("healthy" | "catching_up"))).count().saturating_sub(paused);
    let mut headline = match (connectors.len(), unwell) {
        (n, 0) if paused == 0 => format!("All {n} connectors deliver."),
        (_, 0) => String::new(),
        (n, unwell) => format!("{unwell} of {n} connectors do not deliver as they should. "),
    };
    if paused > 0 {
        headline += &format!("{paused} of {} connectors are paused by somebody.", connectors.len());
    }
    View { document: json!({"connectors": connectors}), headline, live, still: html! {} }
}

fn one(admin: &Admin, caller: &Caller, connector: &Value, status: &Value) -> View {
    let name = connector["name"].as_str().unwrap_or_default().to_owned();
    let figures =
        status["figures"]["connectors"].as_array().into_iter().flatten().find(|f| f["name"] == name.as_str()).cloned().unwrap_or_default();
    let running = admin.applier.as_ref().and_then(|applier| applier.running().into_iter().find(|r| r.name == name));
    let stats = admin.observer.observed.delivery.as_ref().and_then(|delivery| delivery.connector(&name));
    let answers: Vec<Value> = stats.map(|stats| stats.answers()).unwrap_or_default().iter().rev().map(answer).collect();
    let document = json!({"connector": connector, "figures": figures, "runs_by": running, "answers": answers});
    let live = html! {
        p { a href="/connectors" { "All connectors" } }
        div.grid {
            section.panel { h2 { (parts::word(&name)) } (parts::standing(connector))
                @if let Some(kept) = connector["paused"]["kept"].as_str() { p { "The journal keeps what waits for it " (text::inert(kept, 80)) "." } }
                dl.facts {
                    (parts::fact("settled", html! { (text::rate(&connector["events_per_second"])) }))
                    (parts::fact("behind", html! { (text::count(&connector["lag_entries"])) " entries" }))
                    (parts::fact("oldest waits", html! { (text::seconds(&connector["lag_seconds"])) }))
                    (parts::fact("drains in", html! { (text::seconds(&figures["drain_seconds"])) }))
                    (parts::fact("commit to effect, p95", html! { (text::seconds(&figures["end_to_end_p95_seconds"])) }))
                    (parts::fact("processes", html! { (text::count(&figures["replicas"])) }))
                    @if let Some(running) = &running { (parts::fact("a repeat", html! { (runs_by::repeats(running.idempotency)) })) }
                }
                (parts::line(&admin.console.history.hour(&format!("rate {name}")), "settled, last hour", |n| format!("{}/s", text::short(n))))
            }
            section.panel { h2 { "How the target answers" }
                dl.facts {
                    (parts::fact("calls", html! { (text::count(&connector["calls"])) }))
                    (parts::fact("failed calls", html! { (text::count(&connector["calls_failed"])) }))
                    (parts::fact("delivered", html! { (text::count(&connector["delivered"])) }))
                    (parts::fact("already there", html! { (text::count(&connector["absorbed"])) }))
                    (parts::fact("refused", html! { (text::count(&connector["rejected"])) }))
                    (parts::fact("repeated", html! { (text::count(&connector["retries"])) }))
                    (parts::fact("pauses asked for", html! { (text::count(&connector["pauses"])) }))
                    (parts::fact("superseded", html! { (text::count(&connector["superseded"])) }))
                    (parts::fact("circuit", html! { (text::inert(&connector["breaker"].as_str().unwrap_or("–").replace('_', " "), 20)) }))
                    (parts::fact("calls at once", html! { (text::count(&connector["calls_allowed"])) }))
                }
                @if connector["last_error"].is_object() {
                    p { "Last error " (parts::time(&connector["last_error"]["at"])) ": " (parts::code(&connector["last_error"]["code"])) }
                    p.why { (text::inert(connector["last_error"]["message"].as_str().unwrap_or_default(), 400)) }
                }
                p { a href=(link("/dead-letters", &[("connector", &name)])) { (text::many(connector["dead_letters"].as_u64().unwrap_or(0), "open dead letter", "open dead letters")) } }
            }
        }
        (recent(&answers))
        (partitions(connector))
    };
    let still = html! {
        @if let Some(before) = running.as_ref().and_then(|running| running.before.as_ref()) {
            details id="before" { summary { "What it ran by before (" (before.hash) "), by lines" } (runs_by::difference(&before.lines)) }
        }
        @if let Some(running) = &running {
            details id="file" { summary { "The file that it runs by (" (running.hash) ")" } pre { code { (text::inert_lines(&running.text, 20_000)) } } }
        }
        section.panel { h2 { "Actions" } (deeds(caller, connector, &name)) }
    };
    let headline = format!("{name} is {}.", connector["state"].as_str().unwrap_or("unknown").replace('_', " "));
    View { document, headline, live, still }
}

/// One call; of its events nothing but how many there were and how large.
fn answer(answer: &Answer) -> Value {
    json!({
        "at_ms": answer.at_ms,
        "seconds": answer.took.as_secs_f64(),
        "items": answer.items,
        "bytes": answer.bytes,
        "applied": answer.applied,
        "absorbed": answer.absorbed,
        "repeated": answer.repeated,
        "refused": answer.refused,
        "code": answer.code,
    })
}

fn recent(answers: &[Value]) -> Markup {
    let rows = answers.iter().map(|a| {
        vec![
            parts::time(&a["at_ms"]),
            html! { @if a["code"].is_string() { (parts::code(&a["code"])) } @else { "taken" } },
            html! { (text::seconds(&a["seconds"])) },
            html! { (text::count(&a["items"])) },
            html! { (text::size(&a["bytes"])) },
            html! { (text::count(&a["applied"])) },
            html! { (text::count(&a["absorbed"])) },
            html! { (text::count(&a["repeated"])) },
            html! { (text::count(&a["refused"])) },
        ]
    });
    let heads = ["When", "Answer", "Took", "Items", "Events' size", "Applied", "Already there", "To be repeated", "Refused"];
    parts::table("The last calls of this process", &heads, &[2, 3, 4, 5, 6, 7, 8], rows.collect())
}

fn partitions(connector: &Value) -> Markup {
    let rows = connector["partitions"].as_array().into_iter().flatten().map(|p| {
        vec![
            html! { (text::count(&p["partition"])) },
            html! { (text::count(&p["read"])) },
            html! { (text::count(&p["settled"])) },
            html! { (text::count(&p["in_flight"])) },
            html! { code { (text::cell(&p["position"])) } },
            html! { @if p["replay_until"].is_u64() { "until offset " (text::count(&p["replay_until"])) } @else { "–" } },
        ]
    });
    parts::table(
        "Partitions that this process delivers",
        &["Partition", "Read", "Settled below", "In flight", "Position", "Replay"],
        &[0, 1, 2, 3],
        rows.collect(),
    )
}

fn deeds(caller: &Caller, connector: &Value, name: &str) -> Markup {
    let quoted = parts::quoted(name);
    let replays = connector["partitions"].as_array().into_iter().flatten().any(|p| p["replay_until"].is_u64());
    html! {
        details id="apply" { summary { "Take over what the file says now" }
            (Deed { to: "apply", verb: "Apply on trial", grave: false, role: Role::Admin, fields: &[("connector", name)], more: html! {
                    label { span { "Trial" } select name="probation" { option value="10" { "10 s" } option value="30" selected { "30 s" } } } },
                command: format!("tillstream apply --connector {quoted} --probation 30s --reason …") }.show(caller))
        }
        @if connector["paused"].is_object() {
            details id="end-pause" open { summary { "Have it go on" }
                p.dim { "What has waited is sent, in order." }
                (Deed { to: "end-pause", verb: "Resume", grave: false, role: Role::Operator, fields: &[("connector", name)], more: html! {},
                    command: format!("tillstream connector resume {quoted} --reason …") }.show(caller))
            }
        } @else {
            details id="pause" { summary { "Pause it" }
                p.dim { "Calls in the air finish, then nothing is sent, by any process, until it is resumed. Capture goes on; what comes waits in the journal as long as that keeps it, and the answer says until when." }
                (Deed { to: "pause-connector", verb: "Pause", grave: true, role: Role::Operator, fields: &[("connector", name)], more: html! {},
                    command: format!("tillstream connector pause {quoted} --reason …") }.show(caller))
            }
        }
        @if connector["state"] == "paused" && !connector["paused"].is_object() {
            details id="resume" open { summary { "Go on with the tables as they are now" }
                p.dim { "Events that its file cannot tell become dead letters; to lose no time over that, mend the file first and apply it." }
                (Deed { to: "resume-connector", verb: "Go on", grave: true, role: Role::Admin, fields: &[("connector", name)], more: html! {},
                    command: format!("tillstream connector resume {quoted} --reason …") }.show(caller))
            }
        }
        details id="replay" { summary { "Deliver a stretch again" }
            (Deed { to: "replay", verb: "Look first, or replay", grave: true, role: Role::Admin, fields: &[("connector", name)], more: html! {
                    label { span { "From" } input name="from" required placeholder="6h, p0@1234, 2026-11-22T10:00:00Z"; }
                    label { span { "To" } input name="to" placeholder="on"; }
                    label { span { "Row" } input name="key" placeholder="all rows"; }
                    label { span { "Table" } input name="table" placeholder="of the row"; }
                    label { span { "What" } select name="what" { option value="look" { "only look" } option value="do" { "replay" } } }
                    label.check { input type="checkbox" name="accept_duplicates" value="yes"; span { "second effects are accepted" } }
                    label.check { input type="checkbox" name="accept_older" value="yes"; span { "older states are accepted" } }
                    label.check { input type="checkbox" name="accept_loss" value="yes"; span { "events may be left out" } } },
                command: format!("tillstream replay {quoted} --from 6h --dry-run") }.show(caller))
        }
        @if replays {
            details id="end-replay" { summary { "End the replay that is under way" }
                (Deed { to: "end-replay", verb: "End the replay", grave: true, role: Role::Admin, fields: &[("connector", name)], more: html! {},
                    command: format!("tillstream replay {quoted} --cancel --reason …") }.show(caller))
            }
        }
    }
}

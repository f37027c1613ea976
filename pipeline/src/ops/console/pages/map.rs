//! The pipeline as a map: source, capture, journal, connectors, targets; each stage with its rate, time and queue, the limiting one outlined and named.

use maud::{Markup, html};
use serde_json::Value;

use super::super::super::admin::Admin;
use super::super::super::canary;
use super::super::{View, nothing, parts, text, trusted};

pub(super) fn view(admin: &Admin) -> View {
    let document = trusted(admin);
    let headline = headline(&document);
    View {
        headline,
        live: html! { (verdict(&document)) (map(&document)) (canary(&document)) (figures(&document)) },
        still: nothing(),
        document,
    }
}

fn headline(status: &Value) -> String {
    match (status.get("bottleneck"), status["bottleneck"]["sentence"].as_str()) {
        (_, Some(sentence)) => text::inert(sentence, 400),
        (None, _) if status["ready"] == true => "The pipeline is ready.".to_owned(),
        (None, _) => "The pipeline is not ready.".to_owned(),
        _ => "What limits the pipeline is unknown.".to_owned(),
    }
}

/// How the last canary got through, where one is sent.
fn canary(status: &Value) -> Markup {
    html! {
        @if let Some(sentence) = canary::sentence(&status["canary"]) { p.canary { b { "Canary" } " " (text::inert(&sentence, 400)) } }
    }
}

/// Whether something limits.
fn limits(status: &Value) -> bool {
    !matches!(status["bottleneck"]["limit"].as_str(), None | Some("idle" | "keeping_up" | "catching_up"))
}

/// The verdict in a sentence, what helps and what does not.
pub(super) fn verdict(status: &Value) -> Markup {
    if status.get("bottleneck").is_none() {
        return html! {
            @for reason in status["not_ready"].as_array().into_iter().flatten().filter_map(Value::as_str) { p.reason { (text::inert(reason, 300)) } }
        };
    }
    let bottleneck = &status["bottleneck"];
    let words = |name: &str| -> Vec<String> {
        bottleneck[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(|word| text::inert(word, 120)).collect()
    };
    let (helps, helps_not) = (words("helps"), words("helps_not"));
    let class = if bottleneck.is_null() {
        "verdict unknown"
    } else if limits(status) {
        "verdict limit"
    } else {
        "verdict"
    };
    html! {
        section class=(class) aria-label="What limits the pipeline" {
            p.sentence { (headline(status)) }
            @if !helps.is_empty() || !helps_not.is_empty() {
                dl.helps {
                    @if !helps.is_empty() { div { dt { "helps" } dd { @for word in &helps { span.chip { (word) } } } } }
                    @if !helps_not.is_empty() { div { dt { "does not help" } dd { @for word in &helps_not { span.chip.not { (word) } } } } }
                }
            }
            @for reason in status["not_ready"].as_array().into_iter().flatten().filter_map(Value::as_str) { p.reason { (text::inert(reason, 300)) } }
        }
    }
}

/// One stage of a box: how much of the time it is at work, its time and what waits before it.
fn stage(stage: &Value, limit: bool) -> Markup {
    let name = stage["stage"].as_str().unwrap_or("–").to_owned();
    let busy = stage["utilisation"].as_f64().unwrap_or(0.0);
    let (took, p95) = (&stage["seconds"], &stage["p95_seconds"]);
    let (took, how) = if p95.is_number() { (p95, "95 % within") } else { (took, "on average") };
    let queue = stage["queue"].as_u64().unwrap_or(0);
    let unit = stage["queue_unit"].as_str().unwrap_or("events");
    let waiting = match unit {
        "bytes" => text::size(&stage["queue"]),
        unit => format!("{} {}", text::short(queue as f64), text::inert(unit, 12)),
    };
    html! {
        tr class=(if limit { "limit" } else { "" }) {
            th scope="row" { (text::inert(&name, 20)) @if limit { " " span.tag { "limits" } } }
            td { (parts::bar(busy, limit, &format!("at work {} of the time", text::percent(busy)))) }
            td.n { (text::percent(busy)) }
            td.n title=(how) { (text::seconds(took)) }
            td.n { @if queue > 0 { (waiting) } @else { span.dim { "–" } } }
        }
    }
}

fn stages(of: &Value, bottleneck: &Value, entity: &str) -> Markup {
    let is_limit = |s: &Value| {
        let stage = bottleneck["stage"].as_str();
        let limits = !matches!(bottleneck["limit"].as_str(), None | Some("idle" | "keeping_up" | "catching_up"));
        // What capture waits for is the journal's or the source's doing, and shows at capture's stage.
        let mine = match bottleneck["entity"].as_str() {
            Some("capture" | "journal" | "source") | None => entity == "capture",
            Some(other) => other == entity,
        };
        limits && mine && stage.is_some() && stage == s["stage"].as_str()
    };
    let rows: Vec<&Value> = of["stages"].as_array().into_iter().flatten().collect();
    html! {
        @if !rows.is_empty() {
            table.stages {
                caption.hear { "Stages of " (text::inert(entity, 40)) }
                thead { tr { th scope="col" { "stage" } th scope="col" colspan="2" { "at work" } th.n scope="col" { "time" } th.n scope="col" { "waits" } } }
                tbody { @for s in rows { (stage(s, is_limit(s))) } }
            }
        }
    }
}

/// What flows from one box to the next, as wide as it is much.
fn pipe(rate: &Value, unit: &str) -> Markup {
    let n = rate.as_f64();
    let width = n.map_or(1.0, |n| (1.0 + (n.max(0.0) + 1.0).log10() * 2.4).min(13.0));
    let class = match n {
        None => "pipe unknown",
        Some(n) if n < 0.05 => "pipe still",
        Some(_) => "pipe",
    };
    let label = format!("{} {unit}", text::rate(rate));
    html! {
        div class=(class) {
            span.rate { (text::rate(rate)) }
            svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label=(label) {
                line x1="0" y1="8" x2="100" y2="8" stroke-width=(format!("{width:.1}")) {}
            }
            span.unit { (unit) }
        }
    }
}

fn map(status: &Value) -> Markup {
    let bottleneck = &status["bottleneck"];
    let limited = |entity: &str| if limits(status) && bottleneck["entity"].as_str() == Some(entity) { "box limit" } else { "box" };
    let (source, journal, figures) = (&status["source"], &status["journal"], &status["figures"]);
    let slot = &source["slot"];
    let kept = source["retained_wal_bytes"].as_f64().zip(slot["ceiling_bytes"].as_f64()).filter(|(_, ceiling)| *ceiling > 0.0);
    let empty = Vec::new();
    let connectors = status["connectors"].as_array().unwrap_or(&empty);
    let written = if figures["journal"]["entries_per_second"].is_number() {
        &figures["journal"]["entries_per_second"]
    } else {
        &source["events_per_second"]
    };
    html! {
        section.map aria-label="Map of the pipeline" {
            div.chain {
                @if source.is_null() {
                    div.box.away { h2 { "Capture" } p.dim { "Runs in another process." } }
                } @else {
                    div class=(limited("source")) {
                        h2 { a href="/source" { "Source" } } p.name { (parts::cell(&source["name"])) }
                        (parts::state(&source["state"]))
                        dl.facts {
                            (parts::fact("transactions", html! { (text::rate(&source["transactions_per_second"])) }))
                            (parts::fact("behind", html! { (text::size(&source["lag_bytes"])) }))
                            (parts::fact("WAL kept", html! { (text::size(&source["retained_wal_bytes"])) }))
                            (parts::fact("room lasts", html! { (ceiling(slot)) }))
                        }
                        @if let Some((kept, ceiling)) = kept {
                            (parts::gauge(kept / ceiling, &[0.25, 0.6, 0.9], &format!("{} of what may be kept", text::percent(kept / ceiling))))
                        }
                    }
                    (pipe(&source["events_per_second"], "events"))
                    div class=(limited("capture")) {
                        h2 { "Capture" } p.name { (text::inert(&source["doing"].as_str().unwrap_or("–").replace('_', " "), 40)) }
                        (stages(&figures["capture"], bottleneck, "capture"))
                    }
                }
                (pipe(written, "entries"))
                div class=(limited("journal")) {
                    h2 { a href="/journal" { "Journal" } } p.name { (parts::cell(&journal["kind"])) }
                    (parts::state(&journal["state"]))
                    dl.facts {
                        (parts::fact("partitions", html! { (journal["partitions"].as_array().map_or(0, Vec::len)) }))
                        (parts::fact("unconfirmed", html! { (text::size(&journal["unconfirmed_bytes"])) }))
                        (parts::fact("oldest of it", html! { (text::seconds(&journal["oldest_unconfirmed_seconds"])) }))
                    }
                }
            }
            div.fan {
                @for connector in connectors {
                    (delivered(connector, figures, bottleneck, limited(connector["name"].as_str().unwrap_or_default())))
                }
                @if connectors.is_empty() { div.box.away { h2 { "Delivery" } p.dim { "No connector is delivered by this process." } } }
            }
        }
    }
}

fn delivered(connector: &Value, figures: &Value, bottleneck: &Value, class: &str) -> Markup {
    let name = connector["name"].as_str().unwrap_or("–");
    let nothing = Value::Null;
    let mine = figures["connectors"].as_array().into_iter().flatten().find(|f| f["name"] == connector["name"]).unwrap_or(&nothing);
    let letters = connector["dead_letters"].as_u64().unwrap_or(0);
    html! {
        div.branch {
            (pipe(if mine["arrival_per_second"].is_number() { &mine["arrival_per_second"] } else { &connector["events_per_second"] }, "read"))
            div class=(class) {
                h2 { a href=(super::super::link("/connectors", &[("name", name)])) { (parts::word(name)) } }
                (parts::state(&connector["state"]))
                (stages(mine, bottleneck, name))
                dl.facts.wide {
                    (parts::fact("behind", html! { (text::count(&connector["lag_entries"])) " entries" }))
                    (parts::fact("oldest waits", html! { (text::seconds(&connector["lag_seconds"])) }))
                    (parts::fact("drains in", html! { (text::seconds(&mine["drain_seconds"])) }))
                    (parts::fact("dead letters", html! {
                        @if letters > 0 { a href=(super::super::link("/dead-letters", &[("connector", name)])) { (text::grouped(letters)) } } @else { "none" }
                    }))
                }
            }
            (pipe(&connector["events_per_second"], "settled"))
            div.box.target {
                h2 { "Target" } p.name { (parts::cell(&connector["kind"])) }
                @match connector["breaker"].as_str() {
                    Some("closed") => span.dim { "takes calls" },
                    Some(breaker) => (parts::state(&Value::from(if breaker == "open" { "blocked" } else { "degraded" }))),
                    None => "–",
                }
                dl.facts {
                    (parts::fact("in flight", html! { (text::count(&connector["in_flight"])) }))
                    (parts::fact("calls at once", html! { (text::count(&connector["calls_allowed"])) }))
                    (parts::fact("commit to effect", html! { (text::seconds(&mine["end_to_end_p95_seconds"])) span.dim { " p95" } }))
                }
            }
        }
    }
}

/// How long the room lasts.
pub(super) fn ceiling(slot: &Value) -> String {
    match (slot["stale"].as_bool(), slot["seconds_to_ceiling"].as_f64(), slot.is_null()) {
        (_, _, true) | (Some(true), ..) => "unknown".to_owned(),
        (_, Some(seconds), _) => text::span(seconds),
        // Nothing is written, so nothing fills.
        (_, None, _) => "for ever".to_owned(),
    }
}

/// The same as a table, for whoever reads numbers rather than maps.
fn figures(status: &Value) -> Markup {
    let mut rows = Vec::new();
    let mut add = |of: &str, stages: &Value| {
        for stage in stages.as_array().into_iter().flatten() {
            let queue = match stage["queue_unit"].as_str() {
                Some("bytes") => text::size(&stage["queue"]),
                unit => format!("{} {}", text::count(&stage["queue"]), unit.map(|unit| text::inert(unit, 12)).unwrap_or_default()),
            };
            rows.push(vec![
                html! { (parts::word(of)) " · " (parts::cell(&stage["stage"])) },
                html! { (text::rate(&stage["events_per_second"])) },
                html! { (stage["utilisation"].as_f64().map_or_else(|| "–".to_owned(), text::percent)) },
                html! { (text::seconds(&stage["seconds"])) },
                html! { (text::seconds(&stage["p95_seconds"])) },
                html! { (queue) },
            ]);
        }
    };
    add("capture", &status["figures"]["capture"]["stages"]);
    for connector in status["figures"]["connectors"].as_array().into_iter().flatten() {
        add(connector["name"].as_str().unwrap_or("–"), &connector["stages"]);
    }
    html! {
        @if !rows.is_empty() {
            details id="numbers" { summary { "All stages in numbers" }
                (parts::table("Stages over the last ten seconds", &["Stage", "Events", "At work", "Time", "95 % within", "Waits before it"], &[1, 2, 3, 4, 5], rows))
            }
        }
    }
}

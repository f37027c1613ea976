//! What is not as it should be, in words, and what helps.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::{View, link, nothing, parts, text, trusted};
use super::map;
use crate::ops::codes;
use crate::ops::incident::{self, Incident, Known, Stage};
use crate::ops::troubles::Trouble;

pub(super) fn view(admin: &Admin) -> View {
    let status = trusted(admin);
    let troubles = troubles(&status);
    let mut over = admin.observer.troubles();
    over.retain(|trouble| trouble.until_ms.is_some());
    over.reverse();
    let message = (!troubles.is_empty()).then(|| message(admin, &status));
    let document = json!({"troubles": troubles, "over": over, "bottleneck": status["bottleneck"], "message": message});
    let live = html! {
        @if let Some(bottleneck) = status.get("bottleneck") { (map::verdict(&json!({"bottleneck": bottleneck}))) }
        @if troubles.is_empty() { (parts::none("Nothing is wrong that this process can see.")) }
        @for trouble in &troubles {
            section.panel.trouble {
                h2 { (parts::cell(&trouble["of"])) } (parts::state(&trouble["state"]))
                @if trouble["since"].is_string() { " " span.dim { "since " (parts::time(&trouble["since"])) } }
                p.big { (text::inert(trouble["what"].as_str().unwrap_or_default(), 400)) }
                @if trouble["impact"].is_string() { p { (text::inert(trouble["impact"].as_str().unwrap_or_default(), 600)) } }
                @if trouble["fix"].is_string() { p { strong { "What helps: " } (text::inert(trouble["fix"].as_str().unwrap_or_default(), 600)) } }
                @if trouble["code"].is_string() { p { "Runbook: " (parts::code(&trouble["code"])) " " (parts::command(&format!("tillstream explain {}", trouble["code"].as_str().unwrap_or_default()))) } }
                @if let Some(where_to) = trouble["page"].as_str() { p { a href=(where_to) { "Look at it" } } }
            }
        }
        @if let Some(message) = &message { (to_copy(message)) }
        (past(&over))
    };
    let headline = match troubles.len() {
        0 => "Nothing is wrong that this process can see.".to_owned(),
        n => text::many(n as u64, "thing is not as it should be.", "things are not as they should be."),
    };
    View { document, headline, live, still: nothing() }
}

/// The first message about it, filled from the status; a person reads it before it goes anywhere.
fn message(admin: &Admin, status: &Value) -> Incident {
    let observed = &admin.observer.observed;
    let known = Known {
        pipeline: &observed.pipeline,
        status: Ok(status),
        dead_letters: Vec::new(),
        retention: observed.retention.age,
        zone: observed.peak.as_ref().map_or(jiff::tz::TimeZone::UTC, |peak| peak.zone().clone()),
        at: jiff::Timestamp::now(),
    };
    incident::template(&known, None, Stage::Investigating)
}

fn to_copy(message: &Incident) -> Markup {
    html! {
        details id="message" { summary { "The first message, to copy" }
            p.dim { "Severity " (u8::from(message.severity)) " is proposed; gaps are for a person to fill. The same: " (parts::command("tillstream incident template")) }
            h3 { "For those who are affected" } pre.page { (text::inert_lines(&message.public, 4_000)) }
            h3 { "For those who work on it" } pre.page { (text::inert_lines(&message.internal, 8_000)) }
        }
    }
}

/// What is over.
fn past(over: &[Trouble]) -> Markup {
    let rows = over.iter().take(100).map(|trouble| {
        let lasted = trouble.until_ms.map_or(0, |until| until - trouble.since_ms);
        vec![
            parts::time(&Value::from(trouble.since_ms)),
            html! { (text::span(lasted as f64 / 1e3)) },
            html! { (text::inert(&trouble.of, 80)) },
            parts::state(&json!(trouble.state)),
            html! { (text::inert(&trouble.why, 300)) },
        ]
    });
    let rows: Vec<_> = rows.collect();
    html! { @if !rows.is_empty() { (parts::table("Over, since this process began, newest first", &["When", "For", "Of", "State", "Why"], &[1], rows)) } }
}

/// What is not as it should be, worst first.
fn troubles(status: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    let mut add = |of: &str, entity: &Value, page: &str| {
        let state = entity["state"].as_str().unwrap_or("unknown");
        if entity.is_object() && !matches!(state, "healthy" | "catching_up") {
            let why = entity["why"].as_str().unwrap_or_default();
            // A reason begins with its code where it has one.
            let code = why.split_once(": ").map(|(code, _)| code).and_then(codes::find);
            found.push(json!({
                "of": of, "state": state, "since": entity["since"], "what": why, "page": page,
                "code": code.map(|c| c.code), "impact": code.map(|c| c.impact), "fix": code.map(|c| c.fix),
            }));
        }
    };
    add("source", &status["source"], "/source");
    add("journal", &status["journal"], "/journal");
    for connector in status["connectors"].as_array().into_iter().flatten() {
        let name = connector["name"].as_str().unwrap_or_default();
        add(&format!("connector {name}"), connector, &link("/connectors", &[("name", name)]));
    }
    let of_code = |of: &str, code: &str, state: &str, what: &str, page: String, fix: Option<&str>| {
        let known = codes::find(code);
        json!({
            "of": of, "state": state, "what": what, "code": known.map(|c| c.code), "impact": known.map(|c| c.impact),
            "fix": fix.or(known.map(|c| c.fix)), "page": page,
        })
    };
    // What loses nothing may be meant; the source's page has it.
    for gap in status["source"]["coverage"].as_array().into_iter().flatten().filter(|gap| gap["loses"] == true) {
        let text = |key: &str| gap[key].as_str().unwrap_or_default();
        found.push(of_code(text("of"), text("code"), "degraded", text("what"), "/source".to_owned(), gap["fix"].as_str()));
    }
    // What should be mended some day stands on the source's page.
    for finding in status["source"]["doctor"]["findings"].as_array().into_iter().flatten().filter(|f| f["severity"] == "fail") {
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        found.push(of_code("source, says the doctor", text("id"), "degraded", text("what"), "/source".to_owned(), finding["fix"].as_str()));
    }
    for connector in status["connectors"].as_array().into_iter().flatten() {
        let (name, letters) = (connector["name"].as_str().unwrap_or_default(), connector["dead_letters"].as_u64().unwrap_or(0));
        if letters > 0 {
            let fix = "Diagnose them, mend the cause, then redrive them; a decision not to deliver them is a discard.";
            let (what, page) = (
                text::many(
                    letters,
                    "event was refused for good and waits for a decision",
                    "events were refused for good and wait for a decision",
                ),
                link("/dead-letters", &[("connector", name)]),
            );
            found.push(of_code(&format!("dead letters of {name}"), "", "degraded", &what, page, Some(fix)));
        }
    }
    let worst = |trouble: &Value| match trouble["state"].as_str() {
        Some("failed") => 0,
        Some("blocked") => 1,
        Some("degraded") => 2,
        _ => 3,
    };
    found.sort_by_key(worst);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_told_worst_first_with_what_helps() {
        let status = json!({
            "source": {"state": "healthy", "coverage": []},
            "journal": {"state": "blocked", "why": "journal.unavailable: refused", "since": "2026-11-22T10:00:00Z"},
            "connectors": [{"name": "crm", "state": "healthy", "dead_letters": 3}, {"name": "stock", "state": "failed", "why": "no code here", "dead_letters": 0}],
        });
        let found = troubles(&status);
        let short: Vec<_> = found.iter().map(|t| (t["of"].as_str().unwrap_or_default(), t["state"].as_str().unwrap_or_default())).collect();
        assert_eq!(short, [("connector stock", "failed"), ("journal", "blocked"), ("dead letters of crm", "degraded")]);
        assert!(found[0]["code"].is_null() && found[1]["code"] == "journal.unavailable" && found[1]["fix"].is_string());
        assert!(troubles(&json!({"source": null, "journal": {"state": "healthy"}, "connectors": []})).is_empty());
    }
}

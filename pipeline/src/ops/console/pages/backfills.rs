//! Backfills: how far, how fast, what slows them; start, pause, resume, cancel.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::super::admin::access::Caller;
use super::super::parts::Deed;
use super::super::{View, parts, text};
use crate::backfill::INITIAL_LOAD_ID;
use crate::config::Role;

pub(super) fn view(admin: &Admin, caller: &Caller) -> View {
    let Ok(backfill) = admin.backfill() else {
        let live = parts::none("This process does not capture, so it cannot read tables either. Ask the one that does.");
        return View { document: json!({"backfills": []}), headline: "This process does not capture.".to_owned(), live, still: html! {} };
    };
    let document = json!({"backfills": backfill.list()});
    let empty = Vec::new();
    let jobs = document["backfills"].as_array().unwrap_or(&empty);
    let running = jobs.iter().filter(|job| job["state"] == "running").count();
    let live = html! {
        @for job in jobs.iter().filter(|job| job["state"] != "done" && job["state"] != "cancelled") { (under_way(job)) }
        (past(jobs))
        @if jobs.is_empty() { (parts::none("There is no backfill.")) }
    };
    let still = html! {
        @for job in jobs.iter().filter(|job| matches!(job["state"].as_str(), Some("running" | "paused" | "failed"))) { (deeds(caller, job)) }
        section.panel { h2 { "Start one" }
            (Deed { to: "backfill-start", verb: "Look first, or start", grave: false, role: Role::Operator, fields: &[], more: html! {
                    label { span { "Tables" } input name="tables" required placeholder="public.orders, public.payment" autocomplete="off"; }
                    label { span { "Name" } input name="id" placeholder="made up" autocomplete="off"; }
                    label { span { "Filter" } input name="filter" placeholder="business_date >= '2026-11-01'" autocomplete="off"; }
                    label { span { "Connector" } input name="connector" placeholder="all" autocomplete="off"; }
                    label { span { "Rows a second" } input type="number" name="max_rate" min="1" max="1000000" placeholder="as the brakes allow"; }
                    label { span { "What" } select name="what" { option value="look" { "only estimate" } option value="do" { "start" } } } },
                command: "tillstream backfill start --table public.orders --dry-run".to_owned() }.show(caller))
        }
    };
    let headline = format!("{running} of {} backfills run.", jobs.len());
    View { headline, live, still, document }
}

fn name(job: &Value) -> String {
    match job["id"].as_str() {
        Some(INITIAL_LOAD_ID) => "Initial load".to_owned(),
        id => text::inert(id.unwrap_or("–"), 80),
    }
}

fn under_way(job: &Value) -> Markup {
    let progress = &job["progress"];
    let ratio = job["ratio"].as_f64();
    html! {
        section.panel { h2 { (name(job)) } (parts::state(&job["state"]))
            @if let Some(ratio) = ratio { (parts::gauge(ratio, &[], &format!("{} done", text::percent(ratio)))) }
            dl.facts {
                (parts::fact("done", html! { (ratio.map_or_else(|| "–".to_owned(), text::percent)) }))
                (parts::fact("rows", html! { (text::count(&job["rows"])) }))
                (parts::fact("rows a second", html! { (text::rate(&progress["rows_per_second"])) }))
                (parts::fact("to go", html! { (text::seconds(&progress["eta_seconds"])) }))
                (parts::fact("asked for by", parts::cell(&job["by"])))
                (parts::fact("since", parts::time(&job["started_at_ms"])))
            }
            @for (key, word) in [("slowed_by", "Slowed by: "), ("waiting", "Waits: "), ("brakes_blind", "The brakes cannot see: ")] {
                @if let Some(why) = progress[key].as_str() { p.why { (word) (text::inert(why, 300)) } }
            }
            @if let Some(why) = job["why"].as_str() { p.why { (parts::code(&job["code"])) " " (text::inert(why, 300)) } }
            (heat(progress))
            (tables(progress))
        }
    }
}

/// The newest chunks, each as dark as it was quick: what slows a backfill shows as a light stretch.
fn heat(progress: &Value) -> Markup {
    let chunks: Vec<f64> = progress["newest_chunks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|chunk| Some(chunk["rows"].as_f64()? / chunk["seconds"].as_f64()?.max(0.001)))
        .collect();
    let (slowest, quickest) = chunks.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), rate| (a.min(*rate), b.max(*rate)));
    let label =
        format!("Newest {} chunks: the slowest {}/s, the quickest {}/s rows", chunks.len(), text::short(slowest), text::short(quickest));
    html! {
        @if chunks.len() > 1 {
            figure.heat {
                svg viewBox=(format!("0 0 {} 16", 64 * 8)) preserveAspectRatio="none" role="img" aria-label=(label) {
                    @for (i, rate) in chunks.iter().enumerate() {
                        rect class=(format!("h{}", (rate / quickest.max(0.001) * 4.0).round() as u32)) x=(i * 8) width="7" height="16" { title { (text::short(*rate)) " rows/s" } }
                    }
                }
                figcaption { (label) }
            }
        }
    }
}

fn tables(progress: &Value) -> Markup {
    let rows = progress["tables"].as_array().into_iter().flatten().map(|t| {
        let done = match (t["state"].as_str(), t["rows"].as_f64(), t["rows_estimate"].as_f64()) {
            (Some("done"), ..) => 1.0,
            (_, Some(rows), Some(estimate)) if estimate > 0.0 => (rows / estimate).min(1.0),
            _ => 0.0,
        };
        vec![
            parts::cell(&t["table"]),
            parts::state(&t["state"]),
            parts::bar(done, false, &text::percent(done)),
            html! { (text::count(&t["rows"])) },
            html! { (text::count(&t["rows_estimate"])) },
            html! { (text::count(&t["parts_done"])) " of " (text::count(&t["parts"])) },
            html! { @if t["code"].is_string() { (parts::code(&t["code"])) " " (parts::cell(&t["message"])) } },
        ]
    });
    let rows: Vec<_> = rows.collect();
    html! { @if !rows.is_empty() { details id="tables" open { summary { "Tables" } (parts::table("Tables", &["Table", "State", "Done", "Rows", "Of about", "Parts", "Trouble"], &[3, 4], rows)) } } }
}

fn past(jobs: &[Value]) -> Markup {
    let rows = jobs.iter().filter(|job| job["state"] == "done" || job["state"] == "cancelled").map(|job| {
        vec![
            html! { (name(job)) },
            parts::state(&job["state"]),
            html! { (text::count(&job["rows"])) },
            parts::time(&job["started_at_ms"]),
            parts::time(&job["finished_at_ms"]),
            html! { (job["finished_at_ms"].as_i64().zip(job["started_at_ms"].as_i64()).map_or_else(|| "–".to_owned(), |(to, from)| text::span((to - from) as f64 / 1e3))) },
            parts::cell(&job["by"]),
        ]
    });
    let rows: Vec<_> = rows.take(100).collect();
    html! { @if !rows.is_empty() { (parts::table("Over", &["Backfill", "State", "Rows", "Began", "Ended", "Took", "Asked for by"], &[2, 5], rows)) } }
}

fn deeds(caller: &Caller, job: &Value) -> Markup {
    let id = job["id"].as_str().unwrap_or_default();
    let quoted = parts::quoted(id);
    let running = job["state"] == "running";
    let deed = |change: &'static str, verb: &'static str, grave: bool| {
        let command = format!("tillstream backfill {change} {quoted} --reason …");
        Deed {
            to: "backfill-change",
            verb,
            grave,
            role: Role::Operator,
            fields: &[("id", id), ("change", change)],
            more: html! {},
            command,
        }
        .show(caller)
    };
    html! {
        section.panel { h2 { (name(job)) }
            @if running { details id=(format!("pause-{id}")) { summary { "Pause" } p.dim { "The chunk under way ends; the progress is kept." } (deed("pause", "Pause", false)) } }
            @else { details id=(format!("resume-{id}")) { summary { "Go on" } (deed("resume", "Go on", false)) } }
            @if id != INITIAL_LOAD_ID { details id=(format!("cancel-{id}")) { summary { "End it for good" } (deed("cancel", "End it", true)) } }
        }
    }
}

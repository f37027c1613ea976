//! How old events are when they take effect: of the last hour, day and week, with what happened meanwhile.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::ages::{self, WINDOWS, Window};
use super::super::chart::{self, Line};
use super::super::marks::{self, Mark};
use super::super::{Fields, View, link, nothing, parts, text, trusted};
use super::given;
use crate::control::now_ms;

/// Pictures on a page; each has its own address too.
const CHARTS_MAX: usize = 16;
/// The lines of a picture, with their part of all events.
const LINES: [(&str, &str, f64); 3] = [("p50", "p50: half of all events", 0.5), ("p95", "p95", 0.95), ("p99", "p99", 0.99)];

pub(super) fn view(admin: &Admin, fields: &Fields) -> View {
    let chosen = given(fields, "window").and_then(|name| WINDOWS.iter().position(|window| window.name == name)).unwrap_or(0);
    let only = given(fields, "connector");
    let (status, now) = (trusted(admin), now_ms());
    let (marks, began) = (marks::all(admin), marks::began_ms(admin));
    let mut connectors: Vec<Value> = status["connectors"].as_array().into_iter().flatten().map(|c| one(admin, c, now)).collect();
    let worst = connectors.iter().filter_map(|c| c["oldest_waits_seconds"].as_f64()).fold(0.0, f64::max);
    let p95 = |c: &Value| c[WINDOWS[chosen].name]["p95_seconds"].as_f64().unwrap_or(0.0);
    connectors.sort_by(|a, b| p95(b).total_cmp(&p95(a)));
    let rows = connectors.iter().map(row).collect();
    let heads = [
        "Connector",
        "State",
        "Newest effect: committed",
        "Oldest waits",
        "1 h: p50 · p95 · p99",
        "24 h: p50 · p95 · p99",
        "7 d: p50 · p95 · p99",
    ];
    let wanted = || connectors.iter().filter(|c| only.is_none_or(|only| c["name"] == only));
    let address = |window: &Window, connector: Option<&str>| {
        let mut parameters = vec![("window", window.name)];
        parameters.extend(connector.map(|name| ("connector", name)));
        link("/freshness", &parameters)
    };
    let window = &WINDOWS[chosen];
    let live = html! {
        (parts::table("From the commit to the effect, by connector", &heads, &[3, 4, 5, 6], rows))
        div.bar-row {
            ul.tabs aria-label="Window" { @for w in &WINDOWS { li { a href=(address(w, only)) aria-current=[(w.name == window.name).then_some("true")] { (w.label) } } } }
            (chart::legend(&LINES.map(|(class, name, _)| (class, name))))
        }
        @if began > now - window.span_ms() { p.dim { "Known since " (parts::time(&Value::from(began))) ", when this process began: less than " (window.label) "." } }
        @for c in wanted().take(CHARTS_MAX) { (panel(admin, c, &marks, chosen, now, began)) }
        @let more: Vec<&str> = wanted().skip(CHARTS_MAX).filter_map(|c| c["name"].as_str()).collect();
        @if !more.is_empty() { p { "Lines of others: " @for name in more { a href=(address(window, Some(name))) { (parts::word(name)) } " " } } }
        @if only.is_some() { p { a href=(address(window, None)) { "All connectors" } } }
        @if connectors.is_empty() { (parts::none("No connector is delivered by this process.")) }
        (happened(&marks, window, now))
        p.dim { "Counted by this process since it began, and forgotten when it ends: for longer, see the dashboards that the metrics feed. Quantiles are read "
            "between the bounds of that histogram: below a second they are off by a quarter at most, above by up to the next bound (2, 5, 10, 30, 100, 600 s); what is older reads as 600 s." }
    };
    let document = json!({
        "window": window.name,
        "began": text::moment(began),
        "kept": {"bytes_per_connector": ages::CONNECTOR_BYTES, "connectors_max": ages::CONNECTORS_MAX},
        "marks": marks,
        "connectors": connectors,
    });
    View { document, headline: format!("The oldest event waits for {}.", text::span(worst)), live, still: nothing() }
}

/// To the millisecond; more is not known.
fn rounded(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|s| (s * 1e3).round() / 1e3)
}

fn one(admin: &Admin, connector: &Value, now: i64) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let name = connector["name"].as_str().unwrap_or_default();
    let stats = admin.observer.observed.delivery.as_ref().and_then(|d| d.connector(name));
    let newest = stats.map(|stats| stats.newest_commit_ms.load(Relaxed)).filter(|ms| *ms > 0);
    let mut document = json!({
        "name": name,
        "state": connector["state"],
        "newest_effect_commit": newest.map(text::moment),
        "newest_effect_seconds_ago": newest.map(|ms| (now - ms).max(0) / 1000),
        "waiting_entries": connector["lag_entries"],
        "oldest_waits_seconds": connector["lag_seconds"],
        "oldest_waits": admin.console.history.hour(&format!("lag {name}")),
    });
    for (n, window) in WINDOWS.iter().enumerate() {
        let points = admin.console.ages.read(name, n, now);
        let all = ages::together(&points);
        let line = |part: f64| -> Vec<Option<f64>> { points.iter().map(|reading| rounded(reading.quantile(part))).collect() };
        document[window.name] = json!({
            "from": text::moment(from(window, now)),
            "step_seconds": window.step_ms / 1000,
            "events": all.count(),
            "p50_seconds": rounded(all.quantile(0.5)), "p95_seconds": rounded(all.quantile(0.95)), "p99_seconds": rounded(all.quantile(0.99)),
            "p50": line(0.5), "p95": line(0.95), "p99": line(0.99),
        });
    }
    document
}

/// Where a window's points begin.
fn from(window: &Window, now: i64) -> i64 {
    (now.div_euclid(window.step_ms) + 1) * window.step_ms - window.span_ms()
}

fn row(c: &Value) -> Vec<Markup> {
    let waits = c["waiting_entries"].as_u64().unwrap_or(0) > 0;
    let ago = c["newest_effect_seconds_ago"].as_f64().filter(|_| waits);
    let mut cells = vec![
        html! { a href=(link("/connectors", &[("name", c["name"].as_str().unwrap_or_default())])) { (parts::cell(&c["name"])) } },
        parts::state(&c["state"]),
        html! { (parts::time(&c["newest_effect_commit"])) @if let Some(ago) = ago { " " span.dim { "(" (text::span(ago)) " behind)" } } },
        html! { @if waits { (text::seconds(&c["oldest_waits_seconds"])) } @else { span.dim { "nothing" } } },
    ];
    cells.extend(WINDOWS.iter().map(|window| {
        let of = |key: &str| text::seconds(&c[window.name][key]);
        html! { @if c[window.name]["events"] == 0 { "–" } @else { (of("p50_seconds")) " · " strong { (of("p95_seconds")) } " · " (of("p99_seconds")) } }
    }));
    cells
}

fn panel(admin: &Admin, c: &Value, marks: &[Mark], chosen: usize, now: i64, began: i64) -> Markup {
    let (name, window) = (c["name"].as_str().unwrap_or_default(), &WINDOWS[chosen]);
    let mine: Vec<&Mark> = marks.iter().filter(|mark| mark.connector.as_deref().is_none_or(|connector| connector == name)).collect();
    let points = |key: &str| -> Vec<Option<f64>> { c[window.name][key].as_array().into_iter().flatten().map(Value::as_f64).collect() };
    let lines = LINES.map(|(class, ..)| Line { class, name: class, points: points(class) });
    let of = |window: &Window| {
        let of = &c[window.name];
        let cells = ["p50_seconds", "p95_seconds", "p99_seconds"].map(|key| html! { (text::seconds(&of[key])) });
        [vec![html! { (window.label) }], cells.to_vec(), vec![html! { (text::count(&of["events"])) }]].concat()
    };
    html! {
        section.panel {
            h2 { (parts::word(name)) }
            (chart::chart("From the commit to the effect", &lines, &mine, window, from(window, now), began))
            details id=(format!("numbers-{name}")) { summary { "In numbers, and what waits" }
                (parts::table(&format!("Commit to effect of {}", text::inert(name, 40)), &["Window", "p50", "p95", "p99", "Events"], &[1, 2, 3, 4], WINDOWS.iter().map(of).collect()))
                h3 { "Oldest event that waits, last hour" }
                (parts::line(&admin.console.history.hour(&format!("lag {name}")), "oldest waits", text::span))
            }
        }
    }
}

/// What stands on the lines, as a table.
fn happened(marks: &[Mark], window: &Window, now: i64) -> Markup {
    let rows = marks.iter().rev().filter(|m| m.open || m.until_ms.unwrap_or(m.at_ms) >= from(window, now)).take(100).map(|mark| {
        vec![
            parts::time(&Value::from(mark.at_ms)),
            html! { @if mark.open { "lasts" } @else if let Some(until) = mark.until_ms { (text::span((until - mark.at_ms) as f64 / 1e3)) } @else { "–" } },
            html! { b class=(format!("m-{}", mark.kind.letter())) { (mark.kind.letter()) } " " (mark.kind.word()) },
            html! { (text::inert(&mark.what, 300)) },
        ]
    });
    let rows: Vec<_> = rows.collect();
    html! { @if !rows.is_empty() { details id="marks" { summary { "What happened meanwhile (" (rows.len()) ")" } (parts::table("Marks on the lines, newest first", &["When", "For", "Mark", "What"], &[1], rows)) } } }
}

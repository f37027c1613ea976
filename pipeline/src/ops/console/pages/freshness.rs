//! How old events are when they take effect.

use maud::html;
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::history::quantile;
use super::super::{View, nothing, parts, text, trusted};

pub(super) fn view(admin: &Admin) -> View {
    let status = trusted(admin);
    let history = &admin.console.history;
    let delivery = admin.observer.observed.delivery.as_ref();
    let mut connectors = Vec::new();
    for connector in status["connectors"].as_array().into_iter().flatten() {
        let name = connector["name"].as_str().unwrap_or_default();
        let (hour, day) = (history.hour(&format!("lag {name}")), history.day(&format!("lag {name}")));
        let figures = status["figures"]["connectors"].as_array().into_iter().flatten().find(|f| f["name"] == name).cloned();
        let newest =
            delivery.and_then(|d| d.connector(name)).map(|stats| stats.newest_commit_ms.load(std::sync::atomic::Ordering::Relaxed));
        connectors.push(json!({
            "name": name,
            "state": connector["state"],
            "newest_effect_commit": newest.filter(|ms| *ms > 0).map(text::moment),
            "oldest_waits_seconds": connector["lag_seconds"],
            "end_to_end_p95_seconds": figures.as_ref().map(|f| f["end_to_end_p95_seconds"].clone()),
            "hour": {"p50_seconds": quantile(&hour, 0.5), "p95_seconds": quantile(&hour, 0.95), "p99_seconds": quantile(&hour, 0.99), "line": hour},
            "day": {"p50_seconds": quantile(&day, 0.5), "p95_seconds": quantile(&day, 0.95), "p99_seconds": quantile(&day, 0.99), "line": day},
        }));
    }
    let line = |value: &Value| -> Vec<Option<f64>> { value["line"].as_array().into_iter().flatten().map(Value::as_f64).collect() };
    let worst = connectors.iter().filter_map(|c| c["oldest_waits_seconds"].as_f64()).fold(0.0, f64::max);
    let rows = connectors.iter().map(|c| {
        vec![
            parts::cell(&c["name"]),
            parts::state(&c["state"]),
            parts::time(&c["newest_effect_commit"]),
            html! { (text::seconds(&c["end_to_end_p95_seconds"])) },
            html! { (text::seconds(&c["oldest_waits_seconds"])) },
            html! { (text::seconds(&c["hour"]["p50_seconds"])) },
            html! { (text::seconds(&c["hour"]["p95_seconds"])) },
            html! { (text::seconds(&c["hour"]["p99_seconds"])) },
        ]
    });
    let heads =
        ["Connector", "State", "Newest effect: committed", "Commit to effect, p95", "Oldest waits", "p50, hour", "p95, hour", "p99, hour"];
    let live = html! {
        (parts::table("Freshness by connector", &heads, &[3, 4, 5, 6, 7], rows.collect()))
        div.grid {
            @for c in &connectors {
                section.panel {
                    h2 { (parts::cell(&c["name"])) }
                    h3 { "Oldest event that waits: last hour" }
                    (parts::line(&line(&c["hour"]), "oldest waits", text::span))
                    @let day = line(&c["day"]);
                    @if !day.is_empty() {
                        h3 { "Last day, of each four minutes the worst" }
                        (parts::line(&day, "oldest waited", text::span))
                    }
                }
            }
        }
        @if connectors.is_empty() { (parts::none("No connector is delivered by this process.")) }
        p.dim { "Measured every ten seconds since this process began; for longer, see the dashboards that the metrics feed." }
    };
    let headline = format!("The oldest event waits for {}.", text::span(worst));
    View { document: json!({"connectors": connectors}), headline, live, still: nothing() }
}

//! The journal's partitions, and where each connector stands in them.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::{View, nothing, parts, text, trusted};

pub(super) fn view(admin: &Admin) -> View {
    let status = trusted(admin);
    let journal = &status["journal"];
    let state = admin.state().ok();
    // Checkpoints are everybody's: a connector that another process delivers shows here too.
    let mut stands: BTreeMap<String, BTreeMap<u16, (u64, i64)>> = BTreeMap::new();
    let mut owners: BTreeMap<(String, u16), String> = BTreeMap::new();
    if let Some(state) = &state {
        for checkpoint in state.checkpoints() {
            stands.entry(checkpoint.connector.clone()).or_default().insert(checkpoint.partition, (checkpoint.offset.0, checkpoint.at_ms));
        }
        for lease in state.leases().filter(|lease| !lease.released) {
            owners.insert((lease.connector.clone(), lease.partition), lease.owner.clone());
        }
    }
    let mut partitions = Vec::new();
    for partition in journal["partitions"].as_array().into_iter().flatten() {
        let number = partition["partition"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        // The end is asked for every few seconds; a checkpoint may know better.
        let settled = stands.values().filter_map(|of| of.get(&number)).map(|at| at.0.saturating_sub(1)).max();
        let last = partition["last_offset"].as_u64().max(settled);
        let connectors: Vec<Value> = stands
            .iter()
            .map(|(name, of)| {
                let at = of.get(&number);
                let figures = figures_of(&status, name, number);
                json!({
                    "connector": name,
                    "settled_below": at.map(|at| at.0),
                    "behind": last.map(|last| (last + 1).saturating_sub(at.map_or(0, |at| at.0))),
                    "checkpoint_at": at.map(|at| text::moment(at.1)),
                    "owner": owners.get(&(name.clone(), number)),
                    "retention_seconds": figures["retention_seconds"],
                    "lag_seconds": figures["lag_seconds"],
                    "lanes_busy": figures["lanes_busy"],
                    "busiest_lane": figures["busiest_lane"],
                })
            })
            .collect();
        partitions.push(json!({"partition": number, "last_offset": last, "connectors": connectors}));
    }
    let document = json!({"journal": journal, "partitions": partitions, "epoch": state.as_ref().map(|s| s.epoch()), "token": state.as_ref().map(|s| s.token())});
    let live = html! {
        div.grid {
            section.panel { h2 { (parts::cell(&journal["kind"])) } (parts::standing(journal))
                dl.facts {
                    (parts::fact("partitions", html! { (partitions.len()) }))
                    (parts::fact("written", html! { (text::rate(&status["figures"]["journal"]["entries_per_second"])) }))
                    (parts::fact("unconfirmed", html! { (text::size(&journal["unconfirmed_bytes"])) }))
                    (parts::fact("oldest of it", html! { (text::seconds(&journal["oldest_unconfirmed_seconds"])) }))
                    (parts::fact("epoch", html! { (text::count(&document["epoch"])) }))
                    (parts::fact("capture run", html! { (text::count(&document["token"])) }))
                }
            }
        }
        (table(&partitions))
    };
    let worst = partitions.iter().flat_map(|p| p["connectors"].as_array().into_iter().flatten()).filter_map(|c| c["behind"].as_u64()).max();
    let headline = worst.map_or_else(
        || "No connector has a checkpoint yet.".to_owned(),
        |n| format!("At most {} entries are not settled.", text::grouped(n)),
    );
    View { headline, live, still: nothing(), document }
}

fn figures_of(status: &Value, connector: &str, partition: u16) -> Value {
    let of = status["figures"]["connectors"].as_array().into_iter().flatten().find(|c| c["name"] == connector);
    let of = of.and_then(|c| c["partitions"].as_array()?.iter().find(|p| p["partition"] == partition));
    of.cloned().unwrap_or_default()
}

fn table(partitions: &[Value]) -> Markup {
    let mut rows = Vec::new();
    for partition in partitions {
        let number = html! { (text::count(&partition["partition"])) };
        let last = html! { (text::count(&partition["last_offset"])) };
        let connectors = partition["connectors"].as_array().into_iter().flatten();
        let mut any = false;
        for c in connectors {
            any = true;
            rows.push(vec![
                number.clone(),
                last.clone(),
                parts::cell(&c["connector"]),
                html! { (text::count(&c["settled_below"])) },
                html! { (text::count(&c["behind"])) },
                html! { @if c["retention_seconds"].is_number() { (text::seconds(&c["retention_seconds"])) } @else { "–" } },
                parts::time(&c["checkpoint_at"]),
                parts::cell(&c["owner"]),
                skew(c),
            ]);
        }
        if !any {
            let none = std::iter::repeat_n(html! { "–" }, 7);
            rows.push([number, last].into_iter().chain(none).collect());
        }
    }
    let heads = [
        "Partition",
        "Last offset",
        "Connector",
        "Settled below",
        "Behind",
        "Lost to retention in",
        "Checkpoint",
        "Delivered by",
        "Busiest lane",
    ];
    html! {
        (parts::table("Partitions and where connectors stand", &heads, &[0, 1, 3, 4, 5, 8], rows))
        p.dim { "Busiest lane: how much of the time it is in calls, and the mean of all lanes of the partition. Rows of one key always go through one lane: one that is far "
            "above the mean carries a hot row, and more lanes do not help it." }
    }
}

/// How unevenly keys load the lanes; nothing while they rest, or another process has the partition.
fn skew(c: &Value) -> Markup {
    let (busiest, mean) = (c["busiest_lane"].as_f64().unwrap_or(0.0), c["lanes_busy"].as_f64().unwrap_or(0.0));
    let uneven = busiest > 0.6 && busiest > 3.0 * mean;
    html! {
        @if busiest < 0.005 { span.dim { "–" } } @else {
            (text::percent(busiest)) " " span.dim { "of " (text::percent(mean)) } @if uneven { " " (parts::named("degraded", "uneven")) }
        }
    }
}

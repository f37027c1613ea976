//! Live progress of a running pipeline as one line every few seconds, from the status of its processes.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::DemoError;
use crate::config::units;

/// Whom to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Admin endpoint of the process that captures, as http://127.0.0.1:7410.
    #[arg(long)]
    pub capture: String,
    /// Admin endpoint of the process that delivers.
    #[arg(long)]
    pub delivery: String,
    /// Seconds between two lines.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
}

/// A status is numbers at hand; a process that does not answer by then is shown as away.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Prints lines to stderr until the process is told to end.
///
/// # Errors
/// Never for a process that is away: that is what a line shows.
pub async fn run(arguments: Arguments) -> Result<(), DemoError> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_WITHIN)
        .build()
        .map_err(|error| DemoError::internal("build the HTTP client", error))?;
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(arguments.every));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut end = std::pin::pin!(super::terminated());
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = ticks.tick() => {}
        }
        let (capture, delivery) = tokio::join!(status(&client, &arguments.capture), status(&client, &arguments.delivery));
        eprintln!("{}", line(started.elapsed(), capture.as_ref(), delivery.as_ref()));
    }
}

async fn status(client: &reqwest::Client, base: &str) -> Option<Value> {
    let answer = client.get(format!("{}/api/status", base.trim_end_matches('/'))).send().await.ok()?;
    serde_json::from_slice(&answer.bytes().await.ok()?).ok()
}

fn line(elapsed: Duration, capture: Option<&Value>, delivery: Option<&Value>) -> String {
    let mut parts = vec![format!("{:>4} s", elapsed.as_secs())];
    let size = |value: &Value| value.as_u64().map_or_else(|| "?".to_owned(), units::show_size);
    match capture.map(|status| &status["source"]) {
        None => parts.push("capture away".to_owned()),
        Some(source) => parts.push(format!(
            "capture {:>5.0} changes/s, {} of WAL kept{}",
            source["events_per_second"].as_f64().unwrap_or(0.0),
            size(&source["retained_wal_bytes"]),
            unwell(source)
        )),
    }
    if let Some(why) = capture.map(|status| unwell(&status["journal"])).filter(|why| !why.is_empty()) {
        parts.push(format!("journal{why}"));
    }
    match delivery.and_then(|status| status["connectors"].as_array()) {
        None => parts.push("delivery away".to_owned()),
        Some(connectors) => parts.extend(connectors.iter().map(|connector| {
            format!(
                "{} {:>5.0}/s, {} behind ({:.1} s){}",
                connector["name"].as_str().unwrap_or("?"),
                connector["events_per_second"].as_f64().unwrap_or(0.0),
                connector["lag_entries"],
                connector["lag_seconds"].as_f64().unwrap_or(0.0),
                unwell(connector)
            )
        })),
    }
    // Of both processes the stage that is busiest.
    let slowest = [capture, delivery]
        .into_iter()
        .flatten()
        .flat_map(|status| {
            let figures = &status["figures"];
            let capture = std::iter::once(("capture", &figures["capture"]["stages"]));
            let connectors = figures["connectors"].as_array().into_iter().flatten();
            capture.chain(connectors.map(|c| (c["name"].as_str().unwrap_or("?"), &c["stages"])))
        })
        .flat_map(|(of, stages)| stages.as_array().into_iter().flatten().map(move |stage| (of, stage)))
        // Waiting for others is no work.
        .filter(|(_, stage)| !matches!(stage["stage"].as_str(), Some("receive" | "confirm" | "read")))
        .filter_map(|(of, stage)| Some((stage["utilisation"].as_f64()?, of, stage["stage"].as_str()?)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((share, of, stage)) = slowest {
        parts.push(format!("busiest {stage} of {of} {:.0} %", share * 100.0));
    }
    parts.join(" | ")
}

/// What is wrong with a part, in brackets; nothing when it is well or on its way to be.
fn unwell(entity: &Value) -> String {
    match (entity["state"].as_str(), entity["why"].as_str()) {
        (Some("healthy" | "catching_up") | None, _) | (_, None) => String::new(),
        (Some(_), Some(why)) => format!(" ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_who_is_away_and_who_is_busiest() {
        let capture = json!({
            "source": {"events_per_second": 812.4, "retained_wal_bytes": 1 << 20},
            "figures": {"capture": {"stages": [{"stage": "confirm", "utilisation": 0.9}, {"stage": "encode", "utilisation": 0.2}]}},
        });
        let delivery = json!({
            "connectors": [{"name": "inventory", "events_per_second": 700.0, "lag_entries": 12, "lag_seconds": 0.25, "why": null}],
            "figures": {"connectors": [{"name": "inventory", "stages": [{"stage": "deliver", "utilisation": 0.4}]}]},
        });
        let text = line(Duration::from_secs(7), Some(&capture), Some(&delivery));
        assert!(
            text.contains("812 changes/s")
                && text.contains("inventory   700/s, 12 behind")
                && text.contains("busiest deliver of inventory 40 %"),
            "{text}"
        );
        let text = line(Duration::from_secs(7), None, None);
        assert!(text.contains("capture away") && text.contains("delivery away"), "{text}");
    }
}

//! `top`: a running pipeline at a glance, again and again.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tillstream_connectors::registry::Registry;

use super::output::{self, End, Format};
use super::{ConfigFile, status};
use crate::config::settings::Settings;
use crate::config::units;
use crate::ops::canary;
use crate::ops::failure::Failure;

/// Shows a running pipeline's stages, connectors and what limits it, again and again
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream top\n  tillstream top --once\n  tillstream top --once --format json | jq '.bottleneck.sentence'\n\nEnds with Ctrl-C. Into a pipe it prints without colours, one picture after the other; with --once a single one."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How often it looks
    #[arg(long, default_value = "2s", value_parser = interval, value_name = "TIME")]
    interval: Duration,
    /// Print once and end
    #[arg(long)]
    once: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn interval(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(500)..=Duration::from_secs(3600);
    units::duration(text).filter(|d| bounds.contains(d)).ok_or_else(|| "write a duration from 500ms to 1h".to_owned())
}

pub(super) async fn run(arguments: Arguments, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let url = status::address(arguments.url.as_deref(), &arguments.config, settings, registry)?;
    let redraws = !arguments.once && arguments.format == Format::Human && std::io::stdout().is_terminal();
    let mut tick = tokio::time::interval(arguments.interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut answered = false;
    loop {
        tokio::select! {
            _ = &mut interrupted => return Err(End::Code(130)),
            _ = tick.tick() => {}
        }
        let document = match status::fetch(&format!("{url}/api/status")).await {
            Ok(document) => document,
            // A pipeline that restarts is back in a moment; one that never answered is another matter.
            Err(failure) if arguments.once || !answered => return Err(failure.into()),
            Err(failure) => {
                show(redraws, &format!("no answer: {}", failure.what))?;
                continue;
            }
        };
        answered = true;
        match arguments.format {
            Format::Json => output::print(&document)?,
            Format::Human => show(redraws, &output::clean_lines(&picture(&document)))?,
        }
        if arguments.once {
            return Ok(());
        }
    }
}

/// Prints a picture, in place of the one before where that can be.
fn show(redraws: bool, picture: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let text = if redraws {
        // Line by line over what stands there, so that nothing flickers.
        let lines: Vec<String> = picture.lines().map(|line| format!("{line}\x1b[K")).collect();
        format!("\x1b[H{}\n\x1b[J", lines.join("\n"))
    } else {
        format!("{picture}\n")
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::new("internal.output", format!("write to stdout: {error}")))
}

/// Ten tenths.
fn bar(part: f64) -> String {
    let full = (part.clamp(0.0, 1.0) * 10.0).round() as usize;
    format!("{}{}", "#".repeat(full), ".".repeat(10 - full))
}

fn short(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(n) if n < 10.0 => format!("{n:.1}"),
        Some(n) if n < 10_000.0 => format!("{n:.0}"),
        Some(n) if n < 1e6 => format!("{:.1}k", n / 1e3),
        Some(n) => format!("{:.1}M", n / 1e6),
    }
}

fn time(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(s) if s < 1.0 => format!("{:.0}ms", s * 1e3),
        Some(s) if s < 10.0 => format!("{s:.1}s"),
        Some(s) => Duration::try_from_secs_f64(s.round()).map_or_else(|_| "-".to_owned(), |d| units::show_duration(d).replace(' ', "")),
    }
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), units::show_size)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").replace('_', " ")
}

/// What was sent by another process: nothing in it is taken for granted.
fn picture(status: &Value) -> String {
    let mut out = String::new();
    let ready = if status["ready"].as_bool() == Some(true) { "ready" } else { "NOT READY" };
    let at = status["at"].as_str().and_then(|at| at.split('.').next()).unwrap_or("-");
    out.push_str(&format!("{}  {ready}  {at}  up {}\n", word(&status["pipeline"]), time(&status["uptime_seconds"])));
    for reason in status["not_ready"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str(&format!("  ! {reason}\n"));
    }
    if let Some(sentence) = status["bottleneck"]["sentence"].as_str() {
        out.push_str(&format!("limit: {sentence}\n"));
    }
    if let Some(sentence) = canary::sentence(&status["canary"]) {
        out.push_str(&format!("canary: {sentence}\n"));
    }
    let source = &status["source"];
    if source.is_object() {
        let left = if source["slot"].is_null() {
            "-".to_owned()
        } else {
            source["slot"]["seconds_to_ceiling"].as_f64().map_or_else(|| "for ever".to_owned(), |s| time(&s.into()))
        };
        out.push_str(&format!(
            "\nsource   {:<12} {}/s events  {} behind  WAL kept {} of {}, room lasts {left}\n",
            word(&source["state"]),
            short(&source["events_per_second"]),
            size(&source["lag_bytes"]),
            size(&source["retained_wal_bytes"]),
            size(&source["slot"]["ceiling_bytes"]),
        ));
    }
    let journal = &status["journal"];
    out.push_str(&format!(
        "journal  {:<12} {}  {} unconfirmed\n",
        word(&journal["state"]),
        word(&journal["kind"]),
        size(&journal["unconfirmed_bytes"])
    ));
    if status["figures"].is_object() {
        out.push_str(&format!("\n{:<24} {:>8} {:<15} {:>8} {:>8} {:>10}\n", "STAGE", "RATE", "AT WORK", "TIME", "P95", "WAITS"));
    }
    let limit = (status["bottleneck"]["stage"].as_str(), status["bottleneck"]["entity"].as_str());
    let mut stages = |of: &str, stages: &Value| {
        for stage in stages.as_array().into_iter().flatten() {
            let busy = stage["utilisation"].as_f64().unwrap_or(0.0);
            let waits = if stage["queue_unit"] == "bytes" { size(&stage["queue"]) } else { short(&stage["queue"]) };
            let limits = limit.0 == stage["stage"].as_str()
                && (limit.1 == Some(of) || of == "capture" && matches!(limit.1, Some("journal" | "source")));
            out.push_str(&format!(
                "{:<24} {:>8} {} {:>3.0}% {:>8} {:>8} {waits:>10}{}\n",
                format!("{of} {}", word(&stage["stage"])),
                short(&stage["events_per_second"]),
                bar(busy),
                busy * 100.0,
                time(&stage["seconds"]),
                time(&stage["p95_seconds"]),
                if limits { "  <- limit" } else { "" },
            ));
        }
    };
    stages("capture", &status["figures"]["capture"]["stages"]);
    for connector in status["figures"]["connectors"].as_array().into_iter().flatten() {
        stages(connector["name"].as_str().unwrap_or("-"), &connector["stages"]);
    }
    out.push_str(&format!(
        "\n{:<24} {:<12} {:>8} {:>10} {:>8} {:>8} {:>9} {:>8}\n",
        "CONNECTOR", "STATE", "SETTLED", "BEHIND", "OLDEST", "DRAINS", "IN FLIGHT", "LETTERS"
    ));
    for connector in status["connectors"].as_array().into_iter().flatten() {
        let figures = status["figures"]["connectors"].as_array().into_iter().flatten().find(|f| f["name"] == connector["name"]);
        out.push_str(&format!(
            "{:<24} {:<12} {:>8} {:>10} {:>8} {:>8} {:>9} {:>8}\n",
            word(&connector["name"]),
            word(&connector["state"]),
            format!("{}/s", short(&connector["events_per_second"])),
            short(&connector["lag_entries"]),
            time(&connector["lag_seconds"]),
            figures.map_or_else(|| "-".to_owned(), |f| time(&f["drain_seconds"])),
            short(&connector["in_flight"]),
            short(&connector["dead_letters"]),
        ));
        if connector["paused"].is_object() {
            let since = connector["since"].as_str().and_then(|at| at.split('.').next()).unwrap_or("-");
            let kept = connector["paused"]["kept"].as_str().unwrap_or("-");
            let why = connector["why"].as_str().unwrap_or("-");
            out.push_str(&format!("  since {since}: {why}; the journal keeps what waits {kept}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_picture_names_the_limit_and_takes_nothing_for_granted() {
        let status = json!({
            "pipeline": "demo", "ready": false, "at": "2026-11-22T10:00:00.5Z", "not_ready": ["connector crm is blocked: away"],
            "bottleneck": {"stage": "deliver", "entity": "crm", "sentence": "crm is limited by its target"},
            "source": {"state": "catching_up", "events_per_second": 1234.5, "lag_bytes": 1024, "retained_wal_bytes": 2048, "slot": {"ceiling_bytes": 4096, "seconds_to_ceiling": 90}},
            "journal": {"state": "healthy", "kind": "local", "unconfirmed_bytes": 0},
            "figures": {"connectors": [{"name": "crm", "drain_seconds": 840, "stages": [{"stage": "deliver", "events_per_second": 20, "utilisation": 0.98, "seconds": 0.42, "p95_seconds": 1.5, "queue": 12000, "queue_unit": "events"}]}]},
            "connectors": [
                {"name": "crm", "state": "blocked", "events_per_second": 20, "lag_entries": 1_200_000, "lag_seconds": 65.0, "in_flight": 8, "dead_letters": 3},
                {"name": "stock", "state": "paused", "since": "2026-11-22T09:00:00.1Z", "why": "paused by anna: it moves", "paused": {"kept": "until then"}},
            ],
        });
        let picture = picture(&status);
        for part in [
            "NOT READY",
            "! connector crm is blocked",
            "limit: crm is limited",
            "##########  98%",
            "420ms",
            "12.0k  <- limit",
            "1.2M",
            "14m",
            "room lasts 1m30s",
            "  since 2026-11-22T09:00:00: paused by anna: it moves; the journal keeps what waits until then",
        ] {
            assert!(picture.contains(part), "{part} in\n{picture}");
        }
        assert!(!super::picture(&json!({})).is_empty() && !super::picture(&json!([1])).is_empty());
    }
}

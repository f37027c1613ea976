//! What `backfill` shows: a progress line on a terminal, one JSON line now and then elsewhere, a summary at the end.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::output;
use crate::config::units;

/// Without a terminal a line is printed this often, and whenever something changes.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Cells of the bar.
const BAR: usize = 16;

/// Draws progress.
pub(super) struct Screen {
    terminal: bool,
    drawn: bool,
    last: Option<(Instant, String)>,
}

impl Screen {
    pub(super) fn new() -> Screen {
        Screen { terminal: std::io::stderr().is_terminal(), drawn: false, last: None }
    }

    /// Shows how it stands.
    pub(super) fn draw(&mut self, view: &Value) {
        if self.terminal {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[2K{}", output::clean(&line(view)));
            let _ = stderr.flush();
            self.drawn = true;
            return;
        }
        let changing = format!("{}{}{}", view["state"], view["progress"]["slowed_by"], view["progress"]["waiting"]);
        let due = self.last.as_ref().is_none_or(|(at, was)| at.elapsed() >= LINE_EVERY || *was != changing);
        if due && view["state"].as_str() == Some("running") {
            self.last = Some((Instant::now(), changing));
            // A reader that went away is noticed with the summary.
            let _ = output::print(json!({
                "id": view["id"], "state": view["state"], "rows": view["rows"], "ratio": view["ratio"],
                "rows_per_second": view["progress"]["rows_per_second"].as_f64().map(f64::round),
                "eta_seconds": view["progress"]["eta_seconds"], "slowed_by": view["progress"]["slowed_by"], "waiting": view["progress"]["waiting"],
            }));
        }
    }

    /// Takes the progress line away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprint!("\r\x1b[2K");
        }
    }
}

/// `orders  ██████░░░░ 64 %  12.8 M/20.0 M rows  9.4 k/s  ETA 12 m 3 s  slowed by: …`
fn line(view: &Value) -> String {
    let progress = &view["progress"];
    let mut out = format!("{}  ", view["id"].as_str().unwrap_or("-"));
    let rows = view["rows"].as_u64().unwrap_or(0);
    match view["ratio"].as_f64() {
        Some(ratio) => {
            let full = ((ratio * BAR as f64) as usize).min(BAR);
            out.push_str(&format!("{}{} {:.0} %  ", "█".repeat(full), "░".repeat(BAR - full), ratio * 100.0));
            let estimate: u64 = progress["tables"].as_array().into_iter().flatten().filter_map(|t| t["rows_estimate"].as_u64()).sum();
            out.push_str(&format!("{}/{} rows", count(rows), count(estimate.max(rows))));
        }
        None => out.push_str(&format!("{} rows", count(rows))),
    }
    if let Some(rate) = progress["rows_per_second"].as_f64().filter(|r| *r > 0.0) {
        out.push_str(&format!("  {}/s", count(rate as u64)));
    }
    if let Some(eta) = progress["eta_seconds"].as_u64() {
        out.push_str(&format!("  ETA {}", eta_text(eta, view["ratio"].as_f64())));
    }
    for (key, word) in [("slowed_by", "slowed by"), ("waiting", "waits")] {
        if let Some(why) = progress[key].as_str() {
            out.push_str(&format!("  {word}: {why}"));
        }
    }
    out
}

/// Early on nobody knows it well: a range until a twentieth is done.
fn eta_text(seconds: u64, ratio: Option<f64>) -> String {
    let show = |s: u64| units::show_duration(Duration::from_secs(s));
    if ratio.is_none_or(|r| r < 0.05) { format!("{} to {}", show(seconds / 2), show(seconds * 2)) } else { show(seconds) }
}

fn count(n: u64) -> String {
    match n {
        0..=9_999 => n.to_string(),
        10_000..=9_999_999 => format!("{:.1} k", n as f64 / 1e3),
        _ => format!("{:.1} M", n as f64 / 1e6),
    }
}

/// The last line: what it came to, for machines.
pub(super) fn summary(view: &Value, meaning: &str) -> Value {
    let progress = &view["progress"];
    let left = match (view["ratio"].as_f64(), view["rows"].as_u64()) {
        (Some(ratio), Some(rows)) if ratio > 0.0 && ratio < 1.0 => Some((rows as f64 / ratio - rows as f64) as u64),
        (Some(_), _) => Some(0),
        _ => None,
    };
    let ended = view["finished_at_ms"].as_i64().unwrap_or_else(crate::control::now_ms);
    json!({
        "id": view["id"], "state": view["state"], "meaning": meaning, "code": view["code"], "why": view["why"],
        "rows": view["rows"], "rows_skipped_newer": progress["rows_evicted"], "chunks": progress["chunks"],
        "chunks_again": progress["chunks_again"], "chunks_not_visible": progress["chunks_not_visible"], "bytes": progress["bytes"],
        "seconds": view["started_at_ms"].as_i64().map(|from| (ended - from) as f64 / 1000.0),
        "throttled_seconds": progress["throttled_seconds"], "remaining_estimate": left, "tables": progress["tables"],
    })
}

/// All backfills, one line each.
pub(super) fn table(document: &Value) -> String {
    let mut out = String::new();
    for view in document["backfills"].as_array().into_iter().flatten() {
        let tables: Vec<&str> = view["spec"]["tables"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let shown = if tables.len() > 3 { format!("{} tables", tables.len()) } else { tables.join(", ") };
        let more =
            ["slowed_by", "waiting"].iter().find_map(|key| view["progress"][*key].as_str()).or(view["why"].as_str()).unwrap_or_default();
        let percent = view["ratio"].as_f64().map_or_else(|| "    ".to_owned(), |r| format!("{:3.0} %", r * 100.0));
        out.push_str(&format!(
            "{:<32} {:<10} {percent} {:>10} rows  {shown}  {more}\n",
            view["id"].as_str().unwrap_or("-"),
            view["state"].as_str().unwrap_or("-"),
            count(view["rows"].as_u64().unwrap_or(0)),
        ));
    }
    out
}

/// One backfill.
pub(super) fn page(view: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let mut out = format!("{}\n", line(view));
    out.push_str(&format!("state {}, asked by {}\n", text(&view["state"]), text(&view["by"])));
    if let Some(code) = view["code"].as_str() {
        out.push_str(&format!("{code}: {}\n", text(&view["why"])));
    }
    if let Some(blind) = view["progress"]["brakes_blind"].as_str() {
        out.push_str(&format!("brakes: {blind}\n"));
    }
    for (key, word) in [("filter", "where"), ("since", "since"), ("connector", "only for")] {
        if let Some(value) = view["spec"][key].as_str() {
            out.push_str(&format!("{word} {value}\n"));
        }
    }
    for table in view["progress"]["tables"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "  {:<32} {:<8} {} rows, {} of {} parts",
            text(&table["table"]),
            text(&table["state"]),
            table["rows"],
            table["parts_done"],
            table["parts"]
        ));
        if let Some(code) = table["code"].as_str() {
            out.push_str(&format!("  {code}: {}", text(&table["message"])));
        }
        out.push('\n');
    }
    for (cause, seconds) in view["progress"]["throttled_seconds"].as_object().into_iter().flatten() {
        out.push_str(&format!("  waited {:.1} s for {cause}\n", seconds.as_f64().unwrap_or(0.0)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_what_slows_it() {
        let view = json!({"id": "orders", "state": "running", "rows": 12_800_000, "ratio": 0.64, "progress": {
            "tables": [{"rows_estimate": 20_000_000}], "rows_per_second": 9_400.0, "eta_seconds": 723, "slowed_by": "peak window until 14:00"}});
        assert_eq!(
            line(&view),
            "orders  ██████████░░░░░░ 64 %  12.8 M/20.0 M rows  9400/s  ETA 12 m 3 s  slowed by: peak window until 14:00"
        );
        assert_eq!(eta_text(60, Some(0.01)), "30 s to 2 m 0 s");
    }
}

//! The status of a process: one JSON document for machines, one screen for people, from the same numbers.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};
use tillstream_schemas::Lsn;

use super::figures::Figures;
use super::observer::{self, Observer};
use super::{bottleneck, canary, kept};
use crate::config::{Retention, units};
use crate::control::now_ms;

/// Milliseconds since the Unix epoch as RFC 3339.
fn moment(ms: i64) -> Value {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(moment) if ms > 0 => moment.to_string().into(),
        _ => Value::Null,
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The status document.
#[must_use]
pub fn document(observer: &Observer) -> Value {
    let rates = observer.rates();
    let figures = observer.figures();
    json!({
        "tillstream": env!("CARGO_PKG_VERSION"),
        "pipeline": observer.observed.pipeline,
        "at": moment(now_ms()),
        "uptime_seconds": observer.started.elapsed().as_secs(),
        "ready": observer.not_ready().is_empty(),
        "not_ready": observer.not_ready(),
        "source": source(observer, &rates),
        "journal": journal(observer),
        "initial_load": observer.observed.backfill.as_ref().map(|b| b.stats().progress()),
        "backfills": observer.observed.backfill.as_ref().map(|b| b.list().into_iter().filter(|v| v.id != crate::backfill::INITIAL_LOAD_ID && v.state == crate::control::BackfillState::Running).collect::<Vec<_>>()),
        "connectors": connectors(observer, &rates, &figures),
        "canary": canary::look(observer),
        "bottleneck": bottleneck::bottleneck(&figures),
        "figures": figures,
    })
}

fn source(observer: &Observer, rates: &observer::Rates) -> Value {
    let (Some(stats), Some((verdict, since))) = (&observer.observed.capture, observer.source()) else { return Value::Null };
    let lsn = |value: u64| if value == 0 { Value::Null } else { Lsn(value).to_string().into() };
    let (received, confirmed) = (stats.received_lsn.load(Relaxed), stats.confirmed_lsn.load(Relaxed));
    let (acknowledged, server) = (stats.acknowledged_lsn.load(Relaxed), stats.server_lsn.load(Relaxed));
    let slot = stats.slot();
    json!({
        "name": observer.observed.source,
        "state": verdict.health,
        "since": moment(since),
        "why": verdict.why,
        "doing": stats.state().0.as_str(),
        "token": stats.token.load(Relaxed),
        "sessions": stats.sessions.load(Relaxed),
        "received_lsn": lsn(received),
        "confirmed_lsn": lsn(confirmed),
        "acknowledged_lsn": lsn(acknowledged),
        "server_lsn": lsn(server),
        "lag_bytes": observer::lag_bytes(stats),
        "retained_wal_bytes": slot.as_ref().map(|s| s.retained_bytes),
        "slot": slot.as_ref().map(|s| json!({
            "at": moment(s.at_ms),
            "restart_lsn": lsn(s.restart.0),
            "confirmed_lsn": lsn(s.confirmed.0),
            "wal_status": s.wal_status,
            "ceiling_bytes": s.ceiling_bytes,
            "wal_bytes_per_second": s.wal_bytes_per_second.round(),
            "seconds_to_ceiling": s.seconds_to_ceiling,
            "pressure": s.pressure.as_str(),
            "pinned_by": s.pinned_by,
            "decoding": s.decoding.map(|d| json!({
                "spill_txns": d.spill_txns,
                "spill_bytes": d.spill_bytes,
                "stream_txns": d.stream_txns,
                "stream_bytes": d.stream_bytes,
                "total_txns": d.total_txns,
                "total_bytes": d.total_bytes,
            })),
        })),
        "spool_bytes": stats.spool_bytes.load(Relaxed),
        "last_commit": moment(stats.committed_at_ms.load(Relaxed)),
        "transactions": stats.transactions.load(Relaxed),
        "events": stats.events.load(Relaxed),
        "reads": stats.reads.load(Relaxed),
        "skipped": stats.skipped.load(Relaxed),
        "events_per_second": rounded(rates.events),
        "transactions_per_second": rounded(rates.transactions),
        "coverage": observer.observed.coverage.as_ref().map(|c| c.gaps()),
        "doctor": observer.observed.doctor.as_ref().and_then(|d| d.findings()).map(|(at, findings)| json!({"at": moment(at), "findings": findings})),
        "last_error": stats.last_error().map(|e| json!({"code": e.code, "message": e.message, "at": moment(e.at_ms)})),
    })
}

fn journal(observer: &Observer) -> Value {
    let (verdict, since) = observer.journal();
    let last = observer.last_offsets();
    let partitions: Vec<Value> =
        (0..observer.observed.journal.partitions()).map(|p| json!({"partition": p, "last_offset": last.get(&p)})).collect();
    json!({
        "kind": observer.journal_kind(),
        "state": verdict.health,
        "since": moment(since),
        "why": verdict.why,
        "partitions": partitions,
        "unconfirmed_bytes": observer.observed.capture.as_ref().map(|c| c.unconfirmed_bytes.load(Relaxed)),
        "oldest_unconfirmed_seconds": observer.oldest_unconfirmed().map(|d| rounded(d.as_secs_f64())),
    })
}

fn connectors(observer: &Observer, rates: &observer::Rates, figures: &Figures) -> Vec<Value> {
    let Some(stats) = &observer.observed.delivery else { return Vec::new() };
    let last = observer.last_offsets();
    let control = observer.observed.control.get().map(|c| c.state());
    let connector = |(i, stats): (usize, &std::sync::Arc<crate::delivery::stats::ConnectorStats>)| {
        let (verdict, since) = observer.connector(stats);
        let progress = stats.partitions();
        let lag_entries: u64 =
            progress.iter().map(|(p, progress)| last.get(p).map_or(0, |last| (last + 1).saturating_sub(progress.settled.0))).sum();
        let partitions: Vec<Value> = progress
            .iter()
            .map(|(p, progress)| json!({"partition": p, "read": progress.read.0, "settled": progress.settled.0, "position": progress.position.to_string(), "in_flight": progress.in_flight, "replay_until": progress.replay_until.map(|until| until.0)}))
            .collect();
        let letters = control.as_ref().map(|state| state.dead_letters().filter(|l| l.letter.connector == stats.name()).count());
        let paused = observer.pause(stats.name()).map(|pause| {
            let kept = kept_for(figures, stats.name(), observer.observed.retention);
            json!({
                "by": pause.by,
                "since": moment(pause.at_ms),
                "reason": pause.reason,
                "kept": kept::until(kept, observer.observed.retention),
                "kept_seconds": kept.map(|left| left.as_secs()),
            })
        });
        json!({
            "name": stats.name(),
            "kind": observer.observed.connectors.get(i).map(|c| c.kind),
            "state": verdict.health,
            "since": moment(since),
            "why": verdict.why,
            "paused": paused,
            "lag_entries": lag_entries,
            "lag_seconds": observer::lag(stats).map_or(0.0, |d| rounded(d.as_secs_f64())),
            "events_per_second": rounded(rates.connectors.get(i).copied().unwrap_or(0.0)),
            "in_flight": progress.values().map(|p| p.in_flight).sum::<u64>(),
            "delivered": stats.delivered.load(Relaxed),
            "absorbed": stats.absorbed.load(Relaxed),
            "rejected": stats.rejected.load(Relaxed),
            "redriven": stats.redriven.load(Relaxed),
            "filtered": stats.filtered.load(Relaxed),
            "retries": stats.retries.load(Relaxed),
            "calls": stats.calls.load(Relaxed),
            "calls_failed": stats.calls_failed.load(Relaxed),
            "pauses": stats.pauses.load(Relaxed),
            "superseded": stats.superseded.load(Relaxed),
            "coalesced": stats.coalesced.load(Relaxed),
            "breaker": stats.breaker().as_str(),
            "breaker_opened": stats.breaker_opened.load(Relaxed),
            "calls_allowed": stats.calls_allowed.load(Relaxed),
            "dead_letters": letters,
            "last_error": stats.last_error().map(|e| json!({"code": e.code, "message": e.message, "at": moment(e.at_ms)})),
            "partitions": partitions,
        })
    };
    stats.connectors().iter().enumerate().map(connector).collect()
}

/// Time until the journal removes what waits for a connector, as far as this process sees it; with nothing that waits, what comes now.
fn kept_for(figures: &Figures, connector: &str, retention: Retention) -> Option<Duration> {
    let partitions = figures.connectors.iter().find(|c| c.name == connector).map_or(&[][..], |c| &c.partitions);
    let waits = partitions.iter().filter_map(|p| p.retention_seconds).min_by(f64::total_cmp);
    let nothing = partitions.iter().all(|p| p.lag_entries == 0);
    waits.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).or(retention.age.filter(|_| nothing))
}

/// The document as one screen. `status` prints what another process sent, so nothing in it is taken for granted.
#[must_use]
pub fn screen(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").replace('_', " ");
    let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), units::show_size);
    let rate = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.0}/s"));
    let mut out = String::new();
    let ready = if status["ready"].as_bool() == Some(true) { "ready" } else { "not ready" };
    out.push_str(&format!("pipeline {}: {ready}\n", status["pipeline"].as_str().unwrap_or("-")));
    let line = |name: String, entity: &Value| {
        let since = entity["since"].as_str().and_then(|s| s.parse::<jiff::Timestamp>().ok());
        let since = since.map(|s| u64::try_from(jiff::Timestamp::now().as_millisecond() - s.as_millisecond()).unwrap_or(0));
        let since = since.map_or_else(|| "-".to_owned(), |ms| units::show_duration(Duration::from_millis(ms)));
        format!("{name:<24} {:<12} for {since:<10} {}\n", text(&entity["state"]), entity["why"].as_str().unwrap_or("-"))
    };
    let source = &status["source"];
    if source.is_object() {
        out.push_str(&line(format!("source {}", source["name"].as_str().unwrap_or("-")), source));
        out.push_str(&format!(
            "  {} events, {} transactions; {} of WAL kept for us; received {}, acknowledged {}, server {}\n",
            rate(&source["events_per_second"]),
            rate(&source["transactions_per_second"]),
            bytes(&source["retained_wal_bytes"]),
            source["received_lsn"].as_str().unwrap_or("-"),
            source["acknowledged_lsn"].as_str().unwrap_or("-"),
            source["server_lsn"].as_str().unwrap_or("-"),
        ));
    }
    let decoding = &source["slot"]["decoding"];
    for (what, txns, size) in
        [("spilled to the server's disk", "spill_txns", "spill_bytes"), ("sent before their commit", "stream_txns", "stream_bytes")]
    {
        if decoding[txns].as_u64().is_some_and(|n| n > 0) {
            out.push_str(&format!("  {} of {} transactions {what}, {}\n", decoding[txns], decoding["total_txns"], bytes(&decoding[size])));
        }
    }
    for gap in source["coverage"].as_array().into_iter().flatten() {
        out.push_str(&format!("  {}: {}\n", gap["code"].as_str().unwrap_or("-"), gap["what"].as_str().unwrap_or("-")));
    }
    for finding in source["doctor"]["findings"].as_array().into_iter().flatten() {
        out.push_str(&format!("  {}: {}\n", finding["id"].as_str().unwrap_or("-"), finding["what"].as_str().unwrap_or("-")));
    }
    let load = &status["initial_load"];
    if load["finished"].as_bool() == Some(false) {
        let tables = load["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rows: u64 = tables.iter().filter_map(|t| t["rows"].as_u64()).sum();
        let done = tables.iter().filter(|t| t["state"].as_str() == Some("done")).count();
        out.push_str(&format!("initial load: {done} of {} tables done, {rows} rows read", tables.len()));
        out.push_str(&load["waiting"].as_str().map_or_else(String::new, |why| format!("; waits: {why}")));
        out.push_str(&load["slowed_by"].as_str().map_or_else(String::new, |why| format!("; slowed by: {why}")));
        out.push('\n');
        for table in tables.iter().filter(|t| t["code"].is_string()) {
            let text = |key: &str| table[key].as_str().unwrap_or("-").to_owned();
            out.push_str(&format!("  {}: {}: {}\n", text("table"), text("code"), text("message")));
        }
    }
    for job in status["backfills"].as_array().into_iter().flatten() {
        let percent = job["ratio"].as_f64().map_or_else(String::new, |r| format!(", {:.0} %", r * 100.0));
        out.push_str(&format!("backfill {}: {} rows{percent}", job["id"].as_str().unwrap_or("-"), job["rows"]));
        for (key, word) in [("slowed_by", "slowed by"), ("waiting", "waits")] {
            out.push_str(&job["progress"][key].as_str().map_or_else(String::new, |why| format!("; {word}: {why}")));
        }
        out.push('\n');
    }
    let journal = &status["journal"];
    out.push_str(&line(format!("journal {}", journal["kind"].as_str().unwrap_or("-")), journal));
    out.push_str(&format!("  {} unconfirmed\n", bytes(&journal["unconfirmed_bytes"])));
    for connector in status["connectors"].as_array().into_iter().flatten() {
        out.push_str(&line(format!("connector {}", connector["name"].as_str().unwrap_or("-")), connector));
        out.push_str(&format!(
            "  {}; {} behind ({} s), {} in flight; {} delivered, {} repeats absorbed, {} dead letters open\n",
            rate(&connector["events_per_second"]),
            connector["lag_entries"],
            connector["lag_seconds"],
            connector["in_flight"],
            connector["delivered"],
            connector["absorbed"],
            connector["dead_letters"],
        ));
        for partition in connector["partitions"].as_array().into_iter().flatten().filter(|p| p["replay_until"].is_u64()) {
            let (number, settled, until) = (&partition["partition"], &partition["settled"], &partition["replay_until"]);
            out.push_str(&format!("  replays partition {number}: at offset {settled} of the {until} where it stood\n"));
        }
        if let Some(kept) = connector["paused"]["kept"].as_str() {
            out.push_str(&format!("  the journal keeps what waits for it {kept}\n"));
        }
        if connector["breaker"].as_str().is_some_and(|breaker| breaker != "closed") {
            out.push_str("  the target is away: delivery is paused and probes it; nothing becomes a dead letter meanwhile\n");
        }
    }
    for stage in status["figures"]["capture"]["stages"].as_array().into_iter().flatten() {
        out.push_str(&stage_line("capture", stage));
    }
    for connector in status["figures"]["connectors"].as_array().into_iter().flatten() {
        for stage in connector["stages"].as_array().into_iter().flatten() {
            out.push_str(&stage_line(connector["name"].as_str().unwrap_or("-"), stage));
        }
    }
    if let Some(sentence) = canary::sentence(&status["canary"]) {
        out.push_str(&format!("canary: {sentence}\n"));
    }
    if let Some(sentence) = status["bottleneck"]["sentence"].as_str() {
        out.push_str(&format!("limit: {sentence}\n"));
    }
    out
}

/// A stage that is at work, in a line; nothing of one that rests.
fn stage_line(of: &str, stage: &Value) -> String {
    let utilisation = stage["utilisation"].as_f64().unwrap_or(0.0);
    if utilisation < 0.01 {
        return String::new();
    }
    let name = stage["stage"].as_str().unwrap_or("-");
    let queue = match (stage["queue"].as_u64(), stage["queue_unit"].as_str()) {
        (Some(0) | None, _) => String::new(),
        (Some(n), Some("bytes")) => format!(", {} before it", units::show_size(n)),
        (Some(n), unit) => format!(", {n} {} before it", unit.unwrap_or("")),
    };
    let p95 =
        stage["p95_seconds"].as_f64().map_or_else(String::new, |s| format!(", p95 {}", units::show_duration(Duration::from_secs_f64(s))));
    format!("  stage {name} of {of}: at work {:.0} % of the time{p95}{queue}\n", utilisation * 100.0)
}

//! Fills the names of `telemetry::names` with numbers, read when somebody scrapes: no loop ever touches the registry.

mod stages;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::canary;
use super::figures::Figures;
use super::health::Health;
use super::observer::{self, Observer};
use crate::capture::source::Decoding;
use crate::capture::stats::{SlotReport, State, Stats};
use crate::control::now_ms;
use crate::delivery::{Breaker, ConnectorState};
use crate::telemetry::names::{self, Kind, Metric};

/// The exposition in OpenMetrics text.
///
/// # Errors
/// When a number cannot be written, which a string never refuses.
pub fn exposition(observer: &Arc<Observer>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Numbers(Arc::clone(observer))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Numbers(Arc<Observer>);

/// Label values of one sample, in the order of the metric's labels.
type Labels<'a> = Vec<&'a str>;

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let observer = &self.0;
        let pipeline = observer.observed.pipeline.as_str();
        // Once for all: two metrics of one scrape tell of the same moment.
        let figures = observer.figures();
        for metric in names::ALL {
            let label = |labels: Vec<String>| -> Vec<(&str, String)> {
                debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
                [("pipeline", pipeline.to_owned())].into_iter().chain(metric.labels.iter().copied().zip(labels)).collect()
            };
            if metric.kind == Kind::Histogram {
                let times = stages::times(observer, metric);
                if times.is_empty() {
                    continue;
                }
                let mut family = encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Histogram)?;
                for (labels, times) in times {
                    let rungs: Vec<(f64, u64)> = times.rungs().collect();
                    let labels = label(labels);
                    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(times.sum_seconds(), times.count(), &rungs, None)?;
                }
                continue;
            }
            let samples = samples(observer, &figures, metric);
            if samples.is_empty() {
                continue;
            }
            let kind = if metric.kind == Kind::Counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in samples {
                let labels = label(labels);
                let encoder = family.encode_family(&labels)?;
                match metric.kind {
                    Kind::Counter => ConstCounter::new(value).encode(encoder)?,
                    Kind::Gauge | Kind::Histogram => ConstGauge::new(value).encode(encoder)?,
                }
            }
        }
        Ok(())
    }
}

/// The samples of one metric: label values and number.
fn samples(observer: &Observer, figures: &Figures, metric: &Metric) -> Vec<(Vec<String>, f64)> {
    if let Some(samples) = stages::samples(observer, figures, metric) {
        return samples;
    }
    match metric.name {
        n if n == names::BUILD_INFO.name => vec![(vec![env!("CARGO_PKG_VERSION").to_owned()], 1.0)],
        n if n == names::PROCESS_MEMORY.name => resident_bytes().map(|bytes| (Vec::new(), bytes)).into_iter().collect(),
        n if n == names::PROCESS_CPU.name => cpu_seconds().map(|seconds| (Vec::new(), seconds)).into_iter().collect(),
        n if n == names::UPTIME.name => vec![(Vec::new(), observer.started.elapsed().as_secs_f64())],
        n if n == names::CAPTURE_COVERAGE_GAPS.name => {
            let mut counts = std::collections::BTreeMap::new();
            for gap in observer.observed.coverage.iter().flat_map(|c| c.gaps()) {
                *counts.entry(gap.code).or_insert(0u32) += 1;
            }
            counts.into_iter().map(|(code, n)| (vec![code.to_owned()], f64::from(n))).collect()
        }
        n if n == names::DOCTOR_FINDINGS.name => {
            let mut counts = std::collections::BTreeMap::new();
            for finding in observer.observed.doctor.iter().filter_map(|d| d.findings()).flat_map(|(_, findings)| findings) {
                *counts.entry((finding.id, finding.severity.as_str())).or_insert(0u32) += 1;
            }
            counts.into_iter().map(|((id, severity), n)| (vec![id.to_owned(), severity.to_owned()], f64::from(n))).collect()
        }
        n if n.starts_with("tillstream_canary_") => canary::samples(observer, metric),
        n if n.starts_with("tillstream_backfill_") => backfills(observer, metric),
        n if n == names::JOURNAL_LAST_OFFSET.name => {
            observer.last_offsets().into_iter().map(|(p, last)| (vec![p.to_string()], last as f64)).collect()
        }
        n if n.starts_with("tillstream_delivery_")
            || n == names::DEAD_LETTERS.name
            || n == names::DEAD_LETTER_AGE.name
            || n == names::JOURNAL_LAG_ENTRIES.name =>
        {
            delivery(observer, metric)
        }
        _ => capture(observer, metric),
    }
}

/// Jobs that are not over, and of those that are done the last under each connector: an id is new each night, so it must not
/// become a label for ever.
fn backfills(observer: &Observer, metric: &Metric) -> Vec<(Vec<String>, f64)> {
    let Some(backfill) = &observer.observed.backfill else { return Vec::new() };
    let load = backfill.stats();
    match metric.name {
        n if n == names::BACKFILL_ROWS.name => load.progress().tables.into_iter().map(|t| (vec![t.table], t.rows as f64)).collect(),
        n if n == names::BACKFILL_FINISHED.name => vec![(Vec::new(), f64::from(u8::from(load.is_finished())))],
        n if n == names::BACKFILL_LAST_SUCCESS.name => {
            let mut last = std::collections::BTreeMap::<String, f64>::new();
            for view in backfill.list() {
                if let (Some(at), Some(table)) = (view.finished_at_ms, view.spec.tables.first()) {
                    let entry = last.entry(table.clone()).or_default();
                    *entry = entry.max(at as f64 / 1000.0);
                }
            }
            last.into_iter().map(|(table, at)| (vec![table], at)).collect()
        }
        n => {
            let running = backfill.list().into_iter().filter(|v| !v.state.is_over());
            match n {
                n if n == names::BACKFILL_RUNNING.name => vec![(Vec::new(), running.count() as f64)],
                n if n == names::BACKFILL_RATIO.name => running.filter_map(|v| Some((vec![v.id], v.ratio?))).collect(),
                n if n == names::BACKFILL_ETA.name => running.filter_map(|v| Some((vec![v.id], v.progress.eta_seconds? as f64))).collect(),
                n if n == names::BACKFILL_THROTTLED.name => {
                    let mut all = std::collections::BTreeMap::<&'static str, f64>::new();
                    for (cause, seconds) in backfill.list().into_iter().flat_map(|v| v.progress.throttled_seconds) {
                        *all.entry(cause).or_default() += seconds;
                    }
                    all.into_iter().map(|(cause, seconds)| (vec![cause.to_owned()], seconds)).collect()
                }
                _ => Vec::new(),
            }
        }
    }
}

/// The server's own counters of a slot: all, spilled, streamed.
fn decoded(stats: &Stats, numbers: impl Fn(&Decoding) -> [u64; 3]) -> Vec<(Vec<String>, f64)> {
    let Some(decoding) = stats.slot().and_then(|slot| slot.decoding) else { return Vec::new() };
    ["all", "spilled", "streamed"].into_iter().zip(numbers(&decoding)).map(|(how, n)| (vec![how.to_owned()], n as f64)).collect()
}

fn capture(observer: &Observer, metric: &Metric) -> Vec<(Vec<String>, f64)> {
    let (Some(stats), Some((verdict, _))) = (&observer.observed.capture, observer.source()) else { return Vec::new() };
    let one = |value: u64| vec![(Vec::new(), value as f64)];
    let server = stats.server_lsn.load(Relaxed);
    let of_slot = |number: &dyn Fn(&SlotReport) -> Option<u64>| stats.slot().as_ref().and_then(number).map_or_else(Vec::new, one);
    match metric.name {
        n if n == names::CAPTURE_UP.name => one(u64::from(matches!(verdict.health, Health::Healthy | Health::CatchingUp))),
        n if n == names::CAPTURE_STATE.name => vec![(vec![stats.state().0.as_str().to_owned()], 1.0)],
        n if n == names::CAPTURE_ERROR.name => match (stats.last_error(), stats.state().0) {
            (Some(error), State::Retrying | State::Failed | State::WaitingForSlot) => vec![(vec![error.code.to_owned()], 1.0)],
            _ => Vec::new(),
        },
        n if n == names::CAPTURE_ACK_AGE.name => vec![(Vec::new(), observer.acknowledgement_age().as_secs_f64())],
        n if n == names::CAPTURE_TOKEN.name => one(u64::from(stats.token.load(Relaxed))),
        n if n == names::CAPTURE_SESSIONS.name => one(stats.sessions.load(Relaxed)),
        n if n == names::CAPTURE_TRANSACTIONS.name => one(stats.transactions.load(Relaxed)),
        n if n == names::CAPTURE_EVENTS.name => one(stats.events.load(Relaxed)),
        n if n == names::CAPTURE_READS.name => one(stats.reads.load(Relaxed)),
        n if n == names::CAPTURE_SKIPPED.name => one(stats.skipped.load(Relaxed)),
        n if n == names::CAPTURE_DEAD_LETTERS.name => one(stats.dead_letters.load(Relaxed)),
        n if n == names::CAPTURE_RECEIVED_BYTES.name => one(stats.received_bytes.load(Relaxed)),
        n if n == names::CAPTURE_RECEIVED_LSN.name => one(stats.received_lsn.load(Relaxed)),
        n if n == names::CAPTURE_ACKNOWLEDGED_LSN.name => one(stats.acknowledged_lsn.load(Relaxed)),
        n if n == names::CAPTURE_SERVER_LSN.name => one(server),
        n if n == names::CAPTURE_UNACKNOWLEDGED_WAL.name => one(server.saturating_sub(stats.acknowledged_lsn.load(Relaxed))),
        n if n == names::CAPTURE_RETAINED_WAL.name => of_slot(&|s| Some(s.retained_bytes)),
        n if n == names::CAPTURE_WAL_CEILING.name => of_slot(&|s| Some(s.ceiling_bytes)),
        n if n == names::CAPTURE_WAL_TIME_LEFT.name => of_slot(&|s| s.seconds_to_ceiling),
        n if n == names::CAPTURE_WAL_PRESSURE.name => {
            stats.slot().map(|s| (vec![s.pressure.as_str().to_owned()], 1.0)).into_iter().collect()
        }
        n if n == names::CAPTURE_DECODED_TRANSACTIONS.name => decoded(stats, |d| [d.total_txns, d.spill_txns, d.stream_txns]),
        n if n == names::CAPTURE_DECODED_BYTES.name => decoded(stats, |d| [d.total_bytes, d.spill_bytes, d.stream_bytes]),
        n if n == names::CAPTURE_SPOOL_BYTES.name => one(stats.spool_bytes.load(Relaxed)),
        n if n == names::CAPTURE_LAG.name => one(observer::lag_bytes(stats)),
        n if n == names::CAPTURE_BUSY.name => vec![
            (vec!["receive".to_owned()], stats.receive_wait_ns.load(Relaxed) as f64 / 1e9),
            (vec!["encode".to_owned()], stats.encode_ns.load(Relaxed) as f64 / 1e9),
            (vec!["publish".to_owned()], stats.publish_wait_ns.load(Relaxed) as f64 / 1e9),
        ],
        n if n == names::JOURNAL_APPENDED_BYTES.name => one(stats.bytes.load(Relaxed)),
        n if n == names::JOURNAL_BATCHES.name => one(stats.batches.load(Relaxed)),
        n if n == names::JOURNAL_UNCONFIRMED_BYTES.name => one(stats.unconfirmed_bytes.load(Relaxed)),
        _ => Vec::new(),
    }
}

fn delivery(observer: &Observer, metric: &Metric) -> Vec<(Vec<String>, f64)> {
    let Some(stats) = &observer.observed.delivery else { return Vec::new() };
    let mut samples = Vec::new();
    for connector in stats.connectors() {
        let name = connector.name().to_owned();
        let mut add = |labels: &[&str], value: f64| {
            let labels: Labels<'_> = labels.to_vec();
            samples.push((std::iter::once(name.clone()).chain(labels.into_iter().map(str::to_owned)).collect(), value));
        };
        match metric.name {
            n if n == names::DELIVERY_UP.name => {
                let healthy = matches!(observer.connector(connector).0.health, Health::Healthy | Health::CatchingUp);
                add(&[], f64::from(u8::from(healthy)));
            }
            n if n == names::DELIVERY_STATE.name => {
                let state = observer.pause(&name).map_or(connector.state(), |_| ConnectorState::Paused);
                add(&[state.as_str()], 1.0);
            }
            n if n == names::DELIVERY_PAUSED.name => add(&[], f64::from(u8::from(observer.pause(&name).is_some()))),
            n if n == names::DELIVERY_EVENTS.name => {
                add(&["applied"], connector.delivered.load(Relaxed) as f64);
                add(&["duplicate"], connector.absorbed.load(Relaxed) as f64);
                add(&["dead_lettered"], connector.rejected.load(Relaxed) as f64);
                add(&["redriven"], connector.redriven.load(Relaxed) as f64);
                add(&["filtered"], connector.filtered.load(Relaxed) as f64);
                add(&["superseded"], connector.superseded.load(Relaxed) as f64);
            }
            n if n == names::DELIVERY_RETRIES.name => add(&[], connector.retries.load(Relaxed) as f64),
            n if n == names::DELIVERY_CALLS.name => {
                let (calls, failed) = (connector.calls.load(Relaxed), connector.calls_failed.load(Relaxed));
                add(&["ok"], calls.saturating_sub(failed) as f64);
                add(&["failed"], failed as f64);
            }
            n if n == names::DELIVERY_PAUSES.name => add(&[], connector.pauses.load(Relaxed) as f64),
            n if n == names::DELIVERY_COALESCED.name => add(&[], connector.coalesced.load(Relaxed) as f64),
            n if n == names::DELIVERY_BREAKER.name => add(&[], f64::from(u8::from(connector.breaker() != Breaker::Closed))),
            n if n == names::DELIVERY_BREAKER_OPENED.name => add(&[], connector.breaker_opened.load(Relaxed) as f64),
            n if n == names::DELIVERY_CALLS_ALLOWED.name => add(&[], connector.calls_allowed.load(Relaxed) as f64),
            n if n == names::DELIVERY_BUSY.name => add(&[], connector.busy_us.load(Relaxed) as f64 / 1e6),
            n if n == names::DELIVERY_BYTES.name => add(&[], connector.bytes.load(Relaxed) as f64),
            n if n == names::DELIVERY_RATE_LIMITED.name => {
                add(&["rate"], connector.waits.rate.load(Relaxed) as f64 / 1e6);
                add(&["pause"], connector.waits.pause.load(Relaxed) as f64 / 1e6);
            }
            n if n == names::DELIVERY_IN_FLIGHT.name => {
                add(&[], connector.partitions().values().map(|p| p.in_flight).sum::<u64>() as f64);
            }
            n if n == names::DELIVERY_LAG.name => add(&[], observer::lag(connector).map_or(0.0, |lag| lag.as_secs_f64())),
            n if n == names::DELIVERY_FENCED.name => add(&[], connector.partitions().values().map(|p| p.filter.fenced).sum::<u64>() as f64),
            n if n == names::DELIVERY_REPEATS.name => {
                add(&[], connector.partitions().values().map(|p| p.filter.repeats).sum::<u64>() as f64);
            }
            n if n == names::JOURNAL_LAG_ENTRIES.name => {
                let last = observer.last_offsets();
                for (partition, progress) in connector.partitions() {
                    let lag = last.get(&partition).map_or(0, |last| (last + 1).saturating_sub(progress.settled.0));
                    add(&[&partition.to_string()], lag as f64);
                }
            }
            n if n == names::DEAD_LETTERS.name => {
                if let Some(control) = observer.observed.control.get() {
                    add(&[], control.state().dead_letters().filter(|l| l.letter.connector == name).count() as f64);
                }
            }
            n if n == names::DEAD_LETTER_AGE.name => {
                let state = observer.observed.control.get().map(crate::control::Follower::state);
                let oldest = state.and_then(|s| s.dead_letters().filter(|l| l.letter.connector == name).map(|l| l.letter.last_at_ms).min());
                add(&[], oldest.map_or(0.0, |at| (now_ms() - at).max(0) as f64 / 1000.0));
            }
            _ => {}
        }
    }
    samples
}

/// Memory that the process has in use; `None` on systems without `/proc`.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Processor time of the process; `None` on systems without `/proc`.
fn cpu_seconds() -> Option<f64> {
    /// Of Linux's interface, whatever the kernel was built with (proc(5), sysconf(3)).
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name in brackets, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

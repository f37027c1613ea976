//! The metrics that follow from the figures: stages, lag, what limits, how many processes are wanted.

use std::sync::atomic::Ordering::Relaxed;

use super::super::bottleneck;
use super::super::figures::{ConnectorFigures, Figures};
use super::super::observer::Observer;
use super::super::scale;
use crate::telemetry::names::{self, Metric};
use crate::telemetry::times::Reading;

/// A backlog that never drains is told as a day: scalers and alerts need a number.
const NEVER_SECONDS: f64 = 86_400.0;

type Samples = Vec<(Vec<String>, f64)>;

/// The samples of one metric; `None` when it is none of these.
pub(super) fn samples(observer: &Observer, figures: &Figures, metric: &Metric) -> Option<Samples> {
    let connectors = |value: &dyn Fn(&ConnectorFigures) -> Option<f64>| -> Samples {
        figures.connectors.iter().filter_map(|c| Some((vec![c.name.clone()], value(c)?))).collect()
    };
    let partitions = |value: &dyn Fn(&super::super::figures::PartitionFigures) -> Option<f64>| -> Samples {
        let of = |c: &ConnectorFigures| {
            let owned = c.partitions.iter().filter(|p| p.owned);
            owned.filter_map(|p| Some((vec![c.name.clone(), p.partition.to_string()], value(p)?))).collect::<Vec<_>>()
        };
        figures.connectors.iter().flat_map(of).collect()
    };
    let advice = |value: &dyn Fn(&scale::Advice) -> f64| -> Samples {
        let of = |c| scale::advise(c, scale::DRAIN_WITHIN);
        figures.connectors.iter().map(of).map(|advice| (vec![advice.connector.clone()], value(&advice))).collect()
    };
    Some(match metric.name {
        n if n == names::STAGE_UTILIZATION.name => stages(figures, |stage| Some((Vec::new(), stage.utilisation))),
        n if n == names::STAGE_QUEUE.name => stages(figures, |stage| Some((vec![stage.queue_unit.clone()], stage.queue as f64))),
        n if n == names::STAGE_BUSY.name => busy(observer),
        n if n == names::BOTTLENECK.name => {
            let verdict = bottleneck::bottleneck(figures);
            let stage = verdict.stage.map_or("none", |stage| stage.as_str());
            let entity = verdict.entity.unwrap_or_else(|| "none".to_owned());
            vec![(vec![entity, stage.to_owned(), verdict.limit.as_str().to_owned()], 1.0)]
        }
        n if n == names::HEALTH_STATE.name => health(observer),
        n if n == names::JOURNAL_LAG_BYTES.name => partitions(&|p| p.lag_bytes.map(|bytes| bytes as f64)),
        n if n == names::JOURNAL_LAG_SECONDS.name => partitions(&|p| Some(p.lag_seconds.unwrap_or(0.0))),
        n if n == names::JOURNAL_RETENTION_LEFT.name => partitions(&|p| p.retention_seconds),
        n if n == names::DELIVERY_LAG_EVENTS.name => connectors(&|c| Some(c.lag_events as f64)),
        n if n == names::DELIVERY_UTILIZATION.name => connectors(&|c| Some(c.utilisation(super::super::figures::StageName::Deliver))),
        n if n == names::DELIVERY_DRAIN.name => connectors(&|c| Some(c.drain_seconds.unwrap_or(NEVER_SECONDS).min(NEVER_SECONDS))),
        n if n == names::DELIVERY_REPLICAS.name => connectors(&|c| Some(f64::from(c.replicas))),
        n if n == names::DELIVERY_RECOMMENDED_REPLICAS.name => advice(&|a| f64::from(a.recommended_replicas)),
        n if n == names::DELIVERY_USEFUL_REPLICAS.name => advice(&|a| f64::from(a.max_useful_replicas)),
        _ => return None,
    })
}

/// What a histogram holds, by its labels; `None` of a metric that is none.
pub(super) fn times(observer: &Observer, metric: &Metric) -> Vec<(Vec<String>, Reading)> {
    let capture = observer.observed.capture.as_ref();
    let connectors = observer.observed.delivery.iter().flat_map(|d| d.connectors());
    match metric.name {
        n if n == names::PUBLISH_CONFIRM.name => capture.map(|c| (Vec::new(), c.confirm_times.read())).into_iter().collect(),
        n if n == names::CAPTURE_COMMIT_TO_PUBLISH.name => capture.map(|c| (Vec::new(), c.publish_times.read())).into_iter().collect(),
        n if n == names::DELIVERY_REQUEST.name => connectors
            .flat_map(|c| {
                let of = |outcome: &str, times: Reading| (vec![c.name().to_owned(), outcome.to_owned()], times);
                [of("ok", c.call_times.read()), of("failed", c.failed_times.read())]
            })
            .collect(),
        n if n == names::DELIVERY_END_TO_END.name => connectors.map(|c| (vec![c.name().to_owned()], c.end_to_end.read())).collect(),
        _ => Vec::new(),
    }
}

fn stages(figures: &Figures, value: impl Fn(&super::super::figures::Stage) -> Option<(Vec<String>, f64)>) -> Samples {
    let capture = figures.capture.iter().flat_map(|c| c.stages.iter().map(|stage| ("capture", stage)));
    let connectors = figures.connectors.iter().flat_map(|c| c.stages.iter().map(|stage| (c.name.as_str(), stage)));
    let sample = |(entity, stage): (&str, &super::super::figures::Stage)| {
        let (more, value) = value(stage)?;
        Some(([entity.to_owned(), stage.stage.as_str().to_owned()].into_iter().chain(more).collect(), value))
    };
    capture.chain(connectors).filter_map(sample).collect()
}

/// Seconds at work since the start, from the loops themselves: what rates are made of.
fn busy(observer: &Observer) -> Samples {
    let mut samples: Samples = Vec::new();
    let mut add = |entity: &str, stage: &str, seconds: f64| samples.push((vec![entity.to_owned(), stage.to_owned()], seconds));
    if let Some(capture) = &observer.observed.capture {
        let ns = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed) as f64 / 1e9;
        let decode = ns(&capture.decode_ns).min(ns(&capture.encode_ns));
        add("capture", "receive", ns(&capture.starved_ns));
        add("capture", "decode", decode);
        add("capture", "encode", ns(&capture.encode_ns) - decode);
        add("capture", "publish", ns(&capture.publish_wait_ns));
        add("capture", "confirm", ns(&capture.confirm_wait_ns));
    }
    for connector in observer.observed.delivery.iter().flat_map(|d| d.connectors()) {
        let us = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed) as f64 / 1e6;
        add(connector.name(), "read", us(&connector.read_wait_us));
        add(connector.name(), "map", us(&connector.map_us));
        add(connector.name(), "deliver", us(&connector.busy_us));
        add(connector.name(), "settle", us(&connector.settle_us));
    }
    samples
}

fn health(observer: &Observer) -> Samples {
    let word =
        |entity: &str, verdict: &super::super::health::Verdict| (vec![entity.to_owned(), verdict.health.as_str().replace(' ', "_")], 1.0);
    let mut samples: Samples = observer.source().iter().map(|(verdict, _)| word("source", verdict)).collect();
    samples.push(word("journal", &observer.journal().0));
    for connector in observer.observed.delivery.iter().flat_map(|d| d.connectors()) {
        samples.push(word(connector.name(), &observer.connector(connector).0));
    }
    samples
}

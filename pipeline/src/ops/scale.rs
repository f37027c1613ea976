//! How many processes that deliver are wanted: from what comes, what one event costs, what waits, and how soon that shall be
//! done. Pure; every process comes to the same answer from the same figures, whichever partitions are its own.
//!
//! A connector settles as many events a second as the least of these lets through:
//!
//! ```text
//! calls in the air ÷ lane time of an event        each process may have so many; all lanes of all partitions are the most
//! processors       ÷ mapping time of an event     a task for each partition, and no more than a process has processors
//! the budget of the connector's file              all processes share it
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bottleneck::{self, Bottleneck, Limit};
use super::figures::{ConnectorFigures, Figures};

/// What waits shall be done within this time, unless somebody says otherwise.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(300);

/// The part of what comes that processes have to settle at least: less than all of it, since a little too few show as a backlog,
/// which is planned for too, and one too many would stay for nothing.
const KEEP_UP: f64 = 0.95;

/// The part of the time within which what waits shall be done that it may wait without being worth a process: what comes
/// unevenly evens out.
const EVENS_OUT: f64 = 0.25;

/// Gains below this are none.
const WORTHWHILE: f64 = 1.02;

/// What lets no more events through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Calls at once, or how long they take.
    Calls,
    /// Processors that map.
    Processors,
    /// The budget of events a second.
    Quota,
    /// The target bears no more calls at once.
    Target,
}

/// A connector as it might be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Processes.
    pub replicas: u16,
    /// Partitions of the journal.
    pub partitions: u16,
    /// Lanes of a partition.
    pub lanes: u64,
    /// Most calls at once of a process.
    pub calls_max: u64,
    /// Most events of a call.
    pub batch: u64,
}

impl Layout {
    /// As it is now, with so many processes.
    #[must_use]
    pub fn of(connector: &ConnectorFigures, replicas: u16) -> Layout {
        Layout {
            replicas: replicas.max(1),
            partitions: u16::try_from(connector.partitions.len()).unwrap_or(u16::MAX).max(1),
            lanes: connector.lanes.max(1),
            calls_max: connector.calls_max.max(1),
            batch: connector.batch_items.max(1),
        }
    }
}

/// Events a second that a layout could settle, and what lets no more through; `None` before anything was measured.
#[must_use]
pub fn capacity(connector: &ConnectorFigures, layout: &Layout) -> Option<(f64, Bound)> {
    let service = connector.service?;
    let (replicas, partitions) = (u64::from(layout.replicas), u64::from(layout.partitions));
    // Partitions are spread evenly, the rest one each.
    let (part, rest) = (partitions / replicas, partitions % replicas);
    let of_process = |owned: u64| layout.calls_max.min(layout.lanes * owned);
    let mut calls = (rest * of_process(part + 1) + (replicas - rest) * of_process(part)) as f64;
    let mut bound = Bound::Calls;
    if bottleneck::is_overloaded(connector) {
        let borne = (connector.calls_allowed * u64::from(connector.replicas)) as f64;
        if borne < calls {
            (calls, bound) = (borne, Bound::Target);
        }
    }
    let mut most = (calls / lane_seconds(connector, layout.batch)?.max(1e-9), bound);
    let processors = partitions.min(replicas * u64::from(connector.processors.max(1))) as f64;
    let mapped = processors / service.map_seconds_per_event.max(1e-9);
    if mapped < most.0 {
        most = (mapped, Bound::Processors);
    }
    if let Some(limit) = connector.rate_limit.filter(|limit| *limit < most.0) {
        most = (limit, Bound::Quota);
    }
    Some(most)
}

/// Lane time of one event, in seconds, with calls of at most so many items.
///
/// Where calls of different sizes were seen, their line tells what full ones would take; else an event costs what it cost, or,
/// with larger calls than those there were, its part of a call that takes as long.
fn lane_seconds(connector: &ConnectorFigures, batch: u64) -> Option<f64> {
    let service = connector.service?;
    let (items, wanted) = (service.items_per_call.max(1.0), batch.max(1) as f64);
    let per_item = match service.seconds_per_item {
        Some(slope) => {
            let fixed = (service.call_seconds - slope * items).max(0.0);
            fixed / wanted + slope
        }
        None if batch > connector.batch_items => service.call_seconds / wanted,
        None => service.call_seconds / items,
    };
    // An event may be several items, or share one.
    let items_per_event = service.call_seconds_per_event / (service.call_seconds / items).max(1e-9);
    Some(per_item * items_per_event)
}

/// Whether work waits that is more than what is under way anyway.
#[must_use]
pub fn is_behind(connector: &ConnectorFigures) -> bool {
    let everywhere = connector.settled_per_second * spread(connector);
    connector.lag_events as f64 / everywhere.max(1.0) > 2.0 || connector.partitions.iter().any(|p| p.full)
}

/// All partitions for each of this process's own.
fn spread(connector: &ConnectorFigures) -> f64 {
    connector.partitions.len().max(1) as f64 / f64::from(connector.owned.max(1))
}

/// Seconds until nothing is behind if it goes on like this; `None` when it would never be, or that is not known.
#[must_use]
pub fn drain_seconds(connector: &ConnectorFigures) -> Option<f64> {
    if connector.lag_events == 0 {
        return Some(0.0);
    }
    let arrival = connector.arrival_per_second.unwrap_or(0.0);
    // While it is behind, what it does is what it can.
    let possible = if is_behind(connector) {
        connector.settled_per_second * spread(connector)
    } else {
        capacity(connector, &Layout::of(connector, connector.replicas))?.0
    };
    (possible > arrival).then(|| connector.lag_events as f64 / (possible - arrival))
}

/// How long a layout would take for what waits; `None` when it would never be done.
#[must_use]
pub fn drain_with(connector: &ConnectorFigures, layout: &Layout) -> Option<f64> {
    let (possible, _) = capacity(connector, layout)?;
    let arrival = connector.arrival_per_second.unwrap_or(0.0);
    (possible > arrival).then(|| connector.lag_events as f64 / (possible - arrival))
}

/// The advice for one connector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// The connector.
    pub connector: String,
    /// Processes that deliver it now.
    pub replicas: u16,
    /// Processes that would be right now.
    pub recommended_replicas: u16,
    /// Processes beyond which more change nothing.
    pub max_useful_replicas: u16,
    /// Whether more processes than now would help.
    pub helps: bool,
    /// Why, in one sentence.
    pub because: String,
    /// Events a second that come.
    pub arrival_per_second: Option<f64>,
    /// Events a second that all processes together could settle now; `None` before anything was measured.
    pub capacity_per_second: Option<f64>,
    /// Events that wait.
    pub backlog_events: u64,
}

/// What is advised for one connector. `within` is how soon what waits shall be done.
#[must_use]
pub fn advise(connector: &ConnectorFigures, within: Duration) -> Advice {
    let now = connector.replicas.max(1);
    let partitions = Layout::of(connector, 1).partitions;
    let of = |replicas| capacity(connector, &Layout::of(connector, replicas));
    let advice = |recommended: u16, useful: u16, helps, because: String| Advice {
        connector: connector.name.clone(),
        replicas: now,
        recommended_replicas: recommended,
        max_useful_replicas: useful,
        helps,
        because,
        arrival_per_second: connector.arrival_per_second,
        capacity_per_second: of(now).map(|(rate, _)| rate),
        backlog_events: connector.lag_events,
    };
    if let Some(verdict) = connector.paused.as_ref().and_then(|_| bottleneck::of_connector(connector)) {
        // What it will need when it goes on shows then.
        return advice(1, 1, false, verdict.sentence);
    }
    let Some(most) = of(partitions) else {
        return advice(now, partitions, false, "nothing was delivered yet, so nothing is known of what an event costs".to_owned());
    };
    let useful = (1..=partitions).find(|replicas| of(*replicas).is_some_and(|c| c.0 * WORTHWHILE >= most.0)).unwrap_or(partitions);
    let (arrival, within) = (connector.arrival_per_second.unwrap_or(0.0), within.as_secs_f64().max(1.0));
    let does = |capacity: f64| {
        let backlog = (connector.lag_events as f64 - capacity * within * EVENS_OUT).max(0.0);
        capacity >= arrival * KEEP_UP && (backlog == 0.0 || capacity >= arrival + backlog / within)
    };
    let enough = (1..=useful).find(|replicas| of(*replicas).is_some_and(|c| does(c.0))).unwrap_or(useful);
    let verdict = bottleneck::of_connector(connector);
    if let Some(verdict) = verdict.filter(|verdict| !verdict.limit.replicas_may_help()) {
        // What was measured under such a limit is no measure of what a process could do.
        let recommended = if verdict.limit == Limit::TargetQuota { enough.min(now) } else { now };
        return advice(recommended, useful.min(now.max(recommended)), false, verdict.sentence);
    }
    let events = bottleneck::count;
    let (each, bound) = of(1).unwrap_or((0.0, Bound::Calls));
    let mut because = format!(
        "{} events/s come and {} wait; one replica settles {}/s",
        events(arrival),
        events(connector.lag_events as f64),
        events(each),
    );
    let reason = match of(useful).map_or(bound, |c| c.1) {
        Bound::Quota => "the budget of the target is used up then",
        Bound::Target => "the target bears no more calls",
        Bound::Calls if useful < partitions => "every lane is in a call then",
        Bound::Processors | Bound::Calls => "there are no more partitions",
    };
    because += &format!("; more than {useful} change nothing, since {reason}");
    let rate = |replicas| of(replicas).map_or(0.0, |c| c.0);
    advice(enough, useful, enough > now && rate(enough) > rate(now), because)
}

/// The answer of `/api/scale` and `status --scale-advice`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// What limits the pipeline.
    pub bottleneck: Bottleneck,
    /// Processes that would be right now, for all connectors; `None` when this process does not deliver.
    pub recommended_replicas: Option<u16>,
    /// Processes beyond which more change nothing.
    pub max_useful_replicas: Option<u16>,
    /// Processes that deliver now.
    pub replicas: Option<u16>,
    /// Whether more processes than now would help.
    pub helps: bool,
    /// Why, in one sentence.
    pub because: String,
    /// How soon what waits shall be done.
    pub drain_within_seconds: f64,
    /// By connector.
    pub connectors: Vec<Advice>,
    /// What it follows from.
    pub figures: Figures,
}

/// The whole advice.
#[must_use]
pub fn scale(figures: Figures, within: Duration) -> Scale {
    let connectors: Vec<Advice> = figures.connectors.iter().map(|c| advise(c, within)).collect();
    // A process delivers all connectors: the one that wants most decides.
    let decides = connectors.iter().max_by_key(|advice| (advice.recommended_replicas, advice.helps));
    Scale {
        bottleneck: bottleneck::bottleneck(&figures),
        recommended_replicas: decides.map(|advice| advice.recommended_replicas),
        max_useful_replicas: connectors.iter().map(|advice| advice.max_useful_replicas).max(),
        replicas: connectors.iter().map(|advice| advice.replicas).max(),
        helps: decides.is_some_and(|advice| advice.helps),
        because: decides.map_or_else(
            || "this process delivers nothing: ask one that does".to_owned(),
            |advice| format!("{}: {}", advice.connector, advice.because),
        ),
        drain_within_seconds: within.as_secs_f64(),
        connectors,
        figures,
    }
}

/// The advice as one screen.
#[must_use]
pub fn screen(scale: &Scale) -> String {
    let mut out = format!("limit: {}\n", scale.bottleneck.sentence);
    for advice in &scale.connectors {
        out.push_str(&format!(
            "{:<24} {} replicas wanted, {} there, {} at most useful: {}\n",
            advice.connector, advice.recommended_replicas, advice.replicas, advice.max_useful_replicas, advice.because
        ));
    }
    match (scale.recommended_replicas, scale.replicas) {
        (Some(wanted), Some(there)) => out.push_str(&format!("replicas: {wanted} wanted, {there} there\n")),
        _ => out.push_str(&format!("{}\n", scale.because)),
    }
    out
}

#[cfg(test)]
mod tests;

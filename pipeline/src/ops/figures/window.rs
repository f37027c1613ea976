//! The loops' counters once a second, and the figures that two of them make. Reads atomics; nothing waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{
    CaptureFigures, ConnectorFigures, Figures, GateWaits, JournalFigures, PartitionFigures, Service, SlotFigures, Stage, StageName,
};
use crate::capture;
use crate::config::Retention;
use crate::control::{State, now_ms};
use crate::delivery::stats::{Breaker, ConnectorState, ConnectorStats, PartitionProgress, Stats};
use crate::telemetry::times::Reading;

/// A sample a second, eleven of them: rates over ten seconds follow a change quickly and do not flicker.
const SAMPLES: usize = 11;
/// What comes is counted over this long: the extent of the journal is asked for only every few seconds.
const ARRIVAL_OVER: Duration = Duration::from_secs(16);
/// Threads of the process that run tasks.
const PROCESSORS_MAX: usize = 2;

/// Counters at one moment.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    capture: CaptureSample,
    connectors: Vec<ConnectorSample>,
}

#[derive(Clone, Debug, Default)]
struct CaptureSample {
    events: u64,
    transactions: u64,
    received_bytes: u64,
    starved_ns: u64,
    encode_ns: u64,
    decode_ns: u64,
    publish_wait_ns: u64,
    confirm_wait_ns: u64,
    confirm_times: Reading,
    /// Since the sample before.
    transaction_events: u64,
}

#[derive(Clone, Debug, Default)]
struct ConnectorSample {
    busy_us: u64,
    /// Rate, pause, calls, breaker.
    waits_us: [u64; 4],
    call_times: Reading,
    failed_times: Reading,
    end_to_end: Reading,
    items: u64,
    items_squared: u64,
    items_us: u64,
    pauses: u64,
    partitions: BTreeMap<u16, PartitionProgress>,
    lanes: BTreeMap<u16, Vec<u64>>,
}

/// What is remembered of the last seconds.
#[derive(Debug, Default)]
pub struct Window {
    samples: VecDeque<Sample>,
    /// The last offset of each partition, each time that it was asked for.
    ends: VecDeque<(Instant, BTreeMap<u16, u64>)>,
    /// By connector.
    service: BTreeMap<String, Service>,
}

/// What the figures need beside the counters.
#[derive(Debug)]
pub struct Around<'a> {
    /// The control journal, once it is read.
    pub control: Option<&'a State>,
    /// Last offset of each partition.
    pub ends: &'a BTreeMap<u16, u64>,
    /// Data partitions.
    pub partitions: u16,
    /// When entries of the data logs may go.
    pub retention: Retention,
    /// Why the journal does not answer.
    pub journal_away: Option<String>,
    /// Age of the oldest batch without a confirm.
    pub oldest_unconfirmed: Option<Duration>,
}

impl Window {
    /// Takes a sample.
    pub fn look(&mut self, capture: Option<&capture::Stats>, delivery: Option<&Stats>) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        let capture = capture.map(capture_sample).unwrap_or_default();
        let connectors = delivery.iter().flat_map(|d| d.connectors()).map(|c| connector_sample(c)).collect();
        self.samples.push_back(Sample { at: Instant::now(), capture, connectors });
        for (n, stats) in delivery.iter().flat_map(|d| d.connectors()).enumerate() {
            if let Some(service) = self.measure(n) {
                self.service.insert(stats.name().to_owned(), service);
            }
        }
    }

    /// Takes note of where the partitions end.
    pub fn ends(&mut self, ends: BTreeMap<u16, u64>) {
        let now = Instant::now();
        while self.ends.front().is_some_and(|(at, _)| now - *at > ARRIVAL_OVER) && self.ends.len() > 2 {
            self.ends.pop_front();
        }
        self.ends.push_back((now, ends));
    }

    /// Entries written a second, by partition.
    fn arrivals(&self) -> Option<BTreeMap<u16, f64>> {
        let ((from, old), (to, new)) = (self.ends.front()?, self.ends.back()?);
        let seconds = (*to - *from).as_secs_f64();
        let rate = |(p, end): (&u16, &u64)| (*p, end.saturating_sub(old.get(p).copied().unwrap_or(*end)) as f64 / seconds);
        (seconds > 0.5).then(|| new.iter().map(rate).collect())
    }

    /// The oldest and the newest sample, and the seconds between.
    fn span(&self) -> Option<(&Sample, &Sample, f64)> {
        let (old, new) = (self.samples.front()?, self.samples.back()?);
        let seconds = (new.at - old.at).as_secs_f64();
        (seconds > 0.0).then_some((old, new, seconds))
    }

    /// What one event costs the connector, from what was settled lately.
    fn measure(&self, n: usize) -> Option<Service> {
        let (old, new, _) = self.span()?;
        let (old, new) = (old.connectors.get(n)?, new.connectors.get(n)?);
        // What a partition that went elsewhere did is in the calls and in nothing else.
        if old.partitions.keys().any(|p| !new.partitions.contains_key(p)) {
            return None;
        }
        let (events, map_us) = settled(old, new);
        let calls = new.call_times.since(&old.call_times);
        let count = calls.count();
        if events == 0 || count == 0 {
            return None;
        }
        let items = new.items.saturating_sub(old.items) as f64;
        let (n, sum) = (count as f64, calls.sum_seconds());
        // Of the last seconds where sizes differed then, else of the whole run.
        let seconds_per_item = slope(old, new).or_else(|| slope(&ConnectorSample::default(), new));
        Some(Service {
            call_seconds_per_event: new.busy_us.saturating_sub(old.busy_us) as f64 / 1e6 / events as f64,
            map_seconds_per_event: map_us as f64 / 1e6 / events as f64,
            items_per_call: items / n,
            call_seconds: sum / n,
            seconds_per_item,
        })
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self, capture: Option<&capture::Stats>, delivery: Option<&Stats>, around: &Around<'_>) -> Figures {
        let arrivals = self.arrivals();
        let connectors = delivery.iter().flat_map(|d| d.connectors()).enumerate();
        Figures {
            window_seconds: self.span().map_or(0.0, |(_, _, seconds)| seconds),
            capture: capture.map(|stats| self.capture(stats)),
            journal: JournalFigures {
                away: around.journal_away.clone(),
                oldest_unconfirmed_seconds: around.oldest_unconfirmed.map(|age| age.as_secs_f64()),
                partitions: around.partitions,
                entries_per_second: arrivals.as_ref().map(|arrivals| arrivals.values().sum()),
            },
            connectors: connectors.map(|(n, stats)| self.connector(n, stats, arrivals.as_ref(), around)).collect(),
        }
    }

    fn capture(&self, stats: &capture::Stats) -> CaptureFigures {
        let slot = stats.slot().map(|slot| SlotFigures {
            retained_bytes: slot.retained_bytes,
            ceiling_bytes: slot.ceiling_bytes,
            seconds_to_ceiling: slot.seconds_to_ceiling,
            wal_bytes_per_second: slot.wal_bytes_per_second,
            pinned_by: slot.pinned_by,
        });
        let (lag_bytes, unconfirmed_bytes) = (crate::ops::observer::lag_bytes(stats), stats.unconfirmed_bytes.load(Relaxed));
        let mut figures = CaptureFigures {
            doing: stats.state().0.as_str().to_owned(),
            lag_bytes,
            spool_bytes: stats.spool_bytes.load(Relaxed),
            unconfirmed_bytes,
            slot,
            ..CaptureFigures::default()
        };
        let Some((old, new, seconds)) = self.span() else { return figures };
        figures.largest_transaction_events = self.samples.iter().skip(1).map(|s| s.capture.transaction_events).max().unwrap_or(0);
        let (old, new) = (&old.capture, &new.capture);
        let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
        let share = |old: u64, new: u64| (rate(old, new) / 1e9).clamp(0.0, 1.0);
        let events_per_second = rate(old.events, new.events);
        figures.events_per_second = events_per_second;
        figures.received_bytes_per_second = rate(old.received_bytes, new.received_bytes);
        let transactions = rate(old.transactions, new.transactions);
        figures.events_per_transaction = (transactions > 0.0).then(|| events_per_second / transactions);
        let both = share(old.encode_ns, new.encode_ns);
        let decode = share(old.decode_ns, new.decode_ns).min(both);
        let confirms = new.confirm_times.since(&old.confirm_times);
        let each = |share: f64| (events_per_second > 0.0).then(|| share / events_per_second);
        let stage = |stage, utilisation: f64, queue: u64| Stage {
            stage,
            events_per_second,
            utilisation,
            seconds: each(utilisation),
            p95_seconds: None,
            queue,
            queue_unit: "bytes".to_owned(),
        };
        let publish = share(old.publish_wait_ns, new.publish_wait_ns);
        let confirm = share(old.confirm_wait_ns, new.confirm_wait_ns);
        figures.stages = vec![
            stage(StageName::Receive, share(old.starved_ns, new.starved_ns), lag_bytes),
            stage(StageName::Decode, decode, figures.spool_bytes),
            stage(StageName::Encode, both - decode, 0),
            stage(StageName::Publish, publish, 0),
            Stage {
                seconds: confirms.mean(),
                p95_seconds: confirms.quantile(0.95),
                ..stage(StageName::Confirm, confirm, unconfirmed_bytes)
            },
        ];
        figures
    }

    fn connector(&self, n: usize, stats: &ConnectorStats, arrivals: Option<&BTreeMap<u16, f64>>, around: &Around<'_>) -> ConnectorFigures {
        let progress = stats.partitions();
        let totals = progress
            .values()
            .fold((0, 0, 0), |(entries, bytes, events), p| (entries + p.work.entries, bytes + p.work.bytes, events + p.work.events));
        let of_entry = |n: u64| (totals.0 > 0).then(|| n as f64 / totals.0 as f64);
        // Of a connector that was paused before this process began, nothing was read but what waits.
        let entry_bytes = of_entry(totals.1).or_else(|| progress.values().find_map(|p| p.entry_bytes).map(|bytes| bytes as f64));
        let entry_events = of_entry(totals.2);
        let span = self.span().and_then(|(old, new, seconds)| Some((old.connectors.get(n)?, new.connectors.get(n)?, seconds)));
        let sizes = Sizes { entry_bytes, arrivals, around };
        let partitions: Vec<PartitionFigures> =
            (0..around.partitions).map(|p| partition(p, stats.name(), progress.get(&p), span, &sizes)).collect();
        let owned = u16::try_from(progress.len()).unwrap_or(u16::MAX);
        let lag_entries: u64 = partitions.iter().map(|p| p.lag_entries).sum();
        let in_flight: u64 = progress.values().map(|p| p.in_flight).sum();
        let lag_events = ((lag_entries as f64 * entry_events.unwrap_or(1.0)).round() as u64).max(in_flight);
        let arrival = arrivals.map(|a| a.values().sum::<f64>() * entry_events.unwrap_or(1.0));
        let now = now_ms();
        let pause = around.control.and_then(|control| control.pause(stats.name()));
        let mut figures = ConnectorFigures {
            name: stats.name().to_owned(),
            doing: pause.map_or(stats.state(), |_| ConnectorState::Paused).as_str().to_owned(),
            paused: pause.map(|pause| {
                let reason = if pause.reason.is_empty() { String::new() } else { format!(" ({})", pause.reason) };
                format!("{} since {}{reason}", pause.who(), pause.since())
            }),
            stopped: stopped(stats),
            arrival_per_second: arrival,
            service: self.service.get(stats.name()).copied(),
            lanes: stats.lanes.load(Relaxed),
            calls_max: stats.calls_max.load(Relaxed),
            calls_allowed: stats.calls_allowed.load(Relaxed),
            batch_items: stats.batch_items.load(Relaxed),
            rate_limit: Some(stats.rate_milli.load(Relaxed)).filter(|milli| *milli > 0).map(|milli| milli as f64 / 1000.0),
            away: stats.breaker() != Breaker::Closed,
            paused_seconds: u64::try_from(stats.paused_until_ms.load(Relaxed) - now).ok().filter(|ms| *ms > 0).map(|ms| ms as f64 / 1000.0),
            owned,
            replicas: replicas(stats.name(), around.control),
            processors: u16::try_from(std::thread::available_parallelism().map_or(1, usize::from).min(PROCESSORS_MAX)).unwrap_or(1),
            lag_events,
            lag_bytes: partitions.iter().filter_map(|p| p.lag_bytes).sum(),
            lag_seconds: partitions.iter().filter_map(|p| p.lag_seconds).max_by(f64::total_cmp),
            partitions,
            ..ConnectorFigures::default()
        };
        if let Some(span) = span {
            rates(&mut figures, span, in_flight, lag_entries);
        }
        figures.drain_seconds = if pause.is_some() && figures.lag_events > 0 { None } else { crate::ops::scale::drain_seconds(&figures) };
        figures
    }
}

/// What all partitions of a connector have in common.
struct Sizes<'a> {
    entry_bytes: Option<f64>,
    arrivals: Option<&'a BTreeMap<u16, f64>>,
    around: &'a Around<'a>,
}

type Span<'a> = Option<(&'a ConnectorSample, &'a ConnectorSample, f64)>;

fn partition(number: u16, connector: &str, progress: Option<&PartitionProgress>, span: Span<'_>, sizes: &Sizes<'_>) -> PartitionFigures {
    let around = sizes.around;
    let elsewhere = || around.control.and_then(|state| state.checkpoint(connector, number)).map_or(0, |c| c.offset.0);
    let settled = progress.map_or_else(elsewhere, |p| p.settled.0);
    // What was read is there, even before the end was asked for again.
    let read = progress.map_or(0, |p| p.read.0);
    let end = around.ends.get(&number).map_or(0, |last| last + 1).max(read);
    let lag_entries = end.saturating_sub(settled);
    let lag_bytes = sizes.entry_bytes.map(|bytes| (lag_entries as f64 * bytes) as u64);
    let age = |since: i64| u64::try_from(now_ms() - since).unwrap_or(0) as f64 / 1000.0;
    let lag_seconds = progress.and_then(|p| p.oldest_commit_ms).map(age);
    let mut figures = PartitionFigures {
        partition: number,
        owned: progress.is_some(),
        lag_entries,
        lag_bytes,
        lag_seconds,
        ..PartitionFigures::default()
    };
    figures.retention_seconds = (lag_entries > 0)
        .then(|| {
            let by_age = around.retention.age.zip(lag_seconds).map(|(age, lag)| (age.as_secs_f64() - lag).max(0.0));
            let arrival = sizes.arrivals.and_then(|a| a.get(&number)).zip(sizes.entry_bytes).map(|(rate, bytes)| rate * bytes);
            let room = around.retention.bytes.zip(lag_bytes).map(|(most, lag)| most.saturating_sub(lag) as f64);
            let by_size = room.zip(arrival.filter(|rate| *rate > 0.0)).map(|(room, rate)| room / rate);
            by_age.into_iter().chain(by_size).min_by(f64::total_cmp)
        })
        .flatten();
    let Some(progress) = progress else { return figures };
    figures.full = progress.full;
    let Some((old, new, seconds)) = span else { return figures };
    // A partition that began anew counts from nothing again.
    let (Some(before), Some(after)) = (old.partitions.get(&number), new.partitions.get(&number)) else { return figures };
    let share = |old: u64, new: u64| (new.saturating_sub(old) as f64 / 1e6 / seconds).clamp(0.0, 1.0);
    figures.mapping = share(before.work.map_us, after.work.map_us);
    figures.reading = share(before.work.read_wait_us, after.work.read_wait_us);
    figures.settling = share(before.work.settle_us, after.work.settle_us);
    if let (Some(before), Some(after)) = (old.lanes.get(&number), new.lanes.get(&number)) {
        let lanes: Vec<f64> = before.iter().zip(after).map(|(old, new)| share(*old, *new)).collect();
        figures.lanes_busy = lanes.iter().sum::<f64>() / lanes.len().max(1) as f64;
        figures.busiest_lane = lanes.into_iter().max_by(f64::total_cmp).unwrap_or(0.0);
    }
    figures
}

/// Fills in what two samples tell.
fn rates(figures: &mut ConnectorFigures, (old, new, seconds): (&ConnectorSample, &ConnectorSample, f64), in_flight: u64, lag_entries: u64) {
    let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let lanes = (figures.lanes * u64::from(figures.owned)).max(1) as f64;
    let (settled, _) = settled(old, new);
    figures.settled_per_second = settled as f64 / seconds;
    figures.calls_in_air = rate(old.busy_us, new.busy_us) / 1e6;
    let [rate_wait, pause, calls, breaker] =
        std::array::from_fn(|n| (rate(old.waits_us[n], new.waits_us[n]) / 1e6 / lanes).clamp(0.0, 1.0));
    figures.waits = GateWaits { rate: rate_wait, pause, calls, breaker };
    figures.pauses_per_second = rate(old.pauses, new.pauses);
    let (answered, failed) = (new.call_times.since(&old.call_times), new.failed_times.since(&old.failed_times));
    figures.failed_ratio = failed.count() as f64 / (answered.count() + failed.count()).max(1) as f64;
    figures.end_to_end_p95_seconds = new.end_to_end.since(&old.end_to_end).quantile(0.95);
    let busiest = |of: fn(&PartitionFigures) -> f64| figures.partitions.iter().map(of).fold(0.0, f64::max);
    let places = (figures.calls_allowed as f64).min(lanes).max(1.0);
    let stage = |stage, utilisation: f64, queue, unit: &str| Stage {
        stage,
        events_per_second: figures.settled_per_second,
        utilisation: utilisation.clamp(0.0, 1.0),
        seconds: None,
        p95_seconds: None,
        queue,
        queue_unit: unit.to_owned(),
    };
    let each = |seconds: f64| (settled > 0).then(|| seconds / settled as f64);
    let waiting = lag_entries.saturating_sub(in_flight);
    let behind = if lag_entries > 0 { busiest(|p| p.reading) } else { 0.0 };
    let stages = vec![
        stage(StageName::Read, behind, waiting, "entries"),
        Stage { seconds: figures.service.map(|s| s.map_seconds_per_event), ..stage(StageName::Map, busiest(|p| p.mapping), 0, "events") },
        Stage {
            seconds: answered.mean(),
            p95_seconds: answered.quantile(0.95),
            ..stage(StageName::Deliver, figures.calls_in_air / places, in_flight, "events")
        },
        Stage {
            seconds: each(figures.partitions.iter().map(|p| p.settling * seconds).sum()),
            ..stage(StageName::Settle, busiest(|p| p.settling), 0, "events")
        },
    ];
    figures.stages = stages;
}

/// What one more item adds to a call, in seconds: the line through the sizes and times of the calls between two samples. `None`
/// where they were too few, or of one size.
fn slope(old: &ConnectorSample, new: &ConnectorSample) -> Option<f64> {
    let calls = new.call_times.since(&old.call_times);
    let (n, sum) = (calls.count() as f64, calls.sum_seconds());
    let items = new.items.saturating_sub(old.items) as f64;
    let squared = new.items_squared.saturating_sub(old.items_squared) as f64;
    let spread = squared - items * items / n;
    let together = new.items_us.saturating_sub(old.items_us) as f64 / 1e6 - items * sum / n;
    // Sizes that differ by half an item, and twenty calls, tell more than the calls' own unevenness hides.
    (n >= 20.0 && spread / n >= 0.25).then(|| (together / spread).max(0.0))
}

/// Events settled between two samples, and the microseconds that mapping took. A partition that is not in the first one has begun
/// since, with nothing.
fn settled(old: &ConnectorSample, new: &ConnectorSample) -> (u64, u64) {
    let none = PartitionProgress::default();
    let both = new.partitions.iter().map(|(p, new)| (old.partitions.get(p).unwrap_or(&none), new));
    both.fold((0, 0), |(events, map), (old, new)| {
        let admitted = new.work.events.saturating_sub(old.work.events);
        let settled = (admitted + old.in_flight).saturating_sub(new.in_flight);
        (events + settled, map + new.work.map_us.saturating_sub(old.work.map_us))
    })
}

/// Processes that have the connector and live, as the control journal has them; this one at least.
fn replicas(connector: &str, control: Option<&State>) -> u16 {
    let live = control.map_or(0, |state| state.members().filter(|m| !m.left && m.connectors.iter().any(|c| c == connector)).count());
    u16::try_from(live.max(1)).unwrap_or(u16::MAX)
}

/// Why a connector waits for a person.
fn stopped(stats: &ConnectorStats) -> Option<String> {
    match stats.state() {
        ConnectorState::Paused => Some(stats.held().unwrap_or_else(|| "a table has changed".to_owned())),
        ConnectorState::Failed => Some(stats.last_error().map_or_else(|| "no error was reported".to_owned(), |e| e.code)),
        _ => None,
    }
}

fn capture_sample(stats: &capture::Stats) -> CaptureSample {
    CaptureSample {
        events: stats.events.load(Relaxed) + stats.reads.load(Relaxed),
        transactions: stats.transactions.load(Relaxed),
        received_bytes: stats.received_bytes.load(Relaxed),
        starved_ns: stats.starved_ns.load(Relaxed),
        encode_ns: stats.encode_ns.load(Relaxed),
        decode_ns: stats.decode_ns.load(Relaxed),
        publish_wait_ns: stats.publish_wait_ns.load(Relaxed),
        confirm_wait_ns: stats.confirm_wait_ns.load(Relaxed),
        confirm_times: stats.confirm_times.read(),
        transaction_events: u64::from(stats.transaction_events.swap(0, Relaxed)),
    }
}

fn connector_sample(stats: &ConnectorStats) -> ConnectorSample {
    let waits = &stats.waits;
    ConnectorSample {
        busy_us: stats.busy_us.load(Relaxed),
        waits_us: [&waits.rate, &waits.pause, &waits.calls, &waits.breaker].map(|us| us.load(Relaxed)),
        call_times: stats.call_times.read(),
        failed_times: stats.failed_times.read(),
        end_to_end: stats.end_to_end.read(),
        items: stats.call_items.load(Relaxed),
        items_squared: stats.call_items_squared.load(Relaxed),
        items_us: stats.call_items_us.load(Relaxed),
        pauses: stats.pauses.load(Relaxed),
        partitions: stats.partitions(),
        lanes: stats.lane_busy(),
    }
}

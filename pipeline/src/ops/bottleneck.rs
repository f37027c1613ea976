//! What limits the pipeline: one stage, one sentence, what helps and what does not. Pure: figures in, verdict out.
//!
//! A stage limits when it is at work nearly all of the time while something waits before it. What is away or stands still comes
//! first, then capture, then the connector that is furthest behind.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::figures::{CaptureFigures, ConnectorFigures, Figures, PartitionFigures, StageName};
use super::scale::{self, Layout};
use crate::config::units::{show_duration, show_size};

/// At work for this part of the time counts as all of it: the rest is what waking up takes.
const SATURATED: f64 = 0.85;
/// The same for one of several things that a task does in turn.
const MOSTLY: f64 = 0.6;
/// A call that takes longer at the 95th percentile is slow for what it is, however many there may be at once.
const CALL_SLOW_SECONDS: f64 = 0.2;
/// A journal on a sound disk confirms within some milliseconds.
const CONFIRM_SLOW_SECONDS: f64 = 0.5;
/// How long a confirm may be waited for before the journal counts as away.
const CONFIRM_AWAY_SECONDS: f64 = 10.0;
/// Part of the lanes' time spent waiting for the target's budget above which that is the limit.
const WAITS: f64 = 0.25;
/// A transaction with more events is none of a till's.
const TRANSACTION_LARGE: u64 = 20_000;
/// WAL that is not received, above which capture is behind.
const BEHIND_BYTES: u64 = 8 << 20;
/// WAL written a second, of which nearly nothing is for us, that is worth a word.
const FOREIGN_BYTES_PER_SECOND: f64 = 256.0 * 1024.0;
/// Part of the WAL above which it counts as ours.
const FOREIGN_RATIO: f64 = 0.1;
/// WAL kept for somebody else that is worth a word.
const PINNED_BYTES: u64 = 64 << 20;
/// What waits shall be done within this time by what is suggested.
const SUGGESTED_WITHIN: f64 = 900.0;

/// What limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Nothing comes and nothing waits.
    Idle,
    /// What comes is delivered.
    KeepingUp,
    /// Something waits, and no stage is at work all of the time.
    CatchingUp,
    /// The journal does not answer or confirm.
    JournalAway,
    /// The journal confirms slowly or takes no more.
    JournalSlow,
    /// The journal gives entries slowly.
    JournalRead,
    /// Kept WAL is held by, or written for, somebody else.
    ForeignWal,
    /// One transaction is so large that everything behind it waits.
    LargeTransaction,
    /// Capture's own processor time.
    CaptureProcessor,
    /// The server sends slowly.
    SourceSlow,
    /// Somebody paused a connector.
    Paused,
    /// A person has to act.
    Stopped,
    /// The target does not answer.
    TargetAway,
    /// The target's budget, ours of it, or the pauses it asks for.
    TargetQuota,
    /// The target answers slowly.
    TargetSlow,
    /// `in_flight` of the connector's file.
    FewCalls,
    /// All lanes are in calls.
    FewLanes,
    /// One row, or the rows of one lane, take most of the events.
    HotKey,
    /// One partition takes most of the events.
    HotPartition,
    /// The mapping's processor time.
    MapProcessor,
    /// Outcomes are booked slowly: dead letters are stored one after the other.
    Settlement,
}

impl Limit {
    /// The word in every surface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Limit::Idle => "idle",
            Limit::KeepingUp => "keeping_up",
            Limit::CatchingUp => "catching_up",
            Limit::JournalAway => "journal_away",
            Limit::JournalSlow => "journal_slow",
            Limit::JournalRead => "journal_read",
            Limit::ForeignWal => "foreign_wal",
            Limit::LargeTransaction => "large_transaction",
            Limit::CaptureProcessor => "capture_processor",
            Limit::SourceSlow => "source_slow",
            Limit::Paused => "paused",
            Limit::Stopped => "stopped",
            Limit::TargetAway => "target_away",
            Limit::TargetQuota => "target_quota",
            Limit::TargetSlow => "target_slow",
            Limit::FewCalls => "few_calls",
            Limit::FewLanes => "few_lanes",
            Limit::HotKey => "hot_key",
            Limit::HotPartition => "hot_partition",
            Limit::MapProcessor => "map_processor",
            Limit::Settlement => "settlement",
        }
    }

    /// Whether more processes can change anything; how many, the capacity tells.
    #[must_use]
    pub fn replicas_may_help(self) -> bool {
        match self {
            Limit::Idle
            | Limit::KeepingUp
            | Limit::CatchingUp
            | Limit::TargetSlow
            | Limit::FewCalls
            | Limit::FewLanes
            | Limit::MapProcessor => true,
            Limit::JournalAway
            | Limit::JournalSlow
            | Limit::JournalRead
            | Limit::ForeignWal
            | Limit::LargeTransaction
            | Limit::CaptureProcessor
            | Limit::SourceSlow
            | Limit::Paused
            | Limit::Stopped
            | Limit::TargetAway
            | Limit::TargetQuota
            | Limit::HotKey
            | Limit::HotPartition
            | Limit::Settlement => false,
        }
    }

    /// Whether anything is held up at all.
    #[must_use]
    pub fn is_one(self) -> bool {
        !matches!(self, Limit::Idle | Limit::KeepingUp | Limit::CatchingUp)
    }
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// What limits.
    pub limit: Limit,
    /// The stage where it shows; `None` when none does.
    pub stage: Option<StageName>,
    /// `capture`, `journal`, `source` or a connector's name; `None` when nothing limits.
    pub entity: Option<String>,
    /// The verdict for people.
    pub sentence: String,
    /// What helps, the best first.
    pub helps: Vec<String>,
    /// What looks as if it helped and does not.
    pub helps_not: Vec<String>,
}

/// The verdict on a whole process.
#[must_use]
pub fn bottleneck(figures: &Figures) -> Bottleneck {
    if let Some(verdict) = journal_away(figures) {
        return verdict;
    }
    let mut connectors: Vec<(&ConnectorFigures, Bottleneck)> =
        figures.connectors.iter().filter_map(|c| Some((c, of_connector(c)?))).filter(|(_, verdict)| verdict.limit.is_one()).collect();
    // Whoever is furthest behind in time, and among those for whom that is not known in events; what somebody wants so comes last.
    connectors.sort_by(|(a, _), (b, _)| {
        let order = |c: &ConnectorFigures| (c.paused.is_none(), c.lag_seconds.unwrap_or(0.0).round() as u64, c.lag_events);
        order(b).cmp(&order(a))
    });
    let connector = connectors.into_iter().next().map(|(_, verdict)| verdict);
    let capture = figures.capture.as_ref();
    capture
        .and_then(capture_limit)
        .or(connector)
        .or_else(|| capture.and_then(|capture| foreign_wal(capture, figures)))
        .unwrap_or_else(|| nothing_limits(figures))
}

struct Words {
    limit: Limit,
    stage: StageName,
    entity: String,
}

impl Words {
    fn new(limit: Limit, stage: StageName, entity: &str) -> Words {
        Words { limit, stage, entity: entity.to_owned() }
    }

    fn say(self, sentence: String, helps: &[&str], helps_not: &[&str]) -> Bottleneck {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Bottleneck {
            limit: self.limit,
            stage: Some(self.stage),
            entity: Some(self.entity),
            sentence,
            helps: owned(helps),
            helps_not: owned(helps_not),
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// Seconds for people: `420 ms`, `14 m 3 s`.
fn seconds(seconds: f64) -> String {
    show_duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn minutes(seconds: f64) -> String {
    if seconds < 90.0 { format!("{:.0} s", seconds.max(1.0)) } else { format!("{:.0} min", seconds / 60.0) }
}

/// A number for people: `940`, `12.4 k`, `1.2 M`.
#[must_use]
pub fn count(n: f64) -> String {
    match n {
        n if n < 10.0 && n.fract() > 0.05 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 1_000_000.0 => format!("{:.1} k", n / 1e3),
        n => format!("{:.1} M", n / 1e6),
    }
}

const REPLICAS: &str = "more replicas";
const LANES: &str = "more lanes";

fn journal_away(figures: &Figures) -> Option<Bottleneck> {
    let journal = &figures.journal;
    let stuck = journal.oldest_unconfirmed_seconds.filter(|age| *age >= CONFIRM_AWAY_SECONDS);
    let why = match (&journal.away, stuck) {
        (Some(why), _) => format!("does not answer ({why})"),
        (None, Some(age)) => format!("has confirmed nothing for {}", seconds(age)),
        (None, None) => return None,
    };
    let kept = figures.capture.as_ref().and_then(|c| c.slot.as_ref());
    let left = kept
        .and_then(|slot| slot.seconds_to_ceiling)
        .map_or_else(String::new, |s| format!(", and its room lasts for {}", seconds(s as f64)));
    let kept = kept.map_or_else(String::new, |slot| format!("; PostgreSQL keeps {} of WAL for it{left}", show_size(slot.retained_bytes)));
    let words = Words::new(Limit::JournalAway, StageName::Publish, "journal");
    let sentence = format!("everything waits for the journal, which {why}{kept}; bring the broker back, nothing else helps");
    Some(words.say(sentence, &["bring the broker back"], &[REPLICAS, LANES, "a restart of this process"]))
}

/// What limits capture; `None` while it keeps up.
fn capture_limit(capture: &CaptureFigures) -> Option<Bottleneck> {
    let of = |stage| capture.utilisation(stage);
    let (receive, decode, encode, publish) = (of(StageName::Receive), of(StageName::Decode), of(StageName::Encode), of(StageName::Publish));
    let confirm = capture.stage(StageName::Confirm).and_then(|stage| stage.p95_seconds).unwrap_or(0.0);
    let large = capture.largest_transaction_events >= TRANSACTION_LARGE;
    // It fills the journal's window too, so it comes before what that looks like.
    if large && decode + encode + receive + publish >= MOSTLY {
        let here = decode + encode;
        let (at_work, stage) = match () {
            () if publish > here.max(receive) => ("the journal takes it", StageName::Publish),
            () if here >= receive => ("this process decodes it", StageName::Decode),
            () => ("the server decodes it", StageName::Decode),
        };
        let sentence = format!(
            "capture is limited by one transaction of {} events so far: {at_work} {} of the time, and what commits later waits behind it; \
             smaller transactions or `streaming: on` help, more replicas do not",
            count(capture.largest_transaction_events as f64),
            percent(here.max(receive).max(publish))
        );
        let words = Words::new(Limit::LargeTransaction, stage, "capture");
        return Some(words.say(
            sentence,
            &["smaller transactions at the source", "`streaming: on`", "a faster processor"],
            &[REPLICAS, LANES],
        ));
    }
    if publish >= 0.5 || confirm >= CONFIRM_SLOW_SECONDS || capture.doing == "waiting_for_journal" {
        let stage = if publish >= 0.5 { StageName::Publish } else { StageName::Confirm };
        let waits = if publish >= 0.01 { format!(" and capture waits for room {} of the time", percent(publish)) } else { String::new() };
        let sentence = format!(
            "capture is limited by the journal: a confirm takes {} at the 95th percentile{waits}; a faster disk or a nearer broker \
             helps, more replicas do not",
            seconds(confirm)
        );
        let words = Words::new(Limit::JournalSlow, stage, "journal");
        return Some(words.say(sentence, &["a faster disk or a nearer broker", "more partitions in the next journal"], &[REPLICAS, LANES]));
    }
    if decode + encode >= SATURATED {
        let stage = if decode > encode { StageName::Decode } else { StageName::Encode };
        let sentence = format!(
            "capture is limited by its processor: it decodes {} and encodes {} of the time at {} events/s; a faster processor helps, or \
             fewer columns in the publication; more replicas do not, since one process reads a slot",
            percent(decode),
            percent(encode),
            count(capture.events_per_second)
        );
        let words = Words::new(Limit::CaptureProcessor, stage, "capture");
        return Some(words.say(sentence, &["a faster processor", "fewer columns in the publication"], &[REPLICAS, LANES]));
    }
    if receive >= MOSTLY && capture.lag_bytes >= BEHIND_BYTES {
        let sentence = format!(
            "capture is limited by the server, which has {} of WAL more and is waited for {} of the time: it decodes with one processor; \
             fewer published tables or a less busy server help, more replicas do not",
            show_size(capture.lag_bytes),
            percent(receive)
        );
        let words = Words::new(Limit::SourceSlow, StageName::Receive, "source");
        return Some(words.say(sentence, &["fewer published tables", "a less busy server", "a nearer server"], &[REPLICAS, LANES]));
    }
    None
}

/// WAL that is kept or written for somebody else.
fn foreign_wal(capture: &CaptureFigures, figures: &Figures) -> Option<Bottleneck> {
    let slot = capture.slot.as_ref()?;
    let kept = show_size(slot.retained_bytes);
    let words = || Words::new(Limit::ForeignWal, StageName::Receive, "source");
    let not = ["a restart of this process", REPLICAS, LANES];
    if let Some(pin) = slot.pinned_by.as_ref().filter(|_| slot.retained_bytes >= PINNED_BYTES) {
        let sentence = format!("the {kept} of WAL that the server keeps are held by {pin}, not by Tillstream; ending that frees them");
        return Some(words().say(sentence, &["end what holds the WAL"], &not));
    }
    let ours = capture.received_bytes_per_second / slot.wal_bytes_per_second.max(1.0);
    let moves = slot.wal_bytes_per_second >= FOREIGN_BYTES_PER_SECOND && ours <= FOREIGN_RATIO;
    let idle = figures.connectors.iter().all(|c| !scale::is_behind(c));
    (moves && idle).then(|| {
        let sentence = format!(
            "nothing limits: the server writes {}/s of WAL, of which {} is for this pipeline; the rest is somebody else's and is acknowledged \
             as it passes ({kept} kept); to have less of it, look at who writes",
            show_size(slot.wal_bytes_per_second as u64),
            percent(ours)
        );
        words().say(sentence, &["look at who writes: `tillstream doctor`"], &not)
    })
}

/// Whether the target answers fewer calls at once than the file allows, because it got slower.
#[must_use]
pub fn is_overloaded(connector: &ConnectorFigures) -> bool {
    let places = connector.calls_max.min(connector.lanes * u64::from(connector.owned.max(1)));
    (connector.calls_allowed as f64) < places as f64 * 0.8 && connector.call_p95().is_some_and(|p95| p95 >= CALL_SLOW_SECONDS)
}

/// The verdict on one connector; `None` while nothing is known of it.
#[must_use]
pub fn of_connector(connector: &ConnectorFigures) -> Option<Bottleneck> {
    let name = &connector.name;
    let words = |limit, stage| Words::new(limit, stage, name);
    let backlog = count(connector.lag_events as f64);
    if let Some(by) = &connector.paused {
        let waits =
            if connector.lag_events == 0 { "nothing waits yet".to_owned() } else { format!("{backlog} events wait in the journal") };
        let sentence = format!("{name} is paused by {by}; {waits}; resume it: `tillstream connector resume {name}`");
        let resume = format!("tillstream connector resume {name}");
        return Some(words(Limit::Paused, StageName::Deliver).say(sentence, &[&resume], &[REPLICAS, LANES]));
    }
    if let Some(why) = &connector.stopped {
        let sentence = format!("{name} stands still until somebody acts: {why}; {backlog} events wait");
        return Some(words(Limit::Stopped, StageName::Deliver).say(sentence, &["what the message says"], &[REPLICAS, LANES]));
    }
    if connector.away {
        let sentence = format!(
            "{name} waits for its target, which is away and only probed; {backlog} events wait and none is lost; bring the target back, nothing else helps"
        );
        return Some(words(Limit::TargetAway, StageName::Deliver).say(
            sentence,
            &["bring the target back"],
            &[REPLICAS, LANES, "larger batches"],
        ));
    }
    if !scale::is_behind(connector) {
        return None;
    }
    let deliver = connector.utilisation(StageName::Deliver);
    let waits = connector.waits.rate + connector.waits.pause;
    let used = connector.rate_limit.map_or(0.0, |limit| connector.settled_per_second / (limit * owned_part(connector)));
    if waits >= WAITS || connector.paused_seconds.is_some() || used >= SATURATED {
        return Some(quota(connector));
    }
    let laggard = connector.partitions.iter().filter(|p| p.owned).max_by_key(|p| p.lag_entries);
    if let Some(verdict) = laggard.and_then(|laggard| skew(connector, laggard, deliver)) {
        return Some(verdict);
    }
    // A task that maps all of the time has room for more under way: its lanes are not what it waits for, however busy.
    let map = connector.utilisation(StageName::Map);
    if map >= SATURATED {
        return Some(mapping(connector, map));
    }
    if deliver >= SATURATED {
        return Some(calls(connector));
    }
    let settle = connector.utilisation(StageName::Settle);
    if settle >= MOSTLY {
        let sentence = format!(
            "{name} is limited by booking outcomes, at it {} of the time: dead letters are stored one call at a time; {backlog} events wait; mend what \
             the target refuses, more replicas do not help",
            percent(settle)
        );
        return Some(words(Limit::Settlement, StageName::Settle).say(sentence, &["mend what the target refuses"], &[REPLICAS, LANES]));
    }
    let read = connector.utilisation(StageName::Read);
    if read >= SATURATED {
        let sentence = format!(
            "{name} is limited by reading the journal, which it waits for {} of the time; {backlog} events wait; a nearer or faster broker helps, more \
             replicas do not",
            percent(read)
        );
        return Some(words(Limit::JournalRead, StageName::Read).say(sentence, &["a nearer or faster broker"], &[REPLICAS, LANES]));
    }
    let done = connector.drain_seconds.map_or_else(|| "and it does not become less".to_owned(), |s| format!("done in {}", minutes(s)));
    let sentence = format!("{name} catches up: {backlog} events wait, {done}; no stage is at work all of the time");
    Some(words(Limit::CatchingUp, StageName::Deliver).say(sentence, &[], &[]))
}

fn owned_part(connector: &ConnectorFigures) -> f64 {
    f64::from(connector.owned.max(1)) / connector.partitions.len().max(1) as f64
}

fn quota(connector: &ConnectorFigures) -> Bottleneck {
    let (name, backlog) = (&connector.name, count(connector.lag_events as f64));
    let which = match (connector.rate_limit, connector.waits.pause > connector.waits.rate || connector.paused_seconds.is_some()) {
        (Some(limit), false) => format!("its budget of {} events/s", count(limit)),
        (_, _) => format!("the target's quota: it asks for pauses, at {} events/s", count(connector.settled_per_second)),
    };
    let drain = connector.drain_seconds.map_or_else(
        || format!("{backlog} events wait and more come"),
        |s| format!("{backlog} events wait and are done in {}", minutes(s)),
    );
    let sentence = format!("{name} is limited by {which}; {drain}; a higher quota or larger batches help, more replicas do not");
    let words = Words::new(Limit::TargetQuota, StageName::Deliver, name);
    words.say(
        sentence,
        &["a higher quota", "larger batches, where the target counts requests", "one event for each row (`later: supersede`)"],
        &[REPLICAS, LANES],
    )
}

/// One lane or one partition at work while the others rest.
fn skew(connector: &ConnectorFigures, laggard: &PartitionFigures, deliver: f64) -> Option<Bottleneck> {
    let name = &connector.name;
    let owned: Vec<&PartitionFigures> = connector.partitions.iter().filter(|p| p.owned).collect();
    let busiest = laggard.busiest_lane;
    let lanes = connector.lanes.max(1) as f64;
    if busiest < SATURATED || deliver >= MOSTLY {
        return None;
    }
    let others_of_lane = (laggard.lanes_busy * lanes - busiest) / (lanes - 1.0).max(1.0);
    let total: u64 = owned.iter().map(|p| p.lag_entries).sum();
    let part = laggard.lag_entries as f64 / total.max(1) as f64;
    let backlog = count(connector.lag_events as f64);
    let not = [REPLICAS, LANES, "more partitions"];
    if lanes > 1.0 && others_of_lane < busiest / 2.0 {
        let sentence = format!(
            "{name} is limited by one key: a single lane of partition {} is in calls {} of the time while the others are {}; {backlog} events wait; one event \
             for each row (`later: supersede`), larger batches or a key that splits help, more replicas do not",
            laggard.partition,
            percent(busiest),
            percent(others_of_lane.max(0.0)),
        );
        let helps = ["one event for each row (`later: supersede`)", "larger batches", "a key that splits"];
        return Some(Words::new(Limit::HotKey, StageName::Deliver, name).say(sentence, &helps, &not));
    }
    let others = owned.iter().filter(|p| p.partition != laggard.partition);
    let rest = others.clone().map(|p| p.lanes_busy).fold(0.0, f64::max);
    if owned.len() > 1 && part >= MOSTLY && rest < busiest / 2.0 {
        let sentence = format!(
            "{name} is limited by partition {}, which has {} of what waits: its lanes are in calls {} of the time while those of the others are {}; larger \
             batches or more lanes help, more replicas do not",
            laggard.partition,
            percent(part),
            percent(laggard.lanes_busy),
            percent(rest),
        );
        let words = Words::new(Limit::HotPartition, StageName::Deliver, name);
        return Some(words.say(sentence, &["larger batches", LANES, "`partition_by` another column, in a new journal"], &[REPLICAS]));
    }
    None
}

/// Processes beyond which more change nothing, if that is more than there are.
fn useful(connector: &ConnectorFigures) -> String {
    let partitions = Layout::of(connector, 1).partitions;
    let of = |replicas| scale::capacity(connector, &Layout::of(connector, replicas)).map_or(0.0, |c| c.0);
    let most = of(partitions);
    let useful = (1..=partitions).find(|replicas| of(*replicas) * 1.02 >= most).unwrap_or(1);
    if useful > connector.replicas {
        format!("more replicas will not help above {useful}")
    } else {
        "more replicas will not help".to_owned()
    }
}

fn mapping(connector: &ConnectorFigures, map: f64) -> Bottleneck {
    let name = &connector.name;
    let mapping = connector.partitions.iter().filter(|p| p.mapping >= MOSTLY).count();
    let each = connector.service.map_or(0.0, |s| s.map_seconds_per_event);
    let more = useful(connector);
    let may = more.contains("above");
    let sentence = format!(
        "{name} is limited by the mapping, at work {} of the time in {mapping} of {} partitions and {} of it for an event; {} events wait; a simpler mapping or faster \
         processors help, {more}",
        percent(map),
        connector.owned,
        seconds_fine(each),
        count(connector.lag_events as f64),
    );
    let mut helps = vec!["a simpler mapping", "faster processors"];
    let mut not = vec![LANES, "larger batches"];
    if may {
        helps.push(REPLICAS)
    } else {
        not.push(REPLICAS)
    }
    Words::new(Limit::MapProcessor, StageName::Map, name).say(sentence, &helps, &not)
}

fn seconds_fine(seconds: f64) -> String {
    match seconds * 1e6 {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us => format!("{:.1} ms", us / 1000.0),
    }
}

/// All the calls that there may be are in the air.
fn calls(connector: &ConnectorFigures) -> Bottleneck {
    let name = &connector.name;
    let p95 = connector.call_p95().unwrap_or(0.0);
    let lanes = connector.lanes * u64::from(connector.owned.max(1));
    let backlog = count(connector.lag_events as f64);
    let now = Layout::of(connector, connector.replicas);
    let overloaded = is_overloaded(connector);
    // The smallest step of each kind that would do.
    let larger = |batch: u64| Layout { batch, ..now };
    let wider = |more: u64| Layout { lanes: now.lanes + more, calls_max: now.calls_max + more * u64::from(now.partitions), ..now };
    let drains = |layout: &Layout| scale::drain_with(connector, layout);
    let batch = [5, 10, 20, 50, 100, 200, 500, 1000].into_iter().filter(|batch| *batch > now.batch);
    let is_full = connector.service.is_some_and(|s| s.items_per_call >= now.batch as f64 * 0.7);
    let batch = is_full.then(|| first_that_does(batch, |batch| drains(&larger(batch)))).flatten();
    // A target that got slower bears no more calls, wherever they come from.
    let few_calls = !overloaded && connector.calls_max < lanes;
    let more = match (overloaded, few_calls) {
        (true, _) => None,
        (false, true) => {
            let calls = (1..8).map(|n| (connector.calls_max << n).min(lanes));
            first_that_does(calls, |calls_max| drains(&Layout { calls_max, ..now }))
                .map(|(calls, drain)| (format!("`in_flight: {calls}`"), drain))
        }
        (false, false) => first_that_does([1, 2, 4, 8, 16, 32].into_iter(), |more| drains(&wider(more)))
            .map(|(more, drain)| (format!("{more} more lanes in each partition"), drain)),
    };
    let mut helps = Vec::new();
    if let Some((batch, _)) = batch {
        helps.push(format!("batch {batch}"));
    }
    if let Some((more, _)) = &more {
        helps.push(more.clone());
    }
    let drain = batch.and_then(|b| b.1).into_iter().chain(more.and_then(|m| m.1)).max_by(f64::total_cmp);
    let would = match (helps.is_empty(), drain) {
        (true, _) => format!("{backlog} events wait, and only a faster target helps"),
        (false, Some(drain)) => format!("{} would drain {backlog} events in {}", helps.join(" or "), minutes(drain)),
        (false, None) => format!("{} would help the {backlog} events that wait", helps.join(" or ")),
    };
    let in_air = connector.calls_allowed.min(lanes);
    let more_replicas = useful(connector);
    let limited = if overloaded || p95 >= CALL_SLOW_SECONDS {
        Limit::TargetSlow
    } else if few_calls {
        Limit::FewCalls
    } else {
        Limit::FewLanes
    };
    let by = match limited {
        Limit::TargetSlow => format!("target p95 {} at {in_air} in flight", seconds(p95)),
        Limit::FewCalls => format!("`in_flight: {}`, with calls of {} at the 95th percentile", connector.calls_max, seconds(p95)),
        _ => format!(
            "its {lanes} lanes, each in a call {} of the time (target p95 {})",
            percent(connector.utilisation(StageName::Deliver)),
            seconds(p95)
        ),
    };
    let sentence = format!("{name} is limited by {by}; {would}; {more_replicas}");
    if limited == Limit::TargetSlow {
        helps.push("a faster target".to_owned());
    }
    let mut helps_not = Vec::new();
    if more_replicas.contains("above") {
        helps.push(REPLICAS.to_owned())
    } else {
        helps_not.push(REPLICAS.to_owned())
    }
    if overloaded {
        helps_not.push(LANES.to_owned());
    }
    let helps: Vec<&str> = helps.iter().map(String::as_str).collect();
    let helps_not: Vec<&str> = helps_not.iter().map(String::as_str).collect();
    Words::new(limited, StageName::Deliver, name).say(sentence, &helps, &helps_not)
}

/// The first step that drains in time, else the last one that drains at all; and in how long.
fn first_that_does(steps: impl Iterator<Item = u64>, drain: impl Fn(u64) -> Option<f64>) -> Option<(u64, Option<f64>)> {
    let mut last = None;
    for step in steps {
        if let Some(seconds) = drain(step) {
            last = Some((step, Some(seconds)));
            if seconds <= SUGGESTED_WITHIN {
                break;
            }
        }
    }
    last
}

fn nothing_limits(figures: &Figures) -> Bottleneck {
    let behind = figures.connectors.iter().filter(|c| scale::is_behind(c)).max_by_key(|c| c.lag_events);
    if let Some(verdict) = behind.and_then(of_connector) {
        return verdict;
    }
    let capture = figures.capture.iter().flat_map(|c| &c.stages).map(|stage| ("capture", stage));
    let connectors = figures.connectors.iter().flat_map(|c| c.stages.iter().map(|stage| (c.name.as_str(), stage)));
    // What a stage waits for is no work of its own while nothing limits.
    let waits = [StageName::Receive, StageName::Confirm, StageName::Read];
    let busiest =
        capture.chain(connectors).filter(|(_, s)| !waits.contains(&s.stage)).max_by(|a, b| a.1.utilisation.total_cmp(&b.1.utilisation));
    let moves = figures.capture.as_ref().is_some_and(|c| c.events_per_second >= 0.5)
        || figures.connectors.iter().any(|c| c.settled_per_second >= 0.5);
    let (limit, sentence) = match busiest {
        Some((entity, stage)) if moves => (
            Limit::KeepingUp,
            format!(
                "nothing limits: what comes is delivered; the busiest stage is {} of {entity}, at work {} of the time",
                stage.stage.as_str(),
                percent(stage.utilisation)
            ),
        ),
        _ => (Limit::Idle, "nothing limits: all is idle, nothing comes and nothing waits".to_owned()),
    };
    Bottleneck { limit, stage: None, entity: None, sentence, helps: Vec::new(), helps_not: Vec::new() }
}

#[cfg(test)]
mod tests;

use super::*;
use crate::ops::figures::{CaptureFigures, GateWaits, JournalFigures, Service, SlotFigures, Stage};

fn stage(stage: StageName, utilisation: f64, p95_seconds: Option<f64>) -> Stage {
    Stage { stage, events_per_second: 100.0, utilisation, seconds: None, p95_seconds, queue: 0, queue_unit: "events".to_owned() }
}

fn capture(shares: [f64; 5], confirm: f64) -> CaptureFigures {
    let names = [StageName::Receive, StageName::Decode, StageName::Encode, StageName::Publish, StageName::Confirm];
    let stages = names.into_iter().zip(shares).map(|(name, share)| stage(name, share, (name == StageName::Confirm).then_some(confirm)));
    CaptureFigures { doing: "streaming".to_owned(), stages: stages.collect(), events_per_second: 100.0, ..CaptureFigures::default() }
}

/// `stock`, 12 partitions of one lane, eight calls at once of 400 ms with ten events each, and 1.2 M events behind.
fn stock() -> ConnectorFigures {
    let partition = |partition| PartitionFigures {
        partition,
        owned: true,
        lag_entries: 100_000,
        full: true,
        lanes_busy: 0.65,
        busiest_lane: 0.7,
        ..PartitionFigures::default()
    };
    let service = Service {
        call_seconds_per_event: 0.04,
        map_seconds_per_event: 0.00001,
        items_per_call: 10.0,
        call_seconds: 0.4,
        seconds_per_item: None,
    };
    let mut connector = ConnectorFigures {
        name: "stock".to_owned(),
        doing: "running".to_owned(),
        arrival_per_second: Some(100.0),
        settled_per_second: 200.0,
        service: Some(service),
        lanes: 1,
        calls_max: 8,
        calls_allowed: 8,
        calls_in_air: 8.0,
        batch_items: 10,
        partitions: (0..12).map(partition).collect(),
        owned: 12,
        replicas: 1,
        processors: 2,
        lag_events: 1_200_000,
        lag_seconds: Some(600.0),
        stages: vec![
            stage(StageName::Read, 0.0, None),
            stage(StageName::Map, 0.01, None),
            stage(StageName::Deliver, 0.99, Some(0.42)),
            stage(StageName::Settle, 0.01, None),
        ],
        ..ConnectorFigures::default()
    };
    connector.drain_seconds = scale::drain_seconds(&connector);
    connector
}

fn set(connector: &mut ConnectorFigures, name: StageName, utilisation: f64, p95: Option<f64>) {
    for stage in connector.stages.iter_mut().filter(|stage| stage.stage == name) {
        (stage.utilisation, stage.p95_seconds) = (utilisation, p95);
    }
}

fn each_partition(connector: &mut ConnectorFigures, change: impl Fn(&mut PartitionFigures)) {
    connector.partitions.iter_mut().for_each(change);
}

fn with(connector: ConnectorFigures) -> Figures {
    Figures {
        window_seconds: 10.0,
        capture: Some(capture([0.0, 0.05, 0.05, 0.01, 0.3], 0.004)),
        connectors: vec![connector],
        ..Figures::default()
    }
}

fn capturing(capture: CaptureFigures) -> Figures {
    Figures { window_seconds: 10.0, capture: Some(capture), ..Figures::default() }
}

#[track_caller]
fn check(figures: &Figures, limit: Limit, stage: StageName, says: &[&str], helps: &str, helps_not: &str) {
    let verdict = bottleneck(figures);
    println!("{}", verdict.sentence);
    assert_eq!((verdict.limit, verdict.stage), (limit, Some(stage)), "{}", verdict.sentence);
    for part in says {
        assert!(verdict.sentence.contains(part), "`{part}` is missing: {}", verdict.sentence);
    }
    assert!(verdict.helps.iter().any(|h| h.contains(helps)), "{:?}", verdict.helps);
    assert!(verdict.helps_not.iter().any(|h| h.contains(helps_not)), "{:?}", verdict.helps_not);
}

#[test]
fn somebody_paused_it() {
    let mut paused = stock();
    paused.paused = Some("anna since 2026-11-23 10:00:00 UTC (it moves)".to_owned());
    let says = [
        "stock is paused by anna since 2026-11-23 10:00:00 UTC (it moves)",
        "1.2 M events wait",
        "resume it: `tillstream connector resume stock`",
    ];
    check(&with(paused.clone()), Limit::Paused, StageName::Deliver, &says, "connector resume", "replicas");
    let advice = scale::advise(&paused, Duration::from_secs(60));
    assert_eq!((advice.recommended_replicas, advice.helps, advice.because.contains("is paused by anna")), (1, false, true));
    // What somebody wants so comes behind what nobody wants, however long it waits.
    let slow = ConnectorFigures { name: "crm".to_owned(), lag_seconds: Some(1.0), ..stock() };
    let both = Figures { connectors: vec![paused, slow], ..with(stock()) };
    assert_eq!(bottleneck(&both).entity.as_deref(), Some("crm"));
}

#[test]
fn a_slow_target() {
    let mut slow = stock();
    slow.replicas = 2;
    // Three processes of eight calls would have more calls than there are lanes.
    let verdict = bottleneck(&with(slow.clone()));
    println!("{}", verdict.sentence);
    assert_eq!((verdict.limit, verdict.stage), (Limit::TargetSlow, Some(StageName::Deliver)));
    for part in [
        "stock is limited by target p95 420 ms at 8 in flight",
        "batch 50 or",
        "would drain 1.2 M events in",
        "more replicas will not help",
    ] {
        assert!(verdict.sentence.contains(part), "`{part}` is missing: {}", verdict.sentence);
    }
    slow.calls_allowed = 3;
    check(&with(slow), Limit::TargetSlow, StageName::Deliver, &["at 3 in flight"], "a faster target", "more lanes");
}

#[test]
fn a_quota() {
    let mut budget = stock();
    budget.rate_limit = Some(200.0);
    budget.waits = GateWaits { rate: 0.9, ..GateWaits::default() };
    set(&mut budget, StageName::Deliver, 0.1, Some(0.02));
    check(
        &with(budget.clone()),
        Limit::TargetQuota,
        StageName::Deliver,
        &["its budget of 200 events/s"],
        "a higher quota",
        "more replicas",
    );
    (budget.rate_limit, budget.waits) = (None, GateWaits { pause: 0.8, ..GateWaits::default() });
    check(&with(budget), Limit::TargetQuota, StageName::Deliver, &["asks for pauses"], "a higher quota", "more replicas");
}

#[test]
fn a_slow_broker() {
    let figures = capturing(capture([0.0, 0.05, 0.05, 0.8, 1.0], 0.9));
    check(
        &figures,
        Limit::JournalSlow,
        StageName::Publish,
        &["a confirm takes 900 ms", "80 % of the time"],
        "a faster disk",
        "more replicas",
    );
    let figures = capturing(capture([0.0, 0.05, 0.05, 0.0, 1.0], 0.9));
    check(&figures, Limit::JournalSlow, StageName::Confirm, &["a confirm takes 900 ms"], "a nearer broker", "more replicas");
}

#[test]
fn a_skewed_key_and_a_skewed_partition() {
    let mut skewed = stock();
    (skewed.lanes, skewed.calls_max, skewed.calls_allowed) = (4, 48, 48);
    set(&mut skewed, StageName::Deliver, 0.05, Some(0.05));
    each_partition(&mut skewed, |p| (p.lag_entries, p.full, p.lanes_busy, p.busiest_lane) = (10, false, 0.02, 0.05));
    let hot = &mut skewed.partitions[7];
    (hot.lag_entries, hot.full, hot.lanes_busy, hot.busiest_lane) = (50_000, true, 0.26, 0.99);
    let says = ["one key", "partition 7", "99 %"];
    check(&with(skewed.clone()), Limit::HotKey, StageName::Deliver, &says, "one event for each row", "more replicas");
    skewed.partitions[7].lanes_busy = 0.98;
    check(&with(skewed), Limit::HotPartition, StageName::Deliver, &["partition 7"], "larger batches", "more replicas");
}

#[test]
fn a_huge_transaction() {
    let mut huge = capture([0.1, 0.3, 0.5, 0.0, 0.3], 0.004);
    huge.largest_transaction_events = 412_000;
    let says = ["one transaction of 412.0 k events", "this process decodes it 80 %"];
    check(&capturing(huge), Limit::LargeTransaction, StageName::Decode, &says, "streaming: on", "more replicas");
    let mut huge = capture([0.9, 0.02, 0.02, 0.0, 0.0], 0.004);
    huge.largest_transaction_events = 412_000;
    check(
        &capturing(huge),
        Limit::LargeTransaction,
        StageName::Decode,
        &["the server decodes it 90 %"],
        "smaller transactions",
        "more lanes",
    );
    let busy = capture([0.0, 0.4, 0.55, 0.0, 0.3], 0.004);
    check(&capturing(busy), Limit::CaptureProcessor, StageName::Encode, &["encodes 55 %"], "a faster processor", "more replicas");
}

#[test]
fn a_mapping_that_takes_the_processor() {
    let mut mapping = stock();
    set(&mut mapping, StageName::Map, 0.97, None);
    set(&mut mapping, StageName::Deliver, 0.2, Some(0.02));
    each_partition(&mut mapping, |p| (p.mapping, p.busiest_lane, p.lanes_busy) = (0.97, 0.2, 0.1));
    mapping.service = Some(Service {
        map_seconds_per_event: 0.002,
        call_seconds_per_event: 0.0001,
        call_seconds: 0.001,
        ..mapping.service.unwrap_or_default()
    });
    let figures = with(mapping);
    let says = ["limited by the mapping", "97 %", "2.0 ms of it for an event", "more replicas will not help above 6"];
    check(&figures, Limit::MapProcessor, StageName::Map, &says, "a simpler mapping", "more lanes");
}

#[test]
fn too_few_lanes() {
    let mut few = stock();
    (few.lanes, few.calls_max, few.calls_allowed) = (1, 12, 12);
    set(&mut few, StageName::Deliver, 0.98, Some(0.03));
    each_partition(&mut few, |p| (p.lanes_busy, p.busiest_lane) = (0.98, 0.98));
    let says = ["its 12 lanes", "more lanes in each partition", "more replicas will not help"];
    check(&with(few.clone()), Limit::FewLanes, StageName::Deliver, &says, "more lanes", "more replicas");
    // The same with a bound on the calls of a process: others have calls of their own.
    few.lanes = 4;
    set(&mut few, StageName::Deliver, 0.98, Some(0.03));
    let verdict = bottleneck(&with(few));
    println!("{}", verdict.sentence);
    assert_eq!(verdict.limit, Limit::FewCalls);
    assert!(
        verdict.sentence.contains("`in_flight: 12`") && verdict.sentence.contains("more replicas will not help above 4"),
        "{}",
        verdict.sentence
    );
}

#[test]
fn a_broker_that_is_away() {
    let mut away = with(stock());
    away.journal = JournalFigures { away: Some("journal.unavailable: refused".to_owned()), partitions: 12, ..JournalFigures::default() };
    if let Some(capture) = &mut away.capture {
        capture.slot = Some(SlotFigures { retained_bytes: 3 << 30, seconds_to_ceiling: Some(11_400), ..SlotFigures::default() });
    }
    let says = ["waits for the journal", "refused", "3.0 GiB of WAL", "3 h 10 m"];
    check(&away, Limit::JournalAway, StageName::Publish, &says, "bring the broker back", "more replicas");
    away.journal = JournalFigures { oldest_unconfirmed_seconds: Some(42.0), partitions: 12, ..JournalFigures::default() };
    check(&away, Limit::JournalAway, StageName::Publish, &["has confirmed nothing for 42 s"], "bring the broker back", "a restart");
}

#[test]
fn somebody_elses_wal() {
    let mut pinned = capture([0.0, 0.0, 0.0, 0.0, 0.0], 0.004);
    let slot = SlotFigures { retained_bytes: 9 << 30, wal_bytes_per_second: 4e6, ..SlotFigures::default() };
    pinned.slot = Some(SlotFigures { pinned_by: Some("a transaction that is open for 4 h (pid 9121)".to_owned()), ..slot.clone() });
    let says = ["9.0 GiB", "held by a transaction that is open for 4 h (pid 9121), not by Tillstream"];
    check(&capturing(pinned.clone()), Limit::ForeignWal, StageName::Receive, &says, "end what holds", "a restart");
    pinned.slot = Some(SlotFigures { retained_bytes: 1 << 20, ..slot });
    check(
        &capturing(pinned),
        Limit::ForeignWal,
        StageName::Receive,
        &["nothing limits", "3.8 MiB/s", "0 % is for this pipeline"],
        "who writes",
        "more replicas",
    );
}

#[test]
fn all_idle_and_keeping_up() {
    let mut idle = stock();
    (idle.lag_events, idle.lag_seconds, idle.settled_per_second) = (0, None, 0.0);
    each_partition(&mut idle, |p| (p.lag_entries, p.full, p.lanes_busy, p.busiest_lane) = (0, false, 0.0, 0.0));
    set(&mut idle, StageName::Deliver, 0.0, None);
    let mut figures = with(idle);
    figures.capture = Some(CaptureFigures { events_per_second: 0.0, ..capture([0.0; 5], 0.0) });
    let verdict = bottleneck(&figures);
    println!("{}", verdict.sentence);
    assert_eq!((verdict.limit, verdict.stage, verdict.entity), (Limit::Idle, None, None));
    assert!(verdict.sentence.contains("all is idle") && verdict.helps.is_empty());
    figures.connectors[0].settled_per_second = 200.0;
    set(&mut figures.connectors[0], StageName::Deliver, 0.4, Some(0.02));
    let verdict = bottleneck(&figures);
    assert_eq!(verdict.limit, Limit::KeepingUp);
    assert!(verdict.sentence.contains("deliver of stock, at work 40 %"), "{}", verdict.sentence);
}

#[test]
fn a_target_that_is_away_and_a_connector_that_waits_for_a_person() {
    let mut away = stock();
    away.away = true;
    check(
        &with(away),
        Limit::TargetAway,
        StageName::Deliver,
        &["away and only probed", "none is lost"],
        "bring the target back",
        "more replicas",
    );
    let mut stopped = stock();
    stopped.stopped = Some("delivery.schema_changed".to_owned());
    check(&with(stopped), Limit::Stopped, StageName::Deliver, &["until somebody acts"], "what the message says", "more replicas");
}

#[test]
fn the_connector_that_is_furthest_behind_is_named() {
    let mut near = stock();
    (near.name, near.lag_seconds) = ("near".to_owned(), Some(3.0));
    let mut figures = with(near);
    figures.connectors.push(stock());
    assert_eq!(bottleneck(&figures).entity.as_deref(), Some("stock"));
}

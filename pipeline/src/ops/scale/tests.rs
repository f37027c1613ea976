use super::*;
use crate::ops::figures::{GateWaits, PartitionFigures, Service, Stage, StageName};

/// Twelve partitions of two lanes; each process makes four calls at once, of ten events in 50 ms: 800 events a second.
fn shop(replicas: u16, arrival: f64, backlog: u64) -> ConnectorFigures {
    let partition = |partition| PartitionFigures { partition, owned: partition < 12 / replicas, ..PartitionFigures::default() };
    let busy = (arrival / (800.0 * f64::from(replicas))).min(1.0);
    let deliver = Stage {
        stage: StageName::Deliver,
        events_per_second: 0.0,
        utilisation: busy,
        seconds: Some(0.05),
        p95_seconds: Some(0.06),
        queue: 0,
        queue_unit: "events".to_owned(),
    };
    let service = Service {
        call_seconds_per_event: 0.005,
        map_seconds_per_event: 0.00002,
        items_per_call: 10.0,
        call_seconds: 0.05,
        seconds_per_item: None,
    };
    ConnectorFigures {
        name: "shop".to_owned(),
        arrival_per_second: Some(arrival),
        settled_per_second: arrival.min(800.0 * f64::from(replicas)) / f64::from(replicas),
        service: Some(service),
        lanes: 2,
        calls_max: 4,
        calls_allowed: 4,
        batch_items: 10,
        partitions: (0..12).map(partition).collect(),
        owned: 12 / replicas,
        replicas,
        processors: 2,
        lag_events: backlog,
        stages: vec![deliver],
        ..ConnectorFigures::default()
    }
}

fn advised(connector: &ConnectorFigures) -> (u16, u16, bool) {
    let advice = advise(connector, Duration::from_secs(60));
    println!("{}", advice.because);
    (advice.recommended_replicas, advice.max_useful_replicas, advice.helps)
}

#[test]
fn replicas_follow_what_comes_and_what_waits_up_to_the_lanes() {
    // Six processes of four calls fill all 24 lanes.
    assert_eq!(advised(&shop(1, 0.0, 0)), (1, 6, false));
    assert_eq!(advised(&shop(1, 500.0, 0)), (1, 6, false));
    assert_eq!(advised(&shop(1, 2000.0, 0)), (3, 6, true));
    assert_eq!(advised(&shop(1, 500.0, 60_000)), (2, 6, true));
    assert_eq!(advised(&shop(3, 500.0, 0)), (1, 6, false));
    assert_eq!(advised(&shop(2, 9000.0, 1_000_000)), (6, 6, true));
}

#[test]
fn the_quota_is_never_scaled_against() {
    let mut limited = shop(1, 2000.0, 60_000);
    limited.rate_limit = Some(700.0);
    limited.waits = GateWaits { rate: 0.5, ..GateWaits::default() };
    assert_eq!(advised(&limited), (1, 1, false));
    // Before it is felt: two processes use it up.
    let mut coming = shop(1, 2000.0, 0);
    coming.rate_limit = Some(1500.0);
    assert_eq!(advised(&coming), (2, 2, true));
    // Too many are given back.
    let mut many = shop(4, 2000.0, 60_000);
    (many.rate_limit, many.waits) = (Some(700.0), GateWaits { rate: 0.8, ..GateWaits::default() });
    assert_eq!(advised(&many), (1, 1, false));
    // A target that asks for pauses says no number.
    let mut paused = shop(2, 2000.0, 60_000);
    paused.waits = GateWaits { pause: 0.6, ..GateWaits::default() };
    assert_eq!((advised(&paused).0, advised(&paused).2), (2, false));
}

#[test]
fn what_replicas_cannot_mend_wants_none() {
    let mut away = shop(2, 2000.0, 60_000);
    away.away = true;
    assert_eq!((advised(&away).0, advised(&away).2), (2, false));
    let mut unknown = shop(2, 2000.0, 60_000);
    unknown.service = None;
    assert_eq!((advised(&unknown).0, advised(&unknown).2), (2, false));
    // All lanes are in calls with one process already.
    let mut lanes = shop(1, 5000.0, 60_000);
    lanes.calls_max = 24;
    lanes.calls_allowed = 24;
    assert_eq!(advised(&lanes), (1, 1, false));
    // Mapping is done by processors.
    let mut mapping = shop(1, 5000.0, 60_000);
    if let Some(service) = &mut mapping.service {
        service.map_seconds_per_event = 0.004;
    }
    assert_eq!(advised(&mapping), (6, 6, true));
}

#[test]
fn larger_calls_are_foretold_by_the_line_through_those_there_were() {
    let mut connector = shop(1, 100.0, 0);
    let of = |connector: &ConnectorFigures, batch| {
        capacity(connector, &Layout { batch, ..Layout::of(connector, 1) }).map_or(0.0, |c| c.0.round())
    };
    assert_eq!((of(&connector, 10), of(&connector, 50)), (800.0, 4000.0));
    if let Some(service) = &mut connector.service {
        // 40 ms for a call and 1 ms for each event.
        service.seconds_per_item = Some(0.001);
    }
    assert_eq!((of(&connector, 10), of(&connector, 40)), (800.0, 2000.0));
}

#[test]
fn a_process_that_delivers_nothing_says_so() {
    let scale = scale(Figures::default(), DRAIN_WITHIN);
    assert!(scale.recommended_replicas.is_none() && !scale.helps && scale.because.contains("delivers nothing"));
}

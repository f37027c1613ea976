use super::*;
use crate::ops::figures::{PartitionFigures, Service};

#[test]
fn a_profile_says_what_is_wrong_with_it_and_where() {
    let profile = Profile::parse("# lunch\nseconds,orders\n0,10\n60,100\n\n120,0\n").expect("sound");
    assert!(profile.orders && profile.seconds() == 120.0 && profile.peak() == 100.0 && profile.total() == 6600.0);
    assert_eq!([0.0, 59.9, 60.0, 119.0, 120.0, 500.0].map(|at| profile.at(at)), [10.0, 10.0, 100.0, 100.0, 0.0, 0.0]);
    for (text, line, what) in [
        ("", 1, "heading"),
        ("time,orders\n0,1\n", 1, "heading"),
        ("seconds,events\n0,1\n", 2, "two rows"),
        ("seconds,events\n0,x\n", 2, "two numbers"),
        ("seconds,events\n0,-1\n", 2, "two numbers"),
        ("seconds,events\n5,1\n5,1\n", 3, "rise"),
        ("seconds,events\n0,inf\n", 2, "two numbers"),
        ("seconds,events\n0,1\n99999999,1\n", 3, "14 days"),
    ] {
        let error = Profile::parse(text).expect_err(text);
        assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn a_queue_fares_as_arithmetic_says() {
    // 100 s at 30/s over what is served, then served at 20/s: 3,000 wait, drained after another 150 s.
    let course = simulate(|_| 50.0, 100.0, |_| 20.0);
    assert!((course.backlog_max - 3000.0).abs() < 10.0, "{course:?}");
    assert!(course.drained_seconds.is_some_and(|s| (s - 250.0).abs() < 1.0), "{course:?}");
    // The last event to come waits for all before it.
    assert!((course.lag_max_seconds - 150.0).abs() < 2.0, "{course:?}");
    let keeps_up = simulate(|_| 50.0, 100.0, |_| 60.0);
    assert!(keeps_up.lag_max_seconds < 0.5, "{keeps_up:?}");
    assert_eq!(simulate(|_| 50.0, 10.0, |_| 0.0).drained_seconds, None);
}

/// Calls of twenty events in 100 ms, four at once in a process, and two lanes in each of six partitions.
fn shop() -> ConnectorFigures {
    let service = Service {
        call_seconds_per_event: 0.005,
        map_seconds_per_event: 0.00005,
        items_per_call: 20.0,
        call_seconds: 0.1,
        seconds_per_item: None,
    };
    ConnectorFigures {
        name: "shop".to_owned(),
        service: Some(service),
        lanes: 2,
        calls_max: 4,
        calls_allowed: 4,
        batch_items: 20,
        partitions: vec![PartitionFigures::default(); 6],
        owned: 6,
        replicas: 1,
        processors: 2,
        ..ConnectorFigures::default()
    }
}

#[test]
fn three_million_orders_an_hour_need_what_they_need() {
    let figures = Figures { connectors: vec![shop()], ..Figures::default() };
    // 800/s for each process, up to the twelve lanes: 2,400/s.
    let of = |per_hour: f64| needs(&figures, &Profile::even(per_hour), 1.0, 30.0);
    assert_eq!(of(2_000_000.0).replicas, Some(1));
    assert_eq!(of(5_000_000.0).replicas, Some(2));
    let three = of(3_000_000.0);
    println!("{}", screen(&three));
    assert_eq!(three.replicas, Some(2));
    let many = of(20_000_000.0);
    println!("{}", screen(&many));
    assert_eq!(many.replicas, None);
    assert!(many.connectors[0].instead.as_deref().is_some_and(|text| text.contains("lanes in each partition")), "{many:?}");
    let mut limited = shop();
    limited.rate_limit = Some(500.0);
    let limited = needs(&Figures { connectors: vec![limited], ..Figures::default() }, &Profile::even(3_000_000.0), 1.0, 30.0);
    assert!(limited.connectors[0].instead.as_deref().is_some_and(|text| text.contains("a quota of 834")), "{limited:?}");
    let nothing = needs(&Figures::default(), &Profile::even(3_000_000.0), 1.0, 30.0);
    assert!(screen(&nothing).contains("nothing was delivered yet"));
}

#[test]
fn a_short_peak_may_wait_where_that_is_allowed() {
    let figures = Figures { connectors: vec![shop()], ..Figures::default() };
    let peak = Profile::parse("seconds,events\n0,100\n60,1000\n120,100\n600,0\n").expect("sound");
    let of = |within| needs(&figures, &peak, 1.0, within).replicas;
    assert_eq!((of(5.0), of(60.0)), (Some(2), Some(1)));
}

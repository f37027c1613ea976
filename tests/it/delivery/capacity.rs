//! What a peak would need is foretold as it then is: the simulation that `tillstream capacity` runs, against the same peak
//! scaled down and really delivered.

use std::time::{Duration, Instant};

use tillstream::delivery::Mode;
use tillstream::ops::capacity::{Profile, needs, screen, simulate};
use tillstream::ops::scale::{self, Layout};
use tillstream_connectors::sandbox::{Act, Faults, Sandbox, Settings};

use super::bottleneck::{Looking, to};
use super::pos::{Capture, Change, insert, journal, start};
use crate::harness::Level;

const PARTITIONS: u16 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peak_goes_as_it_was_foretold() {
    if Level::get() < Level::Full {
        return;
    }
    let profile = Profile::parse("seconds,events\n0,150\n5,900\n9,150\n14,0\n").expect("sound");
    let faults = Faults { rates: [(Act::Slow(Duration::from_millis(40)), 1.0)].into(), ..Faults::default() };
    let api = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings { faults, ..Settings::default() }).await.expect("listens");
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), PARTITIONS).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    let running = start(&journal, vec![to(&api.url("/http/events"), 2, 5)], Mode::Continuous);
    let looking = Looking::at(&journal, &running).await;

    let (mut written, mut owed, mut backlog_max, mut drained) = (0u64, 0.0, 0.0f64, None);
    let (begun, mut last) = (Instant::now(), 0.0);
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while drained.is_none() {
        tick.tick().await;
        let now = begun.elapsed().as_secs_f64();
        assert!(now < 60.0, "not drained: {} of {written}", api.counts().applied);
        owed += profile.at(last) * (now - last);
        last = now;
        let rows: Vec<u64> = (written..written + owed as u64).collect();
        owed -= rows.len() as f64;
        written += rows.len() as u64;
        for partition in 0..PARTITIONS {
            let of = rows.iter().filter(|row| **row % u64::from(PARTITIONS) == u64::from(partition));
            let changes: Vec<Change> = of.map(|row| insert("a", *row, 1)).collect();
            if !changes.is_empty() {
                capture.write(partition, &changes).await;
            }
        }
        capture.flush().await;
        let waiting = written - api.counts().applied;
        backlog_max = backlog_max.max(waiting as f64);
        drained = (now > profile.seconds() && waiting == 0).then_some(now);
    }
    let drained = drained.unwrap_or_default();
    let figures = looking.scale(Duration::from_secs(60)).figures;
    let stock = &figures.connectors[0];
    let (capacity, _) = scale::capacity(stock, &Layout::of(stock, 1)).expect("something was delivered");
    let course = simulate(|at| profile.at(at), profile.seconds(), |_| capacity);
    println!(
        "a peak of 900/s: {backlog_max:.0} events waited at most, {:.0} foretold; drained after {drained:.1} s, {:.1} s foretold (at {capacity:.0} events/s)",
        course.backlog_max,
        course.drained_seconds.unwrap_or(f64::NAN)
    );
    let near = |real: f64, foretold: f64, by: f64| (real - foretold).abs() <= foretold * 0.3 + by;
    assert!(near(backlog_max, course.backlog_max, 100.0), "{backlog_max} {course:?} {stock:#?}");
    assert!(course.drained_seconds.is_some_and(|foretold| (drained - foretold).abs() < 3.0), "{drained} {course:?}");

    // The same shop, asked for a real peak.
    let needs = needs(&figures, &Profile::even(3_000_000.0), 14.0, 60.0);
    println!("three million orders an hour: {}", screen(&needs));
    assert!(needs.replicas.is_none() && needs.connectors[0].instead.as_deref().is_some_and(|text| text.contains("lanes")), "{needs:#?}");
    running.stop().await.expect("stops");
}

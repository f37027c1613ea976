//! What one poisoned row costs the others, and what a target that is away for a while costs anybody.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillstream::config::Connector;
use tillstream::control;
use tillstream::delivery::{Breaker, ConnectorState, Mode};
use tillstream::journal::Journal;
use tillstream_connectors::registry::Registry;

use super::ledger::Ledger;
use super::pos::{Capture, connector, insert, journal, start, update};
use crate::harness::{Level, Proxy, wait_for};

const ROWS: u64 = 10_000;
/// Events written at once, and how often: 2,000 a second.
const EVENTS: u64 = 20;
const EVERY: Duration = Duration::from_millis(10);

/// A journal that is written while its events are delivered.
struct Shop {
    capture: Capture,
    /// Events of each row so far.
    changes: HashMap<u64, u64>,
    next: u64,
}

impl Shop {
    async fn open(journal: &Arc<dyn Journal>) -> Shop {
        Shop { capture: Capture::new(journal.as_ref(), 1).await, changes: HashMap::new(), next: 0 }
    }

    fn change(&mut self, row: u64) -> super::pos::Change {
        let change = self.changes.entry(row).or_default();
        *change += 1;
        if *change == 1 { insert("a", row, *change) } else { update("a", row, *change) }
    }

    /// Writes for so long; answers when each event of each row was written. `also` is a row that changes every time.
    async fn sell(&mut self, time: Duration, also: Option<u64>) -> Vec<(u64, Instant)> {
        let (begun, mut written) = (Instant::now(), Vec::new());
        let mut tick = tokio::time::interval(EVERY);
        while begun.elapsed() < time {
            tick.tick().await;
            let rows = (self.next..self.next + EVENTS).map(|n| n * 7919 % ROWS).filter(|row| Some(*row) != also).chain(also);
            let rows: Vec<u64> = rows.collect();
            self.next += EVENTS;
            let changes: Vec<_> = rows.iter().map(|row| self.change(*row)).collect();
            let now = Instant::now();
            self.capture.commit(0, &changes).await;
            written.extend(rows.into_iter().map(|row| (row, now)));
        }
        written
    }

    fn total(&self) -> u64 {
        self.changes.values().sum()
    }
}

fn to_lists(url: &Value) -> Connector {
    let block = json!({"url": url, "allow_private": true, "mode": "batch", "timeout": "5s", "columns": {"public.a": ["id", "qty"]}});
    let target = Registry::built_in().get("http").expect("built in").validate(&block, false).expect("valid");
    let mut connector = connector("loyalty", target);
    connector.tables = vec![("public".into(), "a".into())];
    connector.delivery.lanes = NonZeroU16::new(4).expect("not zero");
    connector.delivery.batch_items_max = 50;
    connector.delivery.linger = Duration::from_millis(5);
    connector.retry.base = Duration::from_millis(50);
    connector.retry.max = Duration::from_secs(1);
    connector
}

/// 99th percentile of the time from the write to the effect, of the events from `from` on, without one row's.
fn p99(written: &[(u64, Instant)], applied: &[(u64, Instant)], without: u64) -> Duration {
    let mut of: HashMap<u64, std::collections::VecDeque<Instant>> = HashMap::new();
    for (row, at) in applied {
        of.entry(*row).or_default().push_back(*at);
    }
    let took = written.iter().filter(|(row, _)| *row != without);
    let mut took: Vec<Duration> = took
        .map(|(row, at)| of.get_mut(row).and_then(std::collections::VecDeque::pop_front).expect("applied").saturating_duration_since(*at))
        .collect();
    took.sort();
    took[took.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_row_delays_no_other() {
    const POISONED: u64 = 4711;
    let time = Level::pick(Duration::from_millis(700), Duration::from_millis(1500), Duration::from_secs(20));
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut shop = Shop::open(&journal).await;
    let (ledger, address) = Ledger::start(usize::try_from(ROWS).expect("small"), 0, Duration::ZERO, true).await;
    let running = start(&journal, vec![to_lists(&json!(format!("http://{address}/list")))], Mode::Continuous);
    shop.sell(Duration::from_millis(500), None).await;
    let (mut clean, mut poisoned) = (Vec::new(), Vec::new());
    for round in 0..6 {
        // Everything before is over, the poisoned row's events included.
        let total = shop.total();
        wait_for("the round before", Duration::from_secs(60), || async { (ledger.applied() == total).then_some(()) }).await;
        let before = ledger.applied_at().len();
        let is_poisoned = round % 2 == 1;
        ledger.poison(is_poisoned.then_some(POISONED));
        let written = shop.sell(time, Some(POISONED)).await;
        let others = written.iter().filter(|(row, _)| *row != POISONED).count();
        let all = if is_poisoned { others } else { written.len() };
        wait_for("the others", Duration::from_secs(60), || async { (ledger.applied_at().len() >= before + all).then_some(()) }).await;
        let p99 = p99(&written, &ledger.applied_at()[before..], POISONED);
        if is_poisoned {
            assert_eq!(ledger.applied_at().len(), before + others, "nothing of the poisoned row");
            poisoned.push(p99);
        } else {
            clean.push(p99);
        }
        ledger.poison(None);
    }
    let total = shop.total();
    wait_for("the last round", Duration::from_secs(60), || async { (ledger.applied() == total).then_some(()) }).await;
    assert_eq!(ledger.wrong(), 0, "each row in order, the poisoned one too");
    let stats = running.stats.connector("loyalty").expect("there").clone();
    assert_eq!((stats.breaker_opened.load(Ordering::Relaxed), stats.rejected.load(Ordering::Relaxed)), (0, 0));
    running.stop().await.expect("stops");
    let mut sorted = (clean.clone(), poisoned.clone());
    sorted.0.sort();
    sorted.1.sort();
    let ratio = sorted.1[1].as_secs_f64() / sorted.0[1].as_secs_f64();
    println!("one row of {ROWS} poisoned, p99 of the others: clean {clean:?}, poisoned {poisoned:?}, ratio of medians {ratio:.2}");
    // Short rounds on a busy machine differ by more than what is measured.
    let slack = if Level::get() == Level::Long { Duration::ZERO } else { Duration::from_millis(100) };
    assert!(sorted.1[1] <= sorted.0[1].mul_f64(1.5).max(sorted.0[2]) + slack);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_away_costs_no_event_and_is_drained_in_order() {
    let away = Level::pick(Duration::from_secs(3), Duration::from_secs(20), Duration::from_secs(600));
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut shop = Shop::open(&journal).await;
    let (ledger, address) = Ledger::start(usize::try_from(ROWS).expect("small"), 0, Duration::ZERO, false).await;
    let mut connector = to_lists(&json!(format!("http://{address}/list")));
    connector.retry.give_up_after = Some(Duration::from_secs(1));
    if Level::get() == Level::Long {
        connector.retry.max = Duration::from_secs(30);
    }
    let running = start(&journal, vec![connector], Mode::Continuous);
    let stats = running.stats.connector("loyalty").expect("there").clone();
    shop.sell(Duration::from_millis(500), None).await;
    ledger.set_down(true);
    let (asked, begun) = (ledger.requests(), Instant::now());
    shop.sell(away, None).await;
    let asked = ledger.requests() - asked;
    assert!(stats.breaker() != Breaker::Closed && stats.state() == ConnectorState::Retrying);
    let behind = shop.total() - ledger.applied();
    ledger.set_down(false);
    let back = Instant::now();
    let total = shop.total();
    wait_for("the backlog", Duration::from_secs(300), || async { (ledger.applied() == total).then_some(()) }).await;
    println!(
        "away for {:?}: {asked} calls meanwhile, {behind} events behind, drained in {:?} after its return; {} dead letters, {} out of order or doubled",
        back - begun,
        back.elapsed(),
        stats.rejected.load(Ordering::Relaxed),
        ledger.wrong()
    );
    assert_eq!((stats.breaker(), ledger.wrong()), (Breaker::Closed, 0));
    running.stop().await.expect("stops");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 0);
    // Its delays level off at the longest one, and every lane had at most one call in the air before the breaker opened.
    let seldom = 40 + 4 * away.as_secs();
    assert!(asked <= seldom, "{asked} calls while the target was away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_among_three_is_left_out_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut shop = Shop::open(&journal).await;
    let (ledger, address) = Ledger::start(usize::try_from(ROWS).expect("small"), 0, Duration::ZERO, false).await;
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        endpoints.push(Proxy::start(&address.to_string()).await);
    }
    let urls: Vec<String> = endpoints.iter().map(|e| format!("http://{}/list", e.address())).collect();
    let running = start(&journal, vec![to_lists(&json!(urls))], Mode::Continuous);
    let stats = running.stats.connector("loyalty").expect("there").clone();
    let failed = || stats.calls_failed.load(Ordering::Relaxed);
    let bytes = || endpoints.iter().map(Proxy::bytes).collect::<Vec<u64>>();
    let time = Level::pick(Duration::from_millis(800), Duration::from_secs(3), Duration::from_secs(30));

    shop.sell(time, None).await;
    let healthy = bytes();
    assert!(healthy.iter().all(|b| *b > 0), "all three are used: {healthy:?}");
    endpoints[1].refuse(true);
    endpoints[1].cut();
    shop.sell(time, None).await;
    let dead = bytes();
    let total = shop.total();
    wait_for("every event", Duration::from_secs(60), || async { (ledger.applied() == total).then_some(()) }).await;
    let failed_meanwhile = failed();
    endpoints[1].refuse(false);
    let begun = Instant::now();
    while endpoints[1].bytes() == dead[1] {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come back");
        shop.sell(Duration::from_millis(200), None).await;
    }
    let returned = begun.elapsed();
    shop.sell(time, None).await;
    let total = shop.total();
    wait_for("every event", Duration::from_secs(60), || async { (ledger.applied() == total).then_some(()) }).await;
    let of = |later: &[u64], earlier: &[u64]| later.iter().zip(earlier).map(|(l, e)| l - e).collect::<Vec<u64>>();
    println!(
        "bytes by endpoint: healthy {healthy:?}, while the second is dead {:?} ({failed_meanwhile} calls failed), after it came back ({returned:?}) {:?}; {} \
         doubled or out of order",
        of(&dead, &healthy),
        of(&bytes(), &dead),
        ledger.wrong()
    );
    assert!(failed_meanwhile <= 12, "{failed_meanwhile} calls failed");
    assert!(dead[0] > healthy[0] && dead[2] > healthy[2]);
    assert_eq!((ledger.wrong(), stats.breaker_opened.load(Ordering::Relaxed)), (0, 0));
    running.stop().await.expect("stops");
}

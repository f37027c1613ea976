//! The scaling advice followed through a lunch peak: lag stays under its objective at little more than the fewest replica-minutes
//! that any schedule could have done with, and nothing is scaled against a quota.
//!
//! Once in simulation, in every run, and once with real processes on a real broker, in a long one. Both read the same arrivals
//! (`fixtures/lunch.csv`) and follow the same rule: up at once, down when nothing else was advised for a while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;
use tillstream::journal;
use tillstream::ops::capacity::Profile;
use tillstream::ops::figures::{ConnectorFigures, GateWaits, PartitionFigures, Service, Stage, StageName};
use tillstream::ops::scale;
use tillstream_connectors::registry::Registry;
use tillstream_connectors::sandbox::{Act, Faults, Sandbox, Settings};

use super::pos::{Capture, Change, insert};
use crate::harness::{Level, Process, RabbitMq, free_port, judge_log, root, scratch};

/// No event shall wait longer.
const LAG_WITHIN: f64 = 20.0;
/// Nothing is ended that was wanted so lately, seconds.
const CALM: usize = 15;
const PARTITIONS: u16 = 6;
const LANES: u64 = 2;
/// Calls at once of a process, events of a call, and how long it takes.
const CALLS: u64 = 2;
const ITEMS: u64 = 10;
const CALL: f64 = 0.05;

fn lunch() -> Profile {
    let path = root().join("tests/it/fixtures/lunch.csv");
    Profile::parse(&std::fs::read_to_string(path).expect("readable")).expect("sound")
}

/// Up at once; down to the most that was wanted within the last while.
#[derive(Default)]
struct Rule(VecDeque<u16>);

impl Rule {
    fn decide(&mut self, wanted: u16, now: u16) -> u16 {
        self.0.push_back(wanted);
        if self.0.len() > CALM {
            self.0.pop_front();
        }
        let most = self.0.iter().copied().max().unwrap_or(wanted);
        if wanted > now { wanted } else { now.min(most) }
    }
}

/// The fewest replica-seconds of any schedule, changed every five seconds and at no cost, that keeps the lag; by dynamic
/// programming over time and backlog. Backlogs are rounded down, so no schedule does with less.
fn best(profile: &Profile, per_replica: f64, useful: u16) -> f64 {
    const STEP: usize = 5;
    const GRAIN: f64 = 25.0;
    let seconds = profile.seconds() as usize;
    let mut came = vec![0.0];
    for second in 0..seconds {
        came.push(came[second] + profile.at(second as f64));
    }
    // What may still wait after so many seconds: what came within the objective.
    let may_wait = |second: usize| came[second] - came[second.saturating_sub(LAG_WITHIN as usize)];
    let mut costs: std::collections::BTreeMap<u64, f64> = [(0, 0.0)].into();
    for step in 0..seconds / STEP {
        let mut next = std::collections::BTreeMap::<u64, f64>::new();
        for (backlog, cost) in &costs {
            for replicas in 1..=useful {
                let mut waiting = *backlog as f64 * GRAIN;
                let mut kept = true;
                for second in step * STEP..(step + 1) * STEP {
                    waiting = (waiting + came[second + 1] - came[second] - per_replica * f64::from(replicas)).max(0.0);
                    kept &= waiting <= may_wait(second + 1);
                }
                if kept {
                    let entry = next.entry((waiting / GRAIN) as u64).or_insert(f64::MAX);
                    *entry = entry.min(cost + (STEP * usize::from(replicas)) as f64);
                }
            }
        }
        costs = next;
    }
    costs.into_values().min_by(f64::total_cmp).expect("some schedule keeps the lag")
}

/// A shop as it would be seen: `replicas` of them serve, so much comes and waits.
fn seen(replicas: u16, arrival: f64, backlog: f64, settled: f64, quota: Option<f64>) -> ConnectorFigures {
    let possible = ITEMS as f64 * CALLS as f64 / CALL * f64::from(replicas);
    let busy = (settled / possible).min(1.0);
    let service = Service {
        call_seconds_per_event: CALL / ITEMS as f64,
        map_seconds_per_event: 0.00002,
        items_per_call: ITEMS as f64,
        call_seconds: CALL,
        seconds_per_item: None,
    };
    ConnectorFigures {
        name: "shop".to_owned(),
        arrival_per_second: Some(arrival),
        settled_per_second: settled,
        service: Some(service),
        lanes: LANES,
        calls_max: CALLS,
        calls_allowed: CALLS,
        batch_items: ITEMS,
        rate_limit: quota,
        waits: GateWaits { rate: if quota.is_some_and(|quota| settled >= quota * 0.9) { 0.6 } else { 0.0 }, ..GateWaits::default() },
        partitions: vec![PartitionFigures { owned: true, ..PartitionFigures::default() }; usize::from(PARTITIONS)],
        owned: PARTITIONS,
        replicas,
        processors: 2,
        lag_events: backlog as u64,
        stages: vec![Stage {
            stage: StageName::Deliver,
            events_per_second: settled,
            utilisation: busy,
            seconds: Some(CALL),
            p95_seconds: Some(CALL),
            queue: 0,
            queue_unit: "events".to_owned(),
        }],
        ..ConnectorFigures::default()
    }
}

/// Follows the advice through the profile, a second at a time; a process serves three seconds after its start. Answers
/// replica-seconds, the longest lag, and the most replicas.
fn follow(profile: &Profile, quota: Option<f64>) -> (f64, f64, u16) {
    let per_replica = ITEMS as f64 * CALLS as f64 / CALL;
    let (mut rule, mut replicas, mut starts) = (Rule::default(), 1u16, VecDeque::<usize>::new());
    let (mut cost, mut lag_max, mut most) = (0.0, 0.0f64, 1);
    let (mut came, mut served) = (vec![0.0], 0.0);
    let mut settled = VecDeque::from([0.0]);
    for second in 0..profile.seconds() as usize {
        came.push(came[second] + profile.at(second as f64));
        starts.retain(|at| *at > second);
        let serving = f64::from(replicas) - starts.len() as f64;
        let possible = (per_replica * serving).min(quota.unwrap_or(f64::MAX));
        let now = (served + possible).min(came[second + 1]);
        settled.push_back(now - served);
        if settled.len() > 10 {
            settled.pop_front();
        }
        served = now;
        cost += f64::from(replicas);
        // The age of the oldest that waits.
        let oldest = came.partition_point(|c| *c <= served);
        if came[second + 1] - served >= 1.0 {
            lag_max = lag_max.max((second + 2 - oldest) as f64);
        }
        // As the process sees it: what came over sixteen seconds, asked for every five.
        let asked = (second + 1) / 5 * 5;
        let from = asked.saturating_sub(15);
        let arrival = if asked > from { (came[asked] - came[from]) / (asked - from) as f64 } else { 0.0 };
        let rate = settled.iter().sum::<f64>() / settled.len() as f64;
        let advice = scale::advise(&seen(replicas, arrival, came[second + 1] - served, rate, quota), Duration::from_secs_f64(LAG_WITHIN));
        let wanted = rule.decide(advice.recommended_replicas, replicas);
        for _ in replicas..wanted {
            starts.push_back(second + 4);
        }
        while starts.len() > usize::from(wanted) {
            starts.pop_back();
        }
        replicas = wanted;
        most = most.max(replicas);
    }
    (cost, lag_max, most)
}

#[test]
fn the_advice_keeps_the_lag_at_little_more_than_the_fewest_replica_minutes() {
    let profile = lunch();
    let (cost, lag, most) = follow(&profile, None);
    let fewest = best(&profile, ITEMS as f64 * CALLS as f64 / CALL, PARTITIONS);
    println!(
        "lunch, simulated: {:.1} replica-minutes, {:.1} by the best schedule, ratio {:.2}; longest lag {lag:.0} s of {LAG_WITHIN:.0} s; at most {most} replicas",
        cost / 60.0,
        fewest / 60.0,
        cost / fewest
    );
    assert!(lag <= LAG_WITHIN && cost <= fewest * 1.3 && most > 2, "{cost} {fewest} {lag} {most}");
    // One that never scales does not keep it.
    assert!(best(&profile, ITEMS as f64 * CALLS as f64 / CALL, PARTITIONS) > profile.seconds());
    let (cost, _, most) = follow(&profile, Some(350.0));
    println!("lunch under a quota of 350/s, simulated: at most {most} replicas, {:.1} replica-minutes", cost / 60.0);
    assert_eq!(most, 1, "a quota is not scaled against");
}

/// Real processes that deliver, and what they are to be.
struct Fleet {
    dir: std::path::PathBuf,
    running: VecDeque<(Process, u16)>,
    started: usize,
}

impl Fleet {
    fn start(&mut self) {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let name = format!("delivery{}", self.started);
        self.started += 1;
        let process = Process::start(&self.dir, &name, &["run", "--only", "delivery", "--listen", &listen], &[]);
        self.running.push_back((process, port));
    }

    async fn advice(&self) -> Option<Value> {
        for (_, port) in &self.running {
            let url = format!("http://127.0.0.1:{port}/api/scale?within={LAG_WITHIN}");
            let Ok(answer) = reqwest::get(url).await else { continue };
            let advice: Value = answer.json().await.ok()?;
            // A process that has just begun has measured nothing.
            if advice["figures"]["connectors"][0]["service"].is_object() {
                return Some(advice);
            }
        }
        None
    }
}

/// A lunch with real processes. Answers replica-seconds, the longest lag in seconds, the most replicas, and how many events a second
/// each of them settled while something waited and none had just been started or ended.
async fn real(name: &str, profile: &Profile, rate: Option<u64>) -> (f64, f64, u16, f64) {
    let broker = RabbitMq::shared().await;
    let faults = Faults { rates: [(Act::Slow(Duration::from_secs_f64(CALL)), 1.0)].into(), ..Faults::default() };
    let api = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings { faults, ..Settings::default() }).await.expect("listens");
    let dir = scratch(name);
    let rate = rate.map_or_else(String::new, |rate| format!(", rate: {rate}/s"));
    let files = [
        (
            "tillstream.yaml",
            format!(
                "version: 1\npipeline: {name}\nsource:\n  name: pos\n  url: postgres://nobody@127.0.0.1:1/pos\n  slot: unused\n  publication: unused\n  tables: \
                 [public.a]\njournal:\n  rabbitmq:\n    urls: [\"{}\"]\n    stream: {name}-{}\n    partitions: {PARTITIONS}\nconnectors: [shop.yaml]\n",
                broker.url,
                std::process::id()
            ),
        ),
        (
            "shop.yaml",
            format!(
                "version: 1\nconnector: shop\nfrom: {{tables: [public.a]}}\non_delete: tombstone\nto:\n  http: {{url: \"{}\", allow_private: true, mode: batch, columns: \
                 {{public.a: [id, qty]}}}}\ndelivery: {{lanes: {LANES}, in_flight: {CALLS}, batch: {{items: {ITEMS}}}{rate}}}\n",
                api.url("/http/events")
            ),
        ),
    ];
    for (file, text) in files {
        std::fs::write(dir.join(file), text).expect("target/ can be written");
    }
    let config = tillstream::config::load(&dir.join("tillstream.yaml"), &Registry::built_in())
        .unwrap_or_else(|report| panic!("{}", report.render(false)));
    let journal = journal::open(&config.journal, "lunch").expect("a journal");
    journal.set_up().await.expect("sets up");
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    let mut fleet = Fleet { dir: dir.clone(), running: VecDeque::new(), started: 0 };
    fleet.start();
    crate::harness::wait_for("the first process", Duration::from_secs(60), || async {
        reqwest::get(format!("http://127.0.0.1:{}/readyz", fleet.running[0].1)).await.ok().filter(|answer| answer.status().is_success())
    })
    .await;
    let (mut rule, mut cost, mut lag_max, mut most) = (Rule::default(), 0.0, 0.0f64, 1u16);
    let (mut came, mut written, mut owed) = (vec![(0.0, 0.0)], 0u64, 0.0);
    let (begun, mut last) = (Instant::now(), 0.0);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut decided = Instant::now();
    let (mut changed, mut applied_before, mut busy, mut done) = (0.0, 0.0, 0.0, 0.0);
    while last < profile.seconds() {
        tick.tick().await;
        let now = begun.elapsed().as_secs_f64();
        let passed = now - last;
        owed += profile.at(last) * passed;
        cost += fleet.running.len() as f64 * passed;
        last = now;
        let events = owed as u64;
        owed -= events as f64;
        let rows: Vec<u64> = (written..written + events).collect();
        written += events;
        for partition in 0..PARTITIONS {
            let changes: Vec<Change> =
                rows.iter().filter(|row| **row % u64::from(PARTITIONS) == u64::from(partition)).map(|row| insert("a", *row, 1)).collect();
            if !changes.is_empty() {
                capture.write(partition, &changes).await;
            }
        }
        came.push((now, written as f64));
        let applied = api.counts().applied as f64;
        if written as f64 - applied >= 300.0 && now - changed > 5.0 {
            busy += fleet.running.len() as f64 * passed;
            done += applied - applied_before;
        }
        applied_before = applied;
        if written as f64 - applied >= 1.0 {
            let oldest = came.partition_point(|(_, count)| *count <= applied);
            lag_max = lag_max.max(now - came[oldest.min(came.len() - 1)].0);
        }
        if decided.elapsed() >= Duration::from_secs(1) {
            decided = Instant::now();
            let replicas = u16::try_from(fleet.running.len()).expect("few");
            let Some(advice) = fleet.advice().await else { continue };
            let recommended = advice["recommended_replicas"].as_u64().and_then(|n| u16::try_from(n).ok()).expect("a number");
            let wanted = rule.decide(recommended, replicas);
            if wanted != replicas {
                changed = now;
                println!(
                    "{now:>5.0} s: {replicas} -> {wanted} replicas, {} behind: {}",
                    written as f64 - applied,
                    advice["because"].as_str().unwrap_or("-")
                );
            }
            for _ in replicas..wanted {
                fleet.start();
            }
            // One at a time, and the youngest: it has the least to hand over.
            if wanted < replicas
                && let Some((process, _)) = fleet.running.pop_back()
            {
                tokio::spawn(process.terminate(Duration::from_secs(20)));
            }
            most = most.max(u16::try_from(fleet.running.len()).expect("few"));
        }
    }
    if let Some((_, port)) = fleet.running.front() {
        let url = format!("http://127.0.0.1:{port}");
        let profile = root().join("tests/it/fixtures/lunch.csv");
        let profile = profile.to_str().expect("UTF-8");
        for arguments in
            [&["status", "--scale-advice", "--url", &url][..], &["capacity", "--profile", profile, "--lag-within", "20s", "--url", &url]]
        {
            let process = Process::start(&dir, "asked", arguments, &[]);
            let status = process.wait(Duration::from_secs(30)).await;
            println!("{} ({status}):\n{}", arguments.join(" "), std::fs::read_to_string(dir.join("asked.out")).unwrap_or_default());
            drop(std::fs::remove_file(dir.join("asked.out")));
        }
    }
    for (process, _) in fleet.running {
        process.terminate(Duration::from_secs(20)).await;
    }
    for entry in std::fs::read_dir(&dir).expect("readable").flatten() {
        if entry.path().extension().is_some_and(|e| e == "err") {
            judge_log(&entry.path(), &[]);
        }
    }
    (cost, lag_max, most, if busy > 0.0 { done / busy } else { 0.0 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_processes_that_follow_the_advice_keep_the_lag_too() {
    if Level::get() < Level::Long {
        return;
    }
    let profile = lunch();
    let (cost, lag, most, per_replica) = real("lunch", &profile, None).await;
    // A call takes longer than its target does, and longer still on a busy machine; the best schedule has the same processes.
    let fewest = best(&profile, per_replica, PARTITIONS);
    println!(
        "lunch, real: {:.1} replica-minutes, {:.1} by the best schedule, ratio {:.2}; longest lag {lag:.1} s of {LAG_WITHIN:.0} s; at most {most} replicas of \
         {per_replica:.0} events/s",
        cost / 60.0,
        fewest / 60.0,
        cost / fewest
    );
    assert!(lag <= LAG_WITHIN && cost <= fewest * 1.3 && most > 2, "{cost} {fewest} {lag} {most}");
    let mut short = profile.clone();
    short.steps.retain(|(at, _)| (50.0..=150.0).contains(at));
    let (cost, _, most, _) = real("lunch-quota", &short, Some(350)).await;
    println!("lunch under a quota of 350/s, real: at most {most} replicas, {:.1} replica-minutes", cost / 60.0);
    assert_eq!(most, 1, "a quota is not scaled against");
}

//! What limits is named while it limits: real deliveries against a pretend target that is slow, has a quota, or is reached by too
//! few lanes, by one key, or through a mapping that takes the processor.

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::json;
use tillstream::config::{Connector, Rate, Retention};
use tillstream::control::Follower;
use tillstream::delivery::Mode;
use tillstream::journal::Journal;
use tillstream::ops::bottleneck::{Bottleneck, Limit};
use tillstream::ops::figures::StageName;
use tillstream::ops::observer::{Observed, Observer};
use tillstream::ops::scale::{self, Scale};
use tillstream_connectors::mapping::Mapping;
use tillstream_connectors::registry::Registry;
use tillstream_connectors::sandbox::{Act, Faults, Sandbox, Settings};
use tokio::task::JoinHandle;

use super::http::mapped_target;
use super::pos::{Capture, Change, Running, connector, insert, journal, start, update};

/// How long a verdict may take: the window is ten seconds long.
const WITHIN: Duration = Duration::from_secs(40);

/// Somebody who looks at a delivery as the admin endpoint does.
pub(super) struct Looking {
    pub(super) observer: Arc<Observer>,
    tasks: [JoinHandle<()>; 2],
}

impl Looking {
    pub(super) async fn at(journal: &Arc<dyn Journal>, running: &Running) -> Looking {
        let (follower, following) = Follower::start(journal.clone()).await.expect("follows");
        let control = OnceLock::new();
        assert!(control.set(follower).is_ok());
        let observer = Observer::new(Observed {
            pipeline: "test".to_owned(),
            source: "pos".to_owned(),
            journal_kind: Mutex::default(),
            journal: journal.clone(),
            retention: Retention::default(),
            capture: None,
            coverage: None,
            doctor: None,
            backfill: None,
            delivery: Some(running.stats.clone()),
            connectors: Vec::new(),
            canary: None,
            peak: None,
            control,
        });
        let following = tokio::spawn(async move { drop(following.await) });
        let watching = tokio::spawn(observer.clone().watch());
        Looking { observer, tasks: [following, watching] }
    }

    pub(super) fn scale(&self, within: Duration) -> Scale {
        scale::scale(self.observer.figures(), within)
    }

    /// Waits until the same limit was named three times in a row, half a second apart, in these words: what stands longer than from one of
    /// the observer's looks, which are a second apart, to the next. Nothing tells of a look, so this asks.
    async fn until(&self, limit: Limit, says: &[&str]) -> Bottleneck {
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let verdict = self.observer.bottleneck();
            let said = verdict.limit == limit && says.iter().all(|part| verdict.sentence.contains(part));
            seen.push((verdict.limit, said));
            if seen.ends_with(&[(limit, true); 3]) {
                return verdict;
            }
            let figures = || self.observer.figures();
            assert!(begun.elapsed() < WITHIN, "{limit:?} was not named with {says:?} but {seen:?}: {} {:#?}", verdict.sentence, figures());
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A target that takes so long for a call, or does something else instead.
async fn target(act: Act) -> Sandbox {
    let faults = Faults { rates: [(act, 1.0)].into(), ..Faults::default() };
    Sandbox::start(([127, 0, 0, 1], 0).into(), Settings { faults, ..Settings::default() }).await.expect("listens")
}

/// A connector that sends lists of at most `items` through so many lanes of a partition.
pub(super) fn to(url: &str, lanes: u16, items: usize) -> Connector {
    let block = json!({"url": url, "allow_private": true, "mode": "batch", "timeout": "10s", "columns": {"public.a": ["id", "qty"]}});
    let mut connector = connector("stock", Registry::built_in().get("http").expect("built in").validate(&block, false).expect("valid"));
    connector.tables = vec![("public".into(), "a".into())];
    connector.delivery.lanes = NonZeroU16::new(lanes).expect("not zero");
    connector.delivery.batch_items_max = items;
    connector.retry.max = Duration::from_secs(1);
    connector
}

/// So many events in each partition, of which every `n`-th of the first one is of another row than the hot one.
async fn backlog(journal: &Arc<dyn Journal>, events: u64, hot: bool) {
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for partition in 0..journal.partitions() {
        let mut next = 0;
        while next < events {
            let changes: Vec<Change> = (next..(next + 250).min(events))
                .map(|n| {
                    if hot && partition == 0 && n % 20 != 0 { update("a", 4711, n) } else { insert("a", n * 16 + u64::from(partition), n) }
                })
                .collect();
            next += changes.len() as u64;
            capture.write(partition, &changes).await;
        }
    }
    capture.flush().await;
}

/// One scene: a journal full of events, a connector, and what has to be said of it.
async fn scene(name: &str, partitions: u16, events: u64, connector: Connector, limit: Limit, stage: StageName, says: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), partitions).await;
    backlog(&journal, events, limit == Limit::HotKey).await;
    let running = start(&journal, vec![connector], Mode::Continuous);
    let looking = Looking::at(&journal, &running).await;
    let verdict = looking.until(limit, says).await;
    println!("{name}: {}", verdict.sentence);
    assert_eq!((verdict.stage, verdict.entity.as_deref()), (Some(stage), Some("stock")));
    let advice = looking.scale(Duration::from_secs(60));
    println!("    {}", advice.because);
    assert!(advice.helps == verdict.helps.iter().any(|h| h == "more replicas") || limit == Limit::FewLanes, "{advice:#?}");
    running.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_limits_a_connector_is_named() {
    let ms = Duration::from_millis;
    let deliver = StageName::Deliver;
    // None of these takes much of the processor, so they share it.
    let slow = async {
        let api = target(Act::Slow(ms(420))).await;
        let connector = to(&api.url("/http/events"), 4, 10);
        let says =
            ["stock is limited by target p95", "at 8 in flight", "batch ", "more lanes", "would drain", "more replicas will not help"];
        scene("slow target", 2, 20_000, connector, Limit::TargetSlow, deliver, &says).await;
    };
    let budget = async {
        let api = target(Act::Serve).await;
        let mut connector = to(&api.url("/http/events"), 4, 10);
        connector.delivery.rate = Some(Rate { events: 60, per: ms(1000) });
        let says = ["its budget of 60 events/s", "a higher quota", "more replicas do not"];
        scene("quota of its own", 2, 5_000, connector, Limit::TargetQuota, deliver, &says).await;
    };
    let pauses = async {
        let api = target(Act::Serve).await;
        let rates = [(Act::Status429(ms(1000)), 0.5)].into();
        api.set_faults(Faults { rates, ..Faults::default() });
        let says = ["the target's quota", "asks for pauses", "more replicas do not"];
        scene("quota of the target", 2, 20_000, to(&api.url("/http/events"), 2, 10), Limit::TargetQuota, deliver, &says).await;
    };
    let hot = async {
        let api = target(Act::Slow(ms(40))).await;
        let says = ["one key", "partition 0", "more replicas do not"];
        scene("skewed key", 4, 3_000, to(&api.url("/http/events"), 4, 4), Limit::HotKey, deliver, &says).await;
    };
    let lanes = async {
        let api = target(Act::Slow(ms(40))).await;
        let says = ["its 2 lanes", "more lanes", "more replicas will not help"];
        scene("too few lanes", 2, 8_000, to(&api.url("/http/events"), 1, 4), Limit::FewLanes, deliver, &says).await;
    };
    let calls = async {
        let api = target(Act::Slow(ms(40))).await;
        let mut connector = to(&api.url("/http/events"), 2, 4);
        connector.delivery.in_flight = Some(2);
        let says = ["`in_flight: 2`", "more replicas will not help above 4"];
        scene("too few calls", 4, 8_000, connector, Limit::FewCalls, deliver, &says).await;
    };
    let away = async {
        let api = target(Act::Status503).await;
        let connector = to(&api.url("/http/events"), 4, 10);
        scene("target away", 2, 1_000, connector, Limit::TargetAway, deliver, &["bring the target back"]).await;
    };
    tokio::join!(slow, budget, pauses, hot, lanes, calls, away);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapping_that_takes_the_processor_is_named_and_an_idle_connector_is_not() {
    let api = target(Act::Serve).await;
    // Enough to do that it takes longer than the window that figures look back over, on a fast machine too.
    let mut map = json!({"id": "{{ idempotency_key }}"});
    for n in 0..8 {
        map[format!("work_{n}")] = json!("{{ range(4000) | list | length }}");
    }
    let mapping = Mapping::compile(None, Some(&map)).expect("sound");
    let mut connector = to(&api.url("/http/events"), 4, 50);
    connector.target = mapped_target(&api.url("/http/events"), json!({"mode": "batch"}));
    connector.mapping = Some(Arc::new(mapping));
    let says = ["limited by the mapping", "a simpler mapping", "more replicas will not help"];
    scene("mapping", 1, 60_000, connector, Limit::MapProcessor, StageName::Map, &says).await;

    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 2).await;
    backlog(&journal, 20, false).await;
    let running = start(&journal, vec![to(&api.url("/http/events"), 4, 10)], Mode::Continuous);
    let looking = Looking::at(&journal, &running).await;
    let verdict = looking.until(Limit::Idle, &[]).await;
    println!("all idle: {}", verdict.sentence);
    assert!(verdict.helps.is_empty() && verdict.stage.is_none());
    running.stop().await.expect("stops");
}

//! Each alert that wakes somebody, in a fault made for it, on a real Prometheus: it fires, and no other of them.
//!
//! Waits and thresholds are shortened here; the real ones are tried on made-up series by promtool (`alerts_test.yaml`).

use std::time::Duration;

use super::prometheus::{PATIENCE, Prometheus};
use crate::harness::{Journal, Level, Pipeline, Postgres, Process, Proxy, RabbitMq, Running, wait_for};

/// A pipeline between two proxies.
pub(super) struct Shop {
    pub(super) pipeline: Pipeline,
    pub(super) broker: Proxy,
    source: Proxy,
    target: Process,
    pub(super) running: Running,
    traffic: Option<Process>,
}

impl Shop {
    pub(super) async fn open(name: &str, server: &Postgres, rate: u32, edit: impl FnOnce(String) -> String) -> Shop {
        let rabbit = RabbitMq::shared().await;
        let host = rabbit.url.rsplit('@').next().expect("an address").trim_end_matches('/').to_owned();
        let broker = Proxy::start(&host).await;
        let source = Proxy::start(server.address()).await;
        let mut pipeline = Pipeline::new(name, server, Journal::Rabbit(rabbit), edit).await;
        pipeline.set_up().await;
        pipeline.set("DEMO_RABBITMQ_URL", rabbit.url.replace(&host, &broker.address()));
        let url = pipeline.pos.url_as("tillstream").replace(server.address(), &source.address());
        pipeline.set("DEMO_SOURCE_URL", url);
        let target = pipeline.target(true).await;
        let running = pipeline.run("run", &[]);
        running.ready().await;
        let traffic = (rate > 0).then(|| pipeline.traffic(rate, 300, &[]));
        Shop { pipeline, broker, source, target, running, traffic }
    }

    pub(super) async fn close(self, server: &Postgres) {
        if let Some(traffic) = self.traffic {
            traffic.end().await;
        }
        self.running.process.end().await;
        self.target.end().await;
        self.pipeline.drop(server).await;
    }
}

async fn quiet(prometheus: &Prometheus) {
    wait_for("a first scrape", PATIENCE, || async {
        prometheus.query("tillstream_capture_up == 1").await.filter(|found| !found.is_empty()).map(drop)
    })
    .await;
    wait_for("silence", PATIENCE, || async { prometheus.firing("page").await.is_empty().then_some(()) }).await;
}

async fn gone(prometheus: &Prometheus) {
    wait_for("silence again", PATIENCE, || async { prometheus.firing("page").await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_alert_of_the_night_fires_in_its_fault_and_no_other() {
    if Level::get() < Level::Long {
        return;
    }
    let server = Postgres::shared().await;
    let shop = Shop::open("alerts", server, 20, |text| text + "canary: {every: 1s}\n").await;
    let admin = shop.running.admin.clone();
    let prometheus = Prometheus::start("faults", &[&admin], Some(&[])).await;
    quiet(&prometheus).await;

    shop.broker.refuse(true);
    shop.broker.cut();
    prometheus.only("TillstreamJournalAway").await;
    println!("TillstreamJournalAway: fires while the broker is away, alone");
    shop.broker.refuse(false);
    gone(&prometheus).await;

    shop.source.refuse(true);
    shop.source.cut();
    prometheus.only("TillstreamCaptureStopped").await;
    println!("TillstreamCaptureStopped: fires while the database is away, alone");
    shop.source.refuse(false);
    gone(&prometheus).await;

    // A second process takes the slot whenever the first one loses it.
    let second = shop.pipeline.run("second", &["--only", "capture"]);
    let client = shop.pipeline.pos.connect().await;
    let take =
        format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}' AND active", shop.pipeline.slot);
    let begun = std::time::Instant::now();
    while !prometheus.firing("page").await.contains(&"TillstreamTwoWriters".to_owned()) {
        assert!(begun.elapsed() < PATIENCE * 2, "TillstreamTwoWriters does not fire");
        client.batch_execute(&take).await.expect("terminates");
        // The longest that either waits before it asks for the slot again: sooner there would be nobody to take it from.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(prometheus.firing("page").await, ["TillstreamTwoWriters"]);
    println!("TillstreamTwoWriters: fires while two processes take the slot from each other, alone");
    second.process.end().await;
    shop.running.until("the slot is ours again", |status| status["source"]["doing"] == "streaming").await;
    prometheus.end().await;

    let changes = [("tillstream_canary_age_seconds) > 300", "tillstream_canary_age_seconds) > 8")];
    let prometheus = Prometheus::start("canary", &[&admin], Some(&changes)).await;
    quiet(&prometheus).await;
    // Nobody new is let in; the stream goes on.
    shop.source.refuse(true);
    prometheus.only("TillstreamCanaryLate").await;
    println!("TillstreamCanaryLate: fires while no canary can be sent though capture streams, alone");
    shop.source.refuse(false);
    gone(&prometheus).await;
    prometheus.end().await;

    let changes = [("tillstream_journal_lag_seconds) > 300", "tillstream_journal_lag_seconds) > 6")];
    let prometheus = Prometheus::start("lag", &[&admin], Some(&changes)).await;
    quiet(&prometheus).await;
    let Shop { target, pipeline, broker, source, running, traffic } = shop;
    target.end().await;
    prometheus.only("TillstreamLagHigh").await;
    println!("TillstreamLagHigh: fires while a target is away, alone");
    prometheus.end().await;
    // The same, as retention sees it: a day, less the lag.
    let changes = [("tillstream_journal_seconds_to_retention_loss) < 14400", "tillstream_journal_seconds_to_retention_loss) < 86395")];
    let prometheus = Prometheus::start("retention", &[&admin], Some(&changes)).await;
    prometheus.only("TillstreamRetentionLossSoon").await;
    println!("TillstreamRetentionLossSoon: fires when what is behind nears the journal's retention, alone");
    let target = pipeline.target(true).await;
    gone(&prometheus).await;
    running.process.terminate(PATIENCE).await;
    prometheus.only("TillstreamDown").await;
    println!("TillstreamDown: fires once the process has ended, alone");
    prometheus.end().await;
    let running = pipeline.run("again", &[]);
    Shop { pipeline, broker, source, target, running, traffic }.close(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_alerts_on_wal_fire_in_their_faults_and_no_other() {
    if Level::get() < Level::Long {
        return;
    }
    let server = Postgres::private("alerts-wal", "").await;
    // Whoever holds back for ten minutes acknowledges nothing meanwhile.
    let shop = Shop::open("alerts-ack", &server, 20, |text| {
        text.replace("hold_back: {time: 5s, bytes: 16MiB}", "hold_back: {time: 10m, bytes: 1GiB}")
    })
    .await;
    let changes = [("tillstream_capture_ack_age_seconds > 180", "tillstream_capture_ack_age_seconds > 20")];
    let prometheus = Prometheus::start("ack", &[&shop.running.admin], Some(&changes)).await;
    prometheus.only("TillstreamAckStalled").await;
    println!("TillstreamAckStalled: fires while nothing is acknowledged, alone");
    prometheus.end().await;
    shop.close(&server).await;

    let shop = Shop::open("alerts-ceiling", &server, 20, |text| {
        text.replace("hold_back: {time: 5s, bytes: 16MiB}", "hold_back: {time: 5s, bytes: 16MiB}\n  wal_budget: 128MiB")
    })
    .await;
    let prometheus = Prometheus::start("ceiling", &[&shop.running.admin], Some(&[])).await;
    quiet(&prometheus).await;
    // A transaction that stays open holds the WAL since its beginning.
    let holder = shop.pipeline.pos.connect().await;
    holder.batch_execute("CREATE TABLE junk (t text); BEGIN; INSERT INTO junk VALUES ('x')").await.expect("begins");
    let writer = shop.pipeline.pos.connect().await;
    for _ in 0..12 {
        writer
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS noise (t text); INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 10000)",
            )
            .await
            .expect("writes");
    }
    prometheus.only("TillstreamWalCeilingSoon").await;
    println!("TillstreamWalCeilingSoon: fires while somebody's open transaction holds the WAL, alone");
    let verdict = shop.running.until("the verdict", |status| status["bottleneck"]["limit"] == "foreign_wal").await;
    println!("    {}", verdict["bottleneck"]["sentence"].as_str().unwrap_or("-"));
    holder.batch_execute("COMMIT").await.expect("commits");
    prometheus.end().await;
    shop.close(&server).await;
}

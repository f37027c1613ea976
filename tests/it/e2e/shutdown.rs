//! SIGTERM under load: the process drains, ends in time, and loses nothing.

use std::time::Duration;

use crate::e2e::assert_sound;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_ends_within_10_seconds_without_loss() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("sigterm", server, Journal::Rabbit(RabbitMq::shared().await), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(false).await;
    let traffic = pipeline.traffic(1500, Level::pick(12, 20, 60), &["--even"]);
    for _ in 0..Level::pick(2, 3, 8) {
        let running = pipeline.run("run", &[]);
        running.until("events to flow", |status| status["source"]["events_per_second"].as_f64() > Some(50.0)).await;
        running.process.terminate(Duration::from_secs(10)).await;
    }
    traffic.finish(PATIENCE).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

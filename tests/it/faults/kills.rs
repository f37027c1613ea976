//! kill -9 of capture, delivery, RabbitMQ and PostgreSQL in turn, during traffic; then both ends are compared.

use std::time::Duration;

use rand::RngExt;
use serde_json::Value;

use crate::e2e::assert_sound;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq, Running};

/// Where kills landed, by what the status said at that moment.
#[derive(Debug, Default)]
struct Landed {
    /// Of PostgreSQL: while transactions were open.
    transaction: u32,
    /// Of capture or the broker: while entries were on their way to the broker.
    publish: u32,
    /// Of delivery: while events were on their way to a target.
    delivery: u32,
}

/// Traffic at about 1,000 row changes a second while each of four processes is killed `rounds` times, in an order that differs from round to round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_killed_in_turn_and_nothing_is_lost_or_doubled() {
    let rounds = Level::pick(1, 2, 6);
    let server = Postgres::private("kills-postgres", "").await;
    let broker = RabbitMq::private("kills-rabbitmq").await;
    let pipeline = Pipeline::new("kills", &server, Journal::Rabbit(&broker), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(false).await;
    let start_capture = || pipeline.run("capture", &["--only", "capture"]);
    let start_delivery = || pipeline.run("delivery", &["--only", "delivery"]);
    let mut capture = start_capture();
    let mut delivery = start_delivery();
    // Long enough for every round, ended by hand after the last one.
    let traffic = pipeline.traffic(1000, 3600, &["--even"]);
    capture.until("events to flow", flows).await;
    let mut landed = Landed::default();
    let mut kills = 0u32;
    for _ in 0..rounds {
        let mut victims = ["capture", "delivery", "rabbitmq", "postgres"];
        for i in (1..victims.len()).rev() {
            victims.swap(i, rand::rng().random_range(0..=i));
        }
        for victim in victims {
            // Somewhere in the next second, not always right after the last one recovered.
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..1500))).await;
            match victim {
                "capture" => {
                    landed.publish += u32::from(aim(&capture, publishes).await);
                    capture.process.kill9().await;
                    capture = start_capture();
                }
                "delivery" => {
                    landed.delivery += u32::from(aim(&delivery, delivers).await);
                    delivery.process.kill9().await;
                    delivery = start_delivery();
                }
                "rabbitmq" => {
                    landed.publish += u32::from(aim(&capture, publishes).await);
                    broker.control("kill9").await;
                    broker.control("start").await;
                }
                _ => {
                    let open = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
                    let open: i64 = server.connect("postgres").await.query_one(open, &[]).await.expect("reads").get(0);
                    landed.transaction += u32::from(open > 0);
                    server.control("kill9").await;
                    server.control("start").await;
                }
            }
            kills += 1;
            let seen = events(&capture).await;
            capture.until("events to flow again", |status| status["source"]["events"].as_u64() > seen).await;
        }
    }
    traffic.terminate(PATIENCE).await;
    capture.process.terminate(Duration::from_secs(10)).await;
    delivery.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    let line = pipeline.verify().await;
    println!(
        "{kills} kills: {} inside open transactions of the point of sale, {} inside a publish, {} inside a delivery; {} capture runs began inside a \
         transaction of the journal; {} raw repeats and {} fenced entries filtered; the target absorbed {}",
        landed.transaction,
        landed.publish,
        landed.delivery,
        line["runs_began_inside_a_transaction"],
        line["raw_repeats"],
        line["raw_fenced"],
        line["repeats_absorbed"],
    );
    assert_sound(&line);
    target.terminate(PATIENCE).await;
    // A server that is away is no error of ours: it is waited for.
    pipeline.judge(&[]);
}

async fn events(capture: &Running) -> Option<u64> {
    Some(capture.status().await?["source"]["events"].as_u64().unwrap_or(0))
}

fn flows(status: &Value) -> bool {
    status["source"]["events_per_second"].as_f64() > Some(50.0)
}

/// Looks for a moment that is worth a kill, for a second at most; says whether it found one.
async fn aim(process: &Running, worth: impl Fn(&Value) -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    while tokio::time::Instant::now() < deadline {
        if process.status().await.is_some_and(|status| worth(&status)) {
            return true;
        }
    }
    false
}

fn publishes(status: &Value) -> bool {
    status["journal"]["unconfirmed_bytes"].as_u64() > Some(0)
}

fn delivers(status: &Value) -> bool {
    status["connectors"].as_array().into_iter().flatten().any(|connector| connector["in_flight"].as_u64() > Some(0))
}

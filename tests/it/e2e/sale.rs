//! Sales reach the inventory and the engagement API, through either journal, rows older than the slot included.

use crate::e2e::assert_sound;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq};

async fn sales_reach_both_targets(name: &str, journal: Journal<'_>) {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new(name, server, journal, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(false).await;
    let running = pipeline.run("run", &[]);
    let traffic = pipeline.traffic(800, Level::pick(6, 12, 30), &[]);
    traffic.finish(PATIENCE).await;
    running.process.terminate(std::time::Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sales_reach_both_targets_through_rabbitmq() {
    sales_reach_both_targets("sale-rabbitmq", Journal::Rabbit(RabbitMq::shared().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sales_reach_both_targets_through_the_local_journal() {
    sales_reach_both_targets("sale-local", Journal::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_partitions_keep_the_order_of_every_key() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::shared().await;
    let edit = |file: String| file.replace("    retention: {age: 1d}", "    retention: {age: 1d}\n    partitions: 3\n    compression: lz4");
    let pipeline = Pipeline::new("partitions", server, Journal::Rabbit(broker), edit).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let traffic = pipeline.traffic(800, Level::pick(4, 8, 30), &[]);
    traffic.finish(PATIENCE).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

/// What a cron job does: the second of two runs in a row finds nothing to do and ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_drain_delivers_nothing() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("caught-up", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    pipeline.traffic(600, 3, &[]).finish(PATIENCE).await;
    pipeline.drain().await;
    let applied = |pipeline: &Pipeline| std::fs::read_to_string(pipeline.dir.join("applied.log")).expect("the target's log");
    let before = applied(&pipeline);
    let inventory = pipeline.inventory.connect().await;
    // A row that is written again gets a new xmin, whatever its content.
    let newest = "SELECT max(xmin::text::bigint) FROM stock_txn";
    let newest_before: i64 = inventory.query_one(newest, &[]).await.expect("reads").get(0);
    pipeline.drain().await;
    assert_eq!(applied(&pipeline), before, "the second run sent nothing");
    assert_eq!(inventory.query_one(newest, &[]).await.expect("reads").get::<_, i64>(0), newest_before, "the second run wrote nothing");
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

//! What is missing, refused or wrong at the start: a coded error with its fix, or a patient retry that the status shows.

use std::time::Duration;

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, RabbitMq};

/// Starts `run`, expects it to end by itself with a definite error, and returns what it said.
async fn refusal(pipeline: &Pipeline, name: &str) -> String {
    let running = pipeline.run(name, &[]);
    let path = pipeline.dir.join(format!("{name}.err"));
    let status = running.process.wait(PATIENCE).await;
    assert!(!status.success(), "{name} has to fail");
    std::fs::read_to_string(path).expect("its messages")
}

#[track_caller]
fn assert_says(text: &str, code: &str) {
    assert!(text.contains(&format!("error[{code}]")), "expected {code}: {text}");
    assert!(text.contains("fix"), "the error says how to mend it: {text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_at_the_start_is_waited_for() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::private("broker-down").await;
    let pipeline = Pipeline::new("broker-down", server, Journal::Rabbit(&broker), |file| file).await;
    pipeline.set_up().await;
    broker.control("stop").await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    pipeline.traffic(300, 2, &[]).finish(PATIENCE).await;
    running.until("the status to say that the journal is away", |status| status["ready"] == false).await;
    broker.control("start").await;
    running.ready().await;
    running.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_slot_is_an_error_with_its_fix() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("no-slot", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    pipeline.pos.connect().await.execute("SELECT pg_drop_replication_slot($1)", &[&pipeline.slot]).await.expect("drops");
    assert_says(&refusal(&pipeline, "run").await, "capture.slot_missing");
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_in_use_is_waited_for() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("slot-active", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let first = pipeline.run("first", &["--only", "capture"]);
    first.ready().await;
    // The second one finds the slot taken, waits, and takes over when the first is gone.
    let second = pipeline.run("second", &["--only", "capture"]);
    second
        .until("the second to wait", |status| status["ready"] == false && status["source"]["last_error"]["code"] == "capture.slot_active")
        .await;
    first.process.kill9().await;
    second.ready().await;
    pipeline.traffic(300, 2, &[]).finish(PATIENCE).await;
    second.process.terminate(Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_an_error_without_the_password() {
    let server = Postgres::private("password", "password_encryption = 'scram-sha-256'").await;
    let mut pipeline = Pipeline::new("password", &server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let admin = server.connect("postgres").await;
    admin.batch_execute("ALTER ROLE tillstream PASSWORD 'right'; ALTER ROLE tillstream_backfill PASSWORD 'right'").await.expect("alters");
    server.require_passwords(&["tillstream", "tillstream_backfill"]).await;
    pipeline.set("DEMO_SOURCE_URL", pipeline.pos.url_as("tillstream:wr0ng-secret"));
    let said = refusal(&pipeline, "run").await;
    assert_says(&said, "capture.auth_refused");
    assert!(!said.contains("wr0ng-secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_logical_wal_is_an_error_with_its_fix() {
    let server = Postgres::private("replica", "wal_level = replica").await;
    let pipeline = Pipeline::new("replica", &server, Journal::Local, |file| file).await;
    let setup = pipeline.start("setup", &["setup", "--admin-url", &pipeline.pos.url, "--apply"]);
    let path = pipeline.dir.join("setup.err");
    assert!(!setup.wait(PATIENCE).await.success());
    let said = std::fs::read_to_string(path).expect("its messages");
    assert_says(&said, "capture.wal_level");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_without_a_table_is_an_error_with_its_fix() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("publication", server, Journal::Local, |file| {
        file.replace("publication: tillstream_demo", "publication: short_publication")
    })
    .await;
    pipeline.set_up().await;
    pipeline.pos.connect().await.batch_execute("ALTER PUBLICATION short_publication DROP TABLE refund").await.expect("alters");
    let said = refusal(&pipeline, "run").await;
    assert_says(&said, "capture.publication_lacks_table");
    assert!(said.contains("refund"), "{said}");
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_stops_the_pipeline() {
    let server = Postgres::shared().await;
    let broker = RabbitMq::shared().await;
    let pipeline = Pipeline::new("stream-deleted", server, Journal::Rabbit(broker), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &["--only", "capture"]);
    pipeline.traffic(300, 2, &[]).finish(PATIENCE).await;
    running.ready().await;
    broker.ctl(&["delete_queue", &pipeline.stream]).await;
    pipeline.traffic(300, 2, &["--seed", "2"]).finish(PATIENCE).await;
    let path = pipeline.dir.join("run.err");
    assert!(!running.process.wait(PATIENCE).await.success(), "a journal that is gone is no reason to go on");
    let said = std::fs::read_to_string(path).expect("its messages");
    assert!(said.contains("error[journal."), "{said}");
    target.terminate(PATIENCE).await;
    pipeline.drop(server).await;
}

//! What a target lost comes back by a replay: rows of the inventory, everything that the engagement API knew, one payment alone.

use serde_json::Value;

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, RabbitMq};

async fn what_targets_lost_comes_back(name: &str, journal: Journal<'_>) {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new(name, server, journal, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    pipeline.traffic(600, 3, &[]).finish(PATIENCE).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    let json = async |name: &str, more: &[&str]| -> Value {
        let printed = pipeline.command(name, &[&["replay"], more, &["--format", "json"]].concat()).await;
        serde_json::from_str(&printed).expect("JSON")
    };

    let inventory = pipeline.inventory.connect().await;
    inventory
        .batch_execute("DELETE FROM stock_txn WHERE id % 3 = 0; DELETE FROM order_item WHERE state = 'fired'")
        .await
        .expect("damages it");
    let newest = async || -> i64 { inventory.query_one("SELECT max(xmin::text::bigint) FROM stock_txn", &[]).await.expect("reads").get(0) };
    let before = newest().await;
    let dry = json("dry", &["inventory", "--from", "first", "--dry-run"]).await;
    assert!(dry["events"].as_u64() > Some(100) && dry["requested"] == false && dry["repeats"] == "compared", "{dry}");
    pipeline.drain().await;
    assert_eq!(newest().await, before, "looking changes nothing");

    // Of the engagement API nothing is left; asked for while nobody delivers.
    target.terminate(PATIENCE).await;
    std::fs::remove_file(pipeline.dir.join("applied.log")).expect("there");
    let target = pipeline.target(true).await;
    let asked = json("ask", &["engagement", "--from", "first", "--reason", "the API lost everything"]).await;
    assert!(asked["requested"] == true && asked["repeats"] == "remembered", "{asked}");
    let running = pipeline.run("run", &[]);
    running.ready().await;
    // Asked for while somebody does, who is killed meanwhile.
    let waiting = pipeline.start("wait", &["replay", "inventory", "--from", "1h", "--reason", "rows were lost", "--wait"]);
    let absorbs = |status: &Value| status["connectors"][0]["absorbed"].as_u64() > Some(0);
    running.until("the replay", absorbs).await;
    running.process.kill9().await;
    let running = pipeline.run("run", &[]);
    waiting.finish(PATIENCE).await;
    running.process.terminate(std::time::Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);

    // One payment alone, by its LSN, at an API that knows it.
    let count = |word: &str| {
        let log = std::fs::read_to_string(pipeline.dir.join("applied.log")).expect("the target's log");
        log.lines().filter(|line| line.starts_with(word)).count() as u64
    };
    let pos = pipeline.pos.connect().await;
    let key: String = pos.query_one("SELECT id::text FROM payment ORDER BY id LIMIT 1", &[]).await.expect("reads").get(0);
    let told = pipeline.command("why", &["why", "public.payment", &key, "--format", "json"]).await;
    let first: Value = serde_json::from_str(told.lines().next().expect("an event")).expect("JSON");
    let position = first["position"].as_str().expect("a position").to_owned();
    let lsn = position.split('-').nth(1).expect("an LSN");
    let one = ["engagement", "--from", lsn, "--key", &key, "--table", "public.payment"];
    let dry = json("dry", &[&one[..], &["--dry-run"]].concat()).await;
    let events = dry["events"].as_u64().expect("a number");
    assert!(events > 0 && events <= told.lines().count() as u64 && dry["partitions"][0]["from"] == first["offset"], "{dry} {first}");
    let (applied, repeats) = (count("applied"), count("repeat"));
    json("one", &[&one[..], &["--reason", "one guest asks"]].concat()).await;
    pipeline.drain().await;
    assert_eq!((count("applied"), count("repeat")), (applied, repeats + events), "its events and no others");
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_targets_lost_comes_back_from_rabbitmq() {
    what_targets_lost_comes_back("replay-rabbitmq", Journal::Rabbit(RabbitMq::shared().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_targets_lost_comes_back_from_the_local_journal() {
    what_targets_lost_comes_back("replay-local", Journal::Local).await;
}

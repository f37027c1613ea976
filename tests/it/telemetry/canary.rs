//! A message that goes the whole way of a change, also while none is made: timed at every stage, and missed where it does not come through.

use serde_json::Value;

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, Running};

const EVERY: &str = "canary: {every: 1s}\n";

async fn open(name: &str, server: &Postgres) -> Pipeline {
    let edit = |text: String| text.replace("{dir: journal}", "{dir: journal, partitions: 3}") + EVERY;
    let pipeline = Pipeline::new(name, server, Journal::Local, edit).await;
    pipeline.set_up().await;
    pipeline
}

fn of<'s>(status: &'s Value, connector: &str) -> &'s Value {
    let connectors = status["canary"]["connectors"].as_array().into_iter().flatten();
    connectors.into_iter().find(|c| c["name"] == connector).unwrap_or(&Value::Null)
}

fn is_fresh(place: &Value) -> bool {
    place["age_seconds"].as_f64().is_some_and(|age| age < 3.0) && place["late"] == false
}

fn age(place: &Value) -> f64 {
    place["age_seconds"].as_f64().unwrap_or(0.0)
}

/// Everything is through, a while after what was changed.
async fn fresh(running: &Running, what: &str) -> Value {
    let all = |status: &Value| {
        status["initial_load"]["finished"] == true
            && is_fresh(&status["canary"]["capture"])
            && ["inventory", "engagement"].iter().all(|name| is_fresh(of(status, name)))
    };
    running.until(what, all).await
}

async fn metrics(running: &Running) -> String {
    let answer = reqwest::get(format!("{}/metrics", running.admin)).await.expect("metrics");
    answer.text().await.expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_is_timed_to_every_connector_while_nothing_changes_and_missed_where_something_waits() {
    let server = Postgres::shared().await;
    let pipeline = open("canary", server).await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    let before = fresh(&running, "the first canaries").await;

    // Nothing changes, and yet newer ones come through.
    let events = |status: &Value| (status["source"]["events"].clone(), status["source"]["reads"].clone());
    let marks = |status: &Value| status["journal"]["partitions"][2]["last_offset"].as_u64().unwrap_or(0);
    let later = running.until("some more", |status| marks(status) > marks(&before) + 3).await;
    assert_eq!(events(&before), events(&later), "idle");
    let status = fresh(&running, "those too").await;
    let capture = &status["canary"]["capture"];
    let took = |value: &Value| value.as_f64().filter(|s| *s > 0.0 && *s < 30.0).unwrap_or_else(|| panic!("{:#}", status["canary"]));
    assert!(took(&capture["stream_seconds"]) <= took(&capture["journal_seconds"]));
    for name in ["inventory", "engagement"] {
        let delivered = of(&status, name);
        assert!(took(&delivered["read_seconds"]) <= took(&delivered["settled_seconds"]), "{delivered}");
        assert_eq!(delivered["wall_clock"], false);
    }
    let exposed = metrics(&running).await;
    for line in [
        "tillstream_canary_seconds{entity=\"capture\",stage=\"stream\"",
        "tillstream_canary_seconds{entity=\"capture\",stage=\"journal\"",
        "tillstream_canary_seconds{entity=\"inventory\",stage=\"read\"",
        "tillstream_canary_seconds{entity=\"engagement\",stage=\"settled\"",
        "tillstream_canary_age_seconds{entity=\"engagement\"",
    ] {
        let has = |text: &str| line.split(['{', ',']).all(|part| text.contains(part));
        assert!(exposed.lines().any(has), "{line} is missing:\n{exposed}");
    }
    for command in [&["status"][..], &["top", "--once"]] {
        let said = pipeline.command("said", &[command, &["--url", &running.admin]].concat()).await;
        let line = said.lines().find(|line| line.starts_with("canary: ")).unwrap_or_else(|| panic!("{said}"));
        println!("{line}");
        assert!(line.contains(" to the stream, ") && line.contains(" settled by inventory") && line.contains(" settled by engagement"));
    }
    let page = reqwest::get(format!("{}/", running.admin)).await.expect("the console").text().await.expect("text");
    assert!(page.contains("Canary</b>") && page.contains("settled by engagement"), "the map shows it");

    // A target that is away: its canaries wait behind what is not settled, the others' do not.
    target.end().await;
    let client = pipeline.pos.connect().await;
    client.batch_execute("UPDATE customer SET updated_at = now()").await.expect("changes");
    let status =
        running.until("its age grows", |status| of(status, "engagement")["late"] == true && age(of(status, "engagement")) > 4.0).await;
    assert!(is_fresh(of(&status, "inventory")) && is_fresh(&status["canary"]["capture"]), "{:#}", status["canary"]);
    let said = pipeline.command("said", &["top", "--once", "--url", &running.admin]).await;
    assert!(said.contains("none settled by engagement for "), "{said}");
    let target = pipeline.target(true).await;
    fresh(&running, "it goes on").await;

    // A later process begins behind entries that are nothing but canaries; another one that delivers has the wall clock alone.
    running.process.terminate(PATIENCE).await;
    let capture = pipeline.run("capture", &["--only", "capture"]);
    let delivery = pipeline.run("delivery", &["--only", "delivery"]);
    let status = delivery
        .until("canaries of another process", |status| {
            ["inventory", "engagement"].iter().all(|name| is_fresh(of(status, name)) && of(status, name)["wall_clock"] == true)
        })
        .await;
    assert!(status["canary"]["capture"].is_null() && is_fresh(&capture.status().await.expect("answers")["canary"]["capture"]));
    capture.process.terminate(PATIENCE).await;
    delivery.process.terminate(PATIENCE).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_write_messages_is_a_warning() {
    let server = Postgres::shared().await;
    let pipeline = open("canary-refused", server).await;
    let client = pipeline.pos.connect().await;
    let each = |what: &str| {
        format!(
            "DO $$ DECLARE f text; BEGIN FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE proname = 'pg_logical_emit_message' \
             LOOP EXECUTE 'GRANT EXECUTE ON FUNCTION ' || f || ' TO tillstream_backfill'; EXECUTE '{what}'; END LOOP; END $$"
        )
    };
    client.batch_execute(&each("REVOKE EXECUTE ON FUNCTION ' || f || ' FROM PUBLIC")).await.expect("revokes");
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    let refused = |status: &Value| status["canary"]["refused"].as_str().is_some_and(|why| why.starts_with("capture.canary_refused: "));
    let status = running.until("the refusal", |status| refused(status) && status["ready"] == true).await;
    println!("{}", status["canary"]["refused"]);
    assert!(!metrics(&running).await.contains("tillstream_canary_"), "what is not sent has no age");
    client.batch_execute(&each("GRANT EXECUTE ON FUNCTION ' || f || ' TO PUBLIC")).await.expect("grants");
    let status = fresh(&running, "it is sent without a restart").await;
    assert!(status["canary"]["refused"].is_null());
    running.process.terminate(PATIENCE).await;
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    let log = std::fs::read_to_string(pipeline.dir.join("run.err")).expect("the log");
    let warned = log.lines().filter(|line| line.contains("capture.canary_refused") && line.contains("WARN")).count();
    assert_eq!(warned, 1, "said once");
    pipeline.drop(server).await;
}

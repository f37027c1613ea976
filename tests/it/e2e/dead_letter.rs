//! An event that the target refuses for good: parked, shown, mended, redriven; everything else goes on.

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_event_is_shown_mended_and_redriven() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("dead-letter", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    pipeline.traffic(400, 3, &["--plant-refused"]).finish(PATIENCE).await;
    let letter = wait_for("the dead letter", PATIENCE, || async {
        let listed = pipeline.command("list", &["dead-letters", "list", "--connector", "engagement", "--format", "json"]).await;
        let groups: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        groups[0]["example"].as_str().map(str::to_owned)
    })
    .await;
    let shown = pipeline.command("show", &["dead-letters", "show", "--connector", "engagement", "--id", &letter]).await;
    assert!(shown.contains("http.status_422"), "the reason is shown: {shown}");
    assert!(!shown.contains("planted@example.com"), "values are masked: {shown}");

    let listening: serde_json::Value = serde_json::from_str(target.stdout().lines().next().expect("the target's address")).expect("JSON");
    let api = format!("http://{}", listening["listening"].as_str().expect("an address"));
    pipeline.command("accept", &["demo", "accept", "--target", &api]).await;
    pipeline.command("redrive", &["dead-letters", "redrive", "--connector", "engagement", "--id", &letter]).await;
    wait_for("the redriven event", PATIENCE, || async {
        let listed = pipeline.command("list", &["dead-letters", "list", "--format", "json"]).await;
        (serde_json::from_str::<serde_json::Value>(&listed).expect("JSON") == serde_json::json!([])).then_some(())
    })
    .await;
    running.process.terminate(std::time::Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

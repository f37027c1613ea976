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

    // The row's whole life, before and after it is mended by hand under the same id.
    let full = pipeline.command("show", &["dead-letters", "export", "--connector", "engagement", "--unmask"]).await;
    let full: serde_json::Value = serde_json::from_str(full.lines().next().expect("one letter")).expect("JSON");
    let (table, key) = (format!("public.{}", full["event"]["table"].as_str().expect("a table")), full["event"]["key"]["id"].to_string());
    let why = pipeline.command("why", &["why", &table, &key]).await;
    assert!(why.contains(&letter) && why.contains("engagement: refused after 1 attempts") && why.contains("http.status_422"), "{why}");
    assert!(!why.contains("planted@example.com"), "no values: {why}");
    let set = ["dead-letters", "edit", "--connector", "engagement", "--id", &letter, "--reason", "typing error"];
    pipeline.command("edit", &[&set[..], &["--set", "after.email=mended@example.com"]].concat()).await;
    let meant = pipeline.command("dry", &["dead-letters", "redrive", "--all", "--limit", "1", "--rate", "5/s", "--dry-run"]).await;
    assert_eq!(meant, "1 dead letters are meant; nothing was done\n");
    let shown = pipeline.command("show", &["dead-letters", "show", "--id", &letter, "--unmask"]).await;
    assert!(shown.contains("mended@example.com") && !shown.contains("planted@example.com"), "{shown}");

    let listening: serde_json::Value = serde_json::from_str(target.stdout().lines().next().expect("the target's address")).expect("JSON");
    let api = format!("http://{}", listening["listening"].as_str().expect("an address"));
    pipeline.command("accept", &["demo", "accept", "--target", &api]).await;
    pipeline.command("redrive", &["dead-letters", "redrive", "--connector", "engagement", "--id", &letter, "--rate", "5/s"]).await;
    wait_for("the redriven event", PATIENCE, || async {
        let listed = pipeline.command("list", &["dead-letters", "list", "--format", "json"]).await;
        (serde_json::from_str::<serde_json::Value>(&listed).expect("JSON") == serde_json::json!([])).then_some(())
    })
    .await;
    let why = pipeline.command("why", &["why", &table, &key]).await;
    assert!(why.contains("engagement: taken by the target when it was sent again"), "{why}");
    running.process.terminate(std::time::Duration::from_secs(10)).await;
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

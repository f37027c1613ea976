//! Backfills as whoever schedules them sees them: commands, exit codes, and what is in the target in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::shop::{Plan, Shop, code, pause, signal};
use crate::harness::{Level, PATIENCE, Postgres, wait_for};

/// One id is one backfill: started, found complete, refused for something else; and what it may not read it says.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_names_one_backfill() {
    let server = Postgres::shared().await;
    let shop = Shop::new(server, Plan::new("commands", 30_000)).await;
    // Where no pipeline runs, nobody answers.
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.item"]).await;
    assert_eq!(code, 69, "{err}");
    let running = shop.run();
    running.ready().await;

    let start = ["backfill", "start", "--table", "public.item", "--id", "all"];
    let (code, summary) = shop.summary(&start).await;
    assert_eq!((code, summary["state"].as_str(), summary["rows"].as_u64()), (0, Some("done"), Some(30_000)), "{summary}");
    shop.equal().await;
    let (code, out, err) = shop.command(&start).await;
    assert!(code == 0 && err.contains("already complete") && out.contains("already complete"), "{code} {out} {err}");
    let other = ["backfill", "start", "--table", "public.item", "--id", "all", "--where", "id < 10"];
    let (code, _, err) = shop.command(&other).await;
    assert!(code == 78 && err.contains("where: was not given, is `id < 10`"), "{code} {err}");

    // Scope: a condition needs an index, and says which; a key finds its rows; a row that is gone becomes a deletion.
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.item", "--where", "name = 'item 5'"]).await;
    assert!(code == 78 && err.contains("CREATE INDEX CONCURRENTLY ON") && err.contains("(\"name\")"), "{code} {err}");
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.item", "--where", "id = 1); DELETE FROM item"]).await;
    assert_eq!(code, 2, "{err}");
    let (code, out, _) = shop.command(&["backfill", "start", "--table", "public.item", "--where", "id < 100", "--dry-run"]).await;
    assert!(code == 0 && out.contains("by index item_pkey"), "{out}");
    let scoped =
        ["backfill", "start", "--table", "public.item", "--where", "id < 100", "--connector", "stock", "--columns", "name", "--verify"];
    let (code, verified) = shop.summary(&scoped).await;
    let counts = (verified["rows"].as_u64(), verified["drifted"].as_u64());
    assert_eq!((code, counts), (0, (Some(99), Some(0))), "{verified}");
    let since = ["backfill", "start", "--table", "public.item", "--since", "last-success"];
    let (code, summary) = shop.summary(&since).await;
    assert_eq!((code, summary["rows"].as_u64()), (0, Some(30_000)), "the first one reads everything: {summary}");
    shop.pos.connect().await.batch_execute("UPDATE item SET updated_at = now() - interval '1 day' WHERE id > 40").await.expect("ages");
    let (code, summary) = shop.summary(&since).await;
    assert_eq!((code, summary["rows"].as_u64()), (0, Some(40)), "{summary}");
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.nothing"]).await;
    assert_eq!(code, 78, "{err}");
    shop.equal().await;

    // A deadline leaves the rest for the next start, and a pause for whoever resumes it.
    let slow = ["backfill", "start", "--table", "public.item", "--id", "slow", "--max-rate", "2k", "--deadline", "3s"];
    let (code, summary) = shop.summary(&slow).await;
    let first = summary["rows"].as_u64().expect("rows");
    assert!(code == 124 && first > 0 && first < 30_000, "{code} {summary}");
    let (code, _, err) =
        shop.command(&["backfill", "start", "--table", "public.item", "--id", "slow", "--max-rate", "2k", "--detach"]).await;
    assert_eq!(code, 0, "{err}");
    let (code, out, _) = shop.command(&["backfill", "start", "--table", "public.item", "--if-running", "skip"]).await;
    assert!(code == 0 && out.contains("skipped"), "{out}");
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.item", "--if-running", "fail"]).await;
    assert_eq!(code, 4, "{err}");
    let (code, out, err) = shop.command(&["backfill", "pause", "slow", "--reason", "lunch"]).await;
    assert!(code == 0 && out.contains("paused"), "{out} {err}");
    let (code, out, _) = shop.command(&["backfill", "list"]).await;
    assert!(code == 0 && out.contains("slow") && out.contains("paused") && out.contains("lunch"), "{out}");
    let (code, out, err) = shop.command(&["backfill", "start", "--table", "public.item", "--id", "slow"]).await;
    assert!(code == 0 && err.contains("resumed"), "{out} {err}");
    let summary: serde_json::Value = serde_json::from_str(out.lines().last().expect("a summary")).expect("JSON");
    assert_eq!(summary["rows"].as_u64(), Some(30_000), "earlier runs count, and nothing is read twice: {summary}");
    shop.equal().await;
    let (code, out, _) = shop.command(&["backfill", "show", "slow"]).await;
    assert!(code == 0 && out.contains("state done"), "{out}");
    assert_eq!(shop.command(&["backfill", "cancel", "slow"]).await.0, 78);
    assert_eq!(shop.command(&["backfill", "show", "nobody"]).await.0, 2);
    let metrics = reqwest::get(format!("{}/metrics", running.admin)).await.expect("answers").text().await.expect("text");
    assert!(metrics.contains("tillstream_backfill_last_success_timestamp_seconds{pipeline=\"shop\",table=\"public.item\"}"), "{metrics}");
    // A page in somebody's browser starts nothing.
    let client = reqwest::Client::new();
    let forged =
        client.post(format!("{}/api/backfills", running.admin)).header("origin", "http://evil.example").json(&serde_json::json!({}));
    assert_eq!(forged.send().await.expect("answers").status().as_u16(), 403);
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

/// A peak stops a backfill, and everybody is told until when.
#[tokio::test(flavor = "multi_thread")]
async fn a_peak_pauses_and_says_so() {
    let server = Postgres::shared().await;
    let more = "protect: {timezone: America/Chicago, peak: [\"daily 00:00-24:00\"]}\n";
    let shop = Shop::new(server, Plan { more, ..Plan::new("peak", 1_000) }).await;
    let running = shop.run();
    running.ready().await;
    let (code, _, err) = shop.command(&["backfill", "start", "--table", "public.item", "--id", "lunch", "--detach"]).await;
    assert_eq!(code, 0, "{err}");
    let slowed = |text: &str| text.contains("slowed by: peak window until ");
    let shown = wait_for("the peak to be named", PATIENCE, async || {
        Some(shop.command(&["backfill", "show", "lunch"]).await.1).filter(|t| slowed(t))
    })
    .await;
    println!("{shown}");
    assert!(slowed(&shop.command(&["status"]).await.1), "in the status too");
    let (code, summary) = shop.summary(&["backfill", "start", "--table", "public.item", "--id", "lunch", "--deadline", "1s"]).await;
    assert_eq!(summary["rows"].as_u64(), Some(0), "attached to the one that runs: {code} {summary}");
    shop.command(&["backfill", "cancel", "lunch"]).await;
    let (code, summary) = shop.summary(&["backfill", "start", "--table", "public.item", "--no-brakes"]).await;
    assert_eq!((code, summary["rows"].as_u64()), (0, Some(1_000)));
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

/// Whatever moment the signal comes at: 143 or done, the next start goes on, and the target is equal in the end.
#[tokio::test(flavor = "multi_thread")]
async fn backfills_that_are_terminated_go_on() {
    let server = Postgres::shared().await;
    let times = Level::pick(2, 4, 100);
    let shop = Shop::new(server, Plan::new("sigterm", 60_000)).await;
    let mut rng = StdRng::seed_from_u64(7);
    let (mut interrupted, mut done) = (0, 0);
    for round in 0..times {
        // In turn inside a running pipeline and in a process of its own.
        let standalone = round % 2 == 1;
        let running = (!standalone).then(|| shop.run());
        if let Some(running) = &running {
            running.ready().await;
        }
        let id = format!("job-{round}");
        let mut arguments = vec!["backfill", "start", "--table", "public.item", "--id", &id, "--max-rate", "60k"];
        if standalone {
            arguments.push("--standalone");
        }
        // Each is terminated a few times; then it is let run, so that a slow machine comes to an end as well.
        let terminations = rng.random_range(1..=4);
        for attempt in 0..50 {
            let name = format!("start-{round}-{attempt}");
            let mut process = shop.start(&name, &arguments);
            pause(rng.random_range(0..1_500)).await;
            let status = match process.ended() {
                None if attempt >= terminations => process.wait(PATIENCE).await,
                Some(status) => status,
                None => {
                    // A handler is installed within milliseconds; before that a signal just ends a process that did nothing.
                    signal(&process, "TERM").await;
                    process.wait(PATIENCE).await
                }
            };
            let err = std::fs::read_to_string(shop.dir.join(format!("{name}.err"))).unwrap_or_default();
            match code(status) {
                143 => interrupted += 1,
                0 => {
                    done += 1;
                    break;
                }
                other => panic!("{name} ended with {other}: {err}"),
            }
            assert!(attempt < 49, "{id} does not come to its end");
        }
        let (code, out, _) = shop.command(&arguments).await;
        assert!(code == 0 && out.contains("already complete"), "{code} {out}");
        if let Some(running) = running {
            running.process.terminate(PATIENCE).await;
        }
    }
    println!("{times} backfills: {interrupted} times 143, {done} times 0, each complete in the end");
    let running = shop.run();
    shop.equal().await;
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

/// Rows that were changed behind our back are found and mended, and what is merely on its way is no drift.
#[tokio::test(flavor = "multi_thread")]
async fn drifted_rows_are_found_and_repaired_under_load() {
    let server = Postgres::shared().await;
    let rows = Level::pick(5_000, 20_000, 200_000);
    let shop = Shop::new(server, Plan::new("diff", rows)).await;
    let running = shop.run();
    running.ready().await;
    let (code, summary) = shop.summary(&["backfill", "start", "--table", "public.item", "--id", "all"]).await;
    assert_eq!(code, 0, "{summary}");
    shop.equal().await;

    let stop = Arc::new(AtomicBool::new(false));
    let client = shop.pos.connect().await;
    let (stopping, keys) = (stop.clone(), i64::from(rows));
    let traffic = tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(3);
        let mut changes = 0_u64;
        while !stopping.load(Ordering::Relaxed) {
            // The drifted ones below are left alone: whoever changes a row mends it.
            let id = rng.random_range(1_000..keys);
            let sql = match rng.random_range(0..10) {
                0 => format!("DELETE FROM item WHERE id = {id}"),
                1 => format!("INSERT INTO item VALUES ({id}, nextval('changes'), 'again', 1.5, now()) ON CONFLICT (id) DO NOTHING"),
                _ => format!("UPDATE item SET v = nextval('changes'), price = {id} / 7.0, updated_at = clock_timestamp() WHERE id = {id}"),
            };
            client.batch_execute(&sql).await.expect("a change");
            changes += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        changes
    });
    let diff = ["diff", "public.item", "--connector", "stock", "--format", "json"];
    let (code, report) = shop.summary(&diff).await;
    println!("consistent, under load: {report}");
    assert_eq!((code, report["drifted"].as_u64(), report["position_known"].as_bool()), (0, Some(0), Some(true)), "{report}");

    let target = shop.target.connect().await;
    target
        .batch_execute(
            "UPDATE item SET name = 'tampered' WHERE id BETWEEN 101 AND 120; UPDATE item SET price = NULL WHERE id BETWEEN 201 AND 205; \
             DELETE FROM item WHERE id BETWEEN 301 AND 315; INSERT INTO item (id, v, name, _version) SELECT -n, n, 'forged', '' FROM generate_series(1, 10) n",
        )
        .await
        .expect("tampers");
    let (code, report) = shop.summary(&diff).await;
    println!("50 rows changed behind our back: {report}");
    assert_eq!((code, report["drifted"].as_u64(), report["extra"].as_u64()), (1, Some(50), Some(10)), "{report}");
    let (code, out, err) = shop.command(&["diff", "public.item", "--connector", "stock", "--repair"]).await;
    println!("{out}");
    assert!(code == 0 && out.contains("repaired 50 of 50 rows"), "{code} {out} {err}");
    let (code, report) = shop.summary(&diff).await;
    println!("repaired, under load: {report}");
    assert_eq!((code, report["drifted"].as_u64()), (0, Some(0)), "{report}");
    stop.store(true, Ordering::Relaxed);
    println!("{} changes meanwhile", traffic.await.expect("no panic"));
    shop.equal().await;
    running.process.terminate(PATIENCE).await;
    shop.drop(server).await;
}

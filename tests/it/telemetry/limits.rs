//! What limits capture is named while it limits, in a real pipeline between PostgreSQL and RabbitMQ.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::faults::Shop;
use crate::harness::{Level, PATIENCE, Postgres};

/// Waits until the limit was named three times in a row, half a second apart, which is longer than from one of the process's looks at itself
/// to the next: asked for, because nothing outside tells of a look. Prints its sentence.
async fn until(shop: &Shop, limit: &str, scene: &str, stage: &str, says: &[&str]) {
    let begun = Instant::now();
    let (mut row, mut seen) = (0, Vec::new());
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some(status) = shop.running.status().await else { continue };
        let verdict = &status["bottleneck"];
        row = if verdict["limit"] == limit { row + 1 } else { 0 };
        seen.push(verdict["sentence"].as_str().unwrap_or("-").to_owned());
        if row == 3 {
            let sentence = verdict["sentence"].as_str().unwrap_or("-");
            println!("{scene}: {sentence}");
            assert_eq!(verdict["stage"].as_str().unwrap_or("none"), stage);
            for part in says {
                assert!(sentence.contains(part), "`{part}` is missing: {sentence}");
            }
            return;
        }
        seen.dedup();
        assert!(begun.elapsed() < PATIENCE, "{scene}: {limit} was not named, but {seen:#?}: {:#}", status["figures"]["capture"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_limits_capture_is_named() {
    if Level::get() < Level::Full {
        return;
    }
    let server = Postgres::shared().await;
    // No traffic but what the scenes make.
    let shop = Shop::open("limits", server, 0, |text| text).await;
    let client = shop.pipeline.pos.connect().await;
    if Level::get() == Level::Long {
        until(&shop, "idle", "all idle", "none", &["all is idle"]).await;
    }

    // A table that is not published: its WAL is decoded and thrown away by the server.
    client.batch_execute("CREATE TABLE noise (t text)").await.expect("creates");
    let noise = tokio::spawn({
        let client = shop.pipeline.pos.connect().await;
        async move {
            loop {
                let sql = "INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
                client.batch_execute(sql).await.expect("writes");
                // 5 MB/s: far above what counts as somebody else's WAL, and little on the disk by the time it is named.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    until(&shop, "foreign_wal", "someone else's WAL", "receive", &["is for this pipeline", "somebody else's"]).await;
    noise.abort();

    if Level::get() == Level::Long {
        let insert = tokio::spawn({
            let client = shop.pipeline.pos.connect().await;
            // Captured, and for no connector; so large that it takes longer than the window of the figures.
            let sql = "INSERT INTO public.audit_log (action, employee_id) SELECT 'count ' || n, n FROM generate_series(1, 3000000) n";
            async move { client.batch_execute(sql).await.expect("writes") }
        });
        let says = ["one transaction of", "streaming: on", "more replicas do not"];
        until(&shop, "large_transaction", "slow decode by a huge transaction", "decode", &says).await;
        insert.await.expect("inserted");
        shop.running
            .until("the transaction is through", |status: &Value| status["figures"]["capture"]["largest_transaction_events"] == 0)
            .await;
    }
    if Level::get() == Level::Long {
        shop.broker.delay(Duration::from_millis(400));
        let traffic = shop.pipeline.traffic(50, 120, &[]);
        until(&shop, "journal_slow", "slow broker", "confirm", &["a confirm takes", "a faster disk or a nearer broker helps"]).await;
        traffic.end().await;
        shop.broker.delay(Duration::ZERO);
    }
    shop.broker.refuse(true);
    shop.broker.cut();
    until(&shop, "journal_away", "broker down", "publish", &["waits for the journal", "bring the broker back"]).await;
    shop.broker.refuse(false);
    shop.running.until("the journal is back", |status: &Value| status["journal"]["state"] == "healthy").await;
    shop.close(server).await;
}

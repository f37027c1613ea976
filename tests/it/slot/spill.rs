//! What the server writes to its disk while it decodes, and what it sends before the commit.

use std::time::Duration;

use tillstream::ops::doctor::{Severity, examine};

use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, wait_for};
use crate::matrix::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_spills_is_shown_with_the_setting_to_raise() {
    let server = Postgres::shared().await;
    let bench = Bench::new("spill", server, "CREATE TABLE t (id int PRIMARY KEY, s text)", "FOR TABLE t", &["t"]).await;
    bench.sql(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", bench.database.name)).await;
    let finding = async || {
        let report = examine(&bench.source, "test").await;
        report.findings.into_iter().find(|f| f.id == "capture.decoding_spills").expect("it is looked at")
    };
    assert_eq!(finding().await.severity, Severity::Ok);
    bench.sql("INSERT INTO t SELECT g, repeat('x', 300) FROM generate_series(1, 3000) g").await;
    assert_eq!(bench.events().await.len(), 3000);
    // The server's counters come a little later.
    let warned = wait_for("the server to count", PATIENCE, async || Some(finding().await).filter(|f| f.severity == Severity::Warn)).await;
    assert!(warned.what.contains("logical_decoding_work_mem = 64.0 KiB"), "{}", warned.what);
    assert!(warned.fix.contains("ALTER SYSTEM SET logical_decoding_work_mem"), "{}", warned.fix);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_spilled_and_streamed_is_in_status_and_metrics() {
    let server = Postgres::shared().await;
    for streaming in ["off", "on"] {
        let edit = |file: String| file.replace("  slot:", &format!("  initial_load: false\n  streaming: {streaming}\n  slot:"));
        let pipeline = Pipeline::new("spill_status", server, Journal::Local, edit).await;
        let pos = pipeline.pos.connect().await;
        let sql = format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", pipeline.pos.name);
        pos.batch_execute(&sql).await.expect("a setting");
        pipeline.set_up().await;
        let running = pipeline.run("run", &["--only", "capture"]);
        running.ready().await;
        let sql = "INSERT INTO customer (name, email) SELECT 'n' || g, 'e' || g || '@example.com' FROM generate_series(1, 5000) g";
        pos.batch_execute(sql).await.expect("rows");
        let key = if streaming == "on" { "stream" } else { "spill" };
        let decoding = wait_for("the counters in status", PATIENCE, async || {
            let status = running.status().await?;
            let decoding = status["source"]["slot"]["decoding"].clone();
            (decoding[format!("{key}_txns")].as_u64()? > 0).then_some(decoding)
        })
        .await;
        assert!(decoding[format!("{key}_bytes")].as_u64().is_some_and(|n| n > 100_000), "{decoding}");
        assert!(decoding["total_txns"].as_u64().is_some_and(|n| n > 0), "{decoding}");
        // The doctor inside the run says which setting is to be raised, by the id of the command.
        let found =
            wait_for("the doctor's look", PATIENCE, async || running.status().await?["source"]["doctor"]["findings"].as_array().cloned())
                .await;
        assert!(found.iter().any(|f| f["id"] == "capture.decoding_memory_small" && f["severity"] == "warn"), "{found:?}");
        let how = if streaming == "on" { "streamed" } else { "spilled" };
        let metrics = reqwest::get(format!("{}/metrics", running.admin)).await.expect("answers").text().await.expect("text");
        let line = metrics.lines().find(|l| l.starts_with("tillstream_capture_decoded_bytes_total") && l.contains(how)).expect("a metric");
        assert!(line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).is_some_and(|n| n > 100_000.0), "{line}");
        assert!(metrics.contains("tillstream_capture_spool_bytes{"), "{metrics}");
        assert!(metrics.contains("code=\"capture.decoding_memory_small\",severity=\"warn\""), "{metrics}");
        let screen = pipeline.command("status", &["status", "--url", &running.admin]).await;
        assert!(screen.contains(if streaming == "on" { "sent before their commit" } else { "spilled to the server's disk" }), "{screen}");
        running.process.terminate(Duration::from_secs(10)).await;
        pipeline.judge(&[]);
        drop(pos);
        pipeline.drop(server).await;
    }
}

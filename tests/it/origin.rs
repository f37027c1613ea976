//! Changes that the server replicated from another one: captured as any other, or left out.

use tillstream::config::Origin;
use tillstream::ops::doctor::{Severity, examine};

use crate::harness::Postgres;
use crate::matrix::{Bench, Captured};

/// What the doctor says of the option.
async fn finding(bench: &Bench) -> Option<Severity> {
    let report = examine(&bench.source, "test").await;
    report.findings.iter().find(|f| f.id == "capture.origin_unsupported").map(|f| f.severity)
}

/// Rows in the order of their changes.
fn rows(events: &[Captured]) -> Vec<(&str, i64)> {
    events.iter().map(|e| (e.op(), e.key()["id"].as_i64().expect("a number"))).collect()
}

/// Rows of this server's own and of another one, each in transactions of their own, on a server that can tell them apart.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_from_elsewhere_is_left_out_on_request() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new("origin", server, "CREATE TABLE t (id int PRIMARY KEY, n int)", "FOR TABLE t", &["t"]).await;
    let origin = format!("berlin_{}", bench.database.name);
    bench.sql("INSERT INTO t VALUES (1, 0)").await;
    bench.sql(&format!("SELECT pg_replication_origin_create('{origin}'), pg_replication_origin_session_setup('{origin}')")).await;
    bench.sql("BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO t VALUES (2, 0); COMMIT").await;
    bench.sql("BEGIN; SELECT pg_replication_origin_xact_setup('0/1244', now()); UPDATE t SET n = 1 WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT").await;
    bench.sql("SELECT pg_replication_origin_session_reset()").await;
    bench.sql("INSERT INTO t VALUES (3, 0)").await;
    assert_eq!(finding(&bench).await, None, "nobody asked");
    bench.source.origin = Origin::None;
    if bench.major < 16 {
        let error = bench.try_catch_up().await.expect_err("refused at the start");
        assert_eq!(error.code(), "capture.origin_unsupported");
        let error = bench.catch_up_unchecked().await.expect_err("refused by a server that is older than the one before");
        assert_eq!(error.code(), "capture.origin_unsupported");
        assert_eq!(finding(&bench).await, Some(Severity::Fail));
        bench.source.origin = Origin::Any;
        let events = bench.events().await;
        assert_eq!(rows(&events), [("insert", 1), ("insert", 2), ("update", 1), ("delete", 2), ("insert", 3)]);
    } else {
        assert_eq!(finding(&bench).await, Some(Severity::Ok));
        let events = bench.events().await;
        assert_eq!(rows(&events), [("insert", 1), ("insert", 3)]);
    }
    bench.sql(&format!("SELECT pg_replication_origin_drop('{origin}')")).await;
    bench.end(server).await;
}

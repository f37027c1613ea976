//! A connection pooler where the database server should be.

use tillstream::capture::CaptureError;
use tillstream::capture::catalog::check_start;
use tillstream::capture::source::Source as _;
use tillstream::capture::wire::PgSource;

use crate::harness::{PATIENCE, Pooler, Postgres, wait_for};
use crate::matrix::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_front_is_detected_and_explained() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new("pooled", server, "CREATE TABLE t (id int PRIMARY KEY)", "FOR TABLE t", &["t"]).await;
    let pooler = Pooler::start(server.address()).await;
    bench.source.url = format!("postgres://postgres@{}/{}", pooler.address(), bench.database.name).into();
    wait_for("the pooler", PATIENCE, || async { tokio::net::TcpStream::connect(pooler.address()).await.ok() }).await;
    let source = PgSource::new(&bench.source, "test");
    for error in [source.connect().await.err(), source.look().await.err(), check_start(&bench.source, "test").await.err()] {
        let Some(CaptureError::Definite { code, what, fix, .. }) = error else { panic!("{error:?}") };
        assert!(code == "capture.pooler" && fix.contains("not at the pooler"), "{code}: {what}");
    }
    bench.end(server).await;
}

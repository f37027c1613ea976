//! A row of 5 MB passes a journal whose frames hold 1 MiB.

use crate::e2e::assert_sound;
use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, RabbitMq};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_5_mb_passes_frames_of_1_mib() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("big-row", server, Journal::Rabbit(RabbitMq::shared().await), |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    pipeline.traffic(400, 2, &[]).finish(PATIENCE).await;
    let pos = pipeline.pos.connect().await;
    // Text that does not compress, a little of it outside ASCII.
    let big = "SELECT string_agg(md5(n::text) || 'é\"\\', '') FROM generate_series(1, 140000) n";
    pos.batch_execute(&format!("UPDATE check_ SET receipt = ({big}) WHERE id = (SELECT id FROM check_ ORDER BY id LIMIT 1)"))
        .await
        .expect("updates");
    // The next update leaves the big value alone: it must stay in the inventory.
    pos.batch_execute("UPDATE check_ SET status = 'archived' WHERE id = (SELECT id FROM check_ ORDER BY id LIMIT 1)")
        .await
        .expect("updates");
    pipeline.drain().await;
    assert_sound(&pipeline.verify().await);
    let inventory = pipeline.inventory.connect().await;
    let length: i32 = inventory.query_one("SELECT max(length(receipt)) FROM check_", &[]).await.expect("reads").get(0);
    assert_eq!(length, 140_000 * 35);
    target.terminate(PATIENCE).await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

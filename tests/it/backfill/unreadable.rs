//! A table that the initial load may not read: a job brings everything else and ends with it, a service waits for whoever grants it.

use super::shop::{Plan, Shop, digest};
use crate::harness::{PATIENCE, Postgres};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_with_what_its_load_may_not_read_and_a_service_waits() {
    let server = Postgres::shared().await;
    let shop = Shop::new(server, Plan::new("unreadable", 2_000)).await;
    let client = shop.pos.connect().await;
    let role = format!("{}_reader", shop.pos.name);
    // Rights on columns, as setup grants them, do not reach to a column that comes later.
    client
        .batch_execute(&format!(
            "CREATE TABLE note (id int PRIMARY KEY, t text);
             INSERT INTO note VALUES (1, 'one');
             ALTER PUBLICATION p ADD TABLE note;
             CREATE ROLE {role} LOGIN;
             GRANT SELECT ON item TO {role};
             GRANT SELECT (id, t) ON note TO {role};
             ALTER TABLE note ADD COLUMN later text;
             UPDATE item SET name = 'a live change' WHERE id = 7"
        ))
        .await
        .expect("a table with a column that may not be read");
    let path = shop.dir.join("tillstream.yaml");
    let file = std::fs::read_to_string(&path).expect("the pipeline's file");
    let file = file
        .replace("initial_load: false", &format!("initial_load: true\n  backfill_url: {}", shop.pos.url_as(&role)))
        .replace("tables: [public.item]", "tables: [public.item, public.note]");
    std::fs::write(&path, file).expect("target/ can be written");

    let (code, _, err) = shop.command(&["run", "--until-caught-up"]).await;
    assert!(code == 77 && err.contains("error[backfill.no_permission]: public.note: the reading role lacks SELECT"), "{code} {err}");
    let target = shop.target.connect().await;
    assert_eq!(
        digest(&shop.pos.connect().await, "").await,
        digest(&target, "WHERE NOT _deleted").await,
        "the rest is captured and delivered"
    );

    // What was read is not read again, so rows that the target loses now stay away.
    target.batch_execute("DELETE FROM item WHERE id <= 10").await.expect("deletes");
    let running = shop.run();
    let failing = running
        .until("the load to fail", |status| status["initial_load"]["tables"][1]["code"].as_str() == Some("backfill.no_permission"))
        .await;
    assert_eq!(failing["initial_load"]["finished"].as_bool(), Some(false), "{failing:#}");
    client.batch_execute(&format!("GRANT SELECT (later) ON note TO {role}")).await.expect("grants");
    let loaded = running.until("the load", |status| status["initial_load"]["finished"].as_bool() == Some(true)).await;
    assert_eq!(loaded["initial_load"]["rows"].as_u64(), Some(1), "only the note was left: {loaded:#}");
    running.process.terminate(PATIENCE).await;

    let (code, _, err) = shop.command(&["run", "--until-caught-up"]).await;
    assert_eq!(code, 0, "{err}");
    let left: i64 = target.query_one("SELECT count(*) FROM item", &[]).await.expect("counts").get(0);
    assert_eq!(left, 1_990);
    drop((client, target));
    shop.drop(server).await;
    server.connect("postgres").await.batch_execute(&format!("DROP ROLE {role}")).await.expect("dropped with its database");
}

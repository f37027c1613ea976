//! Which row a change is about: keys under every replica identity, large values, key changes, TRUNCATE.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tillstream::capture::catalog::check_start;

use crate::harness::Postgres;
use crate::matrix::{Bench, Captured};

fn ops(events: &[Captured]) -> Vec<(&str, &str)> {
    events.iter().map(|e| (e.table(), e.op())).collect()
}

fn of<'e>(events: &'e [Captured], table: &str) -> Vec<&'e Captured> {
    events.iter().filter(|e| e.table() == table).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_unchanged_or_whole_never_null() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE by_key (id int PRIMARY KEY, n int, big text, doc jsonb, bin bytea);
               CREATE TABLE by_row (LIKE by_key INCLUDING ALL);
               ALTER TABLE by_row REPLICA IDENTITY FULL;
               CREATE TABLE big_key (id text PRIMARY KEY, n int);
               ALTER TABLE by_key ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, ALTER bin SET STORAGE EXTERNAL;
               ALTER TABLE by_row ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, ALTER bin SET STORAGE EXTERNAL;
               ALTER TABLE big_key ALTER id SET STORAGE EXTERNAL;";
    let bench = Bench::new("toast", server, sql, "FOR TABLE by_key, by_row, big_key", &["by_key", "by_row", "big_key"]).await;
    for table in ["by_key", "by_row"] {
        bench
            .sql(&format!(
                "INSERT INTO {table} SELECT 1, 0, repeat('x', 20000), jsonb_build_object('a', repeat('y', 20000)), decode(repeat('00ff', 10000), 'hex');
                 UPDATE {table} SET n = 1;
                 UPDATE {table} SET n = 2, big = 'small now';
                 UPDATE {table} SET n = 3, doc = NULL;
                 DELETE FROM {table};"
            ))
            .await;
    }
    // A key that is stored out of line itself: the server sends the old one with every update.
    bench
        .sql("INSERT INTO big_key VALUES (repeat('k', 2500), 0); UPDATE big_key SET n = 1; UPDATE big_key SET id = repeat('l', 2500);")
        .await;
    let events = bench.events().await;

    let by_key = of(&events, "by_key");
    assert_eq!(by_key.iter().map(|e| e.op()).collect::<Vec<_>>(), ["insert", "update", "update", "update", "delete"]);
    assert_eq!(by_key[0].after()["big"].as_str().map(str::len), Some(20_000));
    assert_eq!(by_key[1].unchanged(), ["big", "doc", "bin"]);
    assert_eq!(by_key[1].after(), &json!({"id": 1, "n": 1}), "neither null nor there");
    assert_eq!(by_key[2].unchanged(), ["doc", "bin"]);
    assert_eq!(by_key[2].after(), &json!({"id": 1, "n": 2, "big": "small now"}));
    assert_eq!((by_key[3].unchanged(), &by_key[3].after()["doc"]), (vec!["bin"], &Value::Null));
    assert_eq!((by_key[4].key(), by_key[4].before(), by_key[4].after()), (&json!({"id": 1}), &Value::Null, &Value::Null));

    let by_row = of(&events, "by_row");
    assert!(by_row.iter().all(|e| e.unchanged().is_empty()), "the old row completes the new one");
    for update in &by_row[1..2] {
        assert_eq!(update.after()["big"], update.before()["big"]);
        assert_eq!(update.after()["doc"], update.before()["doc"]);
        assert_eq!(update.after()["bin"].as_str().map(str::len), Some(26_668), "20,000 bytes as base64");
    }
    assert_eq!((&by_row[2].after()["big"], by_row[2].before()["big"].as_str().map(str::len)), (&json!("small now"), Some(20_000)));
    assert_eq!((&by_row[3].after()["doc"], by_row[3].before()["doc"]["a"].as_str().map(str::len)), (&Value::Null, Some(20_000)));
    assert_eq!((by_row[4].key(), &by_row[4].before()["big"], by_row[4].after()), (&json!({"id": 1}), &json!("small now"), &Value::Null));

    let big_key = of(&events, "big_key");
    let (k, l) = ("k".repeat(2500), "l".repeat(2500));
    let told: Vec<_> = big_key.iter().map(|e| (e.op(), e.key()["id"].as_str().unwrap_or_default(), e.unchanged().len())).collect();
    assert_eq!(told, [("insert", k.as_str(), 0), ("update", &k, 0), ("delete", &k, 0), ("insert", &l, 0)]);
    assert_eq!(big_key[1].partition, big_key[0].partition, "whether the key was sent again or not");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_identity_gives_its_key() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE i_default (a int, b text, n int, PRIMARY KEY (b, a));
               CREATE TABLE i_index (a int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
               ALTER TABLE i_index REPLICA IDENTITY USING INDEX i_index_code_key;
               CREATE TABLE i_full (a int PRIMARY KEY, n int);
               ALTER TABLE i_full REPLICA IDENTITY FULL;
               CREATE TABLE i_full_keyless (a int, n int);
               ALTER TABLE i_full_keyless REPLICA IDENTITY FULL;
               CREATE TABLE i_nothing (a int PRIMARY KEY, n int);
               ALTER TABLE i_nothing REPLICA IDENTITY NOTHING;
               CREATE TABLE i_keyless (a int, n int);";
    let tables = ["i_default", "i_index", "i_full", "i_full_keyless", "i_nothing", "i_keyless"];
    let bench = Bench::new("identity", server, sql, &format!("FOR TABLE {}", tables.join(", ")), &tables).await;
    bench.sql("INSERT INTO i_default VALUES (1, 'x', 0); UPDATE i_default SET n = 1; DELETE FROM i_default").await;
    bench.sql("INSERT INTO i_index VALUES (1, 'c1', 0); UPDATE i_index SET n = 1; UPDATE i_index SET a = 2; DELETE FROM i_index").await;
    for table in ["i_full", "i_full_keyless"] {
        bench.sql(&format!("INSERT INTO {table} VALUES (1, 0); UPDATE {table} SET n = 1; DELETE FROM {table}")).await;
    }
    bench.sql("INSERT INTO i_nothing VALUES (1, 0); INSERT INTO i_keyless VALUES (1, 0)").await;
    // The server itself refuses what nobody could follow: published, these fail in the point of sale.
    for table in ["i_nothing", "i_keyless"] {
        for statement in [format!("UPDATE {table} SET n = 1"), format!("DELETE FROM {table}")] {
            let error = bench.client.batch_execute(&statement).await.expect_err("no replica identity");
            assert_eq!(error.code().map(|c| c.code()), Some("55000"), "{statement}: {error}");
        }
    }
    let facts = check_start(&bench.source, "test").await.expect("starts");
    let keyless: BTreeSet<&str> =
        facts.warnings.iter().filter(|w| w.code == "capture.keyless_table").filter_map(|w| w.what.split(' ').next()).collect();
    assert_eq!(keyless, BTreeSet::from(["public.i_keyless", "public.i_nothing"]), "both are named before they hurt");
    for warning in facts.warnings.iter().filter(|w| w.code == "capture.keyless_table") {
        assert!(warning.why.contains("FAIL in the point of sale") && warning.fix.contains("REPLICA IDENTITY"), "{warning:?}");
    }

    let events = bench.events().await;
    let keys =
        |table: &str| of(&events, table).iter().map(|e| (e.op().to_owned(), e.key().clone(), e.before().clone())).collect::<Vec<_>>();
    let told = |op: &str, key: Value, before: Value| (op.to_owned(), key, before);
    let ab = json!({"a": 1, "b": "x"});
    assert_eq!(keys("i_default"), ["insert", "update", "delete"].map(|op| told(op, ab.clone(), Value::Null)));
    assert_eq!(
        keys("i_index"),
        ["insert", "update", "update", "delete"].map(|op| told(op, json!({"code": "c1"}), Value::Null)),
        "the index names the row, so a changed primary key is an update like any other"
    );
    let row = |n: i32| json!({"a": 1, "n": n});
    let full = |key: Value| [told("insert", key.clone(), Value::Null), told("update", key.clone(), row(0)), told("delete", key, row(1))];
    assert_eq!(keys("i_full"), full(json!({"a": 1})));
    assert_eq!(keys("i_full_keyless"), full(Value::Null));
    assert_eq!(keys("i_nothing"), [told("insert", json!({"a": 1}), Value::Null)]);
    assert_eq!(keys("i_keyless"), [told("insert", Value::Null, Value::Null)]);
    let partitions: BTreeSet<u16> = of(&events, "i_full_keyless").iter().map(|e| e.partition).collect();
    assert_eq!(partitions.len(), 1, "versions of a row that nothing names stay in order");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_change_is_a_delete_and_an_insert_in_their_partitions() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE items (id int PRIMARY KEY, n int, big text);
               ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
               CREATE TABLE whole (id int PRIMARY KEY, n int);
               ALTER TABLE whole REPLICA IDENTITY FULL;
               INSERT INTO items SELECT i, 0, repeat('x', 5000) FROM generate_series(1, 40) i;
               INSERT INTO whole SELECT i, 0 FROM generate_series(1, 40) i;";
    let bench = Bench::new("keys", server, sql, "FOR TABLE items, whole", &["items", "whole"]).await;
    bench.sql("BEGIN; UPDATE items SET n = 7 WHERE id = 1; UPDATE items SET id = id + 100, n = 1; UPDATE items SET id = id WHERE id = 101; COMMIT").await;
    bench.sql("UPDATE whole SET id = id + 100; DELETE FROM whole WHERE id = 140").await;
    let events = bench.events().await;
    let mut crossed = 0;
    for table in ["items", "whole"] {
        let halves: Vec<&Captured> = of(&events, table).into_iter().filter(|e| e.id.ends_with(['d', 'i'])).collect();
        assert_eq!(halves.len(), 80, "{table}");
        for pair in halves.chunks(2) {
            let (gone, come) = (pair[0], pair[1]);
            assert_eq!(gone.id.strip_suffix('d'), come.id.strip_suffix('i'), "one family of ids, the delete first");
            assert_eq!((gone.op(), come.op()), ("delete", "insert"));
            assert_eq!(gone.body["ordinal"], come.body["ordinal"]);
            let (old, new) = (gone.key()["id"].as_i64().expect("a key"), come.key()["id"].as_i64().expect("a key"));
            assert_eq!(old + 100, new);
            assert_eq!(come.after()["id"], new);
            for half in [gone, come] {
                let expected = tillstream_schemas::partition::partition_of(
                    std::iter::once(Some(half.key()["id"].to_string().as_bytes())),
                    bench.journal.partitions(),
                );
                assert_eq!(half.partition, expected, "where the other changes of that key are");
            }
            crossed += usize::from(gone.partition != come.partition);
            if table == "items" {
                assert_eq!(come.unchanged(), ["big"], "the server did not send it, and an insert says so");
            } else {
                assert_eq!(gone.before()["id"], old);
            }
        }
    }
    assert!(crossed > 10, "{crossed} of 80 rows moved to another partition");
    // Nothing is left under an old key: replay per key in the order of positions.
    let mut live = BTreeSet::new();
    for event in of(&events, "whole") {
        match event.op() {
            "delete" => drop(live.remove(&event.key()["id"].as_i64())),
            _ => drop(live.insert(event.key()["id"].as_i64())),
        }
    }
    assert_eq!(live, (101..140).map(Some).collect());
    let same = of(&events, "items").into_iter().filter(|e| e.key()["id"] == 101).map(|e| e.op()).collect::<Vec<_>>();
    assert_eq!(same, ["insert", "update"], "an update that sets the key to itself is one");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_is_an_ordered_event_of_each_table() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE parent (id int PRIMARY KEY);
               CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
               CREATE TABLE silent (id int PRIMARY KEY);
               CREATE TABLE sales (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
               CREATE TABLE sales_2025 PARTITION OF sales FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
               CREATE TABLE sales_2026 PARTITION OF sales FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');";
    let publication = "FOR TABLE parent, child, sales WITH (publish_via_partition_root = true)";
    let bench = Bench::new("truncate", server, sql, publication, &["parent", "child", "sales"]).await;
    bench.sql("BEGIN; INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1); TRUNCATE parent CASCADE; INSERT INTO parent VALUES (2); COMMIT").await;
    bench.sql("TRUNCATE silent; TRUNCATE child, silent RESTART IDENTITY").await;
    bench
        .sql("INSERT INTO sales VALUES (1, '2025-05-05'), (2, '2026-05-05'); TRUNCATE sales; INSERT INTO sales VALUES (3, '2026-01-01')")
        .await;
    let events = bench.events().await;
    let told = ops(&events);
    assert_eq!(told[..2], [("parent", "insert"), ("child", "insert")]);
    assert_eq!(BTreeSet::from_iter(told[2..4].iter().copied()), BTreeSet::from([("parent", "truncate"), ("child", "truncate")]));
    assert_eq!(
        told[4..],
        [("parent", "insert"), ("child", "truncate"), ("sales", "insert"), ("sales", "insert"), ("sales", "truncate"), ("sales", "insert")]
    );
    for truncate in events.iter().filter(|e| e.op() == "truncate") {
        assert_eq!((truncate.key(), truncate.before(), truncate.after()), (&Value::Null, &Value::Null, &Value::Null));
    }
    let ids: BTreeSet<&str> = events.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids.len(), events.len());
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_old_row_costs_what_the_doctor_says() {
    let server = Postgres::shared().await;
    let columns = (0..30).map(|n| format!("c{n} text")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "CREATE TABLE by_key (id int PRIMARY KEY, n int, {columns}); CREATE TABLE by_row (LIKE by_key INCLUDING ALL); ALTER TABLE by_row REPLICA IDENTITY FULL;
         CREATE FUNCTION wal_of(statement text) RETURNS text LANGUAGE plpgsql AS $$DECLARE plan json; BEGIN
           EXECUTE 'EXPLAIN (ANALYZE, WAL, FORMAT JSON) ' || statement INTO plan; RETURN plan->0->'Plan'->>'WAL Bytes'; END$$"
    );
    let bench = Bench::new("wal", server, &sql, "FOR TABLE by_key, by_row", &["by_key", "by_row"]).await;
    let mut written = Vec::new();
    for table in ["by_key", "by_row"] {
        let values = vec!["repeat('x', 50)"; 30].join(", ");
        bench.sql(&format!("INSERT INTO {table} SELECT g, 0, {values} FROM generate_series(1, 500) g")).await;
        // The statement's own, whatever other sessions write meanwhile.
        let bytes = bench.text(&format!("SELECT wal_of('UPDATE {table} SET n = 1')")).await;
        written.push(bytes.parse::<f64>().expect("a number"));
    }
    println!("WAL of 500 updates: {:.0} KiB by key, {:.0} KiB with the whole old row", written[0] / 1024.0, written[1] / 1024.0);
    assert!(written[1] > 1.5 * written[0], "{written:?}");
    let report = tillstream::ops::doctor::examine(&bench.source, "test").await;
    let advice: Vec<&str> = report.findings.iter().filter(|f| f.id == "capture.identity_full").map(|f| f.what.as_str()).collect();
    assert!(advice.len() == 1 && advice[0].contains("by_row"), "{advice:?}");
    bench.end(server).await;
}

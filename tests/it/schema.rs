//! Tables that change while they are captured: what each event carries, what the history says, what is never taken for something
//! else.

use serde_json::{Value, json};

use crate::harness::Postgres;
use crate::matrix::{Bench, Captured};

/// `op after` of every event, the keys in the table's order.
fn told(events: &[Captured]) -> Vec<String> {
    events.iter().map(|e| format!("{} {} {}", e.table(), e.op(), e.after())).collect()
}

/// What the control log says has changed, a line for each layout after the first.
async fn history(bench: &Bench, table: &str) -> Vec<String> {
    let state = bench.control().await;
    let layouts: Vec<_> = state.layouts().filter(|l| l.table == table).collect();
    layouts.windows(2).map(|pair| tillstream::ops::layouts::changes(pair[0], pair[1]).join("; ")).collect()
}

/// Every event names a layout that the control log holds, and holds exactly that layout's columns.
async fn events_fit_their_layouts(bench: &Bench, events: &[Captured]) {
    let state = bench.control().await;
    for event in events.iter().filter(|e| !e.table().is_empty()) {
        let name = event.body["layout"].as_str().expect("a layout");
        let layout =
            state.layouts().find(|l| l.layout == name).unwrap_or_else(|| panic!("{} has layout {name}, which nobody knows", event.id));
        assert_eq!(layout.table, format!("{}.{}", event.body["schema"].as_str().unwrap_or_default(), event.table()));
        if let Value::Object(after) = event.after() {
            let columns: Vec<&str> = layout.columns.iter().map(|c| c.name.as_str()).filter(|c| !event.unchanged().contains(c)).collect();
            assert_eq!(after.keys().collect::<Vec<_>>(), columns, "{}", event.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_go_and_change_without_a_value_in_a_wrong_place() {
    let server = Postgres::shared().await;
    for restarts in [false, true] {
        let bench = Bench::new("columns", server, "CREATE TABLE t (id int PRIMARY KEY, a text, b text)", "FOR TABLE t", &["t"]).await;
        let steps = [
            "INSERT INTO t VALUES (1, 'a1', 'b1')",
            "ALTER TABLE t ADD c int DEFAULT 7",
            "INSERT INTO t VALUES (2, 'a2', 'b2'); UPDATE t SET a = 'a1+' WHERE id = 1",
            "ALTER TABLE t ADD v double precision DEFAULT random()",
            "ALTER TABLE t DROP v",
            "ALTER TABLE t RENAME a TO tmp; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME tmp TO b",
            "INSERT INTO t VALUES (3, 'b3', 'a3', 8)",
            "ALTER TABLE t DROP b",
            "INSERT INTO t VALUES (4, 'a4', 9)",
            "ALTER TABLE t ADD b text",
            "INSERT INTO t VALUES (5, 'a5', 10, 'b5')",
            "ALTER TABLE t ALTER c TYPE numeric(6,2)",
            "INSERT INTO t VALUES (6, 'a6', 11, NULL)",
            "BEGIN; INSERT INTO t VALUES (7, 'in', 1, ''); ALTER TABLE t ALTER id TYPE bigint; INSERT INTO t VALUES (5000000000, 'big', 2, ''); COMMIT",
            "ALTER TABLE t RENAME COLUMN id TO key; UPDATE t SET a = 'x' WHERE key = 7",
        ];
        for step in steps {
            bench.sql(step).await;
            if restarts {
                bench.try_catch_up().await.unwrap_or_else(|e| panic!("{step}: {e}"));
            }
        }
        let events = bench.events().await;
        assert_eq!(
            told(&events),
            [
                r#"t insert {"id":1,"a":"a1","b":"b1"}"#,
                r#"t insert {"id":2,"a":"a2","b":"b2","c":7}"#,
                r#"t update {"id":1,"a":"a1+","b":"b1","c":7}"#,
                r#"t insert {"id":3,"b":"b3","a":"a3","c":8}"#,
                r#"t insert {"id":4,"a":"a4","c":9}"#,
                r#"t insert {"id":5,"a":"a5","c":10,"b":"b5"}"#,
                r#"t insert {"id":6,"a":"a6","c":"11.00","b":null}"#,
                r#"t insert {"id":7,"a":"in","c":"1.00","b":""}"#,
                r#"t insert {"id":5000000000,"a":"big","c":"2.00","b":""}"#,
                r#"t update {"key":7,"a":"x","c":"1.00","b":""}"#,
            ],
            "restarts: {restarts}"
        );
        events_fit_their_layouts(&bench, &events).await;
        assert_eq!(
            history(&bench, "public.t").await,
            [
                "+ c integer",
                "columns in another order",
                "- b text",
                "+ b text",
                "c: integer became numeric(6,2)",
                "id: integer became bigint",
                "- id bigint; + key bigint",
            ],
            "restarts: {restarts}"
        );
        bench.end(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_while_nobody_reads_are_told_in_their_order() {
    let server = Postgres::shared().await;
    let bench = Bench::new("stopped", server, "CREATE TABLE t (id int PRIMARY KEY, a text)", "FOR TABLE t", &["t"]).await;
    bench.each("INSERT INTO t VALUES (1, 'one')").await;
    bench.try_catch_up().await.expect("catches up");
    // The catalogue of now describes the last row only: each row has to be read as its own time saw it.
    bench
        .each("INSERT INTO t VALUES (2, 'two'); ALTER TABLE t ADD b int; INSERT INTO t VALUES (3, 'three', 3)")
        .await
        .each("ALTER TABLE t DROP a; ALTER TABLE t ADD a bool; INSERT INTO t VALUES (4, 4, true); ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET b = 40 WHERE id = 4")
        .await;
    let events = bench.events().await;
    assert_eq!(
        told(&events),
        [
            r#"t insert {"id":1,"a":"one"}"#,
            r#"t insert {"id":2,"a":"two"}"#,
            r#"t insert {"id":3,"a":"three","b":3}"#,
            r#"t insert {"id":4,"b":4,"a":true}"#,
            r#"t update {"id":4,"b":40,"a":true}"#,
        ]
    );
    assert_eq!(events[4].before(), &json!({"id": 4, "b": 4, "a": true}));
    events_fit_their_layouts(&bench, &events).await;
    assert_eq!(history(&bench, "public.t").await, ["+ b integer", "a: text became boolean", "identity default became full"]);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_changes_is_followed() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, n int); CREATE UNIQUE INDEX t_code ON t (code)";
    let bench = Bench::new("identities", server, sql, "FOR TABLE t", &["t"]).await;
    bench.each("INSERT INTO t VALUES (1, 'c', 0); UPDATE t SET n = 1").await;
    bench.each("ALTER TABLE t REPLICA IDENTITY USING INDEX t_code; UPDATE t SET n = 2").await;
    bench.try_catch_up().await.expect("catches up");
    bench.each("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET n = 3; ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET n = 4; DELETE FROM t").await;
    let events = bench.events().await;
    let keys: Vec<(&str, String, String)> = events.iter().map(|e| (e.op(), e.key().to_string(), e.before().to_string())).collect();
    let key = |op, key: &str, before: &str| (op, key.to_owned(), before.to_owned());
    let (id, code) = (r#"{"id":1}"#, r#"{"code":"c"}"#);
    assert_eq!(
        keys,
        [
            key("insert", id, "null"),
            key("update", id, "null"),
            key("update", code, "null"),
            key("update", id, r#"{"id":1,"code":"c","n":2}"#),
            key("update", id, "null"),
            key("delete", id, "null"),
        ]
    );
    assert_eq!(
        history(&bench, "public.t").await,
        [
            "id left the key; code joined the key; identity default became index",
            "id joined the key; code left the key; identity index became full",
            "identity full became default",
        ]
    );
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enum_value_is_text_before_anybody_knows_it() {
    let server = Postgres::shared().await;
    let sql = "CREATE TYPE state AS ENUM ('open', 'closed'); CREATE TABLE t (id int PRIMARY KEY, s state, l state[])";
    let bench = Bench::new("enums", server, sql, "FOR TABLE t", &["t"]).await;
    bench.each("INSERT INTO t VALUES (1, 'open', '{open}')").await;
    bench.try_catch_up().await.expect("catches up");
    bench.each("ALTER TYPE state ADD VALUE 'void' BEFORE 'closed'").await;
    bench.each("INSERT INTO t VALUES (2, 'void', '{void,open}'); ALTER TYPE state RENAME VALUE 'void' TO 'voided'; UPDATE t SET l = NULL WHERE id = 2").await;
    let events = bench.events().await;
    // Not historical: the server prints labels by the catalogue that it reads when it decodes.
    let labels: Vec<&str> = events.iter().filter_map(|e| e.after()["s"].as_str()).collect();
    assert_eq!(labels[0], "open");
    assert!(labels[1..].iter().all(|l| ["void", "voided"].contains(l)), "{labels:?}");
    assert_eq!(history(&bench, "public.t").await, [] as [&str; 0], "a type's labels are not the table's layout");
    let state = bench.control().await;
    let types: Vec<&str> = state.layout("public.t").expect("known").columns.iter().map(|c| c.type_name.as_str()).collect();
    assert_eq!(types, ["integer", "state", "_state"]);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_keeps_its_name_and_a_successor_takes_it() {
    let server = Postgres::shared().await;
    let sql = "CREATE SCHEMA archive; CREATE TABLE t (id int PRIMARY KEY, n int)";
    let bench = Bench::new("renames", server, sql, "FOR TABLE t", &["t"]).await;
    bench.each("INSERT INTO t VALUES (1, 1); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (2, 2); ALTER TABLE u SET SCHEMA archive; INSERT INTO archive.u VALUES (3, 3)").await;
    // A run that was up all the while knows the table by its OID.
    bench.catch_up_unchecked().await.expect("catches up");
    let events = bench.read().await;
    assert_eq!(told(&events), (1..4).map(|n| format!(r#"t insert {{"id":{n},"n":{n}}}"#)).collect::<Vec<_>>());
    assert_eq!(history(&bench, "public.t").await, ["renamed to public.u in the database", "renamed to archive.u in the database"]);
    events_fit_their_layouts(&bench, &events).await;

    // The next start is told: nothing of that name is there.
    let error = bench.try_catch_up().await.expect_err("no such table");
    assert_eq!(error.code(), "capture.table_missing");

    // A new table takes the name, as in a swap: it is another table, and the old one is captured no more.
    bench.each("CREATE TABLE t (id int PRIMARY KEY, fresh bool); ALTER PUBLICATION p ADD TABLE t; INSERT INTO t VALUES (1, true); INSERT INTO archive.u VALUES (4, 4); INSERT INTO t VALUES (2, false)").await;
    let events = bench.events().await;
    assert_eq!(told(&events)[3..], [r#"t insert {"id":1,"fresh":true}"#, r#"t insert {"id":2,"fresh":false}"#]);
    let last = history(&bench, "public.t").await.pop().expect("a change");
    assert!(last.starts_with("another table under this name: OID "), "{last}");
    events_fit_their_layouts(&bench, &events).await;
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_table_is_another_one() {
    let server = Postgres::shared().await;
    let bench = Bench::new("recreated", server, "CREATE TABLE t (id int PRIMARY KEY, n int)", "FOR ALL TABLES", &["t"]).await;
    bench.each("INSERT INTO t VALUES (1, 1)").await;
    bench.try_catch_up().await.expect("catches up");
    bench
        .each("INSERT INTO t VALUES (2, 2); DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 100)")
        .await;
    let events = bench.events().await;
    assert_eq!(told(&events), [r#"t insert {"id":1,"n":1}"#, r#"t insert {"id":2,"n":2}"#, r#"t insert {"id":1,"n":100}"#]);
    assert_ne!(events[1].body["layout"], events[2].body["layout"], "the same columns, another table");
    let changes = history(&bench, "public.t").await;
    assert!(changes.len() == 1 && changes[0].starts_with("another table under this name: OID "), "{changes:?}");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_their_root_whatever_is_attached() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE sales (id int, at date, n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
               CREATE TABLE sales_1 PARTITION OF sales FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
               -- The columns of this one stand in another order, with a hole.
               CREATE TABLE sales_2 (n int, gone text, at date NOT NULL, id int NOT NULL, PRIMARY KEY (id, at));
               ALTER TABLE sales_2 DROP gone;";
    let bench = Bench::new("partitions", server, sql, "FOR TABLE sales WITH (publish_via_partition_root = true)", &["sales"]).await;
    bench.each("INSERT INTO sales VALUES (1, '2026-01-05', 1)").await;
    if bench.major >= 15 {
        // Version 14 goes on taking a table for unpublished that it sent nothing of before it was attached, until the next session.
        bench.each("INSERT INTO sales_2 VALUES (20, '2026-02-02', 2)").await;
    }
    bench.each("ALTER TABLE sales ATTACH PARTITION sales_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')").await;
    bench.each("INSERT INTO sales VALUES (3, '2026-02-03', 3); UPDATE sales_2 SET n = 4 WHERE id = 3").await;
    // Over a partition's border an update is a delete and an insert in the server itself.
    bench.each("UPDATE sales SET at = '2026-02-05' WHERE id = 1; UPDATE sales SET n = 9 WHERE id = 1").await;
    // Version 14 goes on sending what a partition is given after it was detached, until the next session.
    let given = if bench.major >= 15 { "INSERT INTO sales_2 VALUES (50, '2026-02-09', 5);" } else { "" };
    bench.each(&format!("ALTER TABLE sales DETACH PARTITION sales_2; {given} DROP TABLE sales_2")).await;
    bench.each("INSERT INTO sales VALUES (6, '2026-01-06', 6)").await;
    let events = bench.events().await;
    assert!(events.iter().all(|e| e.table() == "sales"), "{:?}", told(&events));
    let short: Vec<(String, Value)> = events.iter().map(|e| (e.op().to_owned(), e.key().clone())).collect();
    let key = |op: &str, id: i32, at: &str| (op.to_owned(), json!({"id": id, "at": at}));
    assert_eq!(
        short,
        [
            key("insert", 1, "2026-01-05"),
            key("insert", 3, "2026-02-03"),
            key("update", 3, "2026-02-03"),
            key("delete", 1, "2026-01-05"),
            key("insert", 1, "2026-02-05"),
            key("update", 1, "2026-02-05"),
            key("insert", 6, "2026-01-06"),
        ]
    );
    assert_eq!(events[2].after(), &json!({"id": 3, "at": "2026-02-03", "n": 4}), "by name, not by place");
    events_fit_their_layouts(&bench, &events).await;
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_says_what_is_captured_from_then_on() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);";
    let mut bench = Bench::new("membership", server, sql, "FOR TABLE a", &["a"]).await;
    bench.each("INSERT INTO b VALUES (1, 1); INSERT INTO a VALUES (1, 1)").await;
    // With this backlog pending a table joins: what was before is not in the stream, and the start says nothing wrong.
    bench.each("ALTER PUBLICATION p ADD TABLE b").await.each("INSERT INTO b VALUES (2, 2)").await;
    bench.source.tables.push(tillstream::config::SourceTable { schema: "public".to_owned(), table: "b".to_owned(), partition_by: None });
    let events = bench.events().await;
    assert_eq!(told(&events), [r#"a insert {"id":1,"n":1}"#, r#"b insert {"id":2,"n":2}"#]);
    // A table that leaves: the start refuses, since changes are being missed.
    bench.each("ALTER PUBLICATION p DROP TABLE b; INSERT INTO b VALUES (3, 3)").await;
    let error = bench.try_catch_up().await.expect_err("b is not published");
    assert_eq!(error.code(), "capture.publication_lacks_table");
    assert!(error.to_string().contains("public.b"), "{error}");
    bench.each("ALTER PUBLICATION p ADD TABLE b").await.each("ALTER PUBLICATION p SET (publish = 'insert')").await;
    bench.each("INSERT INTO b VALUES (4, 4); UPDATE b SET n = 40 WHERE id = 4; DELETE FROM b").await;
    let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await.expect("starts");
    assert!(
        facts.warnings.iter().any(|w| w.code == "capture.publication_partial" && w.what.contains("update, delete, truncate")),
        "{:?}",
        facts.warnings
    );
    let events = bench.events().await;
    assert_eq!(told(&events)[2..], [r#"b insert {"id":4,"n":4}"#]);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filters_and_column_lists_cut_what_is_sent() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE f (id int PRIMARY KEY, open bool NOT NULL, n int); ALTER TABLE f REPLICA IDENTITY FULL;
               CREATE TABLE c (id int PRIMARY KEY, shown text, hidden text);";
    let probe = Postgres::shared().await.connect("postgres").await;
    let version: i32 = probe.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.expect("a version").get(0);
    if version < 15 {
        // Neither exists: the publication cannot be made.
        return;
    }
    let bench = Bench::new("filters", server, sql, "FOR TABLE f WHERE (open), c (id, shown)", &["f", "c"]).await;
    bench.sql("INSERT INTO f VALUES (1, true, 0), (2, false, 0); UPDATE f SET n = 1; UPDATE f SET open = NOT open; UPDATE f SET n = 2; DELETE FROM f").await;
    bench.sql("INSERT INTO c VALUES (1, 'seen', 'secret'); UPDATE c SET hidden = 'more secret'; UPDATE c SET shown = 'x'").await;
    let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await.expect("starts");
    assert!(facts.warnings.iter().any(|w| w.code == "capture.publication_row_filter"), "{:?}", facts.warnings);
    let events = bench.events().await;
    let short: Vec<String> = events.iter().map(|e| format!("{} {} {}", e.table(), e.op(), e.after())).collect();
    assert_eq!(
        short,
        [
            r#"f insert {"id":1,"open":true,"n":0}"#,
            r#"f update {"id":1,"open":true,"n":1}"#,
            // An update across the filter is an insert or a delete.
            "f delete null",
            r#"f insert {"id":2,"open":true,"n":1}"#,
            r#"f update {"id":2,"open":true,"n":2}"#,
            "f delete null",
            r#"c insert {"id":1,"shown":"seen"}"#,
            r#"c update {"id":1,"shown":"seen"}"#,
            r#"c update {"id":1,"shown":"x"}"#,
        ]
    );
    events_fit_their_layouts(&bench, &events).await;
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_absent_unless_they_are_published() {
    let server = Postgres::shared().await;
    let sql = "CREATE TABLE g (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
               CREATE TABLE listed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);";
    let bench = Bench::new("generated", server, sql, "FOR TABLE g", &["g"]).await;
    bench.sql("INSERT INTO g VALUES (1, 21)").await;
    let events = bench.events().await;
    assert_eq!(events[0].after(), &json!({"id": 1, "a": 21}), "absent, not null");
    let major = bench.major;
    bench.end(server).await;
    if major >= 18 {
        let publication = "FOR TABLE g, listed (id, twice) WITH (publish_generated_columns = stored)";
        let sql = format!("{sql} ALTER TABLE g ADD v int GENERATED ALWAYS AS (a + 1) VIRTUAL");
        let bench = Bench::new("generated", server, &sql, publication, &["g", "listed"]).await;
        bench.sql("INSERT INTO g VALUES (1, 21); UPDATE g SET a = 5; INSERT INTO listed VALUES (1, 4)").await;
        let events = bench.events().await;
        assert_eq!(
            told(&events),
            [r#"g insert {"id":1,"a":21,"twice":42}"#, r#"g update {"id":1,"a":5,"twice":10}"#, r#"listed insert {"id":1,"twice":8}"#,]
        );
        events_fit_their_layouts(&bench, &events).await;
        // The catalogue describes the same table as the stream: a backfill's rows have the live rows' columns.
        let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await.expect("starts");
        for (table, configured) in facts.tables.iter().zip(&bench.source.tables) {
            let published = facts.publication.table("public", &table.table).expect("published");
            let schema = table.schema(published, configured, &bench.source.columns).expect("fits");
            let live = events.iter().find(|e| e.table() == table.table).expect("an event");
            assert_eq!(schema.layout.to_string(), live.body["layout"], "{}", table.table);
        }
        bench.end(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_younger_than_the_backlog_is_explained() {
    let server = Postgres::shared().await;
    let bench = Bench::new("younger", server, "CREATE TABLE t (id int PRIMARY KEY)", "FOR TABLE t", &["t"]).await;
    bench.each("DROP PUBLICATION p; INSERT INTO t VALUES (1); CREATE PUBLICATION p FOR TABLE t; INSERT INTO t VALUES (2)").await;
    if bench.major < 18 {
        // The server decodes the first row as of its own time, when there was no such publication.
        let error = bench.try_catch_up().await.expect_err("no publication then");
        assert_eq!(error.code(), "capture.publication_missing");
        let tillstream::capture::CaptureError::Definite { what, fix, .. } = error else { panic!("definite") };
        assert!(what.contains("at the point the slot streams from") && fix.contains("publication first"), "{what}; {fix}");
    } else {
        assert_eq!(told(&bench.events().await), [r#"t insert {"id":2}"#], "from where it exists");
    }
    bench.end(server).await;
}

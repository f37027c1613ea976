//! The coverage monitor: what the stream does not hold is named, since the stream itself falls silent.

use std::collections::HashMap;

use tillstream::capture::catalog::{Catalog, check_start};
use tillstream::config::SourceTable;
use tillstream::ops::coverage::{self, Start};

use crate::harness::Postgres;
use crate::matrix::Bench;

async fn codes(bench: &Bench, start: &Start) -> Vec<(String, String)> {
    let catalog = Catalog::connect(&bench.source, "test", "coverage").await.expect("connects");
    let seen = coverage::look(&catalog, &bench.source, start).await.expect("looks");
    coverage::judge(&bench.source, start, &seen).into_iter().map(|gap| (gap.code.to_owned(), gap.of)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_captured_is_named() {
    let server = Postgres::shared().await;
    let sql =
        "CREATE TABLE a (id int PRIMARY KEY, n int, hidden text); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
               CREATE TABLE d (id int PRIMARY KEY); CREATE TABLE old_neighbour (id int)";
    let mut bench = Bench::new("coverage", server, sql, "FOR TABLE a, b, c, d", &["a", "b", "c", "d"]).await;
    let facts = check_start(&bench.source, "test").await.expect("starts");
    let mut start = Start { oids: facts.oids(), neighbours: None };
    let catalog = Catalog::connect(&bench.source, "test", "coverage").await.expect("connects");
    start.neighbours = Some(coverage::look(&catalog, &bench.source, &start).await.expect("looks").neighbours);
    let gap = |code: &str, of: &str| (format!("coverage.{code}"), of.to_owned());
    assert_eq!(codes(&bench, &start).await, [], "all is well");

    bench.sql("ALTER PUBLICATION p DROP TABLE b; DROP TABLE c; DROP TABLE d; CREATE TABLE d (id int PRIMARY KEY); CREATE TABLE fresh (id int)").await;
    bench.sql("ALTER PUBLICATION p SET (publish = 'insert, update, delete')").await;
    assert_eq!(
        codes(&bench, &start).await,
        [
            gap("not_published", "public.b"),
            gap("table_missing", "public.c"),
            // A dropped table leaves its publication, and its successor does not join it.
            gap("not_published", "public.d"),
            gap("operation_missing", "p"),
            gap("table_recreated", "public.d"),
            gap("new_table", "public.fresh"),
        ]
    );

    bench.sql("ALTER TABLE b RENAME TO bb; DROP TABLE fresh; ALTER PUBLICATION p SET TABLE bb; ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')").await;
    bench.source.tables.truncate(2);
    assert_eq!(
        codes(&bench, &start).await,
        [gap("not_published", "public.a"), gap("table_renamed", "public.b")],
        "renamed, and captured still"
    );
    bench.sql("ALTER PUBLICATION p DROP TABLE bb").await;
    assert_eq!(codes(&bench, &start).await[0], gap("publication_emptied", "p"));
    bench.sql("DROP PUBLICATION p").await;
    assert_eq!(codes(&bench, &start).await, [gap("publication_missing", "p")]);

    if bench.major >= 15 {
        bench.source.tables = vec![SourceTable { schema: "public".to_owned(), table: "a".to_owned(), partition_by: None }];
        bench.sql("CREATE PUBLICATION p FOR TABLE a (id, n) WHERE (id > 5)").await;
        (start.oids, start.neighbours) = (HashMap::new(), None);
        assert_eq!(codes(&bench, &start).await, [gap("row_filter", "public.a"), gap("column_list", "public.a")]);
        bench.source.columns.hold_new = true;
        assert_eq!(codes(&bench, &start).await.pop(), Some(gap("column_held", "public.a")));
    }
    bench.end(server).await;
}

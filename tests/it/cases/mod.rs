//! What PostgreSQL's own tests of logical decoding and of subscriptions do to tables, done again and captured.
//!
//! Each case is a script in our words after one of those tests. The oracle are triggers that write every change into a history, in
//! the transaction of the change (`schemas/pos/history.sql`): decoded events have to tell the same history of every key, and to end
//! in the same tables.

mod list;

use std::collections::BTreeMap;

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::{Database, Postgres, root};
use crate::matrix::{Bench, Captured};
use list::Case;

/// Gives a table the oracle's triggers; its key is the one that the stream names.
const ATTACH: &str = r#"
    CREATE FUNCTION tillstream_oracle.attach(t regclass) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE arguments text;
    BEGIN
        SELECT string_agg(quote_literal(name), ', ' ORDER BY place) INTO arguments FROM (
            SELECT c.relname AS name, 0 AS place FROM pg_class c WHERE c.oid = t
            UNION ALL
            SELECT a.attname, k.place FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid
                AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
                unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, place)
            JOIN pg_attribute a ON a.attrelid = t AND a.attnum = k.attnum WHERE c.oid = t) names;
        EXECUTE format('CREATE TRIGGER tillstream_oracle AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION tillstream_oracle.record(%s)', t, arguments);
        EXECUTE format('CREATE TRIGGER tillstream_oracle_truncate AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION tillstream_oracle.record(%s)', t, arguments);
    END $$;
"#;

/// One entry of a key's history: what happened, and the row as it is then.
type Entry = (String, Option<BTreeMap<String, String>>);

/// A value as text, however the two sides type it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn fields(value: &Value) -> BTreeMap<String, String> {
    value.as_object().map(|o| o.iter().map(|(k, v)| (k.clone(), text(v))).collect()).unwrap_or_default()
}

/// A key as text, in the order of its columns' names; empty where there is none.
fn key(value: &Value) -> String {
    fields(value).into_iter().map(|(k, v)| format!("{k}={v} ")).collect()
}

/// What the events amount to.
#[derive(Default)]
struct Replay {
    history: BTreeMap<(String, String), Vec<Entry>>,
    rows: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// Rows of tables without a key.
    loose: BTreeMap<String, Vec<BTreeMap<String, String>>>,
}

impl Replay {
    fn take(&mut self, event: &Captured) {
        let table = event.table().to_owned();
        let place = (table.clone(), key(event.key()));
        if event.op() == "truncate" {
            self.rows.retain(|(t, _), _| *t != table);
            self.loose.remove(&table);
            self.history.entry((table, "truncate".to_owned())).or_default().push(("truncate".to_owned(), None));
            return;
        }
        let mut row = fields(event.after());
        let was = self.rows.get(&place).cloned().unwrap_or_default();
        for name in event.unchanged() {
            // Of a key change's insert the value is under the old key; the table's final contents judge it.
            if let Some(value) = was.get(name) {
                row.insert(name.to_owned(), value.clone());
            }
        }
        let after = (event.op() != "delete").then_some(row);
        self.history.entry(place.clone()).or_default().push((event.op().to_owned(), after.clone()));
        if event.key().is_null() {
            let rows = self.loose.entry(table).or_default();
            if !event.before().is_null() {
                let before = fields(event.before());
                let at = rows.iter().position(|r| *r == before).expect("the old row is there");
                rows.swap_remove(at);
            }
            rows.extend(after);
        } else if let Some(row) = after {
            self.rows.insert(place, row);
        } else {
            assert!(self.rows.remove(&place).is_some() || event.op() == "delete");
        }
    }

    fn table(&self, name: &str) -> Vec<BTreeMap<String, String>> {
        let mut rows: Vec<_> = self.rows.iter().filter(|((t, _), _)| t == name).map(|(_, row)| row.clone()).collect();
        rows.extend(self.loose.get(name).into_iter().flatten().cloned());
        rows.sort();
        rows
    }
}

/// The oracle's history, by table and key.
async fn oracle(client: &Client) -> BTreeMap<(String, String), Vec<Entry>> {
    let sql = "SELECT tbl, op, key::text, row::text FROM tillstream_oracle.history ORDER BY seq";
    let mut found: BTreeMap<(String, String), Vec<Entry>> = BTreeMap::new();
    let parse = |text: Option<String>| text.map(|t| serde_json::from_str::<Value>(&t).expect("JSON")).unwrap_or_default();
    for row in client.query(sql, &[]).await.expect("the history") {
        let (table, op): (String, String) = (row.get(0), row.get(1));
        let (of_key, of_row) = (parse(row.get(2)), parse(row.get(3)));
        let place = if op == "truncate" { (table, op.clone()) } else { (table, key(&of_key)) };
        found.entry(place).or_default().push((op, (!of_row.is_null()).then(|| fields(&of_row))));
    }
    found
}

/// The oracle knows columns that are not published; compare what the event has.
fn same(found: &Entry, expected: &Entry) -> bool {
    let row = match (&found.1, &expected.1) {
        (None, None) => true,
        (Some(found), Some(expected)) => found.iter().all(|(name, value)| expected.get(name).is_none_or(|e| e == value)),
        _ => false,
    };
    found.0 == expected.0 && row
}

async fn run(server: &Postgres, case: &Case, streaming: bool) {
    let database = Database::empty(server, "cases").await;
    let client = database.connect().await;
    let history = std::fs::read_to_string(root().join("schemas/pos/history.sql")).expect("the oracle is there");
    client.batch_execute(&history).await.expect("the oracle");
    client.batch_execute(ATTACH).await.expect("the oracle");
    // Whatever is more than this the server spills to disk.
    client.batch_execute(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", database.name)).await.expect("a setting");
    let attach: String = case.tables.iter().map(|t| format!("SELECT tillstream_oracle.attach('{t}');")).collect();
    let mut bench = Bench::over(database, "cases", &format!("{}; {attach}", case.setup), case.publication, case.tables).await;
    bench.source.streaming.on = streaming;
    let sessions = [bench.database.connect().await, bench.database.connect().await];
    for (session, sql) in case.steps {
        match session {
            // Captured so far, by a run that ends there: the next one begins in the middle.
            9 => bench.try_catch_up().await.unwrap_or_else(|e| panic!("{}: {e}", case.name)),
            // An error is the point of it.
            8 => {
                sessions[0].batch_execute(sql).await.expect_err("it fails");
                sessions[0].batch_execute("ROLLBACK").await.expect("ends it");
            }
            n => sessions[*n].batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}: {:?}", case.name, e.as_db_error())),
        }
    }
    let events = bench.events().await;
    let mut replay = Replay::default();
    for event in events.iter().filter(|e| e.op() != "message") {
        replay.take(event);
    }
    let expected = oracle(&bench.client).await;
    // Rows without a key have one history together: the oracle's key is the whole row, the stream's is none.
    for table in case.tables {
        let keyed =
            |history: &BTreeMap<(String, String), Vec<Entry>>| history.keys().filter(|(t, _)| t == table).cloned().collect::<Vec<_>>();
        let loose = replay.loose.contains_key(*table) || case.keyless.contains(table);
        if loose {
            // Without a key an update is of another row than before, which the oracle tells as two changes.
            let two = |op: &str| if op == "update" { vec!["delete".to_owned(), "insert".to_owned()] } else { vec![op.to_owned()] };
            let ops = |h: &BTreeMap<(String, String), Vec<Entry>>| {
                let mut ops: Vec<String> = keyed(h).iter().flat_map(|place| h[place].iter().flat_map(|e| two(&e.0))).collect();
                ops.sort();
                ops
            };
            assert_eq!(ops(&replay.history), ops(&expected), "{}: {table}", case.name);
            continue;
        }
        assert_eq!(keyed(&replay.history), keyed(&expected), "{}: keys of {table}", case.name);
        for place in keyed(&expected) {
            let (found, expected) = (&replay.history[&place], &expected[&place]);
            let fits = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| same(f, e));
            assert!(fits, "{}: the history of {place:?}\n  events {found:?}\n  oracle {expected:?}", case.name);
        }
    }
    for table in case.tables {
        let rows = bench.client.query(&format!("SELECT to_jsonb(t)::text FROM {table} t"), &[]).await.expect("rows");
        let mut expected: Vec<_> = rows.iter().map(|row| fields(&serde_json::from_str(row.get(0)).expect("JSON"))).collect();
        let mut found = replay.table(table);
        // Columns that every event knew and the table still has: one that was added has its default in old rows, untold.
        let common = |name: &String, rows: &[BTreeMap<String, String>]| rows.iter().all(|row| row.contains_key(name));
        let columns: Vec<String> =
            found.first().into_iter().flat_map(|row| row.keys()).filter(|c| common(c, &found) && common(c, &expected)).cloned().collect();
        for row in expected.iter_mut().chain(&mut found) {
            row.retain(|name, _| columns.contains(name));
        }
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{}: {table} in the end", case.name);
    }
    assert!(events.len() >= case.events, "{}: {} events", case.name, events.len());
    println!("{:<60} {:>6} events", case.name, events.len());
    drop(sessions);
    bench.end(server).await;
}

async fn run_all(server: &Postgres, cases: &[Case]) {
    run_each(server, cases, false).await;
}

async fn run_each(server: &Postgres, cases: &[Case], streaming: bool) {
    let probe = server.connect("postgres").await;
    let version: i32 = probe.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.expect("a version").get(0);
    for case in cases.iter().filter(|case| version >= case.since) {
        run(server, case, streaming).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_identities() {
    run_all(Postgres::shared().await, list::ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_and_subtransactions() {
    run_all(Postgres::shared().await, list::TRANSACTIONS).await;
}

/// What is larger than 64 kB comes before it commits.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_come_before_they_commit() {
    for cases in [list::TRANSACTIONS, list::ROWS, list::DEFINITIONS, list::PUBLICATIONS] {
        run_each(Postgres::shared().await, cases, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_among_changes() {
    run_all(Postgres::shared().await, list::DEFINITIONS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_filters_and_publications() {
    run_all(Postgres::shared().await, list::PUBLICATIONS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_come_when_they_commit() {
    let server = Postgres::private("prepared", "max_prepared_transactions = 10").await;
    run_all(&server, list::PREPARED).await;
}

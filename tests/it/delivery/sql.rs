//! The `sql` sink against a real PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tillstream::control;
use tillstream::delivery::{ConnectorState, Mode};
use tillstream::journal::Journal;
use tillstream_connectors::registry::{Registry, Target};
use tillstream_connectors::sink::{LaneId, OnDelete};
use tillstream_schemas::Op;
use tokio_postgres::Client;

use super::pos::{Capture, Change, catch_up, connector, delete, insert, journal, start, truncate, until, update};
use crate::harness::{Database, Postgres};

const MARKS: &str = "CREATE TABLE tillstream_mark (connector text NOT NULL, partition integer NOT NULL, lane integer NOT NULL, \
     mark bytea NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (connector, partition, lane))";
const TABLE_A: &str = "CREATE TABLE a (id bigint PRIMARY KEY, qty integer NOT NULL CHECK (qty < 1000), note text, \
     _version text COLLATE \"C\" NOT NULL, _deleted boolean NOT NULL DEFAULT false, writes integer NOT NULL DEFAULT 0)";
/// Counts how often each row was written.
const COUNT_WRITES: &str = "CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS \
     $$BEGIN NEW.writes := COALESCE(OLD.writes, 0) + 1; RETURN NEW; END$$; \
     CREATE TRIGGER count_writes BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION count_writes()";

pub(super) async fn database() -> (Database, Client) {
    let server = Postgres::shared().await;
    let database = Database::empty(server, "delivery").await;
    let client = database.connect().await;
    for sql in [MARKS, TABLE_A, COUNT_WRITES] {
        client.batch_execute(sql).await.expect(sql);
    }
    (database, client)
}

pub(super) fn target(database: &Database, more: Value) -> Arc<dyn Target> {
    let mut block = json!({"url": database.url, "tables": {"public.a": {"key": ["id"], "columns": ["qty"]}}});
    block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
    Registry::built_in().get("sql").expect("built in").validate(&block, false).expect("valid")
}

/// `id:qty` of living rows and `id:gone` of tombstones.
pub(super) async fn contents(client: &Client) -> String {
    let sql = "SELECT COALESCE(string_agg(id || ':' || CASE WHEN _deleted THEN 'gone' ELSE qty::text END, ' ' ORDER BY id), '') FROM a";
    client.query_one(sql, &[]).await.expect("reads").get(0)
}

async fn new_journal(partitions: u16) -> (tempfile::TempDir, Arc<dyn Journal>, Capture) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), partitions).await;
    let capture = Capture::new(journal.as_ref(), 1).await;
    (dir, journal, capture)
}

/// Without the other tables of the tests' connectors.
pub(super) fn only_a(name: &str, target: Arc<dyn Target>) -> tillstream::config::Connector {
    tillstream::config::Connector { tables: vec![("public".into(), "a".into())], kind: "sql", ..connector(name, target) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_follow_the_source_and_deleted_ones_stay_as_tombstones() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[insert("a", 1, 1), insert("a", 2, 2), insert("a", 3, 3)]).await;
    let first = catch_up(&journal, vec![only_a("inventory", target(&database, json!({})))]).await.expect("catches up");
    assert_eq!(first.connector("inventory").expect("there").delivered.load(Ordering::Relaxed), 3);
    capture.commit(0, &[update("a", 1, 10), delete("a", 2), insert("a", 4, 4)]).await;
    let stats = catch_up(&journal, vec![only_a("inventory", target(&database, json!({})))]).await.expect("catches up");
    assert_eq!(contents(&client).await, "1:10 2:gone 3:3 4:4");
    assert_eq!(stats.connector("inventory").expect("there").delivered.load(Ordering::Relaxed), 3);

    // A later insert revives the row, under the delete that is older.
    capture.commit(0, &[insert("a", 2, 22), truncate("a"), insert("a", 5, 5)]).await;
    catch_up(&journal, vec![only_a("inventory", target(&database, json!({})))]).await.expect("catches up");
    assert_eq!(contents(&client).await, "1:gone 2:gone 3:gone 4:gone 5:5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_really_go_where_that_is_asked_for() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[insert("a", 1, 1), insert("a", 2, 2), delete("a", 1), delete("a", 9)]).await;
    let mut connector = only_a("inventory", target(&database, json!({})));
    connector.on_delete = OnDelete::Delete;
    catch_up(&journal, vec![connector]).await.expect("catches up");
    assert_eq!(contents(&client).await, "2:2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_every_row_is_written_by_each_change_once() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(2).await;
    for round in 0..5 {
        for id in 0..60 {
            let change = if round == 0 { insert("a", id, 0) } else { update("a", id, round) };
            capture.write(u16::try_from(id % 2).expect("small"), &[change]).await;
        }
    }
    capture.flush().await;
    let connectors = || {
        let mut connector = only_a("inventory", target(&database, json!({})));
        connector.delivery.batch_items_max = 1;
        vec![connector]
    };
    let mut repeats = 0;
    for part in 1..5u64 {
        let running = start(&journal, connectors(), Mode::Continuous);
        let stats = running.stats.connector("inventory").expect("there").clone();
        until("some are delivered", || stats.delivered.load(Ordering::Relaxed) >= 40 + part).await;
        running.kill().await;
        repeats += stats.absorbed.load(Ordering::Relaxed);
    }
    let stats = catch_up(&journal, connectors()).await.expect("catches up");
    repeats += stats.connector("inventory").expect("there").absorbed.load(Ordering::Relaxed);
    let wrong: i64 = client.query_one("SELECT count(*) FROM a WHERE qty <> 4 OR writes <> 5", &[]).await.expect("reads").get(0);
    let rows: i64 = client.query_one("SELECT count(*) FROM a", &[]).await.expect("reads").get(0);
    assert_eq!((rows, wrong), (60, 0));
    assert_eq!(repeats, 0, "each lane goes on exactly behind its mark");
}

/// What the source inserted is inserted; a batch in which some is there already is written all the same, and only what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn inserted_rows_that_are_there_already_are_absorbed_and_the_others_written() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    for id in 0..60 {
        capture.write(0, &[insert("a", id, 7)]).await;
    }
    capture.flush().await;
    catch_up(&journal, vec![only_a("inventory", target(&database, json!({})))]).await.expect("catches up");
    client.execute("DELETE FROM a WHERE id % 3 = 0", &[]).await.expect("deletes");
    // Another name, another mark: every event comes again.
    let stats = catch_up(&journal, vec![only_a("again", target(&database, json!({})))]).await.expect("catches up");
    let again = stats.connector("again").expect("there");
    assert_eq!((again.absorbed.load(Ordering::Relaxed), again.delivered.load(Ordering::Relaxed)), (40, 20));
    let wrong: i64 = client.query_one("SELECT count(*) FROM a WHERE qty <> 7 OR writes <> 1", &[]).await.expect("reads").get(0);
    let rows: i64 = client.query_one("SELECT count(*) FROM a", &[]).await.expect("reads").get(0);
    assert_eq!((rows, wrong), (60, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_row_is_refused_alone() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    let mut rows: Vec<Change> = (0..50).map(|id| insert("a", id, id)).collect();
    rows[20] = insert("a", 20, 5000);
    rows[30] = Change { after: Some("{\"id\":30,\"qty\":\"many\"}".into()), ..insert("a", 30, 0) };
    capture.commit(0, &rows).await;
    let mut connector = only_a("inventory", target(&database, json!({})));
    connector.delivery.batch_items_max = 100;
    connector.delivery.linger = Duration::from_millis(50);
    catch_up(&journal, vec![connector]).await.expect("catches up");
    let count: i64 = client.query_one("SELECT count(*) FROM a WHERE writes = 1", &[]).await.expect("reads").get(0);
    assert_eq!(count, 48);
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let mut letters: Vec<_> = state.dead_letters().map(|l| (l.letter.code.clone(), l.letter.message.clone())).collect();
    letters.sort();
    let text = format!("{letters:?}");
    assert_eq!(letters.len(), 2);
    assert!(text.contains("sql.state_22p02") && text.contains("sql.state_23514") && text.contains("constraint a_qty_check"), "{text}");
    assert!(!text.contains("many") && !text.contains("5000"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_waits_for_its_parent_in_another_lane() {
    let (database, client) = database().await;
    client
        .batch_execute("CREATE TABLE b (id bigint PRIMARY KEY REFERENCES a, qty integer, _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false)")
        .await
        .expect("creates");
    let (_dir, journal, mut capture) = new_journal(2).await;
    // Children stand in one partition, parents in the other, so nothing orders them.
    let children: Vec<Change> = (0..20).map(|id| insert("b", id, 1)).collect();
    capture.commit(0, &children).await;
    let tables = json!({"tables": {"public.a": {"key": ["id"], "columns": ["qty"]}, "public.b": {"key": ["id"], "columns": ["qty"]}}});
    let mut connector = only_a("inventory", target(&database, tables));
    connector.tables.push(("public".into(), "b".into()));
    let running = start(&journal, vec![connector], Mode::Continuous);
    let stats = running.stats.connector("inventory").expect("there").clone();
    until("children wait", || stats.retries.load(Ordering::Relaxed) > 0).await;
    let parents: Vec<Change> = (0..20).map(|id| insert("a", id, 1)).collect();
    capture.commit(1, &parents).await;
    until("all are there", || stats.delivered.load(Ordering::Relaxed) == 40).await;
    running.stop().await.expect("stops");
    let count: i64 = client.query_one("SELECT count(*) FROM b", &[]).await.expect("reads").get(0);
    assert_eq!(count, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_it_was() {
    let (database, client) = database().await;
    client
        .batch_execute(
            "CREATE TYPE tier AS ENUM ('gold', 'bronze'); CREATE DOMAIN money_amount AS numeric(12,2); \
             CREATE TABLE typed (id uuid PRIMARY KEY, n numeric, f double precision, b boolean, t timestamptz, d date, j jsonb, js json, x bytea, \
             a text[], m integer[], e tier, v varchar(3), c char(4), q \"char\", o money_amount, \"Mixed Name\" text, big text, \
             _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false)",
        )
        .await
        .expect("creates");
    let columns = ["n", "f", "b", "t", "d", "j", "js", "x", "a", "m", "e", "v", "c", "q", "o", "Mixed Name", "big"];
    let tables = json!({"tables": {"public.typed": {"key": ["id"], "columns": columns}}});
    let after = r#"{"id":"0b0d3d3c-0000-4000-8000-000000000001","n":"123456789012345678901234567890.10","f":"NaN","b":true,
        "t":"2026-11-22T10:00:00.123456Z","d":"2026-11-22","j":{"a":[1.10,{"b":null}]},"js":"text","x":"AAH/","a":["x","y\"z",null,"a,b"],
        "m":[[1,2],[3,4]],"e":"gold","v":"abc","c":"ab","q":"k","o":"12.50","Mixed Name":"é\"\\","big":"large"}"#;
    let row = |op, after: &str| Change {
        op,
        table: "typed",
        key: r#"{"id":"0b0d3d3c-0000-4000-8000-000000000001"}"#.into(),
        after: Some(after.to_owned()),
    };
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[row(Op::Insert, after)]).await;
    let mut connector = only_a("inventory", target(&database, tables));
    connector.tables = vec![("public".into(), "typed".into())];
    catch_up(&journal, vec![connector.clone()]).await.expect("catches up");
    let shown: String =
        client.query_one("SELECT (to_jsonb(typed) - '{_version,_deleted}'::text[])::text FROM typed", &[]).await.expect("reads").get(0);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let expected = json!({"id": "0b0d3d3c-0000-4000-8000-000000000001", "n": shown["n"], "f": "NaN", "b": true, "t": shown["t"],
        "d": "2026-11-22", "j": {"a": [1.10, {"b": null}]}, "js": "text", "x": "\\x0001ff", "a": ["x", "y\"z", null, "a,b"], "m": [[1, 2], [3, 4]],
        "e": "gold", "v": "abc", "c": "ab  ", "q": "k", "o": 12.50, "Mixed Name": "é\"\\", "big": "large"});
    assert_eq!(shown, expected);
    let exact: (String, String, String) = {
        let row = client.query_one("SELECT n::text, (t AT TIME ZONE 'UTC')::text, o::text FROM typed", &[]).await.expect("reads");
        (row.get(0), row.get(1), row.get(2))
    };
    assert_eq!(exact, ("123456789012345678901234567890.10".into(), "2026-11-22 10:00:00.123456".into(), "12.50".into()));

    // A text that is too long for its column is refused, not cut.
    capture.commit(0, &[row(Op::Update, &after.replace("\"abc\"", "\"abcd\""))]).await;
    catch_up(&journal, vec![connector]).await.expect("catches up");
    let v: String = client.query_one("SELECT v FROM typed", &[]).await.expect("reads").get(0);
    assert_eq!(v, "abc");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().map(|l| l.letter.code.as_str()).collect::<Vec<_>>(), ["sql.state_22001"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_large_value_is_left_alone() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    let noted = |op, qty: u64, note: Option<&str>| {
        let note = note.map(|n| format!(",\"note\":\"{n}\"")).unwrap_or_default();
        Change { op, after: Some(format!("{{\"id\":1,\"qty\":{qty}{note}}}")), ..insert("a", 1, qty) }
    };
    let tables = json!({"tables": {"public.a": {"key": ["id"], "columns": ["qty", "note"]}}});
    let connectors = || vec![only_a("inventory", target(&database, tables.clone()))];
    capture.commit(0, &[noted(Op::Insert, 1, Some("long"))]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    capture.commit_unchanged(0, &[noted(Op::Update, 2, None)], &["note"]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    let read = || async {
        let row = client.query_one("SELECT qty, note FROM a", &[]).await.expect("reads");
        (row.get::<_, i32>(0), row.get::<_, Option<String>>(1))
    };
    assert_eq!(read().await, (2, Some("long".into())));
    // In one batch: the value written first must not be lost with the state that follows.
    capture.write(0, &[noted(Op::Update, 3, Some("longer"))]).await;
    capture.commit_unchanged(0, &[noted(Op::Update, 4, None)], &["note"]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    assert_eq!(read().await, (4, Some("longer".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_lacks_is_named_with_the_statement_that_adds_it() {
    let server = Postgres::shared().await;
    let database = Database::empty(server, "delivery").await;
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE a (id bigint, qty integer)").await.expect("creates");
    let lane = LaneId { connector: "inventory".into(), partition: 0, lane: 0 };
    let error = target(&database, json!({})).build(lane.clone(), OnDelete::Tombstone).check().await.expect_err("not ready");
    assert_eq!(error.code, "sql.target_not_ready");
    for text in [
        "CREATE TABLE IF NOT EXISTS tillstream_mark",
        "ALTER TABLE \"a\" ADD COLUMN IF NOT EXISTS _version text COLLATE \"C\", ADD COLUMN IF NOT EXISTS _deleted",
        "CREATE UNIQUE INDEX",
    ] {
        assert!(error.message.contains(text), "{text} in {}", error.message);
    }
    // What is ours is created when that is allowed; the index is the owner's affair.
    client.batch_execute("ALTER TABLE a ADD PRIMARY KEY (id)").await.expect("alters");
    let creating = target(&database, json!({"create": true}));
    creating.build(lane.clone(), OnDelete::Tombstone).check().await.expect("could be created");
    let tables: i64 = client.query_one("SELECT count(*) FROM pg_class WHERE relname = 'tillstream_mark'", &[]).await.expect("reads").get(0);
    assert_eq!(tables, 0, "a check changes nothing");
    let (_dir, journal, mut capture) = new_journal(2).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    catch_up(&journal, vec![only_a("inventory", creating)]).await.expect("creates and catches up");
    assert_eq!(contents(&client).await, "1:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_repeated_and_wrong_credentials_are_not() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    let running = start(&journal, vec![only_a("inventory", target(&database, json!({})))], Mode::Continuous);
    let stats = running.stats.connector("inventory").expect("there").clone();
    until("the first is there", || stats.delivered.load(Ordering::Relaxed) == 1).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.execute(kill, &[]).await.expect("terminates");
    capture.commit(0, &[insert("a", 2, 2)]).await;
    until("the second is there", || stats.delivered.load(Ordering::Relaxed) == 2).await;
    assert_eq!(stats.state(), ConnectorState::Running);
    running.stop().await.expect("stops");

    let missing = json!({"url": database.url_as("nobody_of_this_name:hunter2")});
    capture.commit(0, &[insert("a", 3, 3)]).await;
    let error = catch_up(&journal, vec![only_a("inventory", target(&database, missing))]).await.expect_err("stops");
    assert!(error.code().starts_with("sql.state_28"), "{}", error.code());
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_can_not_move_the_mark() {
    let (database, client) = database().await;
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    let connectors = || vec![only_a("inventory", target(&database, json!({})))];
    let old = start(&journal, connectors(), Mode::Continuous);
    let stats = old.stats.connector("inventory").expect("there").clone();
    until("the old one delivers", || stats.delivered.load(Ordering::Relaxed) == 1).await;
    // As by a later owner that stored a mark in every lane.
    client.batch_execute("UPDATE tillstream_mark SET mark = '\\x01ffffffff'::bytea || substr(mark, 6)").await.expect("updates");
    client
        .batch_execute(
            "INSERT INTO tillstream_mark SELECT connector, partition, 1 - lane, mark FROM tillstream_mark ON CONFLICT DO NOTHING",
        )
        .await
        .expect("inserts");
    capture.commit(0, &[insert("a", 2, 2), insert("a", 3, 3), insert("a", 4, 4)]).await;
    until("the old one stops", || stats.state() == ConnectorState::Failed).await;
    assert_eq!(stats.last_error().expect("an error").code, "sql.taken_over");
    assert_eq!(contents(&client).await, "1:1");
    old.stop().await.expect("stops");
}

//! The `sql` sink against a real MariaDB and against SQLite files: what it promises for PostgreSQL holds there too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tillstream::control;
use tillstream::delivery::{ConnectorState, Mode};
use tillstream::journal::Journal;
use tillstream_connectors::registry::{Registry, Target};
use tillstream_connectors::sink::{Item, LaneId, OnDelete};
use tillstream_schemas::{Event, Op};

use super::pos::{Capture, Change, catch_up, connector, delete, insert, journal, start, truncate, until, update};
use crate::harness::{MariaDb, scratch, wait_for};

/// A database of one test.
enum Db {
    Maria { url: String },
    Sqlite { path: PathBuf },
}

/// One of each.
async fn both(tables: [&str; 2]) -> Vec<Db> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("delivery_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let server = MariaDb::shared().await;
    Db::Maria { url: server.url("mysql") }.run(&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4")).await;
    let path = scratch("sqlite").join("target.db");
    drop(rusqlite::Connection::open(&path).expect("made").execute_batch("PRAGMA journal_mode = WAL"));
    let both = vec![Db::Maria { url: server.url(&name) }, Db::Sqlite { path }];
    for (db, tables) in both.iter().zip(tables) {
        for sql in tables.split(";;").filter(|sql| !sql.trim().is_empty()) {
            db.run(sql).await;
        }
    }
    both
}

impl Db {
    fn url(&self) -> String {
        match self {
            Db::Maria { url } => url.clone(),
            Db::Sqlite { path } => format!("sqlite:{}", path.display()),
        }
    }

    /// Ends a session of MariaDB's, unless it ended by itself since it was listed.
    async fn kill(&self, id: &str) {
        let Db::Maria { url } = self else { panic!("a file has no sessions") };
        let mut conn = mysql_async::Conn::from_url(url).await.expect("connects");
        if let Err(error) = conn.query_drop(format!("KILL {id}")).await {
            assert!(error.to_string().contains("ERROR 1094"), "KILL {id}: {error}");
        }
        conn.disconnect().await.expect("ends");
    }

    /// Executes one statement.
    async fn run(&self, sql: &str) {
        match self {
            Db::Maria { url } => {
                let mut conn = mysql_async::Conn::from_url(url).await.expect("connects");
                conn.query_drop(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
                conn.disconnect().await.expect("ends");
            }
            Db::Sqlite { path } => {
                let file = rusqlite::Connection::open(path).expect("opens");
                file.busy_timeout(Duration::from_secs(10)).expect("set");
                file.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
            }
        }
    }

    /// The texts of the only column.
    async fn texts(&self, sql: &str) -> Vec<Option<String>> {
        match self {
            Db::Maria { url } => {
                let mut conn = mysql_async::Conn::from_url(url).await.expect("connects");
                let texts = conn.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
                conn.disconnect().await.expect("ends");
                texts
            }
            Db::Sqlite { path } => {
                let file = rusqlite::Connection::open(path).expect("opens");
                file.busy_timeout(Duration::from_secs(10)).expect("set");
                let mut statement = file.prepare(sql).expect(sql);
                let texts = statement.query_map([], |row| {
                    Ok(match row.get(0)? {
                        rusqlite::types::Value::Null => None,
                        rusqlite::types::Value::Integer(number) => Some(number.to_string()),
                        rusqlite::types::Value::Text(text) => Some(text),
                        other => panic!("{sql}: {other:?}"),
                    })
                });
                texts.expect(sql).collect::<Result<_, _>>().expect(sql)
            }
        }
    }

    async fn text(&self, sql: &str) -> String {
        self.texts(sql).await.into_iter().next().flatten().unwrap_or_default()
    }

    fn block(&self, more: Value) -> Value {
        let mut block = json!({"url": self.url(), "tables": {"public.a": {"key": ["id"], "columns": ["qty"]}}});
        block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
        block
    }

    fn target(&self, more: Value) -> Arc<dyn Target> {
        target(&self.block(more))
    }

    /// `id:qty` of living rows and `id:gone` of tombstones.
    async fn contents(&self) -> String {
        let sql = "SELECT CONCAT(id, ':', CASE WHEN _deleted THEN 'gone' ELSE COALESCE(qty, 'null') END) FROM a ORDER BY id";
        self.texts(sql).await.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

fn target(block: &Value) -> Arc<dyn Target> {
    Registry::built_in().get("sql").expect("built in").validate(block, false).expect("valid")
}

const MARIA_A: &str = "CREATE TABLE a (id bigint PRIMARY KEY, qty int NOT NULL, note longtext, writes int NOT NULL DEFAULT 1, \
     CONSTRAINT a_qty_check CHECK (qty < 1000)) ;; \
     CREATE TRIGGER count_writes BEFORE UPDATE ON a FOR EACH ROW SET NEW.writes = OLD.writes + 1";
const SQLITE_A: &str = "CREATE TABLE a (id INTEGER PRIMARY KEY, qty INTEGER NOT NULL CONSTRAINT a_qty_check CHECK (typeof(qty) = 'integer' AND qty < 1000), \
     note TEXT, writes INTEGER NOT NULL DEFAULT 1) ;; \
     CREATE TRIGGER count_writes AFTER UPDATE ON a WHEN NEW.writes = OLD.writes BEGIN UPDATE a SET writes = writes + 1 WHERE id = NEW.id; END";

async fn both_with_a() -> Vec<Db> {
    both([MARIA_A, SQLITE_A]).await
}

async fn new_journal(partitions: u16) -> (tempfile::TempDir, Arc<dyn Journal>, Capture) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), partitions).await;
    let capture = Capture::new(journal.as_ref(), 1).await;
    (dir, journal, capture)
}

fn only_a(target: Arc<dyn Target>) -> tillstream::config::Connector {
    tillstream::config::Connector { tables: vec![("public".into(), "a".into())], kind: "sql", ..connector("inventory", target) }
}

fn create() -> Value {
    json!({"create": true})
}

async fn letters(journal: &Arc<dyn Journal>) -> Vec<(String, String)> {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let mut letters: Vec<_> = state.dead_letters().map(|l| (l.letter.code.clone(), l.letter.message.clone())).collect();
    letters.sort();
    letters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_follow_the_source_and_deleted_ones_stay_as_tombstones() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        capture.commit(0, &[insert("a", 1, 1), insert("a", 2, 2), insert("a", 3, 3)]).await;
        catch_up(&journal, vec![only_a(db.target(create()))]).await.expect("catches up");
        capture.commit(0, &[update("a", 1, 10), delete("a", 2), insert("a", 4, 4)]).await;
        let stats = catch_up(&journal, vec![only_a(db.target(json!({})))]).await.expect("catches up");
        assert_eq!(db.contents().await, "1:10 2:gone 3:3 4:4");
        assert_eq!(stats.connectors()[0].delivered.load(Ordering::Relaxed), 3);
        capture.commit(0, &[insert("a", 2, 22), truncate("a"), insert("a", 5, 5)]).await;
        catch_up(&journal, vec![only_a(db.target(json!({})))]).await.expect("catches up");
        assert_eq!(db.contents().await, "1:gone 2:gone 3:gone 4:gone 5:5");

        // A repetition from the first event on, as after a restore of the marks: versions keep every row as it is.
        let before = db.text("SELECT SUM(writes) FROM a").await;
        db.run("DELETE FROM tillstream_mark").await;
        let stats = catch_up(&journal, vec![only_a(db.target(json!({})))]).await.expect("catches up");
        assert_eq!((db.contents().await.as_str(), db.text("SELECT SUM(writes) FROM a").await), ("1:gone 2:gone 3:gone 4:gone 5:5", before));
        assert!(stats.connectors()[0].absorbed.load(Ordering::Relaxed) >= 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_really_go_where_that_is_asked_for() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        let deleting = || {
            let mut connector = only_a(db.target(create()));
            connector.on_delete = OnDelete::Delete;
            vec![connector]
        };
        capture.commit(0, &[insert("a", 1, 1), insert("a", 2, 2), insert("a", 3, 3)]).await;
        catch_up(&journal, deleting()).await.expect("catches up");
        capture.commit(0, &[delete("a", 1), delete("a", 9)]).await;
        catch_up(&journal, deleting()).await.expect("catches up");
        assert_eq!(db.contents().await, "2:2 3:3");
        capture.commit(0, &[truncate("a"), insert("a", 7, 7)]).await;
        catch_up(&journal, deleting()).await.expect("catches up");
        assert_eq!(db.contents().await, "7:7");
    }
}

/// What `killed_again_and_again…` starts and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of another test"]
async fn delivers_until_it_is_killed() {
    let Ok(asked) = std::env::var("TILLSTREAM_TEST_DELIVERY") else { return };
    let asked: Value = serde_json::from_str(&asked).expect("JSON");
    let journal = journal(asked["dir"].as_str().expect("a path").as_ref(), 2).await;
    let mut connector = only_a(target(&asked["block"]));
    connector.delivery.batch_items_max = 1;
    let running = start(&journal, vec![connector], Mode::Continuous);
    tokio::time::timeout(Duration::from_secs(60), running.ended()).await.expect_err("it is killed before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_every_row_is_written_by_each_change_once() {
    for db in both_with_a().await {
        let (dir, journal, mut capture) = new_journal(2).await;
        for round in 0..5 {
            for id in 0..40 {
                let change = if round == 0 { insert("a", id, 0) } else { update("a", id, round) };
                capture.write(u16::try_from(id % 2).expect("small"), &[change]).await;
            }
        }
        capture.flush().await;
        let asked = json!({"dir": dir.path(), "block": db.block(create())}).to_string();
        let writes = async || db.text("SELECT SUM(writes) FROM a").await.parse::<u64>().unwrap_or(0);
        let mut kills = 0;
        for part in 1..=4 {
            let mut child = tokio::process::Command::new(std::env::current_exe().expect("a path"))
                .args(["--exact", "delivery::sql_dialects::delivers_until_it_is_killed", "--ignored"])
                .env("TILLSTREAM_TEST_DELIVERY", &asked)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("starts");
            wait_for("some to be delivered", Duration::from_secs(30), || async { (writes().await >= part * 35).then_some(()) }).await;
            kills += u64::from(writes().await < 200);
            child.kill().await.expect("kill -9");
        }
        assert!(kills > 0, "no process was killed while it delivered");
        let mut last = only_a(db.target(create()));
        last.delivery.batch_items_max = 1;
        let stats = catch_up(&journal, vec![last]).await.expect("catches up");
        assert_eq!(db.text("SELECT COUNT(*) FROM a WHERE qty = 4 AND writes = 5").await, "40");
        assert_eq!(stats.connectors()[0].absorbed.load(Ordering::Relaxed), 0, "each lane goes on exactly behind its mark");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_row_is_refused_alone() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        let mut rows: Vec<Change> = (0..50).map(|id| insert("a", id, id)).collect();
        rows[20] = insert("a", 20, 5000);
        rows[30] = Change { after: Some("{\"id\":30,\"qty\":\"many\"}".into()), ..insert("a", 30, 0) };
        rows[40] = Change { after: Some("{\"id\":40,\"qty\":null}".into()), ..insert("a", 40, 0) };
        capture.commit(0, &rows).await;
        let mut connector = only_a(db.target(create()));
        connector.delivery.batch_items_max = 100;
        connector.delivery.linger = Duration::from_millis(50);
        catch_up(&journal, vec![connector]).await.expect("catches up");
        assert_eq!(db.text("SELECT COUNT(*) FROM a WHERE writes = 1").await, "47");
        let text = format!("{:?}", letters(&journal).await);
        let expected: &[&str] = match db {
            Db::Maria { .. } => &["sql.error_1366", "sql.error_4025", "sql.error_1048", "constraint a_qty_check", "`qty`"],
            Db::Sqlite { .. } => &["sql.sqlite_275", "sql.sqlite_1299", "a_qty_check", "a.qty"],
        };
        for part in expected {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("many") && !text.contains("5000"), "{text}");
        assert_eq!(letters(&journal).await.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_waits_for_its_parent_and_no_other_rows_value_is_taken() {
    let more = [
        ";; CREATE TABLE b (id bigint PRIMARY KEY, qty int UNIQUE, FOREIGN KEY (id) REFERENCES a (id))",
        ";; CREATE TABLE b (id INTEGER PRIMARY KEY REFERENCES a, qty INTEGER UNIQUE)",
    ];
    for db in both([&[MARIA_A, more[0]].concat(), &[SQLITE_A, more[1]].concat()]).await {
        let (_dir, journal, mut capture) = new_journal(2).await;
        let children: Vec<Change> = (0..20).map(|id| insert("b", id, id)).collect();
        capture.commit(0, &children).await;
        let tables = json!({"create": true, "tables": {"public.a": {"key": ["id"], "columns": ["qty"]}, "public.b": {"key": ["id"], "columns": ["qty"]}}});
        let connectors = || {
            let mut connector = only_a(db.target(tables.clone()));
            connector.tables.push(("public".into(), "b".into()));
            vec![connector]
        };
        let running = start(&journal, connectors(), Mode::Continuous);
        let stats = running.stats.connectors()[0].clone();
        until("children wait", || stats.retries.load(Ordering::Relaxed) > 0).await;
        let parents: Vec<Change> = (0..21).map(|id| insert("a", id, 1)).collect();
        capture.commit(1, &parents).await;
        until("all are there", || stats.delivered.load(Ordering::Relaxed) == 41).await;
        // A row with another's unique value waits for that one to change it, and does not overwrite it.
        capture.commit(0, &[insert("b", 20, 5)]).await;
        until("it waits", || stats.last_error().is_some_and(|e| e.code == "sql.error_1062" || e.code == "sql.sqlite_2067")).await;
        assert_eq!(db.text("SELECT COUNT(*) FROM b WHERE id = 5 AND qty = 5").await, "1");
        capture.commit(0, &[update("b", 5, 500)]).await;
        until("it went through", || stats.delivered.load(Ordering::Relaxed) == 43).await;
        running.stop().await.expect("stops");
        assert_eq!(db.text("SELECT COUNT(*) FROM b WHERE (id = 5 AND qty = 500) OR (id = 20 AND qty = 5)").await, "2");
    }
}

const TYPED: [&str; 2] = [
    "CREATE TABLE typed (id uuid PRIMARY KEY, n decimal(32,2), f double, b boolean, t datetime(6), d date, j json, js json, x blob, a json, \
     e enum('gold','bronze'), v varchar(3), bits bit(1), `Mixed Name` text, whole bigint unsigned)",
    "CREATE TABLE typed (id TEXT PRIMARY KEY, n TEXT, f REAL, b BOOLEAN, t DATETIME, d DATE, j JSON, js JSON, x BLOB, a JSON, \
     e TEXT, v TEXT CHECK (length(v) <= 3), bits INTEGER, \"Mixed Name\" TEXT, whole INTEGER) STRICT",
];
const TYPED_COLUMNS: [&str; 14] = ["n", "f", "b", "t", "d", "j", "js", "x", "a", "e", "v", "bits", "Mixed Name", "whole"];
const TYPED_AFTER: &str = r#"{"id":"0b0d3d3c-0000-4000-8000-000000000001","n":"123456789012345678901234567890.10","f":0.1,"b":true,
    "t":"2026-11-22T10:00:00.123456Z","d":"2026-11-22","j":{"a":[1.10,{"b":null}]},"js":"text","x":"AAH/","a":["x","y\"z",null],
    "e":"gold","v":"abc","bits":false,"Mixed Name":"é\"\\ 😀","whole":9007199254740993}"#;

fn typed(op: Op, after: &str) -> Change {
    Change { op, table: "typed", key: r#"{"id":"0b0d3d3c-0000-4000-8000-000000000001"}"#.into(), after: Some(after.to_owned()) }
}

async fn both_typed() -> Vec<Db> {
    both([TYPED[0], &TYPED[1].replace(" STRICT", "")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_it_was() {
    for db in both_typed().await {
        let tables = json!({"create": true, "tables": {"public.typed": {"key": ["id"], "columns": TYPED_COLUMNS}}});
        let (_dir, journal, mut capture) = new_journal(1).await;
        capture.commit(0, &[typed(Op::Insert, TYPED_AFTER)]).await;
        let connectors = || {
            let mut connector = only_a(db.target(tables.clone()));
            connector.tables = vec![("public".into(), "typed".into())];
            vec![connector]
        };
        catch_up(&journal, connectors()).await.expect("catches up");
        assert_eq!(letters(&journal).await, []);
        let moment = if matches!(db, Db::Maria { .. }) { "2026-11-22 10:00:00.123456" } else { "2026-11-22T10:00:00.123456Z" };
        for (column, expected) in [
            ("n", "123456789012345678901234567890.10"),
            ("f", "0.1"),
            ("b", "1"),
            ("t", moment),
            ("d", "2026-11-22"),
            ("j", r#"{"a":[1.10,{"b":null}]}"#),
            ("js", "\"text\""),
            ("HEX(x)", "0001FF"),
            ("a", r#"["x","y\"z",null]"#),
            ("e", "gold"),
            ("v", "abc"),
            ("bits + 0", "0"),
            ("whole", "9007199254740993"),
        ] {
            assert_eq!(db.text(&format!("SELECT CONCAT({column}, '') FROM typed")).await, expected, "{column}");
        }
        let mixed = if matches!(db, Db::Maria { .. }) { "`Mixed Name`" } else { "\"Mixed Name\"" };
        assert_eq!(db.text(&format!("SELECT {mixed} FROM typed")).await, "é\"\\ 😀");
        // A text that is too long for its column is refused, not cut.
        capture.commit(0, &[typed(Op::Update, &TYPED_AFTER.replace("\"abc\"", "\"abcd\""))]).await;
        catch_up(&journal, connectors()).await.expect("catches up");
        assert_eq!(db.text("SELECT v FROM typed").await, "abc");
        let code = if matches!(db, Db::Maria { .. }) { "sql.error_1406" } else { "sql.sqlite_275" };
        assert_eq!(letters(&journal).await.into_iter().map(|(code, _)| code).collect::<Vec<_>>(), [code]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_a_file_would_round_is_refused() {
    let both = both([MARIA_A, "CREATE TABLE a (id INTEGER PRIMARY KEY, qty NUMERIC)"]).await;
    let db = &both[1];
    let (_dir, journal, mut capture) = new_journal(1).await;
    let price = |id, qty: &str| Change { after: Some(format!("{{\"id\":{id},\"qty\":\"{qty}\"}}")), ..insert("a", id, 0) };
    capture.commit(0, &[price(1, "12.50"), price(2, "1234567890123456.78")]).await;
    catch_up(&journal, vec![only_a(db.target(create()))]).await.expect("catches up");
    assert_eq!(db.contents().await, "1:12.5");
    let letters = letters(&journal).await;
    assert!(letters.len() == 1 && letters[0].0 == "sql.value" && letters[0].1.contains("TEXT"), "{letters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_large_value_is_left_alone() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        let noted = |op, qty: u64, note: Option<&str>| {
            let note = note.map(|n| format!(",\"note\":\"{n}\"")).unwrap_or_default();
            Change { op, after: Some(format!("{{\"id\":1,\"qty\":{qty}{note}}}")), ..insert("a", 1, qty) }
        };
        let tables = json!({"create": true, "tables": {"public.a": {"key": ["id"], "columns": ["qty", "note"]}}});
        let connectors = || vec![only_a(db.target(tables.clone()))];
        let read = async || db.text("SELECT CONCAT(qty, ' ', note) FROM a").await;
        capture.commit(0, &[noted(Op::Insert, 1, Some("long"))]).await;
        catch_up(&journal, connectors()).await.expect("catches up");
        capture.commit_unchanged(0, &[noted(Op::Update, 2, None)], &["note"]).await;
        catch_up(&journal, connectors()).await.expect("catches up");
        assert_eq!(read().await, "2 long");
        capture.write(0, &[noted(Op::Update, 3, Some("longer"))]).await;
        capture.commit_unchanged(0, &[noted(Op::Update, 4, None)], &["note"]).await;
        catch_up(&journal, connectors()).await.expect("catches up");
        assert_eq!(read().await, "4 longer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_lacks_is_named_with_the_statement_that_adds_it() {
    let tables = [
        "CREATE TABLE a (id bigint, qty int) ENGINE = InnoDB ;; CREATE TABLE named (id varchar(20) PRIMARY KEY, qty int)",
        "CREATE TABLE a (id bigint, qty int) ;; CREATE TABLE named (id TEXT COLLATE NOCASE PRIMARY KEY, qty int)",
    ];
    for db in both(tables).await {
        let lane = LaneId { connector: "inventory".into(), partition: 0, lane: 0 };
        let error = db.target(json!({})).build(lane.clone(), OnDelete::Tombstone).check().await.expect_err("not ready");
        assert_eq!(error.code, "sql.target_not_ready");
        for text in ["CREATE TABLE IF NOT EXISTS tillstream_mark", "ADD COLUMN _version", "ADD COLUMN _deleted", "UNIQUE INDEX"] {
            assert!(error.message.contains(text), "{text} in {}", error.message);
        }
        let tables = json!({"tables": {"public.a": {"into": "missing", "key": ["id"], "columns": ["qty"]}}});
        let error = db.target(tables).build(lane.clone(), OnDelete::Tombstone).check().await.expect_err("not ready");
        assert!(error.message.contains("does not exist"), "{}", error.message);
        let tables = json!({"tables": {"public.a": {"into": "named", "key": ["id"], "columns": ["qty", "size"]}}});
        let error = db.target(tables).build(lane.clone(), OnDelete::Tombstone).check().await.expect_err("not ready");
        assert!(error.message.contains("keys that differ") && error.message.contains("no column"), "{}", error.message);
        // What is ours is created when that is allowed, by two lanes of two partitions at once.
        db.run("CREATE UNIQUE INDEX a_key ON a (id)").await;
        db.target(create()).build(lane, OnDelete::Tombstone).check().await.expect("could be created");
        let (_dir, journal, mut capture) = new_journal(2).await;
        capture.commit(0, &[insert("a", 1, 1)]).await;
        catch_up(&journal, vec![only_a(db.target(create()))]).await.expect("creates and catches up");
        assert_eq!(db.contents().await, "1:1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_can_not_move_the_mark() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        capture.commit(0, &[insert("a", 1, 1), insert("a", 2, 2), insert("a", 3, 3)]).await;
        let old = start(&journal, vec![only_a(db.target(create()))], Mode::Continuous);
        let stats = old.stats.connectors()[0].clone();
        until("the old one delivers", || stats.delivered.load(Ordering::Relaxed) == 3).await;
        let later =
            if matches!(db, Db::Maria { .. }) { "CONCAT(X'01FFFFFFFF', SUBSTR(mark, 6))" } else { "X'01FFFFFFFF' || substr(mark, 6)" };
        let later = if matches!(db, Db::Maria { .. }) { later.to_owned() } else { format!("CAST({later} AS BLOB)") };
        db.run(&format!("UPDATE tillstream_mark SET mark = {later}")).await;
        let lanes = db.text("SELECT COUNT(*) FROM tillstream_mark").await;
        assert_eq!(lanes, "2", "both lanes had rows");
        capture.commit(0, &[update("a", 1, 10), update("a", 2, 10), update("a", 3, 10)]).await;
        until("the old one stops", || stats.state() == ConnectorState::Failed).await;
        assert_eq!(stats.last_error().expect("an error").code, "sql.taken_over");
        assert_eq!(db.contents().await, "1:1 2:2 3:3");
        old.stop().await.expect("stops");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_lock_is_waited_for() {
    for db in both_with_a().await {
        let (_dir, journal, mut capture) = new_journal(1).await;
        capture.commit(0, &[insert("a", 1, 1)]).await;
        let impatient = || vec![only_a(db.target(json!({"create": true, "timeout": "1s"})))];
        catch_up(&journal, impatient()).await.expect("catches up");
        capture.commit(0, &[update("a", 1, 2)]).await;
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let (held, holding) = tokio::sync::oneshot::channel();
        let url = db.url();
        let holder = tokio::spawn(async move {
            if let Some(path) = url.strip_prefix("sqlite:") {
                let file = rusqlite::Connection::open(path).expect("opens");
                file.execute_batch("BEGIN IMMEDIATE").expect("holds");
                held.send(()).expect("heard");
                released.await.expect("told");
                file.execute_batch("ROLLBACK").expect("ends");
            } else {
                let mut conn = mysql_async::Conn::from_url(&url).await.expect("connects");
                conn.query_drop("START TRANSACTION").await.expect("begins");
                conn.query_drop("SELECT * FROM a WHERE id = 1 FOR UPDATE").await.expect("holds");
                held.send(()).expect("heard");
                released.await.expect("told");
                conn.query_drop("ROLLBACK").await.expect("ends");
            }
        });
        holding.await.expect("held");
        let running = start(&journal, impatient(), Mode::Continuous);
        let stats = running.stats.connectors()[0].clone();
        until("a call fails", || stats.calls_failed.load(Ordering::Relaxed) > 0).await;
        let code = stats.last_error().expect("an error").code;
        assert!(["sql.error_1205", "sql.sqlite_5"].contains(&code.as_str()), "{code}");
        release.send(()).expect("heard");
        until("it is there", || stats.delivered.load(Ordering::Relaxed) == 1).await;
        holder.await.expect("ends");
        running.stop().await.expect("stops");
        assert_eq!(db.contents().await, "1:2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_session_is_repeated_and_wrong_credentials_are_not() {
    let both = both_with_a().await;
    let db = &both[0];
    let (_dir, journal, mut capture) = new_journal(1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    let running = start(&journal, vec![only_a(db.target(create()))], Mode::Continuous);
    let stats = running.stats.connectors()[0].clone();
    until("the first is there", || stats.delivered.load(Ordering::Relaxed) == 1).await;
    for id in db.texts("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()").await {
        db.kill(&id.expect("a number")).await;
    }
    capture.commit(0, &[insert("a", 2, 2)]).await;
    until("the second is there", || stats.delivered.load(Ordering::Relaxed) == 2).await;
    assert_eq!(stats.state(), ConnectorState::Running);
    running.stop().await.expect("stops");

    let wrong = json!({"url": db.url().replace("root@", "nobody_of_this_name:hunter2@")});
    capture.commit(0, &[insert("a", 3, 3)]).await;
    let error = catch_up(&journal, vec![only_a(db.target(wrong))]).await.expect_err("stops");
    assert_eq!(error.code(), "sql.error_1045");
    assert!(!format!("{error:?}").contains("hunter2"));
    let missing = json!({"url": "sqlite:/nonexistent/target.db"});
    let error = catch_up(&journal, vec![only_a(both[1].target(missing))]).await.expect_err("stops");
    assert_eq!(error.code(), "sql.target_not_ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_name_included() {
    let (ca, trusted) = tokio::sync::oneshot::channel();
    let server = MariaDb::private("mariadb-tls", move |dir| {
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        for (name, text) in
            [("ca.pem", certified.cert.pem()), ("cert.pem", certified.cert.pem()), ("key.pem", certified.signing_key.serialize_pem())]
        {
            std::fs::write(dir.join(name), text).expect("written");
        }
        ca.send(dir.join("ca.pem")).expect("heard");
    })
    .await;
    let ca = trusted.await.expect("told");
    let db = Db::Maria { url: server.url("mysql") };
    db.run("CREATE DATABASE target").await;
    db.run("CREATE USER careful@'%' REQUIRE SSL").await;
    db.run("GRANT ALL ON target.* TO careful@'%'").await;
    let db = Db::Maria { url: server.url("target") };
    db.run("CREATE TABLE a (id bigint PRIMARY KEY, qty int)").await;
    let check = async |host: &str, more: &str| {
        let url = format!("{}?sslmode=verify-full{more}", server.url("target").replace("root@127.0.0.1", &format!("careful@{host}")));
        let lane = LaneId { connector: "inventory".into(), partition: 0, lane: 0 };
        db.target(json!({"url": url, "create": true})).build(lane, OnDelete::Tombstone).check().await
    };
    let root = format!("&sslrootcert={}", ca.display());
    check("localhost", &root).await.expect("verified");
    for (host, more, part) in [
        ("127.0.0.1", root.as_str(), "certificate"),
        ("localhost", "", "certificate"),
        ("localhost", "&sslrootcert=/nonexistent.pem", "sslrootcert"),
    ] {
        let error = check(host, more).await.expect_err("refused");
        assert!(error.message.contains(part), "{host}{more}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_is_compared_with_the_source() {
    for db in both_typed().await {
        let tables = json!({"create": true, "tables": {"public.typed": {"key": ["id"], "columns": TYPED_COLUMNS}}});
        let (_dir, journal, mut capture) = new_journal(1).await;
        capture.commit(0, &[typed(Op::Insert, TYPED_AFTER)]).await;
        let target = db.target(tables);
        let mut connector = only_a(target.clone());
        connector.tables = vec![("public".into(), "typed".into())];
        catch_up(&journal, vec![connector]).await.expect("catches up");
        let item = |op: &str, after: &str| {
            let body = format!(
                "{{\"id\":\"e1-0/2000-0\",\"op\":\"{op}\",\"schema\":\"public\",\"table\":\"typed\",\"key\":{{\"id\":\"0b0d3d3c-0000-4000-8000-000000000001\"}},\
                 \"before\":null,\"after\":{after},\"unchanged\":[],\"commit_lsn\":\"0/2000\",\"ordinal\":0,\"xid\":7,\"committed_at\":\"2026-11-22T10:00:00.000000Z\"}}"
            );
            let event = Arc::new(Event::parse(Bytes::from(body)).expect("an event"));
            Item { idempotency_key: "k".into(), version: event.version(), mapped: None, event }
        };
        let mut compare = target.compare().expect("can be read");
        let same = item("update", TYPED_AFTER);
        let other = item("update", &TYPED_AFTER.replace("30.10", "30.11").replace("567890.10", "567890.11"));
        let later = item("update", &TYPED_AFTER.replace("10:00:00.123456", "10:00:00.123457"));
        assert_eq!(compare.differing(&[same, other, later, item("delete", "null")]).await.expect("compares"), [1, 2, 3]);
        let keys = compare.keys_after("public", "typed", None, 10).await.expect("lists");
        assert_eq!(keys, [["0b0d3d3c-0000-4000-8000-000000000001"]]);
        assert_eq!(compare.keys_after("public", "typed", Some(&keys[0]), 10).await.expect("lists"), Vec::<Vec<String>>::new());
        let digest = compare.digest("public", "typed", &keys).await.expect("digests");
        assert_eq!(digest, compare.digest("public", "typed", &keys).await.expect("digests"));
        db.run("UPDATE typed SET _deleted = 1").await;
        assert_ne!(digest, compare.digest("public", "typed", &keys).await.expect("digests"));
        assert!(compare.keys_after("public", "typed", None, 10).await.expect("lists").is_empty());
    }
}

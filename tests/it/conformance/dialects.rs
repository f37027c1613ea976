//! The sink `sql` with MariaDB and with SQLite.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use serde_json::json;
use tillstream_connectors::conformance::{Fact, Keeps, NotApplicable, Subject, Trouble};
use tillstream_connectors::registry::{Registry, Target};

use super::postgres::{CUT, HOLD, PASS, proxy};
use crate::harness::{MariaDb, scratch};

const NO_PAUSE: NotApplicable = NotApplicable("a database asks for no pause");
const NO_ANSWER: NotApplicable = NotApplicable("a database has no such answer");

fn target(url: &str) -> Arc<dyn Target> {
    let tables = json!({"public.fact": {"key": ["id"], "columns": ["change", "note"]}});
    let block = json!({"url": url, "create": true, "timeout": "1s", "tables": tables});
    Registry::built_in().get("sql").expect("built in").validate(&block, false).expect("valid")
}

/// Every write of a row is a line of `written`, with it or not at all. `fuse` counts down over transactions that were rolled back: its engine has none.
const MARIA: [&str; 7] = [
    "CREATE TABLE fact (id bigint PRIMARY KEY, `change` int NOT NULL, note varchar(40), CONSTRAINT refused CHECK (note <> 'refuse-me'))",
    "CREATE TABLE written (n bigint AUTO_INCREMENT PRIMARY KEY, id bigint, `change` int)",
    "CREATE TABLE fuse (n int) ENGINE=MyISAM",
    "INSERT INTO fuse VALUES (1000000)",
    "CREATE PROCEDURE burn() BEGIN UPDATE fuse SET n = n - 1; IF (SELECT n FROM fuse) = 0 THEN \
       SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'deadlock'; END IF; END",
    "CREATE TRIGGER inserted AFTER INSERT ON fact FOR EACH ROW BEGIN CALL burn(); \
       INSERT INTO written (id, `change`) VALUES (NEW.id, NEW.`change`); END",
    // An update that leaves a row as it is fires too.
    "CREATE TRIGGER updated AFTER UPDATE ON fact FOR EACH ROW IF NEW.`change` <> OLD.`change` THEN \
       INSERT INTO written (id, `change`) VALUES (NEW.id, NEW.`change`); END IF",
];

/// Rows in MariaDB.
pub(super) struct Maria {
    url: String,
    target: Arc<dyn Target>,
    answers: Arc<AtomicU8>,
}

impl Maria {
    pub(super) async fn new() -> Maria {
        let server = MariaDb::shared().await;
        let name = format!("conformance_{}", std::process::id());
        let mut conn = mysql_async::Conn::from_url(server.url("mysql")).await.expect("connects");
        conn.query_drop(format!("CREATE DATABASE {name} CHARACTER SET utf8mb4")).await.expect("creates");
        let url = server.url(&name);
        let mut conn = mysql_async::Conn::from_url(&url).await.expect("connects");
        for sql in MARIA {
            conn.query_drop(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
        let address = url.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with host and database").0.to_owned();
        let answers = Arc::new(AtomicU8::new(PASS));
        let through = url.replace(&address, &proxy(address.clone(), answers.clone()).await);
        Maria { target: target(&through), url, answers }
    }

    /// A connection of its own for each look: the kit gives looks up in the middle, and what they leave in a connection nobody can use.
    async fn connect(&self) -> mysql_async::Conn {
        mysql_async::Conn::from_url(&self.url).await.expect("connects")
    }

    /// Holds locks on every row that is there or may come, for so long.
    async fn lock(&self, time: Duration) {
        let mut conn = self.connect().await;
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await.expect("sets");
        conn.query_drop("BEGIN").await.expect("begins");
        let sql = "INSERT IGNORE INTO fact (id, `change`, _version) SELECT seq, 0, '' FROM seq_1_to_13000";
        conn.query_drop(sql).await.expect("locks");
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            conn.query_drop("ROLLBACK").await
        });
    }
}

#[async_trait]
impl Subject for Maria {
    fn name(&self) -> String {
        "sql, MariaDB".into()
    }

    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    fn keeps(&self) -> Keeps {
        Keeps::Rows
    }

    async fn arm(&mut self, trouble: Trouble) -> Result<(), NotApplicable> {
        self.answers.store(PASS, Ordering::Release);
        match trouble {
            Trouble::None | Trouble::PutOff => {}
            Trouble::LostAnswer | Trouble::FailureApplied => self.answers.store(CUT, Ordering::Release),
            Trouble::HangAfter => self.answers.store(HOLD, Ordering::Release),
            Trouble::Failure => self.connect().await.query_drop("UPDATE fuse SET n = 2").await.expect("arms"),
            // It waits for a lock a second at least.
            Trouble::Slow => self.lock(Duration::from_millis(1500)).await,
            Trouble::HangBefore => self.lock(Duration::from_millis(500)).await,
            Trouble::PauseSeconds | Trouble::PauseDate => return Err(NO_PAUSE),
            Trouble::FalseSuccess => return Err(NO_ANSWER),
        }
        Ok(())
    }

    async fn reached(&mut self) -> bool {
        let sql = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
        self.connect().await.query_first::<u64, _>(sql).await.expect("reads").unwrap_or_default() > 0
    }

    async fn idle(&mut self) -> bool {
        let sql =
            "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command <> 'Sleep'";
        self.connect().await.query_first::<u64, _>(sql).await.expect("reads").unwrap_or_default() == 0
    }

    async fn effects(&mut self) -> Vec<Fact> {
        let rows: Vec<(u32, u32)> = self.connect().await.query("SELECT id, `change` FROM written ORDER BY n").await.expect("reads");
        rows.into_iter().map(|(row, change)| Fact { row, change }).collect()
    }
}

const SQLITE: &str = "PRAGMA journal_mode = WAL; \
     CREATE TABLE fact (id INTEGER PRIMARY KEY, change INTEGER NOT NULL, note TEXT CONSTRAINT refused CHECK (note <> 'refuse-me')); \
     CREATE TABLE written (n INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER, change INTEGER); \
     CREATE TRIGGER inserted AFTER INSERT ON fact BEGIN INSERT INTO written (id, change) VALUES (NEW.id, NEW.change); END; \
     CREATE TRIGGER updated AFTER UPDATE ON fact WHEN NEW.change <> OLD.change BEGIN \
       INSERT INTO written (id, change) VALUES (NEW.id, NEW.change); END";

/// Rows in a SQLite file.
pub(super) struct File {
    path: PathBuf,
    target: Arc<dyn Target>,
}

impl File {
    pub(super) fn new() -> File {
        let path = scratch("conformance").join("target.db");
        rusqlite::Connection::open(&path).expect("made").execute_batch(SQLITE).expect("creates");
        File { target: target(&format!("sqlite:{}", path.display())), path }
    }

    fn open(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.path).expect("opens")
    }
}

#[async_trait]
impl Subject for File {
    fn name(&self) -> String {
        "sql, SQLite".into()
    }

    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    fn keeps(&self) -> Keeps {
        Keeps::Rows
    }

    async fn arm(&mut self, trouble: Trouble) -> Result<(), NotApplicable> {
        match trouble {
            Trouble::None | Trouble::PutOff => Ok(()),
            Trouble::Slow => {
                let connection = self.open();
                connection.execute_batch("BEGIN IMMEDIATE").expect("locks");
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    connection.execute_batch("ROLLBACK")
                });
                Ok(())
            }
            Trouble::PauseSeconds | Trouble::PauseDate => Err(NO_PAUSE),
            Trouble::FalseSuccess => Err(NO_ANSWER),
            _ => Err(NotApplicable("no network lies between it and its file")),
        }
    }

    async fn reached(&mut self) -> bool {
        false
    }

    async fn idle(&mut self) -> bool {
        self.open().execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok()
    }

    async fn effects(&mut self) -> Vec<Fact> {
        let connection = self.open();
        let mut statement = connection.prepare("SELECT id, change FROM written ORDER BY n").expect("reads");
        let facts = statement.query_map([], |row| Ok(Fact { row: row.get(0)?, change: row.get(1)? }));
        facts.expect("reads").collect::<Result<_, _>>().expect("reads")
    }
}

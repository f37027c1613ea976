//! The sink `sql` with PostgreSQL, behind a proxy that looks for the answer to COMMIT.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tillstream_connectors::conformance::{Fact, Keeps, NotApplicable, REFUSED, Subject, Trouble};
use tillstream_connectors::registry::{Registry, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;

use crate::harness::{Database, Postgres};

/// Every write of a row is a line of `written`, with it or not at all. `fuse` counts down over transactions that were rolled back.
const TABLES: &str = "CREATE TABLE fact (id bigint PRIMARY KEY, change integer NOT NULL, note text CHECK (note <> 'refuse-me'), \
     _version text COLLATE \"C\" NOT NULL, _deleted boolean NOT NULL DEFAULT false); \
     CREATE TABLE written (n bigserial PRIMARY KEY, id bigint, change integer); CREATE SEQUENCE fuse START 1000000; \
     CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       IF nextval('fuse') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; \
       INSERT INTO written (id, change) VALUES (NEW.id, NEW.change); RETURN NULL; END $$; \
     CREATE TRIGGER note_write AFTER INSERT OR UPDATE ON fact FOR EACH ROW EXECUTE FUNCTION note_write()";

pub(super) const PASS: u8 = 0;
pub(super) const CUT: u8 = 1;
pub(super) const HOLD: u8 = 2;

/// Rows in PostgreSQL.
pub(super) struct Rows {
    _database: Database,
    client: Client,
    target: Arc<dyn Target>,
    /// What becomes of the next answer to a COMMIT.
    answers: Arc<AtomicU8>,
    url: String,
}

impl Rows {
    pub(super) async fn new() -> Rows {
        let server = Postgres::shared().await;
        let database = Database::empty(server, "conformance").await;
        let client = database.connect().await;
        client.batch_execute(TABLES).await.expect("creates");
        let answers = Arc::new(AtomicU8::new(PASS));
        let proxy = proxy(server.address().to_owned(), answers.clone()).await;
        let through = database.url.replace(server.address(), &proxy);
        assert_ne!(through, database.url, "the URL holds the server's address");
        let tables = json!({"public.fact": {"key": ["id"], "columns": ["change", "note"]}});
        let block = json!({"url": through, "create": true, "timeout": "600ms", "tables": tables});
        let target = Registry::built_in().get("sql").expect("built in").validate(&block, false).expect("valid");
        let url = database.url.clone();
        Rows { _database: database, client, target, answers, url }
    }

    /// Keeps others from writing for so long.
    async fn lock(&self, time: Duration) {
        let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.expect("connects");
        tokio::spawn(connection);
        client.batch_execute("BEGIN; LOCK TABLE fact IN SHARE MODE").await.expect("locks");
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            client.batch_execute("ROLLBACK").await
        });
    }
}

/// A proxy that cuts or holds the answer to a COMMIT when it is told to.
pub(super) async fn proxy(server: String, answers: Arc<AtomicU8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server, answers) = (server.clone(), answers.clone());
            tokio::spawn(async move {
                let server = TcpStream::connect(server).await.expect("the server is there");
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
                // What becomes of the next answer, once a COMMIT has gone by.
                let next = AtomicU8::new(PASS);
                let up = async {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        if buffer[..read].windows(6).any(|word| word == b"COMMIT") {
                            next.store(answers.swap(PASS, Ordering::AcqRel), Ordering::Release);
                        }
                        if to_server.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                let down = async {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                        match next.load(Ordering::Acquire) {
                            CUT => return,
                            HOLD => std::future::pending().await,
                            _ => {}
                        }
                        if to_client.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = up => {}, () = down => {} }
            });
        }
    });
    address
}

#[async_trait]
impl Subject for Rows {
    fn name(&self) -> String {
        "sql, PostgreSQL".into()
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
            Trouble::Failure => self.client.batch_execute("ALTER SEQUENCE fuse MINVALUE 0 RESTART 0").await.expect("arms"),
            Trouble::Slow => self.lock(Duration::from_millis(1500)).await,
            Trouble::HangBefore => self.lock(Duration::from_millis(400)).await,
            Trouble::PauseSeconds | Trouble::PauseDate => return Err(NotApplicable("a database asks for no pause")),
            Trouble::FalseSuccess => return Err(NotApplicable("a database has no such answer")),
        }
        assert_eq!(REFUSED, "refuse-me", "the table's constraint refuses it");
        Ok(())
    }

    async fn reached(&mut self) -> bool {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'fact'::regclass)";
        self.client.query_one(sql, &[]).await.expect("reads").get(0)
    }

    async fn idle(&mut self) -> bool {
        let sql = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle')";
        self.client.query_one(sql, &[]).await.expect("reads").get(0)
    }

    async fn effects(&mut self) -> Vec<Fact> {
        let rows = self.client.query("SELECT id, change FROM written ORDER BY n", &[]).await.expect("reads");
        let fact = |row: &tokio_postgres::Row| {
            let (id, change): (i64, i32) = (row.get(0), row.get(1));
            Fact { row: u32::try_from(id).expect("a row"), change: u32::try_from(change).expect("a change") }
        };
        rows.iter().map(fact).collect()
    }
}

//! Capture against a real server, run inside the test: SQL in, the events that a target would read out.

// Each test module uses its own part.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde_json::Value;
use tillstream::capture::catalog::{Catalog, check_start};
use tillstream::capture::wire::PgSource;
use tillstream::capture::{self, CaptureError, CaptureParts, Mode, Settings};
use tillstream::config::{self, HoldBack, Retention, Source, SourceTable};
use tillstream::control::{self, State};
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::journal::local::LocalJournal;
use tillstream::journal::{From, Journal, Log};
use tillstream_schemas::{Event, Kind};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::{Database, Postgres, scratch};

/// A database with slot and publication, and a local journal with two partitions.
pub(crate) struct Bench {
    pub(crate) database: Database,
    pub(crate) client: Client,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) source: Source,
    /// Major version of the server.
    pub(crate) major: i32,
}

/// One event as a target reads it.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    /// The partition it stood in.
    pub(crate) partition: u16,
    /// Its id.
    pub(crate) id: String,
    /// The whole body.
    pub(crate) body: Value,
    /// The same, parsed by the library.
    pub(crate) event: Event,
}

impl Captured {
    pub(crate) fn op(&self) -> &str {
        self.body["op"].as_str().expect("an operation")
    }

    pub(crate) fn table(&self) -> &str {
        self.body["table"].as_str().unwrap_or_default()
    }

    pub(crate) fn after(&self) -> &Value {
        &self.body["after"]
    }

    pub(crate) fn before(&self) -> &Value {
        &self.body["before"]
    }

    pub(crate) fn key(&self) -> &Value {
        &self.body["key"]
    }

    pub(crate) fn unchanged(&self) -> Vec<&str> {
        self.body["unchanged"].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
    }
}

impl Bench {
    /// Makes tables by `sql`, then a publication `p` by the rest of its statement (as `FOR TABLE a, b`), then the slot.
    /// `tables` are captured, as `schema.table` or `table` of `public`.
    pub(crate) async fn new(name: &str, server: &Postgres, sql: &str, publication: &str, tables: &[&str]) -> Bench {
        Bench::over(Database::empty(server, name).await, name, sql, publication, tables).await
    }

    /// As [`Bench::new`], over a database that is there.
    pub(crate) async fn over(database: Database, name: &str, sql: &str, publication: &str, tables: &[&str]) -> Bench {
        let client = database.connect().await;
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}"));
        client.batch_execute(&format!("CREATE PUBLICATION p {publication}")).await.unwrap_or_else(|error| panic!("{error:?}"));
        let slot = format!("slot_{}", database.name);
        client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.expect("a slot");
        let table = |name: &&str| {
            let (schema, table) = name.split_once('.').unwrap_or(("public", name));
            SourceTable { schema: schema.to_owned(), table: table.to_owned(), partition_by: None }
        };
        let source = Source {
            name: "pos".to_owned(),
            url: SecretString::from(database.url.clone()),
            backfill_url: None,
            slot,
            publication: "p".to_owned(),
            tables: tables.iter().map(table).collect(),
            hold_back: HoldBack { time: Duration::ZERO, bytes: 0 },
            wal_budget: 5 << 30,
            initial_load: false,
            allow_weak_auth: false,
            columns: Default::default(),
            streaming: Default::default(),
            origin: Default::default(),
        };
        let partitions = NonZeroU16::new(2).expect("not zero");
        let journal = LocalJournal::new(&config::LocalJournal { dir: scratch(name), partitions, retention: Retention::default() });
        journal.set_up().await.expect("a journal");
        let version: i32 = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.expect("a version").get(0);
        Bench { database, client, journal: Arc::new(journal), source, major: version / 10_000 }
    }

    /// Runs SQL; each call is one implicit transaction unless the text says otherwise.
    pub(crate) async fn sql(&self, sql: &str) -> &Bench {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{:.300}: {:?}", sql, error.as_db_error()));
        self
    }

    /// Runs statements that hold no semicolon of their own, each in its own transaction.
    pub(crate) async fn each(&self, sql: &str) -> &Bench {
        for statement in sql.split(';').filter(|s| !s.trim().is_empty()) {
            self.sql(statement).await;
        }
        self
    }

    /// The first column of the first row, as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.client
            .query_one(sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .get::<_, Option<String>>(0)
            .unwrap_or_default()
    }

    /// Captures everything there is.
    ///
    /// # Errors
    /// What a person would have to mend.
    pub(crate) async fn try_catch_up(&self) -> Result<(), CaptureError> {
        let facts = check_start(&self.source, "test").await?;
        self.run(facts.primary_keys(), facts.oids()).await
    }

    /// As [`Bench::try_catch_up`] without looking at the catalogue first, as a run that was up already.
    pub(crate) async fn catch_up_unchecked(&self) -> Result<(), CaptureError> {
        let catalog = Catalog::connect(&self.source, "test", "test").await?;
        self.run(catalog.primary_keys(&self.source.tables).await?, HashMap::new()).await
    }

    async fn run(
        &self,
        primary_keys: HashMap<(String, String), Vec<String>>,
        oids: HashMap<u32, (String, String)>,
    ) -> Result<(), CaptureError> {
        let settings = Settings {
            pipeline: "test".to_owned(),
            source: self.source.clone(),
            primary_keys,
            oids,
            row_bytes_max: capture::ROW_BYTES_MAX,
            owner: "test".to_owned(),
            seed: None,
        };
        let parts = CaptureParts {
            source: Arc::new(PgSource::new(&self.source, "test")),
            journal: self.journal.clone(),
            settings,
            hooks: None,
            stats: Arc::default(),
            stop: CancellationToken::new(),
        };
        let ended = tokio::time::timeout(crate::harness::PATIENCE, capture::run(parts, Mode::UntilCaughtUp));
        ended.await.expect("it ends").map(|_| ())
    }

    /// Captures everything there is and answers all events so far, in the order of their positions (of a TRUNCATE the one
    /// of the first partition).
    pub(crate) async fn events(&self) -> Vec<Captured> {
        self.try_catch_up().await.unwrap_or_else(|error| panic!("{error}"));
        self.read().await
    }

    /// All events that are stored.
    pub(crate) async fn read(&self) -> Vec<Captured> {
        let mut events = BTreeMap::new();
        for partition in 0..self.journal.partitions() {
            let Some(bounds) = self.journal.bounds(Log::Data(partition)).await.expect("bounds") else { continue };
            let mut reader = self.journal.reader(Log::Data(partition), From::First).await.expect("a reader");
            let mut filter = Filter::new();
            loop {
                let chunk = reader.next().await.expect("a chunk");
                let end = chunk.first_offset.0 + u64::from(chunk.records);
                filter
                    .chunk::<FilterError>(&chunk, |_, verdict| {
                        if let Verdict::Pass(passed) = verdict
                            && matches!(passed.header.kind, Kind::Event)
                        {
                            let body =
                                serde_json::from_slice(passed.body).unwrap_or_else(|e| panic!("{e}: {}", passed.body.escape_ascii()));
                            let event = Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event");
                            let captured = Captured { partition, id: event.id().to_owned(), body, event };
                            let at = captured.event.version();
                            if let Some(twice) = events.insert((at, captured.id.clone()), captured) {
                                assert_eq!(twice.op(), "truncate", "{} stands twice", twice.id);
                            }
                        }
                        Ok(())
                    })
                    .expect("no gap");
                if end > bounds.last.0 {
                    break;
                }
            }
        }
        events.into_values().collect()
    }

    /// What the control journal says.
    pub(crate) async fn control(&self) -> State {
        control::replay(self.journal.as_ref()).await.expect("replays")
    }

    /// Drops the database and its slot.
    pub(crate) async fn end(self, server: &Postgres) {
        drop(self.client);
        self.database.drop(server).await;
    }
}

//! Capture with its initial load, run inside the test, and what its journal says in the end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use tillstream::backfill::{self, Backfill, SessionHooks};
use tillstream::capture::catalog::Catalog;
use tillstream::capture::wire::PgSource;
use tillstream::capture::{self, CaptureError, CaptureParts, Mode, Settings, Stopped};
use tillstream::config::{self, HoldBack, Protect, Retention, Source, SourceTable};
use tillstream::control::{self, State};
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::journal::local::LocalJournal;
use tillstream::journal::{From, Journal, Log};
use tillstream_schemas::{Event, Kind, Op, Position};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{Database, Postgres, scratch};

/// A database with slot and publication, and a local journal.
pub(super) struct Bench {
    pub(super) database: Database,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) source: Source,
    pub(super) changed_at: BTreeMap<String, String>,
}

/// A capture run.
pub(super) struct Run {
    pub(super) backfill: Arc<Backfill>,
    stop: CancellationToken,
    task: JoinHandle<Result<Stopped, CaptureError>>,
}

impl Bench {
    /// Makes the tables by `sql`, with rows that are older than the slot.
    pub(super) async fn new(name: &str, server: &Postgres, sql: &str, tables: &[&str]) -> Bench {
        let database = Database::empty(server, name).await;
        let slot = format!("slot_{}", database.name);
        let client = database.connect().await;
        client.batch_execute(sql).await.expect("the tables");
        let list = tables.join(", ");
        client
            .batch_execute(&format!("CREATE PUBLICATION p FOR TABLE {list} WITH (publish_via_partition_root = true)"))
            .await
            .expect("a publication");
        client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.expect("a slot");
        let table = |name: &&str| SourceTable { schema: "public".to_owned(), table: (*name).to_owned(), partition_by: None };
        let source = Source {
            name: "pos".to_owned(),
            url: SecretString::from(database.url.clone()),
            backfill_url: None,
            slot,
            publication: "p".to_owned(),
            tables: tables.iter().map(table).collect(),
            hold_back: HoldBack { time: Duration::ZERO, bytes: 0 },
            wal_budget: 5 << 30,
            initial_load: true,
            allow_weak_auth: false,
            columns: Default::default(),
            streaming: Default::default(),
            origin: Default::default(),
        };
        let two = std::num::NonZeroU16::new(2).expect("not zero");
        let journal = LocalJournal::new(&config::LocalJournal { dir: scratch(name), partitions: two, retention: Retention::default() });
        journal.set_up().await.expect("a journal");
        Bench { database, journal: Arc::new(journal), source, changed_at: BTreeMap::new() }
    }

    async fn parts(&self) -> (CaptureParts, Arc<Backfill>) {
        let catalog = Catalog::connect(&self.source, "test", "test").await.expect("the server accepts");
        let settings = Settings {
            pipeline: "test".to_owned(),
            source: self.source.clone(),
            primary_keys: catalog.primary_keys(&self.source.tables).await.expect("keys"),
            oids: Default::default(),
            row_bytes_max: capture::ROW_BYTES_MAX,
            owner: "test".to_owned(),
            seed: None,
        };
        let settings_of = backfill::Settings {
            source: self.source.clone(),
            pipeline: "test".to_owned(),
            protect: Protect::default(),
            changed_at: self.changed_at.clone(),
            connectors: Vec::new(),
            until_caught_up: false,
        };
        let backfill = Backfill::new(settings_of, None);
        let parts = CaptureParts {
            source: Arc::new(PgSource::new(&self.source, "test")),
            journal: self.journal.clone(),
            settings,
            hooks: Some(Arc::new(SessionHooks(backfill.clone()))),
            stats: Arc::default(),
            stop: CancellationToken::new(),
        };
        (parts, backfill)
    }

    /// Starts capture with hooks of the test's own.
    pub(super) async fn start_with(&self, hooks: Arc<dyn capture::hook::Hooks>) -> Run {
        let (mut parts, backfill) = self.parts().await;
        parts.hooks = Some(hooks);
        let stop = parts.stop.clone();
        let task = tokio::spawn(capture::run(parts, Mode::Follow));
        Run { backfill, stop, task }
    }

    /// Starts capture.
    pub(super) async fn start(&self) -> Run {
        let (parts, backfill) = self.parts().await;
        let stop = parts.stop.clone();
        let task = tokio::spawn(capture::run(parts, Mode::Follow));
        Run { backfill, stop, task }
    }

    /// Captures everything there is and returns.
    pub(super) async fn catch_up(&self) {
        let (parts, _) = self.parts().await;
        capture::run(parts, Mode::UntilCaughtUp).await.expect("catches up");
    }

    pub(super) async fn control(&self) -> State {
        control::replay(self.journal.as_ref()).await.expect("replays")
    }

    /// Reads the whole journal as a target would.
    pub(super) async fn read(&self) -> Rows {
        let mut rows = Rows::default();
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
                            && matches!(passed.header.kind, Kind::Event | Kind::Read)
                        {
                            rows.take(partition, Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event"));
                        }
                        Ok(())
                    })
                    .expect("no gap");
                if end > bounds.last.0 {
                    break;
                }
            }
        }
        rows
    }

    pub(super) async fn end(self, server: &Postgres) {
        self.database.drop(server).await;
    }
}

impl Run {
    pub(super) fn is_loaded(&self) -> bool {
        self.backfill.stats().is_finished()
    }

    /// Ends it as SIGTERM does.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("ends well");
    }

    /// Ends it as a crash does: nothing is finished.
    pub(super) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// One row at a target that keeps the highest version.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    version: Position,
    /// `None` once it is deleted.
    columns: Option<BTreeMap<String, String>>,
}

/// What all events of a journal amount to.
#[derive(Default)]
pub(super) struct Rows {
    rows: BTreeMap<String, Held>,
    ids: HashSet<(u16, String)>,
    pub(super) reads: u64,
    pub(super) events: Vec<Event>,
}

impl Rows {
    fn take(&mut self, partition: u16, event: Event) {
        // A TRUNCATE goes to every partition under one id.
        assert!(self.ids.insert((partition, event.id().to_owned())), "{} comes twice", event.id());
        self.reads += u64::from(event.op() == Op::Read);
        let held = self.rows.entry(event.key_text()).or_default();
        if event.version() >= held.version {
            let mut columns = held.columns.take().unwrap_or_default();
            held.version = event.version();
            held.columns = event.has_after().then(|| {
                let unchanged: Vec<&str> = event.unchanged().collect();
                columns.retain(|name, _| unchanged.contains(&name.as_str()));
                columns.extend(event.after().map(|(name, value)| (name.to_owned(), value.to_owned())));
                columns
            });
        }
        self.events.push(event);
    }

    /// Every live row as `column=json` texts, sorted.
    pub(super) fn live(&self) -> Vec<BTreeMap<String, String>> {
        let mut live: Vec<_> = self.rows.values().filter_map(|held| held.columns.clone()).collect();
        live.sort();
        live
    }
}

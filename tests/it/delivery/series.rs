//! Long series of events through three connectors whose targets fail, while the processes that deliver are killed, ended
//! and started: every effect once, in order for each row, and little kept of what is settled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tillstream::control;
use tillstream::journal::{self, Journal, Log};
use tillstream_connectors::registry::Registry;

use super::ledger::Ledger;
use super::pos::{Capture, Change, insert, update};
use crate::harness::{Database, Level, Postgres, Process, Proxy, RabbitMq, judge_log, scratch};

/// The longest a series may take to be drained once its processes are left alone.
const DRAIN: Duration = Duration::from_secs(600);
const CONNECTORS: [&str; 3] = ["inventory", "engagement", "profiles"];

/// One series: its journal, its targets, its files.
struct Series {
    dir: PathBuf,
    journal: Arc<dyn Journal>,
    ledgers: [Arc<Ledger>; 2],
    database: Database,
    /// Between the `sql` sink and its database.
    proxy: Arc<Proxy>,
    /// Rows; the changes are spread over them evenly.
    rows: u64,
    events: u64,
    ends: Vec<u64>,
}

impl Series {
    async fn new(name: &str, broker: &RabbitMq, partitions: u16, rows: u64, events: u64) -> Series {
        let server = Postgres::shared().await;
        let database = Database::empty(server, name).await;
        // Each write is noted; one statement in twenty meets another that was first.
        let sql = "CREATE TABLE a (id bigint PRIMARY KEY, qty integer NOT NULL,
               _version text COLLATE \"C\" NOT NULL, _deleted boolean NOT NULL DEFAULT false);
             CREATE TABLE applied (seq bigserial PRIMARY KEY, id bigint NOT NULL, qty integer NOT NULL);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               $$BEGIN INSERT INTO applied (id, qty) VALUES (NEW.id, NEW.qty); RETURN NULL; END$$;
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION note();
             CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
               $$BEGIN IF random() < 0.05 THEN RAISE EXCEPTION 'busy' USING ERRCODE = '40001'; END IF; RETURN NULL; END$$;
             CREATE TRIGGER fail AFTER INSERT ON a FOR EACH STATEMENT EXECUTE FUNCTION fail();";
        database.connect().await.batch_execute(sql).await.expect("creates");
        let proxy = Arc::new(Proxy::start(server.address()).await);
        let lost_after = Duration::from_millis(400);
        let room = usize::try_from(rows).expect("small");
        let (lists, lists_at) = Ledger::start(room, 50, lost_after, false).await;
        let (singles, singles_at) = Ledger::start(room, 50, lost_after, false).await;

        let dir = scratch(name);
        let lanes = |all: u16| (all / partitions).max(1);
        let common = "from: {tables: [public.a]}\non_delete: tombstone\nretry: {base: 20ms, max: 1s}\n";
        let files = [
            (
                "tillstream.yaml",
                format!(
                    "version: 1\npipeline: series\nsource:\n  name: pos\n  url: postgres://nobody@127.0.0.1:1/pos\n  slot: unused\n  publication: unused\n  \
                     tables: [public.a]\njournal:\n  rabbitmq:\n    urls: [\"{}\"]\n    stream: {}\n    partitions: {partitions}\nconnectors: [inventory.yaml, \
                     engagement.yaml, profiles.yaml]\n",
                    broker.url, database.name
                ),
            ),
            (
                "inventory.yaml",
                format!(
                    "version: 1\nconnector: inventory\n{common}to:\n  sql:\n    url: {}\n    create: true\n    tables: {{public.a: {{key: [id], columns: \
                     [qty]}}}}\ndelivery: {{lanes: {}, batch: {{items: 1000}}}}\n",
                    database.url.replace(server.address(), &proxy.address()),
                    lanes(4)
                ),
            ),
            (
                "engagement.yaml",
                format!(
                    "version: 1\nconnector: engagement\n{common}to:\n  http: {{url: \"http://{lists_at}/list\", allow_private: true, mode: batch, timeout: 200ms, columns: \
                     {{public.a: [id, qty]}}}}\ndelivery: {{lanes: {}, batch: {{items: 200}}}}\n",
                    lanes(8)
                ),
            ),
            (
                "profiles.yaml",
                format!(
                    "version: 1\nconnector: profiles\n{common}map:\n  metric: Changed\n  profile: {{external_id: \"{{{{ after.id | string }}}}\"}}\n  properties: {{id: \"{{{{ after.id \
                     }}}}\", qty: \"{{{{ after.qty }}}}\"}}\nto:\n  klaviyo: {{resource: event, api_key: pk_test, url: \"http://{singles_at}\", allow_private: true, timeout: \
                     200ms}}\ndelivery: {{lanes: {}, batch: {{items: 50}}}}\n",
                    lanes(32)
                ),
            ),
        ];
        for (file, text) in files {
            std::fs::write(dir.join(file), text).expect("target/ can be written");
        }
        let config = tillstream::config::load(&dir.join("tillstream.yaml"), &Registry::built_in())
            .unwrap_or_else(|report| panic!("{}", report.render(false)));
        let journal = journal::open(&config.journal, "series").expect("a journal");
        journal.set_up().await.expect("sets up");
        let mut series = Series { dir, journal, ledgers: [lists, singles], database, proxy, rows, events, ends: Vec::new() };
        series.fill().await;
        series
    }

    /// Writes the series as capture would: `events` changes, a row's numbered from 1.
    async fn fill(&mut self) {
        let partitions = self.journal.partitions();
        let mut capture = Capture::new(self.journal.as_ref(), 1).await;
        let changed = |row, change| if change == 1 { insert("a", row, change) } else { update("a", row, change) };
        for change in 1..=self.events / self.rows {
            for partition in 0..partitions {
                let rows: Vec<u64> = (0..self.rows).filter(|row| row % u64::from(partitions) == u64::from(partition)).collect();
                for rows in rows.chunks(250) {
                    let changes: Vec<Change> = rows.iter().map(|row| changed(*row, change)).collect();
                    capture.write(partition, &changes).await;
                }
            }
        }
        capture.flush().await;
        for partition in 0..partitions {
            self.ends.push(self.journal.bounds(Log::Data(partition)).await.expect("bounds").expect("written").last.0);
        }
    }

    fn start(&self, name: &str) -> Process {
        Process::start(&self.dir, name, &["run", "--only", "delivery", "--listen", "127.0.0.1:0"], &[])
    }

    fn applied(&self) -> [u64; 2] {
        [self.ledgers[0].applied(), self.ledgers[1].applied()]
    }

    /// The longest ledger of a checkpoint, and whether every connector has settled every partition to its end.
    async fn look(&self) -> (usize, bool) {
        let state = control::replay(self.journal.as_ref()).await.expect("replays");
        let ledger = state.checkpoints().map(|c| c.ledger.len()).max().unwrap_or(0);
        let settled = |connector: &str| {
            (0u16..).zip(&self.ends).all(|(partition, end)| state.checkpoint(connector, partition).is_some_and(|c| c.offset.0 > *end))
        };
        (ledger, CONNECTORS.iter().all(|c| settled(c)))
    }

    /// Every effect once and in order at all three targets, and no dead letter.
    async fn judge(&self) {
        for (name, ledger) in ["list", "klaviyo"].iter().zip(&self.ledgers) {
            println!(
                "{name}: {} requests, {} failed, {} effects, {} repeats absorbed, {} doubled or out of order",
                ledger.requests(),
                ledger.failures(),
                ledger.applied(),
                ledger.repeats(),
                ledger.wrong()
            );
            assert_eq!((ledger.applied(), ledger.wrong()), (self.events, 0), "{name}");
        }
        let client = self.database.connect().await;
        let sql =
            "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM a WHERE qty <> $1), count(*), count(*) FILTER (WHERE qty <= before)
             FROM (SELECT qty, lag(qty, 1, 0) OVER (PARTITION BY id ORDER BY seq) AS before FROM applied) n";
        let last = i32::try_from(self.events / self.rows).expect("small");
        let row = client.query_one(sql, &[&last]).await.expect("reads");
        let counts: Vec<i64> = (0..4).map(|n| row.get(n)).collect();
        println!("sql: {} rows, {} differ, {} writes, {} doubled or out of order", counts[0], counts[1], counts[2], counts[3]);
        assert_eq!((counts[0], counts[1], counts[3]), (i64::try_from(self.rows).expect("small"), 0, 0));
        let state = control::replay(self.journal.as_ref()).await.expect("replays");
        assert_eq!(state.dead_letters().count(), 0);
        for entry in std::fs::read_dir(&self.dir).expect("readable").flatten() {
            if entry.path().extension().is_some_and(|e| e == "err") {
                judge_log(&entry.path(), &[]);
            }
        }
    }
}

/// kill -9, an orderly end, or a start for one of so many processes every `period`, until every event has had its effects.
async fn disturb(series: &Series, processes: usize, period: Duration) -> (u32, u32, usize) {
    let begun = Instant::now();
    // Cuts lose the answers of commits.
    let proxy = series.proxy.clone();
    let cutting = tokio::spawn(async move {
        loop {
            tokio::time::sleep(period / 5).await;
            proxy.cut();
        }
    });
    let mut fleet: Vec<Option<Process>> = (0..processes).map(|n| Some(series.start(&format!("delivery{n}")))).collect();
    let (mut killed, mut ended, mut ledger) = (0, 0, 0);
    loop {
        tokio::time::sleep(period).await;
        let (longest, settled) = series.look().await;
        ledger = longest.max(ledger);
        if settled {
            break;
        }
        assert!(begun.elapsed() < DRAIN * 3, "not drained: {:?} of {}", series.applied(), series.events);
        let n = rand::rng().random_range(0..processes);
        match fleet[n].take() {
            Some(process) if processes == 1 || rand::rng().random_bool(0.5) => {
                process.kill9().await;
                killed += 1;
            }
            Some(process) => {
                process.terminate(Duration::from_secs(20)).await;
                ended += 1;
            }
            None => fleet[n] = Some(series.start(&format!("delivery{n}"))),
        }
        if processes == 1 || fleet.iter().all(Option::is_none) {
            fleet[n] = Some(series.start(&format!("delivery{n}")));
        }
    }
    cutting.abort();
    for process in fleet.into_iter().flatten() {
        process.terminate(Duration::from_secs(20)).await;
    }
    (killed, ended, ledger)
}

async fn run(name: &str, partitions: u16, processes: usize) {
    let (rows, events) = Level::pick((500, 5_000), (1_000, 20_000), (10_000, 1_000_000));
    let period = Level::pick(Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(10));
    let own = if Level::get() == Level::Long { Some(RabbitMq::private(name).await) } else { None };
    let broker = match &own {
        Some(own) => own,
        None => RabbitMq::shared().await,
    };
    let series = Series::new(name, broker, partitions, rows, events).await;
    let begun = Instant::now();
    let (killed, ended, ledger) = disturb(&series, processes, period).await;
    let took = begun.elapsed();
    println!(
        "{name}: {events} events through {} connectors by {processes} processes on {partitions} partitions in {took:?}: {killed} killed, {ended} ended in \
         good order, at most {ledger} ranges in a ledger",
        CONNECTORS.len()
    );
    series.judge().await;
    assert!(ledger <= 500, "{ledger}");
    assert!(Level::get() == Level::Quick || killed + ended > 0);
    let server = Postgres::shared().await;
    series.database.drop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_again_and_again_brings_every_effect_once_and_in_order() {
    run("series", 1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_come_and_go_bring_every_effect_once_and_in_order() {
    run("fleet", 4, 3).await;
}

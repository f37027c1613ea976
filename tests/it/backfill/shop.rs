//! A source with one table, a target that follows it, and the program between them as its users run it.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::{Database, PATIENCE, Postgres, Process, RabbitMq, Running, free_port, scratch, wait_for};

/// Everything of one test; databases and slot go with [`Shop::drop`].
pub(super) struct Shop {
    pub(super) dir: PathBuf,
    pub(super) pos: Database,
    pub(super) target: Database,
    port: u16,
}

/// How a shop is made.
pub(super) struct Plan<'a> {
    pub(super) name: &'a str,
    /// Rows of the table that are older than the slot.
    pub(super) rows: u32,
    /// The broker; a local journal when there is none.
    pub(super) broker: Option<&'a RabbitMq>,
    /// More lines of the pipeline's file.
    pub(super) more: &'a str,
    /// Whether a connector delivers.
    pub(super) delivers: bool,
    /// Whether its rows have the columns of an order's item: what most rows of a point of sale are.
    pub(super) wide: bool,
    /// More keys of a RabbitMQ journal.
    pub(super) rabbitmq: &'a str,
}

impl<'a> Plan<'a> {
    pub(super) fn new(name: &'a str, rows: u32) -> Plan<'a> {
        Plan { name, rows, broker: None, more: "", delivers: true, wide: false, rabbitmq: "" }
    }
}

/// Columns of an order's item beside those of every item, and their values.
const WIDE: (&str, &str) = (
    ", order_id bigint NOT NULL, location_id integer NOT NULL, quantity numeric(10,3) NOT NULL, tax_rate numeric(5,4) NOT NULL, \
     modifiers jsonb, note text, voided boolean NOT NULL, created_at timestamptz NOT NULL",
    ", n / 3, n % 40, 1 + n % 3, 0.19, CASE WHEN n % 5 = 0 THEN '{\"add\": [\"oat milk\"]}'::jsonb END, CASE WHEN n % 7 = 0 THEN 'no onions, please' END, \
     n % 50 = 0, now() - n * interval '1 s'",
);

impl Shop {
    pub(super) async fn new(server: &Postgres, plan: Plan<'_>) -> Shop {
        let dir = scratch(plan.name);
        let pos = Database::empty(server, plan.name).await;
        let target = Database::empty(server, &format!("{}_target", plan.name)).await;
        let client = pos.connect().await;
        let (columns, values) = match plan.wide {
            true => (WIDE.0, WIDE.1),
            false => ("", ""),
        };
        client
            .batch_execute(&format!(
                "CREATE SEQUENCE changes;
                 CREATE TABLE item (id bigint PRIMARY KEY, v bigint NOT NULL, name text, price numeric(10,2), updated_at timestamptz NOT NULL DEFAULT now(){columns});
                 INSERT INTO item SELECT n, nextval('changes'), 'item ' || n, n / 100.0, now(){values} FROM generate_series(1, {}) n;
                 CREATE INDEX item_updated_at ON item (updated_at);
                 CREATE PUBLICATION p FOR TABLE item",
                plan.rows
            ))
            .await
            .expect("a table");
        let slot = format!("slot_{}", pos.name);
        client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.expect("a slot");
        client.batch_execute("VACUUM ANALYZE item").await.expect("analyzes");
        target
            .connect()
            .await
            .batch_execute(
                "CREATE TABLE item (id bigint PRIMARY KEY, v bigint, name text, price numeric(10,2), updated_at timestamptz,
                 _version text COLLATE \"C\", _deleted boolean NOT NULL DEFAULT false)",
            )
            .await
            .expect("a target");
        let journal = match plan.broker {
            Some(broker) => format!("rabbitmq: {{urls: [\"{}/%2f\"], stream: {}, partitions: 2{}}}", broker.url, pos.name, plan.rabbitmq),
            None => "local: {dir: journal, partitions: 2}".to_owned(),
        };
        let connectors = if plan.delivers { "connectors: [stock.yaml]\n" } else { "" };
        let port = free_port();
        let text = format!(
            "version: 1\npipeline: shop\nsource:\n  name: pos\n  url: {}\n  slot: slot_{}\n  publication: p\n  tables: [public.item]\n  \
             changed_at: {{public.item: updated_at}}\n  initial_load: false\n  hold_back: {{time: 0s, bytes: 0B}}\njournal:\n  {journal}\nadmin: {{listen: \"127.0.0.1:{port}\"}}\n{connectors}{}",
            pos.url, pos.name, plan.more
        );
        std::fs::write(dir.join("tillstream.yaml"), text).expect("target/ can be written");
        let stock = format!(
            "version: 1\nconnector: stock\nfrom: {{tables: [public.item], ops: [insert, update, delete, truncate, read]}}\non_delete: tombstone\nto:\n  sql:\n    url: {}\n    \
             create: true\n    tables:\n      public.item: {{key: [id], columns: [v, name, price, updated_at]}}\n",
            target.url
        );
        std::fs::write(dir.join("stock.yaml"), stock).expect("target/ can be written");
        Shop { dir, pos, target, port }
    }

    pub(super) fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(&self.dir, name, arguments, &[])
    }

    /// `tillstream run`.
    pub(super) fn run(&self) -> Running {
        Running { process: self.start("run", &["run"]), admin: format!("http://127.0.0.1:{}", self.port) }
    }

    /// Runs a command to its end: exit code, what it printed, what it said.
    pub(super) async fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("command-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let process = self.start(&name, arguments);
        let status = process.wait(PATIENCE * 4).await;
        let read = |end: &str| std::fs::read_to_string(self.dir.join(format!("{name}.{end}"))).unwrap_or_default();
        (code(status), read("out"), read("err"))
    }

    /// The last line that a command printed, as JSON.
    pub(super) async fn summary(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.command(arguments).await;
        let last = out.lines().last().unwrap_or_default();
        (code, serde_json::from_str(last).unwrap_or_else(|_| panic!("no summary: {out}\n{err}")))
    }

    /// Waits until the target holds what the source does.
    pub(super) async fn equal(&self) {
        let (source, target) = (self.pos.connect().await, self.target.connect().await);
        wait_for("the target to be equal", PATIENCE, async || {
            let theirs = digest(&target, "WHERE NOT _deleted").await;
            (digest(&source, "").await == theirs).then_some(())
        })
        .await;
    }

    pub(super) async fn drop(self, server: &Postgres) {
        self.pos.drop(server).await;
        self.target.drop(server).await;
    }
}

/// Rows and a digest of all of them.
pub(super) async fn digest(client: &Client, condition: &str) -> (i64, Option<String>) {
    let sql =
        format!("SELECT count(*), md5(string_agg(md5(ROW(id, v, name, price, updated_at)::text), '' ORDER BY id)) FROM item {condition}");
    let row = client.query_one(&sql, &[]).await.expect("a digest");
    (row.get(0), row.get(1))
}

/// The exit code; a signal that nobody handled is 128 more than its number.
pub(super) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Sends a signal by name.
pub(super) async fn signal(process: &Process, name: &str) {
    let pid = process.pid().to_string();
    tokio::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().await.expect("kill runs");
}

/// Some time that a seed decides.
pub(super) async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

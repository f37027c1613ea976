//! A point of sale that sells: orders with ten items and a payment, thirteen changes a transaction.

use std::path::{Path, PathBuf};

use tillstream::config::SourceTable;
use tokio_postgres::Client;

use crate::harness::{Database, Postgres, RabbitMq, scratch};

/// Changes of one sale.
pub(super) const SALE: u64 = 13;

/// One of its own, so that its WAL holds nobody else's load.
pub(super) struct Shop {
    pub(super) server: Postgres,
    pub(super) database: Database,
    pub(super) pos: Client,
    pub(super) dir: PathBuf,
}

impl Shop {
    pub(super) async fn new(name: &str) -> Shop {
        let server = Postgres::private(&format!("bench-{name}"), "max_wal_size = '8GB'").await;
        let database = Database::empty(&server, "bench").await;
        let pos = database.connect().await;
        pos.batch_execute(
            "CREATE TABLE sale (id bigint PRIMARY KEY, location_id int NOT NULL, table_no text, status text NOT NULL, total numeric(10,2), opened_at timestamptz NOT NULL DEFAULT now());
             CREATE TABLE sale_item (id bigint PRIMARY KEY, sale_id bigint NOT NULL, item text NOT NULL, quantity numeric(10,3) NOT NULL, price numeric(10,2) NOT NULL, modifiers jsonb,
                                     created_at timestamptz NOT NULL DEFAULT now());
             CREATE TABLE payment (id bigint PRIMARY KEY, sale_id bigint NOT NULL, method text NOT NULL, amount numeric(10,2) NOT NULL, paid_at timestamptz NOT NULL DEFAULT now());
             CREATE PROCEDURE sell(n bigint) LANGUAGE sql AS $$
               INSERT INTO sale (id, location_id, table_no, status) VALUES (n, n % 40, 'T' || n % 60, 'open');
               INSERT INTO sale_item (id, sale_id, item, quantity, price, modifiers)
                 SELECT n * 10 + i, n, 'Espresso doppio no. ' || i, 1 + i % 3, 2.40 + i, CASE WHEN i = 3 THEN '{\"add\": [\"oat milk\"]}'::jsonb END FROM generate_series(1, 10) i;
               INSERT INTO payment (id, sale_id, method, amount) VALUES (n, n, 'card', 79.00);
               UPDATE sale SET status = 'paid', total = 79.00 WHERE id = n;
             $$;
             CREATE PUBLICATION till FOR TABLE sale, sale_item, payment",
        )
        .await
        .expect("a shop");
        pos.execute("SELECT pg_create_logical_replication_slot('base', 'pgoutput')", &[]).await.expect("a slot");
        Shop { server, database, pos, dir: scratch(&format!("bench-{name}")) }
    }

    /// Sells, without waiting for the disk.
    pub(super) async fn sell(&self, sales: u64) {
        self.load(&format!("DO $$ BEGIN FOR n IN 1..{sales} LOOP CALL sell(n); COMMIT; END LOOP; END $$")).await;
    }

    /// So many items in one transaction.
    pub(super) async fn deliver(&self, items: u64) {
        self.load(&format!(
            "INSERT INTO sale_item (id, sale_id, item, quantity, price, modifiers)
             SELECT n, n / 10, 'Espresso doppio no. ' || n % 10, 1 + n % 3, 2.40 + n % 10, CASE WHEN n % 10 = 3 THEN '{{\"add\": [\"oat milk\"]}}'::jsonb END FROM generate_series(1, {items}) n"
        ))
        .await;
    }

    /// Runs what writes much, in many transactions or in one; none of them waits for the disk.
    pub(super) async fn load(&self, sql: &str) {
        for sql in ["SET synchronous_commit = off", sql, "RESET synchronous_commit", "CHECKPOINT"] {
            self.pos.batch_execute(sql).await.expect("loads");
        }
    }

    pub(super) async fn flushed(&self) -> String {
        self.pos.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.expect("reads").get(0)
    }

    /// A slot that stands where the shop began.
    pub(super) async fn slot(&self, name: &str) {
        self.pos.execute("SELECT pg_copy_logical_replication_slot('base', $1)", &[&name]).await.expect("copies");
    }

    pub(super) async fn drop_slot(&self, name: &str) {
        self.pos.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.expect("the slot is free");
    }

    /// What is captured.
    pub(super) fn tables(&self) -> Vec<SourceTable> {
        ["sale", "sale_item", "payment"]
            .map(|table| SourceTable { schema: "public".to_owned(), table: table.to_owned(), partition_by: None })
            .to_vec()
    }

    /// Writes a pipeline's file whose slot and stream have this name; `more` are further lines.
    pub(super) fn file(&self, name: &str, broker: &RabbitMq, rabbitmq: &str, more: &str) -> PathBuf {
        self.file_of(name, "till", &["sale", "sale_item", "payment"], broker, rabbitmq, more)
    }

    /// As [`Self::file`], of another publication's tables.
    pub(super) fn file_of(&self, name: &str, publication: &str, tables: &[&str], broker: &RabbitMq, rabbitmq: &str, more: &str) -> PathBuf {
        let tables: Vec<String> = tables.iter().map(|table| format!("public.{table}")).collect();
        let path = self.dir.join(format!("{name}.yaml"));
        let text = format!(
            "version: 1\npipeline: {name}\nsource:\n  name: pos\n  url: {}\n  slot: {name}\n  publication: {publication}\n  tables: [{}]\n  \
             initial_load: false\n  hold_back: {{time: 0s, bytes: 0B}}\njournal:\n  rabbitmq: {{urls: [\"{}/%2f\"], stream: {}-{name}{rabbitmq}}}\n{more}",
            self.database.url,
            tables.join(", "),
            broker.url,
            self.database.name.replace('_', "-"),
        );
        write(&path, &text);
        path
    }
}

pub(super) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("target/ can be written");
}

//! What an event costs as work grows in one direction: tables, columns, bytes, rows of a transaction, partitions, connectors.

use std::time::Instant;

use tillstream_connectors::sandbox::{Sandbox, Settings};

use super::capture::drained;
use super::figures::Figures;
use super::process::{Measured, usage};
use super::shop::{Shop, write};
use crate::harness::{Level, Process, RabbitMq, free_port};

/// One case: its tables, how many rows are loaded into each by how many transactions, and the columns' SQL.
struct Case {
    name: String,
    tables: usize,
    columns: String,
    values: String,
    rows: u64,
    rows_of_transaction: u64,
    partitions: u16,
}

impl Case {
    fn new(name: &str) -> Case {
        Case {
            name: name.to_owned(),
            tables: 1,
            columns: "item text NOT NULL, quantity numeric(10,3) NOT NULL, price numeric(10,2) NOT NULL, created_at timestamptz NOT NULL"
                .to_owned(),
            values: "'Espresso doppio no. ' || n % 10, 1 + n % 3, 2.40 + n % 10, now()".to_owned(),
            rows: Level::pick(2_000, 5_000, 300_000),
            rows_of_transaction: 10,
            partitions: 1,
        }
    }

    /// Loads it and captures it, with a slot, a stream and tables of the round.
    async fn run(&self, shop: &Shop, broker: &RabbitMq, round: u32) -> Measured {
        let slot = format!("c{round}_{}", self.name.to_lowercase().replace(' ', "_"));
        let tables: Vec<String> = (0..self.tables).map(|n| format!("{slot}_{n}")).collect();
        let mut sql = String::new();
        for table in &tables {
            sql += &format!("CREATE TABLE {table} (id bigint PRIMARY KEY, {});", self.columns);
        }
        sql += &format!("CREATE PUBLICATION {slot} FOR TABLE {};", tables.join(", "));
        shop.pos.batch_execute(&sql).await.expect("tables");
        shop.pos.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.expect("a slot");
        let of = self.rows_of_transaction;
        // Transactions go from table to table.
        let arms: String = tables
            .iter()
            .enumerate()
            .map(|(k, table)| {
                let insert = format!(
                    "INSERT INTO {table} SELECT n, {} FROM generate_series(t * {of} + 1, LEAST((t + 1) * {of}, {})) n;",
                    self.values, self.rows
                );
                format!("IF t % {} = {k} THEN {insert} END IF; ", self.tables)
            })
            .collect();
        let last = self.rows.div_ceil(of) - 1;
        shop.load(&format!("DO $$ BEGIN FOR t IN 0..{last} LOOP {arms} COMMIT; END LOOP; END $$")).await;
        let names: Vec<&str> = tables.iter().map(String::as_str).collect();
        let file = shop.file_of(&slot, &slot, &names, broker, &format!(", partitions: {}", self.partitions), "");
        let measured = drained(shop, broker, &slot, &file, self.rows).await;
        let drop: String = tables.iter().map(|table| format!("DROP TABLE {table};")).collect();
        shop.pos.batch_execute(&format!("DROP PUBLICATION {slot}; {drop}")).await.expect("drops");
        measured
    }
}

fn cases() -> Vec<(&'static str, Case)> {
    let mut all = Vec::new();
    let scaled = |rows: u64| Level::pick(rows.min(300), rows.min(500), rows);
    for tables in [1, 10, 100] {
        all.push(("tables", Case { tables, ..Case::new(&format!("{tables} tables")) }));
    }
    for (columns, rows) in [(1, 300_000), (20, 200_000), (200, 30_000)] {
        let names: Vec<String> = (0..columns).map(|n| format!("column_{n} text")).collect();
        let values: Vec<String> = (0..columns).map(|n| format!("'value ' || {n} + n")).collect();
        let case =
            Case { columns: names.join(", "), values: values.join(", "), rows: scaled(rows), ..Case::new(&format!("{columns} columns")) };
        all.push(("columns", case));
    }
    for (bytes, name, rows) in [(50, "50 B", 300_000), (1_000, "1 KB", 200_000), (64_000, "64 KB", 4_000), (1_000_000, "1 MB", 300)] {
        let values = format!("repeat(md5(n::text), {})", bytes / 32 + 1);
        let case = Case {
            columns: "body text NOT NULL".to_owned(),
            values,
            rows: if bytes > 10_000 { Level::pick(10, 20, rows) } else { scaled(rows) },
            ..Case::new(&format!("rows of {name}"))
        };
        all.push(("row", case));
    }
    for (of, rows) in [(1, 200_000), (100, 300_000), (5_000_000, 5_000_000)] {
        let case = Case { rows: scaled(rows), rows_of_transaction: of, ..Case::new(&format!("{of} a transaction")) };
        all.push(("transaction", case));
    }
    for partitions in [1, 4, 32] {
        all.push(("partitions", Case { partitions, ..Case::new(&format!("{partitions} partitions")) }));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_costs_the_same_when_work_grows() {
    let shop = Shop::new("costs").await;
    let broker = RabbitMq::shared().await;
    let mut figures = Figures::new(
        "costs",
        "Small transactions of five columns unless something else is said. A table more costs next to nothing; a column or a byte more costs its \
         own writing, and rows of a megabyte are written in parts. A transaction for each row costs everybody twice as much, since each begins and \
         ends; one of millions costs the server twice as much, which spills it to its disk, and us half as much again. Partitions cost the broker, \
         which gets smaller batches for more streams. With 32 of them the rate is that of the start: 33 logs are read and fenced one after the \
         other, which takes 5.4 of these 6.5 seconds; afterwards 300,000 events take one. Each connector of a process maps and sends for itself but \
         shares the parsing.",
    );
    // A second round even when short: it must not meet what the first one left.
    for round in 0..Level::pick(1, 2, 3) {
        for (of, case) in cases() {
            let m = case.run(&shop, broker, round).await;
            figures.add(of, &format!("{}: own CPU", case.name), "us/event", m.own_us);
            figures.add(of, &format!("{}: server CPU", case.name), "us/event", m.server_us);
            figures.add(of, &format!("{}: broker CPU", case.name), "us/event", m.broker_us);
            figures.add(of, &format!("{}: rate", case.name), "events/s", m.per_second);
            figures.add(of, &format!("{}: peak memory", case.name), "MiB", m.rss_mib);
        }
        for count in [1, 5, 20] {
            let (own, rate) = delivered(&shop, broker, count).await;
            figures.add("connectors", &format!("{count} connectors: own CPU, of an event and a connector"), "us/event", own);
            figures.add("connectors", &format!("{count} connectors: deliveries"), "events/s", rate);
        }
    }
    figures.done();
}

/// Delivers a backlog of sales by so many connectors of one process; answers CPU time of an event and a connector, and deliveries a second.
async fn delivered(shop: &Shop, broker: &RabbitMq, count: usize) -> (f64, f64) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let sales = Level::pick(20, 50, 3_000);
    let name = format!("d{n}");
    shop.pos.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&name]).await.expect("a slot");
    let first = n * 100_000 + 1;
    shop.load(&format!("DO $$ BEGIN FOR n IN {first}..{} LOOP CALL sell(n); COMMIT; END LOOP; END $$", first + sales - 1)).await;
    let changes = sales * super::shop::SALE;
    // Answers in a process of its own would be fairer still; this one does nothing else meanwhile, and is not counted.
    let api = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
    let mut list = Vec::new();
    for k in 0..count {
        list.push(format!("{name}-{k}.yaml"));
        write(
            &shop.dir.join(&list[k]),
            &format!(
                "version: 1\nconnector: guests{k}\nfrom: {{tables: [public.sale, public.sale_item, public.payment]}}\non_delete: tombstone\nto:\n  http: {{url: \"{}\", allow_private: true, \
                 mode: batch, columns: {{public.sale: [status], public.sale_item: [item], public.payment: [amount]}}}}\n",
                api.url("/http/events")
            ),
        );
    }
    let capture = shop.file(&name, broker, "", "");
    drained(shop, broker, &name, &capture, changes).await;
    let file =
        shop.file(&name, broker, "", &format!("admin: {{listen: \"127.0.0.1:{}\"}}\nconnectors: [{}]\n", free_port(), list.join(", ")));
    let began = Instant::now();
    let mut process = Process::start(
        &shop.dir,
        &format!("{name}-delivery"),
        &["run", "--config", file.to_str().expect("UTF-8"), "--only", "delivery", "--until-caught-up"],
        &[],
    );
    let mut own = std::time::Duration::ZERO;
    let status = loop {
        if let Some(status) = process.ended() {
            break status;
        }
        if let Some((cpu, _)) = usage(process.pid()) {
            own = cpu;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}: {}", process.stderr());
    let deliveries = changes as f64 * count as f64;
    assert_eq!(api.counts().applied, changes * count as u64);
    (own.as_secs_f64() * 1e6 / deliveries, deliveries / began.elapsed().as_secs_f64())
}

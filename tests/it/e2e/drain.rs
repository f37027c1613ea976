//! Big drains into RabbitMQ: one transaction of many rows, and a backlog of small ones; memory stays small, and rate and CPU (ours, the
//! server's, the broker's) are printed beside `pg_recvlogical` and beside a bare receiver, which counts and throws away, on the same slot
//! contents, in turn, on the same machine in the same minutes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio_postgres::Client;

use tillstream_schemas::Lsn;

use crate::harness::{Database, Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq};
use crate::wire::receiver;

/// The most a draining process may hold, whatever the size of a transaction or a backlog.
const RSS_MIB_MAX: u64 = 128;

/// What one reader did.
#[derive(Clone, Copy, Debug)]
struct Measured {
    rows_per_second: f64,
    cpu_us_per_row: f64,
    /// Of the walsender.
    server_us_per_row: f64,
    /// Of the broker; none where there is none.
    broker_us_per_row: f64,
    rss_mib: u64,
}

/// CPU time of a reader, the walsender that it reads from, and the broker, as last looked at; all but the broker's end with their process.
#[derive(Clone, Copy, Default)]
struct Spent {
    own: Duration,
    server: Duration,
    broker: Duration,
    rss_mib: u64,
}

impl Spent {
    async fn look(&mut self, own: u32, walsender: &mut Option<u32>, pos: &Client, slot: &str) {
        if let Some((cpu, rss)) = usage(own) {
            (self.own, self.rss_mib) = (cpu, rss);
        }
        if walsender.is_none() {
            let pid = pos.query_opt("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", &[&slot]).await.expect("reads");
            *walsender = pid.and_then(|row| row.get::<_, Option<i32>>(0)).and_then(|pid| u32::try_from(pid).ok());
        }
        if let Some((cpu, _)) = walsender.and_then(usage) {
            self.server = cpu;
        }
    }

    fn measured(self, rows: u64, elapsed: Duration) -> Measured {
        let per_row = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
        Measured {
            rows_per_second: rows as f64 / elapsed.as_secs_f64(),
            cpu_us_per_row: per_row(self.own),
            server_us_per_row: per_row(self.server),
            broker_us_per_row: per_row(self.broker),
            rss_mib: self.rss_mib,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_many_rows_drains_in_constant_memory() {
    let rows = Level::pick(20_000, 200_000, 1_000_000);
    let insert = format!("INSERT INTO audit_log (action, details) {} FROM generate_series(1, {rows}) n", row("n"));
    drain("bulk", rows, &insert).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_small_transactions_drains_in_constant_memory() {
    let rows = Level::pick(20_000, 200_000, 1_000_000);
    // Ten rows a transaction; a loader may skip the wait for the disk.
    let insert = format!(
        "DO $$ BEGIN SET LOCAL synchronous_commit = off; FOR t IN 1..{} LOOP INSERT INTO audit_log (action, details) {} FROM generate_series(1, 10) n; COMMIT; END LOOP; END $$",
        rows / 10,
        row("t * 10 + n")
    );
    drain("small", rows, &insert).await;
}

/// About as wide as an order line.
fn row(n: &str) -> String {
    format!(
        "SELECT 'order.fired ' || {n}, jsonb_build_object('order', {n}, 'table', 'T' || ({n}) % 40, 'guest', md5(({n})::text), 'total', 12.50)"
    )
}

async fn drain(name: &str, rows: u64, insert: &str) {
    // One of its own: the WAL of a million rows, and nobody else's load in it.
    let server = Postgres::private(&format!("drain-{name}"), "").await;
    let broker = RabbitMq::shared().await;
    let tables = "    - public.audit_log\n";
    let edit = |file: String| {
        let (from, to) = (file.find("    - public.location").expect("the tables"), file.find("  # The broker").expect("behind the tables"));
        let file = format!("{}{tables}{}", &file[..from], &file[to..]);
        file.replace("connectors: [inventory.yaml, engagement.yaml]", "").replace("  slot:", "  initial_load: false\n  slot:")
    };
    let pipeline = Pipeline::new(&format!("drain-{name}"), &server, Journal::Rabbit(broker), edit).await;
    pipeline.set_up().await;
    let pos = pipeline.pos.connect().await;
    // The oracle is for traffic; here it would only add to the WAL.
    pos.batch_execute("DROP SCHEMA tillstream_oracle CASCADE").await.expect("drops");
    pos.batch_execute(insert).await.expect("inserts");
    pos.batch_execute("CHECKPOINT").await.expect("checkpoints");
    let end: String = pos.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.expect("reads").get(0);

    let rounds = Level::pick(1, 1, 3);
    let mut table = format!("{name}, {rows} rows:\n");
    let (mut beside_theirs, mut beside_bare, mut server_cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let theirs = pg_recvlogical(&pos, &server, &pipeline.pos, &pipeline.slot, &end, rows, round).await;
        let bare = bare(&pos, &pipeline.pos, &pipeline.slot, &end, rows, round).await;
        let ours = tillstream(&pos, broker, &pipeline, rows, round).await;
        for (who, m) in [("pg_recvlogical", theirs), ("bare receiver", bare), ("tillstream", ours)] {
            let _ = writeln!(
                table,
                "  {who:<15} {:>9.0} rows/s; CPU-us/row: own {:>5.2}, server {:>5.2}, broker {:>5.2}; {:>4} MiB",
                m.rows_per_second, m.cpu_us_per_row, m.server_us_per_row, m.broker_us_per_row, m.rss_mib
            );
        }
        beside_theirs.push(ours.rows_per_second / theirs.rows_per_second);
        beside_bare.push(ours.rows_per_second / bare.rows_per_second);
        server_cpu.push(ours.server_us_per_row / theirs.server_us_per_row);
        assert!(ours.rss_mib < RSS_MIB_MAX, "{} MiB for {rows} rows", ours.rss_mib);
    }
    for (what, ratios) in [
        ("rate beside pg_recvlogical", &mut beside_theirs),
        ("rate beside the bare receiver", &mut beside_bare),
        ("server CPU beside pg_recvlogical", &mut server_cpu),
    ] {
        ratios.sort_by(f64::total_cmp);
        let _ = writeln!(table, "  {what}: {ratios:.2?}, median {:.2}", ratios[ratios.len() / 2]);
    }
    println!("{table}");
    pipeline.judge(&[]);
}

/// Drains a copy of the slot into a journal of its own.
async fn tillstream(pos: &Client, broker: &RabbitMq, pipeline: &Pipeline, rows: u64, round: u32) -> Measured {
    let slot = format!("{}_till_{round}", pipeline.slot);
    copy_slot(pos, &pipeline.slot, &slot).await;
    let file = std::fs::read_to_string(pipeline.dir.join("tillstream.yaml")).expect("the pipeline's file");
    let file = file.replace(&format!("slot: {}", pipeline.slot), &format!("slot: {slot}"));
    let file = file.replace(&format!("stream: {}", pipeline.stream), &format!("stream: {}-{round}", pipeline.stream));
    let name = format!("round-{round}.yaml");
    std::fs::write(pipeline.dir.join(&name), file).expect("target/ can be written");
    let broker: u32 = broker.pid().await.trim().parse().expect("a process");
    let before = usage(broker).expect("the broker runs").0;
    let mut running = pipeline.run(&format!("drain-{round}"), &["--config", &name, "--only", "capture", "--until-caught-up"]);
    let began = Instant::now();
    let (mut spent, mut walsender) = (Spent::default(), None);
    let status = loop {
        if let Some(status) = running.process.ended() {
            break status;
        }
        spent.look(running.process.pid(), &mut walsender, pos, &slot).await;
        assert!(began.elapsed() < PATIENCE * 4, "the drain does not end; {}", running.process.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let elapsed = began.elapsed();
    spent.broker = usage(broker).expect("the broker runs").0.saturating_sub(before);
    assert!(status.success(), "{status}: {}", running.process.stderr());
    pos.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await.expect("the slot is free");
    assert_eq!(pipeline.journal_events(&name).await, rows, "every row is in the journal, once");
    spent.measured(rows, elapsed)
}

/// The limit: our connection, whose frames are counted and thrown away. Runs in this process, so its memory and CPU time mean nothing.
async fn bare(pos: &Client, database: &Database, base: &str, end: &str, rows: u64, round: u32) -> Measured {
    let slot = format!("{base}_bare_{round}");
    copy_slot(pos, base, &slot).await;
    let end: Lsn = end.parse().expect("an LSN");
    let (url, name) = (database.url.clone(), slot.clone());
    let began = Instant::now();
    let counting = tokio::spawn(async move { receiver::count(&url, &name, "tillstream_demo", end).await });
    let (mut spent, mut walsender) = (Spent::default(), None);
    while !counting.is_finished() {
        spent.look(std::process::id(), &mut walsender, pos, &slot).await;
        assert!(began.elapsed() < PATIENCE * 4, "the bare receiver does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let elapsed = began.elapsed();
    assert_eq!(counting.await.expect("no panic"), rows);
    pos.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await.expect("the slot is free");
    Measured { cpu_us_per_row: f64::NAN, rss_mib: 0, ..spent.measured(rows, elapsed) }
}

async fn pg_recvlogical(pos: &Client, server: &Postgres, database: &Database, base: &str, end: &str, rows: u64, round: u32) -> Measured {
    let slot = format!("{base}_recv_{round}");
    copy_slot(pos, base, &slot).await;
    let began = Instant::now();
    let mut child = Command::new(server.program("pg_recvlogical").await)
        .args(["--dbname", &database.url, "--slot", &slot, "--start", "--file", "/dev/null", "--endpos", end])
        .args(["--no-loop", "--status-interval", "1", "--option", "proto_version=1", "--option", "publication_names=tillstream_demo"])
        .kill_on_drop(true)
        .spawn()
        .expect("pg_recvlogical comes with the server");
    let pid = child.id().expect("it runs");
    let (mut spent, mut walsender) = (Spent::default(), None);
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            break status;
        }
        spent.look(pid, &mut walsender, pos, &slot).await;
        assert!(began.elapsed() < PATIENCE * 4, "pg_recvlogical does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let elapsed = began.elapsed();
    assert!(status.success(), "{status}");
    pos.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await.expect("the slot is free");
    spent.measured(rows, elapsed)
}

async fn copy_slot(pos: &Client, from: &str, to: &str) {
    pos.execute("SELECT pg_copy_logical_replication_slot($1, $2)", &[&from, &to]).await.expect("copies");
}

/// CPU time and highest resident memory (MiB) of a process; `None` once it has ended.
fn usage(pid: u32) -> Option<(Duration, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    // Linux counts in hundredths of a second on every platform that we build for.
    Some((Duration::from_millis(ticks * 10), kib / 1024))
}

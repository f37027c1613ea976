//! An idle database beside a busy one: our slot must not keep its neighbour's WAL.

use std::time::{Duration, Instant};

use tillstream_schemas::Lsn;

use crate::harness::{Database, Journal, Level, Pipeline, Postgres, RabbitMq};

/// Longest that the slot may be behind the server, by the server's own positions over time.
const BEHIND_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_database_keeps_none_of_its_neighbours_wal() {
    let settings =
        "max_slot_wal_keep_size = '64MB'\nmin_wal_size = '32MB'\nmax_wal_size = '64MB'\nwal_keep_size = 0\ncheckpoint_timeout = '30s'";
    let server = Postgres::private("idle", settings).await;
    // The hold-back as it is without a setting: 60 s and 256 MiB.
    // And no initial load: so low a ceiling is below what the backfill's brake leaves free, so that it would not begin.
    let edit = |file: String| {
        let lines: Vec<_> = file.lines().filter(|l| !l.trim_start().starts_with("hold_back:")).collect();
        lines.join("\n").replace("  slot:", "  initial_load: false\n  slot:")
    };
    let pipeline = Pipeline::new("idle", &server, Journal::Rabbit(RabbitMq::shared().await), edit).await;
    pipeline.set_up().await;
    let running = pipeline.run("run", &["--only", "capture"]);
    running.ready().await;
    let writes = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables";
    let ours = pipeline.pos.connect().await;
    let written_before: i64 = ours.query_one(writes, &[]).await.expect("asked").get(0);

    let neighbour = Database::empty(&server, "neighbour").await;
    let client = neighbour.connect().await;
    client.batch_execute("CREATE TABLE noise (n int, pad text)").await.expect("a table");
    let span = Duration::from_secs(Level::pick(20, 40, 300));
    // A megabyte each second, in pieces, as long as the watching lasts.
    let noise = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            client.batch_execute("INSERT INTO noise SELECT i, repeat('x', 1000) FROM generate_series(1, 235) i").await.expect("writes");
        }
    });

    let watcher = server.connect("postgres").await;
    let look = "SELECT pg_current_wal_flush_lsn()::text, confirmed_flush_lsn::text, restart_lsn::text, wal_status FROM pg_replication_slots WHERE slot_name = $1";
    let (mut seen, mut worst, mut restarts, mut most_kept) =
        (Vec::<(Instant, Lsn)>::new(), Duration::ZERO, std::collections::BTreeSet::new(), 0);
    let began = Instant::now();
    let (mut first, mut last) = (Lsn(0), Lsn(0));
    while began.elapsed() < span {
        let row = watcher.query_one(look, &[&pipeline.slot]).await.expect("asked");
        let lsn = |column: usize| -> Lsn { row.get::<_, String>(column).parse().expect("a position") };
        let (current, confirmed, restart) = (lsn(0), lsn(1), lsn(2));
        let status: String = row.get(3);
        assert_eq!(status, "reserved", "after {:?}", began.elapsed());
        let now = Instant::now();
        seen.push((now, current));
        // How long ago the server stood where the slot is confirmed now.
        let passed = seen.iter().find(|(_, at)| *at > confirmed).map_or(Duration::ZERO, |(at, _)| now - *at);
        worst = worst.max(passed);
        restarts.insert(restart);
        most_kept = most_kept.max(current.0 - restart.0);
        if first == Lsn(0) {
            first = current;
        }
        last = current;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    noise.abort();
    let status = running.status().await.expect("answers");
    println!(
        "{} s, {:.2} MB of WAL a second: confirmed_flush_lsn at most {:.1} s behind, restart_lsn moved {} times, at most {:.1} MB kept, slot reserved; status says {} bytes kept",
        span.as_secs(),
        (last.0 - first.0) as f64 / 1e6 / span.as_secs_f64(),
        worst.as_secs_f64(),
        restarts.len() - 1,
        most_kept as f64 / 1e6,
        status["source"]["retained_wal_bytes"],
    );
    assert!(worst <= BEHIND_MAX, "{worst:?}");
    // The server writes down every 15 s where decoding could begin again: the shortest series may end before it has.
    assert!(Level::get() == Level::Quick || restarts.len() > 1, "restart_lsn follows");
    assert!(status["source"]["slot"]["restart_lsn"].is_string(), "{status}");
    let written: i64 = ours.query_one(writes, &[]).await.expect("asked").get(0);
    assert_eq!(written, written_before, "nothing is written to the source");
    running.process.terminate(Duration::from_secs(10)).await;
    // Under a ceiling of 64 MB a load of a few MB is worth a word in the log, and no error.
    pipeline.judge(&[]);
}

//! How fast a backlog is drained, beside PostgreSQL's own `pg_recvlogical` on the same slot contents.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tillstream_schemas::Lsn;

use super::receiver;
use super::server::Server;

/// User and system time of this process and of the children it has waited for, in seconds.
fn cpu_seconds() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a Linux /proc");
    let after_name = stat.rsplit(") ").next().expect("fields");
    let fields: Vec<f64> = after_name.split(' ').map(|f| f.parse().unwrap_or(0.0)).collect();
    // Ticks are hundredths of a second on every Linux that Rust supports.
    ((fields[11] + fields[12]) / 100.0, (fields[13] + fields[14]) / 100.0)
}

fn recvlogical(server: &Server, slot: &str, end: Lsn) {
    let status = Command::new(server.programs().join("pg_recvlogical"))
        .args(["-h", "127.0.0.1", "-p", &server.port(), "-U", "postgres", "-d", "postgres", "-S", slot, "--start", "--no-loop"])
        .args(["-o", "proto_version=1", "-o", "publication_names=p", "-f", "/dev/null", "--endpos", &end.to_string()])
        .stderr(Stdio::null())
        .status()
        .expect("pg_recvlogical runs");
    assert!(status.success());
}

/// Prints changes per second and client CPU per change, interleaved, for a backlog of 10-row transactions.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute or two, for a quiet machine"]
async fn drain_rate_beside_pg_recvlogical() {
    let transactions = 50_000;
    let server = Server::start("max_wal_size = '8GB'");
    server.sql(
        "postgres",
        "CREATE TABLE t (id bigint PRIMARY KEY, order_id int, item text, price numeric(10,2), at timestamptz DEFAULT now())",
    );
    server.sql("postgres", "CREATE PUBLICATION p FOR TABLE t");
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('base', 'pgoutput')");
    server.sql(
        "postgres",
        &format!(
            "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); FOR n IN 1..{transactions} LOOP \
             INSERT INTO t SELECT n * 10 + i, n, 'item number ' || i, i * 1.25 FROM generate_series(1, 10) i; COMMIT; END LOOP; END $$"
        ),
    );
    server.sql("postgres", "CHECKPOINT");
    let end: Lsn = server.sql("postgres", "SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN");
    let url = server.url("postgres", "postgres", "");
    let mut ratios = Vec::new();
    for round in 0..3 {
        let copy = |name: &str| server.sql("postgres", &format!("SELECT pg_copy_logical_replication_slot('base', '{name}')"));
        copy("theirs");
        copy("ours");
        let (cpu, began) = (cpu_seconds(), Instant::now());
        recvlogical(&server, "theirs", end);
        let (theirs, their_cpu) = (began.elapsed(), cpu_seconds().1 - cpu.1);
        let (cpu, began) = (cpu_seconds(), Instant::now());
        let changes = tokio::time::timeout(Duration::from_secs(120), receiver::count(&url, "ours", "p", end)).await.expect("drains");
        let (ours, our_cpu) = (began.elapsed(), cpu_seconds().0 - cpu.0);
        assert_eq!(changes, transactions * 10);
        let per = |time: Duration, cpu: f64| (changes as f64 / time.as_secs_f64() / 1000.0, cpu * 1e6 / changes as f64);
        let ((their_rate, their_us), (our_rate, our_us)) = (per(theirs, their_cpu), per(ours, our_cpu));
        eprintln!(
            "round {round}: pg_recvlogical {their_rate:.0}k/s, {their_us:.2} us; ours {our_rate:.0}k/s, {our_us:.2} us; ratio {:.2}",
            our_rate / their_rate
        );
        ratios.push(our_rate / their_rate);
        server.sql("postgres", "SELECT pg_drop_replication_slot('theirs'); SELECT pg_drop_replication_slot('ours')");
    }
    ratios.sort_by(f64::total_cmp);
    eprintln!("median ratio {:.2}", ratios[1]);
}

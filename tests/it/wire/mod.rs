//! The replication connection and ordinary SQL against a real server.

use std::time::Duration;

use tillstream::capture::CaptureError;
use tillstream::capture::catalog::{Catalog, check_start};
use tillstream::capture::source::{Frame, Replication, Source, StandbyStatus};
use tillstream::capture::wire::{Method, PgReplication, PgSource};
use tokio::time::timeout;

mod owner;
pub(crate) mod receiver;
pub(crate) mod server;

use server::{Server, source};

const DEADLINE: Duration = Duration::from_secs(30);

async fn log_in(url: &str) -> Result<PgReplication, CaptureError> {
    PgSource::new(&source(url), "test").log_in().await
}

fn code<T>(result: Result<T, CaptureError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.code(),
    }
}

/// Reads until the commit of the transaction that holds `marker`, and counts pgoutput messages by tag.
async fn read_until(connection: &mut PgReplication, behind: bool, marker: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    let mut seen = false;
    let reading = async {
        loop {
            connection.fill(behind).await.expect("bytes");
            while let Some(frame) = connection.next().expect("frames") {
                if let Frame::XLogData { data, .. } = frame {
                    let tag = *data.first().expect("a tag");
                    tags.push(tag);
                    seen |= tag == b'M' && data.windows(marker.len()).any(|w| w == marker);
                    if seen && tag == b'C' {
                        return;
                    }
                }
            }
        }
    };
    timeout(DEADLINE, reading).await.expect("the marker comes");
    tags
}

fn count(tags: &[u8], tag: u8) -> usize {
    tags.iter().filter(|t| **t == tag).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_checked_taken_streamed_and_left() {
    let server = Server::start("");
    let url = server.url("postgres", "postgres", "");
    server.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY, n text); CREATE TABLE keyless (id int)");

    // What is missing is named in the order in which it has to be set up.
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.publication_missing");
    server.sql("postgres", "CREATE PUBLICATION p FOR TABLE keyless");
    let lacks = check_start(&source(&url), "test").await.expect_err("t is missing");
    assert_eq!(lacks.code(), "capture.publication_lacks_table");
    let CaptureError::Definite { fix, .. } = lacks else { panic!("definite") };
    server.sql("postgres", &fix);
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.slot_missing");

    let mut connection = log_in(&url).await.expect("logs in");
    assert_eq!(code(connection.start().await), "capture.slot_missing");
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let facts = check_start(&source(&url), "test").await.expect("all is there");
    assert_eq!(facts.warnings.iter().map(|w| w.code).collect::<Vec<_>>(), ["capture.publication_extra_table"]);
    assert_eq!(facts.primary_keys()[&("public".to_owned(), "t".to_owned())], ["id"]);

    // Streaming, live and in bulk; a status update moves the slot.
    let mut connection = log_in(&url).await.expect("logs in");
    assert_eq!(connection.method(), Method::None);
    assert!(connection.identity().system_id > 0 && connection.identity().timeline == 1);
    connection.start().await.expect("takes the slot");
    let catalog = Catalog::connect(&source(&url), "test", "test").await.expect("connects");
    server.sql("postgres", "INSERT INTO t SELECT i, 'live' FROM generate_series(1, 10) i");
    catalog.emit_message("tillstream/test", "first").await.expect("emitted");
    let tags = read_until(&mut connection, false, b"first").await;
    assert_eq!(count(&tags, b'I'), 10);
    server.sql("postgres", "INSERT INTO t SELECT i, repeat('x', 400) FROM generate_series(11, 20000) i");
    catalog.emit_message("tillstream/test", "second").await.expect("emitted");
    let tags = read_until(&mut connection, true, b"second").await;
    assert_eq!(count(&tags, b'I'), 19_990);
    let reached = catalog.current_wal().await.expect("a position");
    connection.send_status(StandbyStatus { write: reached, flush: reached, reply_requested: true }).await.expect("sent");
    let acknowledged = async {
        loop {
            connection.fill(true).await.expect("bytes");
            while let Some(frame) = connection.next().expect("frames") {
                let Frame::Keepalive { .. } = frame else { continue };
                if catalog.slot("s").await.expect("asked").expect("there").confirmed() >= Some(reached) {
                    return;
                }
            }
        }
    };
    timeout(DEADLINE, acknowledged).await.expect("the reply comes, and the slot has moved");

    // The slot is ours until we leave.
    let mut second = log_in(&url).await.expect("logs in");
    let CaptureError::SlotActive { pid, .. } = second.start().await.expect_err("taken") else { panic!("slot active") };
    assert_eq!(Some(pid), catalog.slot("s").await.expect("asked").expect("there").active_pid);
    connection.stop().await;
    let mut third = log_in(&url).await.expect("logs in");
    third.start().await.expect("free at once");
    third.stop().await;

    // A slot of another kind or database.
    server.sql("postgres", "SELECT pg_drop_replication_slot('s'); SELECT pg_create_physical_replication_slot('s', true)");
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.slot_unusable");
    assert_eq!(code(log_in(&url).await.expect("logs in").start().await), "capture.slot_unusable");
    server.sql("postgres", "SELECT pg_drop_replication_slot('s')");
    server.sql("template1", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.slot_unusable");
    assert_eq!(code(log_in(&url).await.expect("logs in").start().await), "capture.slot_unusable");
    assert_eq!(code(log_in(&server.url("postgres", "nowhere", "")).await), "capture.database_missing");
    assert_eq!(code(Catalog::connect(&source(&server.url("nobody", "postgres", "")), "test", "test").await), "capture.auth_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_decode_or_lost_the_slot_says_so() {
    let server = Server::start("max_slot_wal_keep_size = '1MB'\nwal_keep_size = 0\nmax_wal_size = '32MB'");
    let url = server.url("postgres", "postgres", "");
    server.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t");
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    server.sql("postgres", "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 40)");
    server.sql("postgres", "CHECKPOINT");
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.slot_lost");
    assert_eq!(code(log_in(&url).await.expect("logs in").start().await), "capture.slot_lost");

    server.sql("postgres", "SELECT pg_drop_replication_slot('s')");
    server.sql("postgres", "ALTER SYSTEM SET wal_level = 'replica'");
    server.restart();
    assert_eq!(code(check_start(&source(&url), "test").await), "capture.wal_level");
    assert_eq!(code(log_in(&url).await.expect("logs in").start().await), "capture.wal_level");

    server.sql("postgres", "ALTER SYSTEM SET max_wal_senders = 0");
    server.restart();
    let full = log_in(&url).await.err().expect("no walsender is free");
    assert!(full.is_transient() && full.to_string().contains("max_wal_senders"), "{full}");
}

/// A CA, and a certificate of it for `localhost`.
struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

fn certificates() -> Certificates {
    let ca_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Certificates { ca: ca_certificate.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_verified_and_the_password_bound_to_its_certificate() {
    let server = Server::start("log_connections = on\nlog_min_messages = info");
    let ours = certificates();
    let client = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = client.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (ca, other_ca) = (file("ca.pem", &ours.ca), file("other.pem", &certificates().ca));
    server.write("server.crt", &ours.certificate);
    server.write("server.key", &ours.key);
    server.sql("postgres", "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'p:w@%'");
    server.sql("postgres", "SET password_encryption = 'md5'; CREATE ROLE old LOGIN REPLICATION PASSWORD 'secret'");
    server.sql("postgres", "CREATE ROLE plain LOGIN REPLICATION PASSWORD 'secret'");
    server.write(
        "pg_hba.conf",
        "host all postgres 127.0.0.1/32 trust\nhostssl all scram 127.0.0.1/32 scram-sha-256\n\
         host all old 127.0.0.1/32 md5\nhost all plain 127.0.0.1/32 password\n",
    );
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.restart();
    let port = server.port();
    let scram = |host: &str, query: &str| format!("postgres://scram:p%3Aw%40%25@{host}:{port}/postgres?{query}");
    let full = format!("sslmode=verify-full&sslrootcert={ca}");

    // Verified, and bound: the server's log says who came how, and our side chose the bound mechanism.
    for extra in ["", "&channel_binding=require"] {
        let connection = log_in(&scram("localhost", &format!("{full}{extra}"))).await.expect("logs in");
        assert_eq!(connection.method(), Method::ScramPlus);
    }
    assert!(server.log().contains("method=scram-sha-256"), "the server authenticated us by SCRAM");
    let catalog =
        Catalog::connect(&source(&scram("localhost", &format!("{full}&channel_binding=require"))), "test", "test").await.expect("connects");
    let tls: bool =
        catalog.client().query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.expect("asked").get(0);
    assert!(tls, "ordinary SQL is encrypted as well");
    let unbound = log_in(&scram("localhost", &format!("{full}&channel_binding=disable"))).await.expect("logs in");
    assert_eq!(unbound.method(), Method::Scram);

    // Anyone else is refused, for replication and for SQL alike.
    for (url, expected) in [
        (scram("localhost", &format!("sslmode=verify-full&sslrootcert={other_ca}")), "capture.tls_untrusted"),
        (scram("127.0.0.1", &full), "capture.tls_untrusted"),
        (scram("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={ca}")), "ok"),
        (scram("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={other_ca}")), "capture.tls_untrusted"),
        (scram("127.0.0.1", &format!("sslmode=require&sslrootcert={other_ca}")), "capture.tls_untrusted"),
        (scram("127.0.0.1", "sslmode=require"), "ok"),
        (scram("127.0.0.1", "sslmode=prefer"), "ok"),
        (scram("127.0.0.1", "sslmode=disable"), "capture.auth_refused"),
        (scram("localhost", &full).replace("p%3Aw", "wrong"), "capture.auth_refused"),
        (scram("localhost", &full).replace(":p%3Aw%40%25", ""), "capture.auth_refused"),
        (format!("postgres://old:secret@127.0.0.1:{port}/postgres"), "capture.auth_weak"),
        (format!("postgres://plain:secret@127.0.0.1:{port}/postgres"), "capture.auth_weak"),
        (scram("localhost", "sslmode=verify-full&sslrootcert=/nowhere.pem"), "config.source_tls"),
    ] {
        let replication = log_in(&url).await;
        if let Err(error) = &replication {
            assert!(!format!("{error:?}").contains("secret") && !format!("{error:?}").contains("p:w@"), "{error:?}");
        }
        assert_eq!(code(replication), expected, "replication: {url}");
        assert_eq!(code(Catalog::connect(&source(&url), "test", "test").await), expected, "SQL: {url}");
    }
    for user in ["old", "plain"] {
        let mut weak = source(&format!("postgres://{user}:secret@127.0.0.1:{port}/postgres"));
        weak.allow_weak_auth = true;
        assert_eq!(PgSource::new(&weak, "test").log_in().await.expect("allowed").method(), Method::Weak);
        assert_eq!(code(Catalog::connect(&weak, "test", "test").await), "ok");
    }

    // The stream itself runs encrypted, live and in bulk.
    server.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY, n text); CREATE PUBLICATION p FOR TABLE t");
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let mut connection = log_in(&scram("localhost", &full)).await.expect("logs in");
    connection.start().await.expect("takes the slot");
    for (behind, marker) in [(true, "one"), (false, "two"), (true, "three")] {
        server.sql("postgres", &format!("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i ON CONFLICT DO NOTHING; SELECT pg_logical_emit_message(true, 'tillstream/t', '{marker}'); DELETE FROM t"));
        assert_eq!(count(&read_until(&mut connection, behind, marker.as_bytes()).await, b'I'), 5000);
    }
    connection.stop().await;

    // A server without TLS is not spoken to in the clear.
    server.sql("postgres", "ALTER SYSTEM SET ssl = off");
    server.restart();
    assert_eq!(code(log_in(&scram("localhost", &full)).await), "capture.tls_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_row_and_a_vanished_server() {
    let server = Server::start("");
    let url = server.url("postgres", "postgres", "");
    server.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY, n text); CREATE PUBLICATION p FOR TABLE t");
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let mut connection = PgSource::new(&source(&url), "test").connect().await.expect("logs in");
    connection.start().await.expect("takes the slot");
    server.sql("postgres", "INSERT INTO t VALUES (1, repeat('x', 60000000))");
    let longest = async {
        let mut longest = 0;
        while longest < 60_000_000 {
            connection.fill(longest % 2 == 0).await.expect("bytes");
            while let Some(frame) = connection.next().expect("frames") {
                if let Frame::XLogData { data, .. } = frame {
                    longest = longest.max(data.len());
                }
            }
        }
    };
    timeout(DEADLINE, longest).await.expect("the row comes");
    for behind in [true, false] {
        server.sql("postgres", "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
        let end = async {
            loop {
                connection.fill(behind).await?;
                while connection.next()?.is_some() {}
            }
        };
        let end: Result<(), CaptureError> = timeout(DEADLINE, end).await.expect("noticed");
        assert_eq!(code(end), "capture.source_unavailable");
        timeout(Duration::from_secs(3), connection.stop()).await.expect("stopping is bounded");
        connection = PgSource::new(&source(&url), "test").connect().await.expect("logs in again");
        connection.start().await.expect("takes the slot again");
    }
    connection.stop().await;
}

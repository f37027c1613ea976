//! What must not leave the database does not: column policies, and columns that nobody has classified.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tillstream::capture::policies;
use tillstream::config::ColumnRules;
use tillstream_schemas::{HashKey, Policy};

use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, wait_for};
use crate::matrix::Bench;

fn rules(hold_new: bool, columns: &[(&str, &str)]) -> ColumnRules {
    let policies: BTreeMap<String, Policy> =
        columns.iter().map(|(name, policy)| ((*name).to_owned(), Policy::parse(policy).expect("a policy"))).collect();
    ColumnRules {
        tables: BTreeMap::from([(("public".to_owned(), "guest".to_owned()), policies)]),
        hold_new,
        hash_key: Some(Arc::new(HashKey::new("k1", b"0123456789abcdef"))),
    }
}

const GUEST: &str = "CREATE TABLE guest (id int PRIMARY KEY, name text, email text, phone text, born date, notes text, visits int);
    ALTER TABLE guest ALTER notes SET STORAGE EXTERNAL, ALTER phone SET STORAGE EXTERNAL;";

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_holds_for_old_rows_new_rows_and_values_out_of_line() {
    let server = Postgres::shared().await;
    for identity in ["DEFAULT", "FULL"] {
        let sql = format!("{GUEST} ALTER TABLE guest REPLICA IDENTITY {identity}");
        let mut bench = Bench::new("policies", server, &sql, "FOR TABLE guest", &["guest"]).await;
        bench.source.columns = rules(
            false,
            &[("name", "truncate(1)"), ("email", "hash"), ("phone", "mask"), ("born", "null"), ("notes", "drop"), ("visits", "pass")],
        );
        bench
            .sql(
                "INSERT INTO guest VALUES (1, 'Zoë', 'zoe@example.com', '1234', '1990-01-02', repeat('secret', 1000), 1), (2, NULL, NULL, NULL, NULL, NULL, 2);
                 INSERT INTO guest VALUES (3, '', 'zoe@example.com', repeat('9', 5000), '1990-01-02', 'n', 3);
                 UPDATE guest SET visits = visits + 10; UPDATE guest SET id = 30 WHERE id = 3; DELETE FROM guest WHERE id = 1",
            )
            .await;
        let events = bench.events().await;
        let first = events[0].after();
        let hash = first["email"].as_str().expect("a hash").to_owned();
        assert!(hash.starts_with("hmac-sha256:k1:") && hash.len() == 15 + 64, "{hash}");
        assert_eq!(first, &json!({"id": 1, "name": "Z", "email": hash, "phone": "***", "born": null, "visits": 1}));
        assert_eq!(
            events[1].after(),
            &json!({"id": 2, "name": null, "email": null, "phone": null, "born": null, "visits": 2}),
            "null stays null"
        );
        assert_eq!(events[2].after()["email"], hash, "equal values stay equal");
        for event in &events {
            for row in [event.after(), event.before()].into_iter().filter_map(Value::as_object) {
                assert!(!row.contains_key("notes"), "{identity} {}", event.op());
                assert_eq!(row["born"], Value::Null);
                let text = json!(row).to_string();
                assert!(!["Zo", "zoe@", "1234", "999", "1990", "secret"].iter().any(|s| text.contains(s)), "{identity}: {text}");
            }
            assert!(!event.unchanged().contains(&"notes") && !event.unchanged().contains(&"born"), "{:?}", event.unchanged());
        }
        let update = events.iter().find(|e| e.op() == "update" && e.key()["id"] == 3).expect("an update");
        match identity {
            "FULL" => assert_eq!((&update.before()["phone"], &update.after()["phone"]), (&json!("***"), &json!("***"))),
            _ => assert_eq!(update.unchanged(), ["phone"]),
        }
        bench.end(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_protects_nothing_stops_before_the_first_row() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new("gone", server, GUEST, "FOR TABLE guest", &["guest"]).await;
    bench.source.columns = rules(false, &[("id", "hash")]);
    assert_eq!(bench.try_catch_up().await.expect_err("a key").code(), "capture.policy_on_key");

    let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await;
    assert_eq!(facts.expect_err("a key").code(), "capture.policy_on_key", "already at the start");

    // A misspelt name, at the start.
    bench.source.columns = rules(false, &[("emial", "drop")]);
    let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await.expect("the catalogue itself is fine");
    let error = policies::check(&bench.source, &facts.tables, &bench.control().await).expect_err("no such column");
    assert_eq!(error.code(), "capture.policy_column_gone");

    // A column renamed while capture runs: the first row under the new name is not taken.
    bench.source.columns = rules(false, &[("email", "drop")]);
    bench.sql("INSERT INTO guest (id, email) VALUES (1, 'zoe@example.com'); ALTER TABLE guest RENAME email TO mail; INSERT INTO guest (id, mail) VALUES (2, 'canary@example.com')").await;
    assert_eq!(bench.try_catch_up().await.expect_err("renamed").code(), "capture.policy_column_gone");
    assert!(bench.read().await.iter().all(|e| !e.body.to_string().contains("canary@")));
    // Both names: the former one stays for rows from before.
    bench.source.columns = rules(false, &[("email", "drop"), ("mail", "drop")]);
    let events = bench.events().await;
    assert_eq!(events.iter().map(|e| e.key()["id"].as_i64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert!(events.iter().all(|e| !e.body.to_string().contains("@example.com")), "neither under the old name nor under the new one");
    let facts = tillstream::capture::catalog::check_start(&bench.source, "test").await.expect("starts");
    policies::check(&bench.source, &facts.tables, &bench.control().await).expect("the log remembers the former name");
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_is_held_until_somebody_classifies_it() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new("held", server, "CREATE TABLE guest (id int PRIMARY KEY, name text)", "FOR TABLE guest", &["guest"]).await;
    bench.source.columns = rules(true, &[("name", "pass")]);
    bench.sql("INSERT INTO guest VALUES (1, 'a'); ALTER TABLE guest ADD ssn text; INSERT INTO guest VALUES (2, 'b', 'canary'); UPDATE guest SET ssn = 'canary'").await;
    bench.sql("ALTER TABLE guest RENAME ssn TO number; UPDATE guest SET number = 'canary 2' WHERE id = 1").await;
    let events = bench.events().await;
    assert_eq!(events.len(), 5);
    assert!(events.iter().all(|e| !e.body.to_string().contains("canary")), "held, under whatever name");
    assert_eq!(events[4].after(), &json!({"id": 1, "name": "a"}));
    let layout = bench.control().await.layout("public.guest").cloned().expect("known");
    assert_eq!(layout.columns[2].policy.as_deref(), Some("held"), "the history names it");

    // Without the hold it passes at once.
    bench.source.columns = rules(true, &[("name", "pass"), ("number", "pass")]);
    bench.sql("UPDATE guest SET number = 'classified' WHERE id = 2").await;
    let events = bench.events().await;
    assert_eq!(events[5].after(), &json!({"id": 2, "name": "b", "number": "classified"}));
    bench.source.columns = rules(false, &[("name", "pass")]);
    bench.sql("ALTER TABLE guest ADD more text DEFAULT 'm'; UPDATE guest SET number = 'x' WHERE id = 2").await;
    let events = bench.events().await;
    assert_eq!(events[6].after(), &json!({"id": 2, "name": "b", "number": "x", "more": "m"}));
    bench.end(server).await;
}

/// Files below a directory with what they hold, except the pipeline's own configuration.
fn everything(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            everything(&path, found);
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).expect("readable")));
        }
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Canaries in every protected column, through the whole program: initial load, live changes, a column added meanwhile, refused
/// events. They are searched for in every log, metric, status, journal entry, dead letter and delivered body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_leaves_the_database() {
    const PROTECTED: [&str; 6] = ["Canarina", "canary-mail", "555-CANARY", "canary-tag", "canary-ssn", "canary-consent"];
    let server = Postgres::shared().await;
    let config = "version: 1
pipeline: canaries
source:
  name: pos
  url: ${env:DEMO_SOURCE_URL}
  backfill_url: ${env:DEMO_BACKFILL_URL}
  slot: tillstream_demo
  publication: tillstream_demo
  tables: [public.customer]
  columns:
    public.customer:
      {external_ref: pass, name: truncate(1), email: hash, phone: mask, consent: null, tags: drop, deleted_at: pass, updated_at: pass}
  on_new_column: hold
  hash_key: {id: k1, secret: \"${env:COLUMN_KEY}\"}
journal:
  local: {dir: journal}
connectors: [engagement.yaml]
";
    let mut pipeline = Pipeline::new("canaries", server, Journal::Local, |demo| {
        // Slot and names as the harness has set them.
        let slot = demo.lines().find(|l| l.trim_start().starts_with("slot:")).expect("a slot").to_owned();
        config.replace("  slot: tillstream_demo", &slot)
    })
    .await;
    let connector = "version: 1\nconnector: engagement\nfrom: {tables: [public.customer], ops: [insert, update, read]}\non_delete: ignore\nto:\n  http: {url: \"${env:DEMO_ENGAGEMENT_URL}\", allow_private: true, columns: {public.customer: [id, external_ref, name, email, phone, consent]}}\nretry: {base: 50ms, max: 100ms}\n";
    std::fs::write(pipeline.dir.join("engagement.yaml"), connector).expect("written");
    pipeline.set("COLUMN_KEY", "0123456789abcdef0123456789abcdef".to_owned());
    // Refuses everything, and keeps what it was sent.
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    pipeline.set("DEMO_ENGAGEMENT_URL", format!("http://{}/events", listener.local_addr().expect("bound")));
    let keep = Arc::clone(&received);
    let app = Router::new().fallback(move |body: bytes::Bytes| {
        keep.lock().expect("no panic").extend_from_slice(&body);
        async { (StatusCode::UNPROCESSABLE_ENTITY, "no") }
    });
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    let client = pipeline.pos.connect().await;
    let insert = |id: i32, seen: &str| {
        format!(
            "INSERT INTO customer (id, external_ref, name, email, phone, consent, tags) \
             VALUES ({id}, '00000000-0000-0000-0000-{seen}', 'Canarina {id}', 'canary-mail-{id}@example.com', '555-CANARY-{id}', '{{\"canary-consent\": 1}}', '{{canary-tag}}')"
        )
    };
    client.batch_execute(&insert(9_000_001, "000000000001")).await.unwrap_or_else(|e| panic!("{:?}", e.as_db_error()));
    pipeline.set_up().await;
    // Setup lists the columns that may leave. Here an owner publishes the whole table, so that it is the program that has to stop the others.
    client.batch_execute("ALTER PUBLICATION tillstream_demo SET TABLE customer").await.expect("published");
    let running = pipeline.run("run", &[]);
    running.ready().await;
    client.batch_execute(&insert(9_000_002, "000000000002")).await.expect("inserts");
    client
        .batch_execute(
            "UPDATE customer SET name = name || ' Canarina', phone = '555-CANARY-new' WHERE id > 9000000; \
             ALTER TABLE customer ADD ssn text; UPDATE customer SET ssn = 'canary-ssn' WHERE id > 9000000",
        )
        .await
        .expect("changes");
    client.batch_execute(&insert(9_000_003, "000000000003")).await.expect("inserts");
    let letters = wait_for("dead letters of loaded and of live rows", PATIENCE, || async {
        let shown = pipeline.command("show", &["dead-letters", "show", "--unmask", "--limit", "1000", "--format", "json"]).await;
        ["000000000001", "000000000003"].iter().all(|seen| shown.contains(seen)).then_some(shown)
    })
    .await;
    let mut texts = vec![("dead letters, unmasked".to_owned(), letters.into_bytes())];
    for path in ["metrics", "api/status"] {
        let text = reqwest::get(format!("{}/{path}", running.admin)).await.expect("answers").text().await.expect("text");
        texts.push((path.to_owned(), text.into_bytes()));
    }
    let history = pipeline.command("history", &["schema", "history", "--columns"]).await;
    assert!(history.contains("+ ssn text") && history.contains("email  text, hash") && history.contains("ssn  text, held"), "{history}");
    pipeline.command("tap", &["tap", "--from", "first", "--until-end", "--unmask"]).await;
    pipeline.start("doctor", &["doctor", "--verbose"]).wait(PATIENCE).await;
    running.process.terminate(PATIENCE).await;
    serving.abort();
    texts.push(("what the target was sent".to_owned(), received.lock().expect("no panic").clone()));
    everything(&pipeline.dir, &mut texts);
    let seen = |text: &str| texts.iter().filter(|(_, bytes)| holds(bytes, text)).map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // The search itself works: what passes is found in journal, dead letters and at the target.
    for id in 1..4 {
        assert!(seen(&format!("00000000000{id}")).len() >= 4, "{:?}", seen(&format!("00000000000{id}")));
    }
    assert!(!seen("hmac-sha256:k1:").is_empty());
    for canary in PROTECTED {
        assert_eq!(seen(canary), [] as [String; 0], "{canary}");
    }
    assert_eq!(seen("0123456789abcdef0123456789abcdef"), [] as [String; 0], "the key itself");
    println!("{} texts searched for {} canaries", texts.len(), PROTECTED.len());
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

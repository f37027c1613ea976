//! `tillstream preview`: events from wherever they are, what would be sent of them, and what another file would send.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tillstream::control;

use crate::harness::{Database, Postgres, program, scratch, wait_for};

use super::mapping::sold;
use super::pos::{Capture, DEADLINE, insert, journal};

const PIPELINE: &str = r#"
version: 1
pipeline: shop
source:
  name: pos
  url: postgres://nobody@127.0.0.1:9/pos?sslmode=disable
  slot: tillstream
  publication: tillstream
  tables: [public.a, public.b]
journal: {local: {dir: .}}
connectors: [crm.yaml]
"#;

const CRM: &str = r#"
version: 1
connector: crm
from: {tables: [public.a]}
when: "{{ op != 'delete' and after.qty > 16 }}"
map: {id: "{{ after.id }}", what: "{{ after.name if after.id == 18 else 'fine' }}", kind: sale}
on_delete: ignore
to:
  http:
    url: "https://crm.example/v1/${env:CRM_TENANT}/profiles"
    auth: {bearer: "${env:CRM_TOKEN}"}
    headers: {x-from: tillstream}
"#;

const SECRETS: [(&str, &str); 2] = [("CRM_TENANT", "hunter2-tenant"), ("CRM_TOKEN", "hunter2-token")];

/// Runs the program beside the files and waits for its end.
async fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program());
    command.args(arguments).current_dir(dir).envs(SECRETS).env("NO_COLOR", "1").kill_on_drop(true);
    tokio::time::timeout(DEADLINE, command.output()).await.expect("ends in time").expect("starts")
}

/// What it prints; it ends well, and shows no secret.
async fn said(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains("hunter2"), "a secret is shown: {text}");
    text
}

/// The documents it prints, but for the last, which counts.
async fn told(dir: &Path, more: &[&str]) -> Vec<Value> {
    let text = said(dir, &[&["preview", "crm", "--format", "json"], more].concat()).await;
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.pop().expect("a line")["taken"].is_u64());
    lines
}

/// The journal's directory, with the files beside it.
async fn files() -> tempfile::TempDir {
    let (dir, _) = sold().await;
    std::fs::write(dir.path().join("tillstream.yaml"), PIPELINE).expect("written");
    std::fs::write(dir.path().join("crm.yaml"), CRM).expect("written");
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_shows_what_would_be_sent_and_values_on_request_only() {
    let dir = files().await;
    let shown = said(dir.path(), &["preview", "crm", "--from", "first", "--limit", "100"]).await;
    for line in [
        "insert   public.a e1-0/2100-0 p0@49 filtered",
        "insert   public.a e1-0/2200-0 p0@52 sent",
        "    qty: number",
        "  POST https://crm.example/v1/***/profiles",
        "    authorization: ***",
        "    x-from: ***",
        "    content-type: application/json",
        // What stands in the file is no value of a row.
        "  {\"id\":\"number\",\"what\":\"text\",\"kind\":\"sale\"}",
        "insert   public.a e1-0/2300-0 p0@55 fails",
        "  dead letter: mapping.failed: `map.what`: the event does not have it",
        "21 events that it takes (17 of them filtered, 1 would fail), 22 others passed over; nothing was delivered",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}\nis not among\n{shown}");
    }
    let key = shown.lines().find_map(|line| line.strip_prefix("  key ")).expect("a key");
    assert!(shown.contains(&format!("    idempotency-key: {key}")), "{shown}");
    assert!(!shown.contains("fine") && !shown.contains(" 17"), "a value is shown: {shown}");

    let unmasked = told(dir.path(), &["--from", "first", "--limit", "100", "--unmask"]).await;
    let update = unmasked.iter().find(|line| line["op"] == "update").expect("the update");
    assert_eq!(update["changes"], json!([{"column": "id", "after": 1}, {"column": "qty", "after": 50}]));
    assert_eq!(update["outputs"][0]["request"]["body"], json!({"id": 1, "what": "fine", "kind": "sale"}));
    // Nothing that young is stored, and a preview waits for nothing unless it is live.
    assert!(told(dir.path(), &["--from", "2199-01-01T00:00:00Z"]).await.is_empty());
    assert_eq!(told(dir.path(), &["--from", "1h", "--limit", "3"]).await.len(), 3);
    // Neither a checkpoint nor a dead letter of it.
    let state = control::replay(journal(dir.path(), 1).await.as_ref()).await.expect("replays");
    assert!(state.checkpoint("crm", 0).is_none() && state.dead_letters().count() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_begins_at_an_entry_and_knows_what_was_before() {
    let dir = files().await;
    for from in ["52", "p0@52", "0/2200"] {
        let told = told(dir.path(), &["--from", from, "--limit", "1"]).await;
        assert_eq!((told.len(), &told[0]["id"], &told[0]["place"]), (1, &json!("e1-0/2200-0"), &json!("p0@52")), "{from}");
    }
    for wrong in [["--from", "p1@0"], ["--from", "100000"], ["--from", "next"], ["--limit", "0"]] {
        assert_eq!(run(dir.path(), &[&["preview", "crm"], &wrong[..]].concat()).await.status.code(), Some(2), "{wrong:?}");
    }
    // The row that is looked up was written long before.
    let looking = CRM
        .replace("map: {", "lookup: {b: {table: public.b, by: id}}\nmap: {sold: \"{{ lookup('b', after.id).qty }}\", ")
        .replace("from: {tables: [public.a]}", "from: {tables: [public.a], before: kept}");
    std::fs::write(dir.path().join("crm.yaml"), looking).expect("written");
    let told = told(dir.path(), &["--from", "61", "--limit", "1", "--unmask"]).await;
    assert_eq!((told.len(), &told[0]["op"], &told[0]["outputs"][0]["request"]["body"]["sold"]), (1, &json!("update"), &json!(7)));
    assert_eq!(told[0]["changes"], json!([{"column": "qty", "before": 1, "after": 50}]));
    assert_eq!(told[0]["same"], json!(["id"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_events_are_told_as_they_come() {
    let dir = files().await;
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 2).await;
    let mut command = tokio::process::Command::new(program());
    command.args(["preview", "crm", "--from", "live", "--limit", "2", "--for", "30s", "--format", "json"]);
    command.current_dir(dir.path()).envs(SECRETS).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("starts");
    // It says nothing before something comes, so something comes until it has seen enough.
    let mut id = 1_000;
    while child.try_wait().expect("asked").is_none() {
        id += 1;
        assert!(id < 2_000, "it sees nothing");
        capture.commit(0, &[insert("a", id, 99)]).await;
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), child.wait()).await;
    }
    let output = child.wait_with_output().await.expect("ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let seen: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((seen.len(), &seen[0]["verdict"], &seen[2]["taken"]), (3, &json!("sent"), &json!(2)), "{text}");
    // Nothing comes any more.
    let begun = std::time::Instant::now();
    assert!(told(dir.path(), &["--from", "live", "--for", "300ms"]).await.is_empty() && begun.elapsed().as_millis() >= 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_events_needs_no_journal() {
    let dir = files().await;
    let events = said(dir.path(), &["tap", "--from", "first", "--until-end", "--format", "ndjson"]).await;
    let elsewhere = scratch("preview-file");
    for (name, text) in [("tillstream.yaml", PIPELINE), ("crm.yaml", CRM), ("events.ndjson", events.as_str()), ("broken.ndjson", "{}\n")] {
        std::fs::write(elsewhere.join(name), text).expect("written");
    }
    let place = |mut told: Vec<Value>| {
        told.iter_mut().for_each(|line| line["place"] = Value::Null);
        told
    };
    let of_journal = place(told(dir.path(), &["--from", "first", "--limit", "100"]).await);
    let of_file = told(&elsewhere, &["--from", "file:events.ndjson", "--limit", "100"]).await;
    assert_eq!((of_file.len(), &of_file), (21, &of_journal));
    assert!(std::fs::read_dir(&elsewhere).expect("there").count() == 4, "nothing is written");
    for (file, code) in [("file:nowhere", 2), ("file:broken.ndjson", 65)] {
        assert_eq!(run(&elsewhere, &["preview", "crm", "--from", file]).await.status.code(), Some(code), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendors_request_is_shown_as_it_would_be_sent_and_its_refusal_too() {
    let dir = scratch("preview-vendor");
    let guests = "version: 1\nconnector: crm\nfrom: {tables: [public.a]}\non_delete: ignore\nmap:\n  metric: Paid\n  profile: {external_id: \"{{ after.guest }}\"}\n  \
                  value: \"{{ after.total | float }}\"\nto: {klaviyo: {resource: event, api_key: \"${env:CRM_TOKEN}\"}}\n";
    let event = |n: u32, guest: &str| {
        let after = json!({"id": n, "guest": guest, "total": "12.50"});
        json!({"id": format!("e1-0/1-{n}"), "op": "insert", "schema": "public", "table": "a", "key": {"id": n}, "before": null, "after": after,
            "unchanged": [], "commit_lsn": "0/1", "ordinal": n, "xid": 1, "committed_at": "2026-11-22T10:00:00.000000Z"})
    };
    let events = [event(1, "guest 12"), event(2, "")].map(|event| event.to_string()).join("\n");
    for (name, text) in [("tillstream.yaml", PIPELINE), ("crm.yaml", guests), ("events.ndjson", &events)] {
        std::fs::write(dir.join(name), text).expect("written");
    }
    let sent = |value: Value, guest: &str, key: &Value| {
        json!({"data": {"type": "event", "attributes": {
            "value": value, "properties": {}, "unique_id": key, "time": "2026-11-22T10:00:00.000000Z",
            "metric": {"data": {"type": "metric", "attributes": {"name": "Paid"}}},
            "profile": {"data": {"type": "profile", "attributes": {"external_id": guest}}},
        }}})
    };
    let shown = told(&dir, &["--from", "file:events.ndjson"]).await;
    let output = &shown[0]["outputs"][0];
    assert_eq!(output["request"]["body"], sent(json!("number"), "text", &output["idempotency_key"]), "names and words of the file stay");
    assert_eq!(
        (&output["request"]["to"], &output["request"]["headers"]["authorization"]),
        (&json!("https://a.klaviyo.com/api/events"), &json!("***"))
    );
    let shown = told(&dir, &["--from", "file:events.ndjson", "--unmask"]).await;
    assert_eq!(shown[0]["outputs"][0]["request"]["body"], sent(json!(12.5), "guest 12", &shown[0]["outputs"][0]["idempotency_key"]));
    // What the sink would refuse is refused here, under the same code.
    std::fs::write(dir.join("crm.yaml"), guests.replace(" | float", "")).expect("written");
    let shown = told(&dir, &["--from", "file:events.ndjson"]).await;
    let reason = json!({"code": "klaviyo.field", "message": "`value` must be a number"});
    assert_eq!((&shown[0]["verdict"], &shown[0]["outputs"][0]["reason"]), (&json!("fails"), &reason));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_files_are_compared_on_the_same_events() {
    let dir = files().await;
    let old = CRM.replace("> 16", "> 15").replace("after.name if after.id == 18 else 'fine'", "'old' if after.id == 19 else 'fine'");
    std::fs::write(dir.path().join("old.yaml"), &old).expect("written");
    std::fs::write(dir.path().join("other.yaml"), CRM.replace("connector: crm", "connector: other")).expect("written");
    let compare =
        async |more: &[&str]| run(dir.path(), &[&["preview", "crm", "--from", "first", "--against", "old.yaml"], more].concat()).await;
    let text = |output: &Output| String::from_utf8(output.stdout.clone()).expect("UTF-8");

    let shown = said(dir.path(), &["preview", "crm", "--from", "first", "--against", "old.yaml"]).await;
    for line in [
        "21 events compared; nothing was delivered",
        "        2  sent as before",
        "        1  sent otherwise",
        "        1  no longer sent",
        "        1  fail now",
        "       16  sent by neither",
        "sent otherwise: insert   public.a e1-0/2400-0 p0@58",
        "  ~ body.what: text, another value",
        "no longer sent: insert   public.a e1-0/2100-0 p0@49",
        "  + fails: mapping.failed: `map.what`: the event does not have it",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}\nis not among\n{shown}");
    }
    assert!(!shown.contains("fine") && !shown.contains("\"old\""), "a value is shown: {shown}");
    let unmasked = text(&compare(&["--unmask"]).await);
    assert!(unmasked.contains("  - body.what: \"old\"\n  + body.what: \"fine\"\n"), "{unmasked}");

    let counts = async |more: &[&str]| -> Value {
        let output = compare(&[&["--format", "json"], more].concat()).await;
        serde_json::from_slice(&output.stdout).expect("one document")
    };
    let found = counts(&[]).await;
    let expected = json!({"same": 2, "different": 1, "only_old_sends": 1, "only_new_sends": 0, "fails_now": 1, "fails_before": 0, "fails_in_both": 0, "sent_by_neither": 16});
    assert_eq!((&found["compared"], &found["counts"]), (&json!(21), &expected));
    assert_eq!(found["samples"][0]["diff"], json!(["~ body.what: text, another value"]));
    assert_eq!(counts(&["--limit", "5"]).await["compared"], 5);
    // `plan --detailed` ends so, too.
    assert_eq!(compare(&["--detailed"]).await.status.code(), Some(1));
    // The other way round.
    std::fs::write(dir.path().join("old.yaml"), CRM).expect("written");
    std::fs::write(dir.path().join("crm.yaml"), &old).expect("written");
    let found = counts(&[]).await["counts"].clone();
    assert_eq!((&found["only_new_sends"], &found["fails_before"]), (&json!(1), &json!(1)));
    std::fs::write(dir.path().join("crm.yaml"), CRM).expect("written");
    assert_eq!(compare(&["--detailed"]).await.status.code(), Some(0), "the same file differs in nothing");
    let refused = run(dir.path(), &["preview", "crm", "--against", "other.yaml"]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_table_come_as_a_backfill_would_bring_them() {
    let server = Postgres::shared().await;
    let database = Database::empty(server, "preview").await;
    let client = database.connect().await;
    let made = "CREATE TABLE a (id int PRIMARY KEY, qty int, name text); CREATE TABLE b (id int PRIMARY KEY); \
                INSERT INTO a SELECT n, n * 10, 'guest ' || n FROM generate_series(1, 30) n; CREATE PUBLICATION tillstream FOR TABLE a, b";
    client.batch_execute(made).await.expect("made");
    let dir = scratch("preview-table");
    let pipeline = PIPELINE.replace("postgres://nobody@127.0.0.1:9/pos?sslmode=disable", &database.url);
    std::fs::write(dir.join("tillstream.yaml"), pipeline).expect("written");
    std::fs::write(dir.join("crm.yaml"), CRM).expect("written");
    let rows = told(&dir, &["--from", "table", "--limit", "3", "--unmask"]).await;
    assert_eq!(rows.len(), 3);
    assert_eq!((&rows[0]["op"], &rows[0]["verdict"], &rows[0]["key"]), (&json!("read"), &json!("filtered"), &json!({"id": 1})));
    assert_eq!((&rows[1]["id"], &rows[1]["verdict"]), (&json!("e1-bpreview-public.a-0.0-1"), &json!("sent")));
    assert_eq!(rows[1]["outputs"][0]["request"]["body"], json!({"id": 2, "what": "fine", "kind": "sale"}));
    assert_eq!(told(&dir, &["--from", "table:public.a"]).await.len(), 10);
    let refused = run(&dir, &["preview", "crm", "--from", "table:public.b"]).await;
    assert_eq!(refused.status.code(), Some(2));
    drop(client);
    // Sessions end when the program does; the server needs a moment to notice.
    wait_for("no session is left", DEADLINE, || async {
        let client = database.connect().await;
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let count: i64 = client.query_one(others, &[]).await.expect("asked").get(0);
        (count == 0).then_some(())
    })
    .await;
    database.drop(server).await;
}

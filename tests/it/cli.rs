//! The command line, run as a user runs it: what it says of broken files, its help, its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Process, free_port, program, root, scratch, wait_for};

fn fixtures() -> PathBuf {
    root().join("tests/it/fixtures/config")
}

/// Runs the program in `dir` and waits for its end.
fn tillstream(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(dir).env_remove("NO_SUCH_SECRET").env_remove("TILLSTREAM__LOG__LEVEL").env("NO_COLOR", "1");
    command.output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Compares with the file beside the fixtures; `TILLSTREAM_UPDATE=1` writes it anew, to be read before it is committed.
fn check_snapshot(name: &str, got: &str) {
    let path = fixtures().join(name);
    if std::env::var_os("TILLSTREAM_UPDATE").is_some() {
        std::fs::write(&path, got).expect("the snapshot can be written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == got, "{name} differs; TILLSTREAM_UPDATE=1 writes it anew.\n--- expected\n{expected}\n--- got\n{got}");
}

#[test]
fn every_broken_file_is_told_all_its_faults_with_code_place_and_remedy() {
    let mut names: Vec<String> = std::fs::read_dir(fixtures())
        .expect("fixtures")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 10);
    let (mut screens, mut lines) = (String::new(), String::new());
    for name in &names {
        let output = tillstream(&fixtures(), &["validate", "--offline", "--format", "json", name]);
        assert_eq!(output.status.code(), Some(78), "{name}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{name}: a failure writes no data");
        let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON document");
        let problems = error["error"]["problems"].as_array().expect("problems");
        assert!(!problems.is_empty(), "{name}");
        for problem in problems {
            for key in ["code", "file", "what", "fix"] {
                assert!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{name}: {key} of {problem}");
            }
            let whole_file = matches!(problem["code"].as_str(), Some("config.unreadable_file" | "config.too_large"));
            assert!(whole_file || problem["line"].as_u64() > Some(0) && problem["column"].as_u64() > Some(0), "{name}: {problem}");
            lines.push_str(&format!("{problem}\n"));
        }
        let screen = tillstream(&fixtures(), &["validate", "--offline", name]);
        screens.push_str(&format!("$ tillstream validate --offline {name}\n{}\n", stderr(&screen)));
    }
    assert!(!lines.contains("hunter2") && !screens.contains("hunter2"), "a password is shown");
    check_snapshot("expected.ndjson", &lines);
    check_snapshot("expected.txt", &screens);
}

#[test]
fn every_command_has_help_with_examples_and_says_it_on_stdout() {
    let dir = scratch("help");
    let mut pages = String::new();
    let commands: [&[&str]; 32] = [
        &[],
        &["connector", "new"],
        &["sandbox"],
        &["setup"],
        &["slot", "list"],
        &["slot", "show"],
        &["slot", "drop"],
        &["publication", "diff"],
        &["incident", "template"],
        &["doctor"],
        &["doctor", "queries"],
        &["run"],
        &["status"],
        &["tap"],
        &["preview"],
        &["test"],
        &["validate"],
        &["explain"],
        &["plan"],
        &["apply"],
        &["schema", "connector"],
        &["schema", "pipeline"],
        &["dead-letters"],
        &["dead-letters", "list"],
        &["dead-letters", "show"],
        &["dead-letters", "redrive"],
        &["dead-letters", "diagnose"],
        &["dead-letters", "discard"],
        &["dead-letters", "edit"],
        &["dead-letters", "export"],
        &["why"],
        &["replay"],
    ];
    for command in commands {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let output = tillstream(&dir, &arguments);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}: help is data");
        let page = String::from_utf8(output.stdout).expect("UTF-8");
        let leaf = !command.is_empty() && command != ["dead-letters"];
        assert!(!leaf || page.contains("Example"), "{command:?} shows no example:\n{page}");
        pages.push_str(&page);
    }
    for exit_code in ["69", "70", "75", "77", "78", "143"] {
        assert!(pages.contains(exit_code), "exit code {exit_code} is documented");
    }
}

const GOOD: &str = "\
version: 1
pipeline: shop
source:
  name: pos
  url: postgres://nobody@127.0.0.1:9/pos?sslmode=disable
  slot: tillstream
  publication: tillstream
  tables: [public.orders]
journal: {local: {dir: ./journal}}
admin: {listen: \"127.0.0.1:0\"}
";

#[test]
fn exit_codes_are_those_that_are_documented() {
    let dir = scratch("exit-codes");
    std::fs::write(dir.join("tillstream.yaml"), GOOD).expect("written");
    std::fs::write(dir.join("deep.yaml"), "[".repeat(100_000)).expect("written");
    std::fs::write(dir.join("huge.yaml"), "a: b\n".repeat(2_000_000)).expect("written");
    std::fs::write(dir.join("latin1.yaml"), b"version: 1\npipeline: caf\xe9\n").expect("written");
    let cases: [(&[&str], i32, &str); 20] = [
        (&["validate", "--offline"], 0, ""),
        (&["explain", "capture.slot_lost"], 0, ""),
        (&["explain", "config"], 0, ""),
        (&["explain", "capture.slot_lsot"], 2, "capture.slot_lost"),
        (&["explain", "walceilingsoon"], 0, ""),
        (&["explain", "slot-lots"], 2, "slot-lost"),
        (&["setup", "--remove", "--yes", "--apply"], 2, "--reason"),
        (&["slot", "drop", "s", "--reason", "  "], 2, "reason"),
        (&["no-such-command"], 2, "Usage"),
        (&["tap", "--from", "yesterday"], 2, "a moment as"),
        (&["tap", "--partition", "7"], 2, "partition 7 does not exist"),
        (&["dead-letters", "redrive"], 2, "--all"),
        (&["status", "--url", "http://127.0.0.1:9"], 69, "error[admin.unreachable]"),
        (&["run", "-c", "no-such.yaml"], 78, "config.unreadable_file"),
        (&["validate", "."], 78, "config.unreadable_file"),
        (&["validate", "deep.yaml"], 78, "config."),
        (&["validate", "huge.yaml"], 78, "config.too_large"),
        (&["validate", "latin1.yaml"], 78, "config.not_utf8"),
        (&["--log-level", "a=b=c", "validate"], 78, "config.settings"),
        (&["--settings", "no-such.yaml", "validate"], 78, "config.settings"),
    ];
    for (arguments, code, says) in cases {
        let output = tillstream(&dir, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}");
    }
}

/// Status and body of an answer of the admin endpoint; `None` while nothing listens.
async fn ask(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

#[tokio::test]
async fn a_process_whose_source_is_away_lives_is_not_ready_says_why_and_ends_on_request() {
    let dir = scratch("source-away");
    let port = free_port();
    std::fs::write(dir.join("tillstream.yaml"), GOOD.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))).expect("written");
    let running = Process::start(&dir, "run", &["run"], &[]);
    let patience = Duration::from_secs(20);
    let reason = wait_for("a reason for not being ready", patience, || async {
        let (status, body) = ask(port, "/readyz").await?;
        assert_eq!(status, 503, "{body}");
        body.contains("capture.source_unavailable").then_some(body)
    });
    assert!(reason.await.contains("source is blocked"));
    assert_eq!(ask(port, "/healthz").await, Some((200, "ok\n".to_owned())));
    let (_, metrics) = ask(port, "/metrics").await.expect("it listens");
    assert!(metrics.contains("tillstream_capture_up{pipeline=\"shop\"} 0") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (_, status) = ask(port, "/api/status").await.expect("it listens");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let (code, schema) = ask(port, "/api/schema/connector").await.expect("it listens");
    assert!(code == 200 && schema.contains("\"on_delete\""), "{code}: {schema}");
    assert_eq!((&status["source"]["state"], &status["journal"]["state"]), (&"blocked".into(), &"healthy".into()), "{status}");
    let shown = tillstream(&dir, &["status"]);
    assert_eq!(shown.status.code(), Some(1), "a pipeline that is not ready");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("source pos               blocked"));
    let message =
        |arguments: &[&str]| String::from_utf8(tillstream(&dir, &[&["incident", "template"], arguments].concat()).stdout).expect("UTF-8");
    let message_live = message(&["--severity", "2", "--timezone", "America/Chicago"]);
    assert!(message_live.starts_with("[INVESTIGATING] New changes of the point of sale are not picked up"), "{message_live}");
    assert!(
        message_live.contains("blocked since") && message_live.contains("capture.source_unavailable"),
        "the internal part names the code"
    );
    assert!(!message(&["--public"]).contains("capture.source_unavailable"), "the public part does not");
    running.terminate(Duration::from_secs(10)).await;
    let silent = message(&[]);
    assert!(silent.contains("may be delayed") && silent.contains("no process answers"), "{silent}");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let dir = scratch("pipe");
    let script = format!("{} explain | head -1; exit ${{PIPESTATUS[0]}}", program().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(&dir).output().expect("bash runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

const CRM: &str = r#"
version: 1
connector: crm
from:
  tables: [public.orders]
  ops: [insert, update]
when: "{{ after.state != 'draft' }}"
map:
  id: "{{ idempotency_key }}"
  total: "{{ after.total | minor }}"
  day: "{{ committed_at | business_date('America/Chicago') }}"
  guest: {name: "{{ after.first }} {{ after.last }}"}
tests:
  - name: a paid order is sent in cents
    given: {after: {state: paid, total: "12.50", first: Ada, last: Lovelace}, committed_at: "2026-11-22T08:30:00Z"}
    expect: {id: test, total: 1250, day: "2026-11-21", guest: {name: Ada Lovelace}}
  - name: a draft is nobody's business
    given: {after: {state: draft}}
    filtered: true
  - name: an order without total is parked
    given: {after: {state: paid, first: Ada, last: L}}
    fails: map.total
on_delete: ignore
to:
  http: {url: "https://crm.example/v1/profiles"}
"#;

#[test]
fn tests_in_a_connector_file_pass_or_tell_what_differs() {
    let dir = scratch("mapping-tests");
    std::fs::write(dir.join("tillstream.yaml"), format!("{GOOD}connectors: [crm.yaml]\n")).expect("written");
    std::fs::write(dir.join("crm.yaml"), CRM).expect("written");
    for arguments in [&["test"][..], &["test", "crm.yaml"]] {
        let output = tillstream(&dir, arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "3 passed, 0 failed (3 crm)\n", "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(0));
    }
    std::fs::write(dir.join("crm.yaml"), CRM.replace("total: 1250", "total: 12.5").replace("filtered: true", "filtered: false"))
        .expect("written");
    let output = tillstream(&dir, &["test"]);
    assert_eq!(output.status.code(), Some(1));
    let said = "FAILED crm: a paid order is sent in cents\n  - total: 12.5\n  + total: 1250\n\
                FAILED crm: a draft is nobody's business\n  expected to be delivered\n  it is filtered\n1 passed, 2 failed (3 crm)\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), said);
    let output = tillstream(&dir, &["test", "--format", "json"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), told["passed"].as_u64(), told["failed"].as_array().map(Vec::len)), (Some(1), Some(1), Some(2)));
}

//! `tillstream sandbox` and `tillstream connector new`, as a user runs them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::{Value, json};

use tillstream_connectors::registry::Registry;

use crate::harness::{PATIENCE, Process, program, scratch, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandbox_serves_until_it_is_asked_to_end() {
    let dir = scratch("sandbox");
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--fault", "status_500_applied=1", "--window", "3600"];
    let process = Process::start(&dir, "sandbox", &arguments, &[]);
    let lines = || -> Vec<Value> { process.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    let first = wait_for("the address", PATIENCE, || async { lines().first().cloned() }).await;
    let address = first["listening"].as_str().expect("an address").to_owned();
    assert!(first["webhook_secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let send = async || {
        let request = client.post(format!("http://{address}/http/events")).header("idempotency-key", "k").json(&json!({"n": 1}));
        request.send().await.expect("answers").status().as_u16()
    };
    assert_eq!(send().await, 500);
    let calm = client.put(format!("http://{address}/sandbox/faults")).body("{}").send().await.expect("answers");
    assert_eq!(calm.status(), 204);
    assert_eq!(send().await, 200, "it was applied before");
    let out = dir.join("sandbox.out");
    process.terminate(PATIENCE).await;
    let last = std::fs::read_to_string(out).expect("its output");
    let counts: Value = serde_json::from_str(last.lines().last().expect("lines")).expect("JSON");
    assert_eq!((counts["applied"].as_u64(), counts["repeated"].as_u64()), (Some(1), Some(1)));
}

#[test]
fn what_is_scaffolded_for_each_kind_is_valid_and_passes_its_tests() {
    let dir = scratch("scaffold");
    let tillstream = |arguments: &[&str]| {
        let output = Command::new(program()).args(arguments).current_dir(&dir).output().expect("starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let kinds = Registry::built_in().names();
    assert!(kinds.len() >= 3, "{kinds:?}");
    for kind in kinds {
        let name = format!("try-{kind}");
        let arguments = ["connector", "new", kind, "--name", &name, "--dir", "connectors"];
        let (code, files, said) = tillstream(&arguments);
        assert_eq!(code, Some(0), "{kind}: {said}");
        let file = format!("connectors/{name}.yaml");
        assert!(files.lines().any(|line| line == file), "{kind}: {files}");
        for line in files.lines() {
            let mode = std::fs::metadata(dir.join(line)).expect("is there").permissions().mode();
            assert!(!line.ends_with(".secret") || mode & 0o077 == 0, "{line} is for its owner alone");
        }
        let (code, _, said) = tillstream(&["validate", "--offline", &file]);
        assert_eq!(code, Some(0), "{kind}: {said}");
        let (code, passed, said) = tillstream(&["test", &file]);
        assert_eq!(code, Some(0), "{kind}: {passed}{said}");
        assert!(!passed.starts_with("0 passed") && passed.contains("0 failed"), "{kind} has tests: {passed}");
        let (code, _, said) = tillstream(&arguments);
        assert!(code == Some(2) && said.contains("connector.exists"), "{kind}: nothing is overwritten: {code:?} {said}");
    }
    let (code, _, said) = tillstream(&["connector", "new", "htpp"]);
    assert!(code == Some(2) && said.contains("http"), "{code:?} {said}");
}

//! The API under requests that were made up from its own document. `tests/run.sh long` installs the tool and runs this.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::shop::{Shop, row, token};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs schemathesis; tests/run.sh long runs it"]
async fn no_request_is_answered_by_a_fault_of_ours() {
    let tool = std::env::var("TILLSTREAM_SCHEMATHESIS").expect("the path of schemathesis");
    let mut shop = Shop::with_people("fuzz").await;
    shop.capture.commit(0, &[row(1, "<a>"), row(2, "<b>"), row(3, "good")]).await;
    shop.letters(2, "vera").await;
    let document = format!("{}/api/openapi.json", shop.base);
    let header = format!("Authorization: Bearer {}", token("dana"));
    let report = shop.dir.join("fuzz.out");
    let out = std::fs::File::create(&report).expect("written");
    // Readiness answers 503 by design. Slower than the limit for changes: what is refused as too often tells nothing.
    let examples = std::env::var("TILLSTREAM_FUZZ_EXAMPLES").unwrap_or_else(|_| "40".to_owned());
    let arguments = [
        ["run", &document],
        ["--header", &header],
        ["--exclude-path", "/readyz"],
        ["--checks", "not_a_server_error"],
        ["--phases", "fuzzing"],
        ["--max-examples", &examples],
        ["--rate-limit", "100/m"],
        ["--workers", "1"],
        ["--generation-database", "none"],
    ]
    .concat();
    let status = Command::new(&tool).args(arguments).stdin(Stdio::null()).stdout(out.try_clone().expect("a file")).stderr(out).status();
    let status = tokio::time::timeout(Duration::from_secs(3600), status).await.expect("ends within an hour").expect("runs");
    let said = std::fs::read_to_string(&report).unwrap_or_default();
    println!("{}", said.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));
    assert!(status.success(), "{status}; {}", report.display());
    shop.end().await;
}

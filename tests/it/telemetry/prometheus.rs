//! A private Prometheus and postgres_exporter, started by `docker/prometheus.sh`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::harness::{root, scratch, wait_for};

/// How long anything may take that is not measured.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the script to its good end; answers what it printed.
pub(super) async fn script(arguments: &[&str]) -> String {
    let output =
        Command::new(root().join("docker/prometheus.sh")).args(arguments).stdin(Stdio::null()).output().await.expect("the script runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "prometheus.sh {arguments:?}: {text}");
    text
}

/// A Prometheus that scrapes every second. `end` it: its files stay for whoever looks at a failure.
pub(super) struct Prometheus {
    dir: PathBuf,
    url: String,
    client: reqwest::Client,
}

impl Prometheus {
    /// Scrapes the admin endpoints at these addresses. With `changed`, every alert waits for two seconds only, ranges are some
    /// seconds long, and the first text of each pair, which has to be there, makes way for the second.
    pub(super) async fn start(name: &str, admins: &[&str], changed: Option<&[(&str, &str)]>) -> Prometheus {
        let dir = scratch(&format!("prometheus-{name}"));
        if let Some(changed) = changed {
            std::fs::write(dir.join("alerts.yaml"), quick(changed)).expect("target/ can be written");
        }
        let mut arguments = vec!["start", dir.to_str().expect("UTF-8")];
        arguments.extend(admins.iter().map(|admin| admin.trim_start_matches("http://")));
        // A server that stays must not hold the pipes of the script.
        let status = Command::new(root().join("docker/prometheus.sh"))
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .expect("the script runs");
        assert!(status.success(), "Prometheus does not start: is it installed? `docker/prometheus.sh install`");
        let url = script(&["url", dir.to_str().expect("UTF-8")]).await.trim().to_owned();
        Prometheus { dir, url, client: reqwest::Client::builder().no_proxy().build().expect("builds") }
    }

    /// What a query finds now: labels and value.
    pub(super) async fn query(&self, query: &str) -> Option<Vec<(Value, f64)>> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", query)]).ok()?;
        let answer: Value = self.client.get(url).send().await.ok()?.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let found = answer["data"]["result"].as_array()?;
        Some(found.iter().filter_map(|one| Some((one["metric"].clone(), one["value"][1].as_str()?.parse().ok()?))).collect())
    }

    /// The alerts of this severity that fire.
    pub(super) async fn firing(&self, severity: &str) -> Vec<String> {
        let query = format!("ALERTS{{alertstate=\"firing\", severity=\"{severity}\"}}");
        let found = wait_for("an answer of Prometheus", PATIENCE, || self.query(&query)).await;
        let mut names: Vec<String> = found.iter().filter_map(|(labels, _)| Some(labels["alertname"].as_str()?.to_owned())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Waits until exactly this alert of severity `page` fires.
    pub(super) async fn only(&self, alert: &str) {
        wait_for(alert, PATIENCE, || async { (self.firing("page").await == [alert]).then_some(()) }).await;
    }

    pub(super) async fn end(self) {
        script(&["destroy", self.dir.to_str().expect("UTF-8")]).await;
    }
}

/// The rules, quickened.
fn quick(changed: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(root().join("docker/prometheus/alerts.yaml")).expect("readable");
    for (from, to) in changed {
        assert_eq!(text.matches(from).count(), 1, "`{from}` stands there once");
        text = text.replace(from, to);
    }
    let line = |line: &str| {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start().starts_with("for: ") { format!("{indent}for: 2s") } else { line.replace("[10m]", "[15s]") }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A postgres_exporter; killed when dropped.
pub(super) struct Exporter(Child);

impl Exporter {
    pub(super) async fn start(prometheus: &Prometheus, url: &str) -> Exporter {
        let url = format!("{url}{}sslmode=disable", if url.contains('?') { "&" } else { "?" });
        let child = Command::new(root().join("docker/prometheus.sh"))
            .args(["exporter", prometheus.dir.to_str().expect("UTF-8"), &url])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the script runs");
        Exporter(child)
    }

    pub(super) async fn end(mut self) {
        let _ = self.0.kill().await;
    }
}

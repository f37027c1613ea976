//! What Prometheus and Grafana make of the metrics: the rules are sound, every name exists, every panel has data, and the alerts
//! that wake somebody fire in their fault and in no other.

mod canary;
mod faults;
mod limits;
mod otlp;
mod prometheus;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use tillstream::telemetry::names::{self, Kind};

use crate::harness::{Journal, Level, Pipeline, Postgres, RabbitMq, root, wait_for};
use prometheus::{Exporter, PATIENCE, Prometheus};

fn file(path: &str) -> (PathBuf, String) {
    let path = root().join("docker").join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (path, text)
}

/// Everything that looks like a name of ours.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("tillstream_")).collect()
}

#[test]
fn alerts_and_boards_name_metrics_that_there_are() {
    let mut exposed = BTreeSet::new();
    for metric in names::ALL {
        let suffixes: &[&str] = match metric.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_sum", "_count"],
        };
        exposed.extend(suffixes.iter().map(|suffix| format!("{}{suffix}", metric.name)));
    }
    let mut count = 0;
    for path in [
        "prometheus/alerts.yaml",
        "prometheus/alerts_test.yaml",
        "grafana/operator.json",
        "grafana/dba.json",
        "kubernetes/hpa.yaml",
        "kubernetes/keda.yaml",
    ] {
        let (path, text) = file(path);
        for name in named(&text) {
            count += 1;
            assert!(exposed.contains(name), "{}: there is no metric {name}", path.display());
        }
    }
    assert!(count > 60, "{count}");
}

#[test]
fn every_alert_says_what_it_means_and_is_tried() {
    let (_, rules) = file("prometheus/alerts.yaml");
    let (_, tried) = file("prometheus/alerts_test.yaml");
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    for alert in &alerts {
        let name = alert.split_whitespace().next().expect("a name");
        for part in ["severity: ", "summary: ", "impact: ", "action: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        assert!(tried.contains(&format!("alertname=\"{name}\"")), "no test fires {name}");
    }
    assert!(alerts.len() >= 12, "{}", alerts.len());
}

/// The queries of a board's panels and annotations, as Grafana would send them.
fn queries(board: &Value) -> Vec<(String, String)> {
    let fill = |expr: &str| expr.replace("$pipeline", ".*").replace("$__rate_interval", "15s");
    let panels = board["panels"].as_array().expect("panels");
    let panel = |panel: &Value| -> Vec<(String, String)> {
        let title = panel["title"].as_str().unwrap_or("-").to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.filter_map(|t| Some((title.clone(), fill(t["expr"].as_str()?)))).collect()
    };
    panels.iter().flat_map(panel).collect()
}

/// Panels of what need not be there: of a state that is not.
const MAY_BE_EMPTY: [&str; 0] = [];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_pass_and_every_panel_of_both_boards_has_data() {
    if Level::get() < Level::Full {
        return;
    }
    let said = prometheus::script(&["check"]).await;
    println!("{said}");
    assert!(said.contains("SUCCESS") && !said.contains("FAILED"), "{said}");

    let server = Postgres::shared().await;
    let broker = RabbitMq::shared().await;
    let pipeline = Pipeline::new("boards", server, Journal::Rabbit(broker), |text| text + "canary: {every: 1s}\n").await;
    pipeline.set_up().await;
    let target = pipeline.target(false).await;
    let running = pipeline.run("run", &[]);
    running.ready().await;
    let traffic = pipeline.traffic(60, 120, &[]);
    let prometheus = Prometheus::start("boards", &[&running.admin], None).await;
    let exporter = Exporter::start(&prometheus, &pipeline.pos.url).await;

    let mut counts = Vec::new();
    for name in ["operator", "dba"] {
        let (_, text) = file(&format!("grafana/{name}.json"));
        let board: Value = serde_json::from_str(&text).expect("JSON");
        let queries = queries(&board);
        counts.push(format!("{} queries of the {name}'s board", queries.len()));
        for (title, query) in queries {
            if MAY_BE_EMPTY.contains(&title.as_str()) {
                continue;
            }
            wait_for(&format!("data in `{title}`: {query}"), PATIENCE, || async {
                prometheus.query(&query).await.filter(|found| !found.is_empty()).map(drop)
            })
            .await;
        }
    }
    // The same by the command line, of the process that delivers, once it has.
    running
        .until("a delivery that was measured", |status| {
            status["figures"]["connectors"].as_array().is_some_and(|c| c.iter().any(|c| c["service"].is_object()))
        })
        .await;
    let advice = pipeline.command("advice", &["status", "--scale-advice", "--drain-within", "10m", "--url", &running.admin]).await;
    println!("{advice}");
    assert!(advice.contains("limit: ") && advice.contains("replicas: 1 wanted, 1 there"), "{advice}");
    let json = pipeline.command("advice", &["status", "--scale-advice", "--url", &running.admin, "--format", "json"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    for key in ["bottleneck", "recommended_replicas", "max_useful_replicas", "helps", "because"] {
        assert!(!json[key].is_null(), "{key} is missing: {json:#}");
    }
    let status = pipeline.command("status", &["status", "--url", &running.admin]).await;
    println!("{status}");
    assert!(status.contains("limit: ") && status.contains("stage "), "{status}");
    std::fs::write(pipeline.dir.join("peak.csv"), "seconds,orders\n0,1\n60,2\n120,1\n180,0\n").expect("target/ can be written");
    let arguments = ["capacity", "--profile", "peak.csv", "--events-per-order", "14", "--url", &running.admin];
    let needs = pipeline.command("capacity", &arguments).await;
    println!("{needs}");
    assert!(needs.contains("processes that deliver") && needs.contains("capture: one process"), "{needs}");

    let series = prometheus.query("count({__name__=~\"tillstream_.*\"})").await.and_then(|found| Some(found.first()?.1)).unwrap_or(0.0);
    let firing = prometheus.firing("page").await;
    println!("a real Prometheus: {series} series; {} return data; firing: {firing:?}", counts.join(", "));
    assert!(firing.is_empty(), "{firing:?}");
    exporter.end().await;
    prometheus.end().await;
    traffic.end().await;
    running.process.terminate(PATIENCE).await;
    target.end().await;
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

//! Spans of a real pipeline, as a collector gets them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::Message as _;

use crate::harness::{Journal, PATIENCE, Pipeline, Postgres, free_port, wait_for};

/// A span, flattened.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    took_ns: u64,
    failed: bool,
    attributes: HashMap<String, String>,
    resource: HashMap<String, String>,
}

impl Seen {
    fn number(&self, key: &str) -> i64 {
        self.attributes.get(key).and_then(|n| n.parse().ok()).unwrap_or(-1)
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.attributes.get(key).is_some_and(|found| found == value)
    }
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Seen>,
    bytes: Vec<u8>,
}

type Shared = Arc<Mutex<Received>>;

fn plain(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        other => panic!("an attribute of another type: {other:?}"),
    };
    attributes.iter().map(|a| (a.key.clone(), text(&a.value))).collect()
}

async fn take(State(received): State<Shared>, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body.as_ref()).expect("protobuf");
    let mut received = received.lock().expect("nobody panicked");
    received.bytes.extend_from_slice(&body);
    for of in request.resource_spans {
        let resource = plain(&of.resource.expect("a resource").attributes);
        for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert!(span.trace_id.len() == 16 && span.span_id.len() == 8 && span.end_time_unix_nano >= span.start_time_unix_nano);
            received.spans.push(Seen {
                name: span.name,
                took_ns: span.end_time_unix_nano - span.start_time_unix_nano,
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: plain(&span.attributes),
                resource: resource.clone(),
            });
        }
    }
    StatusCode::OK
}

/// A collector on this port.
async fn collector(port: u16) -> (Shared, tokio::task::JoinHandle<()>) {
    let received = Shared::default();
    let app = axum::Router::new().route("/v1/traces", post(take)).with_state(received.clone());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    (received, tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") }))
}

async fn until(received: &Shared, what: &str, is: impl Fn(&Seen) -> bool) -> Seen {
    wait_for(what, PATIENCE, || async { received.lock().expect("nobody panicked").spans.iter().find(|span| is(span)).cloned() }).await
}

const PLANTED: &str = "planted-value-7c1e";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_a_span_of_each_batch_and_call_and_is_missed_by_nobody() {
    let server = Postgres::shared().await;
    let mut pipeline = Pipeline::new("otlp", server, Journal::Local, |text| text).await;
    let port = free_port();
    pipeline.set("TILLSTREAM__TELEMETRY__OTLP", format!("http://127.0.0.1:{port}"));
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    // Nobody takes the spans: it delivers all the same, and says so once.
    running.ready().await;
    running.until("the load", |status| status["initial_load"]["finished"] == true && status["connectors"][0]["lag_entries"] == 0).await;
    let log = pipeline.dir.join("run.err");
    let warned = || std::fs::read_to_string(&log).unwrap_or_default().lines().filter(|l| l.contains("telemetry.otlp_away")).count();
    wait_for("the warning", PATIENCE, || async { (warned() == 1).then_some(()) }).await;

    let (received, serving) = collector(port).await;
    let client = pipeline.pos.connect().await;
    let change = format!("UPDATE customer SET name = '{PLANTED}', email = '{PLANTED}@example.com'");
    client.batch_execute(&change).await.expect("changes");
    let batch = until(&received, "a batch's span", |s| s.name == "capture batch" && s.number("tillstream.events") > 0).await;
    println!("{batch:?}");
    assert!(batch.number("tillstream.entries") >= batch.number("tillstream.events") && batch.number("tillstream.bytes") > 100);
    assert!(batch.number("tillstream.partition") == 0 && batch.number("tillstream.publishing_id") > 0 && batch.took_ns > 0);
    assert!(batch.attributes["tillstream.first_event"].starts_with("e1-") && !batch.failed);
    assert_eq!((batch.resource["service.name"].as_str(), batch.resource["tillstream.pipeline"].as_str()), ("tillstream", "demo"));
    for connector in ["inventory", "engagement"] {
        let good = |s: &Seen| s.name == "deliver" && s.is("tillstream.connector", connector) && s.is("tillstream.outcome", "ok");
        let call = until(&received, "a call's span", |s| good(s) && s.number("tillstream.delivered") > 0).await;
        println!("{call:?}");
        assert!(call.number("tillstream.events") >= call.number("tillstream.delivered") && call.took_ns > 0 && !call.failed);
        assert!(call.attributes["tillstream.first_event"].starts_with("e1-"));
    }

    // A call that fails says with which code.
    target.end().await;
    client.batch_execute(&change).await.expect("changes");
    let failed = until(&received, "a failed call", |s| s.is("tillstream.connector", "engagement") && s.failed).await;
    println!("{failed:?}");
    assert!(failed.is("tillstream.outcome", "failed") && failed.attributes["error.type"].contains('.'));
    assert_eq!(warned(), 1, "said once");
    let target = pipeline.target(true).await;
    running.until("it is delivered", |status| status["connectors"][1]["lag_entries"] == 0).await;

    // What is left is sent at the end.
    running.process.terminate(PATIENCE).await;
    target.terminate(PATIENCE).await;
    serving.abort();
    let received = std::mem::take(&mut *received.lock().expect("nobody panicked"));
    assert!(!received.bytes.windows(PLANTED.len()).any(|w| w == PLANTED.as_bytes()), "no value leaves by a span");
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_is_refused_at_the_start() {
    let server = Postgres::shared().await;
    let mut pipeline = Pipeline::new("otlp-address", server, Journal::Local, |text| text).await;
    pipeline.set("TILLSTREAM__TELEMETRY__OTLP", "collector:4317".to_owned());
    let process = pipeline.start("run", &["run"]);
    assert_eq!(process.wait(PATIENCE).await.code(), Some(78));
    let said = std::fs::read_to_string(pipeline.dir.join("run.err")).expect("the log");
    assert!(said.contains("telemetry.otlp_endpoint"), "{said}");
    pipeline.drop(server).await;
}

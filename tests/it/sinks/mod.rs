//! The sinks that speak HTTP, one call at a time, against a server in this process that answers as a test says and keeps what it was sent.

mod contracts;
mod egress;
mod http;
mod klaviyo;
mod segment;
mod square;
mod tls;
mod webhook;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tillstream_connectors::registry::{Problem, Registry, Target};
use tillstream_connectors::sink::{Batch, Item, LaneId, Mark, OnDelete, Outcome, Sink, SinkError};
use tillstream_schemas::{Event, Position};

/// One request, as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A server; requests that only look whether it is there (OPTIONS) are not kept.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Starts one that answers the n-th request as `script` says.
    pub(super) async fn start(script: impl Fn(usize, &Seen) -> Response + Send + Sync + 'static) -> Server {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, script) = (seen.clone(), Arc::new(script));
        let handle = move |request: Request| {
            let (kept, script) = (kept.clone(), script.clone());
            async move {
                let (head, body) = request.into_parts();
                if head.method == "OPTIONS" {
                    return StatusCode::NO_CONTENT.into_response();
                }
                let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body");
                let one = Seen { method: head.method.to_string(), path: head.uri.to_string(), headers: head.headers, body };
                let number = {
                    let mut kept = kept.lock().expect("sound");
                    kept.push(one.clone());
                    kept.len() - 1
                };
                script(number, &one)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handle)).await });
        Server { url: format!("http://127.0.0.1:{port}"), port, seen }
    }

    /// One that takes everything.
    pub(super) async fn taking() -> Server {
        Server::start(|_, _| status(200)).await
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("sound").clone()
    }

    /// The only request.
    pub(super) fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1);
        seen.into_iter().next().expect("one")
    }
}

pub(super) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).expect("a status").into_response()
}

pub(super) fn answer(code: u16, body: Value) -> Response {
    (StatusCode::from_u16(code).expect("a status"), axum::Json(body)).into_response()
}

/// A moment that is recent for every target.
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// The n-th event, a payment of n, with what a connector's map made of it.
pub(super) fn item(n: u32, mapped: &Value) -> Item {
    Item { mapped: Some(Ok(mapped.to_string().into())), ..unmapped(n, "insert") }
}

pub(super) fn unmapped(n: u32, op: &str) -> Item {
    let row = json!({"id": n, "amount": "12.50", "note": "a b/c?d=é"});
    let is_read = op == "read";
    let body = json!({
        "id": if is_read { format!("e1-bj-public.payment-12.0-{n}") } else { format!("e1-0/1-{n}") },
        "op": op, "schema": "public", "table": "payment", "key": {"id": n}, "before": null,
        "after": if op == "delete" { Value::Null } else { row }, "unchanged": [], "commit_lsn": "0/1", "ordinal": n,
        "xid": if is_read { Value::Null } else { 1.into() }, "committed_at": if is_read { Value::Null } else { now().into() },
    });
    let event = Arc::new(Event::parse(body.to_string().into()).expect("an event"));
    Item { event, idempotency_key: format!("key{n}"), version: Position::NONE, mapped: None }
}

pub(super) fn validate(kind: &str, block: Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
    Registry::built_in().get(kind).expect("built in").validate(&block, mapped)
}

/// A lane of a target whose block is `more` and the permission to reach this machine.
pub(super) fn lane(kind: &str, more: Value, mapped: bool) -> Box<dyn Sink> {
    let mut block = json!({"allow_private": true});
    block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
    let target = validate(kind, block, mapped).expect("valid");
    target.build(LaneId { connector: "test".into(), partition: 0, lane: 0 }, OnDelete::Ignore)
}

pub(super) async fn deliver(sink: &mut Box<dyn Sink>, items: Vec<Item>) -> Result<Vec<Outcome>, SinkError> {
    sink.deliver(&Batch { items, mark: Mark(Vec::new()) }).await
}

/// Outcomes in a word each: `delivered`, `absorbed`, the code of a refusal, `again`, or `pause`.
pub(crate) fn said(outcomes: &[Outcome]) -> Vec<&str> {
    let word = |outcome| match outcome {
        &Outcome::Delivered => "delivered",
        Outcome::Absorbed => "absorbed",
        Outcome::Rejected(reason) => reason.code.as_str(),
        Outcome::Retry(retry) if retry.after.is_some() => "pause",
        Outcome::Retry(_) => "again",
    };
    outcomes.iter().map(word).collect()
}

//! Standard Webhooks and CloudEvents.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tillstream_connectors::sink::{Class, Idempotency};

use super::{Seen, Server, deliver, item, lane, said, status, unmapped, validate};

pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Whether one of the signatures is that of this secret: what a receiver does.
fn is_signed(seen: &Seen, secret: &str) -> bool {
    let key = BASE64.decode(secret.trim_start_matches("whsec_")).expect("base64");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
    mac.update(format!("{}.{}.", seen.header("webhook-id"), seen.header("webhook-timestamp")).as_bytes());
    mac.update(&seen.body);
    let expected = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
    seen.header("webhook-signature").split(' ').any(|signature| signature == expected)
}

#[tokio::test]
async fn requests_are_signed_by_every_secret_and_named_the_same_on_every_attempt() {
    let server = Server::start(|n, _| status(if n == 0 { 500 } else { 204 })).await;
    let mut sink = lane("webhook", json!({"url": server.url, "secrets": [SECRET, OLD], "type": "till.{{ table }}"}), true);
    let one = item(7, &json!({"amount": 1250}));
    assert_eq!(said(&deliver(&mut sink, vec![one.clone()]).await.expect("answers")), ["again"]);
    assert_eq!(said(&deliver(&mut sink, vec![one.clone()]).await.expect("answers")), ["delivered"]);
    let seen = server.seen();
    for seen in &seen {
        assert!(is_signed(seen, SECRET) && is_signed(seen, OLD) && !is_signed(seen, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
        assert_eq!(seen.header("webhook-id"), "key7");
        let sent = seen.header("webhook-timestamp").parse::<i64>().expect("seconds");
        assert!((jiff::Timestamp::now().as_second() - sent).abs() < 60);
    }
    assert_eq!(seen[0].body, seen[1].body);
    assert_eq!(seen[1].json(), json!({"type": "till.payment", "timestamp": one.event.committed_at(), "data": {"amount": 1250}}));
}

#[tokio::test]
async fn an_endpoint_that_is_gone_stops_the_connector() {
    let server = Server::start(|_, _| status(410)).await;
    let mut sink = lane("webhook", json!({"url": server.url, "secrets": SECRET}), true);
    let error = deliver(&mut sink, vec![item(1, &json!({}))]).await.expect_err("gone");
    assert_eq!((error.code.as_str(), error.class), ("webhook.gone", Class::Definite));
}

#[tokio::test]
async fn without_a_map_the_listed_columns_are_sent() {
    let server = Server::taking().await;
    let block = json!({"url": server.url, "secrets": SECRET, "columns": {"public.payment": ["id", "amount"]}});
    let mut sink = lane("webhook", block, false);
    assert_eq!(said(&deliver(&mut sink, vec![unmapped(3, "insert")]).await.expect("answers")), ["delivered"]);
    let body = server.only().json();
    assert_eq!((&body["type"], &body["data"]["data"]), (&json!("payment.insert"), &json!({"id": 3, "amount": "12.50"})));
}

#[tokio::test]
async fn cloud_events_come_structured_binary_and_in_batches() {
    let block = |server: &Server, mode: &str| json!({"url": server.url, "secrets": SECRET, "mode": mode, "source": "/pos/Zoë's", "type": "till.paid"});

    let server = Server::taking().await;
    deliver(&mut lane("webhook", block(&server, "structured"), true), vec![item(1, &json!({"n": 1}))]).await.expect("answers");
    let seen = server.only();
    assert_eq!(seen.header("content-type"), "application/cloudevents+json; charset=utf-8");
    let body = seen.json();
    for (name, value) in
        [("specversion", "1.0"), ("id", "key1"), ("source", "/pos/Zoë's"), ("type", "till.paid"), ("datacontenttype", "application/json")]
    {
        assert_eq!(body[name], value);
    }
    assert_eq!(body["data"], json!({"n": 1}));
    assert!(is_signed(&seen, SECRET));

    let server = Server::taking().await;
    deliver(&mut lane("webhook", block(&server, "binary"), true), vec![item(2, &json!({"n": 2}))]).await.expect("answers");
    let seen = server.only();
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "key2"),
        ("ce-source", "/pos/Zo%C3%AB's"),
        ("ce-type", "till.paid"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen.header(name), value);
    }
    assert!(!seen.header("ce-time").is_empty() && seen.headers.get("ce-datacontenttype").is_none());
    assert_eq!(seen.json(), json!({"n": 2}));

    let server = Server::taking().await;
    let mut batch = block(&server, "batch");
    batch["events"] = json!(2);
    let items = (0..5).map(|n| item(n, &json!({"n": n}))).collect();
    assert_eq!(said(&deliver(&mut lane("webhook", batch, true), items).await.expect("answers")), ["delivered"; 5]);
    let seen = server.seen();
    assert_eq!(seen.iter().map(|s| s.json().as_array().expect("a list").len()).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(seen[0].header("content-type"), "application/cloudevents-batch+json; charset=utf-8");
    assert_eq!(seen[1].json()[0]["id"], "key2");
    assert!(seen.iter().all(|seen| is_signed(seen, SECRET)));
}

#[test]
fn blocks_are_checked() {
    for (more, path) in [
        (json!({"mode": "structured"}), "source"),
        (json!({"source": "/pos"}), "source"),
        (json!({"events": 3}), "events"),
        (json!({"type": "{{ tabel }}"}), "type"),
        (json!({"secrets": Value::Null}), "secrets"),
        (json!({"columns": {"public.payment": ["id"]}}), "columns"),
    ] {
        let mut block = json!({"url": "https://receiver.example/", "secrets": SECRET});
        block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
        let problems = validate("webhook", block.clone(), true).expect_err("broken");
        assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), [path], "{block}");
    }
    let target = validate("webhook", json!({"url": "https://receiver.example/", "secrets": SECRET}), true).expect("valid");
    assert_eq!(target.plan().idempotency, Idempotency::Key);
}

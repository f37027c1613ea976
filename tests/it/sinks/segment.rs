//! Segment, and who speaks the same.

use std::time::Duration;

use serde_json::{Value, json};
use tillstream_connectors::sink::Idempotency;

use super::{Server, deliver, item, lane, said, status, validate};

fn block(server: &Server) -> Value {
    json!({"url": server.url, "write_key": "wk"})
}

fn paid(n: u32) -> Value {
    json!({"type": "track", "userId": format!("guest{n}"), "event": "Paid", "properties": {"n": n}})
}

#[tokio::test]
async fn calls_go_in_lists_that_keep_the_limits() {
    let server = Server::taking().await;
    let mut sink = lane("segment", block(&server), true);
    let long = |n: u32| {
        let mut call = paid(n);
        call["properties"]["text"] = "x".repeat(20_000).into();
        call
    };
    let items: Vec<_> = (0..60).map(|n| item(n, &long(n))).collect();
    assert_eq!(said(&deliver(&mut sink, items.clone()).await.expect("answers")), ["delivered"; 60]);
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|s| s.body.len() <= 500_000 && s.path == "/v1/batch" && s.header("authorization") == "Basic d2s6"));
    let first = &seen[0].json()["batch"][0];
    assert_eq!((&first["messageId"], &first["type"], &first["userId"]), (&json!("tillstream-key0"), &json!("track"), &json!("guest0")));
    assert_eq!(first["timestamp"], json!(items[0].event.committed_at()));

    let server = Server::taking().await;
    let mut few = block(&server);
    few["events"] = json!(7);
    few["message_prefix"] = json!("north");
    deliver(&mut lane("segment", few, true), (0..15).map(|n| item(n, &paid(n))).collect()).await.expect("answers");
    let seen = server.seen();
    assert_eq!(seen.iter().map(|s| s.json()["batch"].as_array().expect("a list").len()).collect::<Vec<_>>(), [7, 7, 1]);
    assert_eq!(seen[2].json()["batch"][0]["messageId"], "north-key14");
}

#[tokio::test]
async fn what_would_be_dropped_without_a_word_is_refused_with_one() {
    let server = Server::taking().await;
    let without = |field: &str| {
        let mut call = paid(1);
        call.as_object_mut().expect("an object").remove(field);
        call
    };
    let (mut large, mut strange) = (paid(3), paid(4));
    large["properties"]["text"] = "x".repeat(32_000).into();
    strange["evnt"] = json!("Paid");
    let group = json!({"type": "group", "anonymousId": "a"});
    let calls =
        [without("type"), without("userId"), without("event"), large, strange, group, json!({"type": "paid", "userId": "a"}), paid(9)];
    let items = calls.iter().enumerate().map(|(n, call)| item(u32::try_from(n).expect("few"), call)).collect();
    let outcomes = deliver(&mut lane("segment", block(&server), true), items).await.expect("answers");
    let refused = "segment.field";
    assert_eq!(said(&outcomes), [refused, refused, refused, "http.too_large", refused, refused, refused, "delivered"]);
    assert_eq!(server.only().json()["batch"].as_array().expect("a list").len(), 1);
}

#[tokio::test]
async fn a_list_that_is_refused_is_halved() {
    let server = Server::start(|_, seen| {
        let poisoned = seen.json()["batch"].as_array().expect("a list").iter().any(|call| call["userId"] == "guest5");
        status(if poisoned { 400 } else { 200 })
    })
    .await;
    let outcomes = deliver(&mut lane("segment", block(&server), true), (0..8).map(|n| item(n, &paid(n))).collect()).await.expect("answers");
    let expected: Vec<_> = (0..8).map(|n| if n == 5 { "http.status_400" } else { "delivered" }).collect();
    assert_eq!(said(&outcomes), expected);
}

#[test]
fn it_says_how_long_it_remembers() {
    let target = validate("segment", json!({"write_key": "wk"}), true).expect("valid");
    assert_eq!((target.plan().idempotency, target.plan().remembers), (Idempotency::Key, Some(Duration::from_secs(86_400))));
    let problems = validate("segment", json!({"message_prefix": "a.b", "events": 0}), false).expect_err("broken");
    assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["", "write_key", "message_prefix", "events"]);
}

//! Klaviyo: events and profiles.

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tillstream_connectors::sink::{Class, Idempotency};

use super::{Server, answer, deliver, item, lane, said, status, unmapped, validate};

pub(super) fn block(server: &Server, resource: &str) -> Value {
    json!({"url": server.url, "api_key": "pk_hunter2", "resource": resource})
}

pub(super) fn paid(n: u32) -> Value {
    json!({"metric": "Paid", "profile": {"external_id": format!("guest{n}")}, "properties": {"table": "T4"}, "value": 12.5, "value_currency": "USD"})
}

/// Their `errors`, as JSON:API has them.
pub(super) fn errors(code: &str, pointer: &str) -> Value {
    json!({"errors": [{"id": "0c1", "code": code, "title": "Invalid input.", "detail": "Ada is no address", "source": {"pointer": pointer}}]})
}

#[tokio::test]
async fn an_event_carries_its_own_id_and_time() {
    let server = Server::start(|_, _| status(202)).await;
    let mut sink = lane("klaviyo", block(&server, "event"), true);
    let one = item(7, &paid(7));
    assert_eq!(said(&deliver(&mut sink, vec![one.clone()]).await.expect("answers")), ["delivered"]);
    let seen = server.only();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/api/events"));
    assert_eq!((seen.header("authorization"), seen.header("revision")), ("Klaviyo-API-Key pk_hunter2", "2026-07-15"));
    assert_eq!(seen.header("content-type"), "application/vnd.api+json");
    let attributes = &seen.json()["data"]["attributes"];
    assert_eq!((&attributes["unique_id"], &attributes["time"]), (&json!("key7"), &json!(one.event.committed_at())));
    assert_eq!(attributes["metric"]["data"]["attributes"]["name"], "Paid");
    assert_eq!(attributes["profile"]["data"], json!({"type": "profile", "attributes": {"external_id": "guest7"}}));
    assert!(attributes.get("backfill").is_none());

    // A row that was loaded is history and triggers no message; an id of the map's own names the fact.
    let server = Server::start(|_, _| status(202)).await;
    let mut mapped = paid(8);
    mapped["unique_id"] = json!("check:8:paid");
    let loaded = tillstream_connectors::sink::Item { mapped: item(8, &mapped).mapped, ..unmapped(8, "read") };
    deliver(&mut lane("klaviyo", block(&server, "event"), true), vec![loaded]).await.expect("answers");
    let attributes = &server.only().json()["data"]["attributes"];
    assert_eq!((&attributes["backfill"], &attributes["unique_id"]), (&json!(true), &json!("check:8:paid")));
}

#[tokio::test]
async fn a_profile_is_upserted_and_consent_never_touched() {
    let server = Server::start(|n, _| status(if n == 0 { 201 } else { 200 })).await;
    let mut sink = lane("klaviyo", block(&server, "profile"), true);
    let guest = json!({"external_id": 7, "email": "ada@example.com", "first_name": null, "properties": {"tier": "gold"}});
    let guests = vec![item(1, &guest), item(2, &guest)];
    assert_eq!(said(&deliver(&mut sink, guests).await.expect("answers")), ["delivered", "delivered"]);
    let seen = server.seen();
    assert_eq!(seen[0].path, "/api/profile-import");
    assert_eq!(seen[0].json(), json!({"data": {"type": "profile", "attributes": guest}}));

    let server = Server::taking().await;
    let mut sink = lane("klaviyo", block(&server, "profile"), true);
    let with = |field: &str, value: Value| {
        let mut guest = guest.clone();
        guest[field] = value;
        item(3, &guest)
    };
    let deleted = tillstream_connectors::sink::Item { mapped: item(4, &guest).mapped, ..unmapped(4, "delete") };
    let items = vec![
        with("subscriptions", json!({"email": {"marketing": {"consent": "SUBSCRIBED"}}})),
        with("consent", json!(true)),
        item(5, &json!({"first_name": "Ada"})),
        deleted,
        with("properties", json!({"text": "x".repeat(100_001)})),
    ];
    let outcomes = deliver(&mut sink, items).await.expect("no call");
    assert_eq!(said(&outcomes), ["klaviyo.field", "klaviyo.field", "klaviyo.field", "klaviyo.delete", "http.too_large"]);
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn answers_are_told_apart() {
    for (resource, code, body, expected) in [
        ("event", 202, json!(null), "delivered"),
        ("event", 400, errors("invalid", "/data/attributes/metric"), "http.status_400"),
        ("event", 409, errors("duplicate_event", "/data"), "absorbed"),
        // The identifiers belong to two guests: nothing was changed.
        ("profile", 409, errors("duplicate_profile", "/data/attributes"), "http.status_409"),
        ("event", 500, errors("error", "/data"), "again"),
    ] {
        let server = Server::start(move |_, _| answer(code, body.clone())).await;
        let mapped = if resource == "event" { paid(1) } else { json!({"external_id": "guest1"}) };
        let outcomes = deliver(&mut lane("klaviyo", block(&server, resource), true), vec![item(1, &mapped)]).await.expect("answers");
        assert_eq!(said(&outcomes), [expected], "{resource} {code}");
        assert!(!format!("{outcomes:?}").contains("Ada"), "their words may repeat what was sent");
    }
    let server = Server::start(|_, _| (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3")]).into_response()).await;
    let outcomes = deliver(&mut lane("klaviyo", block(&server, "event"), true), vec![item(1, &paid(1)), item(2, &paid(2))]).await;
    assert_eq!(said(&outcomes.expect("answers")), ["pause"]);
    let server = Server::start(|_, _| answer(401, errors("not_authenticated", "/data/"))).await;
    let error = deliver(&mut lane("klaviyo", block(&server, "event"), true), vec![item(1, &paid(1))]).await.expect_err("stops");
    assert_eq!((error.class, error.message.contains("hunter2")), (Class::Definite, false));
}

#[test]
fn blocks_are_checked() {
    let problems = validate("klaviyo", json!({"resource": "profiles", "reviison": "x"}), false).expect_err("broken");
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["reviison", "", "resource", "api_key"]);
    let target = validate("klaviyo", json!({"resource": "event", "api_key": "k"}), true).expect("valid");
    assert_eq!(target.plan().idempotency, Idempotency::Key);
}

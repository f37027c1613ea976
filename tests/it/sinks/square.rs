//! Square's inventory.

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tillstream_connectors::sink::Class;

use super::{Server, answer, deliver, item, lane, now, said, status};

pub(super) fn block(server: &Server) -> Value {
    json!({"url": server.url, "access_token": "hunter2"})
}

pub(super) fn sold(quantity: &str) -> Value {
    json!({"type": "ADJUSTMENT", "catalog_object_id": "BACON", "location_id": "NORTH", "from_state": "IN_STOCK", "to_state": "SOLD", "quantity": quantity})
}

pub(super) fn error(category: &str, code: &str) -> Value {
    json!({"errors": [{"category": category, "code": code, "detail": "Ada ate it", "field": "changes[0].adjustment.quantity"}]})
}

#[tokio::test]
async fn a_change_is_named_by_its_event_and_quantities_are_exact() {
    let server = Server::taking().await;
    let mut sink = lane("square-inventory", block(&server), true);
    let one = item(7, &sold("2.5000000"));
    assert_eq!(said(&deliver(&mut sink, vec![one.clone(), item(8, &sold("3"))]).await.expect("answers")), ["delivered", "delivered"]);
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (2, "/v2/inventory/changes/batch-create"));
    assert_eq!((seen[0].header("authorization"), seen[0].header("square-version")), ("Bearer hunter2", "2025-08-20"));
    let adjustment = json!({"catalog_object_id": "BACON", "quantity": "2.5", "from_state": "IN_STOCK", "to_state": "SOLD", "location_id": "NORTH",
        "occurred_at": one.event.committed_at(), "reference_id": "key7"});
    let expected =
        json!({"idempotency_key": "key7", "changes": [{"type": "ADJUSTMENT", "adjustment": adjustment}], "ignore_unchanged_counts": true});
    assert_eq!(seen[0].json(), expected);
}

#[tokio::test]
async fn what_square_would_refuse_is_refused_with_the_way_out() {
    let server = Server::taking().await;
    let with = |field: &str, value: Value| {
        let mut change = sold("1");
        change[field] = value;
        change
    };
    let ago = |hours: i64| jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_hours(hours)).expect("in range").to_string();
    let changes = [
        with("occurred_at", json!(ago(25))),
        with("occurred_at", json!(ago(-1))),
        with("occurred_at", json!("yesterday")),
        sold("-1"),
        sold("0.123456"),
        sold("1e3"),
        with("type", json!("SALE")),
        with("to_state", Value::Null),
        with("catalog_objectid", json!("x")),
        with("occurred_at", json!(ago(23))),
    ];
    let items = changes.iter().enumerate().map(|(n, change)| item(u32::try_from(n).expect("few"), change)).collect();
    let outcomes = deliver(&mut lane("square-inventory", block(&server), true), items).await.expect("answers");
    let field = "square.field";
    assert_eq!(said(&outcomes), ["square.too_old", "square.in_future", field, field, field, field, field, field, field, "delivered"]);
    assert!(format!("{:?}", outcomes[0]).contains("PHYSICAL_COUNT"), "the way out is named");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn errors_are_told_apart_by_category() {
    for (code, category, name, expected) in [
        (400, "INVALID_REQUEST_ERROR", "INVALID_VALUE", "http.status_400"),
        (400, "INVALID_REQUEST_ERROR", "IDEMPOTENCY_KEY_REUSED", "http.key_reused"),
        (409, "API_ERROR", "CONFLICT", "again"),
        (500, "API_ERROR", "INTERNAL_SERVER_ERROR", "again"),
        // The status says well, and the body does not.
        (200, "INVALID_REQUEST_ERROR", "NOT_FOUND", "http.status_400"),
        (200, "API_ERROR", "INTERNAL_SERVER_ERROR", "again"),
    ] {
        let server = Server::start(move |_, _| answer(code, error(category, name))).await;
        let outcomes = deliver(&mut lane("square-inventory", block(&server), true), vec![item(1, &sold("1"))]).await.expect("answers");
        assert_eq!(said(&outcomes), [expected], "{code} {name}");
        assert!(!format!("{outcomes:?}").contains("Ada"));
    }
    for (code, category, name, class) in [
        (401, "AUTHENTICATION_ERROR", "UNAUTHORIZED", Class::Definite),
        (200, "AUTHENTICATION_ERROR", "ACCESS_TOKEN_EXPIRED", Class::Definite),
        (429, "RATE_LIMIT_ERROR", "RATE_LIMITED", Class::Transient),
        (503, "API_ERROR", "SERVICE_UNAVAILABLE", Class::Transient),
        (504, "API_ERROR", "GATEWAY_TIMEOUT", Class::Transient),
    ] {
        let server = Server::start(move |_, _| answer(code, error(category, name))).await;
        let outcomes = deliver(&mut lane("square-inventory", block(&server), true), vec![item(1, &sold("1"))]).await;
        assert_eq!(outcomes.expect_err("of the whole call").class, class, "{code} {name}");
    }
    let limited = Server::start(|_, _| (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")]).into_response()).await;
    let outcomes = deliver(&mut lane("square-inventory", block(&limited), true), vec![item(1, &sold("1"))]).await.expect("answers");
    assert_eq!(said(&outcomes), ["pause"]);
}

#[tokio::test]
async fn a_list_whose_fate_is_unknown_comes_again_as_it_was() {
    // Fails as long as a sink that halves lists would need to come to it, and longer.
    let server = Server::start(|n, _| status(if n < 6 { 500 } else { 200 })).await;
    let mut lists = block(&server);
    lists["changes"] = json!(4);
    lists["i_accept_duplicates"] = json!(true);
    let mut sink = lane("square-inventory", lists, true);
    // One moment for all, since a list must not change between attempts.
    let moment = now();
    let change = |n: u32| {
        let mut change = sold("1");
        change["occurred_at"] = json!(moment);
        item(n, &change)
    };
    let items: Vec<_> = (0..10).map(change).collect();
    for _ in 0..6 {
        assert!(deliver(&mut sink, items.clone()).await.is_err());
    }
    // After one list that was taken the call ends, so that what comes next is cut from what is left.
    assert_eq!(said(&deliver(&mut sink, items.clone()).await.expect("answers")), ["delivered"; 4]);
    let seen = server.seen();
    assert_eq!(seen.len(), 7);
    assert!(seen.iter().all(|s| s.body == seen[0].body), "the same bytes under the same key");
    let key = seen[0].json()["idempotency_key"].as_str().expect("text").to_owned();
    assert!(key.len() == 52 && seen[0].json()["changes"].as_array().expect("a list").len() == 4);
}

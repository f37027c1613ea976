//! The kind `http`: who it says it is, what it sends, what it makes of answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;
use tillstream_connectors::sink::{Class, LaneId, OnDelete, Outcome};

use super::{Server, answer, deliver, item, lane, said, status, unmapped, validate};

#[tokio::test]
async fn expressions_fill_url_headers_and_body() {
    let server = Server::taking().await;
    let url = format!("{}/v1/{{{{ table }}}}/{{{{ after.note }}}}?v={{{{ op }}}}", server.url);
    let block = json!({"url": url, "method": "PUT", "headers": {"x-amount": "{{ after.amount }} USD", "x-fixed": "1"},
        "content_type": "application/xml", "body": "<paid id=\"{{ key.id }}\"/>", "idempotency_quoted": true});
    let mut sink = lane("http", block, false);
    assert_eq!(said(&deliver(&mut sink, vec![unmapped(7, "insert")]).await.expect("answers")), ["delivered"]);
    let seen = server.only();
    // A value is one segment, whatever it holds.
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("PUT", "/v1/payment/a%20b%2Fc%3Fd%3D%C3%A9?v=insert"));
    assert_eq!((seen.header("x-amount"), seen.header("x-fixed"), seen.header("content-type")), ("12.50 USD", "1", "application/xml"));
    assert_eq!(seen.header("idempotency-key"), "\"key7\"");
    assert_eq!(seen.body, "<paid id=\"7\"/>");
}

#[tokio::test]
async fn what_an_expression_cannot_say_is_a_dead_letter_and_the_next_event_goes_on() {
    let server = Server::taking().await;
    let mut sink = lane("http", json!({"url": format!("{}/{{{{ after.nothing }}}}", server.url)}), true);
    let outcomes = deliver(&mut sink, vec![item(1, &json!({}))]).await.expect("no call");
    assert_eq!(said(&outcomes), ["mapping.failed"]);
    let mut sink = lane("http", json!({"url": server.url, "headers": {"x-note": "{{ '\\n' if key.id == 1 else 'fine' }}"}}), true);
    let outcomes = deliver(&mut sink, vec![item(1, &json!({})), item(2, &json!({}))]).await.expect("answers");
    assert_eq!(said(&outcomes), ["http.template", "delivered"]);
}

#[tokio::test]
async fn a_form_is_what_the_map_made() {
    let server = Server::taking().await;
    let mut sink = lane("http", json!({"url": server.url, "format": "form"}), true);
    deliver(&mut sink, vec![item(1, &json!({"amount": 1250, "metadata": {"table": "T 4"}}))]).await.expect("answers");
    let seen = server.only();
    assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(seen.body, "amount=1250&metadata[table]=T%204");
}

#[test]
fn blocks_that_contradict_themselves_are_refused() {
    for (block, path) in [
        (json!({"url": "https://a.example/", "idempotency_header": "none"}), "idempotency_header"),
        (json!({"url": "https://a.example/", "mode": "batch", "format": "form"}), "format"),
        (json!({"url": "https://a.example/{{ key.id }}", "mode": "batch"}), "mode"),
        (json!({"url": "https://{{ after.host }}/"}), "url"),
        (json!({"url": "https://a.example/", "auth": {"bearer": "a", "basic": {"user": "a", "password": "b"}}}), "auth"),
        (json!({"url": "https://a.example/", "tls": {"certificate": "x"}}), "tls"),
        (json!({"url": "https://a.example/", "tls": {"ca": "x"}}), "tls.ca"),
        (json!({"url": "https://a.example/", "body": "x", "content_type": "text/plain"}), "body"),
        (json!({"url": "http://a.example/", "auth": {"bearer": "t"}}), "auth"),
    ] {
        let problems = validate("http", block.clone(), true).expect_err("contradicts");
        assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), [path], "{block}: {problems:?}");
    }
    let accepted = json!({"url": "https://a.example/", "idempotency_header": "none", "i_accept_duplicates": true});
    assert!(validate("http", accepted, true).is_ok());
}

/// A token server and an API that takes only tokens it calls good. Returns them with the block of a connector.
async fn oauth2(good: &'static str) -> (Server, Server, serde_json::Value) {
    let tokens =
        Server::start(|n, _| answer(200, json!({"access_token": format!("t{n}"), "token_type": "bearer", "expires_in": 3600}))).await;
    let api = Server::start(move |_, seen| status(if seen.header("authorization") == format!("Bearer {good}") { 200 } else { 401 })).await;
    let block = json!({"url": api.url, "auth": {"oauth2":
        {"token_url": format!("{}/token", tokens.url), "client_id": "till", "client_secret": "s&cret", "scope": "write"}}});
    (tokens, api, block)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_lane_fetches_the_token_for_all_of_them() {
    let (tokens, api, mut block) = oauth2("t0").await;
    block["allow_private"] = json!(true);
    let target = validate("http", block, true).expect("valid");
    let lanes = (0..8).map(|n| {
        let mut sink = target.build(LaneId { connector: "test".into(), partition: 0, lane: n }, OnDelete::Ignore);
        tokio::spawn(async move { deliver(&mut sink, vec![item(u32::from(n), &json!({}))]).await })
    });
    for lane in lanes.collect::<Vec<_>>() {
        assert_eq!(said(&lane.await.expect("ends").expect("answers")), ["delivered"]);
    }
    assert_eq!(api.seen().len(), 8);
    let asked = tokens.only();
    assert_eq!((asked.path.as_str(), asked.header("content-type")), ("/token", "application/x-www-form-urlencoded"));
    assert_eq!(asked.body, "grant_type=client_credentials&scope=write");
    // RFC 6749: both parts form-encoded, then joined.
    assert_eq!(asked.header("authorization"), "Basic dGlsbDpzJTI2Y3JldA==");
}

#[tokio::test]
async fn a_refused_token_is_fetched_anew_once() {
    let (tokens, api, block) = oauth2("t1").await;
    let mut sink = lane("http", block, true);
    assert_eq!(
        said(&deliver(&mut sink, vec![item(1, &json!({})), item(2, &json!({}))]).await.expect("answers")),
        ["delivered", "delivered"]
    );
    assert_eq!((tokens.seen().len(), api.seen().len()), (2, 3));

    let (tokens, api, block) = oauth2("never").await;
    let error = deliver(&mut lane("http", block, true), vec![item(1, &json!({}))]).await.expect_err("refused");
    assert_eq!((error.code.as_str(), error.class), ("http.status_401", Class::Definite));
    assert_eq!((tokens.seen().len(), api.seen().len()), (2, 2));
}

#[tokio::test]
async fn wrong_client_credentials_stop_the_connector_and_a_token_server_that_is_away_does_not() {
    for (code, class) in [(400, Class::Definite), (401, Class::Definite), (503, Class::Transient), (500, Class::Transient)] {
        let tokens = Server::start(move |_, _| answer(code, json!({"error": "invalid_client"}))).await;
        let block = json!({"url": "https://api.example/", "auth": {"oauth2":
            {"token_url": tokens.url, "client_id": "till", "client_secret": "hunter2", "credentials": "body"}}});
        let error = deliver(&mut lane("http", block, true), vec![item(1, &json!({}))]).await.expect_err("no token");
        assert_eq!((error.code.as_str(), error.class), ("http.oauth2", class), "{code}");
        assert!(!error.message.contains("hunter2"));
        assert_eq!(tokens.only().body, "grant_type=client_credentials&client_id=till&client_secret=hunter2");
    }
}

#[tokio::test]
async fn bodies_are_signed() {
    let server = Server::taking().await;
    let block = json!({"url": server.url, "auth": {"hmac": {"secret": "Jefe", "header": "X-Till-Signature", "prefix": "sha256="}}});
    let mut plain = item(1, &json!({}));
    // RFC 4231, test case 2.
    plain.mapped = Some(Ok("what do ya want for nothing?".into()));
    deliver(&mut lane("http", block, true), vec![plain]).await.expect("answers");
    let signed = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    assert_eq!(server.only().header("x-till-signature"), signed);
}

#[tokio::test]
async fn a_pause_is_told_in_seconds_or_as_a_date_and_ends_the_call() {
    let date = httpdate(SystemTime::now() + Duration::from_secs(90));
    for (header, least, most) in [("7".to_owned(), 7, 7), (date, 80, 90)] {
        let server = Server::start(move |n, _| match n {
            1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", header.clone())]).into_response(),
            _ => status(200),
        })
        .await;
        let items = (0..5).map(|n| item(n, &json!({}))).collect();
        let outcomes = deliver(&mut lane("http", json!({"url": server.url}), true), items).await.expect("answers");
        assert_eq!(said(&outcomes), ["delivered", "pause"]);
        let Outcome::Retry(retry) = &outcomes[1] else { panic!("a pause") };
        let after = retry.after.expect("told").as_secs();
        assert!((least..=most).contains(&after), "{after}");
    }
}

fn httpdate(moment: SystemTime) -> String {
    let zoned = jiff::Timestamp::try_from(moment).expect("in range").to_zoned(jiff::tz::TimeZone::UTC);
    zoned.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[tokio::test]
async fn a_list_with_one_poisoned_item_costs_that_item_alone() {
    for code in [400, 413, 422] {
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = lists.clone();
        let server = Server::start(move |_, seen| {
            counted.fetch_add(1, Ordering::Relaxed);
            let poisoned = seen.json()["items"].as_array().expect("a list").iter().any(|i| i["n"] == 11);
            status(if poisoned { code } else { 200 })
        })
        .await;
        let items = (0..32).map(|n| item(n, &json!({"n": n}))).collect();
        let outcomes = deliver(&mut lane("http", json!({"url": server.url, "mode": "batch"}), true), items).await.expect("answers");
        let refused = format!("http.status_{code}");
        for (n, said) in said(&outcomes).into_iter().enumerate() {
            assert_eq!(said, if n == 11 { refused.as_str() } else { "delivered" }, "{code}: {n}");
        }
        assert!(lists.load(Ordering::Relaxed) <= 11, "halves, and not one by one");
    }
}

#[tokio::test]
async fn a_key_with_another_body_is_named_and_its_list_never_cut() {
    let server = Server::start(|_, _| answer(422, json!({"error": {"code": "idempotency_key_reused"}}))).await;
    let mut sink = lane("http", json!({"url": server.url, "mode": "batch"}), true);
    let outcomes = deliver(&mut sink, vec![item(1, &json!({})), item(2, &json!({}))]).await.expect("answers");
    assert_eq!(said(&outcomes), ["http.key_reused", "http.key_reused"]);
    assert_eq!(server.seen().len(), 1);
}

//! Where requests may go.

use serde_json::json;
use tillstream_connectors::sink::{Class, LaneId, OnDelete};

use super::{Server, deliver, item, lane, said, status, validate};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_webhook_to_a_private_address_is_refused() {
    let server = Server::taking().await;
    // Written as an address: refused when the file is read.
    for url in [&server.url, "http://10.0.0.7/hooks", "http://[::1]/hooks", "http://169.254.169.254/latest/meta-data", "http://0x7f000001/"]
    {
        let problems = validate("webhook", json!({"url": url, "secrets": SECRET}), true).expect_err("private");
        let said: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.message.as_str())).collect();
        assert_eq!(said, [("url", "`url` names an address that is not public")], "{url}");
    }
    // Written as a name that comes to mean one: refused when it is resolved, and nothing is sent.
    let block = json!({"url": format!("http://localhost:{}/hooks", server.port), "secrets": SECRET});
    let lane_id = || LaneId { connector: "test".into(), partition: 0, lane: 0 };
    let mut refused = validate("webhook", block.clone(), true).expect("a name").build(lane_id(), OnDelete::Ignore);
    for error in [refused.check().await.expect_err("private"), deliver(&mut refused, vec![item(1, &json!({}))]).await.expect_err("private")]
    {
        assert_eq!((error.code.as_str(), error.class), ("http.address_refused", Class::Definite));
    }
    assert_eq!(server.seen().len(), 0);
    // The network of another one opens nothing, its own does.
    for (networks, opens) in [(json!(["10.0.0.0/8"]), false), (json!(["127.0.0.0/8", "::1"]), true), (json!(true), true)] {
        let mut block = block.clone();
        block["allow_private"] = networks;
        let mut sink = validate("webhook", block, true).expect("valid").build(lane_id(), OnDelete::Ignore);
        assert_eq!(deliver(&mut sink, vec![item(1, &json!({}))]).await.is_ok(), opens);
    }
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn every_kind_keeps_to_it() {
    for (kind, block) in [
        ("http", json!({"url": "http://127.0.0.1/"})),
        ("http", json!({"url": "http://192.168.0.1/{{ key.id }}"})),
        (
            "http",
            json!({"url": "https://api.example/", "auth": {"oauth2": {"token_url": "https://10.0.0.1/", "client_id": "a", "client_secret": "b"}}}),
        ),
        ("klaviyo", json!({"url": "https://127.0.0.1/", "api_key": "k", "resource": "event"})),
        ("segment", json!({"url": "https://172.16.0.1/", "write_key": "k"})),
        ("square-inventory", json!({"url": "https://[fd00::1]/", "access_token": "k"})),
    ] {
        let problems = validate(kind, block.clone(), true).expect_err("private");
        assert!(problems.len() == 1 && problems[0].message.ends_with("names an address that is not public"), "{kind}: {problems:?}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let hidden = Server::taking().await;
    let to = hidden.url.clone();
    let server = Server::start(move |_, _| axum::response::IntoResponse::into_response(axum::response::Redirect::temporary(&to))).await;
    let mut sink = lane("http", json!({"url": server.url}), true);
    let error = deliver(&mut sink, vec![item(1, &json!({}))]).await.expect_err("no answer of the target");
    assert_eq!((error.code.as_str(), error.class), ("http.status_307", Class::Definite));
    assert_eq!(hidden.seen().len(), 0);
}

#[tokio::test]
async fn answers_have_a_size_and_a_time() {
    let server =
        Server::start(|n, _| if n == 0 { axum::response::IntoResponse::into_response("x".repeat(9 << 20)) } else { status(200) }).await;
    let mut sink = lane("http", json!({"url": server.url}), true);
    let error = deliver(&mut sink, vec![item(1, &json!({}))]).await.expect_err("too long");
    assert_eq!(error.code, "http.answer_too_long");
    assert_eq!(said(&deliver(&mut sink, vec![item(1, &json!({}))]).await.expect("answers")), ["delivered"]);

    // Takes connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/", silent.local_addr().expect("bound"));
    let mut sink = lane("http", json!({"url": url, "timeout": "200ms"}), true);
    let error = deliver(&mut sink, vec![item(1, &json!({}))]).await.expect_err("no answer");
    assert_eq!((error.code.as_str(), error.class), ("http.timeout", Class::Transient));
    drop(silent);
}

//! Each pretend target, spoken to as its sink would.

use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::*;

async fn sandbox() -> (Sandbox, Client) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
    (sandbox, Client::builder().no_proxy().retry(reqwest::retry::never()).build().expect("a client"))
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.bytes().await.expect("a body");
    (status, serde_json::from_slice(&text).unwrap_or(Value::Null))
}

async fn post(client: &Client, url: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    let mut request = client.post(url).json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    read(request.send().await.expect("answers")).await
}

#[tokio::test]
async fn a_key_has_one_effect_and_one_body() {
    let (sandbox, client) = sandbox().await;
    let url = sandbox.url("/http/events");
    let (one, other) = (json!({"n": 1}), json!({"n": 2}));
    let status = async |headers: &[(&str, &str)], body: &Value| post(&client, &url, headers, body).await.0;
    assert_eq!(status(&[], &one).await, 400);
    assert_eq!(status(&[("idempotency-key", "\"k\"")], &one).await, 202);
    assert_eq!(status(&[("idempotency-key", "k")], &one).await, 200);
    assert_eq!(status(&[("idempotency-key", "k")], &other).await, 422);
    assert_eq!(sandbox.effects().len(), 1);
    sandbox.forget_keys();
    assert_eq!(status(&[("idempotency-key", "k")], &one).await, 202, "a key is forgotten after the window");
    assert_eq!(sandbox.counts(), Counts { requests: 5, applied: 2, repeated: 1, conflicts: 1, ..Counts::default() });
}

#[tokio::test]
async fn items_of_a_list_are_answered_each() {
    let (sandbox, client) = sandbox().await;
    let url = sandbox.url("/http/events");
    sandbox.set_faults(Faults { refuse: vec!["poison".into()], next: [Act::Partial].into(), ..Faults::default() });
    let items = json!({"items": [{"id": "a"}, {"id": "b"}, {"id": "c", "x": "poison"}, {"id": "d"}]});
    let statuses = |body: &Value| {
        let results = body["results"].as_array().expect("results");
        results.iter().map(|r| r["status"].as_u64().expect("a status")).collect::<Vec<_>>()
    };
    assert_eq!(statuses(&post(&client, &url, &[], &items).await.1), [202, 503, 422, 503]);
    assert_eq!(statuses(&post(&client, &url, &[], &items).await.1), [409, 202, 422, 202]);
    let other = json!({"items": [{"id": "a", "x": 1}, {"id": "e"}, {"id": "e"}]});
    assert_eq!(statuses(&post(&client, &url, &[], &other).await.1), [422, 202, 409]);
    assert_eq!(sandbox.counts().applied, 4);
}

#[tokio::test]
async fn rows_keep_their_highest_version() {
    let (sandbox, client) = sandbox().await;
    let url = sandbox.url("/http/state");
    let items = json!({"items": [{"row": 1, "version": "2"}, {"row": 1, "version": "3"}, {"row": 2, "version": "5"}]});
    assert_eq!(post(&client, &url, &[], &items).await.0, 207);
    post(&client, &url, &[], &json!({"row": 1, "version": "1"})).await;
    post(&client, &url, &[], &items).await;
    let versions: Vec<_> = sandbox.effects().iter().map(|e| e.body["version"].clone()).collect();
    assert_eq!(versions, ["2", "3", "5"]);
}

#[tokio::test]
async fn an_answer_is_lost_late_or_asks_for_a_pause() {
    let (sandbox, client) = sandbox().await;
    let url = sandbox.url("/http/events");
    let send = |key: &'static str| client.post(&url).header("idempotency-key", key).json(&json!({"k": key})).send();
    sandbox.next([Act::LostAnswer, Act::Cut]);
    assert!(send("lost").await.is_err() && send("cut").await.is_err());
    assert_eq!(sandbox.effects().len(), 1);
    assert_eq!(send("lost").await.expect("answers").status(), 200);

    sandbox.next(["status_429 1500ms", "status_429_date"].map(|act| act.parse().expect("an act")));
    let after = |r: &Response| r.headers()["retry-after"].to_str().expect("text").to_owned();
    assert_eq!(after(&send("a").await.expect("answers")), "2");
    let date = after(&send("a").await.expect("answers"));
    assert!(httpdate::parse_http_date(&date).expect("a date") > std::time::SystemTime::now());
    assert_eq!(sandbox.counts().within_pause, 1);

    // The key is taken while its request is worked on, also when nobody waits for it any more.
    sandbox.next([Act::Slow(Duration::from_millis(300))]);
    let waiting = tokio::time::timeout(Duration::from_millis(100), send("slow")).await;
    assert!(waiting.is_err());
    assert_eq!(send("slow").await.expect("answers").status(), 409);
    let mut status = 409;
    while status == 409 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        status = send("slow").await.expect("answers").status().as_u16();
    }
    assert_eq!((status, sandbox.effects().len()), (200, 2));
}

#[tokio::test]
async fn webhooks_are_verified() {
    use base64::Engine as _;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let (sandbox, client) = sandbox().await;
    let body = r#"{"type":"order.paid"}"#;
    let key = base64::engine::general_purpose::STANDARD.decode(&WEBHOOK_SECRET[6..]).expect("base64");
    let send = async |id: &str, at: u64, body: &str, tamper: &str| {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).expect("any length");
        mac.update(format!("{id}.{at}.{body}").as_bytes());
        let signature = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        let headers = [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,AA== v1,{signature}")),
        ];
        let mut request = client.post(sandbox.url("/webhook")).body(format!("{body}{tamper}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().await.expect("answers").status().as_u16()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(send("m1", now, body, "").await, 204);
    assert_eq!(send("m1", now + 1, body, "").await, 204);
    assert_eq!(send("m1", now, "{}", "").await, 422);
    assert_eq!(send("m2", now - 1000, body, "").await, 401);
    assert_eq!(send("m2", now, body, " ").await, 401);
    assert_eq!(sandbox.effects().len(), 1);
}

#[tokio::test]
async fn vendors_know_repeats_each_in_its_way() {
    let (sandbox, client) = sandbox().await;
    let klaviyo = [("authorization", "Klaviyo-API-Key k"), ("revision", "2026-07-15")];
    let event = |unique: &str, value: u32| {
        let profile = json!({"data": {"type": "profile", "attributes": {"external_id": "g7"}}});
        let metric = json!({"data": {"type": "metric", "attributes": {"name": "Paid"}}});
        json!({"type": "event", "attributes": {"profile": profile, "metric": metric, "unique_id": unique, "value": value}})
    };
    let url = sandbox.url("/klaviyo/api/events");
    assert_eq!(post(&client, &url, &[], &json!({"data": event("u1", 1)})).await.0, 401);
    assert_eq!(post(&client, &url, &klaviyo, &json!({"data": event("u1", 1)})).await.0, 202);
    assert_eq!(post(&client, &url, &klaviyo, &json!({"data": event("u1", 2)})).await.0, 202);
    let bulk = |events: Vec<Value>| {
        let profile = json!({"data": {"type": "profile", "attributes": {"external_id": "g7"}}});
        let data = json!([{"type": "event-bulk-create", "attributes": {"profile": profile, "events": {"data": events}}}]);
        json!({"data": {"type": "event-bulk-create-job", "attributes": {"events-bulk-create": {"data": data}}}})
    };
    let url = sandbox.url("/klaviyo/api/event-bulk-create-jobs");
    assert_eq!(post(&client, &url, &klaviyo, &bulk(vec![event("u1", 1), event("u2", 1)])).await.0, 400);
    assert_eq!(sandbox.effects().len(), 1, "nothing of the job is processed");
    assert_eq!(post(&client, &url, &klaviyo, &bulk(vec![event("u3", 1), event("u2", 1)])).await.0, 202);
    let profile = json!({"data": {"type": "profile", "attributes": {"external_id": "g7", "first_name": "A"}}});
    let url = sandbox.url("/klaviyo/api/profile-import");
    assert_eq!(post(&client, &url, &klaviyo, &profile).await.0, 201);
    assert_eq!(post(&client, &url, &klaviyo, &profile).await.0, 200);

    let url = sandbox.url("/segment/v1/batch");
    let item = |id: &str, user: &str| json!({"type": "track", "event": "paid", "userId": user, "messageId": id});
    let batch = json!({"writeKey": "w", "batch": [item("1", "g"), item("1", "g"), item("2", "")]});
    let before = sandbox.counts().applied;
    assert_eq!(post(&client, &url, &[], &batch).await, (200, json!({"success": true})));
    assert_eq!(sandbox.counts().applied - before, 1, "one is a repeat, one is no event, and nobody is told");

    let url = sandbox.url("/square/v2/inventory/changes/batch-create");
    let headers = [("authorization", "Bearer t")];
    let now = jiff::Timestamp::now();
    let sold = |key: &str, quantity: &str, at: jiff::Timestamp| {
        json!({"idempotency_key": key, "changes": [{"type": "ADJUSTMENT", "adjustment": {"catalog_object_id": "i", "location_id": "l",
            "from_state": "IN_STOCK", "to_state": "SOLD", "quantity": quantity, "occurred_at": at.to_string()}}]})
    };
    let (status, body) = post(&client, &url, &headers, &sold("k", "1.5", now)).await;
    assert_eq!((status, body["counts"][0]["quantity"].as_str()), (200, Some("-1.5")));
    let (status, body) = post(&client, &url, &headers, &sold("k", "1.5", now)).await;
    assert_eq!((status, body["counts"].as_array().map(Vec::len)), (200, Some(0)));
    let (status, body) = post(&client, &url, &headers, &sold("k", "2", now)).await;
    assert_eq!((status, body["errors"][0]["code"].as_str()), (400, Some("IDEMPOTENCY_KEY_REUSED")));
    let old = now - Duration::from_secs(25 * 3600);
    assert_eq!(post(&client, &url, &headers, &sold("k2", "2", old)).await.1["errors"][0]["code"], "INVALID_TIME");
}

#[tokio::test]
async fn faults_are_set_and_looked_at_while_it_runs() {
    let (sandbox, client) = sandbox().await;
    let put = async |body: &str| {
        client.put(sandbox.url("/sandbox/faults")).body(body.to_owned()).send().await.expect("answers").status().as_u16()
    };
    assert_eq!(put(r#"{"next": ["status_500"], "rates": {"status_503": 1}}"#).await, 204);
    assert_eq!(put(r#"{"rates": {"status_503": 2}}"#).await, 400);
    assert_eq!(put(r#"{"nxt": []}"#).await, 400);
    let url = sandbox.url("/http/events");
    let headers = [("idempotency-key", "k"), ("authorization", "Bearer hunter2")];
    assert_eq!(post(&client, &url, &headers, &json!({})).await.0, 500);
    assert_eq!(post(&client, &url, &headers, &json!({})).await.0, 503);
    let page = async |path: &str| read(client.get(sandbox.url(path)).send().await.expect("answers")).await.1;
    let requests = page("/sandbox/requests?limit=1").await;
    assert_eq!((requests["requests"][0]["act"].as_str(), requests["requests"][0]["status"].as_u64()), (Some("status_503"), Some(503)));
    assert!(!page("/sandbox/requests").await.to_string().contains("hunter2"), "credentials are not kept");
    assert_eq!(page("/sandbox/counts").await["faults"], 2);
    assert_eq!(page("/sandbox/faults").await["rates"]["status_503"], 1.0);
    client.post(sandbox.url("/sandbox/reset")).send().await.expect("answers");
    assert_eq!(sandbox.counts(), Counts::default());
}

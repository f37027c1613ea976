//! The `http` sink against a server in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tillstream::control;
use tillstream_connectors::registry::{Registry, Target};

use super::pos::{Capture, catch_up, connector, delete, insert, journal, start, until};

/// What the server does with the n-th request.
type Script = dyn Fn(usize, &[Value]) -> Response + Send + Sync;

struct Seen {
    /// Bodies by idempotency key: a repeat must bring the same bytes.
    bodies: HashMap<String, Bytes>,
    /// Items that were applied, by their id.
    applied: HashMap<String, u32>,
    requests: usize,
    mismatches: usize,
}

pub(super) struct Api {
    seen: Mutex<Seen>,
    script: Box<Script>,
}

impl Api {
    /// Starts a server and returns it with its URL.
    pub(super) async fn start(script: impl Fn(usize, &[Value]) -> Response + Send + Sync + 'static) -> (Arc<Api>, String) {
        let seen = Seen { bodies: HashMap::new(), applied: HashMap::new(), requests: 0, mismatches: 0 };
        let api = Arc::new(Api { seen: Mutex::new(seen), script: Box::new(script) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/v1/events", listener.local_addr().expect("bound"));
        let router = Router::new().route("/v1/events", axum::routing::post(receive)).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (api, url)
    }

    fn applied(&self) -> HashMap<String, u32> {
        self.seen.lock().expect("sound").applied.clone()
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.lock().expect("sound").requests
    }

    /// What was applied, as it came.
    pub(super) fn items(&self) -> Vec<Value> {
        let seen = self.seen.lock().expect("sound");
        let bodies = seen.bodies.values().map(|body| serde_json::from_slice::<Value>(body).expect("JSON"));
        bodies.flat_map(|body| body.get("items").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![body])).collect()
    }

    pub(super) fn assert_once(&self, count: usize) {
        let seen = self.seen.lock().expect("sound");
        assert_eq!(seen.applied.len(), count);
        assert!(seen.applied.values().all(|n| *n == 1), "every item has one effect");
        assert_eq!(seen.mismatches, 0, "a repeat brings the same bytes");
    }
}

async fn receive(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response {
    let key = headers.get("idempotency-key").and_then(|k| k.to_str().ok()).unwrap_or_default().to_owned();
    let value: Value = serde_json::from_slice(&body).expect("JSON");
    let items = match value.get("items") {
        Some(items) => items.as_array().expect("a list").clone(),
        None => vec![value],
    };
    let number = {
        let mut seen = api.seen.lock().expect("sound");
        seen.requests += 1;
        if seen.bodies.insert(key, body.clone()).is_some_and(|before| before != body) {
            seen.mismatches += 1;
        }
        seen.requests - 1
    };
    let response = (api.script)(number, &items);
    // `x-applied` says which items took effect although the answer may say otherwise.
    let all = response.status().is_success() && response.headers().get("x-applied").is_none();
    let listed = response.headers().get("x-applied").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut seen = api.seen.lock().expect("sound");
    for item in &items {
        let id = item["id"].as_str().expect("an id").to_owned();
        if all || listed == "all" || listed.split(',').any(|l| l == id) {
            // An item the target knows already has no second effect.
            seen.applied.entry(id).or_insert(1);
        }
    }
    drop(seen);
    response
}

fn target(url: &str, more: Value) -> Arc<dyn Target> {
    let mut block = json!({"url": url, "allow_private": true, "timeout": "2s", "columns": {"public.a": ["id", "qty"], "public.b": ["id"]}});
    block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
    Registry::built_in().get("http").expect("built in").validate(&block, false).expect("valid")
}

/// A target for a connector that has a `map`.
pub(super) fn mapped_target(url: &str, more: Value) -> Arc<dyn Target> {
    let mut block = json!({"url": url, "allow_private": true, "timeout": "2s"});
    block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
    Registry::built_in().get("http").expect("built in").validate(&block, true).expect("valid")
}

fn status(code: u16) -> Response {
    StatusCode::from_u16(code).expect("a status").into_response()
}

async fn rows(count: u64) -> (tempfile::TempDir, Arc<dyn tillstream::journal::Journal>) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for id in 0..count {
        capture.write(0, &[insert("a", id, id * 2)]).await;
    }
    capture.flush().await;
    (dir, journal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_a_request_survives_every_class_of_answer() {
    let (_dir, journal) = rows(40).await;
    let (api, url) = Api::start(|n, _| match n % 10 {
        1 => status(500),
        // Applied, and the answer says otherwise.
        3 => (StatusCode::INTERNAL_SERVER_ERROR, [("x-applied", "all")]).into_response(),
        5 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        6 => status(503),
        7 => (StatusCode::CONFLICT, [("x-applied", "all")], axum::Json(json!({"code": "duplicate"}))).into_response(),
        8 => status(409),
        _ => axum::Json(json!({"ok": true})).into_response(),
    })
    .await;
    let stats = catch_up(&journal, vec![connector("loyalty", target(&url, json!({})))]).await.expect("catches up");
    api.assert_once(40);
    let stats = stats.connector("loyalty").expect("there");
    let count = |c: &std::sync::atomic::AtomicU64| c.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(count(&stats.delivered) + count(&stats.absorbed), 40);
    assert!(count(&stats.pauses) > 0 && count(&stats.retries) > 0 && count(&stats.calls_failed) > 0 && count(&stats.absorbed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_says_what_happened_and_nothing_that_was_not_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    capture.commit(0, &[insert("a", 7, 3), insert("b", 8, 9)]).await;
    capture.commit(0, &[delete("a", 7)]).await;
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let (_api, url) = Api::start(move |_, items| {
        seen.lock().expect("sound").extend(items.to_vec());
        status(204)
    })
    .await;
    let mut connector = connector("loyalty", target(&url, json!({})));
    connector.delivery.lanes = std::num::NonZeroU16::MIN;
    catch_up(&journal, vec![connector]).await.expect("catches up");
    let mut bodies = bodies.lock().expect("sound").clone();
    let ids: Vec<String> =
        bodies.iter_mut().map(|b| b.as_object_mut().expect("an object").remove("id").expect("an id").to_string()).collect();
    assert!(ids.iter().all(|id| id.len() == 54) && ids[0] != ids[1]);
    let expected = json!([
        {"event_id": "e1-0/1100-0", "op": "insert", "schema": "public", "table": "a", "key": {"id": 7}, "data": {"id": 7, "qty": 3},
         "version": "0000000100000000000011000000000000", "committed_at": "2026-11-22T10:00:00.000000Z"},
        {"event_id": "e1-0/1100-1", "op": "insert", "schema": "public", "table": "b", "key": {"id": 8}, "data": {"id": 8},
         "version": "0000000100000000000011000000000010", "committed_at": "2026-11-22T10:00:00.000000Z"},
        {"event_id": "e1-0/1200-0", "op": "delete", "schema": "public", "table": "a", "key": {"id": 7}, "data": null,
         "version": "0000000100000000000012000000000000", "committed_at": "2026-11-22T10:00:00.000000Z"},
    ]);
    let shown: Vec<Value> = bodies
        .iter()
        .map(|b| {
            let mut b = b.clone();
            let version = b["version"].as_str().expect("text").to_owned();
            assert_eq!(version.len(), 33);
            b["version"] = version.into();
            b
        })
        .collect();
    for (shown, expected) in shown.iter().zip(expected.as_array().expect("a list")) {
        for (name, value) in expected.as_object().expect("an object").iter().filter(|(n, _)| *n != "version") {
            assert_eq!(&shown[name], value, "{name}");
        }
        assert_eq!(shown.as_object().map(serde_json::Map::len), expected.as_object().map(serde_json::Map::len));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_halved_until_what_is_refused_stands_alone() {
    let (_dir, journal) = rows(60).await;
    let (api, url) = Api::start(|_, items| {
        if items.iter().any(|i| i["key"]["id"] == 17) { (StatusCode::UNPROCESSABLE_ENTITY, "no").into_response() } else { status(202) }
    })
    .await;
    catch_up(&journal, vec![connector("loyalty", target(&url, json!({"mode": "batch"})))]).await.expect("catches up");
    api.assert_once(59);
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let letters: Vec<_> = state.dead_letters().map(|l| (l.letter.code.clone(), l.letter.message.clone())).collect();
    assert_eq!(letters, [("http.status_422".to_owned(), "status 422".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_a_list_are_read_item_by_item() {
    let (_dir, journal) = rows(30).await;
    let (api, url) = Api::start(|n, items| {
        let status = |i: &Value| match i["key"]["id"].as_u64().expect("a number") {
            3 => 422,
            5 if n < 4 => 503,
            7 => 409,
            _ => 200,
        };
        let results: Vec<Value> = items
            .iter()
            .filter(|i| i["key"]["id"] != 9 || n > 3)
            .map(|i| json!({"id": i["id"], "status": status(i), "code": if status(i) == 409 { "already_there" } else { "x" }}))
            .collect();
        let applied: Vec<_> =
            results.iter().filter(|r| r["status"] == 200 || r["status"] == 409).map(|r| r["id"].as_str().expect("text")).collect();
        let applied = applied.join(",");
        (StatusCode::MULTI_STATUS, [("x-applied", applied)], axum::Json(json!({"results": results}))).into_response()
    })
    .await;
    let stats = catch_up(&journal, vec![connector("loyalty", target(&url, json!({"mode": "batch"})))]).await.expect("catches up");
    api.assert_once(29);
    let stats = stats.connector("loyalty").expect("there");
    assert_eq!(stats.absorbed.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(stats.rejected.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_the_whole_target() {
    let (_dir, journal) = rows(60).await;
    let paused = Arc::new(Mutex::new(None::<Instant>));
    let early = Arc::new(Mutex::new(0));
    let (seen, counted) = (paused.clone(), early.clone());
    let (api, url) = Api::start(move |n, _| {
        let mut paused = seen.lock().expect("sound");
        match *paused {
            None if n == 2 => {
                *paused = Some(Instant::now());
                (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response()
            }
            Some(since) if since.elapsed() < Duration::from_millis(950) => {
                *counted.lock().expect("sound") += 1;
                status(200)
            }
            _ => status(200),
        }
    })
    .await;
    let begun = Instant::now();
    catch_up(&journal, vec![connector("loyalty", target(&url, json!({})))]).await.expect("catches up");
    api.assert_once(60);
    assert!(begun.elapsed() >= Duration::from_millis(950));
    // The other lane goes on until the answer has reached the first one.
    let early = *early.lock().expect("sound");
    assert!(early <= 10, "{early} requests within the pause");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_stop_the_connector_and_cost_no_event() {
    let (_dir, journal) = rows(5).await;
    let (api, url) = Api::start(|_, _| status(401)).await;
    let error =
        catch_up(&journal, vec![connector("loyalty", target(&url, json!({"auth": {"bearer": "hunter2"}})))]).await.expect_err("stops");
    assert_eq!(error.code(), "http.status_401");
    assert!(!format!("{error:?}").contains("hunter2"));
    assert!(api.applied().is_empty());
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_away_fills_no_dead_letters() {
    let (_dir, journal) = rows(20).await;
    // A port that nobody listens on: taken, then given back.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let mut away = connector("loyalty", target(&format!("http://{address}/v1/events"), json!({})));
    away.retry.give_up_after = Some(Duration::from_millis(10));
    let running = start(&journal, vec![away], tillstream::delivery::Mode::UntilCaughtUp);
    let stats = running.stats.connector("loyalty").expect("there").clone();
    until("an error is shown", || stats.last_error().is_some_and(|e| e.code == "http.connect")).await;
    let (api, _) = Api::start(|_, _| status(200)).await;
    let listener = tokio::net::TcpListener::bind(address).await.expect("binds again");
    let router = Router::new().route("/v1/events", axum::routing::post(receive)).with_state(api.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    running.ended().await.expect("catches up");
    api.assert_once(20);
    assert!(api.requests() >= 20);
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 0);
}

//! A pretend customer-engagement API.
//!
//! It honours idempotency keys and compares bodies, answers 429 (with `Retry-After` in seconds and as a date) and 500 now and
//! then (also *after* it applied a request, so that the answer is lost), and refuses one planted customer for good until it is
//! told to accept. Everything it did is a line of a log file, so a kill -9 forgets nothing:
//!
//! ```text
//! applied <key> <hash of the body> <ids of the facts, comma-separated>
//! repeat | conflict | refused | status_429 | status_500 | accepting
//! ```

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::DemoError;
use super::traffic::REFUSED_MARK;

/// How the pretend API behaves.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where to listen; port 0 takes a free one. The address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The log of everything applied; read again at start.
    #[arg(long)]
    pub log: PathBuf,
    /// Never answer 429 or 500.
    #[arg(long)]
    pub calm: bool,
}

/// Which API is told.
#[derive(Debug, Clone, clap::Args)]
pub struct AcceptArguments {
    /// The pretend API, as http://127.0.0.1:8080.
    #[arg(long)]
    pub target: String,
}

/// Tells a running pretend API to accept the planted guest from now on.
///
/// # Errors
/// When it does not answer.
pub async fn send_accept(arguments: AcceptArguments) -> Result<(), DemoError> {
    let url = format!("{}/accept", arguments.target.trim_end_matches('/'));
    let client = reqwest::Client::builder().no_proxy().build().map_err(|error| DemoError::internal("build the HTTP client", error))?;
    let answer = client.post(url).send().await.and_then(reqwest::Response::error_for_status);
    answer.map(drop).map_err(|error| DemoError::unavailable("tell the engagement API", error))
}

/// At least so long between two 429: each of them stops a well-behaved client for a second or more.
const BETWEEN_429: Duration = Duration::from_secs(4);
/// One request in so many is answered 500; of these every second one after it was applied.
const ONE_IN_500: u32 = 80;

struct Target {
    log: std::fs::File,
    /// Key to the hash of its body.
    keys: HashMap<String, String>,
    counts: HashMap<String, u64>,
    accepting: bool,
    calm: bool,
    last_429: Instant,
}

type Shared = Arc<Mutex<Target>>;

/// Serves until the process is told to stop.
///
/// # Errors
/// When the log cannot be read or the address is taken.
pub async fn run(arguments: Arguments) -> Result<(), DemoError> {
    let target = Target::open(&arguments).map_err(|error| DemoError::unavailable("open the target's log", error))?;
    let listener = tokio::net::TcpListener::bind(arguments.listen).await.map_err(|error| DemoError::unavailable("listen", error))?;
    let address = listener.local_addr().map_err(|error| DemoError::internal("listen", error))?;
    println!("{}", json!({ "listening": address.to_string() }));
    let router = Router::new()
        .route("/v1/events", post(events))
        .route("/stats", get(stats))
        .route("/accept", post(accept))
        .with_state(Arc::new(Mutex::new(target)));
    axum::serve(listener, router).with_graceful_shutdown(super::terminated()).await.map_err(|error| DemoError::internal("serve", error))
}

impl Target {
    fn open(arguments: &Arguments) -> std::io::Result<Target> {
        let text = match std::fs::read_to_string(&arguments.log) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&arguments.log)?;
        // A kill may have cut the last line: it was never answered.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        log.set_len(whole as u64)?;
        let mut target =
            Target { log, keys: HashMap::new(), counts: HashMap::new(), accepting: false, calm: arguments.calm, last_429: Instant::now() };
        for line in text[..whole].lines() {
            target.apply(line);
        }
        Ok(target)
    }

    fn apply(&mut self, line: &str) {
        let mut words = line.split(' ');
        let word = words.next().unwrap_or_default();
        *self.counts.entry(word.to_owned()).or_default() += 1;
        match (word, words.next(), words.next()) {
            ("applied", Some(key), Some(hash)) => {
                self.keys.insert(key.to_owned(), hash.to_owned());
            }
            ("accepting", ..) => self.accepting = true,
            _ => {}
        }
    }

    fn record(&mut self, line: &str) -> std::io::Result<()> {
        self.log.write_all(format!("{line}\n").as_bytes())?;
        self.apply(line);
        Ok(())
    }

    fn answer(&mut self, headers: &HeaderMap, body: &[u8]) -> std::io::Result<Response> {
        let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(|key| key.trim_matches('"').to_owned()) else {
            return Ok(problem(StatusCode::BAD_REQUEST, "idempotency key missing"));
        };
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Ok(problem(StatusCode::BAD_REQUEST, "not JSON"));
        };
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Ok(problem(StatusCode::BAD_REQUEST, "idempotency key malformed"));
        }
        let hash = hash(body);
        if let Some(known) = self.keys.get(&key) {
            if *known != hash {
                self.record("conflict")?;
                return Ok(problem(StatusCode::UNPROCESSABLE_ENTITY, "idempotency key reused with another body"));
            }
            self.record("repeat")?;
            return Ok(Json(json!({ "status": "already applied" })).into_response());
        }
        if !self.calm && self.last_429.elapsed() > BETWEEN_429 {
            self.last_429 = Instant::now();
            self.record("status_429")?;
            let wait = if rand::rng().random_bool(0.5) { "1".to_owned() } else { http_date(SystemTime::now() + Duration::from_secs(2)) };
            let mut response = problem(StatusCode::TOO_MANY_REQUESTS, "slow down");
            if let Ok(wait) = HeaderValue::from_str(&wait) {
                response.headers_mut().insert(header::RETRY_AFTER, wait);
            }
            return Ok(response);
        }
        if !self.accepting && String::from_utf8_lossy(body).contains(REFUSED_MARK) {
            self.record("refused")?;
            return Ok(problem(StatusCode::UNPROCESSABLE_ENTITY, "this guest may not be registered"));
        }
        let fail = !self.calm && rand::rng().random_range(0..ONE_IN_500) == 0;
        if fail && rand::rng().random_bool(0.5) {
            self.record("status_500")?;
            return Ok(problem(StatusCode::INTERNAL_SERVER_ERROR, "out of order"));
        }
        let mut ids = Vec::new();
        fact_ids(&value, &mut ids);
        if ids.is_empty() {
            return Ok(problem(StatusCode::BAD_REQUEST, "no event with an event_id"));
        }
        self.record(&format!("applied {key} {hash} {}", ids.join(",")))?;
        if fail {
            self.record("status_500")?;
            return Ok(problem(StatusCode::INTERNAL_SERVER_ERROR, "applied, then out of order"));
        }
        Ok((StatusCode::ACCEPTED, Json(json!({ "status": "applied" }))).into_response())
    }
}

async fn events(State(target): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let answer = target.lock().await.answer(&headers, &body);
    answer.unwrap_or_else(|_| problem(StatusCode::SERVICE_UNAVAILABLE, "the log cannot be written"))
}

async fn accept(State(target): State<Shared>) -> Response {
    match target.lock().await.record("accepting") {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "the log cannot be written"),
    }
}

async fn stats(State(target): State<Shared>) -> Json<Value> {
    let target = target.lock().await;
    let count = |word: &str| target.counts.get(word).copied().unwrap_or(0);
    Json(json!({
        "applied": count("applied"), "repeats_absorbed": count("repeat"), "conflicts": count("conflict"), "refused": count("refused"),
        "answered_429": count("status_429"), "answered_500": count("status_500"), "accepting": target.accepting,
    }))
}

fn problem(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({ "error": detail }))).into_response()
}

/// The ids of the events in a body: one event, a list of them, or a list below any key.
fn fact_ids<'a>(value: &'a Value, ids: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|v| fact_ids(v, ids)),
        Value::Object(map) => match map.get("event_id") {
            Some(Value::String(id)) => ids.push(id),
            _ => map.values().filter(|v| v.is_array() || v.is_object()).for_each(|v| fact_ids(v, ids)),
        },
        _ => {}
    }
}

fn hash(body: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(body).iter().take(12).map(|b| format!("{b:02x}")).collect()
}

/// `Sun, 22 Nov 2026 10:00:00 GMT`.
fn http_date(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|t| t.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_wherever_a_body_keeps_them() {
        for (body, expected) in [
            (r#"{"id":"k","event_id":"e1-0/1-0","data":{"id":"x"}}"#, vec!["e1-0/1-0"]),
            (r#"[{"event_id":"a"},{"event_id":"b"}]"#, vec!["a", "b"]),
            (r#"{"source":"pos","events":[{"event_id":"a"},{"event_id":"b"}]}"#, vec!["a", "b"]),
            (r#"{"data":{"id":"x"}}"#, vec![]),
        ] {
            let value: Value = serde_json::from_str(body).expect("valid");
            let mut ids = Vec::new();
            fact_ids(&value, &mut ids);
            assert_eq!(ids, expected, "{body}");
        }
    }

    #[test]
    fn a_killed_target_knows_what_it_applied() {
        let dir = std::env::temp_dir().join(format!("tillstream-target-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let arguments = Arguments { listen: ([127, 0, 0, 1], 0).into(), log: dir.join("log"), calm: true };
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", HeaderValue::from_static("k1"));
        let mut target = Target::open(&arguments).expect("opens");
        let status = |r: std::io::Result<Response>| r.expect("log").status().as_u16();
        assert_eq!(status(target.answer(&headers, b"{\"event_id\":\"a\"}")), 202);
        // A kill in the middle of a line.
        std::fs::OpenOptions::new().append(true).open(&arguments.log).expect("opens").write_all(b"applied k2 00").expect("writes");
        let mut target = Target::open(&arguments).expect("opens");
        assert_eq!(status(target.answer(&headers, b"{\"event_id\":\"a\"}")), 200);
        assert_eq!(status(target.answer(&headers, b"{\"event_id\":\"b\"}")), 422);
        headers.insert("idempotency-key", HeaderValue::from_static("k2"));
        assert_eq!(status(target.answer(&headers, b"{\"event_id\":\"refuse-me\"}")), 422);
        target.record("accepting").expect("log");
        assert_eq!(status(target.answer(&headers, b"{\"event_id\":\"refuse-me\"}")), 202);
        std::fs::remove_dir_all(&dir).expect("removes");
    }
}

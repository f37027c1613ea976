//! A process that delivers, with a journal that the test writes itself and a target that refuses what it is told to: no server is needed for that.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tillstream_schemas::Op;

use crate::delivery::pos::{Capture, Change, journal};
use crate::harness::{PATIENCE, Process, free_port, scratch, wait_for};

/// Who may do what in these tests.
pub(super) const PEOPLE: [(&str, &str); 3] = [("vera", "viewer"), ("otto", "operator"), ("dana", "admin")];

/// The token of one of them.
pub(super) fn token(name: &str) -> String {
    format!("{name}-0123456789abcdef0123456789abcdef")
}

/// What a row may hold at worst.
pub(super) fn evil() -> String {
    format!("<script>alert(1)</script>\u{202e}\"'><img src=x onerror=alert(2)>{}", "y".repeat(1_000_000))
}

pub(super) const PIPELINE: &str = "version: 1\npipeline: shop\nsource: {name: pos, url: \"postgres://nobody@127.0.0.1:9/pos\", slot: s, publication: p, tables: [public.a, public.b]}\njournal: {local: {dir: journal}}\nconnectors: [crm.yaml]\n";

pub(super) const CRM: &str = "version: 1\nconnector: crm\nfrom: {tables: [public.a], ops: [insert, update]}\non_delete: ignore\nmap:\n  id: \"{{ idempotency_key }}\"\n  name: \"{{ after.name }}\"\n\
     tests:\n  - {name: a row, given: {table: public.a, key: {id: 1}, after: {id: 1, name: x}}, expect: {id: test, name: x}}\nto:\n  http: {url: \"${env:API_URL}\", allow_private: true, timeout: 5s}\nretry: {base: 10ms, max: 50ms}\n";

pub(super) struct Shop {
    pub(super) dir: PathBuf,
    pub(super) base: String,
    pub(super) capture: Capture,
    process: Process,
    client: Client,
}

/// A row of table a.
pub(super) fn row(id: u64, name: &str) -> Change {
    Change { op: Op::Insert, table: "a", key: json!({"id": id}).to_string(), after: Some(json!({"id": id, "name": name}).to_string()) }
}

/// How long the target takes for a name that begins with `slow`.
const SLOW: Duration = Duration::from_millis(300);

/// A target that takes everything but names with a sign of lesser, and says so in words that are no better.
async fn target() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let answer = async |body: axum::Json<Value>| {
        let name = body.0["name"].as_str().unwrap_or_default();
        if name.starts_with("slow") {
            tokio::time::sleep(SLOW).await;
        }
        let refused = name.contains('<');
        match refused {
            true => (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(json!({"error": "<script>alert(3)</script>\u{202e}"}))).into_response(),
            false => StatusCode::OK.into_response(),
        }
    };
    let router = Router::new().route("/v1", axum::routing::post(answer)).layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// A request as a form of a page sends it.
pub(super) fn form(request: reqwest::RequestBuilder, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
    let encoded = |text: &str| -> String { text.bytes().map(|b| format!("%{b:02X}")).collect() };
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    request.header("content-type", "application/x-www-form-urlencoded").body(fields.join("&"))
}

impl Shop {
    /// Starts it; `admin` is the block of that name in the pipeline's file.
    pub(super) async fn open(name: &str, admin: &str) -> Shop {
        let dir = scratch(name);
        std::fs::write(dir.join("tillstream.yaml"), format!("{PIPELINE}{admin}")).expect("written");
        std::fs::write(dir.join("crm.yaml"), CRM).expect("written");
        let journal = journal(&dir.join("journal"), 1).await;
        let capture = Capture::new(journal.as_ref(), 1).await;
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["run", "--only", "delivery", "--listen", &listen];
        let url = target().await;
        let process = Process::start(&dir, "run", &arguments, &[("API_URL", &url)]);
        let secure = admin.contains("tls:");
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.tls_danger_accept_invalid_certs(secure).build().expect("a client");
        let base = if secure { format!("https://localhost:{port}") } else { format!("http://{listen}") };
        let shop = Shop { dir, base, capture, process, client };
        wait_for("readiness", PATIENCE, || async {
            let answer = shop.client.get(format!("{}/readyz", shop.base)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        shop
    }

    /// With a viewer, an operator and an admin.
    pub(super) async fn with_people(name: &str) -> Shop {
        let people: Vec<String> =
            PEOPLE.iter().map(|(name, role)| format!("{{name: {name}, role: {role}, token: {}}}", token(name))).collect();
        Shop::open(name, &format!("admin: {{tokens: [{}]}}\n", people.join(", "))).await
    }

    pub(super) fn request(&self, method: Method, path: &str, who: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        if who.is_empty() { request } else { request.bearer_auth(token(who)) }
    }

    pub(super) async fn get(&self, path: &str, who: &str) -> Response {
        self.request(Method::GET, path, who).send().await.expect("answers")
    }

    /// A document that has to be there.
    pub(super) async fn json(&self, path: &str, who: &str) -> Value {
        let answer = self.get(path, who).await;
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.expect("JSON")
    }

    pub(super) async fn post(&self, path: &str, who: &str, body: Value) -> (u16, Value) {
        let answer = self.request(Method::POST, path, who).json(&body).send().await.expect("answers");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// The audit, newest first.
    pub(super) async fn audit(&self, who: &str) -> Vec<Value> {
        self.json("/api/audit", who).await["audit"].as_array().cloned().unwrap_or_default()
    }

    /// So many events for which the target takes its time.
    pub(super) async fn backlog(&mut self, events: u64) {
        for first in (0..events).step_by(250) {
            let changes: Vec<Change> = (first..(first + 250).min(events)).map(|id| row(id, "slow")).collect();
            self.capture.commit(0, &changes).await;
        }
    }

    /// Waits for so many open dead letters.
    pub(super) async fn letters(&self, count: u64, who: &str) -> Value {
        wait_for("dead letters", PATIENCE, || async {
            let found = self.json("/api/dead-letters/items", who).await;
            (found["open"] == count).then_some(found)
        })
        .await
    }

    pub(super) async fn end(self) {
        self.process.terminate(PATIENCE).await;
    }
}

//! The HTTP side: requests of pretend targets, and the pages below `/sandbox/`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::apis::{self, Answer, Api, Call};
use super::book::Wish;
use super::cut::Line;
use super::faults::{Act, Faults};

/// The largest request: more than any of the real targets takes.
const BODY_MAX: usize = 16 << 20;

#[derive(Clone)]
struct Served {
    shared: Arc<Shared>,
    api: &'static dyn Api,
}

/// Every pretend target and the pages about them.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for (path, api) in apis::ALL {
        let served = Served { shared: shared.clone(), api: *api };
        router = router.merge(Router::new().route(path, post(serve).put(serve).patch(serve)).with_state(served));
    }
    let pages = Router::new()
        .route("/sandbox/effects", get(effects))
        .route("/sandbox/requests", get(requests))
        .route("/sandbox/counts", get(counts))
        .route("/sandbox/faults", get(faults).put(set_faults))
        .route("/sandbox/forget", post(forget))
        .route("/sandbox/reset", post(reset))
        .with_state(shared);
    router.merge(pages).layer(DefaultBodyLimit::max(BODY_MAX))
}

async fn serve(State(served): State<Served>, ConnectInfo(line): ConnectInfo<Line>, headers: HeaderMap, body: Bytes) -> Response {
    // What a target has begun it brings to its end, whether or not anybody still waits for the answer.
    served.shared.working.fetch_add(1, Ordering::AcqRel);
    let work = tokio::spawn(async move {
        let shared = served.shared.clone();
        let response = work(served, line, headers, body).await;
        shared.working.fetch_sub(1, Ordering::AcqRel);
        response
    });
    match work.await {
        Ok(response) => response,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn work(served: Served, line: Line, headers: HeaderMap, body: Bytes) -> Response {
    let Served { shared, api } = &served;
    let (number, act) = shared.book().enter(api.name(), body.len());
    let answer = match api.read(&Call { headers: &headers, body: &body }) {
        Err(refusal) => refusal,
        Ok(wish) if shared.book().begin(api.name(), &wish) => {
            let answer = served.act(number, act, &wish, &line).await;
            shared.book().end(api.name(), &wish);
            answer
        }
        Ok(_) => api.error(409, "idempotency_in_flight", "a request with this key is being worked on"),
    };
    if !line.is_cut() {
        shared.book().note(number, |entry| entry.status = Some(answer.status));
    }
    answer.into_response()
}

impl Served {
    /// Does what the act says: what is applied, and what is answered when.
    async fn act(&self, number: u64, act: Act, wish: &Wish, line: &Line) -> Answer {
        let apply = |partial: bool| {
            let mut book = self.shared.book();
            let fates = book.apply(self.api.name(), number, wish, partial);
            self.api.done(wish, &fates, &mut book)
        };
        let busy = |status: u16, after: Option<String>| {
            let mut answer = self.api.error(status, "rate_limited", "slow down");
            answer.retry_after = after;
            answer
        };
        match act {
            Act::Serve => apply(false),
            Act::Partial => apply(true),
            Act::Status500 => self.api.error(500, "internal_server_error", "out of order"),
            Act::Status503 => self.api.error(503, "service_unavailable", "out of order"),
            Act::Status500Applied => {
                apply(false);
                self.api.error(500, "internal_server_error", "applied, then out of order")
            }
            Act::Status429(wait) => busy(429, Some(seconds(wait).to_string())),
            Act::Status429Date(wait) => busy(429, Some(date(wait))),
            Act::Status429Bare => busy(429, None),
            Act::Error200 => self.api.error_200(wish),
            Act::Slow(wait) => {
                tokio::time::sleep(wait).await;
                apply(false)
            }
            Act::Late(wait) => {
                let answer = apply(false);
                tokio::time::sleep(wait).await;
                answer
            }
            Act::Hang(wait) => {
                tokio::time::sleep(wait).await;
                line.cut();
                Answer::empty(500)
            }
            Act::LostAnswer => {
                line.cut();
                apply(false)
            }
            Act::Cut => {
                line.cut();
                Answer::empty(500)
            }
        }
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// A date has whole seconds, so the pause is longer by up to one.
fn date(wait: Duration) -> String {
    httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds(wait) + 1))
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = match self.body {
            Some(body) => (status, Json(body)).into_response(),
            None => status.into_response(),
        };
        if let Some(after) = self.retry_after.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

/// How many of the latest are shown.
#[derive(Deserialize)]
struct Page {
    #[serde(default = "page_default")]
    limit: usize,
}

fn page_default() -> usize {
    100
}

/// The latest ones, oldest first.
fn latest<T>(mut all: Vec<T>, page: &Page) -> Vec<T> {
    all.split_off(all.len().saturating_sub(page.limit))
}

async fn effects(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Json<Value> {
    Json(json!({ "effects": latest(shared.book().effects(), &page) }))
}

async fn requests(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Json<Value> {
    Json(json!({ "requests": latest(shared.book().requests(), &page) }))
}

async fn counts(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!(shared.book().counts()))
}

async fn faults(State(shared): State<Arc<Shared>>) -> Json<Faults> {
    Json(shared.book().faults())
}

async fn set_faults(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let read = serde_json::from_slice::<Faults>(&body).map_err(|error| error.to_string());
    match read.and_then(|faults| faults.check().map(|()| faults)) {
        Ok(faults) => {
            shared.book().set_faults(faults);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(why) => (StatusCode::BAD_REQUEST, Json(json!({ "error": why }))).into_response(),
    }
}

async fn forget(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.book().forget_keys();
    StatusCode::NO_CONTENT
}

async fn reset(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.book().reset();
    StatusCode::NO_CONTENT
}

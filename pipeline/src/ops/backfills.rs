//! `/api/backfills`: list, show, start, pause, resume, cancel. What it answers is what the command line shows.
//!
//! Whoever changes something has to send JSON and no `Origin`: a page in somebody's browser can do neither unasked.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::failure::{Class, Failure};
use super::observer::Observer;
use crate::backfill::{Backfill, Change, Refused, Request};

/// A request with as many keys as a job takes, as JSON.
const BODY_BYTES_MAX: usize = 12 << 20;

/// Who asks and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asking {
    by: String,
    reason: String,
}

/// The routes.
pub(super) fn routes() -> Router<Arc<Observer>> {
    Router::new()
        .route("/api/backfills", get(list).post(start))
        .route("/api/backfills/{id}", get(show))
        .route("/api/backfills/{id}/{change}", post(change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn backfill(observer: &Observer) -> Result<&Arc<Backfill>, Failure> {
    let none = || Failure::new("backfill.no_session", "this process does not capture, so it cannot read tables either");
    observer.observed.backfill.as_ref().ok_or_else(none)
}

async fn list(State(observer): State<Arc<Observer>>) -> Response {
    match backfill(&observer) {
        Ok(backfill) => Json(json!({"backfills": backfill.list()})).into_response(),
        Err(failure) => answer(&failure),
    }
}

async fn show(State(observer): State<Arc<Observer>>, Path(id): Path<String>) -> Response {
    match backfill(&observer).map(|b| b.show(&id)) {
        Ok(Some(view)) => Json(view).into_response(),
        Ok(None) => answer(&Failure::new("backfill.unknown", format!("there is no backfill {id}"))),
        Err(failure) => answer(&failure),
    }
}

async fn start(State(observer): State<Arc<Observer>>, headers: HeaderMap, request: Result<Json<Request>, JsonRejection>) -> Response {
    let started = async {
        own(&headers)?;
        let Json(request) = request.map_err(unreadable)?;
        Ok::<_, Failure>(backfill(&observer)?.start(request).await?)
    };
    match started.await {
        Ok(started) => Json(started).into_response(),
        Err(failure) => answer(&failure),
    }
}

async fn change(
    State(observer): State<Arc<Observer>>,
    Path((id, change)): Path<(String, String)>,
    headers: HeaderMap,
    asking: Result<Json<Asking>, JsonRejection>,
) -> Response {
    let what = match change.as_str() {
        "pause" => Change::Pause,
        "resume" => Change::Resume,
        "cancel" => Change::Cancel,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let changed = async {
        own(&headers)?;
        let Json(asking) = asking.map_err(unreadable)?;
        Ok::<_, Failure>(backfill(&observer)?.ask(&id, what, &asking.by, &asking.reason).await?)
    };
    match changed.await {
        Ok(view) => Json(view).into_response(),
        Err(failure) => answer(&failure),
    }
}

/// Refuses what a web page could have sent.
pub(super) fn own(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.contains_key(header::ORIGIN) {
        true => Err(Failure::new("backfill.bad_request", "requests of web pages are not taken")),
        false => Ok(()),
    }
}

pub(super) fn unreadable(rejection: JsonRejection) -> Failure {
    // Its text may quote the body, which may hold keys.
    Failure::new("backfill.bad_request", format!("the body is no such request (HTTP {})", rejection.status()))
}

pub(super) fn answer(failure: &Failure) -> Response {
    let code = match failure.class {
        Class::Usage | Class::Config | Class::Data => StatusCode::UNPROCESSABLE_ENTITY,
        Class::Permission => StatusCode::FORBIDDEN,
        Class::Check | Class::Locked | Class::Temporary => StatusCode::CONFLICT,
        Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Class::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, Json(failure.to_json())).into_response()
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        Failure::new(refused.code, refused.what)
    }
}

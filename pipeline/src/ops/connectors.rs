//! `/api/connectors`: what every connector runs by, and the request to take over what the files say now.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::apply::{Applier, Request};
use super::backfills::{answer, own, unreadable};
use super::failure::Failure;

/// The routes; `None` where this process delivers nothing.
pub(super) fn routes(applier: Option<Arc<Applier>>) -> Router {
    Router::new().route("/api/connectors", get(list)).route("/api/connectors/apply", post(apply)).with_state(applier)
}

fn not_here() -> Failure {
    Failure::new("apply.not_here", "this process does not deliver")
}

async fn list(State(applier): State<Option<Arc<Applier>>>) -> Response {
    match applier {
        Some(applier) => Json(json!({"connectors": applier.running()})).into_response(),
        None => answer(&not_here()),
    }
}

async fn apply(State(applier): State<Option<Arc<Applier>>>, headers: HeaderMap, request: Result<Json<Request>, JsonRejection>) -> Response {
    let applied = async {
        own(&headers)?;
        let Json(request) = request.map_err(unreadable)?;
        applier.ok_or_else(not_here)?.apply(request).await
    };
    match applied.await {
        Ok(applied) => Json(json!({"applied": applied})).into_response(),
        Err(failure) => answer(&failure),
    }
}

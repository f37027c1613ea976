//! The admin endpoint: `/healthz /readyz /metrics /api/status /api/scale /api/schema/…`, which only look, `/api/backfills` and
//! `/api/connectors`. It has no authentication and belongs
//! on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::apply::Applier;
use super::failure::Failure;
use super::observer::Observer;
use super::process::Files;
use super::{backfills, connectors, metrics, scale, status};
use crate::config;

/// Takes the address. Serving begins with [`serve`].
///
/// # Errors
/// When the address is in use or not ours.
pub async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, Failure> {
    tokio::net::TcpListener::bind(address).await.map_err(|e| Failure::new("admin.listen", format!("listen on {address}: {e}")))
}

/// Serves until it is dropped.
pub async fn serve(listener: tokio::net::TcpListener, observer: Arc<Observer>, files: Files, applier: Option<Arc<Applier>>) {
    let schema = |file| {
        let schema = config::schema::of(file, &files.registry);
        get(async move || Json(schema))
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .route("/api/status", get(async |State(observer): State<Arc<Observer>>| Json(status::document(&observer))))
        .route("/api/schema/connector", schema(config::schema::File::Connector))
        .route("/api/schema/pipeline", schema(config::schema::File::Pipeline))
        .route("/api/scale", get(scale))
        .merge(backfills::routes())
        .with_state(observer)
        .merge(connectors::routes(applier));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin endpoint ended");
    }
}

/// 200 while bytes are moving, or could; else 503 with the reasons. That the process lives is no reason to call it ready.
async fn ready(State(observer): State<Arc<Observer>>) -> Response {
    let reasons = observer.not_ready();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"ready": reasons.is_empty(), "reasons": reasons}))).into_response()
}

/// How soon what waits shall be done, in seconds.
#[derive(Debug, serde::Deserialize)]
struct Within {
    within: Option<u32>,
}

/// How many processes that deliver are wanted, for those that start and end them.
async fn scale(State(observer): State<Arc<Observer>>, Query(asked): Query<Within>) -> Json<scale::Scale> {
    let within = asked.within.map_or(scale::DRAIN_WITHIN, |seconds| Duration::from_secs(u64::from(seconds)));
    Json(scale::scale(observer.figures(), within))
}

async fn exposition(State(observer): State<Arc<Observer>>) -> Response {
    match metrics::exposition(&observer) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

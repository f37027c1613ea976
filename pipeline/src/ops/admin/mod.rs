//! The admin endpoint: `/healthz /readyz /metrics`, the API below `/api`, and the console, on one address.
//!
//! ```text
//!  listener (TLS, bounded connections) ─▶ guard (who, may, own site, how often) ─▶ handler ─▶ desk (audit, then the deed) ─▶ control journal
//! ```
//!
//! Every route stands in the table of [`operations`], with the role that it needs; the guard serves nothing else, and the OpenAPI document is printed from
//! the same table.

pub(crate) mod access;
mod backfills;
mod connectors;
pub(crate) mod guard;
pub(crate) mod letters;
mod limits;
mod listener;
pub(crate) mod looks;
pub mod operations;
pub(crate) mod replays;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::apply::Applier;
use super::console;
use super::desk::{Decision, Desk};
use super::failure::{Class, Failure};
use super::observer::Observer;
use super::process::Files;
use super::{metrics, scale, status};
use crate::config::{self, CheckedFile};
use crate::control::State as ControlState;
use access::{Access, Caller};

/// Requests are small; those with many keys of a backfill have their own bound.
const BODY_BYTES_MAX: usize = 256 << 10;
/// A reason is for people to read.
const REASON_MAX: usize = 1_000;
/// The console sees a decision within this, or a moment later.
const SHOWN_WITHIN: Duration = Duration::from_secs(3);

/// What the handlers share.
pub(crate) struct Admin {
    pub(crate) observer: Arc<Observer>,
    pub(crate) applier: Option<Arc<Applier>>,
    pub(crate) files: Files,
    pub(crate) desk: Desk,
    pub(crate) access: Access,
    pub(crate) console: console::Console,
    /// It speaks TLS itself.
    pub(crate) secure: bool,
    any: limits::Limit,
    changes: limits::Limit,
    wrong: limits::Limit,
    /// Held while the journal is read from end to end for somebody: one at a time, or looking would hurt delivery.
    reading: tokio::sync::Mutex<()>,
}

/// The address, and what it takes to serve there.
pub struct Endpoint {
    listener: tokio::net::TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    access: Access,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Takes the address, and reads certificate and key. Serving begins with [`serve`].
///
/// # Errors
/// When the address is in use or not ours, is exposed without tokens and TLS, or certificate and key are no good.
pub async fn bind(settings: &config::Admin, address: SocketAddr) -> Result<Endpoint, Failure> {
    if let Some(why) = settings.exposed_at(address) {
        return Err(Failure::new("config.exposed_admin", format!("the admin endpoint would be exposed at {address}: {why}")));
    }
    let tls = settings.tls.as_ref().map(listener::acceptor).transpose()?;
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.map_err(|e| Failure::new("admin.listen", format!("listen on {address}: {e}")))?;
    Ok(Endpoint { listener, tls, access: Access::new(&settings.tokens) })
}

impl Endpoint {
    /// The address; with the port that was found for port 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }
}

/// Serves until it is dropped.
pub async fn serve(endpoint: Endpoint, observer: Arc<Observer>, files: Files, applier: Option<Arc<Applier>>) {
    let Endpoint { listener, tls, access } = endpoint;
    let admin = Arc::new(Admin::new(observer, files, applier, access, tls.is_some()));
    let remembering = Arc::clone(&admin);
    let router = router(admin);
    tokio::join!(listener::serve(listener, tls, router), console::remember(remembering));
}

fn router(admin: Arc<Admin>) -> Router {
    let schema = |file| {
        let schema = config::schema::of(file, &admin.files.registry);
        get(async move || Json(schema))
    };
    let api = operations::document();
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .route("/api/openapi.json", get(async move || Json(api)))
        .route("/api/status", get(async |State(admin): State<Arc<Admin>>| Json(status::document(&admin.observer))))
        .route("/api/schema/connector", schema(config::schema::File::Connector))
        .route("/api/schema/pipeline", schema(config::schema::File::Pipeline))
        .route("/api/scale", get(scale))
        .merge(letters::routes())
        .merge(replays::routes())
        .merge(connectors::routes())
        .merge(looks::routes())
        .merge(console::routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(backfills::routes())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), guard::guard))
        .with_state(admin)
}

impl Admin {
    fn new(observer: Arc<Observer>, files: Files, applier: Option<Arc<Applier>>, access: Access, secure: bool) -> Admin {
        let observed = &observer.observed;
        Admin {
            desk: Desk::new(Arc::clone(&observed.journal), &observed.pipeline, &observed.source),
            console: console::Console::default(),
            any: limits::Limit::new(guard::ANY),
            changes: limits::Limit::new(guard::CHANGES),
            wrong: limits::Limit::new(guard::WRONG),
            reading: tokio::sync::Mutex::default(),
            observer,
            applier,
            files,
            access,
            secure,
        }
    }

    /// What the control journal says, as far as this process has followed it.
    ///
    /// # Errors
    /// The journal has not answered yet.
    pub(crate) fn state(&self) -> Result<Arc<ControlState>, Failure> {
        let unread = || Failure::new("journal.unavailable", "the control journal has not been read yet");
        self.observer.observed.control.get().map(|control| control.state()).ok_or_else(unread)
    }

    /// The pipeline as its files say now: what a replay, a diagnosis or a decision about a connector counts by.
    ///
    /// # Errors
    /// The files have problems.
    pub(crate) async fn pipeline(&self) -> Result<CheckedFile, Failure> {
        let (path, registry) = (self.files.path.clone(), Arc::clone(&self.files.registry));
        let read = tokio::task::spawn_blocking(move || config::load_file(&path, &registry)).await;
        let read = read.map_err(|e| Failure::new("internal.panicked", e.to_string()))?;
        read.map_err(|report| Failure::new("apply.invalid", report.render(false).trim_end().to_owned()))
    }

    /// Waits a moment until this process has seen what was decided, so that whoever decided sees it too.
    pub(crate) async fn shown(&self) {
        let Some(mut control) = self.observer.observed.control.get().cloned() else { return };
        let Ok(end) = self.desk.end().await else { return };
        let _ = tokio::time::timeout(SHOWN_WITHIN, control.wait_for(|state| state.next().0 > end)).await;
    }

    /// The right to read the journal from end to end.
    ///
    /// # Errors
    /// Somebody does so already.
    pub(crate) fn alone(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        self.reading.try_lock().map_err(|_| Failure::new("admin.busy", "the journal is being read for somebody else"))
    }
}

/// A request that says no more than who asks and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asking {
    by: String,
    reason: String,
}

/// Who decides and why, of a request that has to say so.
///
/// # Errors
/// It gives no reason, or a very long one.
pub(crate) fn decision(caller: &Caller, by: &str, reason: &str) -> Result<Decision, Failure> {
    let reason = reason.trim();
    match reason.chars().count() {
        0 => Err(bad_request("say why in `reason`")),
        REASON_MAX.. => Err(bad_request(format!("a reason has at most {REASON_MAX} characters"))),
        _ => Ok(Decision { by: caller.by(by), reason: reason.to_owned() }),
    }
}

/// A request that says no sensible thing.
pub(crate) fn bad_request(what: impl Into<String>) -> Failure {
    Failure::new("admin.bad_request", what)
}

/// 200 while bytes are moving, or could; else 503 with the reasons. That the process lives is no reason to call it ready.
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let reasons = admin.observer.not_ready();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"ready": reasons.is_empty(), "reasons": reasons}))).into_response()
}

/// How soon what waits shall be done, in seconds.
#[derive(Debug, serde::Deserialize)]
struct Within {
    within: Option<u32>,
}

/// How many processes that deliver are wanted, for those that start and end them.
async fn scale(State(admin): State<Arc<Admin>>, asked: Result<axum::extract::Query<Within>, QueryRejection>) -> Response {
    let advice = query(asked).map(|asked| {
        let within = asked.within.map_or(scale::DRAIN_WITHIN, |seconds| Duration::from_secs(u64::from(seconds)));
        json!(scale::scale(admin.observer.figures(), within))
    });
    reply(advice)
}

async fn exposition(State(admin): State<Arc<Admin>>) -> Response {
    match metrics::exposition(&admin.observer) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The body of a request, or why it is none. What the parser says may quote the body, which may hold keys and values.
pub(crate) fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Failure> {
    let unreadable = |rejection: JsonRejection| bad_request(format!("the body is no such request (HTTP {})", rejection.status()));
    body.map(|Json(body)| body).map_err(unreadable)
}

/// The query of a request, or why it is none.
pub(crate) fn query<T>(query: Result<axum::extract::Query<T>, QueryRejection>) -> Result<T, Failure> {
    query.map(|axum::extract::Query(query)| query).map_err(|_| bad_request("the query is no such request"))
}

/// A document, or a failure as one.
pub(crate) fn reply(result: Result<serde_json::Value, Failure>) -> Response {
    match result {
        Ok(document) => Json(document).into_response(),
        Err(failure) => answer(&failure),
    }
}

/// The status of a failure.
pub(crate) fn status_of(failure: &Failure) -> StatusCode {
    match (failure.code.as_str(), failure.class) {
        ("admin.unauthenticated", _) => StatusCode::UNAUTHORIZED,
        ("admin.rate_limited", _) => StatusCode::TOO_MANY_REQUESTS,
        ("admin.bad_request", _) => StatusCode::BAD_REQUEST,
        // The endpoint is there; it is the process that does something else.
        ("backfill.no_session", _) => StatusCode::CONFLICT,
        (_, Class::Usage | Class::Config | Class::Data) => StatusCode::UNPROCESSABLE_ENTITY,
        (_, Class::Permission) => StatusCode::FORBIDDEN,
        (_, Class::Check | Class::Locked | Class::Temporary) => StatusCode::CONFLICT,
        (_, Class::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        (_, Class::Bug) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(crate) fn answer(failure: &Failure) -> Response {
    (status_of(failure), Json(failure.to_json())).into_response()
}

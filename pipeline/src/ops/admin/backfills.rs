//! `/api/backfills`: list, show, start, pause, resume, cancel. What it answers is what the command line shows.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::access::Caller;
use super::{Admin, Asking, body, reply};
use crate::backfill::{Backfill, Change, Refused, Request, Started};
use crate::ops::desk::Decision;
use crate::ops::failure::Failure;

/// A request with as many keys as a job takes, as JSON.
const BODY_BYTES_MAX: usize = 12 << 20;

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/backfills", get(list).post(begin))
        .route("/api/backfills/{id}", get(show))
        .route("/api/backfills/{id}/pause", asked(Change::Pause))
        .route("/api/backfills/{id}/resume", asked(Change::Resume))
        .route("/api/backfills/{id}/cancel", asked(Change::Cancel))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

impl Admin {
    pub(crate) fn backfill(&self) -> Result<&Arc<Backfill>, Failure> {
        let none = || Failure::new("backfill.no_session", "this process does not capture, so it cannot read tables either");
        self.observer.observed.backfill.as_ref().ok_or_else(none)
    }

    /// Starts a backfill, and writes down who asked; an estimate changes nothing and is not written down.
    ///
    /// # Errors
    /// Those of the request and of the control journal.
    pub(crate) async fn start_backfill(&self, mut request: Request, decision: Decision) -> Result<Started, Failure> {
        let backfill = self.backfill()?;
        if request.dry_run {
            return Ok(backfill.start(request).await?);
        }
        request.by.clone_from(&decision.by);
        let id = request.id.as_deref().map_or_else(String::new, |id| format!(" {}", id.escape_debug().take(80).collect::<String>()));
        let tables: Vec<String> = request.spec.tables.iter().take(5).map(|t| t.escape_debug().take(130).collect()).collect();
        self.desk.note(&*self.state()?, format!("backfill{id}: start, of {}", tables.join(", ")), &decision).await?;
        let started = backfill.start(request).await;
        if let Err(refused) = &started {
            self.desk.note(&*self.state()?, format!("backfill{id}: not started ({})", refused.code), &decision).await?;
        }
        Ok(started?)
    }

    /// Pauses, resumes or cancels a backfill, and writes down who asked.
    ///
    /// # Errors
    /// There is no such job, it is over, and those of the control journal.
    pub(crate) async fn change_backfill(&self, id: &str, what: Change, decision: &Decision) -> Result<Value, Failure> {
        let backfill = self.backfill()?;
        if backfill.show(id).is_none() {
            return Err(unknown(id));
        }
        let word = match what {
            Change::Pause => "pause",
            Change::Resume => "resume",
            Change::Cancel => "cancel",
        };
        self.desk.note(&*self.state()?, format!("backfill {id}: {word}"), decision).await?;
        Ok(json!(backfill.ask(id, what, &decision.by, &decision.reason).await?))
    }
}

fn unknown(id: &str) -> Failure {
    Failure::new("backfill.unknown", format!("there is no backfill {}", id.escape_debug().take(100).collect::<String>()))
}

async fn list(State(admin): State<Arc<Admin>>) -> Response {
    reply(admin.backfill().map(|backfill| json!({"backfills": backfill.list()})))
}

async fn show(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Response {
    reply(admin.backfill().and_then(|backfill| backfill.show(&id).map(|view| json!(view)).ok_or_else(|| unknown(&id))))
}

async fn begin(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<Request>, JsonRejection>,
) -> Response {
    let started = async {
        let request = body(request)?;
        let decision = Decision { by: caller.by(&request.by), reason: String::new() };
        Ok(json!(admin.start_backfill(request, decision).await?))
    };
    reply(started.await)
}

/// The request to change a backfill so.
fn asked(what: Change) -> MethodRouter<Arc<Admin>> {
    post(move |admin: State<Arc<Admin>>, caller: Extension<Caller>, id: Path<String>, asking: Result<Json<Asking>, JsonRejection>| {
        change(admin, caller, id, what, asking)
    })
}

async fn change(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    what: Change,
    asking: Result<Json<Asking>, JsonRejection>,
) -> Response {
    let changed = async {
        let Asking { by, reason } = body(asking)?;
        // Commands that end with a signal have no reason to give but that.
        let decision = Decision { by: caller.by(&by), reason: reason.chars().take(super::REASON_MAX).collect() };
        admin.change_backfill(&id, what, &decision).await
    };
    reply(changed.await)
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        Failure::new(refused.code, refused.what)
    }
}

//! `/api/connectors`: what every connector runs by, the request to take over what the files say now, and pausing one and having it go on.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::access::Caller;
use super::{Admin, Asking, body, decision, reply};
use crate::config::{self, Connector, Pipeline, Role};
use crate::ops::apply::Request;
use crate::ops::desk::{Decision, in_time};
use crate::ops::failure::Failure;
use crate::ops::{kept, pauses};

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/connectors", get(list))
        .route("/api/connectors/apply", post(apply))
        .route("/api/connectors/{name}/pause", post(pause))
        .route("/api/connectors/{name}/resume", post(resume))
}

fn not_here() -> Failure {
    Failure::new("apply.not_here", "this process does not deliver")
}

async fn list(State(admin): State<Arc<Admin>>) -> Response {
    reply(admin.applier.as_ref().map(|applier| json!({"connectors": applier.running()})).ok_or_else(not_here))
}

async fn apply(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<Request>, JsonRejection>,
) -> Response {
    let applied = async {
        let mut request = body(request)?;
        request.by = caller.by(&request.by);
        let applied = admin.applier.clone().ok_or_else(not_here)?.apply(request).await?;
        Ok(json!({"applied": applied}))
    };
    reply(applied.await)
}

impl Admin {
    /// Pauses a connector in every process.
    ///
    /// # Errors
    /// There is no such connector, the files have problems, and those of journal and control journal.
    pub(crate) async fn pause_connector(&self, name: &str, decision: &Decision) -> Result<Value, Failure> {
        let file = self.pipeline().await?;
        named(&file.pipeline, name)?;
        let (state, retention) = (self.state()?, file.pipeline.journal.retention());
        let waits = in_time(kept::kept(self.desk.journal().as_ref(), &state, name, retention)).await??;
        let already = self.desk.pause(&state, name, decision).await?;
        self.shown().await;
        Ok(pauses::paused(name, already.as_ref(), waits, retention))
    }

    /// Has a connector go on that somebody paused, or with its tables as they are, which takes an admin.
    ///
    /// # Errors
    /// There is no such connector, the files have problems, `role` is too small, and those of the control journal.
    pub(crate) async fn resume_connector(&self, name: &str, role: Role, decision: &Decision) -> Result<Value, Failure> {
        let file = self.pipeline().await?;
        let connector = named(&file.pipeline, name)?;
        let resumed = self.desk.resume(&*self.state()?, connector, role >= Role::Admin, decision).await?;
        self.shown().await;
        Ok(pauses::resumed(name, &resumed))
    }
}

/// The connector of this name.
///
/// # Errors
/// The files have none.
pub(super) fn named<'p>(pipeline: &'p Pipeline, name: &str) -> Result<&'p Connector, Failure> {
    pipeline.connectors.iter().find(|connector| connector.name == name).ok_or_else(|| {
        let mut failure = unknown(name);
        if let Some(near) = config::nearest(name, pipeline.connectors.iter().map(|c| c.name.as_str())) {
            failure.fix = Some(format!("did you mean `{near}`?"));
        }
        failure
    })
}

/// A connector that the files do not have.
fn unknown(name: &str) -> Failure {
    let name: String = name.escape_debug().take(60).collect();
    Failure::new("usage.arguments", format!("the pipeline has no connector `{name}`"))
}

async fn pause(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    asking: Result<Json<Asking>, JsonRejection>,
) -> Response {
    let paused = async {
        let Asking { by, reason } = body(asking)?;
        admin.pause_connector(&name, &decision(&caller, &by, &reason)?).await
    };
    reply(paused.await)
}

async fn resume(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    asking: Result<Json<Asking>, JsonRejection>,
) -> Response {
    let resumed = async {
        let Asking { by, reason } = body(asking)?;
        admin.resume_connector(&name, caller.role, &decision(&caller, &by, &reason)?).await
    };
    reply(resumed.await)
}

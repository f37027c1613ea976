//! `/api/connectors`: what every connector runs by, the request to take over what the files say now, and the decision to go on with changed tables.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::access::Caller;
use super::{Admin, Asking, body, decision, reply};
use crate::ops::apply::Request;
use crate::ops::desk::Decision;
use crate::ops::failure::Failure;

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/connectors", get(list))
        .route("/api/connectors/apply", post(apply))
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
    /// Has a connector go on with its tables as they are.
    ///
    /// # Errors
    /// There is no such connector, the files have problems, and those of the control journal.
    pub(crate) async fn resume_connector(&self, name: &str, decision: &Decision) -> Result<Value, Failure> {
        let file = self.pipeline().await?;
        let connector = file.pipeline.connectors.iter().find(|connector| connector.name == name);
        let connector = connector.ok_or_else(|| unknown(name))?;
        let accepted = self.desk.resume(&*self.state()?, connector, decision).await?;
        let accepted: Vec<Value> = accepted.iter().map(|(table, layout)| json!({"table": table, "layout": layout})).collect();
        Ok(json!({"connector": name, "accepted": accepted}))
    }
}

/// A connector that the files do not have.
pub(super) fn unknown(name: &str) -> Failure {
    let name: String = name.escape_debug().take(60).collect();
    Failure::new("usage.arguments", format!("the pipeline has no connector `{name}`"))
}

async fn resume(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    asking: Result<Json<Asking>, JsonRejection>,
) -> Response {
    let resumed = async {
        let Asking { by, reason } = body(asking)?;
        admin.resume_connector(&name, &decision(&caller, &by, &reason)?).await
    };
    reply(resumed.await)
}

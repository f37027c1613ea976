//! `/api/replays`: a stretch of the journal delivered again through a connector, or the connector moved to another place.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Caller;
use super::connectors::named;
use super::{Admin, bad_request, body, decision, reply};
use crate::delivery::place::Place;
use crate::delivery::replay::{self, Wanted};
use crate::ops::desk::{Decision, in_time};
use crate::ops::failure::Failure;
use crate::ops::replays::{self, Accepts};

/// What is to be delivered again.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) connector: String,
    pub(crate) from: String,
    pub(crate) to: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) table: Option<String>,
    pub(crate) accept_duplicates: bool,
    pub(crate) accept_older: bool,
    pub(crate) accept_loss: bool,
    pub(crate) dry_run: bool,
    pub(crate) by: String,
    pub(crate) reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct End {
    connector: String,
    by: String,
    reason: String,
}

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new().route("/api/replays", post(begin)).route("/api/replays/cancel", post(end))
}

impl Admin {
    /// Looks what a replay would be, and asks for it unless only that was wanted.
    ///
    /// # Errors
    /// It cannot be, something has to be accepted, and those of the journal.
    pub(crate) async fn replay(&self, asked: &Asked, decision: &Decision) -> Result<Value, Failure> {
        let place = |text: &str| text.trim().parse::<Place>().map_err(bad_request);
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let file = self.pipeline().await?;
        let connector = named(&file.pipeline, &asked.connector)?;
        let row = replays::row(connector, given(&asked.key).as_deref(), given(&asked.table).as_deref())?;
        let to = given(&asked.to).map(|to| place(&to)).transpose()?;
        let wanted = Wanted { from: place(&asked.from)?, to, row, mapped: asked.dry_run };
        let accepts = Accepts { duplicates: asked.accept_duplicates, older: asked.accept_older, loss: asked.accept_loss };
        let state = self.state()?;
        let _alone = self.alone()?;
        let journal = self.desk.journal().as_ref();
        let proposal = replays::propose(journal, &state, connector, &file.pipeline.source.name, &wanted, accepts);
        let proposal = in_time(proposal).await??;
        if asked.dry_run {
            return Ok(proposal.document(None, true));
        }
        proposal.admissible()?;
        let number = self.desk.replay(&state, &connector.name, &proposal.parts, proposal.what.clone(), decision).await?;
        self.shown().await;
        Ok(proposal.document(Some(number), false))
    }

    /// Ends the replays of a connector.
    ///
    /// # Errors
    /// None is under way, and those of the journal.
    pub(crate) async fn end_replay(&self, connector: &str, decision: &Decision) -> Result<Value, Failure> {
        let state = self.state()?;
        let under_way = replay::under_way(&state, connector, self.desk.journal().partitions());
        if under_way.is_empty() {
            return Err(replays::none_under_way(&connector.escape_debug().take(60).collect::<String>()));
        }
        self.desk.end_replay(&state, connector, &under_way, decision).await?;
        self.shown().await;
        Ok(json!({"cancelled": true, "partitions": under_way}))
    }
}

async fn begin(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    let begun = async {
        let asked = body(asked)?;
        let decision = match asked.dry_run {
            true => Decision { by: caller.by(&asked.by), reason: String::new() },
            false => decision(&caller, &asked.by, &asked.reason)?,
        };
        admin.replay(&asked, &decision).await
    };
    reply(begun.await)
}

async fn end(State(admin): State<Arc<Admin>>, Extension(caller): Extension<Caller>, end: Result<Json<End>, JsonRejection>) -> Response {
    let ended = async {
        let End { connector, by, reason } = body(end)?;
        admin.end_replay(&connector, &decision(&caller, &by, &reason)?).await
    };
    reply(ended.await)
}

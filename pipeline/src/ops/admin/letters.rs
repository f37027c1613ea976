//! `/api/dead-letters`: what targets refused, why, whether it would pass now, and the decisions about it.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Caller;
use super::{Admin, bad_request, body, decision, query, reply};
use crate::delivery::dead_letter::{self, Wanted};
use crate::delivery::edit::Change;
use crate::ops::desk::{self, Decision, in_time};
use crate::ops::failure::Failure;

/// Letters that are shown at once.
pub(crate) const SHOWN_MAX: usize = 200;

/// Which dead letters are meant, of a query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Choice {
    pub(crate) connector: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) limit: Option<usize>,
}

impl Choice {
    pub(crate) fn wanted(&self) -> Wanted {
        // A form sends what was left empty.
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Wanted { connector: given(&self.connector), code: given(&self.code), event_ids: given(&self.id).into_iter().collect() }
    }
}

/// Which dead letters are meant, and why.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) connector: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) ids: Vec<String>,
    pub(crate) all: bool,
    pub(crate) limit: Option<usize>,
    pub(crate) dry_run: bool,
    pub(crate) by: String,
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    path: String,
    value: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    connector: String,
    id: String,
    set: Vec<Set>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reveal {
    connector: String,
    id: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
}

/// The routes.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/dead-letters", get(groups))
        .route("/api/dead-letters/items", get(items))
        .route("/api/dead-letters/diagnosis", get(diagnosis))
        .route("/api/dead-letters/redrive", post(redrive))
        .route("/api/dead-letters/discard", post(discard))
        .route("/api/dead-letters/edit", post(edit))
        .route("/api/dead-letters/reveal", post(reveal))
}

impl Admin {
    /// Groups of open dead letters.
    ///
    /// # Errors
    /// The control journal has not been read.
    pub(crate) fn letter_groups(&self, wanted: &Wanted) -> Result<Value, Failure> {
        let state = self.state()?;
        Ok(json!({"groups": dead_letter::list(&state, wanted), "open": dead_letter::select(&state, wanted).len()}))
    }

    /// Open dead letters one by one, values masked.
    ///
    /// # Errors
    /// The control journal has not been read.
    pub(crate) fn letters(&self, wanted: &Wanted, limit: usize) -> Result<Value, Failure> {
        let state = self.state()?;
        let letters = dead_letter::select(&state, wanted);
        let shown: Vec<Value> = letters.iter().take(limit.min(SHOWN_MAX)).map(|letter| dead_letter::show(letter, false)).collect();
        Ok(json!({"dead_letters": shown, "open": letters.len()}))
    }

    /// What the present files would make of open dead letters.
    ///
    /// # Errors
    /// The files have problems, and those of the journal.
    pub(crate) async fn diagnose(&self, wanted: &Wanted) -> Result<Value, Failure> {
        let (state, file) = (self.state()?, self.pipeline().await?);
        let _alone = self.alone()?;
        let (source, connectors) = (&file.pipeline.source.name, &file.pipeline.connectors);
        let diagnoses = dead_letter::diagnose(&state, wanted, connectors, source, self.desk.journal().as_ref());
        Ok(json!({"diagnoses": in_time(diagnoses).await?.map_err(|error| Failure::new(&error.code(), error.to_string()))?}))
    }

    /// Redrives or discards what is meant; answers how many that were.
    ///
    /// # Errors
    /// Nothing narrows the choice and nobody said all, and those of the control journal.
    pub(crate) async fn settle(&self, asked: Asked, discard: bool, decision: &Decision) -> Result<Value, Failure> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let wanted = Wanted { connector: given(asked.connector), code: given(asked.code), event_ids: asked.ids };
        if wanted == Wanted::default() && !asked.all {
            return Err(bad_request("name a connector, a code or ids, or say `all`"));
        }
        let state = self.state()?;
        let letters = dead_letter::select(&state, &wanted);
        let event_ids: Vec<String> = letters.iter().take(asked.limit.unwrap_or(usize::MAX)).map(|l| l.letter.event_id.clone()).collect();
        let (meant, mut done) = (event_ids.len(), 0);
        if meant > 0 && !asked.dry_run {
            // Named one by one: what is refused after this look is not meant.
            let wanted = Wanted { event_ids, ..wanted };
            done = match discard {
                true => self.desk.discard(&state, &wanted, decision).await?,
                false => self.desk.redrive(&state, &wanted, None, decision).await?,
            };
            self.shown().await;
        }
        Ok(json!({if discard { "discarded" } else { "requested" }: done, "meant": meant}))
    }

    /// Puts other values into an open dead letter's row.
    ///
    /// # Errors
    /// It cannot be changed so, and those of the control journal.
    pub(crate) async fn edit_letter(
        &self,
        letter: (&str, &str),
        changes: &[Change],
        dry_run: bool,
        decision: &Decision,
    ) -> Result<Value, Failure> {
        self.desk.edit(&*self.state()?, letter, changes, dry_run, decision).await?;
        if !dry_run {
            self.shown().await;
        }
        Ok(json!({"edited": !dry_run, "columns": changes.iter().map(|change| change.path.as_str()).collect::<Vec<_>>()}))
    }

    /// One dead letter with its values; that somebody looked is written down first.
    ///
    /// # Errors
    /// There is no such letter, and those of the control journal.
    pub(crate) async fn reveal(&self, connector: &str, id: &str, decision: &Decision) -> Result<Value, Failure> {
        let state = self.state()?;
        let letter = state.dead_letter(connector, id).ok_or_else(|| desk::unknown_letter(connector, id))?;
        self.desk.note(&state, format!("dead letter {id} of connector {connector}: values shown"), decision).await?;
        Ok(dead_letter::show(letter, true))
    }
}

async fn groups(State(admin): State<Arc<Admin>>, choice: Result<Query<Choice>, QueryRejection>) -> Response {
    reply(query(choice).and_then(|choice| admin.letter_groups(&choice.wanted())))
}

async fn items(State(admin): State<Arc<Admin>>, choice: Result<Query<Choice>, QueryRejection>) -> Response {
    reply(query(choice).and_then(|choice| admin.letters(&choice.wanted(), choice.limit.unwrap_or(20))))
}

async fn diagnosis(State(admin): State<Arc<Admin>>, choice: Result<Query<Choice>, QueryRejection>) -> Response {
    let diagnosed = async { admin.diagnose(&query(choice)?.wanted()).await };
    reply(diagnosed.await)
}

async fn redrive(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    settle(&admin, &caller, asked, false).await
}

async fn discard(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Response {
    settle(&admin, &caller, asked, true).await
}

async fn settle(admin: &Admin, caller: &Caller, asked: Result<Json<Asked>, JsonRejection>, discard: bool) -> Response {
    let settled = async {
        let asked = body(asked)?;
        // Looking needs no reason.
        let decision = match asked.dry_run {
            true => Decision { by: caller.by(&asked.by), reason: String::new() },
            false => decision(caller, &asked.by, &asked.reason)?,
        };
        admin.settle(asked, discard, &decision).await
    };
    reply(settled.await)
}

async fn edit(State(admin): State<Arc<Admin>>, Extension(caller): Extension<Caller>, edit: Result<Json<Edit>, JsonRejection>) -> Response {
    let edited = async {
        let Edit { connector, id, set, dry_run, by, reason } = body(edit)?;
        if set.is_empty() {
            return Err(bad_request("say what to change in `set`"));
        }
        let changes: Vec<Change> = set.into_iter().map(|Set { path, value }| Change { path, value }).collect();
        let decision = decision(&caller, &by, &reason)?;
        admin.edit_letter((&connector, &id), &changes, dry_run, &decision).await
    };
    reply(edited.await)
}

async fn reveal(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    reveal: Result<Json<Reveal>, JsonRejection>,
) -> Response {
    let revealed = async {
        let Reveal { connector, id, by, reason } = body(reveal)?;
        admin.reveal(&connector, &id, &decision(&caller, &by, &reason)?).await
    };
    reply(revealed.await)
}

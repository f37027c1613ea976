//! How `backfill` reaches the backfills: over the admin endpoint of a running pipeline, or in its own process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backfill::{Backfill, Change, Request};
use crate::ops::failure::{Class, Failure};

/// Answers are numbers at hand; a start or a pause waits for the journal, and a pause for a chunk.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// How often a backfill is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A pipeline that restarts is back within this; a backfill goes on by itself then.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// Longest answer that is read: a list of as many backfills as are kept.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// One way to the backfills.
pub(super) enum Link {
    /// Of a running pipeline.
    Http {
        /// Address without a slash at its end.
        base: String,
        /// Connections to it.
        client: reqwest::Client,
    },
    /// Of this process.
    Local(Arc<Backfill>),
}

impl Link {
    pub(super) fn http(base: &str) -> Result<Link, Failure> {
        Link::patient(base, ANSWER_WITHIN)
    }

    /// As [`http`](Self::http), for answers that may take so long.
    pub(super) fn patient(base: &str, within: Duration) -> Result<Link, Failure> {
        let base = base.trim_end_matches('/').to_owned();
        let client = super::admin::client(within).map_err(|e| Failure::new("admin.unreachable", format!("{base}: {e}")))?;
        Ok(Link::Http { base, client })
    }

    pub(super) fn local(backfill: &Arc<Backfill>) -> Link {
        Link::Local(Arc::clone(backfill))
    }

    pub(super) async fn list(&self) -> Result<Value, Failure> {
        match self {
            Link::Local(backfill) => Ok(json!({"backfills": backfill.list()})),
            Link::Http { .. } => self.call("/api/backfills", None).await,
        }
    }

    pub(super) async fn show(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Link::Local(backfill) => {
                let unknown = || Failure::new("backfill.unknown", format!("there is no backfill {id}"));
                backfill.show(id).map(|v| json!(v)).ok_or_else(unknown)
            }
            Link::Http { .. } => self.call(&format!("/api/backfills/{}", plain(id)?), None).await,
        }
    }

    pub(super) async fn start(&self, request: &Request) -> Result<Value, Failure> {
        match self {
            Link::Local(backfill) => Ok(json!(backfill.start(request.clone()).await?)),
            Link::Http { .. } => self.call("/api/backfills", Some(json!(request))).await,
        }
    }

    pub(super) async fn change(&self, id: &str, what: Change, by: &str, reason: &str) -> Result<Value, Failure> {
        match self {
            Link::Local(backfill) => Ok(json!(backfill.ask(id, what, by, reason).await?)),
            Link::Http { .. } => {
                let word = match what {
                    Change::Pause => "pause",
                    Change::Resume => "resume",
                    Change::Cancel => "cancel",
                };
                self.call(&format!("/api/backfills/{}/{word}", plain(id)?), Some(json!({"by": by, "reason": reason}))).await
            }
        }
    }

    /// Any document of the admin endpoint.
    pub(super) async fn document(&self, path: &str) -> Result<Value, Failure> {
        self.call(path, None).await
    }

    /// Any request of the admin endpoint.
    pub(super) async fn post(&self, path: &str, body: Value) -> Result<Value, Failure> {
        self.call(path, Some(body)).await
    }

    /// How a backfill is a moment later. A pipeline that is away for a while is waited for.
    pub(super) async fn next(&self, id: &str) -> Result<Value, Failure> {
        let began = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.show(id).await {
                // Before its first session a process knows of no backfill.
                Err(f) if (f.class == Class::Unavailable || f.code == "backfill.unknown") && began.elapsed() < AWAY_MAX => {}
                other => return other,
            }
        }
    }

    async fn call(&self, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let Link::Http { base, client } = self else {
            return Err(Failure::new("admin.unreachable", "there is no admin endpoint"));
        };
        let url = format!("{base}{path}");
        let unreachable = |error: String| Failure::new("admin.unreachable", format!("{url}: {error}"));
        let request = match &body {
            Some(body) => client.post(&url).json(body),
            None => client.get(&url),
        };
        let mut answer = request.send().await.map_err(|e| unreachable(super::status::reason(&e)))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|e| unreachable(super::status::reason(&e)))? {
            if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(unreachable("answers more than it should".to_owned()));
            }
            bytes.extend_from_slice(&piece);
        }
        let document: Value = serde_json::from_slice(&bytes).map_err(|_| unreachable(format!("answers {status} and no JSON")))?;
        if status.is_success() {
            return Ok(document);
        }
        match (document["error"]["code"].as_str(), document["error"]["what"].as_str()) {
            (Some(code), Some(what)) => Err(Failure::new(code, what)),
            _ => Err(unreachable(format!("answers {status}"))),
        }
    }
}

/// An id as part of a path; what is none is known to nobody.
fn plain(id: &str) -> Result<&str, Failure> {
    match crate::backfill::spec::is_id(id) {
        true => Ok(id),
        false => Err(Failure::new("backfill.unknown", format!("there is no backfill {id}"))),
    }
}

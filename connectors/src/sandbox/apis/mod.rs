//! The forms in which pretend targets are spoken to, and answer. Pure.

mod generic;
mod klaviyo;
mod segment;
mod square;
mod webhook;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::book::{Book, Fate, Wish};

/// One request.
pub(super) struct Call<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

impl Call<'_> {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty())
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(self.body).ok()
    }
}

/// One answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Option<Value>,
    pub(super) retry_after: Option<String>,
}

impl Answer {
    pub(super) fn empty(status: u16) -> Answer {
        Answer { status, body: None, retry_after: None }
    }

    pub(super) fn json(status: u16, body: Value) -> Answer {
        Answer { status, body: Some(body), retry_after: None }
    }
}

/// One pretend target.
pub(super) trait Api: Sync {
    /// As it stands in the log.
    fn name(&self) -> &'static str;

    /// What a request wants done, or why it is refused before anything is looked at.
    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer>;

    /// The answer to what became of it.
    fn done(&self, wish: &Wish, fates: &[Fate], book: &mut Book) -> Answer;

    /// A failure in this target's form.
    fn error(&self, status: u16, code: &str, detail: &str) -> Answer;

    /// A failure that comes with status 200.
    fn error_200(&self, _wish: &Wish) -> Answer {
        Answer { status: 200, ..self.error(503, "service_unavailable", "not applied") }
    }
}

/// Where each one is.
pub(super) const ALL: &[(&str, &dyn Api)] = &[
    ("/http/events", &generic::Events),
    ("/http/state", &generic::Rows),
    ("/webhook", &webhook::Webhook),
    ("/klaviyo/api/events", &klaviyo::Events),
    ("/klaviyo/api/profile-import", &klaviyo::ProfileImport),
    ("/klaviyo/api/event-bulk-create-jobs", &klaviyo::BulkEvents),
    ("/segment/v1/batch", &segment::Segment),
    ("/square/v2/inventory/changes/batch-create", &square::Square),
];

/// The form of failures of targets that have none of their own.
fn plain_error(status: u16, code: &str, detail: &str) -> Answer {
    Answer::json(status, json!({ "error": { "code": code, "message": detail } }))
}

/// A text anywhere below a value.
fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The first of those fates that is among them.
fn first(fates: &[Fate], wanted: &[Fate]) -> Option<Fate> {
    wanted.iter().copied().find(|w| fates.contains(w))
}

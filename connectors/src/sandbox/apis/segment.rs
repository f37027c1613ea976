//! Segment and what speaks its form (segment-docs, HTTP API; rudder-server gateway/openapi.yaml).

use serde_json::{Value, json};

use super::{Answer, Api, Call, text};
use crate::sandbox::book::{Book, Fate, Known, Part, Wish, digest};

/// Largest request, in bytes.
const BATCH_MAX: usize = 500 << 10;
/// Largest item, in bytes.
const ITEM_MAX: usize = 32 << 10;
/// Most items.
const ITEMS_MAX: usize = 2500;

/// `POST /v1/batch`: 200 whatever becomes of the items; of items with one `messageId` the first one counts, in silence.
pub(super) struct Segment;

impl Api for Segment {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = call.json().ok_or_else(|| self.error(400, "malformed_json", "malformed JSON"))?;
        let has_key = call.header("authorization").is_some_and(|a| a.starts_with("Basic ")) || text(&value, "/writeKey").is_some();
        if !has_key {
            return Err(self.error(401, "invalid_write_key", "invalid write key"));
        }
        let items = value.get("batch").and_then(Value::as_array).ok_or_else(|| self.error(400, "no_batch", "`batch` is missing"))?;
        if call.body.len() > BATCH_MAX || items.len() > ITEMS_MAX {
            return Err(self.error(400, "too_large", "exceeds the largest batch"));
        }
        // What is not an event, or too large a one, is dropped, and nobody is told.
        let user = |item: &Value| text(item, "/userId").or_else(|| text(item, "/anonymousId")).map(str::to_owned);
        let good = items.iter().filter(|item| text(item, "/type").is_some() && item.to_string().len() <= ITEM_MAX);
        let parts = good.filter_map(|item| {
            Some(Part { key: text(item, "/messageId").map(str::to_owned), row: Some(user(item)?), state: None, body: item.clone() })
        });
        Ok(Wish { key: None, digest: digest(call.body), parts: parts.collect(), atomic: false, known: Known::FirstCounts })
    }

    fn done(&self, _wish: &Wish, _fates: &[Fate], _book: &mut Book) -> Answer {
        Answer::json(200, json!({ "success": true }))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        Answer::json(status, json!({ "success": false, "code": code, "message": detail }))
    }
}

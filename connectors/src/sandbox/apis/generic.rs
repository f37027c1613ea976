//! APIs of no vendor in particular.

use serde_json::{Value, json};

use super::{Answer, Api, Call, plain_error, text};
use crate::sandbox::book::{Book, Fate, Known, Part, Wish, digest};

/// Takes events: one under `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header: 400 without, 422 for another body, 409 while it is worked
/// on), or a list as `items`, each known by its `id` and answered for itself. Items without an id are known by the header alone, as a list.
pub(super) struct Events;

impl Api for Events {
    fn name(&self) -> &'static str {
        "http"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = call.json().ok_or_else(|| plain_error(400, "not_json", "the body is not JSON"))?;
        let header = call.header("idempotency-key").map(|key| key.trim_matches('"').to_owned());
        let id = |item: &Value| text(item, "/id").map(str::to_owned);
        let row = |item: &Value| item.get("row").or_else(|| item.get("key")).filter(|row| !row.is_null()).map(Value::to_string);
        let part = |item: &Value, key| Part { key, row: row(item), state: None, body: item.clone() };
        let digest = digest(call.body);
        let wish = match value.get("items").and_then(Value::as_array) {
            Some(items) if items.iter().all(|item| id(item).is_some()) => {
                let parts = items.iter().map(|item| part(item, id(item))).collect();
                Wish { key: None, digest, parts, atomic: false, known: Known::Compared }
            }
            Some(items) => {
                let parts = items.iter().map(|item| part(item, None)).collect();
                Wish { key: header, digest, parts, atomic: false, known: Known::Compared }
            }
            None => Wish { key: header, digest, parts: vec![part(&value, None)], atomic: false, known: Known::Compared },
        };
        if wish.key.is_none() && wish.parts.iter().any(|part| part.key.is_none()) {
            return Err(plain_error(400, "idempotency_key_missing", "Idempotency-Key is missing"));
        }
        Ok(wish)
    }

    fn done(&self, wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        let single = wish.key.is_some() && fates.len() == 1;
        if single || fates.iter().all(|fate| wish.key.is_some() && *fate == Fate::Conflict) {
            let (status, code) = said(fates.first().copied().unwrap_or(Fate::Applied));
            return match status {
                200..=299 => Answer::json(status, json!({ "status": code })),
                _ => self.error(status, code, ""),
            };
        }
        let results = wish.parts.iter().zip(fates).map(|(part, fate)| {
            let (status, code) = match fate {
                // A list's item is told that it was there: its sink can count what was repeated.
                Fate::Repeated => (409, "already_applied"),
                fate => said(*fate),
            };
            json!({ "id": part.key, "status": status, "code": code })
        });
        Answer::json(207, json!({ "results": results.collect::<Vec<_>>() }))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        plain_error(status, code, detail)
    }

    fn error_200(&self, wish: &Wish) -> Answer {
        let error = json!({ "code": "throttled" });
        match wish.parts.iter().all(|part| part.key.is_some()) {
            true => Answer::json(200, json!({ "error": error, "results": [] })),
            false => Answer::json(200, json!({ "error": error })),
        }
    }
}

fn said(fate: Fate) -> (u16, &'static str) {
    match fate {
        Fate::Applied => (202, "applied"),
        Fate::Repeated => (200, "already_applied"),
        Fate::Older => (200, "older"),
        Fate::Conflict => (422, "idempotency_key_reused"),
        Fate::Refused => (422, "refused"),
        Fate::Failed | Fate::Withheld => (503, "try_again"),
    }
}

/// Keeps rows: each item (the body, or a list as `items`) has a `row`, and a `version` if the highest is to win; else the last one does.
pub(super) struct Rows;

impl Api for Rows {
    fn name(&self) -> &'static str {
        "http-state"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = call.json().ok_or_else(|| plain_error(400, "not_json", "the body is not JSON"))?;
        let items = match value.get("items").and_then(Value::as_array) {
            Some(items) => items.clone(),
            None => vec![value],
        };
        let mut parts = Vec::with_capacity(items.len());
        for body in items {
            let row = body.get("row").filter(|row| !row.is_null()).map(Value::to_string);
            let row = row.ok_or_else(|| plain_error(400, "row_missing", "an item has no `row`"))?;
            let version = text(&body, "/version").map(str::to_owned);
            parts.push(Part { key: None, row: Some(row), state: Some(version), body });
        }
        Ok(Wish { key: None, digest: digest(call.body), parts, atomic: false, known: Known::Compared })
    }

    fn done(&self, wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        let results = wish.parts.iter().zip(fates).map(|(part, fate)| {
            let (status, code) = said(*fate);
            json!({ "id": text(&part.body, "/id"), "row": part.body.get("row"), "status": status, "code": code })
        });
        Answer::json(207, json!({ "results": results.collect::<Vec<_>>() }))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        plain_error(status, code, detail)
    }
}

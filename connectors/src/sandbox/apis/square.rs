//! Square Inventory (square/connect-api-specification, api.json of 2025-08-19).

use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::{Answer, Api, Call, first, text};
use crate::sandbox::book::{Book, Fate, Known, Part, Wish, digest};

/// Most changes of a request.
const CHANGES_MAX: usize = 100;
/// How old a change may be.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// `POST /v2/inventory/changes/batch-create`: everything or nothing, under `idempotency_key`.
pub(super) struct Square;

/// What one change says.
struct Change<'a> {
    item: &'a str,
    location: &'a str,
    quantity: Decimal,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Count { state: &'a str },
    Adjustment { from: &'a str, to: &'a str },
    Transfer { state: &'a str, to: &'a str },
}

fn change(value: &Value) -> Result<Change<'_>, (&'static str, &'static str)> {
    let (place, kind) = match text(value, "/type") {
        Some("PHYSICAL_COUNT") => ("physical_count", 0),
        Some("ADJUSTMENT") => ("adjustment", 1),
        Some("TRANSFER") => ("transfer", 2),
        _ => return Err(("INVALID_ENUM_VALUE", "changes.type")),
    };
    let body = value.get(place).ok_or(("MISSING_REQUIRED_PARAMETER", place))?;
    let need = |field: &'static str| body.get(field).and_then(Value::as_str).ok_or(("MISSING_REQUIRED_PARAMETER", field));
    let quantity = need("quantity")?.parse::<Decimal>().map_err(|_| ("INVALID_VALUE", "quantity"))?;
    if quantity.is_sign_negative() || quantity.normalize().scale() > 5 {
        return Err(("INVALID_VALUE", "quantity"));
    }
    let at: Timestamp = need("occurred_at")?.parse().map_err(|_| ("INVALID_TIME", "occurred_at"))?;
    let now = Timestamp::now();
    if at > now || now.duration_since(at).unsigned_abs() > AGE_MAX {
        return Err(("INVALID_TIME", "occurred_at"));
    }
    let location = if kind == 2 { need("from_location_id")? } else { need("location_id")? };
    let kind = match kind {
        0 => Kind::Count { state: need("state")? },
        1 => Kind::Adjustment { from: need("from_state")?, to: need("to_state")? },
        _ => Kind::Transfer { state: need("state")?, to: need("to_location_id")? },
    };
    Ok(Change { item: need("catalog_object_id")?, location, quantity, kind })
}

/// Applies a change to what is in stock and answers the counts that it touched.
fn count(change: &Change<'_>, book: &mut Book) -> Vec<Value> {
    let Change { item, location, quantity, kind } = change;
    let mut counts = Vec::new();
    let mut at = |location: &str, state: &str, how: &dyn Fn(Decimal) -> Decimal| {
        // What is sold, wasted or not there yet is not counted.
        if matches!(state, "NONE" | "SOLD" | "WASTE" | "UNLINKED_RETURN") {
            return;
        }
        let now = book.change_stock(&format!("{item} {location} {state}"), how);
        counts.push(json!({ "catalog_object_id": item, "catalog_object_type": "ITEM_VARIATION", "state": state, "location_id": location,
            "quantity": now.to_string(), "calculated_at": Timestamp::now().to_string() }));
    };
    match kind {
        Kind::Count { state } => at(location, state, &|_| *quantity),
        Kind::Adjustment { from, to } => {
            at(location, from, &|before| before - quantity);
            at(location, to, &|before| before + quantity);
        }
        Kind::Transfer { state, to } => {
            at(location, state, &|before| before - quantity);
            at(to, state, &|before| before + quantity);
        }
    }
    counts
}

fn error(status: u16, category: &str, code: &str, field: &str) -> Answer {
    Answer::json(status, json!({ "errors": [{ "category": category, "code": code, "detail": code, "field": field }] }))
}

const INVALID: &str = "INVALID_REQUEST_ERROR";

impl Api for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        if !call.header("authorization").is_some_and(|value| value.starts_with("Bearer ")) {
            return Err(error(401, "AUTHENTICATION_ERROR", "UNAUTHORIZED", ""));
        }
        let value = call.json().ok_or_else(|| error(400, INVALID, "EXPECTED_JSON_BODY", ""))?;
        let key = text(&value, "/idempotency_key").ok_or_else(|| error(400, INVALID, "MISSING_REQUIRED_PARAMETER", "idempotency_key"))?;
        if key.len() > 128 {
            return Err(error(400, INVALID, "VALUE_TOO_LONG", "idempotency_key"));
        }
        let changes = value.get("changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if changes.len() > CHANGES_MAX {
            return Err(error(400, INVALID, "ARRAY_LENGTH_TOO_LONG", "changes"));
        }
        let mut parts = Vec::with_capacity(changes.len());
        for body in changes {
            let change = change(body).map_err(|(code, field)| error(400, INVALID, code, field))?;
            let row = Some(format!("{} {}", change.item, change.location));
            parts.push(Part { key: None, row, state: None, body: body.clone() });
        }
        Ok(Wish { key: Some(key.to_owned()), digest: digest(call.body), parts, atomic: true, known: Known::Compared })
    }

    fn done(&self, wish: &Wish, fates: &[Fate], book: &mut Book) -> Answer {
        match first(fates, &[Fate::Conflict, Fate::Refused, Fate::Failed]) {
            Some(Fate::Conflict) => error(400, INVALID, "IDEMPOTENCY_KEY_REUSED", "idempotency_key"),
            Some(Fate::Refused) => error(400, INVALID, "INVALID_VALUE", "changes"),
            Some(_) => error(503, "API_ERROR", "SERVICE_UNAVAILABLE", ""),
            None => {
                let applied = wish.parts.iter().zip(fates).filter(|(_, fate)| **fate == Fate::Applied);
                let counts: Vec<Value> =
                    applied.filter_map(|(part, _)| change(&part.body).ok()).flat_map(|change| count(&change, book)).collect();
                Answer::json(200, json!({ "counts": counts, "changes": wish.parts.iter().map(|p| &p.body).collect::<Vec<_>>() }))
            }
        }
    }

    fn error(&self, status: u16, code: &str, _detail: &str) -> Answer {
        match status {
            429 => error(429, "RATE_LIMIT_ERROR", "RATE_LIMITED", ""),
            409 => error(409, INVALID, "CONFLICT", ""),
            503 => error(503, "API_ERROR", "SERVICE_UNAVAILABLE", ""),
            500.. => error(status, "API_ERROR", "INTERNAL_SERVER_ERROR", ""),
            _ => error(status, INVALID, code, ""),
        }
    }
}

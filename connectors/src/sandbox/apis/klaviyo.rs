//! Klaviyo, as its OpenAPI document of revision 2026-07-15 tells it (klaviyo/openapi, openapi/stable.json).

use serde_json::{Value, json};

use super::{Answer, Api, Call, first, text};
use crate::sandbox::book::{Book, Fate, Known, Part, Wish, digest};

/// JSON:API errors.
fn error(status: u16, code: &str, detail: &str) -> Answer {
    let error = json!({ "id": "00000000-0000-0000-0000-000000000000", "status": status, "code": code, "title": code, "detail": detail,
        "source": {"pointer": "/data"} });
    Answer::json(status, json!({ "errors": [error] }))
}

/// Credentials, revision and a body of the type.
fn read(call: &Call<'_>, kind: &str) -> Result<Value, Answer> {
    if !call.header("authorization").is_some_and(|value| value.starts_with("Klaviyo-API-Key ")) {
        return Err(error(401, "not_authenticated", "Authentication credentials were not provided."));
    }
    if call.header("revision").is_none_or(|revision| revision.len() != "2026-07-15".len()) {
        return Err(error(400, "invalid", "The revision header is missing."));
    }
    let value = call.json().ok_or_else(|| error(400, "invalid", "Invalid JSON."))?;
    match text(&value, "/data/type") {
        Some(found) if found == kind => Ok(value),
        _ => Err(error(400, "invalid", "Invalid input.")),
    }
}

/// Who a profile is: one of its identifiers.
fn profile(attributes: &Value) -> Option<String> {
    ["external_id", "email", "phone_number", "id"].iter().find_map(|name| text(attributes, &format!("/{name}"))).map(str::to_owned)
}

/// An event is known by profile, metric and `unique_id`; without one, by the second of its time.
fn event(attributes: &Value, profile: &str) -> Option<Part> {
    let metric = text(attributes, "/metric/data/attributes/name")?;
    let time = || text(attributes, "/time").map(|time| time.split('.').next().unwrap_or(time).to_owned());
    let unique = text(attributes, "/unique_id").map(str::to_owned).or_else(time)?;
    let key = Some(format!("{profile} {metric} {unique}"));
    Some(Part { key, row: Some(profile.to_owned()), state: None, body: attributes.clone() })
}

fn answer(fates: &[Fate], good: Answer) -> Answer {
    match first(fates, &[Fate::Conflict, Fate::Refused, Fate::Failed]) {
        Some(Fate::Conflict) => error(400, "duplicate_unique_id", "A unique_id was used before; no events were processed."),
        Some(Fate::Refused) => error(400, "invalid", "refused"),
        Some(_) => error(503, "service_unavailable", "try again"),
        None => good,
    }
}

/// `POST /api/events`: 202; of events with one `unique_id` the first one counts, in silence.
pub(super) struct Events;

impl Api for Events {
    fn name(&self) -> &'static str {
        "klaviyo"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = read(call, "event")?;
        let part = value.pointer("/data/attributes").and_then(|attributes| {
            let profile = profile(attributes.pointer("/profile/data/attributes")?)?;
            event(attributes, &profile)
        });
        let part = part.ok_or_else(|| error(400, "invalid", "profile, metric or time is missing"))?;
        Ok(Wish { key: None, digest: digest(call.body), parts: vec![part], atomic: true, known: Known::FirstCounts })
    }

    fn done(&self, _wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        answer(fates, Answer::empty(202))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        error(status, code, detail)
    }
}

/// `POST /api/profile-import`: 201 for a new profile, 200 for one that is there; what comes last counts.
pub(super) struct ProfileImport;

impl Api for ProfileImport {
    fn name(&self) -> &'static str {
        "klaviyo-profile"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = read(call, "profile")?;
        let attributes = value.pointer("/data/attributes").cloned().unwrap_or_default();
        let row = profile(&attributes).ok_or_else(|| error(400, "invalid", "the profile has no identifier"))?;
        let part = Part { key: None, row: Some(row), state: Some(None), body: attributes };
        Ok(Wish { key: None, digest: digest(call.body), parts: vec![part], atomic: true, known: Known::Compared })
    }

    fn done(&self, wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        let status = if fates.contains(&Fate::Applied) { 201 } else { 200 };
        let id = wish.parts.first().and_then(|part| part.row.as_deref()).unwrap_or_default();
        let data = json!({ "type": "profile", "id": id, "attributes": wish.parts.first().map(|part| &part.body) });
        answer(fates, Answer::json(status, json!({ "data": data })))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        error(status, code, detail)
    }
}

/// `POST /api/event-bulk-create-jobs`: 202; with one `unique_id` that was used before nothing of the job is processed.
pub(super) struct BulkEvents;

impl Api for BulkEvents {
    fn name(&self) -> &'static str {
        // The ids are those of single events.
        "klaviyo"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let value = read(call, "event-bulk-create-job")?;
        let invalid = || error(400, "invalid", "the job holds no events");
        let profiles = value.pointer("/data/attributes/events-bulk-create/data").and_then(Value::as_array).ok_or_else(invalid)?;
        let mut parts = Vec::new();
        for of_profile in profiles {
            let name = of_profile.pointer("/attributes/profile/data/attributes").and_then(profile).ok_or_else(invalid)?;
            for one in of_profile.pointer("/attributes/events/data").and_then(Value::as_array).ok_or_else(invalid)? {
                parts.push(one.get("attributes").and_then(|attributes| event(attributes, &name)).ok_or_else(invalid)?);
            }
        }
        if parts.len() > 1000 {
            return Err(error(400, "invalid", "at most 1000 events"));
        }
        Ok(Wish { key: None, digest: digest(call.body), parts, atomic: true, known: Known::Refused })
    }

    fn done(&self, _wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        answer(fates, Answer::empty(202))
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        error(status, code, detail)
    }
}

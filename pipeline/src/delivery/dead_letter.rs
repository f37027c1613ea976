//! Dead letters as an operator sees them: grouped, shown with their values masked, and asked for again.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tillstream_connectors::sink::Item;

use super::DeliveryError;
use super::preview::{Preview, Verdict};
use super::shape::Shapes;
use crate::config::Connector;
use crate::control::{ControlError, DeadLetter, DeadLetterSettled, Letter, Record, RedriveRequested, Settled, State, Writer, now_ms};
use crate::journal::Journal;

/// Dead letters of one connector with one code, of one field where the message names one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// The connector.
    pub connector: String,
    /// The code of the refusal.
    pub code: String,
    /// What the message begins with in backquotes: the leaf of a map, or what the target objected to.
    pub field: Option<String>,
    /// How many.
    pub count: usize,
    /// How many of them wait for a redrive that was asked for.
    pub redrive_requested: usize,
    /// First attempt of the oldest, milliseconds since the Unix epoch.
    pub first_at_ms: i64,
    /// Last attempt of the newest.
    pub last_at_ms: i64,
    /// Id of one of them, to look at.
    pub example: String,
    /// What the target said of that one, without values.
    pub message: String,
}

/// Which dead letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this connector only.
    pub connector: Option<String>,
    /// Refused with this code only.
    pub code: Option<String>,
    /// Only these events; empty means all.
    pub event_ids: Vec<String>,
}

impl Wanted {
    fn has(&self, letter: &DeadLetter) -> bool {
        self.connector.as_ref().is_none_or(|c| *c == letter.connector)
            && self.code.as_ref().is_none_or(|c| *c == letter.code)
            && (self.event_ids.is_empty() || self.event_ids.contains(&letter.event_id))
    }
}

/// The open dead letters that are meant, oldest first.
#[must_use]
pub fn select<'a>(state: &'a State, wanted: &Wanted) -> Vec<&'a Letter> {
    let mut letters: Vec<&Letter> = state.dead_letters().filter(|l| wanted.has(&l.letter)).collect();
    letters.sort_by_key(|l| (l.letter.first_at_ms, l.letter.version));
    letters
}

/// The field that a message is about: what it begins with in backquotes.
fn field(message: &str) -> Option<String> {
    let (field, _) = message.strip_prefix('`')?.split_once('`')?;
    Some(field.to_owned())
}

/// Groups by connector, code and field.
#[must_use]
pub fn list(state: &State, wanted: &Wanted) -> Vec<Group> {
    let mut groups: BTreeMap<(String, String, Option<String>), Group> = BTreeMap::new();
    for Letter { letter, redrive_requested } in select(state, wanted) {
        let key = (letter.connector.clone(), letter.code.clone(), field(&letter.message));
        let group = groups.entry(key).or_insert_with(|| Group {
            connector: letter.connector.clone(),
            code: letter.code.clone(),
            field: field(&letter.message),
            count: 0,
            redrive_requested: 0,
            first_at_ms: letter.first_at_ms,
            last_at_ms: letter.last_at_ms,
            example: letter.event_id.clone(),
            message: letter.message.clone(),
        });
        group.count += 1;
        group.redrive_requested += usize::from(*redrive_requested);
        group.first_at_ms = group.first_at_ms.min(letter.first_at_ms);
        group.last_at_ms = group.last_at_ms.max(letter.last_at_ms);
    }
    groups.into_values().collect()
}

/// One dead letter in full. Values of rows are replaced by their type and length unless `unmask` is set: whoever
/// looks for the reason of a refusal seldom needs a guest's name.
#[must_use]
pub fn show(letter: &Letter, unmask: bool) -> Value {
    let DeadLetter { connector, partition, offset, event_id, event, code, message, attempts, .. } = &*letter.letter;
    let body = match event.bytes().map(|b| serde_json::from_slice::<Value>(&b)) {
        Some(Ok(body)) if unmask => body,
        Some(Ok(body)) => mask(body),
        Some(Err(_)) => Value::String("not JSON".into()),
        None => Value::String("not stored: above the size limit".into()),
    };
    serde_json::json!({
        "connector": connector,
        "partition": partition,
        "offset": offset.0,
        "event_id": event_id,
        "code": code,
        "message": message,
        "attempts": attempts,
        "first_at_ms": letter.letter.first_at_ms,
        "last_at_ms": letter.letter.last_at_ms,
        "idempotency_key": letter.letter.idempotency_key,
        "version": letter.letter.version.to_string(),
        "redrive_requested": letter.redrive_requested,
        "event": body,
    })
}

/// Masks the rows of an event; everything else tells where it came from and stays.
fn mask(event: Value) -> Value {
    let Value::Object(fields) = event else { return masked(&event) };
    let fields = fields.into_iter().map(|(name, value)| match name.as_str() {
        "key" | "before" | "after" => (name, row(value)),
        "content" => (name, masked(&value)),
        "events" => match value {
            Value::Array(events) => (name, Value::Array(events.into_iter().map(mask).collect())),
            other => (name, masked(&other)),
        },
        _ => (name, value),
    });
    Value::Object(fields.collect())
}

fn row(value: Value) -> Value {
    match value {
        Value::Object(columns) => Value::Object(columns.into_iter().map(|(name, value)| (name, masked(&value))).collect::<Map<_, _>>()),
        Value::Null => Value::Null,
        other => masked(&other),
    }
}

fn masked(value: &Value) -> Value {
    Value::String(match value {
        Value::Null => return Value::Null,
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(s) => format!("string of {} characters", s.chars().count()),
        Value::Array(a) => format!("array of {} elements", a.len()),
        Value::Object(o) => format!("object of {} fields", o.len()),
    })
}

/// Asks for a redrive of every dead letter that is meant and answers how many there are. The process that delivers
/// the connector (or the next one that does) sends them again, under the key and version they had.
///
/// # Errors
/// Those of the control journal.
pub async fn redrive(writer: &mut Writer, state: &State, wanted: &Wanted, by: &str) -> Result<usize, ControlError> {
    let mut by_connector: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for letter in select(state, wanted) {
        by_connector.entry(&letter.letter.connector).or_default().push(letter.letter.event_id.clone());
    }
    let mut count = 0;
    for (connector, event_ids) in by_connector {
        count += event_ids.len();
        // Named one by one: what is refused after the operator looked is not meant.
        let request = RedriveRequested { connector: connector.to_owned(), event_ids, code: None, by: by.to_owned(), at_ms: now_ms() };
        writer.store_proven(&Record::RedriveRequested(request)).await?;
    }
    Ok(count)
}

/// Settles every dead letter that is meant without delivering it, for this reason, and answers how many there are.
///
/// # Errors
/// Those of the control journal.
pub async fn discard(writer: &mut Writer, state: &State, wanted: &Wanted, reason: &str, by: &str) -> Result<usize, ControlError> {
    let letters = select(state, wanted);
    for letter in &letters {
        let settled = DeadLetterSettled {
            connector: letter.letter.connector.clone(),
            event_id: letter.letter.event_id.clone(),
            how: Settled::Discarded,
            reason: reason.to_owned(),
            by: by.to_owned(),
            at_ms: now_ms(),
        };
        writer.store_proven(&Record::DeadLetterSettled(settled)).await?;
    }
    Ok(letters.len())
}

/// What would become of dead letters if they were redriven now, as far as the connector's file tells; what the target would say it cannot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Diagnosis {
    /// The connector.
    pub connector: String,
    /// The code of the refusal.
    pub code: String,
    /// Could be sent.
    pub sent: usize,
    /// The connector's `when` does not want them any more: a redrive settles them without a call.
    pub filtered: usize,
    /// Still cannot be mapped.
    pub fails: usize,
    /// The connector does not take this table or operation any more, or is not part of the pipeline.
    pub not_taken: usize,
    /// Why one of those fails that do, without values.
    pub example: Option<String>,
}

/// Tries the present files on the dead letters that are meant, and sends nothing. What the files look up is read from the journal, as it is now.
///
/// # Errors
/// Those of the journal, and rows that take too much memory.
pub async fn diagnose(
    state: &State,
    wanted: &Wanted,
    connectors: &[Connector],
    source: &str,
    journal: &dyn Journal,
) -> Result<Vec<Diagnosis>, DeliveryError> {
    let mut previews: BTreeMap<(&str, u16), Preview> = BTreeMap::new();
    let mut shapes: BTreeMap<&str, Shapes> = BTreeMap::new();
    for Letter { letter, .. } in select(state, wanted) {
        let key = (letter.connector.as_str(), letter.partition);
        let connector = connectors.iter().find(|c| c.name == letter.connector);
        if let (Some(connector), false) = (connector, previews.contains_key(&key)) {
            let preview = Preview::new(connector, source);
            preview.restore(journal, letter.partition).await?;
            previews.insert(key, preview);
            shapes.insert(key.0, Shapes::new(connector));
        }
    }
    let mut groups: BTreeMap<(&str, &str), Diagnosis> = BTreeMap::new();
    for Letter { letter, .. } in select(state, wanted) {
        let (connector, code) = (letter.connector.as_str(), letter.code.as_str());
        let group = groups.entry((connector, code)).or_insert_with(|| Diagnosis {
            connector: connector.to_owned(),
            code: code.to_owned(),
            sent: 0,
            filtered: 0,
            fails: 0,
            not_taken: 0,
            example: None,
        });
        match previews.get(&(connector, letter.partition)).map(|preview| preview.again(letter)) {
            None | Some(Verdict::NotTaken) => group.not_taken += 1,
            Some(Verdict::Filtered) => group.filtered += 1,
            Some(Verdict::Sent(items)) => {
                let misses = |item: &Item| Some(shapes.get(connector)?.cause_again(&item.event, false, state)?.what);
                match items.into_iter().find_map(|item| misses(&item).or(item.mapped.and_then(Result::err).map(|reason| reason.message))) {
                    Some(why) => {
                        group.fails += 1;
                        group.example.get_or_insert(why);
                    }
                    None => group.sent += 1,
                }
            }
        }
    }
    Ok(groups.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_masked_and_the_envelope_is_not() {
        let event = serde_json::json!({
            "id": "e1-0/1-0", "op": "update", "schema": "public", "table": "customer",
            "key": {"id": 7}, "before": null, "after": {"id": 7, "name": "Ada", "consent": {"mail": true}, "tags": ["a"], "phone": null},
        });
        let group = mask(serde_json::json!({"events": [event.clone()]})).to_string();
        assert!(group.contains("string of 3 characters") && !group.contains("Ada"), "{group}");
        let shown = mask(event).to_string();
        assert!(shown.contains("\"name\":\"string of 3 characters\"") && shown.contains("\"table\":\"customer\""));
        assert!(!shown.contains("Ada") && !shown.contains("mail") && !shown.contains('7'));
    }
}

//! A dead letter whose row is mended by hand: other values in its event, under the same id, key and version.

use serde_json::Value;
use tillstream_schemas::Event;

use crate::control::{Audit, ControlError, DeadLetter, Record, Writer, now_ms};

/// Another value for one column of a dead letter's row.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// Where, as `after.tier` or `events.0.after.tier`.
    pub path: String,
    /// The value in the event's JSON.
    pub value: Value,
}

/// Never shows the value.
impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why a dead letter cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The event is not stored with it, or is no event.
    #[error("the dead letter of {0} holds no event")]
    NoEvent(String),
    /// What a path names is no column of a row that is there.
    #[error("`{0}` names no column of a row that the event has: write `after.COLUMN` or `before.COLUMN`")]
    NoRow(String),
    /// With these values it is no event any more.
    #[error("with these values it is no event: {0}")]
    Broken(String),
}

/// The dead letter with other values. Id, key, table, operation and position cannot be changed: a redrive is the same effect.
///
/// # Errors
/// What keeps a change from being made; then none is.
pub fn edited(letter: &DeadLetter, changes: &[Change]) -> Result<DeadLetter, EditError> {
    let none = || EditError::NoEvent(letter.event_id.clone());
    let mut event: Value = letter.event.bytes().and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(none)?;
    for change in changes {
        let refused = || EditError::NoRow(change.path.clone());
        let (row, column) = change.path.rsplit_once('.').ok_or_else(refused)?;
        let pointer = match row.split('.').collect::<Vec<_>>().as_slice() {
            [row @ ("after" | "before")] => format!("/{row}"),
            ["events", n, row @ ("after" | "before")] => format!("/events/{n}/{row}"),
            _ => return Err(refused()),
        };
        let row = event.pointer_mut(&pointer).and_then(Value::as_object_mut).ok_or_else(refused)?;
        row.insert(column.to_owned(), change.value.clone());
    }
    let bytes = event.to_string();
    Event::parse(bytes.clone().into()).map_err(|error| EditError::Broken(error.to_string()))?;
    Ok(DeadLetter { event: crate::control::Body::new(bytes.as_bytes()), ..letter.clone() })
}

/// Stores an edited dead letter in place of the one there is, and who changed which columns and why; never a value.
///
/// # Errors
/// Those of the control journal.
pub async fn store(writer: &mut Writer, letter: DeadLetter, changes: &[Change], reason: &str, by: &str) -> Result<(), ControlError> {
    let columns: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    let what = format!("dead letter {} of connector {}: edited {}", letter.event_id, letter.connector, columns.join(", "));
    let audit = Audit { who: by.to_owned(), what, why: reason.to_owned(), at_ms: now_ms() };
    writer.store_proven(&Record::Audit(audit)).await?;
    writer.store_proven(&Record::DeadLetter(letter)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Body;
    use crate::journal::Offset;
    use serde_json::json;
    use tillstream_schemas::Position;

    fn letter() -> DeadLetter {
        let event = json!({
            "id": "e1-0/1-0", "op": "update", "schema": "public", "table": "customer", "key": {"id": 7}, "before": null,
            "after": {"id": 7, "tier": "gol"}, "unchanged": [], "commit_lsn": "0/1", "ordinal": 0, "xid": 1, "committed_at": "2026-11-22T10:00:00.000000Z",
        });
        DeadLetter {
            connector: "crm".into(),
            partition: 0,
            offset: Offset(3),
            event_id: "e1-0/1-0".into(),
            event: Body::new(event.to_string().as_bytes()),
            code: "http.status_422".into(),
            message: "tier".into(),
            attempts: 1,
            first_at_ms: 1,
            last_at_ms: 1,
            idempotency_key: "k".into(),
            version: Position::NONE,
        }
    }

    #[test]
    fn values_of_a_row_change_and_nothing_else_can() {
        let change = |path: &str| Change { path: path.to_owned(), value: json!("gold") };
        let after = edited(&letter(), &[change("after.tier")]).expect("changes");
        let event: Value = serde_json::from_slice(&after.event.bytes().expect("stored")).expect("JSON");
        assert_eq!((&event["after"]["tier"], &event["id"], after.idempotency_key.as_str()), (&json!("gold"), &json!("e1-0/1-0"), "k"));
        for path in ["id", "key.id", "before.tier", "commit_lsn", "after", "events.0.after.tier", "after.tier.x"] {
            assert!(matches!(edited(&letter(), &[change(path)]), Err(EditError::NoRow(_))), "{path}");
        }
        assert!(!format!("{:?}", change("after.tier")).contains("gold"));
    }
}

//! What a target would be sent of one event, told without sending it: for previews.

use serde_json::{Value, json};

use crate::sink::Reason;

/// A request, or whatever a target takes, for one event alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What is done there, as `POST` or `upsert`.
    pub method: String,
    /// Where: a URL, a table, a file.
    pub to: Text,
    /// Headers by their names.
    pub headers: Vec<(String, Text)>,
    /// What is sent: its JSON, or a text that is none.
    pub body: Value,
    /// Whether all that the body holds of the row comes from the connector's `map`; else a sink's own words hold values too.
    pub is_of_map: bool,
}

/// A text of a request, by who may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// It depends on the configuration alone.
    Fixed(String),
    /// It holds, or may hold, values of the row.
    OfRow(String),
    /// Nobody is shown it.
    Secret,
    /// It is another one on every attempt, as a signature.
    OfAttempt,
}

/// Why nothing would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unshown {
    /// The event would become a dead letter.
    Refused(Reason),
    /// The connector would stop.
    Stops(Reason),
}

/// The form of a JSON value: names stay, values become the names of their types.
#[must_use]
pub fn masked(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(_) => json!("boolean"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        Value::Array(items) => items.iter().map(masked).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), masked(value))).collect(),
    }
}

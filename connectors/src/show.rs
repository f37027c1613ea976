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

/// Another value of the same form: other digits, another moment, another letter. Null stays.
#[must_use]
pub fn disguised(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(is) => (!is).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => json!(if whole == 1 { 2 } else { 1 }),
            (None, Some(1.5)) => json!(2.5),
            _ => json!(1.5),
        },
        Value::String(text) => other_text(text).into(),
        Value::Array(items) => items.iter().map(disguised).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), disguised(value))).collect(),
    }
}

fn other_text(text: &str) -> String {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        // Whoever wants a moment wants none of the future.
        return moment.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string();
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b"-.".contains(&b)) {
        let other = |digit: char| digit.to_digit(10).map_or(digit, |n| char::from(b'1' + u8::try_from((n + 1) % 9).unwrap_or(0)));
        return text.chars().map(other).collect();
    }
    let mut letters: Vec<char> = text.chars().collect();
    match letters.last_mut() {
        Some(last) => *last = if *last == 'x' { 'y' } else { 'x' },
        None => letters.push('x'),
    }
    letters.into_iter().collect()
}

/// What two makings have in common; where they differ, the form of the first.
#[must_use]
pub fn common(made: &Value, other: &Value) -> Value {
    match (made, other) {
        (made, other) if made == other => made.clone(),
        (Value::Object(fields), Value::Object(others)) => {
            let field =
                |(name, value): (&String, &Value)| (name.clone(), others.get(name).map_or_else(|| masked(value), |o| common(value, o)));
            Value::Object(fields.iter().map(field).collect())
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            items.iter().zip(others).map(|(item, other)| common(item, other)).collect()
        }
        (made, _) => masked(made),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disguise_has_the_form_and_never_the_value() {
        let forms =
            json!([true, 1, 2, -7, 1.5, 2.5, "", "x", "Ann", "ann@example.com", "0", "19.95", "-3", "2026-11-23T05:00:00Z", {"a": [0]}]);
        for value in forms.as_array().expect("a list") {
            let other = disguised(value);
            assert!(other != *value && masked(&other) == masked(value), "{value} became {other}");
            assert_eq!(common(value, &other), masked(value), "{value}");
        }
        assert_eq!(disguised(&json!("2026-11-23T05:00:00Z")), "2026-11-23T04:59:59Z");
        assert!(disguised(&json!("19.95")).as_str().is_some_and(|text| text.parse::<f64>().is_ok()));
    }

    #[test]
    fn what_is_common_is_kept() {
        let (made, other) = (json!({"a": "x", "b": [1, "same"], "c": null}), json!({"a": "y", "b": [2, "same"], "c": null}));
        assert_eq!(common(&made, &other), json!({"a": "text", "b": ["number", "same"], "c": null}));
    }
}

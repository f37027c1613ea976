//! A value of an event as the text that PostgreSQL casts to the column's type.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

/// How a target column takes its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The value's text.
    Text,
    /// The JSON itself.
    Json,
    /// Base64 becomes hexadecimal.
    Bytes,
    /// A JSON array becomes an array literal; of bytea elements likewise.
    Array {
        /// Whether the elements are json or jsonb.
        json: bool,
        /// Whether they are bytea.
        bytes: bool,
    },
}

/// The text for a raw JSON value; `None` is NULL. `Err` names what does not fit, without the value.
pub(super) fn text(raw: &str, form: Form) -> Result<Option<Cow<'_, str>>, &'static str> {
    if raw == "null" {
        return Ok(None);
    }
    match form {
        Form::Json => Ok(Some(Cow::Borrowed(raw))),
        Form::Text => plain(raw).map(Some),
        Form::Bytes => bytes(raw).map(|text| Some(Cow::Owned(text))),
        Form::Array { json, bytes } => match serde_json::from_str::<Value>(raw) {
            Ok(Value::Array(items)) => {
                let mut out = String::with_capacity(raw.len() + 8);
                array(&items, Elements { json, bytes }, &mut out)?;
                Ok(Some(Cow::Owned(out)))
            }
            // A source column of type text may hold an array literal.
            Ok(Value::String(text)) => Ok(Some(Cow::Owned(text))),
            _ => Err("not an array"),
        },
    }
}

fn plain(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    if !raw.starts_with('"') {
        // Numbers, booleans, and documents for a text column, as they stand.
        return Ok(Cow::Borrowed(raw));
    }
    match raw.get(1..raw.len() - 1) {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|_| "not a text"),
    }
}

fn bytes(raw: &str) -> Result<String, &'static str> {
    let encoded = plain(raw)?;
    hex(&encoded)
}

fn hex(encoded: &str) -> Result<String, &'static str> {
    let bytes = BASE64.decode(encoded).map_err(|_| "not base64")?;
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    Ok(text)
}

#[derive(Clone, Copy)]
struct Elements {
    json: bool,
    bytes: bool,
}

fn array(items: &[Value], elements: Elements, out: &mut String) -> Result<(), &'static str> {
    out.push('{');
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        match item {
            Value::Null => out.push_str("NULL"),
            Value::Array(inner) if !elements.json => array(inner, elements, out)?,
            Value::String(text) if elements.bytes => quote(&hex(text)?, out),
            Value::String(text) if !elements.json => quote(text, out),
            other => quote(&other.to_string(), out),
        }
    }
    out.push('}');
    Ok(())
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_text_their_column_takes() {
        let array = Form::Array { json: false, bytes: false };
        for (raw, form, expected) in [
            ("null", Form::Text, None),
            ("12.50", Form::Text, Some("12.50")),
            ("true", Form::Text, Some("true")),
            (r#""a\"b\u00e9""#, Form::Text, Some("a\"bé")),
            (r#"{"a": [1]}"#, Form::Text, Some(r#"{"a": [1]}"#)),
            (r#"{"a": 1.10}"#, Form::Json, Some(r#"{"a": 1.10}"#)),
            (r#""text""#, Form::Json, Some(r#""text""#)),
            (r#""AAH/""#, Form::Bytes, Some("\\x0001ff")),
            (r#"["a","b\"c",null,""]"#, array, Some(r#"{"a","b\"c",NULL,""}"#)),
            ("[[1,2],[3,4]]", array, Some(r#"{{"1","2"},{"3","4"}}"#)),
            ("[]", array, Some("{}")),
            (r#"[{"a":"x"},[1]]"#, Form::Array { json: true, bytes: false }, Some(r#"{"{\"a\":\"x\"}","[1]"}"#)),
            (r#"["AAH/"]"#, Form::Array { json: false, bytes: true }, Some(r#"{"\\x0001ff"}"#)),
        ] {
            assert_eq!(text(raw, form), Ok(expected.map(Cow::from)), "{raw}");
        }
        assert!(text(r#""!""#, Form::Bytes).is_err());
        assert!(text("7", array).is_err());
    }
}

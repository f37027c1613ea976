//! A value of an event as the text from which a database makes the column's value.

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
    /// Base64, which the statement takes apart.
    Base64,
    /// A column of numbers that takes truth values as 1 and 0.
    Number,
    /// As [`Form::Number`], and nothing but whole numbers: of a key that is looked up as one.
    Whole,
    /// As [`Form::Number`], of a column that keeps fifteen digits of what is no whole number of 64 bits.
    Rounded,
    /// A moment in UTC, without the letters that RFC 3339 puts into it.
    Moment,
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
        Form::Base64 => {
            let text = plain(raw)?;
            BASE64.decode(text.as_bytes()).map_err(|_| "not base64")?;
            Ok(Some(text))
        }
        Form::Number => number(raw).map(Some),
        Form::Whole => {
            let text = number(raw)?;
            if text.parse::<i128>().is_err() { Err("not a whole number") } else { Ok(Some(text)) }
        }
        Form::Rounded => {
            let text = number(raw)?;
            if is_kept(&text) { Ok(Some(text)) } else { Err("the column would round it: declare it as TEXT") }
        }
        Form::Moment => moment(plain(raw)?).map(Some),
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

fn number(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    match raw {
        "true" => Ok(Cow::Borrowed("1")),
        "false" => Ok(Cow::Borrowed("0")),
        _ => plain(raw),
    }
}

/// Whether SQLite's columns of numbers keep it: a whole number of 64 bits, at most fifteen digits, or no number at all.
fn is_kept(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|b| *b == b'0').count();
    digits <= 15 || text.parse::<i64>().is_ok() || text.parse::<f64>().is_err()
}

/// `2026-11-22T10:00:00.5Z` as `2026-11-22 10:00:00.5`, in UTC whatever the offset; other texts as they stand.
fn moment(text: Cow<'_, str>) -> Result<Cow<'_, str>, &'static str> {
    let Some((date, time)) = text.split_once('T') else { return Ok(text) };
    if let Some(time) = time.strip_suffix('Z') {
        return Ok(Cow::Owned(format!("{date} {time}")));
    }
    if !time.contains(['+', '-']) {
        return Ok(Cow::Owned(format!("{date} {time}")));
    }
    let moment: jiff::Timestamp = text.parse().map_err(|_| "not a moment")?;
    Ok(Cow::Owned(jiff::tz::Offset::UTC.to_datetime(moment).strftime("%Y-%m-%d %H:%M:%S%.f").to_string()))
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
        for (raw, form, expected) in [
            ("true", Form::Number, "1"),
            ("false", Form::Whole, "0"),
            ("-12", Form::Whole, "-12"),
            (r#""AAH/""#, Form::Base64, "AAH/"),
            (r#""123456789012.345""#, Form::Rounded, "123456789012.345"),
            ("9223372036854775807", Form::Rounded, "9223372036854775807"),
            (r#""2026-11-22T10:00:00.123456Z""#, Form::Moment, "2026-11-22 10:00:00.123456"),
            (r#""2026-11-22T10:00:00""#, Form::Moment, "2026-11-22 10:00:00"),
            (r#""2026-11-22T10:00:00.5+02:00""#, Form::Moment, "2026-11-22 08:00:00.5"),
            (r#""2026-11-22""#, Form::Moment, "2026-11-22"),
        ] {
            assert_eq!(text(raw, form), Ok(Some(expected.into())), "{raw}");
        }
        assert!(text(r#""123456789012.3456""#, Form::Rounded).is_err());
        assert!(text(r#""1a""#, Form::Whole).is_err());
        assert!(text(r#""!""#, Form::Base64).is_err());
        assert!(text(r#""!""#, Form::Bytes).is_err());
        assert!(text("7", array).is_err());
    }
}

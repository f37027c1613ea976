//! An event's body with one field more, or with another value for one: everything else stays byte for byte.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::envelope::EventError;

/// The body with the field `name` (which needs no escaping) holding `value`, which has to be JSON: in its place when it is there, else at the end.
///
/// # Errors
/// The body is no JSON object.
pub fn with_field(body: &[u8], name: &str, value: &str) -> Result<Vec<u8>, EventError> {
    let malformed = |e: serde_json::Error| EventError::Malformed { line: e.line(), column: e.column() };
    let text = std::str::from_utf8(body).map_err(|_| EventError::Encoding)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let fields = reader.deserialize_map(Fields).map_err(malformed)?;
    let mut out = Vec::with_capacity(body.len() + name.len() + value.len() + 4);
    let mut there = false;
    let put = |out: &mut Vec<u8>, field: &str, value: &str| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        // A text is written as it was read: nothing can go wrong in memory.
        let _ = serde_json::to_writer(&mut *out, field);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    };
    for (field, was) in &fields {
        let is_it = field == name;
        there |= is_it;
        put(&mut out, field, if is_it { value } else { was.get() });
    }
    if !there {
        put(&mut out, name, value);
    }
    out.push(b'}');
    Ok(out)
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_replaced_in_its_place_or_added_and_nothing_else_changes() {
        let body = br#"{"id": "a", "before":null,"after":{"n":1.50,"big":123456789012345678901234567890,"\u00e9":"\u00e9"}}"#;
        let with = |name, value| String::from_utf8(with_field(body, name, value).expect("an object")).expect("UTF-8");
        assert_eq!(
            with("before", r#"{"n":1}"#),
            r#"{"id":"a","before":{"n":1},"after":{"n":1.50,"big":123456789012345678901234567890,"\u00e9":"\u00e9"}}"#
        );
        assert!(with("events", "[1]").ends_with(r#"},"events":[1]}"#));
        assert_eq!(with_field(b"{}", "a", "1").expect("an object"), br#"{"a":1}"#);
        assert!(with_field(b"[1]", "a", "1").is_err() && with_field(b"{\"a\"", "a", "1").is_err());
    }
}

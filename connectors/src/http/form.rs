//! JSON as `application/x-www-form-urlencoded`, with brackets for what is nested: `{"a": {"b": [1]}}` is `a[b][0]=1`. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

pub(crate) const CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// What stands for itself in a path, a query and a form alike (RFC 3986, 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encoded, so that it is one segment of a path, or one value, whatever it holds.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// The fields of an object. Null says that there is no such field.
pub(crate) fn fields(value: &Value) -> String {
    let mut pairs = Vec::new();
    add("", value, &mut pairs);
    pairs.join("&")
}

fn add(name: &str, value: &Value, pairs: &mut Vec<String>) {
    let within = |key: &str| if name.is_empty() { encode(key) } else { format!("{name}[{}]", encode(key)) };
    match value {
        Value::Null => {}
        Value::Object(fields) => fields.iter().for_each(|(key, value)| add(&within(key), value, pairs)),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, value)| add(&within(&n.to_string()), value, pairs)),
        Value::String(text) => pairs.push(format!("{name}={}", encode(text))),
        Value::Bool(_) | Value::Number(_) => pairs.push(format!("{name}={value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_nested_stands_in_brackets() {
        let value = json!({"id": 7, "name": "Zoë & co", "none": null, "lines": [{"qty": 2.5}, {"ok": true}], "a=b": ""});
        assert_eq!(fields(&value), "id=7&name=Zo%C3%AB%20%26%20co&lines[0][qty]=2.5&lines[1][ok]=true&a%3Db=");
    }
}

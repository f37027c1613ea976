//! References inside values: `${env:NAME}` and `${file:PATH}`. What they yield is secret: it is never printed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Longest file a reference may name: secrets and URLs are short.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Looks up environment variables; tests pass their own.
pub(crate) type Environment<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// Why a reference yields nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReferenceError {
    /// `${…}` of an unknown form.
    Form(String),
    /// The variable or file is not there; the text says which and why.
    Missing(String),
}

/// A text without references.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) text: String,
    /// What each reference yielded.
    pub(crate) yielded: Vec<String>,
}

/// What references of a file yielded, to be kept out of whatever is shown.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[String]>);

/// Shows how many there are.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// Shorter ones are ports, numbers and words: hiding them would garble what is shown and hide nothing.
const SECRET_LEN_MIN: usize = 6;

impl Secrets {
    pub(crate) fn new(mut yielded: Vec<String>) -> Secrets {
        yielded.retain(|secret| secret.len() >= SECRET_LEN_MIN);
        // One may hold another.
        yielded.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        yielded.dedup();
        Secrets(yielded.into())
    }

    /// The text with stars where one of them stands, also as it would stand in a URL.
    #[must_use]
    pub fn hide(&self, text: &str) -> String {
        let mut hidden = text.to_owned();
        for secret in self.0.iter() {
            for form in [secret.clone(), in_url(secret)] {
                if hidden.contains(&form) {
                    hidden = hidden.replace(&form, "***");
                }
            }
        }
        hidden
    }

    /// The same in every text of a JSON value.
    #[must_use]
    pub fn hide_in(&self, value: &serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(text) => self.hide(text).into(),
            Value::Array(items) => items.iter().map(|item| self.hide_in(item)).collect(),
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), self.hide_in(value))).collect(),
            other => other.clone(),
        }
    }
}

/// As a URL's path or query holds it: what is neither letter, digit nor one of a few signs is percent-encoded.
fn in_url(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Replaces the references in a text. `Ok(None)` when it has none.
pub(crate) fn resolve(text: &str, dir: &Path, environment: Environment<'_>) -> Result<Option<Resolved>, ReferenceError> {
    if !text.contains("${") {
        return Ok(None);
    }
    let (mut out, mut yielded) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end = after.find('}').ok_or_else(|| ReferenceError::Form("`${` without `}`".to_owned()))?;
        let inner = &after[..end];
        let found = match inner.split_once(':') {
            Some(("env", name)) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                environment(name).ok_or_else(|| ReferenceError::Missing(format!("environment variable {name} is not set")))?
            }
            Some(("file", path)) if !path.is_empty() => read(path, dir)?,
            _ => return Err(ReferenceError::Form(format!("`${{{inner}}}` is not a reference"))),
        };
        out.push_str(&found);
        yielded.push(found);
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(Resolved { text: out, yielded }))
}

fn read(path: &str, dir: &Path) -> Result<String, ReferenceError> {
    let missing = |why: String| ReferenceError::Missing(format!("file {path} {why}"));
    let file = std::fs::File::open(dir.join(path)).map_err(|e| missing(format!("cannot be read: {e}")))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_BYTES_MAX + 1), &mut bytes)
        .map_err(|e| missing(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(missing(format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| missing("is not UTF-8 text".to_owned()))?;
    // Editors and `echo` end a file with a line feed that is not part of the secret.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_inside_a_text() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("pw"), "s3cret\r\n").expect("written");
        let environment = |name: &str| (name == "USER_NAME").then(|| "till".to_owned());
        let check = |text: &str| resolve(text, dir.path(), &environment).map(|found| found.map(|resolved| resolved.text));
        assert_eq!(check("plain $5 {x}"), Ok(None));
        assert_eq!(check("postgres://${env:USER_NAME}:${file:pw}@h"), Ok(Some("postgres://till:s3cret@h".to_owned())));
        assert!(matches!(check("${env:OTHER}"), Err(ReferenceError::Missing(m)) if m.contains("OTHER")));
        assert!(matches!(check("${file:none}"), Err(ReferenceError::Missing(_))));
        for bad in ["${", "${}", "${HOME}", "${env:}", "${env:A B}", "${file:}", "${vault:x}"] {
            assert!(matches!(check(bad), Err(ReferenceError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn what_references_yielded_is_hidden_wherever_it_stands() {
        let secrets = Secrets::new(vec!["s3cret word".to_owned(), "s3cret".to_owned(), "8080".to_owned()]);
        assert_eq!(secrets.hide("https://h:8080/s3cret%20word?k=s3cret"), "https://h:8080/***?k=***");
        let value = serde_json::json!({"a": ["x s3cret word y", 7]});
        assert_eq!(secrets.hide_in(&value), serde_json::json!({"a": ["x *** y", 7]}));
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
    }
}

//! References inside values: `${env:NAME}` and `${file:PATH}`. What they yield is secret: it is never printed.

use std::path::Path;

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

/// Replaces the references in a text. `Ok(None)` when it has none.
pub(crate) fn resolve(text: &str, dir: &Path, environment: Environment<'_>) -> Result<Option<String>, ReferenceError> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end = after.find('}').ok_or_else(|| ReferenceError::Form("`${` without `}`".to_owned()))?;
        let inner = &after[..end];
        match inner.split_once(':') {
            Some(("env", name)) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                out.push_str(&environment(name).ok_or_else(|| ReferenceError::Missing(format!("environment variable {name} is not set")))?);
            }
            Some(("file", path)) if !path.is_empty() => out.push_str(&read(path, dir)?),
            _ => return Err(ReferenceError::Form(format!("`${{{inner}}}` is not a reference"))),
        }
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
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
        let check = |text: &str| resolve(text, dir.path(), &environment);
        assert_eq!(check("plain $5 {x}"), Ok(None));
        assert_eq!(check("postgres://${env:USER_NAME}:${file:pw}@h"), Ok(Some("postgres://till:s3cret@h".to_owned())));
        assert!(matches!(check("${env:OTHER}"), Err(ReferenceError::Missing(m)) if m.contains("OTHER")));
        assert!(matches!(check("${file:none}"), Err(ReferenceError::Missing(_))));
        for bad in ["${", "${}", "${HOME}", "${env:}", "${env:A B}", "${file:}", "${vault:x}"] {
            assert!(matches!(check(bad), Err(ReferenceError::Form(_))), "{bad}");
        }
    }
}

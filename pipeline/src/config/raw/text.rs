//! What a file said when it was read, and which of its keys say something else now.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::config::document::Document;
use crate::config::keys;
use crate::config::tree::{self, Node, Value};

/// What a file said when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileText {
    /// Its text, secrets masked; references stand as they are.
    pub shown: String,
    /// Names the text as it was: twelve hexadecimal digits.
    pub hash: String,
}

/// Stands between a file and its overlay where both are shown.
const OVERLAY: &str = "\n# overlay ";

impl FileText {
    pub(super) fn of(document: &Document) -> FileText {
        let digest = Sha256::digest(document.text.as_bytes());
        let shown = match &document.overlay {
            Some((_, overlay)) => format!("{}{OVERLAY}{overlay}\n{}", document.shown_of(&document.name), document.shown_of(overlay)),
            None => document.shown(),
        };
        FileText { shown, hash: digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect() }
    }
}

/// The keys at the top whose values differ between two texts of a file, in the order of the key table; all that are there when one cannot be read.
#[must_use]
pub fn changed_keys(before: &str, after: &str) -> Vec<&'static str> {
    let parse = |text: &str| {
        let document = Document::from_bytes(String::new(), PathBuf::new(), text.as_bytes().to_vec()).ok()?;
        tree::parse(&document, &mut Vec::new())
    };
    // A key has changed where it did in the file or in its overlay.
    let read = |text: &str| match text.split_once(OVERLAY) {
        Some((base, overlay)) => [parse(base), parse(overlay)],
        None => [parse(text), None],
    };
    let of = |tree: &Option<Node>, name: &str| match tree.as_ref().map(|tree| &tree.value) {
        Some(Value::Map(entries)) => entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node.clone()),
        _ => None,
    };
    let (before, after) = (read(before), read(after));
    let differs = |name: &&str| {
        before.iter().zip(&after).any(|(before, after)| match (of(before, name), of(after, name)) {
            (Some(a), Some(b)) => !a.same(&b),
            (a, b) => a.is_some() || b.is_some(),
        })
    };
    keys::CONNECTOR.iter().map(|key| key.name).filter(|name| differs(name)).collect()
}

//! Overlays: what differs from one environment to the next stands in a file of its own, `crm.prod.yaml` beside `crm.yaml`, and is laid over it. Blocks
//! are joined key by key, lists and single values are replaced, and every place in a message is the one in the file that says it. Checks see the joined
//! file alone, so an overlay is as strict as what it is laid over.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::document::{Document, Span};
use super::report::{Code, Problem};
use super::tree::{self, Node, Value};

/// Names that make a file what it is: another one is another file.
const FIXED: [&str; 3] = ["version", "pipeline", "connector"];

static ENVIRONMENT: OnceLock<String> = OnceLock::new();

/// Says for which environment this process reads files; the first one counts.
pub fn set_environment(name: &str) {
    let _ = ENVIRONMENT.set(name.to_owned());
}

/// Whether this can name an environment: it is part of file names.
#[must_use]
pub fn is_environment(name: &str) -> bool {
    !name.is_empty() && name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

/// The overlay of a file for this process's environment, if there is one.
#[must_use]
pub fn of(path: &Path) -> Option<PathBuf> {
    let environment = ENVIRONMENT.get()?;
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    Some(path.with_file_name(format!("{stem}.{environment}.{extension}"))).filter(|overlay| overlay.exists())
}

/// Parses a document with the overlay that belongs to it.
pub(crate) fn parse(path: &Path, document: &mut Document, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut tree = tree::parse(document, problems);
    if let Some(overlay) = of(path) {
        match Document::read(&overlay) {
            Ok(overlay) => {
                let mut own = Vec::new();
                let laid = tree::parse(&overlay, &mut own);
                problems.extend(own.into_iter().map(|problem| overlay.standing(problem)));
                let by = document.lay_over(overlay);
                if let (Some(tree), Some(laid)) = (&mut tree, laid) {
                    lay(tree, moved(laid, by), "", document, problems);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    tree
}

fn moved(mut node: Node, by: usize) -> Node {
    let far = |span: Span| Span { start: span.start + by, ..span };
    node.span = far(node.span);
    node.value = match node.value {
        Value::List(items) => Value::List(items.into_iter().map(|item| moved(item, by)).collect()),
        Value::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(mut key, value)| {
                    key.span = far(key.span);
                    (key, moved(value, by))
                })
                .collect(),
        ),
        other => other,
    };
    node
}

fn lay(base: &mut Node, over: Node, path: &str, document: &Document, problems: &mut Vec<Problem>) {
    let (Value::Map(entries), true) = (&mut base.value, matches!(over.value, Value::Map(_))) else {
        *base = over;
        return;
    };
    let Value::Map(laid) = over.value else { return };
    for (key, value) in laid {
        match entries.iter_mut().find(|(known, _)| known.text == key.text) {
            Some((_, known)) if path.is_empty() && FIXED.contains(&key.text.as_str()) && !known.same(&value) => {
                let message = format!("an overlay cannot change `{}`", key.text);
                let help = Some("remove it here; a file of another name is a file of its own".to_owned());
                problems.push(document.problem(Code::Conflict, key.span, message, "here", help));
            }
            Some((known_key, known)) => {
                if !matches!((&known.value, &value.value), (Value::Map(_), Value::Map(_))) {
                    *known_key = key.clone();
                }
                lay(known, value, &key.text, document, problems);
            }
            None => entries.push((key, value)),
        }
    }
}

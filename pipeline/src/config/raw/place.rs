//! Where in a file a problem belongs.

use std::path::Path;

use tillstream_connectors::registry;

use crate::config::check::{Block, Checked, Checker};
use crate::config::document::{Document, Span};
use crate::config::overlay;
use crate::config::report::{Code, Problem};
use crate::config::tree::{Node, Value};

/// Where a missing key of the top level belongs: the first key.
pub(super) fn top_of(tree: &Node) -> Span {
    match &tree.value {
        Value::Map(entries) => entries.first().map_or(tree.span, |(key, _)| key.span),
        _ => tree.span,
    }
}

/// Brings a problem of a mapping to its place: its path begins with a key of the file.
pub(super) fn place(checker: &mut Checker<'_>, top: &Block, problem: registry::Problem) {
    let (key, below) = problem.path.split_once('.').unwrap_or((&problem.path, ""));
    let Some(item) = top.get(key) else { return };
    let span = match &item.value {
        Checked::Tree { node, .. } => locate(node, item.span, below).0,
        _ => item.span,
    };
    checker.problem(Code::BadMapping, span, problem.message, "here", problem.help);
}

/// A sink's problem at the place its path leads to.
pub(super) fn place_problem(document: &Document, problem: registry::Problem, node: &Node, kind_span: Span) -> Problem {
    let (span, found) = locate(node, kind_span, &problem.path);
    let named = problem.path.is_empty() || problem.message.starts_with(&format!("`{}`", problem.path));
    let message = if named { problem.message } else { format!("`{}`: {}", problem.path, problem.message) };
    // Whoever is told that something is wrong is told what to do.
    let help = problem.help.unwrap_or_else(|| match problem.path.as_str() {
        "" => "mend the block of this kind".to_owned(),
        path => format!("give `{path}` another value, or remove it"),
    });
    // What the path names may be the very thing that is missing.
    document.problem(Code::BadSink, span, message, if found { "here" } else { "it belongs here" }, Some(help))
}

/// A problem that was found outside the file: at the first place below `below` where `word` stands, else at the block itself.
#[must_use]
pub fn blame(file: &Path, below: &[&str], word: &str, code: Code, message: String, help: String) -> Problem {
    let read = Document::read(file).ok().and_then(|mut document| Some((overlay::parse(file, &mut document, &mut Vec::new())?, document)));
    let Some((tree, document)) = read else {
        // It was there a moment ago.
        return Problem::of_file(&file.display().to_string(), code, message, Some(help));
    };
    let (mut node, mut key) = (&tree, top_of(&tree));
    for name in below {
        let Value::Map(entries) = &node.value else { break };
        let Some((k, v)) = entries.iter().find(|(k, _)| k.text == *name) else { break };
        (node, key) = (v, k.span);
    }
    let mentioned = |text: &str| text.contains("{{") && [format!(".{word}"), format!("'{word}'")].iter().any(|m| text.contains(m));
    let span = find_word(node, &|text| text == word).or_else(|| find_word(node, &mentioned)).unwrap_or(key);
    document.standing(document.problem(code, span, message, "named here", Some(help)))
}

fn find_word(node: &Node, is_it: &dyn Fn(&str) -> bool) -> Option<Span> {
    match &node.value {
        Value::Scalar { text, .. } => is_it(text).then_some(node.span),
        Value::List(items) => items.iter().find_map(|item| find_word(item, is_it)),
        Value::Map(entries) => entries.iter().find_map(|(k, v)| if is_it(&k.text) { Some(k.span) } else { find_word(v, is_it) }),
        Value::Null => None,
    }
}

/// Follows a dotted path as far as it goes: the place of the value it leads to (of a block its key), and whether it was followed to its end.
/// Keys may hold dots (`tables.public.orders`), so the longest key that fits is taken.
pub(super) fn locate(node: &Node, key: Span, path: &str) -> (Span, bool) {
    let here = || if matches!(node.value, Value::Scalar { .. }) { node.span } else { key };
    if path.is_empty() {
        return (here(), true);
    }
    match &node.value {
        Value::Map(entries) => {
            let rest_of = |name: &str| {
                let rest = path.strip_prefix(name)?;
                if rest.is_empty() { Some("") } else { rest.strip_prefix('.').or_else(|| rest.starts_with('[').then_some(rest)) }
            };
            let next = entries.iter().filter_map(|(k, v)| Some((k, v, rest_of(&k.text)?))).max_by_key(|(k, ..)| k.text.len());
            next.map_or((key, false), |(k, v, rest)| locate(v, k.span, rest))
        }
        Value::List(items) => {
            let digits = path.trim_start_matches('[');
            let end = digits.find([']', '.']).unwrap_or(digits.len());
            let item = digits[..end].parse::<usize>().ok().and_then(|i| items.get(i));
            item.map_or((key, false), |item| locate(item, item.span, digits[end..].trim_start_matches([']', '.'])))
        }
        Value::Null | Value::Scalar { .. } => (here(), false),
    }
}

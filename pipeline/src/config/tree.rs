//! A YAML file as a tree in which every key and value knows its place. Reading stops at nothing but broken syntax:
//! what the tree means is judged elsewhere, all of it at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::document::{Document, Span};
use super::report::{Code, Problem};

/// Deepest nesting: the keys need six levels, mappings of a sink some more.
const DEPTH_MAX: usize = 24;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

impl Node {
    /// Whether the two say the same, wherever they stand and in whatever order.
    pub(crate) fn same(&self, other: &Node) -> bool {
        match (&self.value, &other.value) {
            (Value::Null, Value::Null) => true,
            (Value::Scalar { text: a, plain: p }, Value::Scalar { text: b, plain: q }) => a == b && p == q,
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Value::Map(a), Value::Map(b)) => {
                let has = |(key, node): &(KeyNode, Node)| b.iter().any(|(other, value)| other.text == key.text && node.same(value));
                a.len() == b.len() && a.iter().all(has)
            }
            _ => false,
        }
    }
}

/// A key and its place.
#[derive(Clone, Debug)]
pub(crate) struct KeyNode {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// What stands there.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    /// `plain` scalars may be numbers and booleans; quoted ones are text.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(KeyNode, Node)>),
}

impl Value {
    /// For messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a block of keys",
        }
    }
}

/// What serde hands over; scalars that look like numbers lose their text, which the span brings back.
enum Raw {
    Null,
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
                Ok(Raw::Typed)
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
                Raw::deserialize(deserializer)
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.to_owned()))
            }
            fn visit_string<E>(self, text: String) -> Result<Raw, E> {
                Ok(Raw::Text(text))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
                Ok(Raw::Text(String::from_utf8_lossy(bytes).into_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

/// Parses a document. Broken syntax yields one problem and no tree; duplicate and composite keys yield problems and a tree without them.
pub(crate) fn parse(document: &Document, problems: &mut Vec<Problem>) -> Option<Node> {
    if document.text.trim().is_empty() {
        let help = "a pipeline file begins with `version: 1`".to_owned();
        problems.push(document.problem(Code::Empty, Span::default(), "the file is empty", "nothing here", Some(help)));
        return None;
    }
    // No anchors, merges or tags: a reviewed file says what it means where it stands, and nothing can be multiplied.
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        merge_keys: serde_saphyr::options::MergeKeyPolicy::AsOrdinary,
        strict_booleans: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_events: 200_000,
            max_nodes: 100_000,
            max_aliases: 0,
            max_anchors: 0,
        },
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(&document.text, options) {
        Ok(raw) => Some(convert(document, raw, problems)),
        Err(error) => {
            problems.push(syntax_problem(document, &error));
            None
        }
    }
}

fn syntax_problem(document: &Document, error: &serde_saphyr::Error) -> Problem {
    let error = error.without_snippet();
    let span = error.location().map_or(Span::default(), |l| span_of(document, l));
    let text = error.render_with_options(serde_saphyr::RenderOptions::default());
    let text = text.lines().next().unwrap_or_default().trim().to_owned();
    let line = document.text[..span.start].rfind('\n').map_or(0, |i| i + 1);
    let indent_has_tab = document.text[line..].chars().take_while(|c| c.is_whitespace() && *c != '\n').any(|c| c == '\t');
    let (code, help) = if matches!(error, serde_saphyr::Error::Budget { .. }) {
        (Code::TooComplex, "write each value where it belongs: anchors, aliases and deep nesting are not allowed".to_owned())
    } else if indent_has_tab {
        (Code::Syntax, "indent with spaces, not tabs".to_owned())
    } else {
        (Code::Syntax, "check indentation, quotes and colons at and above this line".to_owned())
    };
    let text = if code == Code::TooComplex { "anchors, aliases or too much nesting".to_owned() } else { text };
    document.problem(code, span, text, "here", Some(help))
}

fn span_of(document: &Document, location: Location) -> Span {
    let span = location.span();
    if let (Some(start), Some(len)) = (span.byte_offset(), span.byte_len()) {
        return Span { start: start as usize, len: len as usize };
    }
    // Only line and column are known.
    let line_start = document.text.split_inclusive('\n').take((location.line() as usize).saturating_sub(1)).map(str::len).sum::<usize>();
    let line = &document.text[line_start.min(document.text.len())..];
    let column = (location.column() as usize).saturating_sub(1);
    let start = line.char_indices().nth(column).map_or(line.len(), |(i, _)| i) + line_start;
    Span { start: start.min(document.text.len()), len: 1 }
}

/// Trims what the parser counts to a node but people do not: space and line ends after it.
fn trimmed(document: &Document, span: Span) -> Span {
    let end = (span.start + span.len).min(document.text.len());
    let text = document.text.get(span.start..end).unwrap_or_default();
    Span { start: span.start.min(document.text.len()), len: text.trim_end().len() }
}

fn convert(document: &Document, raw: Spanned<Raw>, problems: &mut Vec<Problem>) -> Node {
    let span = trimmed(document, span_of(document, raw.referenced));
    let source = || document.text.get(span.start..span.start + span.len).unwrap_or_default();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Typed => Value::Scalar { text: source().to_owned(), plain: true },
        Raw::Text(text) => Value::Scalar { plain: !source().starts_with(['"', '\'', '|', '>']), text },
        Raw::List(items) => Value::List(items.into_iter().map(|item| convert(document, item, problems)).collect()),
        Raw::Map(entries) => {
            let mut map: Vec<(KeyNode, Node)> = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key = convert(document, key, problems);
                let value = convert(document, value, problems);
                let text = match key.value {
                    Value::Scalar { text, .. } => text,
                    other => {
                        let message = format!("a key must be a single word, this is {}", other.kind());
                        let help = Some("write `key: value`".to_owned());
                        problems.push(document.problem(Code::WrongType, key.span, message, "not a key", help));
                        continue;
                    }
                };
                if let Some((first, _)) = map.iter().find(|(k, _)| k.text == text) {
                    let line = document.text[..first.span.start].matches('\n').count() + 1;
                    let message = format!("key `{text}` stands here twice");
                    let help = Some(format!("keep one of the two; the first is in line {line}"));
                    problems.push(document.problem(Code::DuplicateKey, key.span, message, "again", help));
                    continue;
                }
                map.push((KeyNode { text, span: key.span }, value));
            }
            Value::Map(map)
        }
    };
    Node { span, value }
}

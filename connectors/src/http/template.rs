//! Expressions in a request's head and body: the same language, and the same checks, as a connector's `map`.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::form::encode;
use super::sink::{Unsendable, refuse};
use crate::block::problem;
use crate::mapping::{Mapped, Mapping};
use crate::registry::Problem;
use crate::sink::Item;

/// Texts with expressions in them, by where they belong.
#[derive(Debug)]
pub(crate) struct Templates {
    mapping: Mapping,
}

/// What they come to for one event.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    pub(crate) url: Option<Url>,
    pub(crate) headers: HeaderMap,
    /// Texts by the key they stand under.
    pub(crate) texts: Map<String, Value>,
}

/// Collects templates while a block is read.
#[derive(Default)]
pub(crate) struct Collected(Map<String, Value>);

/// Whether a text holds an expression (or what looks like a template and is none; compiling says so).
pub(crate) fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

impl Collected {
    /// A URL with expressions behind its host. What they come to is percent-encoded, so that a value is a value and nothing of the URL's structure.
    /// `false` when the host itself is one.
    pub(crate) fn url(&mut self, text: &str, path: &str, problems: &mut Vec<Problem>) -> bool {
        let after = text.find("://").map_or(0, |at| at + 3);
        let host_ends = text[after..].find(['/', '?']).map_or(text.len(), |at| after + at);
        if is_template(&text[..host_ends]) {
            let help = "values of rows may stand behind the host alone: https://api.example/v1/items/{{ key.id }}".to_owned();
            problems.push(problem(path, "takes its host from the event", Some(help)));
            return false;
        }
        self.0.insert("url".to_owned(), Value::Array(pieces(text).into_iter().map(Value::from).collect()));
        true
    }

    /// A header's value.
    pub(crate) fn header(&mut self, name: &HeaderName, text: &str) {
        let headers = self.0.entry("headers").or_insert_with(|| json!({}));
        headers[name.as_str()] = text.into();
    }

    /// Any other text.
    pub(crate) fn text(&mut self, key: &str, text: &str) {
        self.0.insert(key.to_owned(), text.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compiles them. Paths of problems are those of the block.
    pub(crate) fn compile(self, problems: &mut Vec<Problem>) -> Option<Templates> {
        if self.0.is_empty() {
            return None;
        }
        match Mapping::compile(None, Some(&Value::Object(self.0))) {
            Ok(mapping) => Some(Templates { mapping }),
            Err(found) => {
                // A URL is in pieces, and whoever wrote it knows one text.
                let place = |p: &str| if p.starts_with("map.url.") { "url".to_owned() } else { p.trim_start_matches("map.").to_owned() };
                let told = found.into_iter().map(|p| Problem {
                    message: p.message.replace(&format!("`{}`", p.path), &format!("`{}`", place(&p.path))),
                    path: place(&p.path),
                    help: p.help,
                });
                problems.extend(told);
                None
            }
        }
    }
}

impl Templates {
    /// What they ask of an event.
    pub(crate) fn expressions(&self) -> &Mapping {
        &self.mapping
    }

    /// Fills them in.
    pub(crate) fn render(&self, item: &Item) -> Result<Rendered, Unsendable> {
        let body = match self.mapping.apply(&item.event, &item.idempotency_key) {
            Ok(Mapped::Body(body)) => body,
            Ok(_) => return Ok(Rendered::default()),
            Err(fault) => {
                let reason = fault.reason();
                return Err(refuse(&reason.code, reason.message.replace("`map.", "`")));
            }
        };
        let Ok(Value::Object(mut texts)) = serde_json::from_str(&body) else { return Ok(Rendered::default()) };
        let mut rendered = Rendered::default();
        if let Some(Value::Array(pieces)) = texts.remove("url") {
            // The first piece is what stands before any expression.
            let text: String =
                pieces.iter().enumerate().map(|(n, piece)| if n % 2 == 0 { plain(piece) } else { encode(&plain(piece)) }).collect();
            rendered.url = Some(text.parse().map_err(|_| refuse("http.template", "`url`: what it comes to is no URL"))?);
        }
        if let Some(Value::Object(headers)) = texts.remove("headers") {
            for (name, value) in &headers {
                let value = HeaderValue::from_str(&plain(value));
                let value = value
                    .map_err(|_| refuse("http.template", format!("`headers.{name}`: what it comes to cannot be written into a header")));
                rendered.headers.insert(HeaderName::from_bytes(name.as_bytes()).expect("read as a header's name"), value?);
            }
        }
        rendered.texts = texts;
        Ok(rendered)
    }
}

/// A value as text; null is nothing.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Text and expressions in turn, text first.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find("{{") {
        let end = rest[begin..].find("}}").map_or(rest.len(), |end| begin + end + 2);
        pieces.extend([rest[..begin].to_owned(), rest[begin..end].to_owned()]);
        rest = &rest[end..];
    }
    pieces.push(rest.to_owned());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_cut_at_its_expressions() {
        assert_eq!(pieces("https://a/{{ key.id }}/x?y={{ op }}"), ["https://a/", "{{ key.id }}", "/x?y=", "{{ op }}", ""]);
        assert_eq!(pieces("https://a/"), ["https://a/"]);
    }

    #[test]
    fn hosts_are_fixed_and_names_are_checked() {
        let mut problems = Vec::new();
        let mut collected = Collected::default();
        collected.url("https://{{ after.host }}/x", "url", &mut problems);
        collected.url("https://a/{{ aftr.id }}", "url", &mut problems);
        collected.header(&HeaderName::from_static("x-op"), "{{ op | uper }}");
        assert!(collected.compile(&mut problems).is_none());
        let said: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.message.as_str(), p.help.as_deref().unwrap_or_default())).collect();
        assert_eq!(said[0].0, "url");
        assert_eq!(said[1], ("url", "`url` uses the unknown name `aftr`", "did you mean `after`?"));
        assert_eq!(said[2], ("headers.x-op", "`headers.x-op` uses the unknown filter `uper`", "did you mean `upper`?"));
    }
}

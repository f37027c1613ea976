//! The sink `webhook`: events to whoever subscribed, signed as Standard Webhooks has it, on request as CloudEvents 1.0.
//!
//! ```text
//!  plain        {"type": …, "timestamp": …, "data": {…}}
//!  structured   {"specversion": "1.0", "id": key, "source": …, "type": …, "data": {…}}       application/cloudevents+json
//!  binary       {…}  and ce-id, ce-source, ce-type … as headers                              application/json
//!  batch        [{"specversion": "1.0", …}, …]                                               application/cloudevents-batch+json
//! ```
//!
//! `webhook-id` (of a list, CloudEvents' `id` of each event) is the same on every attempt and is what a receiver tells repeats by; time and
//! signature are those of the attempt. `data` is what the connector's `map` makes, or the event with the columns that are listed.

mod signing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Map, Value, json};
use signing::Secrets;

use crate::block::{Block, problem};
use crate::http::answer::{Answer, Meaning};
use crate::http::auth::Auth;
use crate::http::body::Columns;
use crate::http::client::{Request, Wire, read_url};
use crate::http::config::{ApiTarget, listed, tables, words};
use crate::http::egress::Egress;
use crate::http::sink::{Api, Limits, Member, Unsendable, refuse};
use crate::http::template::{Collected, Templates};
use crate::mapping::Mapping;
use crate::registry::{Kind, Problem, Target};
use crate::sink::{Idempotency, Item, SinkError};

/// How an event is put into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    Structured,
    Binary,
    Batch,
}

#[derive(Debug)]
struct WebhookApi {
    wire: Wire,
    url: Url,
    mode: Mode,
    secrets: Secrets,
    /// CloudEvents' `source`.
    source: String,
    /// `type`, and any other text that depends on the event.
    templates: Templates,
    tables: BTreeMap<(String, String), Columns>,
    events_max: usize,
}

/// The kind `webhook`.
#[derive(Debug, Default)]
pub struct WebhookKind;

const KEYS: [&str; 10] = ["url", "mode", "secrets", "source", "type", "columns", "events", "timeout", "tls", "allow_private"];
const MODES: [&str; 4] = ["plain", "structured", "binary", "batch"];

/// What an event is called where the file says nothing: hierarchical, as the specification recommends.
const TYPE_DEFAULT: &str = "{{ table }}.{{ op }}";

/// Within the 15 to 30 seconds that the specification recommends.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(20);

/// Events of one list where the file says nothing.
const EVENTS_DEFAULT: usize = 100;

impl Kind for WebhookKind {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::WEBHOOK)
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            Some(api) if problems.is_empty() => {
                let columns = listed(&api.tables);
                Ok(Arc::new(ApiTarget::new(api, Idempotency::Key, None, columns)))
            }
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<WebhookApi> {
    let block = Block::new(value, "", &KEYS, problems)?;
    let egress = Egress::read(&block, problems);
    let url = read_url(&block, "url", "url: https://receiver.example/hooks", &egress, problems);
    let mode = match block.choice("mode", &MODES, problems) {
        Some("structured") => Mode::Structured,
        Some("binary") => Mode::Binary,
        Some("batch") => Mode::Batch,
        _ => Mode::Plain,
    };
    let secrets = Secrets::read(&block, problems);
    let needed = (mode != Mode::Plain).then_some("source: /pos/main-street");
    let source = block.text("source", needed, problems).unwrap_or_default();
    if mode == Mode::Plain && block.get("source").is_some() {
        problems.push(problem(
            "source",
            "is CloudEvents' and `mode: plain` sends none",
            Some("leave it out, or choose another `mode`".into()),
        ));
    }
    let mut templates = Collected::default();
    templates.text("type", block.text("type", None, problems).unwrap_or(TYPE_DEFAULT));
    let tables = tables(&block, mapped, problems);
    let events_max = block.count("events", EVENTS_DEFAULT, 1..=10_000, problems);
    if mode != Mode::Batch && block.get("events").is_some() {
        problems.push(problem("events", "is of lists, and only `mode: batch` sends them", Some("leave it out".into())));
    }
    let wire = Wire::read(&block, url.as_ref(), Auth::None, egress, TIMEOUT_DEFAULT, problems);
    let templates = templates.compile(problems);
    Some(WebhookApi { wire: wire?, url: url?, mode, secrets, source: source.to_owned(), templates: templates?, tables, events_max })
}

/// The attributes of CloudEvents but for those that say how data is put.
fn attributes(item: &Item, source: &str, kind: &str) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("specversion", "1.0".to_owned()),
        ("id", item.idempotency_key.clone()),
        ("source", source.to_owned()),
        ("type", kind.to_owned()),
    ];
    let key = item.event.key_text();
    all.extend((!key.is_empty()).then_some(("subject", key)));
    all.extend(item.event.committed_at().map(|time| ("time", time.to_owned())));
    all
}

impl WebhookApi {
    fn kind(&self, item: &Item) -> Result<String, Unsendable> {
        let mut rendered = self.templates.render(item)?;
        match rendered.texts.remove("type") {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            _ => Err(refuse("http.template", "`type`: what it comes to is no text, or empty")),
        }
    }
}

impl Api for WebhookApi {
    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn expressions(&self) -> Option<&Mapping> {
        Some(self.templates.expressions())
    }

    fn url(&self) -> &Url {
        &self.url
    }

    fn limits(&self) -> Limits {
        match self.mode {
            Mode::Batch => Limits { items: self.events_max, ..Limits::SINGLE },
            _ => Limits::SINGLE,
        }
    }

    fn member(&self, item: &Item) -> Result<Member, Unsendable> {
        let data = words(item, &self.tables)?;
        let kind = self.kind(item)?;
        let mut headers = HeaderMap::new();
        let text = match self.mode {
            Mode::Binary => {
                for (name, value) in attributes(item, &self.source, &kind) {
                    let name = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).expect("attributes' names are lower-case letters");
                    // Percent-encoded as the HTTP binding has it, so that every value fits.
                    let value = HeaderValue::from_str(&header_text(&value)).expect("what is percent-encoded is printable");
                    headers.insert(name, value);
                }
                data
            }
            Mode::Plain => {
                let timestamp = item.event.committed_at();
                format!("{{\"type\":{},\"timestamp\":{},\"data\":{data}}}", json!(kind), json!(timestamp))
            }
            Mode::Structured | Mode::Batch => {
                let mut fields: Map<String, Value> =
                    attributes(item, &self.source, &kind).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
                fields.insert("datacontenttype".into(), "application/json".into());
                let mut text = Value::Object(fields).to_string();
                text.pop();
                text.push_str(&format!(",\"data\":{data}}}"));
                text
            }
        };
        Ok(Member { text, url: None, headers })
    }

    fn request(&self, members: &[&Member], key: &str, now: SystemTime) -> Result<Request, SinkError> {
        let mut headers = HeaderMap::new();
        let (content_type, body) = match (self.mode, members) {
            (Mode::Batch, _) => {
                let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
                ("application/cloudevents-batch+json; charset=utf-8", format!("[{}]", texts.join(",")))
            }
            (mode, members) => {
                headers.extend(members.iter().flat_map(|member| member.headers.clone()));
                let text = members.iter().map(|member| member.text.as_str()).collect();
                (if mode == Mode::Structured { "application/cloudevents+json; charset=utf-8" } else { "application/json" }, text)
            }
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.secrets.sign(&mut headers, key, body.as_bytes(), now);
        Ok(Request { method: Method::POST, url: self.url.clone(), headers, body: body.into() })
    }

    fn of_attempt(&self) -> &'static [&'static str] {
        &["webhook-timestamp", "webhook-signature"]
    }

    fn read(&self, answer: &Answer, _keys: &[&str]) -> Meaning {
        match answer.status {
            // The receiver wants no more of it: for an operator to end, not for one event after the other to be refused.
            410 => Meaning::Whole(SinkError::definite("webhook.gone", "the receiver says that this endpoint is gone")),
            _ => answer.meaning(),
        }
    }
}

/// CloudEvents' HTTP binding, 3.1.3.2: space, `"`, `%` and everything outside printable ASCII are percent-encoded.
fn header_text(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'!'..=b'~' if byte != b'"' && byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_hold_any_text() {
        assert_eq!(header_text("Euro € 😀 \"50%\""), "Euro%20%E2%82%AC%20%F0%9F%98%80%20%2250%25%22");
    }
}

//! The `http:` block.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use reqwest::{Client, Method, Url};
use serde_json::Value;

use super::body::Columns;
use super::sink::HttpSink;
use crate::block::{Block, names, problem, table_name};
use crate::registry::{Kind, Problem, SinkPlan, Target};
use crate::sink::{Idempotency, LaneId, OnDelete, Sink};

/// One event a request, or a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Single,
    Batch,
}

/// A checked block.
pub(super) struct HttpConfig {
    pub(super) client: Client,
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) mode: Mode,
    pub(super) headers: HeaderMap,
    /// Where the key goes; `None` when the target has no use for one.
    pub(super) idempotency_header: Option<HeaderName>,
    /// Longest time of one request.
    pub(super) timeout: Duration,
    /// By (schema, table).
    pub(super) tables: BTreeMap<(String, String), Columns>,
    /// The end of a pause that the target asked any lane for: the others stop within their calls.
    pub(super) paused_until: Mutex<Option<Instant>>,
}

/// Shows no header's value and no part of the URL that may hold a secret.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig").field("host", &self.url.host_str()).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// The kind `http`.
#[derive(Debug, Default)]
pub struct HttpKind;

const KEYS: [&str; 8] = ["url", "method", "mode", "headers", "auth", "idempotency_header", "timeout", "columns"];
const METHODS: [&str; 3] = ["POST", "PUT", "PATCH"];

/// A server that does not take a connection within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Kind for HttpKind {
    fn name(&self) -> &'static str {
        "http"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            Some(config) if problems.is_empty() => Ok(Arc::new(HttpTarget::new(config))),
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<HttpConfig> {
    let block = Block::new(value, "", &KEYS, problems)?;
    let url = block.text("url", Some("url: https://api.example/v1/events"), problems).and_then(|text| read_url(text, problems));
    let method = block.choice("method", &METHODS, problems).unwrap_or("POST");
    let mode = match block.choice("mode", &["single", "batch"], problems) {
        Some("batch") => Mode::Batch,
        _ => Mode::Single,
    };
    let idempotency_header = read_idempotency(&block, problems);
    let mut headers = read_headers(&block, idempotency_header.as_ref(), problems);
    if let Some(value) = read_auth(&block, problems) {
        headers.insert(AUTHORIZATION, value);
        let plain = url.as_ref().is_some_and(|u| u.scheme() == "http" && !is_loopback(u));
        if plain {
            problems.push(problem("auth", "would be sent unencrypted", Some("use an https:// url".into())));
        }
    }
    let bounds = (Duration::from_millis(100), Duration::from_secs(600));
    let timeout = block.duration("timeout", Duration::from_secs(10), bounds, problems);
    let tables = if mapped { no_columns(&block, problems) } else { read_columns(&block, problems) };
    let client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .timeout(timeout)
        .user_agent(concat!("tillstream/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|_| problems.push(problem("", "no HTTP client can be set up on this machine", None)));
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::POST);
    Some(HttpConfig {
        client: client.ok()?,
        url: url?,
        method,
        mode,
        headers,
        idempotency_header,
        timeout,
        tables,
        paused_until: Mutex::new(None),
    })
}

fn read_url(text: &str, problems: &mut Vec<Problem>) -> Option<Url> {
    let why = match text.parse::<Url>() {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => "must begin with https:// or http://",
        Ok(url) if url.host_str().is_none() => "names no host",
        Ok(url) if !url.username().is_empty() || url.password().is_some() => "must not hold a password; use `auth`",
        Ok(url) => return Some(url),
        Err(_) => "is not a URL",
    };
    problems.push(problem("url", why, None));
    None
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

fn read_idempotency(block: &Block<'_>, problems: &mut Vec<Problem>) -> Option<HeaderName> {
    match block.text("idempotency_header", None, problems).unwrap_or("Idempotency-Key") {
        "none" => None,
        name => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Some(name),
            Err(_) => {
                problems.push(problem("idempotency_header", "is not a header name", None));
                None
            }
        },
    }
}

fn read_headers(block: &Block<'_>, idempotency: Option<&HeaderName>, problems: &mut Vec<Problem>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in block.entries("headers", None, problems) {
        let path = format!("headers.{name}");
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            problems.push(problem(&path, "is not a header name", None));
            continue;
        };
        if [CONTENT_TYPE, CONTENT_LENGTH, HOST, TRANSFER_ENCODING].contains(&header) || Some(&header) == idempotency {
            problems.push(problem(&path, "is set by this sink", None));
            continue;
        }
        if header == AUTHORIZATION {
            problems.push(problem(&path, "belongs below `auth`", Some("write auth: {bearer: ${env:TOKEN}}".into())));
            continue;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => String::new(),
        };
        match secret(&text) {
            Some(value) => {
                headers.insert(header, value);
            }
            None => problems.push(problem(&path, "must be a text without control characters", None)),
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// A header value that no log shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok().filter(|v| !v.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

fn read_auth(block: &Block<'_>, problems: &mut Vec<Problem>) -> Option<HeaderValue> {
    let auth = Block::new(block.get("auth")?, "auth", &["bearer", "basic"], problems)?;
    let text = match (auth.get("bearer"), auth.get("basic")) {
        (Some(_), None) => format!("Bearer {}", auth.text("bearer", None, problems)?),
        (None, Some(basic)) => {
            let basic = Block::new(basic, "auth.basic", &["user", "password"], problems)?;
            let user = basic.text("user", Some("user: name"), problems);
            let password = basic.text("password", Some("password: ${env:PASSWORD}"), problems);
            format!("Basic {}", BASE64.encode(format!("{}:{}", user?, password?)))
        }
        _ => {
            problems.push(problem("auth", "must hold either `bearer` or `basic`", None));
            return None;
        }
    };
    let value = secret(&text);
    if value.is_none() {
        problems.push(problem("auth", "cannot be written into a header", None));
    }
    value
}

fn no_columns(block: &Block<'_>, problems: &mut Vec<Problem>) -> BTreeMap<(String, String), Columns> {
    if block.get("columns").is_some() {
        problems.push(problem("columns", "says what is sent, and so does the connector's `map`", Some("keep one of the two".into())));
    }
    BTreeMap::new()
}

fn read_columns(block: &Block<'_>, problems: &mut Vec<Problem>) -> BTreeMap<(String, String), Columns> {
    let mut tables = BTreeMap::new();
    let entries = block.entries("columns", Some("columns: {public.loyalty_txn: [id, points]}` here or `map: {…}` beside `to"), problems);
    if entries.is_empty() && block.get("columns").is_some() {
        problems.push(problem("columns", "lists no table", None));
    }
    for (name, value) in entries {
        let path = format!("columns.{name}");
        let columns = names(value, &path, problems);
        if let Some(table) = table_name(name, &path, problems) {
            tables.insert(table, Columns::new(columns));
        }
    }
    tables
}

/// A checked `http` block.
#[derive(Debug)]
pub(super) struct HttpTarget {
    config: Arc<HttpConfig>,
    plan: SinkPlan,
}

impl HttpTarget {
    fn new(config: HttpConfig) -> HttpTarget {
        let columns = config.tables.iter().map(|((schema, table), c)| (format!("{schema}.{table}"), c.names()));
        let plan = SinkPlan {
            idempotency: if config.idempotency_header.is_some() { Idempotency::Key } else { Idempotency::None },
            // A call begins no request after `timeout`, so its last one ends within twice that.
            call_timeout: config.timeout * 2,
            columns: columns.collect(),
        };
        HttpTarget { plan, config: Arc::new(config) }
    }
}

impl Target for HttpTarget {
    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, _lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(HttpSink::new(self.config.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_block_becomes_a_target() {
        let block = json!({"url": "https://api.example/v1/events", "auth": {"bearer": "t"}, "headers": {"x-tenant": "north"},
            "timeout": "3s", "columns": {"public.loyalty_txn": ["id", "points"]}});
        let target = HttpKind.validate(&block, false).expect("valid");
        assert_eq!(target.plan().idempotency, Idempotency::Key);
        assert_eq!(target.plan().columns, [("public.loyalty_txn".to_owned(), vec!["id".to_owned(), "points".to_owned()])]);
    }

    #[test]
    fn every_problem_is_named_and_no_secret_is_shown() {
        let block = json!({"url": "http://api.example/", "mod": "batch", "method": "GET", "auth": {"bearer": "hunter2"},
            "headers": {"Content-Type": "text/plain", "authorization": "hunter2", "a b": "c"}, "columns": {"loyalty": ["id", "id"]}});
        let problems = HttpKind.validate(&block, false).expect_err("broken");
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        let expected = [
            "mod",
            "method",
            "headers.Content-Type",
            "headers.authorization",
            "headers.a b",
            "auth",
            "columns.loyalty",
            "columns.loyalty.1",
        ];
        for path in expected {
            assert!(paths.contains(&path), "{path} in {paths:?}");
        }
        assert!(!format!("{problems:?}").contains("hunter2"));
    }

    #[test]
    fn a_map_takes_the_place_of_columns() {
        let block = json!({"url": "https://api.example/v1/events"});
        assert!(HttpKind.validate(&block, true).expect("valid").plan().columns.is_empty());
        assert_eq!(HttpKind.validate(&block, false).expect_err("no columns")[0].path, "columns");
        let both = json!({"url": "https://api.example/v1/events", "columns": {"public.loyalty_txn": ["id"]}});
        assert_eq!(HttpKind.validate(&both, true).expect_err("both")[0].path, "columns");
    }
}

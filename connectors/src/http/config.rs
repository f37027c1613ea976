//! The kind `http` and its block.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use reqwest::{Method, Url};
use serde_json::Value;

use super::answer::{Answer, Meaning, again, item};
use super::auth::{self, secret};
use super::body::Columns;
use super::client::{Request, Wire, parse_url};
use super::egress::Egress;
use super::sink::{self, Api, Limits, ListSink, Member, Unsendable, refuse};
use super::template::{Collected, Templates, is_template};
use super::{body, form};
use crate::block::{Block, accepts_duplicates, names, problem, table_name};
use crate::mapping::Mapping;
use crate::registry::{Budget, Kind, Problem, SinkPlan, Target};
use crate::show::{Shown, Unshown};
use crate::sink::{Idempotency, Item, LaneId, OnDelete, Outcome, Reason, Sink, SinkError};

/// What a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// One event.
    Single,
    /// A list of them.
    Batch,
}

/// A checked block.
#[derive(Debug)]
struct HttpApi {
    wire: Wire,
    /// Of a templated URL, scheme and host.
    url: Url,
    method: Method,
    mode: Mode,
    is_form: bool,
    headers: HeaderMap,
    templates: Option<Templates>,
    /// Whether the body is a template.
    has_body: bool,
    /// Where the key goes; `None` when the target has no use for one.
    idempotency_header: Option<HeaderName>,
    /// The key as a structured field's string.
    is_key_quoted: bool,
    /// For how long the target knows a key again, where the file says so.
    remembers: Option<Duration>,
    /// By (schema, table).
    tables: BTreeMap<(String, String), Columns>,
}

/// The kind `http`.
#[derive(Debug, Default)]
pub struct HttpKind;

const KEYS: [&str; 16] = [
    "url",
    "method",
    "mode",
    "format",
    "body",
    "content_type",
    "headers",
    "auth",
    "idempotency_header",
    "idempotency_quoted",
    "idempotency_window",
    "i_accept_duplicates",
    "columns",
    "timeout",
    "tls",
    "allow_private",
];
/// More endpoints than any target has.
const ENDPOINTS_MAX: usize = 32;
const METHODS: [&str; 3] = ["POST", "PUT", "PATCH"];

impl Kind for HttpKind {
    fn name(&self) -> &'static str {
        "http"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::HTTP)
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            Some(api) if problems.is_empty() => {
                let idempotency = if api.idempotency_header.is_some() { Idempotency::Key } else { Idempotency::None };
                let columns = listed(&api.tables);
                let remembers = api.remembers;
                Ok(Arc::new(ApiTarget::new(api, idempotency, remembers, columns)))
            }
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<HttpApi> {
    let block = Block::new(value, "", &KEYS, problems)?;
    let egress = Egress::read(&block, problems);
    let mut templates = Collected::default();
    let urls = read_urls(&block, &egress, &mut templates, problems);
    let url = urls.first().cloned();
    let method = block.choice("method", &METHODS, problems).unwrap_or("POST");
    let mode = match block.choice("mode", &["single", "batch"], problems) {
        Some("batch") => Mode::Batch,
        _ => Mode::Single,
    };
    let is_form = block.choice("format", &["json", "form"], problems) == Some("form");
    let idempotency_header = read_idempotency(&block, problems);
    accepts_duplicates(&block, idempotency_header.is_some(), "idempotency_header", problems);
    let remembers = read_window(&block, idempotency_header.is_some(), problems);
    let mut headers = read_headers(&block, idempotency_header.as_ref(), &mut templates, problems);
    let has_body = read_body(&block, mapped, is_form, &mut headers, &mut templates, problems);
    if mode == Mode::Batch {
        let single = ["body", "format"].into_iter().filter(|key| block.get(key).is_some_and(|value| value != "json"));
        let single = single.chain((!templates.is_empty() && !has_body).then_some("mode"));
        problems.extend(single.map(|key| {
            let help =
                "leave out `mode`, or what depends on the event: `body`, `format: form`, expressions in `url` and `headers`".to_owned();
            problem(key, "goes with one event a request, and `mode: batch` sends lists", Some(help))
        }));
    }
    let auth = auth::read(&block, &egress, problems);
    let tables = if mapped || has_body { no_columns(&block, has_body, problems) } else { read_columns(&block, problems) };
    let wire = Wire::read(&block, url.as_ref(), auth, egress, Duration::from_secs(10), problems);
    let templates = templates.compile(problems);
    Some(HttpApi {
        wire: wire?.balanced(urls),
        url: url?,
        method: Method::from_bytes(method.as_bytes()).unwrap_or(Method::POST),
        mode,
        is_form,
        headers,
        templates,
        has_body,
        idempotency_header,
        is_key_quoted: block.flag("idempotency_quoted", false, problems),
        remembers,
        tables,
    })
}

/// One URL, or several endpoints of the same target.
fn read_urls(block: &Block<'_>, egress: &Egress, templates: &mut Collected, problems: &mut Vec<Problem>) -> Vec<Url> {
    let Some(Value::Array(texts)) = block.get("url") else {
        return read_url(block, egress, templates, problems).into_iter().collect();
    };
    let mut urls: Vec<Url> = Vec::with_capacity(texts.len());
    for (n, text) in texts.iter().enumerate() {
        let path = format!("url.{n}");
        let Some(text) = text.as_str().filter(|text| !is_template(text)) else {
            problems.push(problem(&path, "must be a URL without expressions", Some("only a single `url` may depend on the event".into())));
            continue;
        };
        let Some(url) = parse_url(text, &path, egress, problems) else { continue };
        // What may be sent to one may be sent to all.
        if urls.first().is_some_and(|first| first.scheme() != url.scheme()) {
            problems.push(problem(&path, "must begin as the others do", Some("write https:// for all of them".into())));
        } else if urls.contains(&url) {
            problems.push(problem(&path, "is listed twice", Some("remove one of the two".into())));
        } else {
            urls.push(url);
        }
    }
    if !(1..=ENDPOINTS_MAX).contains(&texts.len()) {
        problems.push(problem("url", &format!("must list from 1 to {ENDPOINTS_MAX} endpoints"), None));
    }
    urls
}

fn read_url(block: &Block<'_>, egress: &Egress, templates: &mut Collected, problems: &mut Vec<Problem>) -> Option<Url> {
    let text = block.text("url", Some("url: https://api.example/v1/events"), problems)?;
    if !is_template(text) {
        return parse_url(text, "url", egress, problems);
    }
    if !templates.url(text, "url", problems) {
        return None;
    }
    // Where requests go is known without any event.
    let after = text.find("://").map_or(0, |at| at + 3);
    let host_ends = text[after..].find(['/', '?']).map_or(text.len(), |at| after + at);
    parse_url(&text[..host_ends], "url", egress, problems)
}

fn read_idempotency(block: &Block<'_>, problems: &mut Vec<Problem>) -> Option<HeaderName> {
    match block.text("idempotency_header", None, problems) {
        Some("none") => None,
        _ => auth::header(block, "idempotency_header", Some("Idempotency-Key"), problems),
    }
}

/// How long the target says that it remembers keys.
fn read_window(block: &Block<'_>, has_key: bool, problems: &mut Vec<Problem>) -> Option<Duration> {
    const KEY: &str = "idempotency_window";
    block.get(KEY)?;
    if !has_key {
        problems.push(problem(
            KEY,
            "goes with a key for each effect",
            Some("leave it out, or name the header as `idempotency_header`".into()),
        ));
    }
    let year = Duration::from_secs(366 * 24 * 3600);
    Some(block.duration(KEY, year, (Duration::from_secs(1), year), problems))
}

fn read_headers(block: &Block<'_>, idempotency: Option<&HeaderName>, templates: &mut Collected, problems: &mut Vec<Problem>) -> HeaderMap {
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
        if is_template(&text) {
            templates.header(&header, &text);
            continue;
        }
        match secret(&text) {
            Some(value) => {
                headers.insert(header, value);
            }
            None => problems.push(problem(&path, "must be a text without control characters", None)),
        }
    }
    headers
}

/// Reads `body` and `content_type`; whether there is a body of its own.
fn read_body(
    block: &Block<'_>,
    mapped: bool,
    is_form: bool,
    headers: &mut HeaderMap,
    templates: &mut Collected,
    problems: &mut Vec<Problem>,
) -> bool {
    let body = block.text("body", None, problems);
    if let Some(body) = body {
        templates.text("body", body);
        if mapped || is_form {
            let other = if mapped { "the connector's `map`" } else { "`format: form`" };
            problems.push(problem("body", &format!("says what is sent, and so does {other}"), Some("keep one of the two".into())));
        }
    }
    let usual = if is_form { form::CONTENT_TYPE } else { "application/json" };
    let text = block.text("content_type", (body.is_some()).then_some("content_type: application/xml"), problems).unwrap_or(usual);
    match HeaderValue::from_str(text) {
        Ok(value) => drop(headers.insert(CONTENT_TYPE, value)),
        Err(_) => problems.push(problem("content_type", "cannot be written into a header", None)),
    }
    body.is_some()
}

fn no_columns(block: &Block<'_>, has_body: bool, problems: &mut Vec<Problem>) -> BTreeMap<(String, String), Columns> {
    if block.get("columns").is_some() {
        let other = if has_body { "`body`" } else { "the connector's `map`" };
        problems.push(problem("columns", &format!("says what is sent, and so does {other}"), Some("keep one of the two".into())));
    }
    BTreeMap::new()
}

/// Reads `columns`, which takes the place of a `map`.
pub(crate) fn tables(block: &Block<'_>, mapped: bool, problems: &mut Vec<Problem>) -> BTreeMap<(String, String), Columns> {
    if mapped { no_columns(block, false, problems) } else { read_columns(block, problems) }
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

impl Api for HttpApi {
    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn expressions(&self) -> Option<&Mapping> {
        self.templates.as_ref().map(Templates::expressions)
    }

    fn url(&self) -> &Url {
        &self.url
    }

    fn limits(&self) -> Limits {
        match self.mode {
            Mode::Single => Limits::SINGLE,
            // Delivery's own limits cut the batch.
            Mode::Batch => Limits { items: usize::MAX, ..Limits::SINGLE },
        }
    }

    fn member(&self, item: &Item) -> Result<Member, Unsendable> {
        let mut rendered = self.templates.as_ref().map(|templates| templates.render(item)).transpose()?.unwrap_or_default();
        let text = match rendered.texts.remove("body") {
            Some(Value::String(text)) if self.has_body => text,
            _ => {
                let text = words(item, &self.tables)?;
                if self.is_form { form::fields(&serde_json::from_str(&text).unwrap_or_default()) } else { text }
            }
        };
        Ok(Member { text, url: rendered.url, headers: rendered.headers })
    }

    fn request(&self, members: &[&Member], key: &str, _now: SystemTime) -> Result<Request, SinkError> {
        let mut headers = self.headers.clone();
        if let Some(header) = &self.idempotency_header {
            let key = if self.is_key_quoted { format!("\"{key}\"") } else { key.to_owned() };
            let key =
                HeaderValue::from_str(&key).map_err(|_| SinkError::transient("http.request", "the key cannot be written into a header"))?;
            headers.insert(header.clone(), key);
        }
        let mut url = self.url.clone();
        let body = match (self.mode, members) {
            (Mode::Single, [member]) => {
                headers.extend(member.headers.clone());
                url = member.url.clone().unwrap_or(url);
                member.text.clone()
            }
            _ => {
                let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
                format!("{{\"items\":[{}]}}", texts.join(","))
            }
        };
        Ok(Request { method: self.method.clone(), url, headers, body: body.into() })
    }

    fn is_of_map(&self) -> bool {
        self.templates.is_none() && self.tables.is_empty()
    }

    fn read(&self, answer: &Answer, keys: &[&str]) -> Meaning {
        match answer.meaning() {
            Meaning::Applied if self.mode == Mode::Batch => results(keys, answer.body.as_ref()),
            meaning => meaning,
        }
    }
}

/// Outcomes of a list that was taken: by item where the target tells, else all applied.
fn results(keys: &[&str], body: Option<&Value>) -> Meaning {
    let Some(results) = body.and_then(|b| b.get("results")).and_then(Value::as_array) else { return Meaning::Applied };
    let by_id: HashMap<&str, &Value> = results.iter().filter_map(|r| Some((r.get("id")?.as_str()?, r))).collect();
    let outcome = |key: &&str| -> Outcome {
        let result = by_id.get(key);
        let status = result.and_then(|r| r.get("status")).and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok());
        match status {
            Some(status) => item(status, result.and_then(|r| r.get("code"))),
            None => again(Reason { code: "http.no_result".into(), message: "the answer holds no status for the item".into() }, None),
        }
    };
    Meaning::Each(keys.iter().map(outcome).collect())
}

/// The JSON of an item: what the connector's `map` made of it, else the event in this sink's own words with the columns that were asked for.
pub(crate) fn words(item: &Item, tables: &BTreeMap<(String, String), Columns>) -> Result<String, Unsendable> {
    if let Some(Ok(mapped)) = &item.mapped {
        return Ok(mapped.to_string());
    }
    if !body::has_table(&item.event) {
        return Err(refuse("http.no_table", "a logical message belongs to no table"));
    }
    let (schema, table) = (item.event.schema().unwrap_or_default(), item.event.table().unwrap_or_default());
    let Some(columns) = tables.get(&(schema.to_owned(), table.to_owned())) else {
        return Err(Unsendable::Stop(SinkError::definite("http.table_not_listed", &format!("`columns` lists no table {schema}.{table}"))));
    };
    let mut text = String::new();
    body::write(item, columns, &mut text).map_err(Unsendable::Stop)?;
    Ok(text)
}

/// What tables a sink reads, for its plan.
pub(crate) fn listed(tables: &BTreeMap<(String, String), Columns>) -> Vec<(String, Vec<String>)> {
    tables.iter().map(|((schema, table), columns)| (format!("{schema}.{table}"), columns.names())).collect()
}

/// A checked block of any kind of this family.
#[derive(Debug)]
pub(crate) struct ApiTarget<A> {
    api: Arc<A>,
    plan: SinkPlan,
}

impl<A: Api> ApiTarget<A> {
    /// `columns` are those it reads by itself.
    pub(crate) fn new(api: A, idempotency: Idempotency, remembers: Option<Duration>, columns: Vec<(String, Vec<String>)>) -> ApiTarget<A> {
        // A call begins no request after `timeout`, so its last one ends within that and its own time.
        let call_timeout = api.wire().timeout + api.wire().send_timeout();
        let items_per_request = api.limits().items;
        let plan = SinkPlan { columns, remembers, items_per_request, ..SinkPlan::new(idempotency, call_timeout) };
        ApiTarget { plan, api: Arc::new(api) }
    }

    /// With what its maker says that it takes.
    pub(crate) fn within(mut self, budget: Option<Budget>) -> ApiTarget<A> {
        self.plan.budget = budget;
        self
    }
}

impl<A: Api> Target for ApiTarget<A> {
    fn expressions(&self) -> Option<&Mapping> {
        self.api.expressions()
    }

    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, _lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(ListSink::new(self.api.clone()))
    }

    fn show(&self, item: &Item, _on_delete: OnDelete) -> Option<Result<Shown, Unshown>> {
        Some(sink::show(self.api.as_ref(), item))
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
    fn how_long_keys_are_remembered_is_said_where_there_are_keys() {
        let of = |more: Value| {
            let mut block = json!({"url": "https://api.example/v1/events"});
            block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
            HttpKind.validate(&block, true).map(|target| target.plan().remembers).map_err(|problems| problems[0].path.clone())
        };
        assert_eq!((of(json!({})), of(json!({"idempotency_window": "24h"}))), (Ok(None), Ok(Some(Duration::from_secs(86_400)))));
        let without = json!({"idempotency_window": "24h", "idempotency_header": "none", "i_accept_duplicates": true});
        for wrong in [json!({"idempotency_window": "24"}), json!({"idempotency_window": "0s"}), without] {
            assert_eq!(of(wrong), Err("idempotency_window".to_owned()));
        }
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
    fn several_endpoints_are_checked_one_by_one() {
        let block = |urls: Value| json!({"url": urls, "columns": {"public.a": ["id"]}});
        assert!(HttpKind.validate(&block(json!(["https://a.example/x", "https://b.example/x"])), false).is_ok());
        let mixed = json!(["https://a.example/x", "http://b.example/x", "https://a.example/x", "https://{{ after.host }}/x", 7]);
        let problems = HttpKind.validate(&block(mixed), false).expect_err("broken");
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["url.1", "url.2", "url.3", "url.4"]);
        assert_eq!(HttpKind.validate(&block(json!([])), false).expect_err("none")[0].path, "url");
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

//! Every operation of the admin endpoint, once: who may, what it takes, what it does. The guard goes by this table, and the OpenAPI document is printed
//! from it.

use axum::http::Method;
use serde_json::{Map, Value, json};

use crate::config::Role;
use crate::ops::console;

/// A parameter in path or query.
#[derive(Debug)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    kind: Kind,
    doc: &'static str,
}

/// What a parameter or a field is.
#[derive(Debug)]
enum Kind {
    Text,
    Count,
    Bool,
    Texts,
    /// Any JSON.
    Any,
    /// A list of these.
    List(&'static [Field]),
    /// A block of these.
    Block(&'static [Field]),
    /// A list of lists of texts.
    Keys,
}

/// A field of a body.
#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: Kind,
    required: bool,
    doc: &'static str,
}

/// One operation of the API.
#[derive(Debug)]
struct Entry {
    method: Method,
    path: &'static str,
    /// `None`: anybody.
    role: Option<Role>,
    summary: &'static str,
    parameters: &'static [Parameter],
    body: Option<&'static [Field]>,
}

/// What the guard needs to know of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    /// The least role; `None`: anybody.
    pub(super) role: Option<Role>,
    /// Whether it changes something.
    pub(super) changes: bool,
    /// Whether people look at it, who are led to where they can say who they are.
    pub(super) page: bool,
}

const fn field(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, required: false, doc }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, required: true, doc }
}

const fn look(path: &'static str, summary: &'static str, parameters: &'static [Parameter]) -> Entry {
    Entry { method: Method::GET, path, role: Some(Role::Viewer), summary, parameters, body: None }
}

const fn anybodys(path: &'static str, summary: &'static str) -> Entry {
    Entry { method: Method::GET, path, role: None, summary, parameters: &[], body: None }
}

const fn act(path: &'static str, role: Role, summary: &'static str, parameters: &'static [Parameter], body: &'static [Field]) -> Entry {
    Entry { method: Method::POST, path, role: Some(role), summary, parameters, body: Some(body) }
}

const fn in_path(name: &'static str, doc: &'static str) -> Parameter {
    Parameter { name, place: "path", kind: Kind::Text, doc }
}

const fn in_query(name: &'static str, kind: Kind, doc: &'static str) -> Parameter {
    Parameter { name, place: "query", kind, doc }
}

const ID: [Parameter; 1] = [in_path("id", "The backfill.")];
const CONNECTOR: [Parameter; 1] = [in_path("name", "The connector.")];
const CODE: [Parameter; 1] = [in_path("code", "A dotted code, as `capture.slot_lost`.")];
const LETTERS: [Parameter; 4] = [
    in_query("connector", Kind::Text, "Of this connector."),
    in_query("code", Kind::Text, "Refused with this code."),
    in_query("id", Kind::Text, "Of this event."),
    in_query("limit", Kind::Count, "At most so many; 200 are shown at once."),
];
const ROW: [Parameter; 3] = [
    in_query("table", Kind::Text, "The table, as schema.table."),
    in_query("key", Kind::Text, "The row's key: its value, or column=value,… of a key of several columns."),
    in_query("since", Kind::Text, "Where to begin: `first`, a moment, so long ago (`10m`), an offset or an LSN."),
];
const TAIL: [Parameter; 2] =
    [in_query("table", Kind::Text, "Only this table."), in_query("limit", Kind::Count, "At most so many; 100 are shown at once.")];
const WITHIN: [Parameter; 1] = [in_query("within", Kind::Count, "How soon what waits shall be done, seconds.")];
const LIMIT: [Parameter; 1] = [in_query("limit", Kind::Count, "At most so many, newest first.")];

const BY: Field = field("by", Kind::Text, "Who asks; beside the token's name, where there are tokens.");
const WHY: Field = required("reason", Kind::Text, "Why; kept with the decision.");
const PERHAPS_WHY: Field = field("reason", Kind::Text, "Why; kept with the decision.");
const WHY_IF_MEANT: Field = field("reason", Kind::Text, "Why; kept with the decision. Needed unless `dry_run`.");
const NAMED: Field = required("connector", Kind::Text, "The connector.");
const DRY_RUN: Field = field("dry_run", Kind::Bool, "Only say what would be done; needs no reason.");

const REASON: [Field; 2] = [BY, WHY];
const PERHAPS_REASON: [Field; 2] = [BY, PERHAPS_WHY];
const LETTERS_MEANT: [Field; 8] = [
    field("connector", Kind::Text, "Of this connector."),
    field("code", Kind::Text, "Refused with this code."),
    field("ids", Kind::Texts, "Of these events."),
    field("all", Kind::Bool, "All of them, where nothing narrows the choice."),
    field("limit", Kind::Count, "At most so many, oldest first."),
    DRY_RUN,
    BY,
    WHY_IF_MEANT,
];
const SET: [Field; 2] = [
    required("path", Kind::Text, "A column, as `after.tier`."),
    required("value", Kind::Any, "Its new value, as the event's JSON has it."),
];
const EDIT: [Field; 6] = [
    NAMED,
    required("id", Kind::Text, "The event."),
    required("set", Kind::List(&SET), "What to change."),
    field("dry_run", Kind::Bool, "Only check that it can be changed so."),
    BY,
    WHY,
];
const REVEAL: [Field; 4] = [NAMED, required("id", Kind::Text, "The event."), BY, WHY];
const REPLAY: [Field; 11] = [
    NAMED,
    required("from", Kind::Text, "Where to begin: an offset, a moment, so long ago (`10m`), an LSN, `first` or `next`."),
    field("to", Kind::Text, "Where to end, this place itself not."),
    field("key", Kind::Text, "Only the row with this key."),
    field("table", Kind::Text, "The row's table, where the connector takes several."),
    field("accept_duplicates", Kind::Bool, "Go on although repeats have another effect."),
    field("accept_older", Kind::Bool, "Go on although rows changed again behind the stretch."),
    field("accept_loss", Kind::Bool, "Go on although events are left out."),
    DRY_RUN,
    BY,
    WHY_IF_MEANT,
];
const END_REPLAY: [Field; 3] = [NAMED, BY, WHY];
const APPLY: [Field; 4] = [
    field("connectors", Kind::Texts, "Only these; empty means every one whose file changed."),
    field("probation_ms", Kind::Count, "How long each is on trial, milliseconds."),
    BY,
    PERHAPS_WHY,
];
const SPEC: [Field; 6] = [
    required("tables", Kind::Texts, "Tables, as `public.orders`."),
    field("filter", Kind::Text, "Only rows for which this SQL expression is true."),
    field("since", Kind::Text, "Only rows changed since: a timestamp, or `last-success`."),
    field("columns", Kind::Texts, "Only these columns beside the key."),
    field("keys", Kind::Keys, "Only the rows with these keys."),
    field("connector", Kind::Text, "The only connector that takes the rows."),
];
const OPTIONS: [Field; 7] = [
    field("max_rate", Kind::Count, "Most rows a second."),
    field("deadline_ms", Kind::Count, "Pauses itself at this moment, milliseconds since the Unix epoch."),
    field("window", Kind::Text, "Reads only within this part of the day, as `02:00-05:00`."),
    field("timezone", Kind::Text, "Time zone of the window."),
    field("allow_scan", Kind::Bool, "Reads although no index serves the filter."),
    field("allow_subquery", Kind::Bool, "Lets the filter hold a sub-select."),
    field("no_brakes", Kind::Bool, "Takes no notice of the brakes and the peak calendar."),
];
const BACKFILL: [Field; 6] = [
    field("id", Kind::Text, "What people call it; made up when absent."),
    required("spec", Kind::Block(&SPEC), "What it reads."),
    field("options", Kind::Block(&OPTIONS), "How."),
    field("if_running", Kind::Text, "`skip`, `fail` or `attach` when a job reads one of the tables already."),
    field("dry_run", Kind::Bool, "Only say what it would read."),
    BY,
];

/// The API. Whatever is added to the router and not here is not served.
const ALL: &[Entry] = &[
    anybodys("/healthz", "The process answers."),
    anybodys("/readyz", "200 while bytes are moving, or could; else 503 with the reasons."),
    look("/metrics", "Metrics, as OpenMetrics text.", &[]),
    look("/api/openapi.json", "This document.", &[]),
    look("/api/status", "How everything is: source, journal, connectors, rates, the slowest stage.", &[]),
    look("/api/scale", "How many processes that deliver are wanted now, and why.", &WITHIN),
    look("/api/schema/connector", "JSON Schema of connector files.", &[]),
    look("/api/schema/pipeline", "JSON Schema of pipeline files.", &[]),
    look("/api/audit", "The last decisions: who, what, why.", &LIMIT),
    look("/api/codes/{code}", "What an error code means, what it does and how to mend it.", &CODE),
    look("/api/why", "One row's life: its events, where they are stored, what became of them. No values.", &ROW),
    look("/api/tail", "The newest events of each partition: names, no values.", &TAIL),
    look("/api/backfills", "All backfills.", &[]),
    act("/api/backfills", Role::Operator, "Starts a backfill.", &[], &BACKFILL),
    look("/api/backfills/{id}", "One backfill.", &ID),
    act("/api/backfills/{id}/pause", Role::Operator, "Pauses a backfill; its progress is kept.", &ID, &PERHAPS_REASON),
    act("/api/backfills/{id}/resume", Role::Operator, "Has a backfill go on.", &ID, &PERHAPS_REASON),
    act("/api/backfills/{id}/cancel", Role::Operator, "Ends a backfill for good.", &ID, &PERHAPS_REASON),
    look("/api/connectors", "What every connector runs by; secrets masked.", &[]),
    act("/api/connectors/apply", Role::Admin, "Has connectors take over what their files say now, on trial.", &[], &APPLY),
    act(
        "/api/connectors/{name}/pause",
        Role::Operator,
        "Pauses a connector in every process: what comes for it waits in the journal.",
        &CONNECTOR,
        &REASON,
    ),
    act(
        "/api/connectors/{name}/resume",
        Role::Operator,
        "Has a connector go on that somebody paused; or, for an admin, one that waits because a table has changed, with its tables as they are now.",
        &CONNECTOR,
        &REASON,
    ),
    look("/api/dead-letters", "Open dead letters by connector, code and field.", &LETTERS),
    look("/api/dead-letters/items", "Open dead letters one by one, values masked.", &LETTERS),
    look("/api/dead-letters/diagnosis", "What the present files would make of open dead letters; sends nothing.", &LETTERS),
    act("/api/dead-letters/redrive", Role::Operator, "Asks for dead letters to be delivered again.", &[], &LETTERS_MEANT),
    act("/api/dead-letters/discard", Role::Admin, "Settles dead letters without delivering them.", &[], &LETTERS_MEANT),
    act("/api/dead-letters/edit", Role::Admin, "Puts other values into a dead letter's row.", &[], &EDIT),
    act("/api/dead-letters/reveal", Role::Admin, "One dead letter with its values; that somebody looked is written down.", &[], &REVEAL),
    act("/api/replays", Role::Admin, "Delivers a stretch of the journal again, or moves a connector.", &[], &REPLAY),
    act("/api/replays/cancel", Role::Admin, "Ends the replays of a connector.", &[], &END_REPLAY),
];

/// The operation at a route of the router.
pub(super) fn find(method: &Method, path: &str) -> Option<Operation> {
    let entry = ALL.iter().find(|entry| entry.method == *method && entry.path == path);
    entry.map(|entry| Operation { role: entry.role, changes: entry.method != Method::GET, page: false }).or_else(|| {
        let role = console::role(method, path)?;
        // Ways in and out change nothing that others see.
        let changes = *method == Method::POST && role.is_some();
        Some(Operation { role, changes, page: true })
    })
}

/// The methods of a route.
pub(super) fn methods(path: &str) -> Vec<&'static str> {
    let named = [Method::GET, Method::POST].into_iter().filter(|method| find(method, path).is_some());
    named.map(|method| if method == Method::GET { "GET" } else { "POST" }).collect()
}

fn schema(kind: &Kind) -> Value {
    match kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Count => json!({"type": "integer", "minimum": 0, "maximum": 9_007_199_254_740_991_u64}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Any => json!({}),
        Kind::List(fields) => json!({"type": "array", "items": block(fields)}),
        Kind::Block(fields) => block(fields),
        Kind::Keys => json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
    }
}

fn block(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|field| {
            let mut schema = schema(&field.kind);
            schema["description"] = field.doc.into();
            (field.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut block = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        block["required"] = json!(required);
    }
    block
}

/// The OpenAPI document (3.1).
#[must_use]
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for entry in ALL {
        let reference = |name: &str| json!({"$ref": format!("#/components/responses/{name}")});
        let parameters: Vec<Value> = entry
            .parameters
            .iter()
            .map(|p| json!({"name": p.name, "in": p.place, "required": p.place == "path", "description": p.doc, "schema": schema(&p.kind)}))
            .collect();
        let mut responses = json!({"200": {"description": "Done, or what was asked for."}, "default": reference("Failure")});
        if let Some(role) = entry.role {
            responses["401"] = reference("Failure");
            responses["429"] = reference("Failure");
            if role > Role::Viewer {
                responses["403"] = reference("Failure");
            }
        }
        let role = entry.role.map_or("anybody".to_owned(), |role| format!("role {} or above", role.as_str()));
        let mut operation = json!({"summary": entry.summary, "description": format!("For {role}."), "responses": responses});
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(fields) = entry.body {
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": block(fields)}}});
        }
        if entry.role.is_none() {
            operation["security"] = json!([]);
        }
        let method = if entry.method == Method::GET { "get" } else { "post" };
        paths.entry(entry.path).or_insert_with(|| json!({}))[method] = operation;
    }
    let error = json!({
        "type": "object",
        "properties": {"error": {"type": "object", "properties": {
            "code": {"type": "string", "description": "Stable; `tillstream explain CODE` tells more."},
            "class": {"type": "string"}, "what": {"type": "string"}, "why": {"type": ["string", "null"]}, "fix": {"type": ["string", "null"]},
            "more": {"type": "string"},
        }}},
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tillstream admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What the command line and the console do, over HTTP. Every change is written into the control journal first: who, what and why. Without `admin.tokens` whoever reaches the (loopback) address may do everything.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": error},
            "responses": {"Failure": {"description": "Why not.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `TILLSTREAM_UPDATE=1` the file is written instead.
    #[test]
    fn the_document_in_the_repository_is_the_one_that_is_served() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let printed = format!("{:#}\n", document());
        if std::env::var_os("TILLSTREAM_UPDATE").is_some() {
            std::fs::write(&path, &printed).expect("written");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == printed, "{} is stale: run the unit tests with TILLSTREAM_UPDATE=1", path.display());
    }

    #[test]
    fn what_changes_something_needs_more_than_a_viewer() {
        for entry in ALL {
            assert_eq!(entry.method == Method::POST, entry.body.is_some(), "{}", entry.path);
            let least = if entry.method == Method::POST { Role::Operator } else { Role::Viewer };
            assert!(entry.role.is_none_or(|role| role >= least) && (entry.role.is_some() || entry.method == Method::GET), "{}", entry.path);
            assert!(find(&entry.method, entry.path).is_some());
        }
        let open: Vec<&str> = ALL.iter().filter(|entry| entry.role.is_none()).map(|entry| entry.path).collect();
        assert_eq!(open, ["/healthz", "/readyz"]);
    }
}

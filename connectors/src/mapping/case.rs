//! The tests that stand in a connector file: an event, and what is to become of it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};
use tillstream_schemas::{Event, Op};

use super::{Fault, Lookup, Mapping, Output, Tables, grouped_event};
use crate::block::{Block, problem};
use crate::registry::Problem;

const KEYS: [&str; 6] = ["name", "given", "lookup", "expect", "filtered", "fails"];
const GIVEN_KEYS: [&str; 7] = ["op", "table", "key", "before", "after", "unchanged", "committed_at"];
const OPS: [&str; 4] = ["insert", "update", "delete", "read"];

/// One test.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// One, or those of a transaction.
    events: Vec<Event>,
    /// Rows that stand there before, as events that insert them.
    rows: Vec<Event>,
    expect: Expect,
}

/// What the tests of a connector file may say.
#[derive(Clone, Copy, Debug)]
pub struct Given<'g> {
    /// The connector's tables: with one alone an event need not name it.
    pub tables: &'g [(String, String)],
    /// What it looks up.
    pub lookups: &'g [Lookup],
    /// Whether there is a `map`.
    pub has_map: bool,
    /// Whether a transaction's events are one.
    pub grouped: bool,
    /// Whether an event may have several outputs.
    pub several: bool,
}

#[derive(Clone, Debug)]
enum Expect {
    Body(Json),
    Bodies(Vec<Json>),
    Filtered(bool),
    Fails(String),
}

impl Case {
    /// Reads `tests` (paths `tests.0.given.after`).
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(tests: &Json, file: &Given<'_>) -> Result<Vec<Case>, Vec<Problem>> {
        let mut problems = Vec::new();
        let Json::Array(tests) = tests else {
            return Err(vec![problem("tests", "must be a list", Some("begin each test with `- name:`".into()))]);
        };
        let mut cases: Vec<Case> = Vec::new();
        for (n, test) in tests.iter().enumerate() {
            let path = format!("tests.{n}");
            let before = problems.len();
            let case = read(test, &path, file, &mut problems);
            if let (Some(case), true) = (case, problems.len() == before) {
                if cases.iter().any(|c| c.name == case.name) {
                    problems.push(problem(&format!("{path}.name"), "stands twice", Some("give each test its own name".into())));
                }
                cases.push(case);
            }
        }
        if problems.is_empty() { Ok(cases) } else { Err(problems) }
    }

    /// Maps the event and compares.
    ///
    /// # Errors
    /// What differs, a line each.
    pub fn check(&self, mapping: &Mapping) -> Result<(), Vec<String>> {
        let became = self.outputs(mapping);
        let told = match &became {
            Ok(outputs) if outputs.is_empty() => "it is filtered".to_owned(),
            Ok(outputs) => outputs.iter().map(told).collect::<Vec<_>>().join(", "),
            Err(fault) => format!("it fails: {fault}"),
        };
        let failed = || match &became {
            Ok(outputs) => outputs.iter().find_map(|output| output.body.as_ref()?.as_ref().err()),
            Err(fault) => Some(fault),
        };
        let sent = |became: &Result<Vec<Output>, Fault>| -> Option<Vec<Json>> {
            let body = |output: &Output| serde_json::from_str(output.body.as_ref()?.as_ref().ok()?).ok();
            became.as_ref().ok()?.iter().map(body).collect()
        };
        let differences = |wanted: &Json, got: &Json| {
            let mut differences = Vec::new();
            compare("", Some(wanted), Some(got), &mut differences);
            if differences.is_empty() { Ok(()) } else { Err(differences) }
        };
        match &self.expect {
            Expect::Filtered(true) if matches!(&became, Ok(outputs) if outputs.is_empty()) => Ok(()),
            Expect::Filtered(false) if matches!(&became, Ok(outputs) if !outputs.is_empty()) && failed().is_none() => Ok(()),
            Expect::Fails(path) if failed().is_some_and(|fault| fault.path == *path) => Ok(()),
            Expect::Filtered(true) => Err(vec!["expected to be filtered".to_owned(), told]),
            Expect::Filtered(false) => Err(vec!["expected to be delivered".to_owned(), told]),
            Expect::Fails(path) => Err(vec![format!("expected to fail at `{path}`"), told]),
            Expect::Body(wanted) => match sent(&became).as_deref() {
                Some([body]) => differences(wanted, body),
                _ => Err(vec!["expected to be sent".to_owned(), told]),
            },
            Expect::Bodies(wanted) => match sent(&became) {
                Some(bodies) => differences(&Json::Array(wanted.clone()), &Json::Array(bodies)),
                None => Err(vec![format!("expected to be sent as {} outputs", wanted.len()), told]),
            },
        }
    }

    /// What the test comes to, as its `expect` would say it; `None` when it expects something else.
    ///
    /// # Errors
    /// Nothing is sent: why.
    pub fn golden(&self, mapping: &Mapping) -> Result<Option<Json>, String> {
        let is_list = match self.expect {
            Expect::Body(_) => false,
            Expect::Bodies(_) => true,
            Expect::Filtered(_) | Expect::Fails(_) => return Ok(None),
        };
        let outputs = self.outputs(mapping).map_err(|fault| format!("it fails: {fault}"))?;
        if outputs.is_empty() && !is_list {
            return Err("it is filtered: write `filtered: true` instead of `expect`, if that is meant".to_owned());
        }
        let body = |output: Output| match output.body {
            Some(Ok(body)) => serde_json::from_str(&body).map_err(|_| "what it is sent as is no JSON".to_owned()),
            Some(Err(fault)) => Err(format!("it fails: {fault}")),
            None => Err("it is delivered whole".to_owned()),
        };
        let mut bodies: Vec<Json> = outputs.into_iter().map(body).collect::<Result<_, String>>()?;
        Ok(Some(if !is_list && bodies.len() == 1 { bodies.swap_remove(0) } else { Json::Array(bodies) }))
    }

    /// What becomes of the events, with the rows that stand there.
    fn outputs(&self, mapping: &Mapping) -> Result<Vec<Output>, Fault> {
        let tables = (!mapping.lookups().is_empty()).then(|| Arc::new(Tables::new(mapping.lookups(), &[], usize::MAX)));
        if let Some(tables) = &tables {
            for event in self.rows.iter().chain(&self.events) {
                // Without a limit, and with a key each, nothing can go wrong.
                let _ = tables.note(event);
            }
        }
        // Outputs are told apart by the facts they name; where they name none there is one.
        let name = |fact: Option<&str>| fact.map_or_else(|| "test".to_owned(), |fact| format!("test of {fact}"));
        let [first, ..] = self.events.as_slice() else { return Ok(Vec::new()) };
        if !mapping.is_grouped() {
            return mapping.outputs(first, tables.as_ref(), &name);
        }
        let mut groups: Vec<(String, Vec<&Event>)> = Vec::new();
        for event in &self.events {
            let Some(key) = mapping.joins(event, tables.as_ref())? else { continue };
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, events)) => events.push(event),
                None => groups.push((key, vec![event])),
            }
        }
        let mut outputs = Vec::new();
        for (_, events) in groups {
            if let Ok(event) = grouped_event(&events) {
                outputs.extend(mapping.outputs(&event, tables.as_ref(), &name)?);
            }
        }
        Ok(outputs)
    }
}

fn told(output: &Output) -> String {
    match &output.body {
        None => "it is delivered whole".to_owned(),
        Some(Ok(body)) => format!("it is sent as {body}"),
        Some(Err(fault)) => format!("it fails: {fault}"),
    }
}

fn compare(path: &str, wanted: Option<&Json>, got: Option<&Json>, differences: &mut Vec<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (wanted, got) {
        (Some(Json::Object(wanted)), Some(Json::Object(got))) => {
            for name in wanted.keys().chain(got.keys().filter(|name| !wanted.contains_key(*name))) {
                compare(&below(name), wanted.get(name), got.get(name), differences);
            }
        }
        (Some(Json::Array(wanted)), Some(Json::Array(got))) => {
            for n in 0..wanted.len().max(got.len()) {
                compare(&below(&n.to_string()), wanted.get(n), got.get(n), differences);
            }
        }
        (wanted, got) if wanted == got => {}
        (wanted, got) => {
            let told = |value: Option<&Json>| value.map_or_else(|| "nothing".to_owned(), Json::to_string);
            differences.push(format!("- {path}: {}", told(wanted)));
            differences.push(format!("+ {path}: {}", told(got)));
        }
    }
}

fn read(test: &Json, path: &str, file: &Given<'_>, problems: &mut Vec<Problem>) -> Option<Case> {
    let Given { tables, has_map, grouped, .. } = *file;
    let block = Block::new(test, path, &KEYS, problems)?;
    let name = block.text("name", Some("name: an open check is sent"), problems).map(str::to_owned);
    let given = block.path("given");
    let events: Option<Vec<Event>> = match block.get("given") {
        Some(Json::Array(events)) if grouped && !events.is_empty() => {
            events.iter().enumerate().map(|(n, one)| event(one, &format!("{given}.{n}"), n + 1, tables, problems)).collect()
        }
        Some(Json::Array(_)) => {
            let help = if grouped { "write at least one event" } else { "write one event; a list is a transaction, for `group`" };
            problems.push(problem(&given, "is a list", Some(help.into())));
            None
        }
        Some(one) => event(one, &given, 1, tables, problems).map(|event| vec![event]),
        None => {
            problems.push(problem(&given, "is missing", Some("write `given: {op: insert, after: {id: 7}}`".into())));
            None
        }
    };
    let rows = rows(&block, file.lookups, problems);
    let expect = match (block.get("expect"), block.get("filtered"), block.get("fails")) {
        (Some(Json::Array(bodies)), None, None) if has_map && (file.several || grouped) => Some(Expect::Bodies(bodies.clone())),
        (Some(body), None, None) if has_map => Some(Expect::Body(body.clone())),
        (Some(_), None, None) => {
            let help = "write `filtered: false`, or add a `map`".to_owned();
            problems.push(problem(&block.path("expect"), "needs a `map` that says what is sent", Some(help)));
            None
        }
        (None, Some(_), None) => Some(Expect::Filtered(block.flag("filtered", true, problems))),
        (None, None, Some(_)) => block.text("fails", None, problems).map(|leaf| Expect::Fails(leaf.to_owned())),
        _ => {
            problems.push(problem(
                path,
                "must hold one of `expect`, `filtered` and `fails`",
                Some("write `expect: {…}`, `filtered: true` or `fails: map.total`".into()),
            ));
            None
        }
    };
    Some(Case { name: name?, events: events?, rows, expect: expect? })
}

/// The rows that stand there: by table, lists of rows.
fn rows(block: &Block<'_>, lookups: &[Lookup], problems: &mut Vec<Problem>) -> Vec<Event> {
    let mut events = Vec::new();
    for (name, rows) in block.entries("lookup", None, problems) {
        let path = block.path(&format!("lookup.{name}"));
        let Some(table) = lookups.iter().map(|lookup| &lookup.table).find(|(schema, table)| format!("{schema}.{table}") == name) else {
            problems.push(problem(&path, "is no table that the file looks up", Some("name one of `lookup`, with its schema".into())));
            continue;
        };
        let Json::Array(rows) = rows else {
            problems.push(problem(&path, "must be a list of rows", Some("write `[{id: 7, name: Soup}]`".into())));
            continue;
        };
        for (n, row) in rows.iter().enumerate() {
            // Whatever the table's key is, these rows are several.
            let row = json!({"op": "insert", "key": {"row": n}, "after": row});
            events.extend(event(&row, &format!("{path}.{n}"), 0, std::slice::from_ref(table), problems));
        }
    }
    events
}

fn event(given: &Json, path: &str, ordinal: usize, tables: &[(String, String)], problems: &mut Vec<Problem>) -> Option<Event> {
    let block = Block::new(given, path, &GIVEN_KEYS, problems)?;
    let op = block.choice("op", &OPS, problems).unwrap_or("insert");
    let table = match (block.text("table", None, problems), tables) {
        (Some(name), _) => match tables.iter().find(|(schema, table)| format!("{schema}.{table}") == name) {
            Some(table) => table,
            None => {
                problems.push(problem(
                    &block.path("table"),
                    "is not among the tables of `from`",
                    Some("name one of them, or add it there".into()),
                ));
                return None;
            }
        },
        (None, [table]) => table,
        (None, _) => {
            problems.push(problem(
                &block.path("table"),
                "is missing, and `from` has several tables",
                Some("write `table: schema.table`".into()),
            ));
            return None;
        }
    };
    let row = |name: &str| block.get(name).cloned().unwrap_or(Json::Null);
    let mut body = Map::new();
    for (name, value) in [
        ("id", json!(format!("e1-0/1-{ordinal}"))),
        ("op", json!(op)),
        ("schema", json!(table.0)),
        ("table", json!(table.1)),
        ("key", block.get("key").cloned().unwrap_or_else(|| json!({}))),
        ("before", row("before")),
        ("after", row("after")),
        ("unchanged", block.get("unchanged").cloned().unwrap_or_else(|| json!([]))),
        ("commit_lsn", json!("0/1")),
        ("ordinal", json!(ordinal)),
        ("xid", json!(1)),
        ("committed_at", block.get("committed_at").cloned().unwrap_or_else(|| json!("2026-01-01T12:00:00.000000Z"))),
    ] {
        body.insert(name.to_owned(), value);
    }
    if op == Op::Read.as_str() {
        body.insert("id".to_owned(), json!("e1-btest-t-1.0-1"));
    }
    match Event::parse(Bytes::from(Json::Object(body).to_string())) {
        Ok(event) => Some(event),
        Err(error) => {
            problems.push(problem(
                path,
                &format!("is no event: {error}"),
                Some("`key`, `before` and `after` are blocks of columns".into()),
            ));
            None
        }
    }
}

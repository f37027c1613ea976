//! The tests that stand in a connector file: an event, and what is to become of it.

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};
use tillstream_schemas::{Event, Op};

use super::{Mapped, Mapping};
use crate::block::{Block, problem};
use crate::registry::Problem;

const KEYS: [&str; 5] = ["name", "given", "expect", "filtered", "fails"];
const GIVEN_KEYS: [&str; 7] = ["op", "table", "key", "before", "after", "unchanged", "committed_at"];
const OPS: [&str; 4] = ["insert", "update", "delete", "read"];

/// One test.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    event: Event,
    expect: Expect,
}

#[derive(Clone, Debug)]
enum Expect {
    Body(Json),
    Filtered(bool),
    Fails(String),
}

impl Case {
    /// Reads `tests` (paths `tests.0.given.after`). `tables` are the connector's: with one alone an event need not name it.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(tests: &Json, tables: &[(String, String)], has_map: bool) -> Result<Vec<Case>, Vec<Problem>> {
        let mut problems = Vec::new();
        let Json::Array(tests) = tests else {
            return Err(vec![problem("tests", "must be a list", Some("begin each test with `- name:`".into()))]);
        };
        let mut cases: Vec<Case> = Vec::new();
        for (n, test) in tests.iter().enumerate() {
            let path = format!("tests.{n}");
            let before = problems.len();
            let case = read(test, &path, tables, has_map, &mut problems);
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
        let became = mapping.apply(&self.event, "test");
        let told = match &became {
            Ok(Mapped::Filtered) => "it is filtered".to_owned(),
            Ok(Mapped::Whole) => "it is delivered whole".to_owned(),
            Ok(Mapped::Body(body)) => format!("it is sent as {body}"),
            Err(fault) => format!("it fails: {fault}"),
        };
        match (&self.expect, became) {
            (Expect::Filtered(true), Ok(Mapped::Filtered)) | (Expect::Filtered(false), Ok(Mapped::Whole | Mapped::Body(_))) => Ok(()),
            (Expect::Fails(path), Err(fault)) if fault.path == *path => Ok(()),
            (Expect::Body(wanted), Ok(Mapped::Body(body))) => {
                let mut differences = Vec::new();
                let got: Json = serde_json::from_str(&body).unwrap_or_default();
                compare("", Some(wanted), Some(&got), &mut differences);
                if differences.is_empty() { Ok(()) } else { Err(differences) }
            }
            (Expect::Filtered(true), _) => Err(vec!["expected to be filtered".to_owned(), told]),
            (Expect::Filtered(false), _) => Err(vec!["expected to be delivered".to_owned(), told]),
            (Expect::Fails(path), _) => Err(vec![format!("expected to fail at `{path}`"), told]),
            (Expect::Body(_), _) => Err(vec!["expected to be sent".to_owned(), told]),
        }
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

fn read(test: &Json, path: &str, tables: &[(String, String)], has_map: bool, problems: &mut Vec<Problem>) -> Option<Case> {
    let block = Block::new(test, path, &KEYS, problems)?;
    let name = block.text("name", Some("name: an open check is sent"), problems).map(str::to_owned);
    let event = match block.get("given") {
        Some(given) => event(given, &block.path("given"), tables, problems),
        None => {
            problems.push(problem(&block.path("given"), "is missing", Some("write `given: {op: insert, after: {id: 7}}`".into())));
            None
        }
    };
    let expect = match (block.get("expect"), block.get("filtered"), block.get("fails")) {
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
    Some(Case { name: name?, event: event?, expect: expect? })
}

fn event(given: &Json, path: &str, tables: &[(String, String)], problems: &mut Vec<Problem>) -> Option<Event> {
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
        ("id", json!("e1-0/1-1")),
        ("op", json!(op)),
        ("schema", json!(table.0)),
        ("table", json!(table.1)),
        ("key", block.get("key").cloned().unwrap_or_else(|| json!({}))),
        ("before", row("before")),
        ("after", row("after")),
        ("unchanged", block.get("unchanged").cloned().unwrap_or_else(|| json!([]))),
        ("commit_lsn", json!("0/1")),
        ("ordinal", json!(1)),
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

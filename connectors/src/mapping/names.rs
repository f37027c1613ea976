//! The names that expressions may use: variables with their columns, filters, tests, functions.

use std::collections::BTreeSet;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use tillstream_schemas::Event;

use crate::block::{closest, problem};
use crate::registry::Problem;

/// What an expression can see, with its meaning.
pub(super) const VARIABLES: [&str; 15] = [
    "after",
    "before",
    "row",
    "key",
    "op",
    "schema",
    "table",
    "unchanged",
    "id",
    "idempotency_key",
    "version",
    "committed_at",
    "commit_lsn",
    "ordinal",
    "xid",
];

/// What a group's expressions see in place of one event's.
pub(super) const GROUP: [&str; 7] = ["events", "id", "idempotency_key", "version", "committed_at", "commit_lsn", "xid"];

/// What the outputs of `each` see beside.
const ITEM: [&str; 2] = ["item", "index"];

/// Variables whose fields are columns.
const ROWS: [&str; 4] = ["after", "before", "row", "key"];

/// Words of the language that look like names.
const WORDS: [&str; 13] = ["and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"];

/// Which variables an expression may use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope {
    /// Those of a group.
    pub(super) grouped: bool,
    /// Those of an output of `each`.
    pub(super) item: bool,
    /// The idempotency key is known.
    pub(super) named: bool,
}

impl Scope {
    fn variables(self) -> Vec<&'static str> {
        let of: &[&str] = if self.grouped { &GROUP } else { &VARIABLES };
        let item = ITEM.into_iter().filter(|_| self.item);
        of.iter().copied().filter(|name| self.named || *name != "idempotency_key").chain(item).collect()
    }
}

/// The variables of one event: its JSON, `row` (what it is after the change, of a deleted one what is known of it) and its version. Of a group
/// those of its events as a list, and what its transaction is.
pub(super) fn variables(event: &Event, grouped: bool) -> Result<Value, serde_json::Error> {
    use serde_json::Value as Json;
    let mut fields: serde_json::Map<String, Json> = serde_json::from_slice(event.body())?;
    let version = Json::from(event.version().version_text());
    if !grouped {
        complete(&mut fields, version);
        return Ok(Serde(fields).into());
    }
    let mut group: serde_json::Map<String, Json> = GROUP.iter().map(|name| ((*name).to_owned(), Json::Null)).collect();
    for name in ["id", "committed_at", "commit_lsn", "xid"] {
        group.insert(name.to_owned(), fields.get(name).cloned().unwrap_or_default());
    }
    let mut events = match fields.remove("events") {
        Some(Json::Array(events)) => events,
        _ => vec![Json::Object(fields)],
    };
    for event in &mut events {
        if let Json::Object(fields) = event {
            complete(fields, version.clone());
        }
    }
    group.insert("version".to_owned(), version);
    group.insert("events".to_owned(), Json::Array(events));
    Ok(Serde(group).into())
}

fn complete(fields: &mut serde_json::Map<String, serde_json::Value>, version: serde_json::Value) {
    let row = ["after", "before", "key"].iter().find_map(|name| fields.get(*name).filter(|row| row.is_object()).cloned());
    for name in VARIABLES {
        fields.entry(name).or_insert(serde_json::Value::Null);
    }
    // What a change left alone and the server did not send is not there, but the key always is.
    fields.insert("row".to_owned(), row.unwrap_or_default());
    fields.insert("version".to_owned(), version);
}

/// Columns that were seen in expressions.
#[derive(Default)]
pub(super) struct Used {
    columns: BTreeSet<String>,
    /// Every field and every text: whatever column an expression asks for is among them.
    words: BTreeSet<String>,
    /// Names of lookups.
    lookups: Vec<String>,
    /// Of the expression at hand.
    pub(super) scope: Scope,
}

impl Used {
    pub(super) fn new(lookups: Vec<String>) -> Used {
        Used { lookups, ..Used::default() }
    }

    /// The columns, and the words among which every column is that is asked for by any way.
    pub(super) fn into_names(self) -> (Vec<String>, BTreeSet<String>) {
        (self.columns.into_iter().collect(), self.words)
    }

    /// Notes columns, and says which names do not exist. What stands where is told by its neighbours: a filter follows `|`, a test `is`, a
    /// field `.`, a function stands before `(`, a keyword argument before `=`.
    pub(super) fn check(
        &mut self,
        text: &str,
        is_expression: bool,
        path: &str,
        environment: &Environment<'_>,
        problems: &mut Vec<Problem>,
    ) {
        // What has no tokens was refused as syntax already.
        let tokens: Vec<Token<'_>> = tokenize(text, is_expression, SyntaxConfig::default()).map_while(Result::ok).map(|(t, _)| t).collect();
        let mut unknown = |what: &str, name: &str, known: Vec<&str>| {
            let help = match closest(name, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if known.is_empty() => "there is none".to_owned(),
                None => format!("there are {}", known.join(", ")),
            };
            problems.push(problem(path, &format!("uses the unknown {what} `{name}`"), Some(help)));
        };
        let variables = self.scope.variables();
        for (n, token) in tokens.iter().enumerate() {
            let before = n.checked_sub(1).map(|n| &tokens[n]);
            let text = match token {
                Token::Ident(field) if matches!(before, Some(Token::Dot)) => field,
                Token::Str(text) => text,
                Token::String(text) => &**text,
                _ => "",
            };
            // `attribute='after.qty'` asks for `qty`; a column may also have a point in its name.
            self.words.extend(text.split('.').chain([text]).map(str::to_owned));
            let Token::Ident(name) = token else { continue };
            let (after, then) = (tokens.get(n + 1), tokens.get(n + 2));
            let negated = matches!(before, Some(Token::Ident("not"))) && n >= 2 && matches!(tokens[n - 2], Token::Ident("is"));
            match before {
                Some(Token::Pipe) => {
                    if !exists(environment, name, "filter") {
                        unknown("filter", name, super::filters::FILTERS.to_vec());
                    }
                    if let (&"with", Some(lookup)) = (name, called(after, then))
                        && !self.lookups.iter().any(|known| known == lookup)
                    {
                        unknown("lookup", lookup, self.lookups.iter().map(String::as_str).collect());
                    }
                }
                Some(Token::Ident("is")) if *name == "not" => {}
                _ if negated || matches!(before, Some(Token::Ident("is"))) => {
                    if !exists(environment, name, "test") {
                        unknown("test", name, super::filters::TESTS.to_vec());
                    }
                }
                Some(Token::Dot) => {}
                _ if matches!(after, Some(Token::ParenOpen)) && !WORDS.contains(name) => match then {
                    _ if !super::filters::FUNCTIONS.contains(name) => unknown("function", name, super::filters::FUNCTIONS.to_vec()),
                    Some(Token::Str(column)) if *name == "changed" => drop(self.columns.insert((*column).to_owned())),
                    Some(Token::Str(lookup)) if *name == "lookup" && !self.lookups.iter().any(|known| known == lookup) => {
                        unknown("lookup", lookup, self.lookups.iter().map(String::as_str).collect());
                    }
                    _ => {}
                },
                // `default(value, boolean=true)`.
                _ if matches!(after, Some(Token::Assign)) => {}
                _ if WORDS.contains(name) => {}
                _ if variables.contains(name) => {
                    let column = match (after, then) {
                        (Some(Token::Dot), Some(Token::Ident(column))) => Some((*column).to_owned()),
                        (Some(Token::BracketOpen), Some(Token::Str(column))) => Some((*column).to_owned()),
                        (Some(Token::BracketOpen), Some(Token::String(column))) => Some(column.to_string()),
                        _ => None,
                    };
                    self.columns.extend(column.filter(|_| ROWS.contains(name)));
                }
                _ => unknown("name", name, variables.clone()),
            }
        }
    }
}

/// The text that a filter is called with first.
fn called<'t>(after: Option<&Token<'t>>, then: Option<&Token<'t>>) -> Option<&'t str> {
    match (after, then) {
        (Some(Token::ParenOpen), Some(Token::Str(text))) => Some(text),
        _ => None,
    }
}

/// Whether there is a filter or a test of this name; `what` is the test that tells.
fn exists(environment: &Environment<'_>, name: &str, what: &str) -> bool {
    let asked = environment.compile_expression(if what == "filter" { "name is filter" } else { "name is test" });
    asked.and_then(|asked| asked.eval(minijinja::context! { name })).is_ok_and(|there| there.is_true())
}

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

/// Variables whose fields are columns.
const ROWS: [&str; 4] = ["after", "before", "row", "key"];

/// Words of the language that look like names.
const WORDS: [&str; 13] = ["and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"];

/// The variables of one event: its JSON, `row` (what it is after the change, of a deleted row what is known of it), its version and key.
pub(super) fn variables(event: &Event, key: &str) -> Result<Value, serde_json::Error> {
    use serde_json::Value as Json;
    let mut fields: serde_json::Map<String, Json> = serde_json::from_slice(event.body())?;
    let row = ["after", "before", "key"].iter().find_map(|name| fields.get(*name).filter(|row| row.is_object()).cloned());
    for name in VARIABLES {
        fields.entry(name).or_insert(Json::Null);
    }
    // What a change left alone and the server did not send is not there, but the key always is.
    fields.insert("row".to_owned(), row.unwrap_or_default());
    fields.insert("version".to_owned(), event.version().version_text().into());
    fields.insert("idempotency_key".to_owned(), key.into());
    Ok(Serde(fields).into())
}

/// Columns that were seen in expressions.
#[derive(Default)]
pub(super) struct Used {
    columns: BTreeSet<String>,
}

impl Used {
    pub(super) fn columns(self) -> Vec<String> {
        self.columns.into_iter().collect()
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
                None => format!("there are {}", known.join(", ")),
            };
            problems.push(problem(path, &format!("uses the unknown {what} `{name}`"), Some(help)));
        };
        for (n, token) in tokens.iter().enumerate() {
            let Token::Ident(name) = token else { continue };
            let before = n.checked_sub(1).map(|n| &tokens[n]);
            let (after, then) = (tokens.get(n + 1), tokens.get(n + 2));
            let negated = matches!(before, Some(Token::Ident("not"))) && n >= 2 && matches!(tokens[n - 2], Token::Ident("is"));
            match before {
                Some(Token::Pipe) => {
                    if !exists(environment, name, "filter") {
                        unknown("filter", name, super::filters::FILTERS.to_vec());
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
                    _ => {}
                },
                // `default(value, boolean=true)`.
                _ if matches!(after, Some(Token::Assign)) => {}
                _ if WORDS.contains(name) => {}
                _ if VARIABLES.contains(name) => {
                    let column = match (after, then) {
                        (Some(Token::Dot), Some(Token::Ident(column))) => Some((*column).to_owned()),
                        (Some(Token::BracketOpen), Some(Token::Str(column))) => Some((*column).to_owned()),
                        (Some(Token::BracketOpen), Some(Token::String(column))) => Some(column.to_string()),
                        _ => None,
                    };
                    self.columns.extend(column.filter(|_| ROWS.contains(name)));
                }
                _ => unknown("name", name, VARIABLES.to_vec()),
            }
        }
    }
}

/// Whether there is a filter or a test of this name; `what` is the test that tells.
fn exists(environment: &Environment<'_>, name: &str, what: &str) -> bool {
    let asked = environment.compile_expression(if what == "filter" { "name is filter" } else { "name is test" });
    asked.and_then(|asked| asked.eval(minijinja::context! { name })).is_ok_and(|there| there.is_true())
}

//! What a connector file makes of an event: whether it is wanted (`when`) and the JSON that is sent (`map`).
//!
//! ```text
//! map ─compile─▶ a template that sets a variable a leaf ─┐
//!                                 event ─▶ its variables ─┴─▶ values ─▶ the map's shape filled in, as JSON text
//! ```
//!
//! A leaf that is one expression (`"{{ after.total }}"`) keeps its value's type, a text around expressions is a text, everything else stands
//! for itself. Evaluation is pure and deterministic, sees one event, and ends: it has neither statements nor access to anything, and its steps are
//! counted. Messages of a failed evaluation never hold a value.

mod case;
mod filters;
mod names;

use std::fmt;

pub use case::Case;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::Value as Json;
use tillstream_schemas::Event;

use crate::block::problem;
use crate::registry::Problem;
use crate::sink::Reason;

/// Steps one event may cost: a recipe of a thousand lines fits, a loop over a loop over a range does not.
const FUEL: u64 = 100_000;

/// Bytes of one mapped body: as much as an event of the default frame size.
const BODY_MAX: usize = 1 << 20;

/// A checked `when` and `map`.
pub struct Mapping {
    environment: Environment<'static>,
    /// Decides alone: what is filtered need not be such that it could be mapped.
    when: Option<Leaves>,
    map: Option<(Leaves, Shape)>,
    columns: Vec<String>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("map", &self.map).finish_non_exhaustive()
    }
}

/// A map with its leaves numbered.
#[derive(Debug)]
enum Shape {
    Constant(Json),
    Leaf(usize),
    List(Vec<Shape>),
    Object(Vec<(String, Shape)>),
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// `when` says no.
    Filtered,
    /// `when` says yes, and there is no `map`: the event goes as it is.
    Whole,
    /// The JSON to send.
    Body(String),
}

/// Why an event could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The leaf, as `map.customer.email`.
    pub path: String,
    /// What went wrong, without values.
    pub what: String,
    /// More, which may hold values: for whoever looks at a test or a preview, never for a log.
    pub detail: Option<String>,
}

impl Fault {
    /// For a dead letter: without values.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason { code: "mapping.failed".to_owned(), message: format!("`{}`: {}", self.path, self.what) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path, self.what)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

/// The expressions of one template.
#[derive(Debug)]
struct Leaves {
    /// The template's name.
    template: &'static str,
    /// Its text, until it is compiled.
    source: String,
    /// Path of each leaf, by number, and the template's line on which it begins.
    leaves: Vec<(String, usize)>,
}

impl Mapping {
    /// Checks `when` (a path `when`) and `map` (paths `map.…`): syntax, names of variables, filters, tests and functions. Pure.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn compile(when: Option<&str>, map: Option<&Json>) -> Result<Mapping, Vec<Problem>> {
        let environment = environment();
        let mut problems = Vec::new();
        let mut compiler = Compiler { environment, used: names::Used::default(), problems: &mut problems };
        let when = when.map(|when| {
            let mut leaves = Leaves::new("when");
            match expression(&compiler.environment, when) {
                Ok(Some(expression)) => compiler.expression(&mut leaves, "when", expression),
                Ok(None) => {
                    let help = "write `when: \"{{ after.active }}\"`".to_owned();
                    compiler.problems.push(problem("when", "must be one expression", Some(help)));
                }
                Err(error) => compiler.problems.push(syntax("when", &error)),
            }
            compiler.finish(leaves)
        });
        let map = map.map(|map| {
            if !map.is_object() {
                compiler.problems.push(problem(
                    "map",
                    "must be a block: the JSON object that is sent",
                    Some("write `map: {id: \"{{ after.id }}\"}`".into()),
                ));
            }
            let mut leaves = Leaves::new("map");
            let shape = compiler.shape(&mut leaves, map, "map");
            (compiler.finish(leaves), shape)
        });
        let Compiler { environment, used, .. } = compiler;
        if problems.is_empty() { Ok(Mapping { environment, when, map, columns: used.columns() }) } else { Err(problems) }
    }

    /// Whether it makes the JSON that is sent.
    #[must_use]
    pub fn has_map(&self) -> bool {
        self.map.is_some()
    }

    /// The columns it reads of the row, in alphabetical order.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What becomes of an event. `key` is its idempotency key.
    ///
    /// # Errors
    /// The leaf that cannot be evaluated, as a column that the event does not have.
    pub fn apply(&self, event: &Event, key: &str) -> Result<Mapped, Fault> {
        let whole = |what: &str| Fault { path: "map".to_owned(), what: what.to_owned(), detail: None };
        let variables = names::variables(event, key).map_err(|_| whole("the event is no JSON object"))?;
        if let Some(when) = &self.when {
            let value = self.evaluate(when, variables.clone())?.swap_remove(0);
            match value.try_into() {
                Ok(true) => {}
                Ok(false) => return Ok(Mapped::Filtered),
                Err(_) => return Err(when.fault_at(0, "is neither true nor false")),
            }
        }
        let Some((leaves, shape)) = &self.map else { return Ok(Mapped::Whole) };
        let values = self.evaluate(leaves, variables)?;
        let body = leaves.fill(shape, &values)?.to_string();
        if body.len() > BODY_MAX {
            return Err(whole(&format!("what is to be sent is longer than {BODY_MAX} bytes")));
        }
        Ok(Mapped::Body(body))
    }

    /// The value of every leaf.
    fn evaluate(&self, leaves: &Leaves, variables: Value) -> Result<Vec<Value>, Fault> {
        let template = self.environment.get_template(leaves.template).map_err(|error| leaves.fault(&error))?;
        let captured = template.render_captured(variables).map_err(|error| leaves.fault(&error))?;
        let value = |leaf| captured.state().lookup(&variable(leaf)).filter(|value| !value.is_undefined());
        (0..leaves.leaves.len()).map(|leaf| value(leaf).ok_or_else(|| leaves.fault_at(leaf, "the event does not have it"))).collect()
    }
}

impl Leaves {
    fn new(template: &'static str) -> Leaves {
        Leaves { template, source: String::new(), leaves: Vec::new() }
    }

    /// Notes where the next leaf begins and names its variable.
    fn begin(&mut self, path: &str) -> String {
        self.leaves.push((path.to_owned(), 1 + self.source.matches('\n').count()));
        variable(self.leaves.len() - 1)
    }

    fn fill(&self, shape: &Shape, values: &[Value]) -> Result<Json, Fault> {
        Ok(match shape {
            Shape::Constant(json) => json.clone(),
            Shape::Leaf(leaf) => {
                serde_json::to_value(&values[*leaf]).map_err(|_| self.fault_at(*leaf, "has a value that JSON cannot hold"))?
            }
            Shape::List(items) => Json::Array(items.iter().map(|item| self.fill(item, values)).collect::<Result<_, _>>()?),
            Shape::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| Ok((name.clone(), self.fill(field, values)?)));
                Json::Object(fields.collect::<Result<_, Fault>>()?)
            }
        })
    }

    fn fault_at(&self, leaf: usize, what: &str) -> Fault {
        Fault { path: self.leaves[leaf].0.clone(), what: what.to_owned(), detail: None }
    }

    /// The leaf on whose line an error stands.
    fn fault(&self, error: &Error) -> Fault {
        let line = error.line().unwrap_or(0);
        let path = self.leaves.iter().rev().find(|(_, begins)| *begins <= line).map_or(self.template, |(path, _)| path);
        let what = match error.kind() {
            ErrorKind::UndefinedError => "the event does not have it".to_owned(),
            ErrorKind::OutOfFuel => format!("takes more than {FUEL} steps"),
            kind => kind.to_string(),
        };
        Fault { path: path.to_owned(), what, detail: error.detail().map(str::to_owned) }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    filters::add(&mut environment);
    environment
}

/// The expression between the braces, when the text is one expression and nothing else.
fn expression<'t>(environment: &Environment<'_>, text: &'t str) -> Result<Option<&'t str>, Error> {
    let inner = text.trim().strip_prefix("{{").and_then(|t| t.strip_suffix("}}"));
    let Some(inner) = inner.map(str::trim) else { return Ok(None) };
    match environment.compile_expression(inner) {
        Ok(_) => Ok(Some(inner)),
        // Two expressions with a text between them look like one.
        Err(_) if inner.contains("{{") => Ok(None),
        Err(error) => Err(error),
    }
}

fn variable(leaf: usize) -> String {
    format!("leaf_{leaf}")
}

struct Compiler<'p> {
    environment: Environment<'static>,
    used: names::Used,
    problems: &'p mut Vec<Problem>,
}

impl Compiler<'_> {
    fn shape(&mut self, leaves: &mut Leaves, value: &Json, path: &str) -> Shape {
        match value {
            Json::Object(fields) => {
                let below = |(name, value): (&String, &Json)| (name.clone(), self.shape(leaves, value, &format!("{path}.{name}")));
                Shape::Object(fields.iter().map(below).collect())
            }
            Json::Array(items) => {
                let below = |(n, value)| self.shape(leaves, value, &format!("{path}.{n}"));
                Shape::List(items.iter().enumerate().map(below).collect())
            }
            Json::String(text) if text.contains("{%") || text.contains("{#") => {
                let help = "only expressions are evaluated: `{{ … }}`".to_owned();
                self.problems.push(problem(path, "holds a statement or a comment of a template", Some(help)));
                Shape::Constant(Json::Null)
            }
            Json::String(text) if text.contains("{{") => {
                let leaf = leaves.leaves.len();
                match expression(&self.environment, text) {
                    Ok(Some(expression)) => self.expression(leaves, path, expression),
                    Ok(None) => self.text(leaves, path, text),
                    Err(error) => self.problems.push(syntax(path, &error)),
                }
                Shape::Leaf(leaf)
            }
            constant => Shape::Constant(constant.clone()),
        }
    }

    fn expression(&mut self, leaves: &mut Leaves, path: &str, expression: &str) {
        self.used.check(expression, true, path, &self.environment, self.problems);
        let variable = leaves.begin(path);
        leaves.source.push_str(&format!("{{% set {variable} = ({expression}) %}}\n"));
    }

    fn text(&mut self, leaves: &mut Leaves, path: &str, text: &str) {
        if let Err(error) = self.environment.template_from_str(text) {
            return self.problems.push(syntax(path, &error));
        }
        self.used.check(text, false, path, &self.environment, self.problems);
        let variable = leaves.begin(path);
        leaves.source.push_str(&format!("{{% set {variable} %}}{text}{{% endset %}}\n"));
    }

    fn finish(&mut self, mut leaves: Leaves) -> Leaves {
        let source = std::mem::take(&mut leaves.source);
        if self.problems.is_empty()
            && let Err(error) = self.environment.add_template_owned(leaves.template, source)
        {
            self.problems.push(syntax(leaves.template, &error));
        }
        leaves
    }
}

fn syntax(path: &str, error: &Error) -> Problem {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    problem(path, &format!("is no expression: {what}"), Some("write Jinja's expressions, as `{{ after.id }}`".to_owned()))
}

#[cfg(test)]
mod tests;

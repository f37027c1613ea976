//! What a connector file makes of an event: whether it is wanted (`when`) and the JSON that is sent (`map`).
//!
//! ```text
//! map ─compile─▶ a template that sets a variable a leaf ─┐
//!                                 event ─▶ its variables ─┴─▶ values ─▶ the map's shape filled in, as JSON text
//!
//! event ─when─▶ ─each─▶ items ─id, key─▶ every output's names ─map─▶ every output's JSON
//! ```
//!
//! All names of an event's outputs are known before anything is made of it: an event whose outputs cannot be named is one that cannot be mapped,
//! and an output that cannot be mapped leaves the others alone.
//!
//! A leaf that is one expression (`"{{ after.total }}"`) keeps its value's type, a text around expressions is a text, everything else stands
//! for itself. Evaluation is pure and deterministic, sees one event, and ends: it has neither statements nor access to anything, and its steps are
//! counted. Messages of a failed evaluation never hold a value.

mod case;
mod filters;
mod helpers;
mod joins;
mod lookup;
mod names;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
pub use case::{Case, Given};
pub use lookup::{Lookup, Tables, TablesError};
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::Value as Json;
use tillstream_schemas::envelope::EventError;
use tillstream_schemas::{Event, amend};

use crate::block::problem;
use crate::registry::Problem;
use crate::show::{disguised, masked};
use crate::sink::Reason;

/// Steps one event may cost: a recipe of a thousand lines fits, a loop over a loop over a range does not.
const FUEL: u64 = 100_000;

/// Bytes of one mapped body: as much as an event of the default frame size.
const BODY_MAX: usize = 1 << 20;

/// Outputs of one event: a check of a hundred lines with ten ingredients each.
pub const OUTPUTS_MAX: usize = 1_000;

/// Bytes of all of them.
const OUTPUTS_BYTES_MAX: usize = 8 << 20;

/// What a connector file says, before it is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Definition<'d> {
    /// Which events are wanted.
    pub when: Option<&'d str>,
    /// What an output is about: outputs with one key keep their order.
    pub key: Option<&'d str>,
    /// The list whose items make an output each.
    pub each: Option<&'d str>,
    /// Names the fact that an output states.
    pub id: Option<&'d str>,
    /// What is sent.
    pub map: Option<&'d Json>,
    /// Rows that may be looked up.
    pub lookups: &'d [Lookup],
    /// Whether the events of a transaction are one: `events` is their list, and of one event alone `when` and `key` are asked.
    pub grouped: bool,
}

/// A checked mapping.
pub struct Mapping {
    environment: Environment<'static>,
    /// Decides alone: what is filtered need not be such that it could be mapped.
    when: Option<Leaves>,
    key: Option<(Leaves, Shape)>,
    each: Option<Leaves>,
    id: Option<(Leaves, Shape)>,
    map: Option<(Leaves, Shape)>,
    columns: Vec<String>,
    /// Among which every column is that an expression or a lookup asks for.
    words: BTreeSet<String>,
    lookups: Vec<Lookup>,
    grouped: bool,
}

/// One thing to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Names its effect at the target.
    pub idempotency_key: String,
    /// What it is about; `None` means the event's row.
    pub key: Option<String>,
    /// The JSON to send, or why there is none; `None` without a `map`: the event goes as it is.
    pub body: Option<Result<String, Fault>>,
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

impl Shape {
    /// What was made, with the values of expressions replaced.
    fn leaves(&self, made: &Json, replace: &dyn Fn(&Json) -> Json) -> Json {
        match (self, made) {
            (Shape::Constant(_), constant) => constant.clone(),
            (Shape::List(shapes), Json::Array(items)) => {
                shapes.iter().zip(items).map(|(shape, item)| shape.leaves(item, replace)).collect()
            }
            (Shape::Object(shapes), Json::Object(fields)) => {
                let field = |(name, shape): &(String, Shape)| Some((name.clone(), shape.leaves(fields.get(name)?, replace)));
                Json::Object(shapes.iter().filter_map(field).collect())
            }
            (_, value) => replace(value),
        }
    }
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
    /// Stable code.
    pub code: &'static str,
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
        Reason { code: self.code.to_owned(), message: format!("`{}`: {}", self.path, self.what) }
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
    /// Checks `when` and `map` alone, as [`Mapping::define`].
    ///
    /// # Errors
    /// Every problem at once.
    pub fn compile(when: Option<&str>, map: Option<&Json>) -> Result<Mapping, Vec<Problem>> {
        Mapping::define(Definition { when, map, ..Definition::default() })
    }

    /// Checks everything (paths `when`, `map.…`): syntax, names of variables, filters, tests, functions and lookups. Pure.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn define(definition: Definition<'_>) -> Result<Mapping, Vec<Problem>> {
        let Definition { when, key, each, id, map, lookups, grouped } = definition;
        let mut problems = Vec::new();
        let used = names::Used::new(lookups.iter().map(|l| l.name.clone()).collect());
        let mut compiler = Compiler { environment: environment(), used, problems: &mut problems };
        let (one, all) = (names::Scope { grouped: false, item: false, named: false }, names::Scope { grouped, item: false, named: false });
        compiler.used.scope = one;
        let when = when.map(|when| compiler.single("when", when, "when: \"{{ after.active }}\""));
        compiler.used.scope = if grouped { one } else { names::Scope { item: each.is_some(), ..all } };
        let key = key.map(|key| compiler.naming("key", key, "key: \"{{ after.order_id }}\""));
        compiler.used.scope = all;
        let has_each = each.is_some();
        let each = each.map(|each| compiler.single("each", each, "each: \"{{ lookup('lines', after.recipe_id) }}\""));
        compiler.used.scope.item = has_each;
        let id = id.map(|id| compiler.naming("id", id, "id: \"sale:{{ key.id }}\""));
        if has_each && id.is_none() {
            let help = "add `id: \"sale:{{ key.id }}:{{ item.ingredient_id }}\"`, which names what each output states".to_owned();
            compiler.problems.push(problem("each", "needs an `id`: nothing else tells the outputs of one event apart", Some(help)));
        }
        compiler.used.scope.named = true;
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
        let needy = [("each", has_each), ("group", grouped)].into_iter().find(|(_, there)| *there && map.is_none());
        if let Some((path, _)) = needy {
            compiler.problems.push(problem(path, "needs a `map` that says what is sent", Some("add a `map`".to_owned())));
        }
        let Compiler { environment, used, .. } = compiler;
        if !problems.is_empty() {
            return Err(problems);
        }
        let (columns, mut words) = used.into_names();
        words.extend(lookups.iter().flat_map(|lookup| lookup.by.iter().chain(lookup.columns.iter().flatten())).cloned());
        Ok(Mapping { environment, when, key, each, id, map, columns, words, lookups: lookups.to_vec(), grouped })
    }

    /// What the `map` made, with the values of its expressions replaced by the names of their types: what stands in the file stays.
    #[must_use]
    pub fn masked(&self, made: &Json) -> Json {
        self.map.as_ref().map_or_else(|| masked(made), |(_, shape)| shape.leaves(made, &masked))
    }

    /// What the `map` made, with another value of the same form wherever an expression stands: whatever a target makes of both alike holds no value of
    /// the row.
    #[must_use]
    pub fn disguised(&self, made: &Json) -> Json {
        self.map.as_ref().map_or_else(|| disguised(made), |(_, shape)| shape.leaves(made, &disguised))
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

    /// Whether it may ask for this column of a row, whichever way: a name that stands nowhere in it is not asked for.
    #[must_use]
    pub fn mentions(&self, column: &str) -> bool {
        self.words.contains(column)
    }

    /// Whether the events of a transaction are one.
    #[must_use]
    pub fn is_grouped(&self) -> bool {
        self.grouped
    }

    /// Whether an event may have several outputs.
    #[must_use]
    pub fn has_each(&self) -> bool {
        self.each.is_some()
    }

    /// Whether outputs are named by the fact they state.
    #[must_use]
    pub fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// Whether outputs are ordered by a key of their own.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// What it looks up.
    #[must_use]
    pub fn lookups(&self) -> &[Lookup] {
        &self.lookups
    }

    /// What becomes of an event by a mapping without `each`, `id` and lookups. `key` is its idempotency key.
    ///
    /// # Errors
    /// The leaf that cannot be evaluated, as a column that the event does not have.
    pub fn apply(&self, event: &Event, key: &str) -> Result<Mapped, Fault> {
        match self.outputs(event, None, &|_| key.to_owned())?.pop() {
            None => Ok(Mapped::Filtered),
            Some(Output { body: None, .. }) => Ok(Mapped::Whole),
            Some(Output { body: Some(body), .. }) => body.map(Mapped::Body),
        }
    }

    /// Of a grouped mapping: the group that an event joins, empty without a `key`; `None` when it is not wanted.
    ///
    /// # Errors
    /// The leaf that cannot be evaluated.
    pub fn joins(&self, event: &Event, tables: Option<&Arc<Tables>>) -> Result<Option<String>, Fault> {
        let variables = variables(event, tables, false)?;
        if !self.passes(&variables)? {
            return Ok(None);
        }
        match &self.key {
            Some(key) => self.name(key, variables).map(Some),
            None => Ok(Some(String::new())),
        }
    }

    /// What is to be delivered for an event (of a grouped mapping: for a group, whose event has `events`); nothing when `when` says no. `name` makes an
    /// idempotency key of the fact that `id` names, or of nothing.
    ///
    /// # Errors
    /// The leaf that cannot be evaluated, when it is none of one output's `map`.
    pub fn outputs(
        &self,
        event: &Event,
        tables: Option<&Arc<Tables>>,
        name: &dyn Fn(Option<&str>) -> String,
    ) -> Result<Vec<Output>, Fault> {
        let base = variables(event, tables, self.grouped)?;
        if !self.grouped && !self.passes(&base)? {
            return Ok(Vec::new());
        }
        let contexts = match &self.each {
            Some(each) => self.items(each, &base)?,
            None => vec![base],
        };
        let mut outputs: Vec<Output> = Vec::with_capacity(contexts.len());
        for context in &contexts {
            let fact = self.id.as_ref().map(|id| self.name(id, context.clone())).transpose()?;
            let key = self.key.as_ref().filter(|_| !self.grouped).map(|key| self.name(key, context.clone())).transpose()?;
            outputs.push(Output { idempotency_key: name(fact.as_deref()), key, body: None });
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(id) = &self.id
            && !outputs.iter().all(|output| seen.insert(output.idempotency_key.clone()))
        {
            return Err(Fault { code: "mapping.duplicate_id", ..id.0.fault_at(0, "two outputs of the event have one id") });
        }
        let mut bytes = 0;
        for (output, context) in outputs.iter_mut().zip(contexts) {
            output.body = self.body(context, &output.idempotency_key);
            bytes += output.body.iter().flatten().map(String::len).sum::<usize>();
            if bytes > OUTPUTS_BYTES_MAX {
                return Err(whole(&format!("all that is to be sent for the event is longer than {OUTPUTS_BYTES_MAX} bytes")));
            }
        }
        Ok(outputs)
    }

    fn passes(&self, variables: &Value) -> Result<bool, Fault> {
        let Some(when) = &self.when else { return Ok(true) };
        let value = self.evaluate(when, variables.clone())?.swap_remove(0);
        value.try_into().map_err(|_| when.fault_at(0, "is neither true nor false"))
    }

    /// The variables of each item.
    fn items(&self, each: &Leaves, base: &Value) -> Result<Vec<Value>, Fault> {
        let list = self.evaluate(each, base.clone())?.swap_remove(0);
        let items = match list.kind() {
            ValueKind::Seq | ValueKind::Iterable => list.try_iter().map_err(|error| each.fault(&error))?,
            _ => return Err(each.fault_at(0, "is no list")),
        };
        let mut contexts = Vec::new();
        for (index, item) in items.enumerate() {
            if index == OUTPUTS_MAX {
                return Err(each.fault_at(0, &format!("has more than {OUTPUTS_MAX} items")));
            }
            contexts.push(minijinja::context! { item, index, ..base.clone() });
        }
        Ok(contexts)
    }

    /// A name, which is a text or a number.
    fn name(&self, (leaves, shape): &(Leaves, Shape), variables: Value) -> Result<String, Fault> {
        match leaves.fill(shape, &self.evaluate(leaves, variables)?)? {
            Json::String(text) if !text.is_empty() => Ok(text),
            Json::Number(number) => Ok(number.to_string()),
            _ => Err(leaves.fault_at(0, "is neither a text nor a number, or empty")),
        }
    }

    fn body(&self, variables: Value, key: &str) -> Option<Result<String, Fault>> {
        let (leaves, shape) = self.map.as_ref()?;
        let filled = || {
            let variables = minijinja::context! { idempotency_key => key, ..variables };
            let body = leaves.fill(shape, &self.evaluate(leaves, variables)?)?.to_string();
            if body.len() > BODY_MAX {
                return Err(whole(&format!("what is to be sent is longer than {BODY_MAX} bytes")));
            }
            Ok(body)
        };
        Some(filled())
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
        let path = self.leaves.get(leaf).map_or(self.template, |(path, _)| path);
        Fault { code: FAILED, path: path.to_owned(), what: what.to_owned(), detail: None }
    }

    /// The leaf on whose line an error stands.
    fn fault(&self, error: &Error) -> Fault {
        let line = error.line().unwrap_or(0);
        let path = self.leaves.iter().rev().find(|(_, begins)| *begins <= line).map_or(self.template, |(path, _)| path);
        let missing = std::error::Error::source(error).is_some_and(|source| source.is::<joins::Missing>());
        let what = match error.kind() {
            // What it says names the lookup and no value.
            _ if missing => error.detail().unwrap_or_default().to_owned(),
            ErrorKind::UndefinedError => "the event does not have it".to_owned(),
            ErrorKind::OutOfFuel => format!("takes more than {FUEL} steps"),
            kind => kind.to_string(),
        };
        let code = if missing { "mapping.lookup_missing" } else { FAILED };
        Fault { code, path: path.to_owned(), what, detail: error.detail().filter(|_| !missing).map(str::to_owned) }
    }
}

/// What a grouped mapping is given for the events of a transaction: the first of them, with all of them in `events`. There is at least one.
///
/// # Errors
/// A body that is no event.
pub fn grouped_event(events: &[&Event]) -> Result<Event, EventError> {
    let mut list = String::with_capacity(events.iter().map(|event| event.body().len() + 1).sum::<usize>() + 2);
    for event in events {
        list.push(if list.is_empty() { '[' } else { ',' });
        list.push_str(std::str::from_utf8(event.body()).map_err(|_| EventError::Encoding)?);
    }
    list.push(']');
    let first = events.first().ok_or(EventError::Field("events"))?;
    Event::parse(Bytes::from(amend::with_field(first.body(), "events", &list)?))
}

/// The code of what is nothing more particular.
const FAILED: &str = "mapping.failed";

fn whole(what: &str) -> Fault {
    Fault { code: FAILED, path: "map".to_owned(), what: what.to_owned(), detail: None }
}

/// What expressions see of an event, or of a group.
fn variables(event: &Event, tables: Option<&Arc<Tables>>, grouped: bool) -> Result<Value, Fault> {
    let variables = names::variables(event, grouped).map_err(|_| whole("the event is no JSON object"))?;
    Ok(match tables {
        Some(tables) => minijinja::context! { __tables => Value::from_dyn_object(tables.clone()), ..variables },
        None => variables,
    })
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    filters::add(&mut environment);
    helpers::add(&mut environment);
    joins::add(&mut environment);
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
    /// A text that has to be one expression.
    fn single(&mut self, path: &'static str, text: &str, example: &str) -> Leaves {
        let mut leaves = Leaves::new(path);
        match expression(&self.environment, text) {
            Ok(Some(expression)) => self.expression(&mut leaves, path, expression),
            Ok(None) => self.problems.push(problem(path, "must be one expression", Some(format!("write `{example}`")))),
            Err(error) => self.problems.push(syntax(path, &error)),
        }
        self.finish(leaves)
    }

    /// A text with expressions that names something.
    fn naming(&mut self, path: &'static str, text: &str, example: &str) -> (Leaves, Shape) {
        let mut leaves = Leaves::new(path);
        let shape = self.shape(&mut leaves, &Json::from(text), path);
        if matches!(shape, Shape::Constant(Json::String(_))) {
            self.problems.push(problem(path, "is the same for every event", Some(format!("write `{example}`"))));
        }
        (self.finish(leaves), shape)
    }

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
mod facts;
#[cfg(test)]
mod tests;

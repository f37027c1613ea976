//! Rows that a mapping looks up: kept from the events themselves, so that what is found is what stood there at the event's place in the journal,
//! whenever the event is delivered.
//!
//! ```text
//! event ─note─▶ its table's rows, by key ─┬─▶ the row's last image, for events that come without one
//!                                         └─▶ by the columns of each lookup ─▶ `lookup('item', after.item_id)`
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use minijinja::Value;
use minijinja::value::{Object, Serde};
use serde_json::Value as Json;
use tillstream_schemas::{Event, Op, Position};

use crate::block::{Block, names, problem, table_name};
use crate::registry::Problem;

const KEYS: [&str; 5] = ["table", "by", "many", "missing", "columns"];

/// Rows that one lookup may find: a menu fits, a table that should have been looked up by more columns does not.
pub(super) const FOUND_MAX: usize = 10_000;

/// What a kept row takes beside its text: its places in the maps.
const ROW_OVERHEAD: usize = 160;
/// The same for its place in one lookup.
const INDEX_OVERHEAD: usize = 96;

/// One entry of `lookup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Its name in expressions.
    pub name: String,
    /// The table, as schema and name.
    pub table: (String, String),
    /// The columns whose values are asked for.
    pub by: Vec<String>,
    /// Whether it finds a list of rows, or one.
    pub many: bool,
    /// Whether an event that finds nothing cannot be mapped; otherwise it finds none, or an empty list.
    pub required: bool,
    /// The columns to keep, with those of `by`; all when absent.
    pub columns: Option<Vec<String>>,
}

impl Lookup {
    /// Reads `lookup` (paths `lookup.item.by`).
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(block: &Json) -> Result<Vec<Lookup>, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut lookups = Vec::new();
        match block {
            Json::Object(entries) => {
                lookups.extend(entries.iter().filter_map(|(name, entry)| read(name, entry, &mut problems)));
            }
            _ => {
                let help = "write `lookup: {item: {table: public.menu_item, by: id}}`".to_owned();
                problems.push(problem("lookup", "must be a block of names", Some(help)));
            }
        }
        if problems.is_empty() { Ok(lookups) } else { Err(problems) }
    }
}

fn read(name: &str, entry: &Json, problems: &mut Vec<Problem>) -> Option<Lookup> {
    let path = format!("lookup.{name}");
    if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        problems.push(problem(&path, "is no name for a lookup", Some("use letters, digits and `_`".into())));
    }
    let block = Block::new(entry, &path, &KEYS, problems)?;
    let table = block.text("table", Some("table: public.menu_item"), problems);
    let table = table.and_then(|text| table_name(text, &block.path("table"), problems));
    let by = match block.get("by") {
        Some(Json::String(column)) if !column.is_empty() => Some(vec![column.clone()]),
        Some(list @ Json::Array(columns)) if !columns.is_empty() => Some(names(list, &block.path("by"), problems)),
        _ => {
            problems.push(problem(&block.path("by"), "is missing or no column", Some("write `by: id`, the columns it is asked by".into())));
            None
        }
    };
    let many = block.flag("many", false, problems);
    let required = match block.choice("missing", &["park", "none"], problems) {
        Some(word) => word == "park",
        // One row is expected to be there; a list may well be empty.
        None => !many,
    };
    let columns = block.get("columns").map(|list| names(list, &block.path("columns"), problems));
    Some(Lookup { name: name.to_owned(), table: table?, by: by?, many, required, columns })
}

/// Why no more rows can be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TablesError {
    /// They take more memory than they may.
    #[error("the rows that it keeps take more than {limit} bytes ({rows} rows)")]
    Full {
        /// The limit.
        limit: usize,
        /// Rows so far.
        rows: usize,
    },
    /// A table without a key: nothing tells its rows apart.
    #[error("table {0} has no key, so its rows cannot be kept")]
    Keyless(String),
}

impl TablesError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TablesError::Full { .. } => "delivery.lookup_full",
            TablesError::Keyless(_) => "delivery.lookup_keyless",
        }
    }
}

/// The rows that one partition of one connector keeps.
#[derive(Debug)]
pub struct Tables {
    lookups: Vec<Lookup>,
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    tables: HashMap<String, HashMap<String, Table>>,
    bytes: usize,
    rows: usize,
}

#[derive(Debug, Default)]
struct Table {
    /// The columns to keep; all when absent.
    columns: Option<Vec<String>>,
    rows: HashMap<Box<str>, Row>,
    indexes: Vec<Index>,
}

/// A row's last image.
struct Row {
    version: Position,
    /// A JSON object.
    text: Box<str>,
}

/// Shows no value.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("version", &self.version).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Index {
    by: Vec<String>,
    /// Keys of the rows with these values, in order, so that a list is the same every time.
    rows: HashMap<Box<str>, BTreeSet<Box<str>>>,
}

impl Tables {
    /// Nothing kept yet. `images` are the tables whose rows' last images are wanted too; all rows together may take `limit` bytes.
    #[must_use]
    pub fn new(lookups: &[Lookup], images: &[(String, String)], limit: usize) -> Tables {
        let mut tables: HashMap<String, HashMap<String, Table>> = HashMap::new();
        for lookup in lookups {
            let known = tables.get(&lookup.table.0).is_some_and(|t| t.contains_key(&lookup.table.1));
            let table = tables.entry(lookup.table.0.clone()).or_default().entry(lookup.table.1.clone()).or_default();
            let wanted = lookup.columns.as_ref().map(|columns| columns.iter().chain(&lookup.by).cloned().collect::<Vec<_>>());
            table.columns = match (table.columns.take(), wanted) {
                (_, Some(wanted)) if !known => Some(wanted),
                (Some(before), Some(wanted)) => Some([before, wanted].concat()),
                _ => None,
            };
            if !table.indexes.iter().any(|index| index.by == lookup.by) {
                table.indexes.push(Index { by: lookup.by.clone(), rows: HashMap::new() });
            }
        }
        for (schema, table) in images {
            tables.entry(schema.clone()).or_default().entry(table.clone()).or_default().columns = None;
        }
        Tables { lookups: lookups.to_vec(), limit, kept: Mutex::new(Kept { tables, bytes: 0, rows: 0 }) }
    }

    /// Whether rows of this table are kept.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let (Some(schema), Some(table)) = (event.schema(), event.table()) else { return false };
        self.kept().tables.get(schema).is_some_and(|tables| tables.contains_key(table))
    }

    /// Rows kept, and about how many bytes they take.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let kept = self.kept();
        (kept.rows, kept.bytes)
    }

    /// The row of an update or a deletion as it was before, as a JSON object; `None` when the server sent it, or it is not known.
    #[must_use]
    pub fn before(&self, event: &Event) -> Option<String> {
        if !matches!(event.op(), Op::Update | Op::Delete) || event.before().len() > 0 {
            return None;
        }
        let kept = self.kept();
        let table = kept.tables.get(event.schema()?)?.get(event.table()?)?;
        table.rows.get(key(event).as_str()).map(|row| row.text.to_string())
    }

    /// Takes an event in, in the journal's order. Events of other tables change nothing.
    ///
    /// # Errors
    /// No more can be kept.
    pub fn note(&self, event: &Event) -> Result<(), TablesError> {
        let (Some(schema), Some(name)) = (event.schema(), event.table()) else { return Ok(()) };
        let mut guard = self.kept();
        let Kept { tables, bytes, rows } = &mut *guard;
        let Some(table) = tables.get_mut(schema).and_then(|tables| tables.get_mut(name)) else { return Ok(()) };
        match event.op() {
            Op::Truncate => {
                for (key, row) in std::mem::take(&mut table.rows) {
                    *bytes -= table.cost(&key, &row.text);
                    *rows -= 1;
                }
                for index in &mut table.indexes {
                    index.rows.clear();
                }
                return Ok(());
            }
            Op::Message => return Ok(()),
            Op::Insert | Op::Update | Op::Read | Op::Delete => {}
        }
        if event.key().len() == 0 {
            return Err(TablesError::Keyless(format!("{schema}.{name}")));
        }
        let key = key(event);
        if table.rows.get(key.as_str()).is_some_and(|row| row.version > event.version()) {
            return Ok(());
        }
        let was = table.take(&key);
        if let Some(was) = &was {
            *bytes -= table.cost(&key, &was.text);
            *rows -= 1;
        }
        if event.op() == Op::Delete {
            return Ok(());
        }
        let text = table.image(event, was.as_ref());
        *bytes += table.cost(&key, &text);
        *rows += 1;
        table.put(key, Row { version: event.version(), text: text.into() });
        if *bytes > self.limit {
            return Err(TablesError::Full { limit: self.limit, rows: *rows });
        }
        Ok(())
    }

    /// The lookup of this name.
    pub(super) fn lookup(&self, name: &str) -> Option<&Lookup> {
        self.lookups.iter().find(|lookup| lookup.name == name)
    }

    /// The rows whose columns have these values, in the order of their keys; more than [`FOUND_MAX`] are `None`.
    pub(super) fn find(&self, lookup: &Lookup, asked: &[Value]) -> Option<Vec<Value>> {
        let kept = self.kept();
        let table = kept.tables.get(&lookup.table.0).and_then(|tables| tables.get(&lookup.table.1));
        let (Some(table), Some(asked)) = (table, asked.iter().map(asked_text).collect::<Option<Vec<_>>>()) else { return Some(Vec::new()) };
        let index = table.indexes.iter().find(|index| index.by == lookup.by);
        let Some(keys) = index.and_then(|index| index.rows.get(joined(&asked).as_str())) else { return Some(Vec::new()) };
        if keys.len() > FOUND_MAX {
            return None;
        }
        let row = |key: &str| serde_json::from_str::<serde_json::Map<String, Json>>(&table.rows.get(key)?.text).ok();
        Some(keys.iter().filter_map(|key| row(key)).map(|row| Serde(row).into()).collect())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handed to expressions as a hidden variable; offers nothing by itself.
impl Object for Tables {}

impl Table {
    fn cost(&self, key: &str, text: &str) -> usize {
        ROW_OVERHEAD + key.len() + text.len() + self.indexes.len() * (INDEX_OVERHEAD + 2 * key.len())
    }

    /// The new row, with what the server left out because it did not change.
    fn image(&self, event: &Event, was: Option<&Row>) -> String {
        let mut text = String::with_capacity(64);
        let mut put = |name: &str, value: &str| {
            if self.columns.as_ref().is_some_and(|columns| !columns.iter().any(|c| c == name)) {
                return;
            }
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&Json::from(name).to_string());
            text.push(':');
            text.push_str(value);
        };
        for (name, value) in event.after() {
            put(name, value);
        }
        if event.unchanged().len() > 0
            && let Some(was) = was.and_then(|was| serde_json::from_str::<serde_json::Map<String, Json>>(&was.text).ok())
        {
            for name in event.unchanged() {
                if let Some(value) = was.get(name) {
                    put(name, &value.to_string());
                }
            }
        }
        if text.is_empty() {
            text.push('{');
        }
        text.push('}');
        text
    }

    fn put(&mut self, key: String, row: Row) {
        let Table { rows, indexes, .. } = self;
        for index in indexes {
            if let Some(values) = index.values(&row.text) {
                index.rows.entry(values).or_default().insert(key.as_str().into());
            }
        }
        rows.insert(key.into(), row);
    }

    fn take(&mut self, key: &str) -> Option<Row> {
        let row = self.rows.remove(key)?;
        for index in &mut self.indexes {
            let Some(values) = index.values(&row.text) else { continue };
            if let Some(keys) = index.rows.get_mut(&values) {
                keys.remove(key);
                if keys.is_empty() {
                    index.rows.remove(&values);
                }
            }
        }
        Some(row)
    }
}

impl Index {
    /// The values of its columns in this row; `None` when one is missing or null.
    fn values(&self, text: &str) -> Option<Box<str>> {
        let row: HashMap<String, Json> = serde_json::from_str(text).ok()?;
        let value = |column: &String| match row.get(column)? {
            Json::Null => None,
            Json::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let values = self.by.iter().map(value).collect::<Option<Vec<_>>>()?;
        Some(joined(&values).into())
    }
}

/// Names the row within its table.
fn key(event: &Event) -> String {
    let mut key = String::new();
    for (_, value) in event.key() {
        key.push_str(value);
        key.push('\u{1f}');
    }
    key
}

/// As the value stands in a row: 7 and "7" ask for the same. `None` for null.
fn asked_text(value: &Value) -> Option<String> {
    match value.as_str() {
        Some(text) => Some(text.to_owned()),
        None if value.is_none() || value.is_undefined() => None,
        None => Some(serde_json::to_string(value).ok()?),
    }
}

fn joined(values: &[String]) -> String {
    values.join("\u{1f}")
}

//! The `sql:` block.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tillstream_schemas::Op;

use super::dialect::Database;
use super::sink::SqlSink;
use super::{mysql, postgres, sqlite};
use crate::block::{Block, names, problem, table_name};
use crate::registry::{Kind, Problem, Repeats, SinkPlan, Target};
use crate::show::{Shown, Text, Unshown};
use crate::sink::{Compare, Idempotency, Item, LaneId, OnDelete, Reason, Sink};

/// One target table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// As the user wrote it: `stock_txn` or `stock.txn`.
    pub(super) into: String,
    /// Columns that name the row, in source and target alike.
    pub(super) key: Vec<String>,
    /// The other columns that are written.
    pub(super) columns: Vec<String>,
}

/// A checked block.
#[derive(Debug)]
pub(super) struct SqlConfig {
    pub(super) database: Box<dyn Database>,
    /// By (schema, table) of the source.
    pub(super) tables: BTreeMap<(String, String), Table>,
    /// Whether missing parts of our own (mark table, two columns) are created.
    pub(super) create: bool,
    /// Longest time of one statement.
    pub(super) timeout: Duration,
}

impl SqlConfig {
    /// Which of the layouts is this source table's.
    pub(super) fn index(&self, schema: &str, table: &str) -> Option<usize> {
        // A handful at most; the names are compared without making them texts of their own.
        self.tables.keys().position(|(s, t)| t == table && s == schema)
    }
}

impl SqlConfig {
    /// The row that an event would write, in the values of the event: how the target's columns take them is known only there.
    fn show(&self, item: &Item, on_delete: OnDelete) -> Result<Shown, Unshown> {
        if let Some(Err(reason)) = &item.mapped {
            return Err(Unshown::Refused(reason.clone()));
        }
        let event = &item.event;
        let (Some(schema), Some(name)) = (event.schema(), event.table()) else {
            return Err(Unshown::Refused(Reason::new("sql.no_table", "a logical message belongs to no table")));
        };
        let Some(table) = self.tables.get(&(schema.to_owned(), name.to_owned())) else {
            return Err(Unshown::Stops(Reason::new("sql.table_not_mapped", &format!("the block lists no table {schema}.{name}"))));
        };
        let (method, whole) = match (event.op(), on_delete) {
            (Op::Truncate, _) => ("empty", false),
            (Op::Delete, OnDelete::Delete) => ("delete", false),
            (Op::Delete, _) => ("mark as deleted", false),
            _ => ("upsert", true),
        };
        let mut row = Map::new();
        if event.op() != Op::Truncate {
            for column in table.key.iter().chain(table.columns.iter().filter(|_| whole)) {
                match event.column(column) {
                    Some(raw) => drop(row.insert(column.clone(), serde_json::from_str(raw).unwrap_or_default())),
                    // The target keeps what it has.
                    None if event.unchanged().any(|unchanged| unchanged == column) => {}
                    None => {
                        let what = format!("{schema}.{name}: events do not have the column {column}");
                        return Err(Unshown::Stops(Reason::new("sql.column_missing", &what)));
                    }
                }
            }
            row.insert("_version".to_owned(), json!(item.version.version_text()));
        }
        let to = Text::Fixed(table.into.clone());
        Ok(Shown { method: method.to_owned(), to, headers: Vec::new(), body: Value::Object(row), is_of_map: false })
    }
}

/// The database that a URL's scheme names. The error says what is wrong with which part and repeats no value.
fn database(url: &str) -> Result<Box<dyn Database>, String> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "postgres" | "postgresql" => Ok(Box::new(postgres::Address::parse(url)?)),
        "mysql" | "mariadb" => Ok(Box::new(mysql::Address::parse(url)?)),
        "sqlite" => Ok(Box::new(sqlite::Address::parse(url)?)),
        _ => Err("must begin with postgres://, mysql://, mariadb:// or sqlite:".into()),
    }
}

/// The kind `sql`.
#[derive(Debug, Default)]
pub struct SqlKind;

const KEYS: [&str; 4] = ["url", "tables", "create", "timeout"];
const TABLE_KEYS: [&str; 3] = ["into", "key", "columns"];

impl Kind for SqlKind {
    fn name(&self) -> &'static str {
        "sql"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::SQL)
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        if mapped {
            let help = "remove `map`, or deliver to a kind that takes JSON".to_owned();
            problems.push(problem("", "takes the columns that `tables` lists, and no `map`", Some(help)));
        }
        let config = read(block, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(Arc::new(SqlTarget::new(config))),
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, problems: &mut Vec<Problem>) -> Option<SqlConfig> {
    let block = Block::new(value, "", &KEYS, problems)?;
    let url = block.text("url", Some("url: postgres://inventory@db.example/inventory"), problems);
    let database = url.and_then(|url| match database(url) {
        Ok(database) => Some(database),
        Err(why) => {
            problems.push(problem("url", &why, None));
            None
        }
    });
    let mut tables = BTreeMap::new();
    let entries = block.entries("tables", Some("tables: {public.stock_txn: {key: [id], columns: [qty]}}"), problems);
    if entries.is_empty() && block.get("tables").is_some() {
        problems.push(problem("tables", "lists no table", None));
    }
    for (name, value) in entries {
        let path = format!("tables.{name}");
        let source = table_name(name, &path, problems);
        if let (Some(source), Some(table)) = (source, read_table(name, value, &path, problems)) {
            tables.insert(source, table);
        }
    }
    let create = block.flag("create", false, problems);
    let bounds = (Duration::from_millis(100), Duration::from_secs(600));
    let timeout = block.duration("timeout", Duration::from_secs(30), bounds, problems);
    Some(SqlConfig { database: database?, tables, create, timeout })
}

fn read_table(name: &str, value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Table> {
    let block = Block::new(value, path, &TABLE_KEYS, problems)?;
    let default = name.split_once('.').map_or(name, |(_, table)| table);
    let into = block.text("into", None, problems).unwrap_or(default).to_owned();
    let mut list = |key: &str, help: &str| match block.get(key) {
        Some(value) => names(value, &block.path(key), problems),
        None => {
            problems.push(problem(&block.path(key), "is missing", Some(help.to_owned())));
            Vec::new()
        }
    };
    let key = list("key", "list the columns that name a row, as key: [id]");
    let columns = list("columns", "list the columns to write, as columns: [qty, kind]");
    if key.is_empty() {
        return None;
    }
    for own in ["_version", "_deleted"] {
        if key.iter().chain(&columns).any(|c| c == own) {
            problems.push(problem(path, &format!("lists `{own}`, which this sink writes by itself"), None));
        }
    }
    let columns = columns.into_iter().filter(|c| !key.contains(c)).collect();
    Some(Table { into, key, columns })
}

/// A checked `sql` block.
pub(super) struct SqlTarget {
    config: Arc<SqlConfig>,
    plan: SinkPlan,
}

impl fmt::Debug for SqlTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlTarget").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SqlTarget {
    fn new(config: SqlConfig) -> SqlTarget {
        let columns = config.tables.iter().map(|((schema, table), t)| {
            let columns = t.key.iter().chain(&t.columns).cloned().collect();
            (format!("{schema}.{table}"), columns)
        });
        let plan = SinkPlan {
            columns: columns.collect(),
            repeats: Repeats::Compared,
            ..SinkPlan::new(Idempotency::Transactional, config.timeout)
        };
        SqlTarget { plan, config: Arc::new(config) }
    }
}

impl Target for SqlTarget {
    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, lane: LaneId, on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(SqlSink::new(self.config.clone(), lane, on_delete))
    }

    fn show(&self, item: &Item, on_delete: OnDelete) -> Option<Result<Shown, Unshown>> {
        Some(self.config.show(item, on_delete))
    }

    fn compare(&self) -> Option<Box<dyn Compare>> {
        Some(self.config.database.compare(self.config.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_block_lists_what_it_writes() {
        let block = json!({"url": "postgres://u@127.0.0.1/d", "tables": {
            "public.stock_txn": {"into": "stock.txn", "key": ["id"], "columns": ["id", "qty"]},
            "public.order": {"key": ["id"], "columns": []},
        }});
        let target = SqlKind.validate(&block, false).expect("valid");
        let expected = [("public.order", vec!["id"]), ("public.stock_txn", vec!["id", "qty"])];
        let columns: Vec<_> =
            target.plan().columns.iter().map(|(t, c)| (t.as_str(), c.iter().map(String::as_str).collect::<Vec<_>>())).collect();
        assert_eq!(columns, expected);
    }

    #[test]
    fn every_problem_is_named_by_its_path_and_no_secret_is_shown() {
        let block = json!({"url": "postgres://u:hunter2@h/d?sslmode=sometimes", "tabels": {}, "timeout": "1d", "tables": {
            "stock": {"key": ["id"], "columns": ["id"]},
            "public.a": {"key": [], "columns": ["_version", 7]},
            "public.b": {"keys": ["id"], "columns": ["id"]},
        }});
        let problems = SqlKind.validate(&block, false).expect_err("broken");
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        for path in ["tabels", "url", "timeout", "tables.stock", "tables.public.a.columns.1", "tables.public.b.keys", "tables.public.b.key"]
        {
            assert!(paths.contains(&path), "{path} in {paths:?}");
        }
        assert!(!format!("{problems:?}").contains("hunter2"));
    }
}

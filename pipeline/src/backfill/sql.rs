//! The statements of a backfill, and the table they read. Pure text.
//!
//! Values come and go as text: `COPY … TO STDOUT` prints each with its type's own output function, the very function
//! whose text the replication stream carries. A cast to text is another function for some types (`boolean`,
//! `character(n)`, `inet`). Keys are compared by the server's own row comparison, so any ordered type will do.

use std::sync::Arc;

use tillstream_schemas::TableSchema;
use tillstream_schemas::table::Identity;

use crate::capture::CaptureError;
use crate::capture::catalog::{PublishedTable, TableFacts};
use crate::config::{ColumnRules, SourceTable};
use crate::control::KeyTexts;

/// Why a table is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Stable code.
    pub(super) code: &'static str,
    /// What is missing and what helps.
    pub(super) message: String,
}

/// What of a table a job reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// Beside the key; empty means all.
    pub(super) columns: Vec<String>,
    /// Conditions that a row has to meet, as SQL.
    pub(super) conditions: Vec<String>,
}

/// A table as it is read in chunks.
#[derive(Clone, Debug)]
pub(super) struct ChunkedTable {
    /// OID as the stream names it.
    pub(super) oid: u32,
    /// OID of the table itself.
    pub(super) relation: u32,
    /// The columns as published.
    pub(super) schema: Arc<TableSchema>,
    /// Positions of the key columns in `schema`, in the key's order.
    pub(super) key: Arc<[usize]>,
    key_types: Vec<String>,
    /// Positions of the columns that are not read, in order.
    pub(super) omitted: Vec<usize>,
    /// Whether it has partitions of its own.
    pub(super) is_partitioned: bool,
    /// Rows, by the server's estimate; negative when it has none.
    pub(super) rows_estimate: f64,
    /// The whole table in a FROM clause.
    pub(super) from: String,
    conditions: Vec<String>,
}

impl ChunkedTable {
    /// What the catalogue says of a table, made ready for reading.
    ///
    /// # Errors
    /// The outer one when the configuration does not fit the table; the inner one when it cannot be read in chunks.
    pub(super) fn new(
        facts: &TableFacts,
        published: &PublishedTable,
        configured: &SourceTable,
        rules: &ColumnRules,
        choice: &Choice,
    ) -> Result<Result<ChunkedTable, Refusal>, CaptureError> {
        let schema = facts.schema(published, configured, rules)?;
        if !matches!(facts.kind, 'r' | 'p') {
            return Ok(Err(Refusal { code: "backfill.not_a_table", message: "foreign tables and views are not read".to_owned() }));
        }
        // The order of the index, so that the server walks it instead of sorting.
        let names = match facts.identity {
            Identity::Default | Identity::Index => &facts.identity_columns,
            Identity::Full | Identity::Nothing => &facts.primary_key,
        };
        let key: Option<Arc<[usize]>> = names.iter().map(|n| schema.columns.iter().position(|c| c.name == *n)).collect();
        let Some(key) = key.filter(|k| !k.is_empty()) else { return Ok(Err(no_key(facts.identity))) };
        let type_of = |name: &String| facts.columns.iter().find(|c| c.name == *name).map(|c| c.type_name.clone());
        let Some(key_types) = names.iter().map(type_of).collect() else { return Ok(Err(no_key(facts.identity))) };
        // A plain table's children are tables of their own; a partitioned table is its partitions.
        let only = if facts.kind == 'p' { "" } else { "ONLY " };
        let from = format!("{only}{}.{}", quoted(&facts.schema), quoted(&facts.table));
        let omits = |(at, column): (usize, &tillstream_schemas::table::Column)| {
            (!choice.columns.is_empty() && !choice.columns.contains(&column.name) && !key.contains(&at) && !column.in_key).then_some(at)
        };
        let omitted = schema.columns.iter().enumerate().filter_map(omits).filter(|at| !schema.partition_by.contains(at)).collect();
        Ok(Ok(ChunkedTable {
            oid: published.oid,
            relation: facts.oid,
            schema: Arc::new(schema),
            key,
            key_types,
            omitted,
            is_partitioned: facts.kind == 'p',
            rows_estimate: facts.rows_estimate,
            from,
            conditions: published.row_filter.iter().chain(&choice.conditions).cloned().collect(),
        }))
    }

    /// The key's columns, quoted.
    pub(super) fn key_list(&self, order: &str) -> String {
        let names: Vec<String> = self.key.iter().map(|i| format!("{}{order}", quoted(&self.schema.columns[*i].name))).collect();
        names.join(", ")
    }

    fn key_row(&self, key: &KeyTexts) -> String {
        let values = key.0.iter().zip(&self.key_types).map(|(text, of)| format!("{}::{of}", literal(text)));
        format!("ROW({})", values.collect::<Vec<_>>().join(", "))
    }

    /// The table's own conditions and more, as a WHERE clause.
    fn filtered(&self, more: impl IntoIterator<Item = String>) -> String {
        let all: Vec<String> = more.into_iter().chain(self.conditions.iter().map(|c| format!("({c})"))).collect();
        if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
    }

    /// The statement whose row is the greatest key of a part. The scope is left out: the bound only has to be fixed.
    pub(super) fn bound(&self, part: &Source) -> String {
        let condition = part.condition.iter().map(|c| format!(" WHERE ({c})")).collect::<String>();
        format!("SELECT {} FROM {}{condition} ORDER BY {} LIMIT 1", self.key_list(""), part.from, self.key_list(" DESC"))
    }

    /// The statement whose rows are keys that split a part into so many ranges of about the same size.
    pub(super) fn splits(&self, part: &Source, ranges: u16, percent: f64) -> String {
        let key = self.key_list("");
        let condition = part.condition.iter().map(|c| format!(" WHERE ({c})")).collect::<String>();
        let numbers: Vec<String> = (1..ranges).map(|n| format!("c * {n} / {ranges}")).collect();
        format!(
            "SELECT {key} FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) r, count(*) OVER () c \
             FROM {} TABLESAMPLE SYSTEM ({percent}){condition}) s WHERE r IN ({}) ORDER BY {key}",
            part.from,
            numbers.join(", ")
        )
    }

    /// What opens a chunk's transaction: it takes the table's lock and no rows, so that no rewrite can commit between the
    /// reading statement's snapshot and its reading; such a rewrite would make the table look empty to that snapshot.
    /// `LOCK TABLE` would do as well, but wants SELECT on the whole table, where a reading role has it on the published
    /// columns. With READ COMMITTED each statement has its own snapshot, and the reading one prints its own.
    pub(super) fn begin(part: &Source) -> String {
        format!("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT FROM {} LIMIT 0", part.from)
    }

    /// The query that reads the rows after one key and up to another: its snapshot first, then the columns.
    pub(super) fn chunk(&self, part: &Source, after: Option<&KeyTexts>, bound: &KeyTexts, rows: u32) -> String {
        let columns: Vec<String> = (0..self.schema.columns.len()).map(|at| self.column(at, "")).collect();
        let key = format!("ROW({})", self.key_list(""));
        let range = [
            Some(format!("{key} <= {}", self.key_row(bound))),
            after.map(|after| format!("{key} > {}", self.key_row(after))),
            part.condition.as_ref().map(|c| format!("({c})")),
        ];
        format!(
            "SELECT (SELECT pg_current_snapshot()::text), {} FROM {}{} ORDER BY {} LIMIT {rows}",
            columns.join(", "),
            part.from,
            self.filtered(range.into_iter().flatten()),
            self.key_list(""),
        )
    }

    /// The query that reads rows by their keys: its snapshot, whether the row is there, then the columns; of a row that
    /// is not there its key alone.
    pub(super) fn keyed(&self, keys: &[KeyTexts]) -> String {
        let names: Vec<String> = (0..self.key.len()).map(|n| format!("k{n}")).collect();
        let row = |key: &KeyTexts| {
            let values = key.0.iter().zip(&self.key_types).map(|(text, of)| format!("{}::{of}", literal(text)));
            format!("({})", values.collect::<Vec<_>>().join(", "))
        };
        let columns: Vec<String> = (0..self.schema.columns.len())
            .map(|at| match self.key.iter().position(|k| *k == at) {
                Some(n) => format!("k.k{n}"),
                None => self.column(at, "t."),
            })
            .collect();
        let same = self.key.iter().enumerate().map(|(n, at)| format!("t.{} = k.k{n}", quoted(&self.schema.columns[*at].name)));
        let conditions = self.conditions.iter().map(|c| format!(" AND ({c})")).collect::<String>();
        // The table's own columns have to be found by a row filter that does not qualify them, hence the sub-select.
        format!(
            "SELECT (SELECT pg_current_snapshot()::text), (t.tillstream_there IS NOT NULL), {} FROM (VALUES {}) AS k({}) \
             LEFT JOIN LATERAL (SELECT *, 1 AS tillstream_there FROM (SELECT {} FROM {} WHERE true{conditions}) t WHERE {}) t ON true",
            columns.join(", "),
            keys.iter().map(row).collect::<Vec<_>>().join(", "),
            names.join(", "),
            self.schema.columns.iter().map(|c| quoted(&c.name)).collect::<Vec<_>>().join(", "),
            self.from,
            same.collect::<Vec<_>>().join(" AND "),
        )
    }

    /// A column in a SELECT list; one that is not read is NULL.
    fn column(&self, at: usize, of: &str) -> String {
        if self.omitted.binary_search(&at).is_ok() {
            return "NULL".to_owned();
        }
        format!("{of}{}", quoted(&self.schema.columns[at].name))
    }

    /// The query whose plan tells how the job's rows would be found.
    pub(super) fn scoped(&self) -> String {
        format!("SELECT 1 FROM {}{}", self.from, self.filtered([]))
    }

    /// The key of a row that was read; `None` when it holds a NULL, which no key can.
    pub(super) fn key_of(&self, rows: &crate::capture::read_rows::ReadRows, row: usize) -> Option<KeyTexts> {
        self.key.iter().map(|i| rows.get(row, *i).map(str::to_owned)).collect::<Option<Vec<String>>>().map(KeyTexts)
    }

    /// The whole table as one part.
    pub(super) fn whole(&self) -> Source {
        Source { name: String::new(), from: self.from.clone(), condition: None, rows_estimate: self.rows_estimate }
    }
}

fn no_key(identity: Identity) -> Refusal {
    let message = match identity {
        Identity::Full => {
            "it has no primary key; its replica identity FULL names a row by all its values, of which two rows may have the same: a row \
             read twice could not be told from two rows. Add a primary key, or a unique index over NOT NULL columns as replica identity; \
             until then only its changes are captured"
        }
        Identity::Default | Identity::Index | Identity::Nothing => {
            "it has no primary key (and no index as replica identity), so it cannot be read in chunks, and its updates and deletes could \
             not be matched with what was read. Add a primary key; until then only its inserts are captured"
        }
    };
    Refusal { code: "backfill.no_key", message: message.to_owned() }
}

/// Where the rows of a part come from: the table itself or one of its partitions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Source {
    /// Names the part in cursors; empty for the whole table.
    pub(super) name: String,
    /// In a FROM clause.
    pub(super) from: String,
    /// What tells the part's rows from the table's others, where `from` does not.
    pub(super) condition: Option<String>,
    /// Rows, by the server's estimate; negative when it has none.
    pub(super) rows_estimate: f64,
}

/// A name as SQL takes it, always quoted.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal under `standard_conforming_strings`, which every session of ours pins.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::catalog::ColumnFacts;

    fn facts(identity: Identity, primary_key: &[&str], identity_columns: &[&str]) -> TableFacts {
        let column = |name: &str, type_name: &str| ColumnFacts {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: true,
            generated: false,
        };
        TableFacts {
            oid: 7,
            schema: "public".to_owned(),
            table: "Order \"Item\"".to_owned(),
            kind: 'r',
            persistence: 'p',
            is_partition: false,
            row_security: false,
            identity,
            primary_key: primary_key.iter().map(|s| (*s).to_owned()).collect(),
            identity_columns: identity_columns.iter().map(|s| (*s).to_owned()).collect(),
            columns: vec![column("note", "text"), column("day", "date"), column("id", "character(3)")],
            rows_estimate: 0.0,
            rewrites: 0,
        }
    }

    fn published(filter: Option<&str>) -> PublishedTable {
        PublishedTable {
            oid: 9,
            schema: "public".to_owned(),
            table: "Order \"Item\"".to_owned(),
            columns: None,
            row_filter: filter.map(str::to_owned),
            generated: false,
        }
    }

    fn table(facts: &TableFacts, filter: Option<&str>) -> Result<ChunkedTable, Refusal> {
        let configured = SourceTable { schema: facts.schema.clone(), table: facts.table.clone(), partition_by: None };
        ChunkedTable::new(facts, &published(filter), &configured, &ColumnRules::default(), &Choice::default()).expect("fits")
    }

    #[test]
    fn statements_compare_keys_as_the_server_does() {
        let table = table(&facts(Identity::Default, &["id", "day"], &["id", "day"]), Some("(note <> 'x')")).expect("has a key");
        let key = |id: &str| KeyTexts(vec![id.to_owned(), "2026-11-22".to_owned()]);
        let whole = table.whole();
        assert_eq!(
            table.chunk(&whole, Some(&key("a'\\b")), &key("zz "), 10),
            "SELECT (SELECT pg_current_snapshot()::text), \"note\", \"day\", \"id\" FROM ONLY \"public\".\"Order \"\"Item\"\"\" \
             WHERE ROW(\"id\", \"day\") <= ROW('zz '::character(3), '2026-11-22'::date) \
             AND ROW(\"id\", \"day\") > ROW('a''\\b'::character(3), '2026-11-22'::date) \
             AND ((note <> 'x')) ORDER BY \"id\", \"day\" LIMIT 10"
        );
        assert_eq!(
            table.bound(&whole),
            "SELECT \"id\", \"day\" FROM ONLY \"public\".\"Order \"\"Item\"\"\" ORDER BY \"id\" DESC, \"day\" DESC LIMIT 1"
        );
        let mut rows = crate::capture::read_rows::ReadRows::new(3);
        rows.push([Some("n"), Some("2026-11-22"), Some("a  ")]);
        assert_eq!(table.key_of(&rows, 0), Some(KeyTexts(vec!["a  ".to_owned(), "2026-11-22".to_owned()])));
        assert_eq!(table.oid, 9, "the OID by which it is published");
    }

    #[test]
    fn the_key_is_what_old_rows_carry() {
        assert_eq!(table(&facts(Identity::Full, &["id"], &[]), None).expect("has a key").key[..], [2]);
        assert_eq!(table(&facts(Identity::Index, &["id"], &["day"]), None).expect("has a key").key[..], [1]);
        assert_eq!(table(&facts(Identity::Full, &[], &[]), None).expect_err("keyless").code, "backfill.no_key");
        assert_eq!(table(&facts(Identity::Default, &[], &[]), None).expect_err("keyless").code, "backfill.no_key");
    }
}

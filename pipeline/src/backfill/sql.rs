//! The statements of a backfill, and the table they read. Pure text.
//!
//! Values come and go as text through the simple query protocol, because the server prints its results there with each
//! type's own output function: the very function whose text the replication stream carries. A cast to text is another
//! function for some types (`boolean`, `character(n)`, `inet`).

use std::sync::Arc;

use tillstream_schemas::TableSchema;
use tillstream_schemas::table::Identity;

use crate::capture::CaptureError;
use crate::capture::catalog::{PublishedTable, TableFacts};
use crate::control::KeyTexts;

/// Why a table is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Stable code.
    pub(super) code: &'static str,
    /// What is missing and what helps.
    pub(super) message: &'static str,
}

const NO_KEY: Refusal = Refusal {
    code: "backfill.no_key",
    message: "it has no primary key (and no index as replica identity), so it cannot be read in chunks; only its changes are captured",
};
const NOT_A_TABLE: Refusal = Refusal { code: "backfill.not_a_table", message: "foreign tables and views are not read" };

/// A table as it is read in chunks.
#[derive(Clone, Debug)]
pub(super) struct ChunkedTable {
    /// OID as the stream names it.
    pub(super) oid: u32,
    /// The columns as published.
    pub(super) schema: Arc<TableSchema>,
    /// Positions of the key columns in `schema`, in the key's order.
    pub(super) key: Vec<usize>,
    key_types: Vec<String>,
    from: String,
    filter: Option<String>,
}

impl ChunkedTable {
    /// What the catalogue says of a table, made ready for reading.
    ///
    /// # Errors
    /// The outer one when the configuration does not fit the table; the inner one when it cannot be read in chunks.
    pub(super) fn new(
        facts: &TableFacts,
        published: &PublishedTable,
        partition_by: Option<&[String]>,
    ) -> Result<Result<ChunkedTable, Refusal>, CaptureError> {
        let schema = facts.schema(published, partition_by)?;
        if !matches!(facts.kind, 'r' | 'p') {
            return Ok(Err(NOT_A_TABLE));
        }
        // The order of the index, so that the server walks it instead of sorting.
        let names = match facts.identity {
            Identity::Default | Identity::Index => &facts.identity_columns,
            Identity::Full | Identity::Nothing => &facts.primary_key,
        };
        let key: Option<Vec<usize>> = names.iter().map(|n| schema.columns.iter().position(|c| c.name == *n)).collect();
        let Some(key) = key.filter(|k| !k.is_empty()) else { return Ok(Err(NO_KEY)) };
        let type_of = |name: &String| facts.columns.iter().find(|c| c.name == *name).map(|c| c.type_name.clone());
        let Some(key_types) = names.iter().map(type_of).collect() else { return Ok(Err(NO_KEY)) };
        // A plain table's children are tables of their own; a partitioned table is its partitions.
        let only = if facts.kind == 'p' { "" } else { "ONLY " };
        let from = format!("{only}{}.{}", quoted(&facts.schema), quoted(&facts.table));
        let filter = published.row_filter.clone();
        Ok(Ok(ChunkedTable { oid: published.oid, schema: Arc::new(schema), key, key_types, from, filter }))
    }

    /// `schema.table`, as it stands in event ids and cursors.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.schema.schema, self.schema.table)
    }

    fn key_list(&self, order: &str) -> String {
        let names: Vec<String> = self.key.iter().map(|i| format!("{}{order}", quoted(&self.schema.columns[*i].name))).collect();
        names.join(", ")
    }

    fn key_row(&self, key: &KeyTexts) -> String {
        let values = key.0.iter().zip(&self.key_types).map(|(text, of)| format!("{}::{of}", literal(text)));
        format!("ROW({})", values.collect::<Vec<_>>().join(", "))
    }

    /// The statement whose row is the greatest key.
    pub(super) fn bound(&self) -> String {
        let filter = self.filter.as_ref().map_or_else(String::new, |f| format!(" WHERE ({f})"));
        format!("SELECT {} FROM {}{filter} ORDER BY {} LIMIT 1", self.key_list(""), self.from, self.key_list(" DESC"))
    }

    /// The transaction that reads the rows after one key and up to another. Its one result with columns has the
    /// snapshot first.
    ///
    /// Two statements: the first takes the table's lock and no rows, so that no rewrite can commit between the second
    /// one's snapshot and its reading; such a rewrite would make the table look empty to that snapshot. `LOCK TABLE`
    /// would do as well, but wants SELECT on the whole table, where a reading role has it on the published columns.
    /// With READ COMMITTED each statement has its own snapshot, and the second prints its own beside the rows.
    pub(super) fn chunk(&self, after: Option<&KeyTexts>, bound: &KeyTexts, rows: u32) -> String {
        let columns: Vec<String> = self.schema.columns.iter().map(|c| quoted(&c.name)).collect();
        let key = format!("ROW({})", self.key_list(""));
        let mut conditions = vec![format!("{key} <= {}", self.key_row(bound))];
        if let Some(after) = after {
            conditions.push(format!("{key} > {}", self.key_row(after)));
        }
        if let Some(filter) = &self.filter {
            conditions.push(format!("({filter})"));
        }
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT FROM {from} LIMIT 0; \
             SELECT (SELECT pg_current_snapshot()::text), {} FROM {from} WHERE {} ORDER BY {} LIMIT {rows}; COMMIT",
            columns.join(", "),
            conditions.join(" AND "),
            self.key_list(""),
            from = self.from,
        )
    }

    /// The key of a row that was read; `None` when it holds a NULL, which no key can.
    pub(super) fn key_of(&self, row: &[Option<String>]) -> Option<KeyTexts> {
        self.key.iter().map(|i| row.get(*i).cloned().flatten()).collect::<Option<Vec<String>>>().map(KeyTexts)
    }
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
        ChunkedTable::new(facts, &published(filter), None).expect("fits")
    }

    #[test]
    fn statements_compare_keys_as_the_server_does() {
        let table = table(&facts(Identity::Default, &["id", "day"], &["id", "day"]), Some("(note <> 'x')")).expect("has a key");
        let key = |id: &str| KeyTexts(vec![id.to_owned(), "2026-11-22".to_owned()]);
        assert_eq!(
            table.chunk(Some(&key("a'\\b")), &key("zz "), 10),
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT FROM ONLY \"public\".\"Order \"\"Item\"\"\" LIMIT 0; \
             SELECT (SELECT pg_current_snapshot()::text), \"note\", \"day\", \"id\" FROM ONLY \"public\".\"Order \"\"Item\"\"\" \
             WHERE ROW(\"id\", \"day\") <= ROW('zz '::character(3), '2026-11-22'::date) \
             AND ROW(\"id\", \"day\") > ROW('a''\\b'::character(3), '2026-11-22'::date) \
             AND ((note <> 'x')) ORDER BY \"id\", \"day\" LIMIT 10; COMMIT"
        );
        assert_eq!(
            table.bound(),
            "SELECT \"id\", \"day\" FROM ONLY \"public\".\"Order \"\"Item\"\"\" WHERE ((note <> 'x')) ORDER BY \"id\" DESC, \"day\" DESC LIMIT 1"
        );
        let row = [Some("n".to_owned()), Some("2026-11-22".to_owned()), Some("a  ".to_owned())];
        assert_eq!(table.key_of(&row), Some(KeyTexts(vec!["a  ".to_owned(), "2026-11-22".to_owned()])));
        assert_eq!(table.oid, 9, "the OID by which it is published");
    }

    #[test]
    fn the_key_is_what_old_rows_carry() {
        assert_eq!(table(&facts(Identity::Full, &["id"], &[]), None).expect("has a key").key, [2]);
        assert_eq!(table(&facts(Identity::Index, &["id"], &["day"]), None).expect("has a key").key, [1]);
        assert_eq!(table(&facts(Identity::Full, &[], &[]), None).expect_err("keyless").code, "backfill.no_key");
        assert_eq!(table(&facts(Identity::Default, &[], &[]), None).expect_err("keyless").code, "backfill.no_key");
    }
}

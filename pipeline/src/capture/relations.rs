//! What capture knows of the tables in the stream: one [`TableSchema`] per relation OID, for one session.
//!
//! Owns the mapping from PostgreSQL's built-in type OIDs to value classes, the choice of key and partition columns,
//! and the cache; never asks the catalogue. Types that are not built in (enums, domains, composites, extensions, and
//! arrays of them) have OIDs of their own in every database, so their values stay PostgreSQL's text.

use std::collections::HashMap;
use std::sync::Arc;

use tillstream_schemas::table::Identity;
use tillstream_schemas::{Column, TableSchema, ValueClass};

use super::CaptureError;
use super::pgoutput::{Relation, Tuple};
use crate::config::SourceTable;

/// What the stream itself does not say of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Configured columns that choose the partition; `None` means the key.
    pub partition_by: Option<Vec<String>>,
    /// Primary key columns from the catalogue: they make the key where the replica identity does not name one
    /// (FULL flags every column, NOTHING none). Empty when there is no primary key.
    pub primary_key: Vec<String>,
}

/// A column as the stream or the catalogue describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
    /// The type's modifier, -1 for none.
    pub type_modifier: i32,
    /// Whether it belongs to the replica identity.
    pub in_identity: bool,
}

/// Why a table can not be captured as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// A row came before the table's description.
    #[error("a row of relation {0}, which the stream has not described")]
    Unknown(u32),
    /// A row does not have the table's columns.
    #[error("a row of {table} has {found} values, the table {expected} columns")]
    ColumnCount {
        /// `schema.table`.
        table: String,
        /// Columns of the table.
        expected: usize,
        /// Values of the row.
        found: usize,
    },
    /// Two columns have one name.
    #[error("{table} has two columns {column:?}")]
    DuplicateColumn {
        /// `schema.table`.
        table: String,
        /// The name.
        column: String,
    },
    /// `partition_by` names a column that is not published.
    #[error("{table} has no published column {column:?}, which partition_by names")]
    PartitionByUnknown {
        /// `schema.table`.
        table: String,
        /// The name.
        column: String,
    },
    /// `partition_by` names a column that old rows do not carry.
    #[error("partition_by of {table} names {column:?}, which is not part of the replica identity")]
    PartitionByNotInIdentity {
        /// `schema.table`.
        table: String,
        /// The name.
        column: String,
    },
}

impl RelationError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            RelationError::Unknown(_) | RelationError::ColumnCount { .. } | RelationError::DuplicateColumn { .. } => {
                "capture.malformed_message"
            }
            RelationError::PartitionByUnknown { .. } => "capture.partition_by_unknown",
            RelationError::PartitionByNotInIdentity { .. } => "capture.partition_by_not_in_identity",
        }
    }
}

impl From<RelationError> for CaptureError {
    fn from(error: RelationError) -> Self {
        let (why, fix) = match &error {
            RelationError::Unknown(_) | RelationError::ColumnCount { .. } | RelationError::DuplicateColumn { .. } => (
                "the stream contradicts itself; going on could put values into wrong columns".to_owned(),
                "start again; if it comes back, report it with the server's version".to_owned(),
            ),
            RelationError::PartitionByUnknown { table, column } => (
                "rows could not be given a partition".to_owned(),
                format!("mend partition_by of {table}, or add {column:?} to the publication's column list"),
            ),
            RelationError::PartitionByNotInIdentity { table, column } => (
                "a delete carries only the replica identity, so it could land in another partition than its row".to_owned(),
                format!(
                    "partition {table} by columns of its key, or run: ALTER TABLE {table} REPLICA IDENTITY FULL \
                     (or USING INDEX a unique index that holds {column:?})"
                ),
            ),
        };
        CaptureError::Definite { code: error.code(), what: error.to_string(), why, fix }
    }
}

/// The tables of one session.
#[derive(Debug, Default)]
pub struct Relations {
    options: HashMap<(String, String), TableOptions>,
    /// Sorted by OID; a database has tens of captured tables, so a binary search is all it takes.
    tables: Vec<(u32, Arc<TableSchema>)>,
}

impl Relations {
    /// No table yet. `primary_keys` holds, by (schema, table), what the catalogue says.
    #[must_use]
    pub fn new(tables: &[SourceTable], primary_keys: &HashMap<(String, String), Vec<String>>) -> Self {
        let mut options: HashMap<(String, String), TableOptions> = HashMap::new();
        for (name, primary_key) in primary_keys {
            options.entry(name.clone()).or_default().primary_key.clone_from(primary_key);
        }
        for table in tables {
            options.entry((table.schema.clone(), table.table.clone())).or_default().partition_by.clone_from(&table.partition_by);
        }
        Relations { options, tables: Vec::new() }
    }

    /// What is configured or known of a table beside the stream's description.
    #[must_use]
    pub fn options(&self, schema: &str, table: &str) -> TableOptions {
        self.options.get(&(schema.to_owned(), table.to_owned())).cloned().unwrap_or_default()
    }

    /// Takes a description from the stream; it replaces an earlier one of the same relation.
    ///
    /// # Errors
    /// `partition_by` does not fit the table, or two columns have one name.
    pub fn learn(&mut self, relation: &Relation<'_>) -> Result<Arc<TableSchema>, RelationError> {
        let schema = match relation.namespace {
            // The protocol's short form.
            [] => "pg_catalog".to_owned(),
            name => String::from_utf8_lossy(name).into_owned(),
        };
        let table = String::from_utf8_lossy(relation.name).into_owned();
        let identity = match relation.identity {
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            b'n' => Identity::Nothing,
            _ => Identity::Default,
        };
        let columns = relation.columns().map(|c| ColumnSpec {
            name: String::from_utf8_lossy(c.name).into_owned(),
            type_oid: c.type_oid,
            type_modifier: c.type_modifier,
            in_identity: c.in_identity,
        });
        let built = Arc::new(table_schema(&schema, &table, identity, columns, &self.options(&schema, &table))?);
        match self.tables.binary_search_by_key(&relation.oid, |(oid, _)| *oid) {
            Ok(at) => self.tables[at].1 = Arc::clone(&built),
            Err(at) => self.tables.insert(at, (relation.oid, Arc::clone(&built))),
        }
        Ok(built)
    }

    /// The table of a row or a TRUNCATE.
    ///
    /// # Errors
    /// The stream has not described it.
    #[inline]
    pub fn get(&self, oid: u32) -> Result<&Arc<TableSchema>, RelationError> {
        match self.tables.binary_search_by_key(&oid, |(oid, _)| *oid) {
            Ok(at) => Ok(&self.tables[at].1),
            Err(_) => Err(RelationError::Unknown(oid)),
        }
    }
}

/// Checks that a tuple has the table's columns.
///
/// # Errors
/// It has another number of values.
#[inline]
pub fn check_columns(table: &TableSchema, tuple: &Tuple<'_>) -> Result<(), RelationError> {
    if tuple.len() == table.columns.len() {
        return Ok(());
    }
    Err(RelationError::ColumnCount { table: qualified(&table.schema, &table.table), expected: table.columns.len(), found: tuple.len() })
}

fn qualified(schema: &str, table: &str) -> String {
    format!("{schema}.{table}")
}

/// Builds a table's schema from the stream's or the catalogue's description: the same for both, so that a backfill's
/// rows look and hash like live ones.
///
/// # Errors
/// `partition_by` does not fit the table, or two columns have one name.
pub fn table_schema(
    schema: &str,
    table: &str,
    identity: Identity,
    columns: impl Iterator<Item = ColumnSpec>,
    options: &TableOptions,
) -> Result<TableSchema, RelationError> {
    let mut built: Vec<Column> = Vec::new();
    for spec in columns {
        if built.iter().any(|c| c.name == spec.name) {
            return Err(RelationError::DuplicateColumn { table: qualified(schema, table), column: spec.name });
        }
        let in_key = match identity {
            Identity::Default | Identity::Index => spec.in_identity,
            Identity::Full | Identity::Nothing => options.primary_key.contains(&spec.name),
        };
        let type_id = (spec.type_oid, spec.type_modifier);
        let shape = shape_of(spec.type_oid);
        let column = Column::new(&spec.name, shape.class, in_key, type_id);
        built.push(match shape.array_delimiter {
            Some(delimiter) => column.into_array(delimiter),
            None => column,
        });
    }
    let indexes = |wanted: &dyn Fn(&Column) -> bool| -> Vec<usize> {
        built.iter().enumerate().filter(|(_, c)| wanted(c)).map(|(index, _)| index).collect()
    };
    let has_key = built.iter().any(|c| c.in_key);
    let partition_by = match &options.partition_by {
        Some(names) => {
            let mut chosen = Vec::with_capacity(names.len());
            for name in names {
                let Some(index) = built.iter().position(|c| c.name == *name) else {
                    return Err(RelationError::PartitionByUnknown { table: qualified(schema, table), column: name.clone() });
                };
                // Without any identity only inserts come, and those carry every column.
                if matches!(identity, Identity::Default | Identity::Index) && has_key && !built[index].in_key {
                    return Err(RelationError::PartitionByNotInIdentity { table: qualified(schema, table), column: name.clone() });
                }
                chosen.push(index);
            }
            chosen
        }
        None if has_key => indexes(&|c| c.in_key),
        None if identity == Identity::Full => Vec::new(),
        None => indexes(&|_| true),
    };
    Ok(TableSchema::new(schema, table, identity, built, partition_by))
}

/// How values of a type look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Class of the value; of an array, of its elements.
    pub class: ValueClass,
    /// Set for arrays: what separates elements.
    pub array_delimiter: Option<u8>,
}

/// The shape of a type by its OID (`pg_type.dat`: built-in OIDs never change). Unknown types are text.
#[must_use]
pub fn shape_of(type_oid: u32) -> Shape {
    use ValueClass::{Boolean, Bytes, Float, Integer, Json, Numeric, Text, Timestamp, TimestampTz};
    let scalar = |class| Shape { class, array_delimiter: None };
    let array = |class| Shape { class, array_delimiter: Some(b',') };
    match type_oid {
        16 => scalar(Boolean),
        17 => scalar(Bytes),
        // int8, int2, int4, oid
        20 | 21 | 23 | 26 => scalar(Integer),
        114 | 3802 => scalar(Json),
        700 | 701 => scalar(Float),
        1114 => scalar(Timestamp),
        1184 => scalar(TimestampTz),
        1700 => scalar(Numeric),
        1000 => array(Boolean),
        1001 => array(Bytes),
        1005 | 1007 | 1016 | 1028 => array(Integer),
        199 | 3807 => array(Json),
        1021 | 1022 => array(Float),
        1115 => array(Timestamp),
        1185 => array(TimestampTz),
        1231 => array(Numeric),
        // box is the one built-in type whose arrays are separated by something else.
        1020 => Shape { class: Text, array_delimiter: Some(b';') },
        143
        | 271
        | 629
        | 651
        | 719
        | 775
        | 791
        | 1002
        | 1003
        | 1006
        | 1008..=1015
        | 1017..=1019
        | 1027
        | 1034
        | 1040
        | 1041
        | 1182
        | 1183
        | 1187
        | 1263
        | 1270
        | 1561
        | 1563
        | 2201
        | 2207..=2211
        | 2287
        | 2949
        | 2951
        | 3221
        | 3643..=3645
        | 3735
        | 3770
        | 3905
        | 3907
        | 3909
        | 3911
        | 3913
        | 3927
        | 4073
        | 4090
        | 4097
        | 4192
        | 5039
        | 6150..=6153
        | 6155
        | 6157 => array(Text),
        _ => scalar(Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, type_oid: u32, in_identity: bool) -> ColumnSpec {
        ColumnSpec { name: name.to_owned(), type_oid, type_modifier: -1, in_identity }
    }

    fn build(identity: Identity, partition_by: Option<&[&str]>, primary_key: &[&str]) -> Result<TableSchema, RelationError> {
        // FULL flags every column, NOTHING none.
        let flag = |id| match identity {
            Identity::Full => true,
            Identity::Nothing => false,
            Identity::Default | Identity::Index => id,
        };
        let columns = [spec("id", 20, flag(true)), spec("location", 25, flag(true)), spec("qty", 23, flag(false))];
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let options = TableOptions { partition_by: partition_by.map(owned), primary_key: owned(primary_key) };
        table_schema("public", "stock", identity, columns.into_iter(), &options)
    }

    fn keys(table: &TableSchema) -> Vec<&str> {
        table.columns.iter().filter(|c| c.in_key).map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn the_key_is_the_identity_or_where_that_names_none_the_primary_key() {
        let key = |identity, primary_key: &[&str]| {
            let table = build(identity, None, primary_key).expect("a good table");
            (keys(&table).join(","), table.partition_by)
        };
        assert_eq!(key(Identity::Default, &[]), ("id,location".to_owned(), vec![0, 1]));
        assert_eq!(key(Identity::Index, &["qty"]), ("id,location".to_owned(), vec![0, 1]), "the index decides, not the primary key");
        assert_eq!(key(Identity::Full, &["id"]), ("id".to_owned(), vec![0]));
        assert_eq!(key(Identity::Full, &[]), (String::new(), vec![]), "one partition: nothing tells which rows are one");
        assert_eq!(key(Identity::Nothing, &["id"]), ("id".to_owned(), vec![0]));
        assert_eq!(key(Identity::Nothing, &[]), (String::new(), vec![0, 1, 2]), "only inserts come, so they may spread");
    }

    #[test]
    fn partition_by_has_to_be_known_for_every_change() {
        let by = |identity, names| build(identity, Some(names), &["id"]).map(|t| t.partition_by);
        assert_eq!(by(Identity::Default, &["location"]), Ok(vec![1]));
        assert_eq!(by(Identity::Default, &["location", "id"]), Ok(vec![1, 0]), "in the configured order");
        assert_eq!(by(Identity::Full, &["qty"]), Ok(vec![2]), "whole old rows carry every column");
        assert_eq!(by(Identity::Nothing, &["qty"]), Ok(vec![2]));
        let error = by(Identity::Default, &["qty"]).expect_err("a delete does not carry it");
        assert_eq!(error.code(), "capture.partition_by_not_in_identity");
        let CaptureError::Definite { fix, .. } = CaptureError::from(error) else { panic!("definite") };
        assert!(fix.contains("REPLICA IDENTITY"), "{fix}");
        assert_eq!(by(Identity::Full, &["quantity"]).expect_err("no such column").code(), "capture.partition_by_unknown");
    }

    #[test]
    fn names_are_escaped_once() {
        let columns = [spec("a \"b\"", 20, true)];
        let table = table_schema("s", "ta\nble", Identity::Default, columns.into_iter(), &TableOptions::default()).expect("a good table");
        assert_eq!(&*table.json_names, br#","schema":"s","table":"ta\nble""#);
        assert_eq!(&*table.columns[0].json_key, br#","a \"b\"":"#);
        let twice = [spec("a", 20, true), spec("a", 25, false)];
        assert!(table_schema("s", "t", Identity::Default, twice.into_iter(), &TableOptions::default()).is_err());
    }

    /// `pg_type` of PostgreSQL 15: every built-in array as `array:element`, with its delimiter where that is no comma.
    const ARRAYS: &str = "143:142 199:114 271:5069 629:628 651:650 719:718 775:774 791:790 1000:16 1001:17 1002:18 1003:19 1005:21 \
        1006:22 1007:23 1008:24 1009:25 1010:27 1011:28 1012:29 1013:30 1014:1042 1015:1043 1016:20 1017:600 1018:601 1019:602 \
        1020:603; 1021:700 1022:701 1027:604 1028:26 1034:1033 1040:829 1041:869 1115:1114 1182:1082 1183:1083 1185:1184 1187:1186 \
        1231:1700 1263:2275 1270:1266 1561:1560 1563:1562 2201:1790 2207:2202 2208:2203 2209:2204 2210:2205 2211:2206 2287:2249 \
        2949:2970 2951:2950 3221:3220 3643:3614 3644:3642 3645:3615 3735:3734 3770:3769 3807:3802 3905:3904 3907:3906 3909:3908 \
        3911:3910 3913:3912 3927:3926 4073:4072 4090:4089 4097:4096 4192:4191 5039:5038 6150:4451 6151:4532 6152:4533 6153:4534 \
        6155:4535 6157:4536";

    #[test]
    fn an_array_looks_like_its_elements() {
        for pair in ARRAYS.split_whitespace() {
            let (pair, delimiter) = pair.strip_suffix(';').map_or((pair, b','), |p| (p, b';'));
            let (array, element) = pair.split_once(':').expect("a pair");
            let (array, element) = (array.parse().expect("an OID"), element.parse().expect("an OID"));
            assert_eq!(shape_of(element).array_delimiter, None, "{element}");
            assert_eq!(shape_of(array), Shape { class: shape_of(element).class, array_delimiter: Some(delimiter) }, "{array}");
        }
        // The first OID that a database gives away itself.
        assert_eq!(shape_of(16_384), Shape { class: ValueClass::Text, array_delimiter: None });
    }
}

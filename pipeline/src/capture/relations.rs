//! What capture knows of the tables in the stream: one [`TableSchema`] per relation OID, for one session.
//!
//! Owns the mapping from PostgreSQL's built-in type OIDs to value classes, the choice of key and partition columns,
//! which relation is which configured table, and the cache; never asks the catalogue. Types that are not built in (enums, domains, composites, extensions, and
//! arrays of them) have OIDs of their own in every database, so their values stay PostgreSQL's text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tillstream_schemas::table::Identity;
use tillstream_schemas::{Column, HashKey, Layout, Policy, TableSchema, ValueClass};

use super::CaptureError;
use super::pgoutput::{Relation, Tuple};
use super::type_names;
use crate::config::{ColumnRules, SourceTable};

/// What the stream itself does not say of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Configured columns that choose the partition; `None` means the key.
    pub partition_by: Option<Vec<String>>,
    /// Primary key columns from the catalogue: they make the key where the replica identity does not name one
    /// (FULL flags every column, NOTHING none). Empty when there is no primary key.
    pub primary_key: Vec<String>,
    /// Configured policies, by column.
    pub policies: BTreeMap<String, Policy>,
    /// Columns without a policy are held back.
    pub hold_new: bool,
    /// What hashed columns need.
    pub hash_key: Option<Arc<HashKey>>,
}

impl TableOptions {
    /// What is configured for a table, and its primary key.
    #[must_use]
    pub fn of(table: &SourceTable, rules: &ColumnRules, primary_key: &[String]) -> TableOptions {
        TableOptions {
            partition_by: table.partition_by.clone(),
            primary_key: primary_key.to_vec(),
            policies: rules.of(&table.schema, &table.table).cloned().unwrap_or_default(),
            hold_new: rules.hold_new,
            hash_key: rules.hash_key.clone(),
        }
    }
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
    /// A policy stands on a key column.
    #[error("column {column:?} of {table} has the policy {policy} and is part of the key")]
    PolicyOnKey {
        /// `schema.table`.
        table: String,
        /// The name.
        column: String,
        /// The policy.
        policy: Policy,
    },
    /// A column with a policy is gone, and one without a policy has come: it may have been renamed.
    #[error("column {column:?} of {table} has the policy {policy} and is gone, while {come:?}, which has none, has come")]
    PolicyColumnGone {
        /// `schema.table`.
        table: String,
        /// The name.
        column: String,
        /// The policy.
        policy: Policy,
        /// A new column without a policy.
        come: String,
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
            RelationError::PolicyOnKey { .. } => "capture.policy_on_key",
            RelationError::PolicyColumnGone { .. } => "capture.policy_column_gone",
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
            RelationError::PolicyOnKey { table, column, .. } => (
                "a key that is altered names no row: changes of one row could not be told from those of another".to_owned(),
                format!("remove {column:?} from source.columns of {table}, or give the table a key without personal data"),
            ),
            RelationError::PolicyColumnGone { table, column, come, .. } => (
                "if it was renamed, its values would go out unprotected under the new name".to_owned(),
                format!("name {come:?} in source.columns of {table} too, and keep {column:?} there: older changes may still come"),
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

/// A relation of the stream.
#[derive(Clone, Debug)]
pub struct Known {
    /// How its rows are written. Of a captured table under its configured name, which a renamed one keeps.
    pub table: Arc<TableSchema>,
    /// Whether it is captured; the others are counted and passed over.
    pub captured: bool,
    /// Its name in the database where that is not the configured one.
    pub renamed: Option<String>,
}

/// The tables of one session.
#[derive(Debug, Default)]
pub struct Relations {
    options: HashMap<(String, String), TableOptions>,
    configured: Vec<(String, String)>,
    /// Configured tables by the OID that the catalogue gave them at the start.
    catalogued: HashMap<u32, (String, String)>,
    /// Configured tables by the OID under which the stream has shown their names.
    shown: HashMap<u32, (String, String)>,
    /// Relations whose configured name another one has taken.
    displaced: HashSet<u32>,
    /// Names of types that are not built in, as the stream told them. One for each type that a captured table uses.
    type_names: HashMap<u32, String>,
    /// Sorted by OID; a database has tens of captured tables, so a binary search is all it takes.
    tables: Vec<(u32, Known)>,
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
        let configured = tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
        Relations { options, configured, ..Relations::default() }
    }

    /// The same with column policies.
    #[must_use]
    pub fn with_rules(mut self, rules: &ColumnRules) -> Self {
        for name in &self.configured {
            let options = self.options.entry(name.clone()).or_default();
            options.policies = rules.of(&name.0, &name.1).cloned().unwrap_or_default();
            options.hold_new = rules.hold_new;
            options.hash_key.clone_from(&rules.hash_key);
        }
        self
    }

    /// The same, knowing which OIDs the configured tables have in the catalogue: a table keeps its configured name when
    /// it is renamed.
    #[must_use]
    pub fn with_oids(mut self, oids: &HashMap<u32, (String, String)>) -> Self {
        self.catalogued.clone_from(oids);
        self
    }

    /// Takes the name of a type that is not built in.
    pub fn learn_type(&mut self, oid: u32, namespace: &[u8], name: &[u8]) {
        let (namespace, name) = (String::from_utf8_lossy(namespace), String::from_utf8_lossy(name));
        let shown = if matches!(&*namespace, "" | "pg_catalog" | "public") { name.into_owned() } else { format!("{namespace}.{name}") };
        self.type_names.insert(oid, shown);
    }

    /// The name of a type, as SQL writes it.
    #[must_use]
    pub fn type_name(&self, type_id: (u32, i32)) -> String {
        type_names::of(type_id, &self.type_names)
    }

    /// Which configured table a relation is: the one of its name, else the one that it was before it was renamed, unless
    /// another relation has that name now.
    fn configured_name(&self, oid: u32, name: (String, String)) -> (Option<(String, String)>, (String, String)) {
        if self.configured.contains(&name) {
            return (Some(name.clone()), name);
        }
        let former = match (self.catalogued.get(&oid), self.shown.get(&oid)) {
            _ if self.displaced.contains(&oid) => None,
            (Some(former), _) => Some(former),
            // The catalogue knows the name as another's: this one is from before, or stepped aside for it.
            (None, former) => former.filter(|former| !self.catalogued.values().any(|held| held == *former)),
        };
        (former.cloned(), name)
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
    /// Answers what is known of it now.
    pub fn learn(&mut self, relation: &Relation<'_>) -> Result<&Known, RelationError> {
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
        let (configured, real) = self.configured_name(relation.oid, (schema, table));
        let shown = configured.as_ref().unwrap_or(&real);
        let options = self.options(&shown.0, &shown.1);
        let table = table_schema(relation.oid, (&real.0, &real.1), (&shown.0, &shown.1), identity, columns, &options)?;
        let at = self.tables.binary_search_by_key(&relation.oid, |(oid, _)| *oid);
        if let Ok(at) = at {
            check_policies(&self.tables[at].1.table, &table, &options)?;
        }
        let renamed = configured.as_ref().filter(|c| **c != real).map(|_| qualified(&real.0, &real.1));
        if let Some(name) = &configured
            && renamed.is_none()
        {
            // Whoever had the name before has it no longer.
            let is_it = |known: &Known| known.table.schema == name.0 && known.table.table == name.1;
            for (oid, other) in self.tables.iter_mut().filter(|(oid, other)| *oid != relation.oid && is_it(other)) {
                self.displaced.insert(*oid);
                other.captured &= other.renamed.is_none();
            }
            self.displaced.remove(&relation.oid);
            self.shown.insert(relation.oid, name.clone());
        }
        let known = Known { table: Arc::new(table), captured: configured.is_some(), renamed };
        let at = match at {
            Ok(at) => {
                self.tables[at].1 = known;
                at
            }
            Err(at) => {
                self.tables.insert(at, (relation.oid, known));
                at
            }
        };
        Ok(&self.tables[at].1)
    }

    /// The table of a row or a TRUNCATE.
    ///
    /// # Errors
    /// The stream has not described it.
    #[inline]
    pub fn get(&self, oid: u32) -> Result<&Known, RelationError> {
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

/// Refuses a version of a table in which a column that had a policy is no more while one without a policy has come: it may
/// be the same one under another name.
fn check_policies(was: &TableSchema, is: &TableSchema, options: &TableOptions) -> Result<(), RelationError> {
    let has = |table: &TableSchema, name: &str| table.columns.iter().any(|c| c.name == name);
    let gone = was.columns.iter().find(|c| !matches!(c.policy, Policy::Pass | Policy::Held) && !has(is, &c.name));
    let come = is.columns.iter().find(|c| c.policy == Policy::Pass && !options.policies.contains_key(&c.name) && !has(was, &c.name));
    match (gone, come) {
        (Some(gone), Some(come)) => Err(RelationError::PolicyColumnGone {
            table: qualified(&is.schema, &is.table),
            column: gone.name.clone(),
            policy: gone.policy,
            come: come.name.clone(),
        }),
        _ => Ok(()),
    }
}

fn qualified(schema: &str, table: &str) -> String {
    format!("{schema}.{table}")
}

/// Builds a table's schema from the stream's or the catalogue's description: the same for both, so that a backfill's
/// rows look and hash like live ones.
///
/// `real` is its name in the database, `shown` the one in its events: both as schema and table.
///
/// # Errors
/// `partition_by` or a policy does not fit the table, or two columns have one name.
pub fn table_schema(
    oid: u32,
    real: (&str, &str),
    (schema, table): (&str, &str),
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
        let mut column = Column::new(&spec.name, shape.class, in_key, type_id);
        column.policy = match options.policies.get(&spec.name) {
            Some(policy) => *policy,
            // A key names the row: without it there is no event.
            None if options.hold_new && !in_key => Policy::Held,
            None => Policy::Pass,
        };
        if in_key && column.policy != Policy::Pass {
            return Err(RelationError::PolicyOnKey { table: qualified(schema, table), column: spec.name, policy: column.policy });
        }
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
    let layout = layout_of(oid, real, (schema, table), identity, &built);
    Ok(TableSchema::new((schema, table), identity, built, partition_by, (oid, layout)).with_hash_key(options.hash_key.clone()))
}

/// Everything that makes a version of a table, digested.
fn layout_of(oid: u32, real: (&str, &str), shown: (&str, &str), identity: Identity, columns: &[Column]) -> Layout {
    let mut digest = Sha256::new();
    digest.update(format!("{oid}\0{}\0{}\0{}\0{}\0{identity:?}", real.0, real.1, shown.0, shown.1));
    for column in columns {
        let (type_oid, modifier) = column.type_id;
        digest.update(format!("\0{}\0{type_oid}\0{modifier}\0{}\0{}", column.name, column.in_key, column.policy));
    }
    let digest: [u8; 32] = digest.finalize().into();
    let (head, _) = digest.split_first_chunk::<6>().expect("a SHA-256 has 32 bytes");
    Layout::new(*head)
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
        let options = TableOptions { partition_by: partition_by.map(owned), primary_key: owned(primary_key), ..TableOptions::default() };
        table_schema(1, ("public", "stock"), ("public", "stock"), identity, columns.into_iter(), &options)
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
        let table = table_schema(1, ("s", "ta\nble"), ("s", "ta\nble"), Identity::Default, columns.into_iter(), &TableOptions::default())
            .expect("a good table");
        let names = String::from_utf8_lossy(&table.json_names).into_owned();
        assert_eq!(names, format!(r#","schema":"s","table":"ta\nble","layout":"{}""#, table.layout));
        assert_eq!(&*table.columns[0].json_key, br#","a \"b\"":"#);
        let twice = [spec("a", 20, true), spec("a", 25, false)];
        assert!(table_schema(1, ("s", "t"), ("s", "t"), Identity::Default, twice.into_iter(), &TableOptions::default()).is_err());
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

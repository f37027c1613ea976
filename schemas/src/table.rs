//! Table schemas as the replication stream announces them.
//!
//! Owns what an encoder needs of a table, prepared once per schema; never learns types from OIDs (capture does).

use std::fmt;
use std::sync::Arc;

use crate::policy::{HashKey, Policy};
use crate::value::write_string;

/// How a column's PostgreSQL text becomes JSON. The mapping from type OIDs lives in capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueClass {
    /// `t` / `f` becomes `true` / `false`.
    Boolean,
    /// smallint, integer, bigint, oid: a JSON number, verbatim.
    Integer,
    /// real, double precision: a JSON number; NaN and infinities as strings.
    Float,
    /// numeric: an exact string.
    Numeric,
    /// json, jsonb: embedded verbatim.
    Json,
    /// bytea in hex form becomes base64.
    Bytes,
    /// timestamptz, printed by the server in UTC, becomes RFC 3339 with `Z`; infinity and BC as PostgreSQL prints them.
    TimestampTz,
    /// timestamp: ISO 8601 without zone, `T` between date and time; infinity and BC as PostgreSQL prints them.
    Timestamp,
    /// Everything else: PostgreSQL's text as a string.
    Text,
}

/// One published column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, as the catalogue spells it.
    pub name: String,
    /// `,"name":` with the name escaped: what the encoder copies. The first column skips the comma.
    pub json_key: Box<[u8]>,
    /// How a value becomes JSON; of an array how its elements do.
    pub class: ValueClass,
    /// Whether the type is an array.
    pub array: bool,
    /// The array element delimiter (`,` for all but `box`).
    pub delimiter: u8,
    /// Whether the column is part of the event's key: the replica identity's columns, or the primary key's where the
    /// identity is the whole row.
    pub in_key: bool,
    /// The type's OID and modifier, opaque here: they make the layout.
    pub type_id: (u32, i32),
    /// What becomes of its values.
    pub policy: Policy,
}

/// Names one version of a table: a fingerprint of all that the stream and the configuration say of it. 48 bits, printed
/// as twelve hexadecimal digits; a table has some dozens of versions in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Layout(pub u64);

impl Layout {
    /// From the first bytes of a digest.
    #[must_use]
    pub fn new(digest: [u8; 6]) -> Layout {
        let [a, b, c, d, e, f] = digest;
        Layout(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// The replica identity of a table: what old rows carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Key columns of the primary key, or nothing when there is none.
    Default,
    /// Columns of a chosen unique index.
    Index,
    /// The whole old row.
    Full,
    /// Nothing: only inserts can be captured.
    Nothing,
}

/// One version of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// What old rows carry.
    pub identity: Identity,
    /// Published columns in order.
    pub columns: Vec<Column>,
    /// Indexes into `columns` whose values choose the partition: the configured `partition_by`, else the key, else
    /// (insert-only without a key) every column. Empty for a keyless table with identity FULL: all its rows share one
    /// partition, because nothing tells which rows are one.
    pub partition_by: Vec<usize>,
    /// Which version this is.
    pub layout: Layout,
    /// The relation's OID, opaque here.
    pub oid: u32,
    /// Whether a column has a policy other than [`Policy::Pass`].
    pub guarded: bool,
    /// What [`Policy::Hash`] needs.
    pub hash_key: Option<Arc<HashKey>>,
    /// `,"schema":"public","table":"order_item","layout":"5f0c6a1b9d3e"` escaped: what the encoder copies.
    pub json_names: Box<[u8]>,
}

impl Column {
    /// A column with its key escaped.
    #[must_use]
    pub fn new(name: &str, class: ValueClass, in_key: bool, type_id: (u32, i32)) -> Self {
        let mut json_key = vec![b','];
        write_string(&mut json_key, name.as_bytes());
        json_key.push(b':');
        Column {
            name: name.to_owned(),
            json_key: json_key.into(),
            class,
            array: false,
            delimiter: b',',
            in_key,
            type_id,
            policy: Policy::Pass,
        }
    }

    /// The same column as an array of its class.
    #[must_use]
    pub fn into_array(self, delimiter: u8) -> Self {
        Column { array: true, delimiter, ..self }
    }
}

impl TableSchema {
    /// A table with its names escaped. `partition_by` holds indexes into `columns`.
    #[must_use]
    pub fn new(
        (schema, table): (&str, &str),
        identity: Identity,
        columns: Vec<Column>,
        partition_by: Vec<usize>,
        (oid, layout): (u32, Layout),
    ) -> Self {
        let mut json_names = b",\"schema\":".to_vec();
        write_string(&mut json_names, schema.as_bytes());
        json_names.extend_from_slice(b",\"table\":");
        write_string(&mut json_names, table.as_bytes());
        json_names.extend_from_slice(format!(",\"layout\":\"{layout}\"").as_bytes());
        let guarded = columns.iter().any(|c| c.policy != Policy::Pass);
        TableSchema {
            schema: schema.to_owned(),
            table: table.to_owned(),
            identity,
            columns,
            partition_by,
            layout,
            oid,
            guarded,
            hash_key: None,
            json_names: json_names.into(),
        }
    }

    /// The same table with the key that its hashed columns need.
    #[must_use]
    pub fn with_hash_key(self, hash_key: Option<Arc<HashKey>>) -> Self {
        TableSchema { hash_key, ..self }
    }

    /// Whether rows have a key that tells them apart.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.columns.iter().any(|c| c.in_key)
    }
}

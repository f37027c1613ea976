//! Table schemas as the replication stream announces them.
//!
//! Owns what an encoder needs of a table, prepared once per schema; never learns types from OIDs (capture does).

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
    /// The type's OID and modifier, opaque here: they make the fingerprint.
    pub type_id: (u32, i32),
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
    /// `,"schema":"public","table":"order_item"` escaped: what the encoder copies.
    pub json_names: Box<[u8]>,
}

impl Column {
    /// A column with its key escaped.
    #[must_use]
    pub fn new(name: &str, class: ValueClass, in_key: bool, type_id: (u32, i32)) -> Self {
        let mut json_key = vec![b','];
        write_string(&mut json_key, name.as_bytes());
        json_key.push(b':');
        Column { name: name.to_owned(), json_key: json_key.into(), class, array: false, delimiter: b',', in_key, type_id }
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
    pub fn new(schema: &str, table: &str, identity: Identity, columns: Vec<Column>, partition_by: Vec<usize>) -> Self {
        let mut json_names = b",\"schema\":".to_vec();
        write_string(&mut json_names, schema.as_bytes());
        json_names.extend_from_slice(b",\"table\":");
        write_string(&mut json_names, table.as_bytes());
        TableSchema { schema: schema.to_owned(), table: table.to_owned(), identity, columns, partition_by, json_names: json_names.into() }
    }

    /// Whether rows have a key that tells them apart.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.columns.iter().any(|c| c.in_key)
    }
}

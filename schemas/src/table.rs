//! Table schemas as the replication stream announces them.

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
    /// Whether the column is part of the replica identity.
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
    /// Indexes into `columns` whose values choose the partition: the configured `partition_by`, else the key,
    /// else (keyless) every column.
    pub partition_by: Vec<usize>,
    /// `,"schema":"public","table":"order_item"` escaped: what the encoder copies.
    pub json_names: Box<[u8]>,
}

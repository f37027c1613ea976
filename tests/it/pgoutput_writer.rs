//! Writes pgoutput messages (protocols 1 and 2), for tests that play the server: the seeded model, golden events, properties.
//!
//! The inverse of `tillstream::capture::pgoutput`, written from the protocol's documentation and kept apart from it.

use tillstream_schemas::Lsn;

/// A value as a test gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// SQL NULL.
    Null,
    /// A TOASTed value that an UPDATE did not touch.
    Unchanged,
    /// PostgreSQL's text.
    Text(Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Value {
    fn from(text: &[u8]) -> Self {
        Value::Text(text.to_vec())
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        text.map_or(Value::Null, Value::from)
    }
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) in_identity: bool,
}

/// A column of this type; `in_identity` is what the server flags.
pub(crate) fn column(name: &str, type_oid: u32, in_identity: bool) -> Column {
    Column { name: name.to_owned(), type_oid, in_identity }
}

/// The old tuple of an UPDATE or a DELETE.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Old<'v> {
    /// `K`: the key's columns; the others are null.
    Key(&'v [Value]),
    /// `O`: the whole row, with replica identity FULL.
    Row(&'v [Value]),
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u8) -> Self {
        Writer(vec![tag])
    }

    fn u8(mut self, n: u8) -> Self {
        self.0.push(n);
        self
    }

    fn u16(mut self, n: u16) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    fn string(mut self, text: &[u8]) -> Self {
        self.0.extend_from_slice(text);
        self.u8(0)
    }

    fn tuple(mut self, values: &[Value]) -> Self {
        self = self.u16(u16::try_from(values.len()).expect("a test's row has few columns"));
        for value in values {
            self = match value {
                Value::Null => self.u8(b'n'),
                Value::Unchanged => self.u8(b'u'),
                Value::Text(text) => {
                    let mut with_length = self.u8(b't').u32(u32::try_from(text.len()).expect("a test's value is small"));
                    with_length.0.extend_from_slice(text);
                    with_length
                }
            };
        }
        self
    }

    fn old(self, old: Old<'_>) -> Self {
        match old {
            Old::Key(values) => self.u8(b'K').tuple(values),
            Old::Row(values) => self.u8(b'O').tuple(values),
        }
    }
}

/// Begin; `commit_time` in microseconds since 2000-01-01 00:00 UTC.
pub(crate) fn begin(commit_lsn: Lsn, commit_time: i64, xid: u32) -> Vec<u8> {
    Writer::new(b'B').u64(commit_lsn.0).u64(commit_time.cast_unsigned()).u32(xid).0
}

/// Commit.
pub(crate) fn commit(commit_lsn: Lsn, end_lsn: Lsn, commit_time: i64) -> Vec<u8> {
    Writer::new(b'C').u8(0).u64(commit_lsn.0).u64(end_lsn.0).u64(commit_time.cast_unsigned()).0
}

/// Origin.
pub(crate) fn origin(commit_lsn: Lsn, name: &str) -> Vec<u8> {
    Writer::new(b'O').u64(commit_lsn.0).string(name.as_bytes()).0
}

/// Relation; `identity` as `pg_class.relreplident` (`d`, `i`, `f`, `n`).
pub(crate) fn relation(oid: u32, namespace: &str, name: &str, identity: u8, columns: &[Column]) -> Vec<u8> {
    let mut w = Writer::new(b'R').u32(oid).string(namespace.as_bytes()).string(name.as_bytes()).u8(identity);
    w = w.u16(u16::try_from(columns.len()).expect("a test's table has few columns"));
    for c in columns {
        w = w.u8(u8::from(c.in_identity)).string(c.name.as_bytes()).u32(c.type_oid).u32(u32::MAX);
    }
    w.0
}

/// Type.
pub(crate) fn type_name(oid: u32, namespace: &str, name: &str) -> Vec<u8> {
    Writer::new(b'Y').u32(oid).string(namespace.as_bytes()).string(name.as_bytes()).0
}

/// Insert.
pub(crate) fn insert(oid: u32, new: &[Value]) -> Vec<u8> {
    Writer::new(b'I').u32(oid).u8(b'N').tuple(new).0
}

/// Update.
pub(crate) fn update(oid: u32, old: Option<Old<'_>>, new: &[Value]) -> Vec<u8> {
    let w = Writer::new(b'U').u32(oid);
    let w = match old {
        Some(old) => w.old(old),
        None => w,
    };
    w.u8(b'N').tuple(new).0
}

/// Delete.
pub(crate) fn delete(oid: u32, old: Old<'_>) -> Vec<u8> {
    Writer::new(b'D').u32(oid).old(old).0
}

/// Truncate, without options.
pub(crate) fn truncate(oids: &[u32]) -> Vec<u8> {
    let mut w = Writer::new(b'T').u32(u32::try_from(oids.len()).expect("a test has few tables")).u8(0);
    for oid in oids {
        w = w.u32(*oid);
    }
    w.0
}

/// Message.
pub(crate) fn message(transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) -> Vec<u8> {
    let mut w = Writer::new(b'M').u8(u8::from(transactional)).u64(lsn.0).string(prefix.as_bytes());
    w = w.u32(u32::try_from(content.len()).expect("a test's message is small"));
    w.0.extend_from_slice(content);
    w.0
}

/// A block of a transaction that is not committed yet begins.
pub(crate) fn stream_start(xid: u32, first: bool) -> Vec<u8> {
    Writer::new(b'S').u32(xid).u8(u8::from(first)).0
}

/// The block ends.
pub(crate) fn stream_stop() -> Vec<u8> {
    Writer::new(b'E').0
}

/// A transaction that came in blocks commits.
pub(crate) fn stream_commit(xid: u32, commit_lsn: Lsn, end_lsn: Lsn, commit_time: i64) -> Vec<u8> {
    Writer::new(b'c').u32(xid).u8(0).u64(commit_lsn.0).u64(end_lsn.0).u64(commit_time.cast_unsigned()).0
}

/// A part of a transaction that came in blocks is rolled back; all of it when both numbers are the same.
pub(crate) fn stream_abort(xid: u32, subxid: u32) -> Vec<u8> {
    Writer::new(b'A').u32(xid).u32(subxid).0
}

/// A message as it stands in a block.
pub(crate) fn in_block(xid: u32, message: &[u8]) -> Vec<u8> {
    if message[0] == b'O' {
        return message.to_vec();
    }
    let mut w = Writer::new(message[0]).u32(xid);
    w.0.extend_from_slice(&message[1..]);
    w.0
}

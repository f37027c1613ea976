//! pgoutput, protocol versions 1 and 2, as pure functions over borrowed bytes.
//!
//! Owns the grammar of the messages; never keeps state, so the order of messages (a row outside a transaction, a row
//! of an unknown relation) is judged by the session. Parsing copies and allocates nothing: names, contents and column
//! texts are slices of the frame. A tuple is checked once, when its message is parsed, so that going through it later
//! cannot fail.
//!
//! Grammar: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use tillstream_schemas::Lsn;

use super::CaptureError;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; it already names where it commits.
    Begin(Begin),
    /// The transaction ends.
    Commit(Commit),
    /// The transaction came to this server from another one.
    Origin {
        /// Commit LSN on the origin.
        commit_lsn: Lsn,
        /// Name of the origin.
        name: &'a [u8],
    },
    /// Names a table and its columns, before the first row that needs it.
    Relation(Relation<'a>),
    /// Names a type that is not built in.
    Type {
        /// Its OID.
        oid: u32,
        /// Its namespace; empty means `pg_catalog`.
        namespace: &'a [u8],
        /// Its name.
        name: &'a [u8],
    },
    /// A row was inserted.
    Insert {
        /// Its table.
        oid: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Its table.
        oid: u32,
        /// The old key (when it changed) or the whole old row (replica identity FULL).
        old: Option<Tuple<'a>>,
        /// The row as it is now.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Its table.
        oid: u32,
        /// The old key or the whole old row.
        old: Tuple<'a>,
    },
    /// Tables were emptied by one statement.
    Truncate(Truncate<'a>),
    /// `pg_logical_emit_message`.
    Message(LogicalMessage<'a>),
}

/// A transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// LSN of the transaction's commit record.
    pub final_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
    /// Transaction id.
    pub xid: u32,
}

/// A transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// LSN of the commit record: that of its Begin.
    pub commit_lsn: Lsn,
    /// The byte after the commit record: what is acknowledged.
    pub end_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
}

/// A table as the server describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Its OID.
    pub oid: u32,
    /// Its namespace; empty means `pg_catalog`.
    pub namespace: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// `relreplident`: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// The columns' bytes, checked.
    columns: &'a [u8],
    count: u16,
}

/// A column as the server describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity. With identity FULL every column does.
    pub in_identity: bool,
    /// Its name.
    pub name: &'a [u8],
    /// OID of its type.
    pub type_oid: u32,
    /// The type's modifier, -1 for none.
    pub type_modifier: i32,
}

/// Tables were emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `CASCADE`.
    pub cascade: bool,
    /// `RESTART IDENTITY`.
    pub restart_identity: bool,
    oids: &'a [u8],
}

/// A logical message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it; otherwise it stands alone, between transactions or inside one.
    pub transactional: bool,
    /// The end of its WAL record, which is where the next record begins.
    pub lsn: Lsn,
    /// Prefix.
    pub prefix: &'a [u8],
    /// Content.
    pub content: &'a [u8],
}

/// What a tuple holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TupleKind {
    /// A row as it is now. May hold unchanged values.
    New,
    /// The whole old row (`O`, replica identity FULL).
    OldRow,
    /// The old key (`K`); columns outside the key are null and say nothing.
    OldKey,
}

/// The values of one row: checked bytes, one pair of kind and text per column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    kind: TupleKind,
    count: u16,
    bytes: &'a [u8],
}

/// Says how many values, never which: row values do not belong in logs.
impl std::fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tuple").field("kind", &self.kind).field("count", &self.count).finish_non_exhaustive()
    }
}

/// One value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE did not touch: the server does not send it.
    Unchanged,
    /// PostgreSQL's text of it.
    Text(&'a [u8]),
}

impl<'a> TupleValue<'a> {
    /// The text, unless it is NULL or not sent.
    #[inline]
    #[must_use]
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            TupleValue::Text(text) => Some(text),
            TupleValue::Null | TupleValue::Unchanged => None,
        }
    }
}

/// What stands around the messages of a transaction that is sent before it commits (protocol version 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// A block of messages of this transaction begins.
    Start {
        /// The transaction.
        xid: u32,
        /// Whether it is its first block.
        first: bool,
    },
    /// The block ends; others may come.
    Stop,
    /// The transaction commits.
    Commit {
        /// The transaction.
        xid: u32,
        /// Where and when.
        commit: Commit,
    },
    /// The transaction, or a part of it, is rolled back.
    Abort {
        /// The transaction.
        xid: u32,
        /// The part that is void; the transaction itself when all of it is.
        subxid: u32,
    },
}

/// A message inside a block, without the number that it carries there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InBlock<'a> {
    /// The (sub)transaction that it belongs to.
    pub xid: u32,
    /// The message's type.
    pub tag: u8,
    /// The message behind its type, as it would be outside a block.
    pub body: &'a [u8],
}

/// Why bytes are not a pgoutput message that we understand. Holds no byte of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PgOutputError {
    /// The frame ends inside the message.
    #[error("ends early, in {0}")]
    Truncated(&'static str),
    /// Bytes are left behind the message.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A field holds what it can not.
    #[error("impossible {0}")]
    Invalid(&'static str),
    /// A message that our options do not ask for: streamed or prepared transactions.
    #[error("message {:?} belongs to an option that was not asked for", *.0 as char)]
    NotAskedFor(u8),
    /// No message that we know.
    #[error("unknown message type 0x{0:02x}")]
    Unknown(u8),
}

impl PgOutputError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            PgOutputError::NotAskedFor(_) => "capture.unexpected_message",
            PgOutputError::Unknown(_) => "capture.unknown_message",
            PgOutputError::Truncated(_) | PgOutputError::Trailing(_) | PgOutputError::Invalid(_) => "capture.malformed_message",
        }
    }
}

impl From<PgOutputError> for CaptureError {
    fn from(error: PgOutputError) -> Self {
        CaptureError::Definite {
            code: error.code(),
            what: format!("a message of the replication stream can not be read: {error}"),
            why: "skipping it could lose a change, so nothing after it is taken".to_owned(),
            fix: "check that the server is PostgreSQL 14 to 18 and that nothing between it and us alters the stream; then start again"
                .to_owned(),
        }
    }
}

/// Parses one message. The whole slice must be used up.
///
/// # Errors
/// Every way in which the bytes are not exactly one message.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, PgOutputError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Err(PgOutputError::Truncated("message type")) };
    let mut r = Cursor(rest);
    let message = match tag {
        b'I' => {
            let oid = r.u32("relation of an insert")?;
            r.expect(b'N', "tuple of an insert")?;
            Message::Insert { oid, new: r.tuple(TupleKind::New)? }
        }
        b'U' => {
            let oid = r.u32("relation of an update")?;
            let (old, mark) = match r.u8("tuple of an update")? {
                b'K' => (Some(r.tuple(TupleKind::OldKey)?), r.u8("new tuple of an update")?),
                b'O' => (Some(r.tuple(TupleKind::OldRow)?), r.u8("new tuple of an update")?),
                mark => (None, mark),
            };
            if mark != b'N' {
                return Err(PgOutputError::Invalid("tuple mark in an update"));
            }
            Message::Update { oid, old, new: r.tuple(TupleKind::New)? }
        }
        b'D' => {
            let oid = r.u32("relation of a delete")?;
            let kind = match r.u8("tuple of a delete")? {
                b'K' => TupleKind::OldKey,
                b'O' => TupleKind::OldRow,
                _ => return Err(PgOutputError::Invalid("tuple mark in a delete")),
            };
            Message::Delete { oid, old: r.tuple(kind)? }
        }
        b'B' => Message::Begin(Begin { final_lsn: r.lsn("begin")?, commit_time: r.i64("begin")?, xid: r.u32("begin")? }),
        b'C' => Message::Commit(r.commit()?),
        b'R' => Message::Relation(r.relation()?),
        b'T' => Message::Truncate(r.truncate()?),
        b'M' => Message::Message(r.logical_message()?),
        b'O' => Message::Origin { commit_lsn: r.lsn("origin")?, name: r.string("origin's name")? },
        b'Y' => Message::Type { oid: r.u32("type")?, namespace: r.string("type's namespace")?, name: r.string("type's name")? },
        // Two-phase transactions (b P K r p) come only when asked for; streamed ones (S E c A) too, and they are taken before.
        b'S' | b'E' | b'c' | b'A' | b'b' | b'P' | b'K' | b'r' | b'p' => return Err(PgOutputError::NotAskedFor(tag)),
        other => return Err(PgOutputError::Unknown(other)),
    };
    match r.0.len() {
        0 => Ok(message),
        n => Err(PgOutputError::Trailing(n)),
    }
}

/// Parses a message about a streamed transaction; `None` when it is any other message.
///
/// # Errors
/// Every way in which the bytes are not exactly one such message.
pub fn parse_stream(bytes: &[u8]) -> Result<Option<StreamMessage>, PgOutputError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Err(PgOutputError::Truncated("message type")) };
    let mut r = Cursor(rest);
    let message = match tag {
        b'S' => {
            let xid = r.xid("start of a block")?;
            let first = match r.u8("start of a block")? {
                n @ (0 | 1) => n == 1,
                _ => return Err(PgOutputError::Invalid("mark of a first block")),
            };
            StreamMessage::Start { xid, first }
        }
        b'E' => StreamMessage::Stop,
        b'c' => {
            let xid = r.xid("commit of a streamed transaction")?;
            StreamMessage::Commit { xid, commit: r.commit()? }
        }
        b'A' => StreamMessage::Abort { xid: r.xid("abort of a streamed transaction")?, subxid: r.xid("abort of a streamed transaction")? },
        _ => return Ok(None),
    };
    match r.0.len() {
        0 => Ok(Some(message)),
        n => Err(PgOutputError::Trailing(n)),
    }
}

/// Splits the number of the (sub)transaction from a message inside a block. `None` for an Origin, which carries none. What is
/// behind the number is not looked at.
///
/// # Errors
/// The message is of a type that does not stand in a block, or ends early.
pub fn parse_in_block(bytes: &[u8]) -> Result<Option<InBlock<'_>>, PgOutputError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Err(PgOutputError::Truncated("message type")) };
    match tag {
        b'I' | b'U' | b'D' | b'T' | b'R' | b'Y' | b'M' => {
            let mut r = Cursor(rest);
            let xid = r.xid("message of a streamed transaction")?;
            Ok(Some(InBlock { xid, tag, body: r.0 }))
        }
        b'O' => Ok(None),
        b'B' | b'C' => Err(PgOutputError::Invalid("message inside a block of a streamed transaction")),
        b'b' | b'P' | b'K' | b'r' | b'p' => Err(PgOutputError::NotAskedFor(tag)),
        other => Err(PgOutputError::Unknown(other)),
    }
}

/// The tables whose rows a message holds. Empty for other messages, and for what [`parse`] would refuse.
pub fn tables_of(message: &[u8]) -> impl Iterator<Item = u32> {
    let oids = match message {
        [b'I' | b'U' | b'D', rest @ ..] => rest.get(..4),
        [b'T', rest @ ..] => rest.get(5..),
        _ => None,
    };
    let (oids, _) = oids.unwrap_or_default().as_chunks::<4>();
    oids.iter().map(|oid| u32::from_be_bytes(*oid))
}

impl Begin {
    /// Writes the message that [`parse`] reads.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.push(b'B');
        to.extend_from_slice(&self.final_lsn.0.to_be_bytes());
        to.extend_from_slice(&self.commit_time.to_be_bytes());
        to.extend_from_slice(&self.xid.to_be_bytes());
    }
}

impl Commit {
    /// Writes the message that [`parse`] reads.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[b'C', 0]);
        to.extend_from_slice(&self.commit_lsn.0.to_be_bytes());
        to.extend_from_slice(&self.end_lsn.0.to_be_bytes());
        to.extend_from_slice(&self.commit_time.to_be_bytes());
    }
}

/// PostgreSQL's limit is 1,600 columns; the field could say 65,535.
const COLUMNS_MAX: u16 = 1600;

/// A cursor that never reads past the end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], PgOutputError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(PgOutputError::Truncated(what))?;
        self.0 = rest;
        Ok(*head)
    }

    #[inline]
    fn u8(&mut self, what: &'static str) -> Result<u8, PgOutputError> {
        self.array::<1>(what).map(|[b]| b)
    }

    #[inline]
    fn u32(&mut self, what: &'static str) -> Result<u32, PgOutputError> {
        self.array(what).map(u32::from_be_bytes)
    }

    #[inline]
    fn i64(&mut self, what: &'static str) -> Result<i64, PgOutputError> {
        self.array(what).map(i64::from_be_bytes)
    }

    #[inline]
    fn lsn(&mut self, what: &'static str) -> Result<Lsn, PgOutputError> {
        self.array(what).map(|b| Lsn(u64::from_be_bytes(b)))
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), PgOutputError> {
        if self.u8(what)? == byte { Ok(()) } else { Err(PgOutputError::Invalid(what)) }
    }

    #[inline]
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], PgOutputError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(PgOutputError::Truncated(what))?;
        self.0 = rest;
        Ok(head)
    }

    /// A string up to its NUL.
    fn string(&mut self, what: &'static str) -> Result<&'a [u8], PgOutputError> {
        let n = memchr::memchr(0, self.0).ok_or(PgOutputError::Truncated(what))?;
        let text = self.take(n, what)?;
        self.take(1, what)?;
        Ok(text)
    }

    /// A transaction's number; zero is none.
    fn xid(&mut self, what: &'static str) -> Result<u32, PgOutputError> {
        match self.u32(what)? {
            0 => Err(PgOutputError::Invalid("number of a transaction")),
            xid => Ok(xid),
        }
    }

    fn commit(&mut self) -> Result<Commit, PgOutputError> {
        if self.u8("commit")? != 0 {
            return Err(PgOutputError::Invalid("flags of a commit"));
        }
        Ok(Commit { commit_lsn: self.lsn("commit")?, end_lsn: self.lsn("commit")?, commit_time: self.i64("commit")? })
    }

    /// A count that the protocol sends as a signed 16-bit number.
    #[inline]
    fn count(&mut self, what: &'static str) -> Result<u16, PgOutputError> {
        match self.array(what).map(u16::from_be_bytes)? {
            n if n <= COLUMNS_MAX => Ok(n),
            _ => Err(PgOutputError::Invalid("number of columns")),
        }
    }

    #[inline]
    fn tuple(&mut self, kind: TupleKind) -> Result<Tuple<'a>, PgOutputError> {
        let count = self.count("tuple")?;
        let start = self.0;
        for _ in 0..count {
            match self.u8("tuple")? {
                b't' => {
                    let n = self.u32("value's length")?;
                    if n > i32::MAX as u32 {
                        return Err(PgOutputError::Invalid("length of a value"));
                    }
                    self.take(n as usize, "value")?;
                }
                b'n' => {}
                // The server inlines TOASTed values of old rows and keys (heapam's ExtractReplicaIdentity).
                b'u' if kind == TupleKind::New => {}
                b'u' => return Err(PgOutputError::Invalid("unchanged value in an old row")),
                b'b' => return Err(PgOutputError::Invalid("binary value: text was asked for")),
                _ => return Err(PgOutputError::Invalid("kind of value")),
            }
        }
        Ok(Tuple { kind, count, bytes: &start[..start.len() - self.0.len()] })
    }

    fn relation(&mut self) -> Result<Relation<'a>, PgOutputError> {
        let oid = self.u32("relation")?;
        let namespace = self.string("relation's namespace")?;
        let name = self.string("relation's name")?;
        let identity = self.u8("relation")?;
        if !matches!(identity, b'd' | b'n' | b'f' | b'i') {
            return Err(PgOutputError::Invalid("replica identity"));
        }
        let count = self.count("relation")?;
        let start = self.0;
        for _ in 0..count {
            self.column()?;
        }
        Ok(Relation { oid, namespace, name, identity, columns: &start[..start.len() - self.0.len()], count })
    }

    fn column(&mut self) -> Result<RelationColumn<'a>, PgOutputError> {
        let flags = self.u8("column")?;
        if flags > 1 {
            return Err(PgOutputError::Invalid("flags of a column"));
        }
        let name = self.string("column's name")?;
        let type_oid = self.u32("column")?;
        let type_modifier = self.array("column").map(i32::from_be_bytes)?;
        Ok(RelationColumn { in_identity: flags == 1, name, type_oid, type_modifier })
    }

    fn truncate(&mut self) -> Result<Truncate<'a>, PgOutputError> {
        let count = self.u32("truncate")?;
        let options = self.u8("truncate")?;
        if options & !3 != 0 {
            return Err(PgOutputError::Invalid("options of a truncate"));
        }
        // Checked against the length before it is used as one.
        let bytes = (count as usize).checked_mul(4).ok_or(PgOutputError::Invalid("number of truncated tables"))?;
        if bytes == 0 {
            return Err(PgOutputError::Invalid("number of truncated tables"));
        }
        let oids = self.take(bytes, "truncate")?;
        Ok(Truncate { cascade: options & 1 != 0, restart_identity: options & 2 != 0, oids })
    }

    fn logical_message(&mut self) -> Result<LogicalMessage<'a>, PgOutputError> {
        let flags = self.u8("logical message")?;
        if flags > 1 {
            return Err(PgOutputError::Invalid("flags of a logical message"));
        }
        let lsn = self.lsn("logical message")?;
        let prefix = self.string("logical message's prefix")?;
        let n = self.u32("logical message's length")?;
        let content = self.take(n as usize, "logical message's content")?;
        Ok(LogicalMessage { transactional: flags == 1, lsn, prefix, content })
    }
}

impl<'a> Relation<'a> {
    /// How many columns are published.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether no column is published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns in order.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn<'a>> + use<'a> {
        let mut cursor = Cursor(self.columns);
        // The bytes were checked when the message was parsed.
        (0..self.count).map_while(move |_| cursor.column().ok())
    }
}

impl Truncate<'_> {
    /// The emptied tables, in the server's order.
    pub fn oids(&self) -> impl Iterator<Item = u32> {
        let (oids, _) = self.oids.as_chunks::<4>();
        oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

impl<'a> Tuple<'a> {
    /// What the tuple holds.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> TupleKind {
        self.kind
    }

    /// How many values.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there is no value (a table without columns).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the values take in the stream.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The values in order. Cannot fail; costs nothing but reading.
    #[inline]
    #[must_use]
    pub fn values(&self) -> TupleValues<'a> {
        TupleValues { bytes: self.bytes }
    }

    /// The value of one column; goes through the columns before it.
    #[inline]
    #[must_use]
    pub fn get(&self, column: usize) -> Option<TupleValue<'a>> {
        self.values().nth(column)
    }
}

/// Goes through a tuple's values.
#[derive(Clone)]
pub struct TupleValues<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for TupleValues<'a> {
    type Item = TupleValue<'a>;

    #[inline]
    fn next(&mut self) -> Option<TupleValue<'a>> {
        // Every `None` but the first is ruled out by the check in `Cursor::tuple`.
        let (&kind, rest) = self.bytes.split_first()?;
        match kind {
            b't' => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.bytes = rest;
                Some(TupleValue::Text(text))
            }
            b'u' => {
                self.bytes = rest;
                Some(TupleValue::Unchanged)
            }
            _ => {
                self.bytes = rest;
                Some(TupleValue::Null)
            }
        }
    }
}

//! The change event's JSON envelope, version 1, as readers see it.
//!
//! [`Event::parse`] goes through a body once and keeps where things stand; values stay raw JSON in the body's bytes, so
//! that a sink which only forwards them pays nothing. Capture writes envelopes straight from the server's text (its
//! `encode`); the JSON Schema is `schemas/json/event.v1.schema.json`.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event_id::EventId;
use crate::position::{Lsn, ParseError, Position};

/// What happened to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// A table was emptied.
    Truncate,
    /// A row was read by a backfill.
    Read,
    /// `pg_logical_emit_message`.
    Message,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 6] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Read, Op::Message];

    /// The word in the envelope and in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Read => "read",
            Op::Message => "message",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Op {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        Op::ALL.into_iter().find(|op| op.as_str() == s).ok_or(ParseError("operation"))
    }
}

/// Why a body is not an event of version 1. Holds no byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not UTF-8.
    #[error("the body is not UTF-8")]
    Encoding,
    /// Longer than the 4 GiB that a frame can carry.
    #[error("the body is longer than 4 GiB")]
    TooLong,
    /// Not JSON, or a field has another type than the envelope gives it.
    #[error("the body is not an event: line {line}, column {column}")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// A field is missing or contradicts another.
    #[error("the event's {0} is missing or impossible")]
    Field(&'static str),
}

impl EventError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "journal.malformed_event"
    }
}

/// A text of the body: where it stands, or its own copy where JSON had to escape it.
#[derive(Clone, PartialEq, Eq)]
enum Text {
    At(Span),
    Owned(Box<str>),
}

/// Bytes of the body.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// A column and its value.
#[derive(Clone)]
struct Field {
    name: Text,
    value: Span,
}

/// Some of an event's fields: where they begin and end.
#[derive(Clone, Copy)]
struct Part(u32, u32);

/// A change event, parsed once and shared by every connector.
#[derive(Clone)]
pub struct Event {
    /// Known to be UTF-8: its pieces are looked at often.
    body: ByteString,
    id: EventId,
    id_text: Text,
    op: Op,
    schema: Option<Text>,
    table: Option<Text>,
    layout: Option<Text>,
    /// Those of key, old row and new row, in the order in which they stand in the body: one allocation.
    fields: Vec<Field>,
    key: Option<Part>,
    before: Option<Part>,
    after: Option<Part>,
    unchanged: Vec<Text>,
    commit_lsn: Lsn,
    ordinal: u32,
    xid: Option<u32>,
    committed_at: Option<Text>,
    connector: Option<Text>,
}

/// Shows the id and what happened, no value.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id()).field("op", &self.op).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

impl Event {
    /// Reads an event's body.
    ///
    /// # Errors
    /// The body is not an event of version 1. Fields that version 1 does not know are skipped.
    pub fn parse(body: Bytes) -> Result<Event, EventError> {
        if u32::try_from(body.len()).is_err() {
            return Err(EventError::TooLong);
        }
        let body = ByteString::try_from(body).map_err(|_| EventError::Encoding)?;
        let mut reader = serde_json::Deserializer::from_str(&body);
        let seed = Envelope { base: body.as_ptr().addr() };
        let raw = seed.deserialize(&mut reader).and_then(|raw| reader.end().map(|()| raw)).map_err(|e| EventError::Malformed {
            // What serde says may quote the body.
            line: e.line(),
            column: e.column(),
        })?;
        raw.check(body)
    }

    /// The whole body, as it stands in the journal.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        self.body.as_bytes()
    }

    /// The id's text: the same on every replay.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text(&self.id_text)
    }

    /// The id, taken apart.
    #[must_use]
    pub fn event_id(&self) -> &EventId {
        &self.id
    }

    /// What happened.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// The table's namespace; `None` for a message.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_ref().map(|t| self.text(t))
    }

    /// The table's name; `None` for a message.
    #[must_use]
    pub fn table(&self) -> Option<&str> {
        self.table.as_ref().map(|t| self.text(t))
    }

    /// The fingerprint of the table's layout at the time; `None` for a message, and for events of programs that wrote none.
    #[must_use]
    pub fn layout(&self) -> Option<&str> {
        self.layout.as_ref().map(|t| self.text(t))
    }

    /// Orders the changes of one row: the event's position, and for a backfill's row the position as of which it was
    /// read, which every later change outranks.
    #[must_use]
    pub fn version(&self) -> Position {
        match &self.id {
            EventId::Change(position) => *position,
            EventId::Read(read) => Position::new(read.epoch, self.commit_lsn, 0),
        }
    }

    /// LSN of the transaction's commit record.
    #[must_use]
    pub fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }

    /// Count of the change within its transaction; of a backfill's row within its attempt.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The transaction's id; `None` for a backfill's row and for a message outside a transaction.
    #[must_use]
    pub fn xid(&self) -> Option<u32> {
        self.xid
    }

    /// When the transaction committed, RFC 3339 in UTC; `None` where there is no [`xid`](Self::xid).
    #[must_use]
    pub fn committed_at(&self) -> Option<&str> {
        self.committed_at.as_ref().map(|t| self.text(t))
    }

    /// The only connector that a backfill's row is meant for; `None` where it is meant for all.
    #[must_use]
    pub fn connector(&self) -> Option<&str> {
        self.connector.as_ref().map(|t| self.text(t))
    }

    /// A column's value as raw JSON: of the new row, and of a deleted row what the server told of it (the old row, or
    /// its key). `None` for a column that is not there, an unchanged one included.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&str> {
        match self.op {
            Op::Delete => self.find(self.before, name).or_else(|| self.find(self.key, name)),
            _ => self.find(self.after, name),
        }
    }

    /// A column's value in the old row, when the server sent that.
    #[must_use]
    pub fn old_column(&self, name: &str) -> Option<&str> {
        self.find(self.before, name)
    }

    /// The key's columns and their values as raw JSON, in the table's order; nothing for a table without a key.
    pub fn key(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.fields(self.key)
    }

    /// The old row's columns; nothing when the server did not send it.
    pub fn before(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.fields(self.before)
    }

    /// The new row's columns, without unchanged ones; nothing for a delete.
    pub fn after(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.fields(self.after)
    }

    /// Whether there is a new row.
    #[must_use]
    pub fn has_after(&self) -> bool {
        self.after.is_some()
    }

    /// Columns whose large values the change did not touch and the server did not send: a sink leaves them alone.
    pub fn unchanged(&self) -> impl ExactSizeIterator<Item = &str> {
        self.unchanged.iter().map(|t| self.text(t))
    }

    /// Names the row: `schema.table` and the key's raw values, joined by U+001F. All rows of a table without a key
    /// share one text, because nothing tells which changes are of one row. The halves of a key change name two rows.
    #[must_use]
    pub fn key_text(&self) -> String {
        let mut text = String::with_capacity(64);
        self.key_pieces(|piece| text.push_str(piece));
        text
    }

    /// A stable hash of [`key_text`](Self::key_text), well mixed, and independent of the partition hash: for lanes.
    #[must_use]
    pub fn key_hash(&self) -> u64 {
        // FNV-1a, with murmur3's finalizer because lanes take the remainder of a small number.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        self.key_pieces(|piece| {
            for byte in piece.bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        });
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }

    fn key_pieces(&self, mut put: impl FnMut(&str)) {
        put(self.schema().unwrap_or_default());
        put(".");
        put(self.table().unwrap_or_default());
        for (_, value) in self.key() {
            put("\u{1f}");
            put(value);
        }
    }

    fn slice(&self, span: Span) -> &str {
        // Spans were cut from this very text; the fallback is never taken.
        self.body.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    fn text<'e>(&'e self, text: &'e Text) -> &'e str {
        match text {
            Text::At(span) => self.slice(*span),
            Text::Owned(text) => text,
        }
    }

    fn part(&self, part: Option<Part>) -> &[Field] {
        part.and_then(|Part(from, to)| self.fields.get(from as usize..to as usize)).unwrap_or_default()
    }

    fn fields(&self, part: Option<Part>) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.part(part).iter().map(|f| (self.text(&f.name), self.slice(f.value)))
    }

    fn find(&self, part: Option<Part>, name: &str) -> Option<&str> {
        self.part(part).iter().find(|f| self.text(&f.name) == name).map(|f| self.slice(f.value))
    }
}

/// The envelope's fields before they are checked against each other.
#[derive(Default)]
struct Raw {
    id: Option<Text>,
    op: Option<Text>,
    schema: Option<Text>,
    table: Option<Text>,
    layout: Option<Text>,
    fields: Vec<Field>,
    key: Option<Part>,
    before: Option<Part>,
    after: Option<Part>,
    unchanged: Vec<Text>,
    commit_lsn: Option<Text>,
    ordinal: Option<u32>,
    xid: Option<u32>,
    committed_at: Option<Text>,
    connector: Option<Text>,
}

impl Raw {
    fn check(self, body: ByteString) -> Result<Event, EventError> {
        fn of<'t>(text: &'t Text, body: &'t str) -> &'t str {
            match text {
                Text::At(span) => body.get(span.start as usize..span.end as usize).unwrap_or_default(),
                Text::Owned(text) => text,
            }
        }
        let required = |text: &Option<Text>, field| text.clone().ok_or(EventError::Field(field));
        let op: Op = of(&required(&self.op, "op")?, &body).parse().map_err(|_| EventError::Field("op"))?;
        let commit_lsn: Lsn = of(&required(&self.commit_lsn, "commit_lsn")?, &body).parse().map_err(|_| EventError::Field("commit_lsn"))?;
        let ordinal = self.ordinal.ok_or(EventError::Field("ordinal"))?;
        let id_text = required(&self.id, "id")?;
        let id: EventId = of(&id_text, &body).parse().map_err(|_| EventError::Field("id"))?;
        match &id {
            EventId::Change(p) if op != Op::Read && p.commit_lsn == commit_lsn && p.ordinal == ordinal => {}
            // A row that a backfill was asked for by its key and did not find is a deletion.
            EventId::Read(r) if matches!(op, Op::Read | Op::Delete) && r.row == ordinal => {}
            EventId::Change(_) | EventId::Read(_) => return Err(EventError::Field("id")),
        }
        if op != Op::Message && (self.schema.is_none() || self.table.is_none()) {
            return Err(EventError::Field("table"));
        }
        if matches!(op, Op::Insert | Op::Update | Op::Read) && self.after.is_none() {
            return Err(EventError::Field("after"));
        }
        Ok(Event {
            body,
            id,
            id_text,
            op,
            schema: self.schema,
            table: self.table,
            layout: self.layout,
            fields: self.fields,
            key: self.key,
            before: self.before,
            after: self.after,
            unchanged: self.unchanged,
            commit_lsn,
            ordinal,
            xid: self.xid,
            committed_at: self.committed_at,
            connector: self.connector,
        })
    }
}

/// Reads the envelope; `base` is the address of the body's first byte, from which spans count.
#[derive(Clone, Copy)]
struct Envelope {
    base: usize,
}

impl Envelope {
    fn span(self, text: &str) -> Span {
        // Bodies are at most 4 GiB long and `text` lies in this one.
        let start = text.as_ptr().addr().wrapping_sub(self.base) as u32;
        Span { start, end: start.wrapping_add(text.len() as u32) }
    }
}

impl<'de> DeserializeSeed<'de> for Envelope {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Envelope {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw { fields: Vec::with_capacity(FIELDS_EXPECTED), ..Raw::default() };
        let base = self;
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match &*name {
                "id" => raw.id = map.next_value_seed(TextSeed(base))?,
                "op" => raw.op = map.next_value_seed(TextSeed(base))?,
                "schema" => raw.schema = map.next_value_seed(TextSeed(base))?,
                "table" => raw.table = map.next_value_seed(TextSeed(base))?,
                "layout" => raw.layout = map.next_value_seed(TextSeed(base))?,
                "key" => raw.key = map.next_value_seed(FieldsSeed(base, &mut raw.fields))?,
                "before" => raw.before = map.next_value_seed(FieldsSeed(base, &mut raw.fields))?,
                "after" => raw.after = map.next_value_seed(FieldsSeed(base, &mut raw.fields))?,
                "unchanged" => raw.unchanged = map.next_value_seed(NamesSeed(base))?,
                "commit_lsn" => raw.commit_lsn = map.next_value_seed(TextSeed(base))?,
                "ordinal" => raw.ordinal = map.next_value()?,
                "xid" => raw.xid = map.next_value()?,
                "committed_at" => raw.committed_at = map.next_value_seed(TextSeed(base))?,
                "connector" => raw.connector = map.next_value_seed(TextSeed(base))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(raw)
    }
}

/// A string or null.
struct TextSeed(Envelope);

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Option<Text>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Option<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Text::At(self.0.span(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Text::Owned(text.into())))
    }
}

/// Columns that an event has room for before it grows: keys and rows of most tables of a point of sale fit.
const FIELDS_EXPECTED: usize = 16;

/// An object of columns or null, and where they go.
struct FieldsSeed<'f>(Envelope, &'f mut Vec<Field>);

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = Option<Part>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = Option<Part>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or null")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let FieldsSeed(base, fields) = self;
        let from = fields.len() as u32;
        while let Some(name) = map.next_key_seed(TextSeed(base))? {
            let value = map.next_value::<&'de RawValue>()?;
            // A key is a string, never null.
            let Some(name) = name else { continue };
            fields.push(Field { name, value: base.span(value.get()) });
        }
        // Fewer than the body has bytes.
        Ok(Some(Part(from, fields.len() as u32)))
    }
}

/// A list of names.
struct NamesSeed(Envelope);

impl<'de> DeserializeSeed<'de> for NamesSeed {
    type Value = Vec<Text>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for NamesSeed {
    type Value = Vec<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element_seed(TextSeed(self.0))? {
            names.extend(name);
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: &str = r#"{"id":"e1-0/16B3748-17","op":"update","schema":"public","table":"order_item","key":{"id":7,"loc":"north"},"before":null,"after":{"id":7,"loc":"north","qty":2,"na\"me":{"a": [1, {"b":"}"}]}},"unchanged":["receipt"],"commit_lsn":"0/16B3748","ordinal":17,"xid":753,"committed_at":"2026-11-22T10:00:00.123456Z"}"#;

    fn parse(text: &str) -> Result<Event, EventError> {
        Event::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn an_update_reads_back() {
        let event = parse(UPDATE).expect("an event");
        assert_eq!(event.id(), "e1-0/16B3748-17");
        assert_eq!(event.op(), Op::Update);
        assert_eq!((event.schema(), event.table()), (Some("public"), Some("order_item")));
        assert_eq!(event.key().collect::<Vec<_>>(), [("id", "7"), ("loc", "\"north\"")]);
        assert_eq!(event.column("qty"), Some("2"));
        assert_eq!(event.column("na\"me"), Some(r#"{"a": [1, {"b":"}"}]}"#));
        assert_eq!(event.column("receipt"), None);
        assert_eq!(event.unchanged().collect::<Vec<_>>(), ["receipt"]);
        assert_eq!(event.before().len(), 0);
        assert_eq!(event.version(), "1-0/16B3748-17".parse().expect("a position"));
        assert_eq!((event.xid(), event.committed_at()), (Some(753), Some("2026-11-22T10:00:00.123456Z")));
        assert_eq!(event.key_text(), "public.order_item\u{1f}7\u{1f}\"north\"");
        assert_eq!(event.body(), UPDATE);
    }

    #[test]
    fn a_deleted_rows_columns_come_from_the_old_row_or_its_key() {
        let text = r#"{"id":"e1-0/1-0d","op":"delete","schema":"s","table":"t","key":{"id":7},"before":{"id":7,"note":"x"},"after":null,"unchanged":[],"commit_lsn":"0/1","ordinal":0,"xid":1,"committed_at":"2026-11-22T10:00:00.000000Z"}"#;
        let event = parse(text).expect("an event");
        assert_eq!((event.column("note"), event.column("id"), event.has_after()), (Some("\"x\""), Some("7"), false));
        let event = parse(&text.replace(r#"{"id":7,"note":"x"}"#, "null")).expect("an event");
        assert_eq!((event.column("note"), event.column("id")), (None, Some("7")));
    }

    #[test]
    fn a_backfilled_row_is_outranked_by_every_later_change() {
        let text = r#"{"id":"e1-bj-public.a\"b-12.0-44","op":"read","schema":"public","table":"a\"b","key":{"id":7},"before":null,"after":{"id":7},"unchanged":[],"commit_lsn":"0/10","ordinal":44,"xid":null,"committed_at":null}"#;
        let event = parse(text).expect("an event");
        assert_eq!((event.id(), event.table()), ("e1-bj-public.a\"b-12.0-44", Some("a\"b")));
        assert_eq!(event.version(), Position::new(1, Lsn(0x10), 0));
        assert_eq!((event.xid(), event.committed_at()), (None, None));
    }

    #[test]
    fn keys_tell_rows_apart_and_keyless_rows_share_one() {
        let other = parse(&UPDATE.replace("\"id\":7,\"loc\"", "\"id\":8,\"loc\"")).expect("an event");
        let one = parse(UPDATE).expect("an event");
        assert_ne!((one.key_hash(), one.key_text()), (other.key_hash(), other.key_text()));
        let keyless = |qty| {
            let text = UPDATE.replace(r#"{"id":7,"loc":"north"}"#, "null").replace("\"qty\":2", qty);
            parse(&text).expect("an event").key_hash()
        };
        assert_eq!(keyless("\"qty\":2"), keyless("\"qty\":3"));
        // Stable over releases: lanes are counted from it.
        assert_eq!(one.key_hash(), 10_210_073_480_161_715_179);
    }

    #[test]
    fn bodies_that_contradict_themselves_are_refused() {
        let bad = [
            ("0/16B3748-17\"", "0/16B3748-18\""),
            ("\"commit_lsn\":\"0/16B3748\"", "\"commit_lsn\":\"0/16B3749\""),
            ("\"op\":\"update\"", "\"op\":\"upsert\""),
            ("\"op\":\"update\"", "\"op\":\"read\""),
            ("\"table\":\"order_item\"", "\"table\":null"),
            ("\"after\":{", "\"later\":{"),
            ("\"ordinal\":17", "\"ordinal\":-17"),
            ("\"ordinal\":17", "\"ordinal\":4294967296"),
            ("\"xid\":753", "\"xid\":\"753\""),
            ("\"key\":{", "\"key\":[{"),
            ("[\"receipt\"]", "\"receipt\""),
        ];
        for (from, to) in bad {
            let text = UPDATE.replace(from, to);
            assert_ne!(text, UPDATE);
            assert!(parse(&text).is_err(), "{to}");
        }
        assert_eq!(Event::parse(Bytes::from_static(b"{\"id\":\"\xff\"}")).expect_err("not UTF-8"), EventError::Encoding);
        let error = parse("{\"id\":1,\"after\":{\"secret\":\"4111\"}}").expect_err("no event").to_string();
        assert!(!error.contains("4111"), "{error}");
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_answer_not_a_panic() {
        for n in 0..UPDATE.len() {
            assert!(Event::parse(Bytes::copy_from_slice(&UPDATE.as_bytes()[..n])).is_err());
            for bit in 0..8 {
                let mut flipped = UPDATE.as_bytes().to_vec();
                flipped[n] ^= 1 << bit;
                if let Ok(event) = Event::parse(Bytes::from(flipped)) {
                    let _ = (event.key_hash(), event.column("qty"), event.unchanged().count(), event.version());
                }
            }
        }
        let deep = UPDATE.replace("\"qty\":2", &format!("\"qty\":{}{}", "[".repeat(100_000), "]".repeat(100_000)));
        assert_eq!(parse(&deep).expect("depth is not ours to limit").column("qty").map(str::len), Some(200_000));
    }
}

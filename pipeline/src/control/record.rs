//! The records of the control journal, version 1: what each says and how it is stored.
//!
//! A record is a JSON object with `v` and `type` beside its own fields. The format is ours alone, but it is kept
//! readable: whoever opens the control stream with any client sees what happened. Names and meanings never change
//! within a version; a later version keeps reading this one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tillstream_schemas::{Lineage, Lsn, Policy, Position};

use super::ControlError;
use super::backfill::BackfillJob;
use super::member::Member;
use super::pause::Pause;
use super::stretch::{ReplayRequested, ReplayTaken};
use crate::journal::Offset;

/// The format version that this program writes.
pub(super) const VERSION: u32 = 1;

/// Now, in milliseconds since the Unix epoch. For people to read; nothing is ordered by it.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// A capture run begins; stored as a fence, and the same body fences the data logs.
    Session(Session),
    /// An operator's command begins to write.
    Operator(Operator),
    /// A process that delivers: it joins, lives, or leaves.
    Member(Member),
    /// A delivery process takes over one partition of one connector.
    Lease(Lease),
    /// How far one connector is in one partition.
    Checkpoint(Checkpoint),
    /// An event that a target refused for good.
    DeadLetter(DeadLetter),
    /// A dead letter needs nobody any more.
    DeadLetterSettled(DeadLetterSettled),
    /// An operator wants dead letters delivered again.
    RedriveRequested(RedriveRequested),
    /// An operator wants a stretch of the journal delivered again.
    ReplayRequested(ReplayRequested),
    /// Somebody paused a connector, or had it go on.
    Pause(Pause),
    /// How far a backfill is in one table.
    Cursor(Cursor),
    /// A backfill has read all its tables.
    LoadFinished(LoadFinished),
    /// PostgreSQL may be told to forget WAL up to a position.
    Released(Released),
    /// Where a backfill job stands.
    Backfill(Box<BackfillJob>),
    /// A new epoch begins: history did not continue.
    Epoch(Epoch),
    /// A captured table has another layout from here on.
    Layout(TableLayout),
    /// A connector goes on with a table's layout.
    LayoutAccepted(LayoutAccepted),
    /// Someone decided something.
    Audit(Audit),
    /// Everything that the records before an offset amount to.
    Snapshot(Box<Snapshot>),
    /// A piece of a record that is larger than one batch.
    Piece(Piece),
}

/// A capture run, announced by its fence. Two runs that picked the same token differ in the nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Number of the run: one above the highest that any log showed.
    pub token: u32,
    /// Random, fresh for each attempt; hexadecimal.
    pub nonce: String,
    /// Host and process, for people.
    pub owner: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the source.
    pub source: String,
    /// The server's system identifier. Text, since many JSON readers round numbers above 2^53.
    #[serde(with = "text")]
    pub system_id: u64,
    /// The server's timeline.
    pub timeline: u32,
    /// The replication slot.
    pub slot: String,
    /// Epoch in which the run's positions stand.
    pub epoch: u32,
    /// The lineage of its entries; hexadecimal.
    #[serde(with = "lineage_text")]
    pub lineage: Lineage,
    /// How it spreads rows over the data logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitioning: Option<Partitioning>,
    /// What the slot had confirmed when the run took it; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
    pub confirmed: Option<Lsn>,
    /// When.
    pub at_ms: i64,
}

/// How rows are spread over the data logs. It must not change while a log goes on: what a start skips is known per
/// partition, and a row that moved to another one would be skipped there or stored twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitioning {
    /// How many data logs.
    pub partitions: u16,
    /// The columns that choose, by `schema.table`; `None` means the replica identity.
    pub tables: BTreeMap<String, Option<Vec<String>>>,
}

impl Partitioning {
    /// The first table that would move, or the number of partitions; `None` when both spread the tables that they share
    /// alike.
    #[must_use]
    pub fn difference(&self, other: &Partitioning) -> Option<String> {
        if self.partitions != other.partitions {
            return Some(format!("{} partitions became {}", self.partitions, other.partitions));
        }
        let mut shared = self.tables.iter().filter_map(|(table, columns)| Some((table, columns, other.tables.get(table)?)));
        let print = |columns: &Option<Vec<String>>| columns.as_ref().map_or("its key".to_owned(), |names| names.join(", "));
        shared.find(|(_, was, is)| was != is).map(|(table, was, is)| format!("{table} was spread by {}, now by {}", print(was), print(is)))
    }
}

/// An operator's command that is about to write: the lease of the `operator` producer name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// One above the highest operator token seen.
    pub token: u32,
    /// Random, hexadecimal.
    pub nonce: String,
    /// User, host and command.
    pub who: String,
    /// When.
    pub at_ms: i64,
}

/// Which delivery process serves one partition of one connector. The highest number is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The connector.
    pub connector: String,
    /// Journal partition.
    pub partition: u16,
    /// One above the highest that was seen, from 1.
    pub lease: u32,
    /// Random, hexadecimal: tells two processes apart that picked the same number.
    pub nonce: String,
    /// Host and process, for people.
    pub owner: String,
    /// The [`Member`] that holds it; empty of programs that knew none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// Its holder has ended in good order: nothing is in the air, and the next one need not wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// When.
    pub at_ms: i64,
}

/// How far one connector is in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The connector.
    pub connector: String,
    /// Journal partition.
    pub partition: u16,
    /// The lease under which it was written.
    pub lease: u32,
    /// Everything below this offset of the data log is settled: reading resumes here.
    #[serde(with = "offset_number")]
    pub offset: Offset,
    /// The live position of the partition at that offset: what `prev` of the next live entry must be.
    #[serde(with = "text")]
    pub position: Position,
    /// The highest capture token seen below that offset.
    pub token: u32,
    /// Offsets at or above `offset` that are settled too, as closed ranges, rising and apart; bounded by what is in flight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledger: Vec<(u64, u64)>,
    /// The last replay that was taken up in this partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplayTaken>,
    /// When.
    pub at_ms: i64,
}

/// An event's body as the data journal holds it. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// UTF-8, which every event of ours is.
    Text(String),
    /// Anything else, as base64.
    Base64(String),
    /// Not stored: the event is above the configured limit, and this was its length in bytes.
    Omitted(u64),
}

impl Body {
    /// Keeps these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Body {
        match std::str::from_utf8(bytes) {
            Ok(text) => Body::Text(text.to_owned()),
            Err(_) => Body::Base64(BASE64.encode(bytes)),
        }
    }

    /// The event's bytes; `None` when they were not stored (or what was stored is not base64).
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Body::Text(text) => Some(text.clone().into_bytes()),
            Body::Base64(text) => BASE64.decode(text).ok(),
            Body::Omitted(_) => None,
        }
    }

    /// Bytes it takes in memory and in the control journal, about.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        match self {
            Body::Text(text) | Body::Base64(text) => text.len(),
            Body::Omitted(_) => 0,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.stored_len())
    }
}

/// An event that a target refused for good, with all that a later redrive needs: retention may have deleted the
/// event from the data journal by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The connector.
    pub connector: String,
    /// Partition of the event.
    pub partition: u16,
    /// Offset of the event in its data log, at the time.
    #[serde(with = "offset_number")]
    pub offset: Offset,
    /// The event's id.
    pub event_id: String,
    /// The event.
    pub event: Body,
    /// Stable code of the refusal, as `http.status_422`.
    pub code: String,
    /// What the target objected to, without values.
    pub message: String,
    /// Attempts made so far, redrives included.
    pub attempts: u32,
    /// First attempt.
    pub first_at_ms: i64,
    /// Last attempt.
    pub last_at_ms: i64,
    /// The key that the attempts carried: a redrive carries it too.
    pub idempotency_key: String,
    /// The version that orders the effect.
    #[serde(with = "text")]
    pub version: Position,
}

/// How a dead letter was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    /// The target took it (or already had it).
    Redriven,
    /// An operator decided that it is not needed.
    Discarded,
}

/// A dead letter needs nobody any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterSettled {
    /// The connector.
    pub connector: String,
    /// The event's id.
    pub event_id: String,
    /// How.
    pub how: Settled,
    /// Why, for the audit; empty for a redrive.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

/// Which dead letters of a connector are meant. Empty filters match everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedriveRequested {
    /// The connector.
    pub connector: String,
    /// These events; empty means all.
    #[serde(default)]
    pub event_ids: Vec<String>,
    /// Only those refused with this code.
    #[serde(default)]
    pub code: Option<String>,
    /// Who asked.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

impl RedriveRequested {
    /// Whether it means this letter.
    #[must_use]
    pub fn covers(&self, letter: &DeadLetter) -> bool {
        letter.connector == self.connector
            && (self.event_ids.is_empty() || self.event_ids.contains(&letter.event_id))
            && self.code.as_ref().is_none_or(|code| *code == letter.code)
    }
}

/// Texts of a row's key columns as the server prints them. Never printed by `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyTexts(pub Vec<String>);

impl fmt::Debug for KeyTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyTexts({} columns)", self.0.len())
    }
}

/// How far a backfill is in one table. Written after the chunk's rows are confirmed in every partition, and once
/// before the first chunk of each run, so that a chunk in doubt is read again under an attempt never used before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The job: `[a-z0-9_]+`.
    pub job: String,
    /// Schema and table, as `public.orders`.
    pub table: String,
    /// Which part of the table: a partition, a range of keys, or both; empty when it is read as one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// The epoch in which it reads; a cursor of an earlier epoch counts for nothing.
    pub epoch: u32,
    /// One above the highest number of a stored chunk.
    pub chunk: u32,
    /// The attempt that the run uses for its chunks.
    pub attempt: u32,
    /// Key of the last row read; before the first one of a range of keys that of the range before. Of rows asked for by
    /// key how many were dealt with.
    pub after: Option<KeyTexts>,
    /// The greatest key of the part when the job began: rows above it come from the stream. `None` when there was none.
    pub bound: Option<KeyTexts>,
    /// Rows stored so far.
    pub rows: u64,
    /// Whether the table is done.
    pub done: bool,
    /// When the job began with the table.
    pub started_at_ms: i64,
    /// When this was written.
    pub at_ms: i64,
}

/// A backfill has read all its tables; everything it stored lies before this record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadFinished {
    /// The job.
    pub job: String,
    /// The epoch in which it read.
    pub epoch: u32,
    /// How many tables.
    pub tables: u32,
    /// How many rows it stored.
    pub rows: u64,
    /// When.
    pub at_ms: i64,
}

/// Written before PostgreSQL is told, so that a slot which stands further than any of these was moved by somebody else:
/// dropped and created again, or advanced by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The epoch in which the position stands.
    pub epoch: u32,
    /// The highest position that may be acknowledged.
    #[serde(with = "text")]
    pub upto: Lsn,
    /// When.
    pub at_ms: i64,
}

/// A new epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number.
    pub epoch: u32,
    /// Where the history before it ended, as far as we know.
    #[serde(with = "text")]
    pub after: Lsn,
    /// Whether the tables are loaded anew. When not, what was loaded in the epochs before stays loaded.
    #[serde(default = "yes")]
    pub reload: bool,
    /// Why it was needed.
    pub why: String,
    /// Who decided.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

/// A captured table as the stream described it from a position on. Events name it by its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLayout {
    /// `schema.table`, as configured and as in events.
    pub table: String,
    /// The fingerprint that events carry.
    pub layout: String,
    /// The position of the first change that could use it.
    #[serde(with = "text")]
    pub since: Position,
    /// The relation's OID: another one under the same name is another table.
    pub oid: u32,
    /// The table's name in the database where that is not the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<String>,
    /// What old rows carry: `default`, `index`, `full` or `nothing`.
    pub identity: String,
    /// The published columns in order.
    pub columns: Vec<LayoutColumn>,
    /// When that transaction committed.
    pub at_ms: i64,
}

/// A column of a [`TableLayout`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutColumn {
    /// Name.
    pub name: String,
    /// Type, as SQL writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Whether it belongs to the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub key: bool,
    /// What becomes of its values, unless they pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl LayoutColumn {
    /// Whether events hold the column.
    #[must_use]
    pub fn appears(&self) -> bool {
        [Policy::Drop, Policy::Held].iter().all(|hidden| self.policy.as_deref() != Some(&*hidden.to_string()))
    }
}

/// A connector goes on with a layout of a table, and with every one before it: it met the table so, or somebody decided it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutAccepted {
    /// The connector.
    pub connector: String,
    /// `schema.table`.
    pub table: String,
    /// The layout's fingerprint.
    pub layout: String,
    /// Whether events that lack a column which the connector uses are to be dead letters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuse: bool,
    /// Who.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

/// Someone decided something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Who.
    pub who: String,
    /// What was done; no row values.
    pub what: String,
    /// The reason given.
    pub why: String,
    /// When.
    pub at_ms: i64,
}

/// An open dead letter in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLetter {
    /// The letter.
    pub letter: DeadLetter,
    /// Whether an operator asked for its redrive and no attempt was recorded since.
    pub redrive_requested: bool,
}

/// Everything that the records below `covers` amount to. A reader that starts from it goes on at `covers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The first control offset that it does not hold.
    #[serde(with = "offset_number")]
    pub covers: Offset,
    /// The session with the highest token.
    pub session: Option<Session>,
    /// The highest epoch.
    pub epoch: u32,
    /// The highest operator token.
    pub operator: u32,
    /// The lease in force of each connector and partition.
    pub leases: Vec<Lease>,
    /// The checkpoint in force of each connector and partition.
    pub checkpoints: Vec<Checkpoint>,
    /// Open dead letters.
    pub dead_letters: Vec<OpenLetter>,
    /// Backfill cursors.
    pub cursors: Vec<Cursor>,
    /// Finished backfills.
    pub loads: Vec<LoadFinished>,
    /// Backfill jobs.
    #[serde(default)]
    pub backfills: Vec<BackfillJob>,
    /// The last audit records.
    pub audit: Vec<Audit>,
    /// The highest position of the present epoch that may be acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
    pub released: Option<Lsn>,
    /// Processes that deliver, by slot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// The last layouts of each table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layouts: Vec<TableLayout>,
    /// The layouts that connectors go on with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<LayoutAccepted>,
    /// The last replay that was asked for of each connector and partition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replays: Vec<ReplayRequested>,
    /// Connectors that somebody paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<Pause>,
    /// When.
    pub at_ms: i64,
}

/// A piece of a record that is larger than one batch. Pieces of one writer follow each other; pieces of different
/// writers may interleave.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Who writes: a producer's name.
    pub writer: String,
    /// Names the whole: half of its SHA-256, hexadecimal; checked when it is joined.
    pub whole: String,
    /// 0-based.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// This piece of the whole's JSON.
    pub text: String,
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({}, {} of {}, {} bytes)", self.writer, self.index + 1, self.count, self.text.len())
    }
}

#[derive(Serialize)]
struct StoredRef<'a> {
    v: u32,
    #[serde(flatten)]
    record: &'a Record,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Record {
    /// The stored form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&StoredRef { v: VERSION, record: self }).expect("records hold only what JSON can say")
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`ControlError::Version`] when a later program wrote it, [`ControlError::Malformed`] for anything that is no record.
    pub fn from_json(bytes: &[u8]) -> Result<Record, ControlError> {
        // The error texts of serde_json may quote the input, so only their place is kept.
        let malformed = |e: serde_json::Error| ControlError::Malformed(format!("line {}, column {}", e.line(), e.column()));
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.v != VERSION {
            return Err(ControlError::Version(version.v));
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// Whether only the capture run that holds the highest token may write it.
    #[must_use]
    pub fn is_capture_only(&self) -> bool {
        matches!(
            self,
            Record::Session(_)
                | Record::Cursor(_)
                | Record::LoadFinished(_)
                | Record::Released(_)
                | Record::Backfill(_)
                | Record::Layout(_)
                | Record::Snapshot(_)
        )
    }
}

/// Values that are stored as their text.
pub(super) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in super::super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(in super::super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| de::Error::custom("a text of another form"))
    }
}

/// The same for a value that may be absent.
mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(|_| de::Error::custom("a text of another form"))).transpose()
    }
}

fn yes() -> bool {
    true
}

mod lineage_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use tillstream_schemas::Lineage;

    pub(super) fn serialize<S: Serializer>(value: &Lineage, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:016x}", value.0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lineage, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map(Lineage).map_err(|_| de::Error::custom("not hexadecimal"))
    }
}

pub(super) mod offset_number {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::journal::Offset;

    pub(in super::super) fn serialize<S: Serializer>(value: &Offset, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.0)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Offset, D::Error> {
        u64::deserialize(from).map(Offset)
    }
}

/// The same for an offset that may be absent.
pub(super) mod optional_offset {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::journal::Offset;

    #[allow(clippy::ref_option)] // The form that serde calls.
    pub(in super::super) fn serialize<S: Serializer>(value: &Option<Offset>, to: S) -> Result<S::Ok, S::Error> {
        value.map(|offset| offset.0).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Offset>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Offset))
    }
}

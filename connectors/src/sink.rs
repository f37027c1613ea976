//! The seam between delivery and one partner system.
//!
//! Depends on `tillstream-schemas` only, so that it can become a crate of its own the day outside authors need it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tillstream_schemas::{Event, Position};

/// One event on its way to one connector.
#[derive(Clone, Debug)]
pub struct Item {
    /// The event, parsed once for all connectors of the process.
    pub event: Arc<Event>,
    /// Names the effect, the same on every attempt: what a target deduplicates by. At most 64 characters `[a-z0-9]`.
    pub idempotency_key: String,
    /// Orders the effects on one row: a target keeps the highest. For a backfill's row the position as of which it was read.
    pub version: Position,
    /// What the connector's `map` made of the event, or why it could make nothing, upon which the sink answers [`Outcome::Rejected`]; `None` where
    /// there is no `map`, and the sink says the event in its own words.
    pub mapped: Option<Result<Arc<str>, Reason>>,
}

/// Opaque progress of one lane: a transactional sink stores it with the rows and returns it from [`Sink::resume`].
///
/// A lane's later mark is greater than an earlier one, byte by byte, and a later owner's is greater than any of an
/// earlier owner: a stored mark that is *greater* than the one at hand proves that another process took over, and the
/// sink rolls back and answers [`Class::Definite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(pub Vec<u8>);

/// Which lane of a connector a sink instance serves; a transactional sink stores marks under it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Name of the connector.
    pub connector: String,
    /// Journal partition.
    pub partition: u16,
    /// Lane within the partition, from 0.
    pub lane: u16,
}

/// What a deleted row does in the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDelete {
    /// The row stays, marked as deleted, with the delete's version.
    #[default]
    Tombstone,
    /// The row goes.
    Delete,
    /// Nothing happens: delivery does not even hand deletes over.
    Ignore,
}

/// What a lane hands over in one call.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In order: two items of one row stand as they were committed, and there are none such unless the sink is
    /// [`Idempotency::Transactional`] or [`Idempotency::Version`]. Empty when only the mark is to be stored.
    pub items: Vec<Item>,
    /// Progress once the whole batch is applied. A transactional sink commits it together with the items, and only
    /// when every one of them is applied: otherwise a refused item would be lost with a crash before it is a dead letter.
    pub mark: Mark,
}

/// What the sink says of one item. Outcomes follow the batch and may stop early: what is not reported was not attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied now.
    Delivered,
    /// The target already had it (or a newer version): applied by an earlier attempt.
    Absorbed,
    /// The target will never take it: a dead letter.
    Rejected(Reason),
    /// Not applied as far as the sink knows; the runtime repeats it under the same key.
    Retry(Retry),
}

/// Why an item was refused or has to wait. Never holds a row's value, a key or a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Stable code, as `http.status_422`.
    pub code: String,
    /// For people: what the target objected to, without values.
    pub message: String,
}

impl Reason {
    /// A reason with a stable code (dotted, lower-case) and words for people, which hold no value.
    #[must_use]
    pub fn new(code: &str, message: &str) -> Reason {
        Reason { code: code.to_owned(), message: message.to_owned() }
    }
}

/// A repeat that the target asked for or a transient failure calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Why.
    pub reason: Reason,
    /// The target's own wish (`Retry-After`): the whole target pauses so long and no attempt is counted.
    pub after: Option<Duration>,
}

/// A call failed as a whole, so nothing is known of its items; they are repeated under the same keys.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct SinkError {
    /// Stable code.
    pub code: String,
    /// For people, without values or secrets.
    pub message: String,
    /// Whether repeating can help.
    pub class: Class,
    /// The target's own wish for a pause.
    pub after: Option<Duration>,
}

impl SinkError {
    /// The target is away or busy: the call is repeated.
    #[must_use]
    pub fn transient(code: &str, message: &str) -> SinkError {
        SinkError { code: code.to_owned(), message: message.to_owned(), class: Class::Transient, after: None }
    }

    /// Someone has to act: the connector stops.
    #[must_use]
    pub fn definite(code: &str, message: &str) -> SinkError {
        SinkError { class: Class::Definite, ..SinkError::transient(code, message) }
    }
}

/// Whether repeating can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The target is away or busy: wait, repeat.
    Transient,
    /// Someone has to act (credentials, permissions, configuration): the connector stops and says so, nothing is dropped.
    Definite,
}

/// What keeps a repeated event from having two effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotency {
    /// Rows and mark are one transaction in the target.
    Transactional,
    /// The target remembers idempotency keys.
    Key,
    /// The target keeps the highest version of a row.
    Version,
    /// Nothing: repeats have a second effect; the user accepted that.
    None,
}

/// One lane's connection to one partner system. Calls come one at a time.
#[async_trait]
pub trait Sink: Send {
    /// Reachable and permitted? Changes nothing in the target.
    async fn check(&mut self) -> Result<(), SinkError>;

    /// The target's clock, milliseconds since the Unix epoch; `None` for a target that does not tell it.
    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        Ok(None)
    }

    /// The mark of the last committed batch of this lane; `None` for sinks that store none.
    async fn resume(&mut self) -> Result<Option<Mark>, SinkError> {
        Ok(None)
    }

    /// Attempts the batch. `Err` means nothing is known of it.
    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError>;
}

/// Compares what a target holds with what it should hold. Changes nothing.
#[async_trait]
pub trait Compare: Send {
    /// The key's columns of a source table and the others that are written; `None` for a table that the target does not take.
    fn columns(&self, schema: &str, table: &str) -> Option<(Vec<String>, Vec<String>)>;

    /// A digest of the rows with these keys, in their order: SHA-256, hexadecimal, of `-` for a row that is not there, else
    /// of `+` and each column as `~` for NULL or `<bytes>:<text>`. Equal digests are equal rows; different ones may differ
    /// in how types are printed alone.
    async fn digest(&mut self, schema: &str, table: &str, keys: &[Vec<String>]) -> Result<String, SinkError>;

    /// Which of these items, all of one table, the target does not hold as they are; of a deletion whether the row is
    /// there. Indexes, rising.
    async fn differing(&mut self, items: &[Item]) -> Result<Vec<usize>, SinkError>;

    /// The next keys that the target holds, in its own order.
    async fn keys_after(&mut self, schema: &str, table: &str, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError>;
}

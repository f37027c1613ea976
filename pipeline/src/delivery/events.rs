//! Entries to events: parsed once a process, chosen per connector, named for their target.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tillstream_connectors::idempotency;
use tillstream_connectors::mapping::{Mapped, Mapping};
use tillstream_connectors::sink::{Idempotency, Item, OnDelete};
use tillstream_schemas::envelope::EventError;
use tillstream_schemas::{Event, Op, Position};

use crate::config;

/// Events kept for the other connectors of a partition. Connectors that stand further apart than this parse for
/// themselves, which costs time and nothing else.
const KEPT_EVENTS: usize = 4_096;
/// Bytes of them.
const KEPT_BYTES: usize = 8 << 20;

/// An event and what delivery needs to know of it at every turn.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) event: Arc<Event>,
    /// Names the row; stable over restarts, since a lane's mark relies on it.
    pub(super) row: u64,
    /// Length of the body.
    pub(super) bytes: usize,
    /// When it was committed at the source, milliseconds since the Unix epoch; of a backfill's row when it was stored.
    pub(super) committed_at_ms: i64,
}

impl Prepared {
    pub(super) fn parse(body: &[u8], stored_at_ms: i64) -> Result<Prepared, EventError> {
        // A copy, because a slice would keep its whole chunk in memory for as long as one event waits.
        let event = Event::parse(Bytes::copy_from_slice(body))?;
        let committed = event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let committed_at_ms = committed.map_or(stored_at_ms, jiff::Timestamp::as_millisecond);
        Ok(Prepared { row: event.key_hash(), bytes: body.len(), event: Arc::new(event), committed_at_ms })
    }
}

/// The newest events of one partition, shared by all connectors that read it.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whether there is more than one.
    keep: bool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Offsets and lengths, oldest first.
    order: VecDeque<(u64, usize)>,
    events: HashMap<u64, (Position, Prepared)>,
    bytes: usize,
}

impl Shared {
    pub(super) fn new(connectors: usize) -> Shared {
        Shared { keep: connectors > 1, kept: Mutex::default() }
    }

    /// The event of the entry at this offset; parsed when nobody has done so.
    pub(super) fn prepare(&self, offset: u64, position: Position, body: &[u8], stored_at_ms: i64) -> Result<Prepared, EventError> {
        if !self.keep {
            return Prepared::parse(body, stored_at_ms);
        }
        if let Some(found) = self.find(offset, position, body) {
            return Ok(found);
        }
        let prepared = Prepared::parse(body, stored_at_ms)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.events.insert(offset, (position, prepared.clone())).is_none() {
            kept.order.push_back((offset, body.len()));
            kept.bytes += body.len();
        }
        while kept.order.len() > KEPT_EVENTS || kept.bytes > KEPT_BYTES {
            let Some((oldest, len)) = kept.order.pop_front() else { break };
            kept.events.remove(&oldest);
            kept.bytes -= len;
        }
        Ok(prepared)
    }

    /// A journal that lost its unsynced tail uses offsets again, so the bytes are compared.
    fn find(&self, offset: u64, position: Position, body: &[u8]) -> Option<Prepared> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, prepared) = kept.events.get(&offset)?;
        (*at == position && prepared.event.body() == body).then(|| prepared.clone())
    }
}

/// Which events a connector wants, and how they are named for its target.
#[derive(Debug)]
pub(super) struct Selection {
    connector: String,
    tables: HashMap<String, HashSet<String>>,
    ops: Vec<Op>,
    on_delete: OnDelete,
    /// Whether a TRUNCATE, which stands in every partition, is wanted from this one.
    truncates: bool,
    mapping: Option<Arc<Mapping>>,
}

impl Selection {
    pub(super) fn new(connector: &config::Connector, partition: u16) -> Selection {
        let mut tables: HashMap<String, HashSet<String>> = HashMap::new();
        for (schema, table) in &connector.tables {
            tables.entry(schema.clone()).or_default().insert(table.clone());
        }
        // A sink that keeps versions empties each partition's rows when that partition's truncate comes, since rows
        // before it may come later than the truncate of another partition. For the others it is one event.
        let versioned = is_versioned(connector.target.plan().idempotency);
        Selection {
            connector: connector.name.clone(),
            tables,
            ops: connector.ops.clone(),
            on_delete: connector.on_delete,
            // There is no row to map.
            truncates: (versioned || partition == 0) && connector.mapping.as_ref().is_none_or(|m| !m.has_map()),
            mapping: connector.mapping.clone(),
        }
    }

    pub(super) fn wants(&self, event: &Event) -> bool {
        let op = event.op();
        if !self.ops.contains(&op) || (op == Op::Delete && self.on_delete == OnDelete::Ignore) || (op == Op::Truncate && !self.truncates) {
            return false;
        }
        if event.connector().is_some_and(|only| only != self.connector) {
            return false;
        }
        match (event.schema(), event.table()) {
            (Some(schema), Some(table)) => self.tables.get(schema).is_some_and(|t| t.contains(table)),
            // A message belongs to no table.
            _ => op == Op::Message,
        }
    }

    /// What goes to the sink; `None` when the connector's `when` says no.
    pub(super) fn item(&self, event: &Arc<Event>) -> Option<Item> {
        let idempotency_key = idempotency_key(&self.connector, event.id(), 0);
        // A truncate has no row that `when` could look at.
        let mapping = self.mapping.as_ref().filter(|_| event.op() != Op::Truncate);
        let mapped = match mapping.map(|mapping| mapping.apply(event, &idempotency_key)) {
            None | Some(Ok(Mapped::Whole)) => None,
            Some(Ok(Mapped::Filtered)) => return None,
            Some(Ok(Mapped::Body(body))) => Some(Ok(body.into())),
            Some(Err(fault)) => Some(Err(fault.reason())),
        };
        Some(Item { idempotency_key, version: event.version(), event: event.clone(), mapped })
    }
}

/// Whether the target itself keeps an older state from overwriting a newer one.
pub(super) fn is_versioned(idempotency: Idempotency) -> bool {
    match idempotency {
        Idempotency::Transactional | Idempotency::Version => true,
        Idempotency::Key | Idempotency::None => false,
    }
}

/// Names the effect of one output of an event at one connector.
pub(super) fn idempotency_key(connector: &str, event_id: &str, output: u32) -> String {
    idempotency::key([connector.as_bytes(), event_id.as_bytes(), &output.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_stable_short_and_apart() {
        let key = idempotency_key("loyalty", "e1-0/16B3748-17", 0);
        assert_eq!(key.len(), 52);
        assert_eq!(key, idempotency_key("loyalty", "e1-0/16B3748-17", 0));
        let others = [("loyalt", "ye1-0/16B3748-17", 0), ("loyalty", "e1-0/16B3748-17", 1), ("loyalty", "e1-0/16B3748-17d", 0)];
        for (connector, id, output) in others {
            assert_ne!(key, idempotency_key(connector, id, output));
        }
        // Stored in targets for as long as they remember: a change would double every repeat.
        assert_eq!(key, "vlp3lxeu4xop52hoapan4kighvjgk2cnixzh4bxhovrivqxikw2a");
    }
}

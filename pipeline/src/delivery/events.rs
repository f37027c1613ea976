//! Entries to events: parsed once a process, chosen per connector, named for their target.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;
use tillstream_connectors::idempotency;
use tillstream_connectors::mapping::{self, Fault, Mapping};
use tillstream_connectors::sink::{Idempotency, Item, OnDelete};
use tillstream_schemas::envelope::EventError;
use tillstream_schemas::{Event, Op, Position};

use super::group::{self, Group};
use super::keep::Keep;
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
        Ok(Prepared::at(event, stored_at_ms))
    }

    /// An event of which nobody knows when it was stored.
    pub(super) fn of(event: Event) -> Prepared {
        Prepared::at(event, 0)
    }

    fn at(event: Event, stored_at_ms: i64) -> Prepared {
        let committed = event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let committed_at_ms = committed.map_or(stored_at_ms, jiff::Timestamp::as_millisecond);
        Prepared { row: event.key_hash(), bytes: event.body().len(), event: Arc::new(event), committed_at_ms }
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
    tables: HashMap<String, HashSet<String, RandomState>, RandomState>,
    ops: Vec<Op>,
    on_delete: OnDelete,
    /// Whether a TRUNCATE, which stands in every partition, is wanted from this one.
    truncates: bool,
    mapping: Option<Arc<Mapping>>,
    /// Name of the source: part of the keys of facts.
    source: String,
    /// Whether a lane has to be the row's own: the marks of a transactional target rely on it.
    by_row: bool,
}

/// What an event is made into.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) item: Item,
    /// What is kept in order: the row, or what the mapping's `key` says.
    pub(super) key: u64,
    /// Chooses the lane.
    pub(super) lane: u64,
    /// Bytes of what is sent.
    pub(super) bytes: usize,
}

impl Output {
    /// Whether the mapping failed, so that there is nothing to send.
    pub(super) fn is_unmapped(&self) -> bool {
        matches!(self.item.mapped, Some(Err(_)))
    }
}

impl Selection {
    pub(super) fn new(connector: &config::Connector, source: &str, partition: u16) -> Selection {
        let mut tables: HashMap<String, HashSet<String, RandomState>, RandomState> = HashMap::default();
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
            source: source.to_owned(),
            by_row: connector.target.plan().idempotency == Idempotency::Transactional,
        }
    }

    /// The mapping, when it makes one event of a whole transaction.
    pub(super) fn grouped(&self) -> Option<&Mapping> {
        self.mapping.as_deref().filter(|mapping| mapping.is_grouped())
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

    /// What goes to the sink: nothing when the connector's `when` says no. What cannot be mapped at all goes there once, with the reason. `given` is the
    /// key of an event that went there before, kept unless the mapping names facts.
    pub(super) fn outputs(&self, prepared: &Prepared, keep: Option<&Keep>, given: Option<&str>) -> Vec<Output> {
        let event = &prepared.event;
        let whole = |mapped| {
            let idempotency_key = given.map_or_else(|| self.event_key(event), str::to_owned);
            let item = Item { idempotency_key, version: event.version(), event: event.clone(), mapped };
            vec![Output { item, key: prepared.row, lane: prepared.row, bytes: prepared.bytes }]
        };
        // A truncate has no row that `when` could look at.
        let Some(mapping) = self.mapping.as_ref().filter(|_| event.op() != Op::Truncate) else { return whole(None) };
        // A key that came from the event alone was never that of a fact.
        let given = given.filter(|given| !mapping.has_id() || *given != self.event_key(event));
        let name = |fact: Option<&str>| match (given, fact) {
            (Some(given), _) if !mapping.has_each() => given.to_owned(),
            (_, Some(fact)) => fact_key(&self.connector, &self.source, fact),
            (_, None) => self.event_key(event),
        };
        let made = match mapping.outputs(event, keep.map(Keep::tables), &name) {
            Ok(made) => made,
            Err(fault) => return whole(Some(Err(fault.reason()))),
        };
        let output = |output: mapping::Output| {
            let mapped = output.body.map(|body| body.map(Arc::<str>::from).map_err(|fault| fault.reason()));
            let bytes = match &mapped {
                Some(Ok(body)) if mapping.has_each() => body.len(),
                _ => prepared.bytes,
            };
            let key = output.key.map_or(prepared.row, |key| hash_of(&key));
            let item = Item { idempotency_key: output.idempotency_key, version: event.version(), event: event.clone(), mapped };
            Output { item, key, lane: if self.by_row { prepared.row } else { key }, bytes }
        };
        made.into_iter().map(output).collect()
    }

    /// A group's outputs.
    pub(super) fn group(&self, group: &Group, given: Option<&str>, lane: u64, fault: Option<&Fault>, keep: Option<&Keep>) -> Vec<Output> {
        let mut outputs = match fault {
            Some(fault) => {
                let event = &group.prepared.event;
                let mapped = Some(Err(fault.reason()));
                let item = Item { idempotency_key: self.event_key(event), version: group.version, event: event.clone(), mapped };
                vec![Output { item, key: group.prepared.row, lane: group.prepared.row, bytes: group.prepared.bytes }]
            }
            None => self.outputs(&group.prepared, keep, given),
        };
        for output in &mut outputs {
            output.item.version = group.version;
            if !group.key.is_empty() {
                output.key = hash_of(&group.key);
            }
            output.lane = if self.by_row { lane } else { output.key };
        }
        outputs
    }

    /// What goes to the sink for a dead letter that is sent again: everything when the event as a whole could not be mapped, else the one output whose
    /// letter it is.
    pub(super) fn again(&self, prepared: &Prepared, keep: Option<&Keep>, letter: &str, key: &str) -> Vec<(Prepared, Output)> {
        let whole = letter == prepared.event.id();
        let mut outputs: Vec<(Prepared, Output)> = match self.grouped() {
            None => self.outputs(prepared, keep, Some(key)).into_iter().map(|output| (prepared.clone(), output)).collect(),
            Some(mapping) => match group::regroup(prepared, |event| mapping.joins(event, keep.map(Keep::tables))) {
                Ok((groups, fault)) => {
                    let given = (groups.len() == 1).then_some(key);
                    let of = |group: Group| {
                        let outputs = self.group(&group, given, prepared.row, fault.as_ref(), keep);
                        outputs.into_iter().map(move |output| (group.prepared.clone(), output))
                    };
                    groups.into_iter().flat_map(of).collect()
                }
                Err(_) => Vec::new(),
            },
        };
        // A letter of one output of several stands for that fact alone.
        if !whole {
            outputs.retain(|(_, output)| output.item.idempotency_key == key);
        }
        outputs
    }

    /// The name under which an output stands among the dead letters: the event's, and of one output of several also a piece of its own key.
    pub(super) fn letter_id(&self, item: &Item) -> String {
        let id = item.event.id();
        let each = self.mapping.as_ref().is_some_and(|mapping| mapping.has_each());
        if each && item.idempotency_key != self.event_key(&item.event) {
            format!("{id}#{}", &item.idempotency_key[..12])
        } else {
            id.to_owned()
        }
    }

    fn event_key(&self, event: &Event) -> String {
        idempotency_key(&self.connector, event.id(), 0)
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

/// Names the effect of stating a fact: the same whatever the event's position is, so that a row that is read again does not state it again.
fn fact_key(connector: &str, source: &str, fact: &str) -> String {
    idempotency::key([connector.as_bytes(), b"fact", source.as_bytes(), fact.as_bytes()])
}

/// Stable over restarts: 64 bits of the text's name.
fn hash_of(text: &str) -> u64 {
    // FNV-1a and murmur3's finalizer, as of a row's key.
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
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
        let fact = fact_key("stock", "pos", "sale:7:3");
        assert_eq!(
            (fact.as_str(), fact == fact_key("stock", "pos2", "sale:7:3")),
            ("tjtnsftbiictuziyvgs7dew6j4awwto3a4kgaph7bthsj3togrcq", false)
        );
    }
}

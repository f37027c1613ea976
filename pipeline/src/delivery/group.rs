//! The events of one transaction, waiting for its end: what `group: transaction` makes one fact of.
//!
//! ```text
//!  a1 b1 a2 end ─▶ group a: [a1, a2], group b: [b1]        (by the mapping's `key`; without one a transaction is one group)
//! ```
//!
//! All groups of a transaction share the sequence under which its first wanted event was admitted, so a checkpoint never stands inside of it, and
//! whoever starts again reads all of it again. Pure.

use std::sync::Arc;

use tillstream_connectors::mapping::{self, Fault};
use tillstream_schemas::envelope::EventError;
use tillstream_schemas::{Event, EventId, Lsn, Position};

use super::events::Prepared;
use super::settlement::Sequence;

/// Which transaction: epoch and commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transaction(u32, Lsn);

impl Transaction {
    pub(super) fn of(position: Position) -> Transaction {
        Transaction(position.epoch, position.commit_lsn)
    }

    /// That of an event; a row that a backfill read has none.
    pub(super) fn of_event(event: &Event) -> Option<Transaction> {
        match event.event_id() {
            EventId::Change(position) => Some(Transaction::of(*position)),
            EventId::Read(_) => None,
        }
    }

    /// Its commit.
    pub(super) fn lsn(self) -> Lsn {
        self.1
    }

    /// Chooses the lane of a target that keeps marks a lane: it must be the same after every restart.
    pub(super) fn lane(self) -> u64 {
        (u64::from(self.0) ^ self.1.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }
}

/// A transaction whose end has not come.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) transaction: Transaction,
    /// Under which it is settled; `None` when all of it was, by an earlier owner.
    pub(super) sequence: Option<Sequence>,
    /// By key, in the order in which they began.
    groups: Vec<(String, Vec<Prepared>)>,
    bytes: usize,
    /// Why an event could not be told its group: then nobody knows which groups are whole.
    fault: Option<Fault>,
}

/// One fact of a transaction.
#[derive(Debug)]
pub(super) struct Group {
    /// Its first event, with all of them in `events`.
    pub(super) prepared: Prepared,
    /// That of its last event.
    pub(super) version: Position,
    /// What its mapping's `key` said.
    pub(super) key: String,
}

impl Open {
    pub(super) fn new(transaction: Transaction, sequence: Option<Sequence>) -> Open {
        Open { transaction, sequence, groups: Vec::new(), bytes: 0, fault: None }
    }

    /// Adds an event to its group and answers how many bytes the whole transaction has. What an earlier owner settled is not kept.
    pub(super) fn add(&mut self, joins: Result<String, Fault>, prepared: Prepared) -> usize {
        if self.sequence.is_none() {
            return 0;
        }
        let key = joins.unwrap_or_else(|fault| {
            self.fault.get_or_insert(fault);
            String::new()
        });
        self.bytes += prepared.bytes;
        match self.groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, events)) => events.push(prepared),
            None => self.groups.push((key, vec![prepared])),
        }
        self.bytes
    }

    /// The groups; with a fault all events are one.
    ///
    /// # Errors
    /// An event's body cannot be read again, which is a bug.
    pub(super) fn close(self) -> Result<(Vec<Group>, Option<Fault>), EventError> {
        let groups = match &self.fault {
            Some(_) => {
                let mut all: Vec<Prepared> = self.groups.into_iter().flat_map(|(_, events)| events).collect();
                all.sort_by_key(|prepared| prepared.event.version());
                vec![(String::new(), all)]
            }
            None => self.groups,
        };
        let groups = groups.into_iter().filter(|(_, events)| !events.is_empty()).map(|(key, events)| group(key, &events));
        Ok((groups.collect::<Result<_, _>>()?, self.fault))
    }
}

/// The groups that the events of a group belong to now, by the file as it is.
pub(super) fn regroup(
    prepared: &Prepared,
    joins: impl Fn(&Event) -> Result<Option<String>, Fault>,
) -> Result<(Vec<Group>, Option<Fault>), EventError> {
    let mut open = Open::new(Transaction::of(prepared.event.version()), Some(Sequence(0)));
    for event in members(prepared)? {
        let joins = joins(&event.event).transpose();
        if let Some(joins) = joins {
            open.add(joins, event);
        }
    }
    open.close()
}

/// The events of a group; of another event itself.
fn members(prepared: &Prepared) -> Result<Vec<Prepared>, EventError> {
    #[derive(serde::Deserialize)]
    struct Members<'a> {
        #[serde(borrow, default)]
        events: Vec<&'a serde_json::value::RawValue>,
    }
    let malformed = |e: serde_json::Error| EventError::Malformed { line: e.line(), column: e.column() };
    let all: Members<'_> = serde_json::from_slice(prepared.event.body()).map_err(malformed)?;
    if all.events.is_empty() {
        return Ok(vec![prepared.clone()]);
    }
    all.events.iter().map(|body| Prepared::parse(body.get().as_bytes(), prepared.committed_at_ms)).collect()
}

fn group(key: String, events: &[Prepared]) -> Result<Group, EventError> {
    let first = &events[0];
    let all: Vec<&Event> = events.iter().map(|e| &*e.event).collect();
    let event = Arc::new(mapping::grouped_event(&all)?);
    let version = all.iter().map(|event| event.version()).max().unwrap_or_else(|| first.event.version());
    let bytes = events.iter().map(|e| e.bytes).sum();
    Ok(Group { prepared: Prepared { bytes, event, ..first.clone() }, version, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(ordinal: u32) -> Prepared {
        let body = format!(
            "{{\"id\":\"e1-0/9-{ordinal}\",\"op\":\"insert\",\"schema\":\"s\",\"table\":\"t\",\"key\":{{\"id\":{ordinal}}},\"before\":null,\
             \"after\":{{\"id\":{ordinal}}},\"unchanged\":[],\"commit_lsn\":\"0/9\",\"ordinal\":{ordinal},\"xid\":1,\
             \"committed_at\":\"2026-11-22T10:00:00.000000Z\"}}"
        );
        Prepared::parse(body.as_bytes(), 0).expect("an event")
    }

    fn open(keys: &[Result<&str, ()>]) -> Open {
        let mut open = Open::new(Transaction::of(Position::new(1, Lsn(9), 0)), Some(Sequence(0)));
        for (ordinal, key) in (0..).zip(keys) {
            let fault = || Fault { code: "mapping.failed", path: "key".into(), what: "x".into(), detail: None };
            assert!(open.add(key.map(str::to_owned).map_err(|()| fault()), prepared(ordinal)) > 0);
        }
        open
    }

    #[test]
    fn a_transactions_events_are_grouped_by_key_in_their_order() {
        let (groups, fault) = open(&[Ok("a"), Ok("b"), Ok("a")]).close().expect("groups");
        assert!(fault.is_none());
        let of = |group: &Group| serde_json::from_slice::<serde_json::Value>(group.prepared.event.body()).expect("JSON")["events"].clone();
        let ordinals: Vec<Vec<u64>> =
            groups.iter().map(|g| of(g).as_array().expect("a list").iter().filter_map(|e| e["ordinal"].as_u64()).collect()).collect();
        assert_eq!(ordinals, [vec![0, 2], vec![1]]);
        assert_eq!((groups[0].prepared.event.id(), groups[0].version), ("e1-0/9-0", Position::new(1, Lsn(9), 2)));
    }

    #[test]
    fn with_an_event_that_has_no_group_all_of_them_stay_together() {
        let (groups, fault) = open(&[Ok("a"), Err(()), Ok("b")]).close().expect("groups");
        assert_eq!((groups.len(), groups[0].version, fault.is_some()), (1, Position::new(1, Lsn(9), 2), true));
    }

    #[test]
    fn of_a_settled_transaction_nothing_is_kept() {
        let mut open = Open::new(Transaction::of(Position::new(1, Lsn(9), 0)), None);
        assert_eq!(open.add(Ok(String::new()), prepared(0)), 0);
        assert!(open.close().expect("nothing").0.is_empty());
    }
}

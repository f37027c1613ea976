//! What a connector would make of the events of one partition, and what its target would be sent, without a sink.

use std::sync::Arc;

use serde_json::Value;
use tillstream_connectors::mapping::Mapping;
use tillstream_connectors::registry::Target;
use tillstream_connectors::show::{Shown, Unshown, common, masked};
use tillstream_connectors::sink::{Item, OnDelete, Reason};
use tillstream_schemas::Event;

use super::DeliveryError;
use super::events::{Output, Prepared, Selection};
use super::group::{Open, Transaction};
use super::keep::{Keep, UpTo};
use super::settlement::Sequence;
use crate::config;
use crate::control::DeadLetter;
use crate::journal::{Journal, Log, Offset};

/// A connector's choice and mapping, and what they need of the events before.
#[derive(Debug)]
pub struct Preview {
    selection: Selection,
    keep: Option<Keep>,
    group: Option<Open>,
    mapping: Option<Arc<Mapping>>,
    target: Arc<dyn Target>,
    on_delete: OnDelete,
}

/// What becomes of one output at its target.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Names its effect.
    pub idempotency_key: String,
    /// Whether it would be sent.
    pub fate: Fate,
    /// What its target would be sent; `None` when nothing is, or the kind of sink does not tell.
    pub request: Option<Shown>,
    /// What is sent: of a kind that does not tell, what the sink is given. Null when nothing is.
    pub body: Value,
    /// The same with the names of their types instead of values; what stands in the connector's `map` itself stays.
    pub masked: Value,
}

/// Whether an output would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Yes.
    Sent,
    /// No: a dead letter.
    Refused(Reason),
    /// No: the connector would stop.
    Stops(Reason),
}

impl Fate {
    /// Why it would not be sent.
    #[must_use]
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Fate::Sent => None,
            Fate::Refused(reason) | Fate::Stops(reason) => Some(reason),
        }
    }
}

/// What becomes of an event.
#[derive(Debug)]
pub enum Verdict {
    /// Another table or operation than the connector takes.
    NotTaken,
    /// The connector's `when` says no, or `each` finds nothing.
    Filtered,
    /// It goes to the sink: `mapped` of each item holds the JSON, or why there is none.
    Sent(Vec<Item>),
}

impl Preview {
    /// Of this connector, whose source has this name.
    #[must_use]
    pub fn new(connector: &config::Connector, source: &str) -> Preview {
        // Truncates stand in every partition and are told of the first.
        Preview::of_partition(connector, source, 0)
    }

    /// As [`new`](Self::new), of the events of one partition.
    #[must_use]
    pub fn of_partition(connector: &config::Connector, source: &str, partition: u16) -> Preview {
        Preview {
            selection: Selection::new(connector, source, partition),
            keep: Keep::new(connector),
            group: None,
            mapping: connector.mapping.clone(),
            target: connector.target.clone(),
            on_delete: connector.on_delete,
        }
    }

    /// Whether the connector takes events of this table and operation.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        self.selection.wants(event)
    }

    /// Whether events can be told only by whoever has seen those before.
    #[must_use]
    pub fn needs_past(&self) -> bool {
        self.keep.is_some()
    }

    /// Brings back what everything in a partition amounts to now.
    ///
    /// # Errors
    /// Those of the journal, and rows that take too much memory.
    pub async fn restore(&self, journal: &dyn Journal, partition: u16) -> Result<(), DeliveryError> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let end = journal.bounds(Log::Data(partition)).await?.map_or(Offset(0), |bounds| Offset(bounds.last.0 + 1));
        keep.restore(journal, partition, UpTo::Offset(end)).await
    }

    /// As [`restore`](Self::restore), up to an offset.
    ///
    /// # Errors
    /// Those of the journal, and rows that take too much memory.
    pub async fn restore_to(&self, journal: &dyn Journal, partition: u16, end: Offset) -> Result<(), DeliveryError> {
        match &self.keep {
            Some(keep) => keep.restore(journal, partition, UpTo::Offset(end)).await,
            None => Ok(()),
        }
    }

    /// Takes in an event of which nothing is asked.
    ///
    /// # Errors
    /// Rows that take too much memory.
    pub fn pass(&self, event: Event) -> Result<(), DeliveryError> {
        match &self.keep {
            Some(keep) => keep.note(Prepared::of(event)).map(drop),
            None => Ok(()),
        }
    }

    /// What becomes of this event; of one that joins the facts of its transaction once the next transaction has begun. Events come in their order.
    ///
    /// # Errors
    /// Rows that take too much memory.
    pub fn of(&mut self, event: Event) -> Result<Vec<(Arc<Event>, Verdict)>, DeliveryError> {
        let mut prepared = Prepared::of(event);
        if let Some(keep) = &self.keep {
            prepared = keep.note(prepared)?;
        }
        let event = prepared.event.clone();
        if !self.selection.wants(&event) {
            return Ok(vec![(event, Verdict::NotTaken)]);
        }
        let Some((mapping, transaction)) = self.selection.grouped().zip(Transaction::of_event(&event)) else {
            let outputs = self.selection.outputs(&prepared, self.keep.as_ref(), None);
            return Ok(vec![(event, verdict(outputs))]);
        };
        let joins = match mapping.joins(&event, self.keep.as_ref().map(Keep::tables)) {
            Ok(None) => return Ok(vec![(event, Verdict::Filtered)]),
            Ok(Some(key)) => Ok(key),
            Err(fault) => Err(fault),
        };
        let before = if self.group.as_ref().is_some_and(|open| open.transaction != transaction) { self.flush()? } else { Vec::new() };
        self.group.get_or_insert_with(|| Open::new(transaction, Some(Sequence(0)))).add(joins, prepared);
        Ok(before)
    }

    /// What becomes of the transaction that was read last.
    ///
    /// # Errors
    /// An event that cannot be read again.
    pub fn flush(&mut self) -> Result<Vec<(Arc<Event>, Verdict)>, DeliveryError> {
        let Some(open) = self.group.take() else { return Ok(Vec::new()) };
        let (groups, fault) = open.close().map_err(|_| DeliveryError::Bug)?;
        let of = |group: super::group::Group| {
            let outputs = self.selection.group(&group, None, 0, fault.as_ref(), self.keep.as_ref());
            (group.prepared.event, verdict(outputs))
        };
        Ok(groups.into_iter().map(of).collect())
    }

    /// What the target would be sent of an output, as things are now. Asks nobody.
    #[must_use]
    pub fn tell(&self, item: &Item) -> Told {
        let told = |fate, request: Option<Shown>, body, masked| Told {
            idempotency_key: item.idempotency_key.clone(),
            fate,
            request,
            body,
            masked,
        };
        let mapped: Option<Value> = match &item.mapped {
            Some(Err(reason)) => return told(Fate::Refused(reason.clone()), None, Value::Null, Value::Null),
            Some(Ok(mapped)) => serde_json::from_str(mapped).ok(),
            None => None,
        };
        match self.target.show(item, self.on_delete) {
            None => {
                let body = mapped.unwrap_or_else(|| serde_json::from_slice(item.event.body()).unwrap_or_default());
                let masked = self.mask(item, &body);
                told(Fate::Sent, None, body, masked)
            }
            Some(Ok(shown)) => {
                let other = mapped.filter(|_| shown.is_of_map).and_then(|mapped| self.disguised(item, &mapped));
                let hidden = other.map_or_else(|| masked(&shown.body), |other| common(&shown.body, &other));
                let body = shown.body.clone();
                told(Fate::Sent, Some(shown), body, hidden)
            }
            Some(Err(Unshown::Refused(reason))) => told(Fate::Refused(reason), None, Value::Null, Value::Null),
            Some(Err(Unshown::Stops(reason))) => told(Fate::Stops(reason), None, Value::Null, Value::Null),
        }
    }

    fn mask(&self, item: &Item, body: &Value) -> Value {
        match &self.mapping {
            Some(mapping) if item.mapped.is_some() => mapping.masked(body),
            _ => masked(body),
        }
    }

    /// The body that the target would be sent of other values than the row's; `None` when it takes no such words.
    fn disguised(&self, item: &Item, mapped: &Value) -> Option<Value> {
        let words = self.mapping.as_ref()?.disguised(mapped).to_string();
        let item = Item { mapped: Some(Ok(words.into())), ..item.clone() };
        self.target.show(&item, self.on_delete)?.ok().map(|shown| shown.body)
    }

    /// What would become of a dead letter if it were sent again now.
    #[must_use]
    pub fn again(&self, letter: &DeadLetter) -> Verdict {
        let event = letter.event.bytes().and_then(|body| Prepared::parse(&body, letter.first_at_ms).ok());
        let Some(prepared) = event.filter(|prepared| self.selection.wants(&prepared.event)) else { return Verdict::NotTaken };
        let again = self.selection.again(&prepared, self.keep.as_ref(), &letter.event_id, &letter.idempotency_key);
        verdict(again.into_iter().map(|(_, output)| output).collect())
    }
}

fn verdict(outputs: Vec<Output>) -> Verdict {
    if outputs.is_empty() { Verdict::Filtered } else { Verdict::Sent(outputs.into_iter().map(|output| output.item).collect()) }
}

//! What a connector would make of an event, without a sink.

use std::sync::Arc;

use tillstream_connectors::sink::Item;
use tillstream_schemas::Event;

use super::events::Selection;
use crate::config;

/// A connector's choice and mapping.
#[derive(Debug)]
pub struct Preview(Selection);

/// What becomes of an event.
#[derive(Debug)]
pub enum Verdict {
    /// Another table or operation than the connector takes.
    NotTaken,
    /// The connector's `when` says no.
    Filtered,
    /// It goes to the sink: `mapped` holds the JSON, or why there is none.
    Sent(Box<Item>),
}

impl Preview {
    /// Of this connector.
    #[must_use]
    pub fn new(connector: &config::Connector) -> Preview {
        // Truncates stand in every partition and are told of the first.
        Preview(Selection::new(connector, 0))
    }

    /// What becomes of this event.
    #[must_use]
    pub fn of(&self, event: &Arc<Event>) -> Verdict {
        match self.0.wants(event).then(|| self.0.item(event)) {
            None => Verdict::NotTaken,
            Some(None) => Verdict::Filtered,
            Some(Some(item)) => Verdict::Sent(Box::new(item)),
        }
    }
}

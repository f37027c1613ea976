//! Spans of batches under way: from the cut to the confirm.

use std::collections::VecDeque;

use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Kind};

use crate::journal::{Batch, Log, PublishId};
use crate::telemetry::traces::{self, Span};

/// Batches that are waited for. Beyond it a batch has no span: a journal that takes nothing must not gather them.
const MAX: usize = 256;

/// Spans that end with the confirm of their batch.
#[derive(Debug, Default)]
pub(super) struct Spans(VecDeque<(Log, PublishId, Span)>);

/// A span for a batch that is handed over now; `None` where nobody wants it. The control log's have none.
pub(super) fn begin(log: Log, id: PublishId, batch: &Batch) -> Option<Span> {
    let Log::Data(partition) = log else { return None };
    let mut span = traces::begin("capture batch", traces::Kind::Producer)?;
    span.count("tillstream.partition", partition);
    span.count("tillstream.publishing_id", id.0);
    span.count("tillstream.entries", batch.records);
    span.count("tillstream.bytes", batch.bytes.len());
    let (mut reads, mut events, mut first, mut last) = (0, 0, None, None);
    for entry in Records::new(&batch.bytes).flatten().filter_map(|record| Entry::decode(record).ok()) {
        match entry.header.kind {
            Kind::Read => reads += 1,
            Kind::Event => {
                events += 1;
                first = first.or(Some(entry.header.position));
                last = Some(entry.header.position);
            }
            _ => {}
        }
    }
    span.count("tillstream.events", events);
    span.count("tillstream.reads", reads);
    if let (Some(first), Some(last)) = (first, last) {
        span.text("tillstream.first_event", format!("e{first}"));
        span.text("tillstream.last_event", format!("e{last}"));
    }
    Some(span)
}

impl Spans {
    /// The batch was taken by the journal's writer.
    pub(super) fn handed(&mut self, log: Log, id: PublishId, span: Option<Span>) {
        if let Some(span) = span.filter(|_| self.0.len() < MAX) {
            self.0.push_back((log, id, span));
        }
    }

    /// Ends those whose batch is confirmed.
    pub(super) fn confirm(&mut self, confirmed: impl Fn(Log) -> PublishId) {
        if self.0.is_empty() {
            return;
        }
        for _ in 0..self.0.len() {
            let Some((log, id, span)) = self.0.pop_front() else { break };
            if confirmed(log) >= id {
                span.end();
            } else {
                self.0.push_back((log, id, span));
            }
        }
    }
}

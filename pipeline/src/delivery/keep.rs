//! The rows that a connector's mapping needs beside the event at hand, kept from the journal itself: brought back at the start by reading it again
//! from its oldest entry up to the place where delivery resumes.
//!
//! Nothing of it is stored: what is kept is a function of the journal up to a place, so two processes that stand there look up the same.

use std::sync::Arc;

use bytes::Bytes;
use tillstream_connectors::mapping::Tables;
use tillstream_schemas::{Event, Kind, Position, amend};

use super::DeliveryError;
use super::events::Prepared;
use super::filter::{Filter, Verdict};
use crate::config;
use crate::journal::{From, Journal, Log, Offset};

/// The rows one partition of a connector keeps.
#[derive(Clone, Debug)]
pub(super) struct Keep {
    tables: Arc<Tables>,
    /// Whether events come with the row's last image where the server sent none.
    images: bool,
}

/// Up to where rows are brought back.
#[derive(Clone, Copy, Debug)]
pub(super) enum UpTo {
    /// The entry at this offset is the first that is not meant.
    Offset(Offset),
    /// Entries behind this position are not meant, and none from this offset on: the offsets below it are not those they were.
    Position(Position, Offset),
}

impl Keep {
    /// Nothing kept yet; `None` when the connector's mapping needs no rows.
    pub(super) fn new(connector: &config::Connector) -> Option<Keep> {
        let lookups = connector.mapping.as_ref().map(|m| m.lookups()).unwrap_or_default();
        let images = connector.keep.images;
        if lookups.is_empty() && !images {
            return None;
        }
        let tables: &[(String, String)] = if images { &connector.tables } else { &[] };
        let limit = usize::try_from(connector.keep.memory).unwrap_or(usize::MAX);
        Some(Keep { tables: Arc::new(Tables::new(lookups, tables, limit)), images })
    }

    pub(super) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Takes an event in, and answers it with the row as it was before, where the server sent none.
    pub(super) fn note(&self, prepared: Prepared) -> Result<Prepared, DeliveryError> {
        let before = if self.images { self.tables.before(&prepared.event) } else { None };
        self.tables.note(&prepared.event)?;
        let Some(before) = before else { return Ok(prepared) };
        let with = amend::with_field(prepared.event.body(), "before", &before).and_then(|body| Event::parse(Bytes::from(body)));
        match with {
            Ok(event) => Ok(Prepared { event: Arc::new(event), ..prepared }),
            // It was parsed a moment ago.
            Err(_) => Err(DeliveryError::Bug),
        }
    }

    /// Reads a partition from its oldest entry.
    pub(super) async fn restore(&self, journal: &dyn Journal, partition: u16, up_to: UpTo) -> Result<(), DeliveryError> {
        let log = Log::Data(partition);
        let Some(bounds) = journal.bounds(log).await? else { return Ok(()) };
        let end = match up_to {
            UpTo::Offset(end) | UpTo::Position(_, end) => end.min(Offset(bounds.last.0 + 1)),
        };
        if end <= bounds.first {
            return Ok(());
        }
        let began = tokio::time::Instant::now();
        let mut reader = journal.reader(log, From::First).await?;
        let mut filter = Filter::new();
        loop {
            let chunk = reader.next().await?;
            let mut over = chunk.next_offset() >= end;
            filter.chunk(&chunk, |offset, verdict| {
                let Verdict::Pass(passed) = verdict else { return Ok(()) };
                if offset >= end || !matches!(passed.header.whole, Kind::Event | Kind::Read) {
                    return Ok(());
                }
                if let UpTo::Position(last, _) = up_to
                    && passed.header.is_live()
                    && passed.header.position > last
                {
                    over = true;
                    return Ok(());
                }
                let event = Event::parse(Bytes::copy_from_slice(passed.body)).map_err(|error| DeliveryError::Event { offset, error })?;
                self.tables.note(&event).map_err(DeliveryError::from)
            })?;
            if over {
                break;
            }
        }
        let (rows, bytes) = self.tables.size();
        tracing::info!(partition, rows, bytes, entries = end.0 - bounds.first.0, took = ?began.elapsed(), "rows for look-ups brought back");
        Ok(())
    }
}

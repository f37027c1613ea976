//! What the control log tells of single events: every refusal and how it ended, read from the log's beginning.

use std::collections::{BTreeMap, BTreeSet};

use tillstream_schemas::Entry;
use tillstream_schemas::entry::Records;

use super::ControlError;
use super::record::{DeadLetter, DeadLetterSettled, Record};
use crate::journal::{From, Journal, Log};

/// One thing that happened to an event at a connector.
#[derive(Clone, Debug)]
pub enum Happened {
    /// It became a dead letter, or did so again.
    Refused(Box<DeadLetter>),
    /// The dead letter was settled.
    Settled(DeadLetterSettled),
}

/// What happened to these events, by event and connector, as far back as the log reaches. Snapshots and records in pieces are passed over: what they
/// hold of open dead letters, [`super::State`] knows.
///
/// # Errors
/// Those of the journal, and entries that are none of ours.
pub async fn history(journal: &dyn Journal, events: &BTreeSet<String>) -> Result<BTreeMap<(String, String), Vec<Happened>>, ControlError> {
    let mut found: BTreeMap<(String, String), Vec<Happened>> = BTreeMap::new();
    let Some(bounds) = journal.bounds(Log::Control).await? else { return Ok(found) };
    let mut reader = journal.reader(Log::Control, From::First).await?;
    loop {
        let chunk = reader.next().await?;
        let malformed = |error: tillstream_schemas::entry::EntryError| ControlError::Malformed(error.to_string());
        for bytes in Records::new(&chunk.bytes) {
            let entry = Entry::decode(bytes.map_err(malformed)?).map_err(malformed)?;
            match Record::from_json(entry.body)? {
                Record::DeadLetter(letter) if events.contains(&letter.event_id) => {
                    let key = (letter.event_id.clone(), letter.connector.clone());
                    found.entry(key).or_default().push(Happened::Refused(Box::new(letter)));
                }
                Record::DeadLetterSettled(settled) if events.contains(&settled.event_id) => {
                    let key = (settled.event_id.clone(), settled.connector.clone());
                    found.entry(key).or_default().push(Happened::Settled(settled));
                }
                _ => {}
            }
        }
        if chunk.next_offset() > bounds.last {
            return Ok(found);
        }
    }
}

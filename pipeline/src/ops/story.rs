//! One row's whole life: each of its events, where it is stored, and what became of it at every connector. Reads the journal; tells no value.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tillstream_schemas::{Event, Kind};

use super::failure::Failure;
use crate::config::Pipeline;
use crate::control::{self, Happened, Settled, State};
use crate::delivery::filter::{Filter, FilterError, Verdict};
use crate::delivery::place::{Place, is_behind};
use crate::delivery::replay::RowKey;
use crate::journal::{Journal, Log, Offset};

/// Events of one row that are kept while reading: the newest.
const EVENTS_MAX: usize = 10_000;

/// An event of the row, as it is stored.
struct Found {
    partition: u16,
    offset: Offset,
    stored_at_ms: i64,
    event: Event,
}

/// An event of the row, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Its id.
    pub id: String,
    /// What it did to the row.
    pub op: &'static str,
    /// When its transaction committed; `None` of a row that a backfill read.
    pub committed_at: Option<String>,
    /// Its position.
    pub position: String,
    /// Where it is stored.
    pub partition: u16,
    /// The same.
    pub offset: u64,
    /// When that was, milliseconds since the Unix epoch.
    pub stored_at_ms: i64,
    /// Milliseconds from commit to there.
    pub stored_after_ms: Option<i64>,
    /// By connector that takes it, what became of it there: a line each.
    pub connectors: Map<String, Value>,
}

/// Whether a table is captured at all.
///
/// # Errors
/// It is not.
pub fn is_captured(pipeline: &Pipeline, table: &str) -> Result<(), Failure> {
    match pipeline.source.tables.iter().any(|t| format!("{}.{}", t.schema, t.table) == table) {
        true => Ok(()),
        false => {
            let table: String = table.escape_debug().take(200).collect();
            Err(Failure::new("usage.arguments", format!("table {table} is not captured by this pipeline")))
        }
    }
}

/// The row's events from a place on, oldest first. Reads the journal from there to its end.
///
/// # Errors
/// Those of the journal.
pub async fn of(
    journal: &dyn Journal,
    state: &State,
    connectors: &[crate::config::Connector],
    row: &RowKey,
    since: Place,
) -> Result<Vec<Told>, Failure> {
    let mut found = Vec::new();
    for partition in since.partitions(journal.partitions()).map_err(Failure::from)? {
        read(journal, partition, since, state.epoch(), row, &mut found).await?;
    }
    found.sort_by_key(|f| f.event.version());
    let ids: BTreeSet<String> = found.iter().map(|f| f.event.id().to_owned()).collect();
    let history = control::history(journal, &ids).await?;
    let told = |f: &Found| {
        let takes = |connector: &&crate::config::Connector| {
            connector.ops.contains(&f.event.op())
                && connector.tables.iter().any(|(s, t)| f.event.schema() == Some(s) && f.event.table() == Some(t))
                && f.event.connector().is_none_or(|only| only == connector.name)
        };
        let committed = f.event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        Told {
            id: f.event.id().to_owned(),
            op: f.event.op().as_str(),
            committed_at: f.event.committed_at().map(str::to_owned),
            position: f.event.version().to_string(),
            partition: f.partition,
            offset: f.offset.0,
            stored_at_ms: f.stored_at_ms,
            stored_after_ms: committed.map(|t| f.stored_at_ms - t.as_millisecond()),
            connectors: connectors.iter().filter(takes).map(|c| (c.name.clone(), json!(fate(c, f, state, &history)))).collect(),
        }
    };
    Ok(found.iter().map(told).collect())
}

/// Collects the row's events of one partition.
async fn read(
    journal: &dyn Journal,
    partition: u16,
    since: Place,
    epoch: u32,
    row: &RowKey,
    found: &mut Vec<Found>,
) -> Result<(), Failure> {
    let log = Log::Data(partition);
    let Some(bounds) = journal.bounds(log).await? else { return Ok(()) };
    let from = since.read_from(journal, partition, epoch).await.map_err(Failure::from)?;
    if is_behind(journal, partition, from, bounds.last).await? {
        return Ok(());
    }
    let mut reader = journal.reader(log, from).await?;
    let mut filter = Filter::new();
    loop {
        let chunk = reader.next().await?;
        let mut bodies = Vec::new();
        filter
            .chunk(&chunk, |offset, verdict| {
                if let Verdict::Pass(passed) = verdict
                    && matches!(passed.header.kind, Kind::Event | Kind::Read)
                {
                    bodies.push((offset, Bytes::copy_from_slice(passed.body)));
                }
                Ok::<(), FilterError>(())
            })
            .map_err(|error| Failure::new(error.code(), format!("partition {partition}: {error}")))?;
        for (offset, body) in bodies {
            let event =
                Event::parse(body).map_err(|e| Failure::new(e.code(), format!("partition {partition}, offset {}: {e}", offset.0)))?;
            if row.is_of(&event) {
                found.push(Found { partition, offset, stored_at_ms: chunk.stored_at_ms, event });
                if found.len() > EVENTS_MAX {
                    found.remove(0);
                }
            }
        }
        if chunk.next_offset() > bounds.last {
            return Ok(());
        }
    }
}

/// What became of an event at a connector, a line each.
fn fate(
    connector: &crate::config::Connector,
    found: &Found,
    state: &State,
    history: &BTreeMap<(String, String), Vec<Happened>>,
) -> Vec<String> {
    let id = found.event.id();
    let mut lines = Vec::new();
    for happened in history.get(&(id.to_owned(), connector.name.clone())).into_iter().flatten() {
        lines.push(match happened {
            Happened::Refused(letter) => {
                format!("refused after {} attempts, {}: {}: {}", letter.attempts, moment(letter.last_at_ms), letter.code, letter.message)
            }
            Happened::Settled(settled) => match settled.how {
                Settled::Redriven => format!("taken by the target when it was sent again, {}", moment(settled.at_ms)),
                Settled::Discarded => {
                    format!("discarded by {}, {}: {}", settled.by, moment(settled.at_ms), settled.reason)
                }
            },
        });
    }
    match state.dead_letter(&connector.name, id) {
        Some(letter) if letter.redrive_requested => lines.push("a dead letter, asked for again".to_owned()),
        Some(_) => lines.push("a dead letter: see `tillstream dead-letters diagnose`".to_owned()),
        None if lines.is_empty() => lines.push(match state.checkpoint(&connector.name, found.partition) {
            Some(checkpoint) if found.offset < checkpoint.offset => "settled: delivered, already there, or filtered by `when`".to_owned(),
            Some(checkpoint) if checkpoint.ledger.iter().any(|(first, last)| (*first..=*last).contains(&found.offset.0)) => {
                "settled, while older events of other rows are not".to_owned()
            }
            Some(checkpoint) => {
                format!("not settled yet: everything below offset {} is, as of {}", checkpoint.offset.0, moment(checkpoint.at_ms))
            }
            None => "not settled yet: the connector never came here".to_owned(),
        }),
        None => {}
    }
    lines
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

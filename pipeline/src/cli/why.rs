//! `why`: one row's whole life: each of its events, where it is stored, and what became of it at every connector. Reads the journal; shows no value.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::{Event, Kind};

use super::ConfigFile;
use super::output::{self, End, Format};
use super::tap;
use crate::control::{self, Happened, Settled, State};
use crate::delivery::filter::{Filter, FilterError, Verdict};
use crate::delivery::place::Place;
use crate::delivery::replay::RowKey;
use crate::journal::{self, Journal, Log, Offset};
use crate::ops::failure::{Class, Failure};

/// Events of one row that are kept while reading: the newest.
const EVENTS_MAX: usize = 10_000;

/// Tells one row's whole life: commit, place in the journal, and what became of it at every connector
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream why public.customer 7\n  tillstream why public.order id=7,business_date=2026-11-22 --since 2h\n\nEnds with 1 when no event of the row is stored. Reads the whole journal unless --since says from where."
)]
pub(super) struct Arguments {
    /// Table, as schema.table
    #[arg(value_name = "TABLE")]
    table: String,
    /// The row's key: its value, or column=value,… of a key of several columns
    #[arg(value_name = "KEY")]
    key: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Where to begin: `first`, a moment (2026-11-22T10:00:00Z), so long ago (10m), an offset (1234, p2@1234) or an LSN (0/16B3748)
    #[arg(long, default_value = "first", value_name = "PLACE")]
    since: Place,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

/// An event of the row, as it is stored.
struct Found {
    partition: u16,
    offset: Offset,
    stored_at_ms: i64,
    event: Event,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    if !pipeline.source.tables.iter().any(|t| format!("{}.{}", t.schema, t.table) == arguments.table) {
        let what = format!("table {} is not captured by this pipeline", output::clean(&arguments.table));
        return Err(Failure::new("usage.arguments", what).into());
    }
    let journal = journal::open(&pipeline.journal, "tillstream why")?;
    let state = control::replay(journal.as_ref()).await?;
    let mut found = Vec::new();
    let row = RowKey { table: arguments.table.clone(), key: arguments.key.clone() };
    for partition in arguments.since.partitions(journal.partitions()).map_err(Failure::from)? {
        read(journal.as_ref(), partition, arguments.since, state.epoch(), &row, &mut found).await?;
    }
    found.sort_by_key(|f| f.event.version());
    let ids: BTreeSet<String> = found.iter().map(|f| f.event.id().to_owned()).collect();
    let history = control::history(journal.as_ref(), &ids).await?;
    for f in &found {
        let mut connectors = Vec::new();
        for connector in &pipeline.connectors {
            let takes = connector.ops.contains(&f.event.op())
                && connector.tables.iter().any(|(s, t)| f.event.schema() == Some(s) && f.event.table() == Some(t))
                && f.event.connector().is_none_or(|only| only == connector.name);
            if takes {
                connectors.push((connector.name.as_str(), fate(connector, f, &state, &history)));
            }
        }
        print(&arguments, f, &connectors)?;
    }
    if found.is_empty() {
        eprintln!("no event of this row is stored: it did not change since, retention removed them, or the key is another one");
        return Err(End::Code(Class::Check.exit_code()));
    }
    Ok(())
}

/// Collects the row's events of one partition.
async fn read(journal: &dyn Journal, partition: u16, since: Place, epoch: u32, row: &RowKey, found: &mut Vec<Found>) -> Result<(), End> {
    let log = Log::Data(partition);
    let Some(bounds) = journal.bounds(log).await? else { return Ok(()) };
    let from = since.read_from(journal, partition, epoch).await.map_err(Failure::from)?;
    if tap::is_behind(journal, partition, from, bounds.last).await? {
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
            Happened::Refused(letter) => format!(
                "refused after {} attempts, {}: {}: {}",
                letter.attempts,
                moment(letter.last_at_ms),
                output::clean(&letter.code),
                output::clean(&letter.message)
            ),
            Happened::Settled(settled) => match settled.how {
                Settled::Redriven => format!("taken by the target when it was sent again, {}", moment(settled.at_ms)),
                Settled::Discarded => {
                    format!("discarded by {}, {}: {}", output::clean(&settled.by), moment(settled.at_ms), output::clean(&settled.reason))
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

fn print(arguments: &Arguments, found: &Found, connectors: &[(&str, Vec<String>)]) -> Result<(), End> {
    let Found { partition, offset, stored_at_ms, event } = found;
    let committed = event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    let after_ms = committed.map(|t| stored_at_ms - t.as_millisecond());
    if arguments.format == Format::Json {
        let connectors: serde_json::Map<String, Value> =
            connectors.iter().map(|(name, lines)| ((*name).to_owned(), json!(lines))).collect();
        return Ok(output::print(json!({
            "id": event.id(), "op": event.op().as_str(), "committed_at": event.committed_at(), "position": event.version().to_string(),
            "partition": partition, "offset": offset.0, "stored_at_ms": stored_at_ms, "stored_after_ms": after_ms, "connectors": connectors,
        }))?);
    }
    let committed = event.committed_at().map_or_else(|| "read by a backfill".to_owned(), |at| format!("committed {at}"));
    let delay = after_ms.map_or_else(String::new, |ms| format!(" (+{} ms)", ms.max(0)));
    output::print(format_args!(
        "{}  {}  {committed}  position {}  stored p{partition}@{}{delay}",
        output::clean(event.id()),
        event.op().as_str(),
        event.version(),
        offset.0
    ))?;
    for (name, lines) in connectors {
        for line in lines {
            output::print(format_args!("  {name}: {line}"))?;
        }
    }
    if connectors.is_empty() {
        output::print("  no connector takes it")?;
    }
    Ok(())
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

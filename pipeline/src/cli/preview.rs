//! `preview`: what a connector would make of events that are stored. A reader of its own; delivers nothing and stores nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::Event;
use tokio::sync::mpsc;

use super::ConfigFile;
use super::output::{self, End, Format};
use super::tap::{self, QUEUE_EVENTS};
use crate::delivery::DeliveryError;
use crate::delivery::place::Place;
use crate::delivery::preview::{Preview, Verdict};
use crate::journal::{self, From, Log};
use crate::ops::failure::Failure;

/// Shows what a connector would make of stored events, and delivers none
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream preview loyalty                      the first ten events of the last hour that it takes\n  tillstream preview loyalty --from first --limit 100 --unmask"
)]
pub(super) struct Arguments {
    /// Name of the connector
    #[arg(value_name = "CONNECTOR")]
    connector: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Where to begin: `first`, a moment (2026-11-22T10:00:00Z), so long ago (10m), an offset (1234, p2@1234) or an LSN (0/16B3748)
    #[arg(long, default_value = "1h", value_name = "PLACE")]
    from: Place,
    /// End after so many events that the connector takes
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: u64,
    /// Show values too, and not only the form of what would be sent
    #[arg(long)]
    unmask: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

#[derive(Default)]
struct Counts {
    taken: u64,
    filtered: u64,
    failed: u64,
    not_taken: u64,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let Some(connector) = pipeline.connectors.iter().find(|c| c.name == arguments.connector) else {
        let names: Vec<&str> = pipeline.connectors.iter().map(|c| c.name.as_str()).collect();
        let what = format!("there is no connector `{}`; the pipeline has {}", output::clean(&arguments.connector), names.join(", "));
        return Err(Failure::new("usage.arguments", what).into());
    };
    let source = &pipeline.source.name;
    let journal = journal::open(&pipeline.journal, "tillstream preview")?;
    let needs_past = Preview::new(connector, source).needs_past();
    let (send, mut receive) = mpsc::channel(QUEUE_EVENTS);
    let mut readers = tokio::task::JoinSet::new();
    let epoch = tap::epoch_of(arguments.from, journal.as_ref()).await?;
    let mut begins: BTreeMap<u16, From> = BTreeMap::new();
    for partition in arguments.from.partitions(journal.partitions()).map_err(Failure::from)? {
        // An empty log has nothing to wait for.
        let Some(bounds) = journal.bounds(Log::Data(partition)).await? else { continue };
        let from = arguments.from.read_from(journal.as_ref(), partition, epoch).await.map_err(Failure::from)?;
        begins.insert(partition, from);
        // What is looked up may stand anywhere before.
        let from = if needs_past && from != From::Next { From::First } else { from };
        readers.spawn(tap::read(Arc::clone(&journal), partition, from, Some(bounds.last), send.clone()));
    }
    drop(send);
    let mut counts = Counts::default();
    let mut previews: BTreeMap<u16, Preview> = BTreeMap::new();
    while counts.taken < arguments.limit {
        let Some(shown) = receive.recv().await else { break };
        let event = Event::parse(shown.body.clone())
            .map_err(|e| Failure::new(e.code(), format!("partition {}, offset {}: {e}", shown.partition, shown.offset.0)))?;
        let preview = previews.entry(shown.partition).or_insert_with(|| Preview::new(connector, source));
        let failed = |error: DeliveryError| Failure::new(&error.code(), error.to_string());
        let is_before = match begins.get(&shown.partition) {
            Some(From::Time(ms)) => shown.stored_at_ms < *ms,
            Some(From::Offset(offset)) => shown.offset < *offset,
            _ => false,
        };
        if needs_past && is_before {
            preview.pass(event).map_err(failed)?;
            continue;
        }
        for (event, verdict) in preview.of(event).map_err(failed)? {
            print(&arguments, &event, verdict, &mut counts)?;
        }
    }
    for preview in previews.values_mut() {
        if counts.taken >= arguments.limit {
            break;
        }
        for (event, verdict) in preview.flush().map_err(|error| Failure::new(&error.code(), error.to_string()))? {
            print(&arguments, &event, verdict, &mut counts)?;
        }
    }
    receive.close();
    while let Some(result) = readers.join_next().await {
        // A reader that found the printer gone ended well.
        result.map_err(|e| Failure::new("internal.panicked", e.to_string()))??;
    }
    match arguments.format {
        Format::Json => output::print(
            json!({"taken": counts.taken, "filtered": counts.filtered, "failed": counts.failed, "not_taken": counts.not_taken}),
        )?,
        Format::Human => output::print(format_args!(
            "{} events that it takes ({} of them filtered, {} would be dead letters), {} others passed over",
            counts.taken, counts.filtered, counts.failed, counts.not_taken
        ))?,
    }
    Ok(())
}

fn print(arguments: &Arguments, event: &Event, verdict: Verdict, counts: &mut Counts) -> Result<(), End> {
    let items = match verdict {
        Verdict::NotTaken => {
            counts.not_taken += 1;
            return Ok(());
        }
        Verdict::Filtered => {
            counts.taken += 1;
            counts.filtered += 1;
            return line(arguments, event, "filtered", None, Value::Null);
        }
        Verdict::Sent(items) => items,
    };
    counts.taken += 1;
    counts.failed += u64::from(items.iter().any(|item| matches!(item.mapped, Some(Err(_)))));
    for item in items {
        let (verdict, said) = match item.mapped {
            None => ("whole", Value::Null),
            Some(Ok(body)) => {
                let body: Value = serde_json::from_str(&body).unwrap_or_default();
                ("sent", if arguments.unmask { body } else { masked(body) })
            }
            Some(Err(reason)) => ("fails", Value::from(format!("{}: {}", reason.code, reason.message))),
        };
        line(arguments, event, verdict, Some(item.idempotency_key), said)?;
    }
    Ok(())
}

fn line(arguments: &Arguments, event: &Event, verdict: &str, key: Option<String>, said: Value) -> Result<(), End> {
    let table = format!("{}.{}", event.schema().unwrap_or_default(), event.table().unwrap_or_default());
    match arguments.format {
        Format::Json => output::print(json!({
            "id": event.id(), "op": event.op().as_str(), "table": table, "verdict": verdict, "idempotency_key": key, "said": said,
        }))?,
        Format::Human => {
            let said = match said {
                Value::Null => String::new(),
                Value::String(text) => format!(" {}", output::clean(&text)),
                body => format!(" {}", output::clean(&body.to_string())),
            };
            output::print(format_args!(
                "{:<8} {} {} {verdict}{said}",
                event.op().as_str(),
                output::clean(&table),
                output::clean(event.id())
            ))?;
        }
    }
    Ok(())
}

/// The form of a body: names stay, values become their types.
fn masked(value: Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Array(items) => items.into_iter().map(masked).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, masked(value))).collect(),
    }
}

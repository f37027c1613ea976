//! `preview`: what a connector would make of events, and what its target would be sent. A reader of its own; delivers nothing and stores nothing.
//!
//! ```text
//!  journal │ table │ file ──events──▶ the connector's mapping ──▶ told one by one
//!                                └──▶ another file's mapping ──▶ compared
//! ```

mod against;
mod place;
mod tell;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tillstream_connectors::registry::Registry;
use tillstream_schemas::Event;
use tokio::sync::mpsc;

use super::ConfigFile;
use super::output::{End, Format};
use super::tap::{self, QUEUE_EVENTS};
use crate::backfill::sample::sample;
use crate::config::{self, Connector, Pipeline, SourceTable, units};
use crate::control;
use crate::delivery::DeliveryError;
use crate::delivery::preview::Preview;
use crate::journal::{self, From, Log, Offset};
use crate::ops::failure::{Class, Failure};
use place::Place;

/// Events shown when nothing is said.
const SHOWN: u64 = 10;

/// Events compared when nothing is said.
const COMPARED: u64 = 1_000;

/// Most events: each is looked at by a person, or counted.
const LIMIT_MAX: u64 = 1_000_000;

/// Longest file of events: they are brought into their order in memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Shows what a connector would make of events and what its target would be sent, and delivers none
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream preview loyalty                                   ten events of the last hour that it takes\n  tillstream preview loyalty --from first --limit 100 --unmask\n  tillstream preview loyalty --from p2@1234 --limit 1           the event that `tap` prints there\n  tillstream preview loyalty --from table:public.guest          rows as a backfill would bring them\n  git show main:loyalty.yaml > old.yaml && tillstream preview loyalty --from 7d --against old.yaml\n\nWith --from file:events.ndjson (as `tap --format ndjson` prints them; `-` is stdin) neither journal nor database is asked, and what is looked up\nhas to be among the events. Ends with 0 whatever becomes of the events; with --against and --detailed with 1 when anything would be delivered\notherwise than before."
)]
pub(super) struct Arguments {
    /// Name of the connector
    #[arg(value_name = "CONNECTOR")]
    connector: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Where to begin: `live`, `first`, an offset (1234, p2@1234), a moment (2026-11-22T10:00:00Z), so long ago (10m), an LSN (0/16B3748), `table`, `table:SCHEMA.TABLE` or `file:PATH`
    #[arg(long, default_value = "1h", value_parser = place::parse, value_name = "PLACE")]
    from: Place,
    /// End after so many events that the connector takes [default: 10; with --against 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX))]
    limit: Option<u64>,
    /// With `--from live`: end after so long
    #[arg(long = "for", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    duration: Duration,
    /// Show values too, and not only the form of what would be sent
    #[arg(long)]
    unmask: bool,
    /// Compare with what this connector file would make of the same events
    #[arg(long, value_name = "OLD.yaml")]
    against: Option<PathBuf>,
    /// With --against: end with 1 when anything would be delivered otherwise
    #[arg(long, requires = "against")]
    detailed: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    units::duration(text)
        .filter(|d| *d <= Duration::from_secs(86_400))
        .ok_or_else(|| "write a duration of at most a day, as 30s".to_owned())
}

/// An event on its way to whoever looks at it.
pub(super) struct Arrived {
    pub(super) partition: u16,
    /// Where it stands in the journal, if it does.
    pub(super) offset: Option<Offset>,
    pub(super) event: Event,
    /// It is asked for; otherwise it only happened before.
    pub(super) is_meant: bool,
}

/// Whoever looks at events: prints them, or compares.
trait Audience {
    /// Takes an event; true when that was enough.
    fn take(&mut self, arrived: Arrived) -> Result<bool, End>;

    /// All previews of a partition.
    fn previews(&mut self, partition: u16) -> Vec<&mut Preview>;

    /// No more events come. Answers whether anything differs.
    fn end(&mut self) -> Result<bool, End>;
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let connector = super::named(&pipeline, &arguments.connector)?;
    let old = arguments.against.as_ref().map(|path| old(path, connector, registry)).transpose()?;
    let limit = arguments.limit.unwrap_or(if old.is_some() { COMPARED } else { SHOWN });
    let source = &pipeline.source.name;
    let needs_past = [Some(connector), old.as_ref()].into_iter().flatten().any(|c| Preview::new(c, source).needs_past());
    let look = tell::Look { unmask: arguments.unmask, format: arguments.format };
    let mut audience: Box<dyn Audience> = match &old {
        None => Box::new(tell::Teller::new(connector, source, limit, look)),
        Some(old) => Box::new(against::Comparison::new(old, connector, source, limit, look)),
    };
    let ended = match &arguments.from {
        Place::File(path) => of_file(path, audience.as_mut()).map(|()| Ended::Done),
        Place::Table(name) => {
            let wanted = [Some(connector), old.as_ref()].into_iter().flatten();
            let table = which_table(name.as_ref(), wanted, &pipeline)?;
            of_table(&pipeline, &table, limit, needs_past, audience.as_mut()).await.map(|()| Ended::Done)
        }
        place => of_journal(&pipeline, place, arguments.duration, needs_past, audience.as_mut()).await,
    }?;
    let differs = audience.end()?;
    match ended {
        Ended::Interrupted => Err(End::Code(130)),
        Ended::Done if differs && arguments.detailed => Err(End::Code(Class::Check.exit_code())),
        Ended::Done => Ok(()),
    }
}

enum Ended {
    Done,
    Interrupted,
}

/// The file to compare with. It has to be of the same connector, whose name is part of every key.
fn old(path: &PathBuf, connector: &Connector, registry: &Registry) -> Result<Connector, End> {
    let one = config::load_connectors(std::slice::from_ref(path), registry)?.pop();
    match one {
        Some(old) if old.name == connector.name => Ok(old),
        Some(old) => {
            let what = format!(
                "{} is of connector `{}`: keys go by the name, so it cannot be compared with `{}`; give it `connector: {2}`",
                path.display(),
                old.name,
                connector.name
            );
            Err(Failure::new("usage.arguments", what).into())
        }
        None => Err(Failure::new("usage.arguments", format!("{} is no connector file", path.display())).into()),
    }
}

fn failed(error: &DeliveryError) -> End {
    Failure::new(&error.code(), error.to_string()).into()
}

fn arrive(partition: u16, offset: Option<Offset>, body: Bytes, is_meant: bool) -> Result<Arrived, Failure> {
    let place = || offset.map_or_else(String::new, |offset| format!("partition {partition}, offset {}: ", offset.0));
    let event = Event::parse(body).map_err(|e| Failure::new(e.code(), format!("{}{e}", place())))?;
    Ok(Arrived { partition, offset, event, is_meant })
}

/// The events of a file, in the order in which they were committed.
fn of_file(path: &PathBuf, audience: &mut dyn Audience) -> Result<(), End> {
    let unreadable = |what: String| Failure::new("usage.file", format!("{}: {what}", path.display()));
    let read = || {
        let mut bytes = Vec::new();
        match path.as_os_str() == "-" {
            true => std::io::Read::read_to_end(&mut std::io::Read::take(std::io::stdin().lock(), FILE_BYTES_MAX + 1), &mut bytes),
            false => std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(path)?, FILE_BYTES_MAX + 1), &mut bytes),
        }?;
        Ok::<Bytes, std::io::Error>(bytes.into())
    };
    let bytes = read().map_err(|e| unreadable(e.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(format!("is longer than {FILE_BYTES_MAX} bytes; take a part of it")).into());
    }
    let mut events = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if !line.trim_ascii().is_empty() {
            let event =
                Event::parse(bytes.slice_ref(line)).map_err(|e| Failure::new(e.code(), format!("{}:{number}: {e}", path.display())))?;
            events.push(event);
        }
    }
    // Those of several partitions came as they were read, and a transaction belongs together.
    events.sort_by_key(Event::version);
    // A truncate stands in every partition.
    events.dedup_by(|a, b| a.id() == b.id());
    for event in events {
        if audience.take(Arrived { partition: 0, offset: None, event, is_meant: true })? {
            break;
        }
    }
    Ok(())
}

/// The table that is meant, among those that the connector takes.
fn which_table<'c>(
    name: Option<&(String, String)>,
    connectors: impl Iterator<Item = &'c Connector>,
    pipeline: &Pipeline,
) -> Result<SourceTable, Failure> {
    let mut taken: Vec<&(String, String)> = connectors.flat_map(|c| &c.tables).collect();
    taken.dedup();
    taken.sort();
    taken.dedup();
    let told = || taken.iter().map(|(schema, table)| format!("table:{schema}.{table}")).collect::<Vec<_>>().join(", ");
    let (schema, table) = match (name, taken.as_slice()) {
        (Some(name), taken) if taken.contains(&name) => name,
        (Some((schema, table)), _) => {
            return Err(Failure::new("usage.arguments", format!("the connector takes no table {schema}.{table}; write one of {}", told())));
        }
        (None, [one]) => *one,
        (None, _) => return Err(Failure::new("usage.arguments", format!("the connector takes several tables; write one of {}", told()))),
    };
    let found = pipeline.source.tables.iter().find(|t| t.schema == *schema && t.table == *table);
    found.cloned().ok_or_else(|| Failure::new("usage.arguments", format!("table {schema}.{table} is not captured by this pipeline")))
}

/// The first rows of a table, as a backfill would bring them.
async fn of_table(pipeline: &Pipeline, table: &SourceTable, limit: u64, needs_past: bool, audience: &mut dyn Audience) -> Result<(), End> {
    let journal = journal::open(&pipeline.journal, "tillstream preview")?;
    let partitions = journal.partitions();
    // Rows are looked up among what the journal holds now; without look-ups it need not even be there.
    let mut epoch = 1;
    if needs_past {
        epoch = control::replay(journal.as_ref()).await?.epoch().max(1);
        for partition in 0..partitions {
            for preview in audience.previews(partition) {
                preview.restore(journal.as_ref(), partition).await.map_err(|e| failed(&e))?;
            }
        }
    }
    let rows = u32::try_from(limit).unwrap_or(u32::MAX);
    let sampled = sample(&pipeline.source, &pipeline.name, table, (epoch, partitions), rows).await;
    for (partition, body) in sampled.map_err(|refused| Failure::new(refused.code, refused.what))? {
        if audience.take(arrive(partition, None, body, true)?)? {
            break;
        }
    }
    Ok(())
}

/// Whether an entry stands where the preview begins, or behind it. `last` was the newest entry when it began.
fn is_meant(from: From, last: Option<Offset>, shown: &tap::Shown) -> bool {
    match from {
        From::First => true,
        From::Next => last.is_none_or(|last| shown.offset > last),
        From::Time(ms) => shown.stored_at_ms >= ms,
        From::Offset(offset) => shown.offset >= offset,
    }
}

/// Events as they are stored, or as they come.
async fn of_journal(
    pipeline: &Pipeline,
    place: &Place,
    duration: Duration,
    needs_past: bool,
    audience: &mut dyn Audience,
) -> Result<Ended, End> {
    let journal = journal::open(&pipeline.journal, "tillstream preview")?;
    let stored = if let Place::Stored(stored) = place { Some(*stored) } else { None };
    let partitions = stored.map_or_else(|| Ok((0..journal.partitions()).collect()), |stored| stored.partitions(journal.partitions()));
    let epoch = stored.map(|stored| tap::epoch_of(stored, journal.as_ref()));
    let epoch = if let Some(epoch) = epoch { epoch.await? } else { 0 };
    let (send, mut receive) = mpsc::channel(QUEUE_EVENTS);
    let mut readers = tokio::task::JoinSet::new();
    let mut begins: BTreeMap<u16, (From, Option<Offset>)> = BTreeMap::new();
    for partition in partitions.map_err(Failure::from)? {
        let last = journal.bounds(Log::Data(partition)).await?.map(|bounds| bounds.last);
        let from = match (stored, last) {
            (None, _) => From::Next,
            (Some(stored), Some(_)) => stored.read_from(journal.as_ref(), partition, epoch).await.map_err(Failure::from)?,
            // An empty log has nothing to wait for.
            (Some(_), None) => continue,
        };
        if let (Some(_), Some(last)) = (stored, last)
            && tap::is_behind(journal.as_ref(), partition, from, last).await?
        {
            continue;
        }
        begins.insert(partition, (from, last));
        // What is looked up may stand anywhere before.
        let begin = if needs_past { From::First } else { from };
        readers.spawn(tap::read(Arc::clone(&journal), partition, begin, last.filter(|_| stored.is_some()), send.clone()));
    }
    drop(send);
    let (mut interrupted, mut over) = (pin!(tokio::signal::ctrl_c()), pin!(tokio::time::sleep(duration)));
    let mut ended = Ended::Done;
    loop {
        let shown = tokio::select! {
            biased;
            _ = &mut interrupted => {
                ended = Ended::Interrupted;
                break;
            }
            () = &mut over, if stored.is_none() => break,
            shown = receive.recv() => shown,
        };
        let Some(shown) = shown else { break };
        let is_meant = !needs_past || begins.get(&shown.partition).is_none_or(|(from, last)| is_meant(*from, *last, &shown));
        if audience.take(arrive(shown.partition, Some(shown.offset), shown.body, is_meant)?)? {
            break;
        }
    }
    receive.close();
    while let Some(result) = readers.join_next().await {
        // A reader that found the printer gone ended well.
        result.map_err(|e| Failure::new("internal.panicked", e.to_string()))??;
    }
    Ok(ended)
}

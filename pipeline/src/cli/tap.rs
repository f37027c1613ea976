//! `tap`: the events of the journal, as a reader of its own sees them through delivery's filter. Changes nothing, and
//! reads no faster than it prints.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use tillstream_connectors::registry::Registry;
use tillstream_schemas::{Event, Kind};
use tokio::sync::mpsc;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::control;
use crate::delivery::filter::{Filter, FilterError, Verdict};
use crate::delivery::place::Place;
pub(super) use crate::delivery::place::is_behind;
use crate::journal::{self, Chunk, From, Journal, Log, Offset};
use crate::ops::failure::Failure;

/// Events that may wait to be printed, for each partition: enough to keep the reader busy, little to hold.
pub(super) const QUEUE_EVENTS: usize = 256;

/// Shows the events of the journal
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream tap                                  what is stored from now on\n  tillstream tap --from first --until-end --format ndjson > events.ndjson\n  tillstream tap --from 10m --table public.orders --limit 20\n  tillstream tap --from p0@1234 --limit 1         the event that `why` shows there"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Where to begin: `first`, `next`, a moment (2026-11-22T10:00:00Z), so long ago (10m), an offset (1234, p2@1234) or an LSN (0/16B3748)
    #[arg(long, default_value = "next", value_name = "PLACE")]
    from: Place,
    /// End at what was stored when the command began
    #[arg(long)]
    until_end: bool,
    /// Only this table, as schema.table; may be repeated
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// A line for people, or the event's JSON
    #[arg(long, value_enum, default_value_t)]
    format: TapFormat,
    /// Show values too, where the form for people shows only names
    #[arg(long)]
    unmask: bool,
}

/// How events are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum TapFormat {
    /// Id, operation, table and column names.
    #[default]
    Human,
    /// The event's JSON with all values, one a line.
    Ndjson,
}

impl Arguments {
    pub(super) fn failure_format(&self) -> Format {
        match self.format {
            TapFormat::Human => Format::Human,
            TapFormat::Ndjson => Format::Json,
        }
    }
}

/// The epoch in which an LSN is meant: the present one. Other places need none.
pub(super) async fn epoch_of(place: Place, journal: &dyn Journal) -> Result<u32, Failure> {
    match place {
        Place::Lsn(_) => Ok(control::replay(journal).await?.epoch()),
        _ => Ok(0),
    }
}

/// One event on its way to the printer.
pub(super) struct Shown {
    pub(super) partition: u16,
    pub(super) offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub(super) stored_at_ms: i64,
    pub(super) body: Bytes,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let journal = journal::open(&pipeline.journal, "tillstream tap")?;
    let partitions: Vec<u16> = match arguments.partition {
        Some(n) if n >= journal.partitions() => {
            let what = format!("partition {n} does not exist; the journal has {}", journal.partitions());
            return Err(Failure::new("usage.arguments", what).into());
        }
        Some(n) => vec![n],
        None => arguments.from.partitions(journal.partitions()).map_err(Failure::from)?,
    };
    let epoch = epoch_of(arguments.from, journal.as_ref()).await?;
    let (send, mut receive) = mpsc::channel(QUEUE_EVENTS);
    let mut readers = tokio::task::JoinSet::new();
    for partition in partitions {
        let end = match arguments.until_end {
            // An empty log has nothing to wait for.
            true => match journal.bounds(Log::Data(partition)).await? {
                Some(bounds) => Some(bounds.last),
                None => continue,
            },
            false => None,
        };
        let from = arguments.from.read_from(journal.as_ref(), partition, epoch).await.map_err(Failure::from)?;
        readers.spawn(read(Arc::clone(&journal), partition, from, end, send.clone()));
    }
    drop(send);
    let mut printer = Printer { arguments: &arguments, printed: 0, out: std::io::BufWriter::new(std::io::stdout().lock()) };
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        // Whatever was printed is to be seen before the next wait.
        let next = match receive.try_recv() {
            Ok(shown) => Some(shown),
            Err(_) => {
                printer.out.flush()?;
                tokio::select! {
                    next = receive.recv() => next,
                    _ = &mut interrupted => return Err(End::Code(130)),
                }
            }
        };
        let Some(shown) = next else { break };
        if printer.print(&shown)? {
            break;
        }
    }
    printer.out.flush()?;
    receive.close();
    while let Some(result) = readers.join_next().await {
        // A reader that found the printer gone ended well.
        result.map_err(|e| Failure::new("internal.panicked", e.to_string()))??;
    }
    Ok(())
}

/// Hands one partition's events to a printer, up to the entry at `end` if there is one, or until the printer is gone.
pub(super) async fn read(
    journal: Arc<dyn Journal>,
    partition: u16,
    from: From,
    end: Option<Offset>,
    send: mpsc::Sender<Shown>,
) -> Result<(), Failure> {
    if let Some(end) = end
        && is_behind(journal.as_ref(), partition, from, end).await?
    {
        return Ok(());
    }
    let mut reader = journal.reader(Log::Data(partition), from).await?;
    let mut filter = Filter::new();
    loop {
        let chunk = tokio::select! {
            chunk = reader.next() => chunk?,
            () = send.closed() => return Ok(()),
        };
        if !forward(&mut filter, &chunk, partition, &send).await? {
            return Ok(());
        }
        if end.is_some_and(|end| chunk.next_offset() > end) {
            return Ok(());
        }
    }
}

/// Sends a chunk's events to the printer; false when the printer is gone.
async fn forward(filter: &mut Filter, chunk: &Chunk, partition: u16, send: &mpsc::Sender<Shown>) -> Result<bool, Failure> {
    let mut events = Vec::new();
    let result = filter.chunk(chunk, |offset, verdict| {
        if let Verdict::Pass(passed) = verdict
            && matches!(passed.header.kind, Kind::Event | Kind::Read)
        {
            events.push(Shown { partition, offset, stored_at_ms: chunk.stored_at_ms, body: Bytes::copy_from_slice(passed.body) });
        }
        Ok::<(), FilterError>(())
    });
    for event in events {
        if send.send(event).await.is_err() {
            return Ok(false);
        }
    }
    result.map_err(|error| Failure::new(error.code(), format!("partition {partition}: {error}")))?;
    Ok(true)
}

struct Printer<'a, W: Write> {
    arguments: &'a Arguments,
    printed: u64,
    out: W,
}

impl<W: Write> Printer<'_, W> {
    /// Prints an event that is asked for; true when it was the last.
    fn print(&mut self, shown: &Shown) -> Result<bool, End> {
        let event = Event::parse(shown.body.clone())
            .map_err(|e| Failure::new(e.code(), format!("partition {}, offset {}: {e}", shown.partition, shown.offset.0)))?;
        let table = match (event.schema(), event.table()) {
            (Some(schema), Some(table)) => format!("{schema}.{table}"),
            _ => String::new(),
        };
        if !self.arguments.table.is_empty() && !self.arguments.table.contains(&table) {
            return Ok(false);
        }
        match self.arguments.format {
            TapFormat::Ndjson => self.raw(&shown.body)?,
            TapFormat::Human => self.human(shown, &event, &table)?,
        }
        self.printed += 1;
        Ok(self.arguments.limit.is_some_and(|limit| self.printed >= limit))
    }

    /// A body on one line: a line feed in JSON is white space, since strings may not hold one.
    fn raw(&mut self, body: &[u8]) -> Result<(), End> {
        if body.iter().any(|b| matches!(b, b'\n' | b'\r')) {
            let line: Vec<u8> = body.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect();
            self.out.write_all(&line)?;
        } else {
            self.out.write_all(body)?;
        }
        self.out.write_all(b"\n")?;
        Ok(())
    }

    fn human(&mut self, shown: &Shown, event: &Event, table: &str) -> Result<(), End> {
        let at = event.committed_at().unwrap_or("-");
        let (partition, offset) = (shown.partition, shown.offset.0);
        write!(self.out, "{at} p{partition}@{offset} {:<8} {} {}", event.op().as_str(), output::clean(table), output::clean(event.id()))?;
        let unmask = self.arguments.unmask;
        let rows: [(&str, Vec<(&str, &str)>); 3] =
            [("key", event.key().collect()), ("before", event.before().collect()), ("after", event.after().collect())];
        for (name, fields) in rows.into_iter().filter(|(_, fields)| !fields.is_empty()) {
            let field = |(column, value): &(&str, &str)| match unmask {
                true => format!("{}={}", output::clean(column), output::clean(value)),
                false => output::clean(column),
            };
            write!(self.out, " {name}({})", fields.iter().map(field).collect::<Vec<_>>().join(" "))?;
        }
        writeln!(self.out)?;
        Ok(())
    }
}

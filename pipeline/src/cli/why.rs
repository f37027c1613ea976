//! `why`: one row's whole life: each of its events, where it is stored, and what became of it at every connector. Reads the journal; shows no value.

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::control;
use crate::delivery::place::Place;
use crate::delivery::replay::RowKey;
use crate::journal;
use crate::ops::failure::Class;
use crate::ops::story::{self, Told};

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

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let journal = journal::open(&pipeline.journal, "tillstream why")?;
    let row = RowKey { table: arguments.table.clone(), key: arguments.key.clone() };
    story::is_captured(&pipeline, &row.table)?;
    let state = control::replay(journal.as_ref()).await?;
    let told = story::of(journal.as_ref(), &state, &pipeline.connectors, &row, arguments.since).await?;
    for event in &told {
        print(&arguments, event)?;
    }
    if told.is_empty() {
        eprintln!("no event of this row is stored: it did not change since, retention removed them, or the key is another one");
        return Err(End::Code(Class::Check.exit_code()));
    }
    Ok(())
}

fn print(arguments: &Arguments, told: &Told) -> Result<(), End> {
    if arguments.format == Format::Json {
        return Ok(output::print(serde_json::json!(told))?);
    }
    let committed = told.committed_at.as_ref().map_or_else(|| "read by a backfill".to_owned(), |at| format!("committed {at}"));
    let delay = told.stored_after_ms.map_or_else(String::new, |ms| format!(" (+{} ms)", ms.max(0)));
    output::print(format_args!(
        "{}  {}  {committed}  position {}  stored p{}@{}{delay}",
        output::clean(&told.id),
        told.op,
        told.position,
        told.partition,
        told.offset
    ))?;
    for (name, lines) in &told.connectors {
        for line in lines.as_array().into_iter().flatten().filter_map(|line| line.as_str()) {
            output::print(output::clean(&format!("  {name}: {line}")))?;
        }
    }
    if told.connectors.is_empty() {
        output::print("  no connector takes it")?;
    }
    Ok(())
}

//! `schema`: how captured tables have changed, as the stream told it; and the JSON Schemas of the configuration files.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::config;
use crate::control::{self, TableLayout};
use crate::journal;
use crate::ops::failure::Failure;
use crate::ops::layouts;

/// A command answers or says why not; a broker that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Shows how captured tables have changed, and what configuration files may hold
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the layouts of captured tables: since when, and what changed
    #[command(
        after_help = "Examples:\n  tillstream schema history\n  tillstream schema history --table public.orders --columns\n\nEvents carry the fingerprint of their table's layout in the field `layout`."
    )]
    History(History),
    /// Print the JSON Schema of connector files, for editors
    #[command(
        after_help = "Example:\n  tillstream schema connector > connector.schema.json\n\nAn editor finds it by a first line `# yaml-language-server: $schema=connector.schema.json`;\na running pipeline serves it at /api/schema/connector."
    )]
    Connector,
    /// Print the JSON Schema of pipeline files, for editors
    #[command(
        after_help = "Example:\n  tillstream schema pipeline > pipeline.schema.json\n\nA running pipeline serves it at /api/schema/pipeline."
    )]
    Pipeline,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(super) struct History {
    #[command(flatten)]
    config: ConfigFile,
    /// Of this table, as schema.table
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// List every column of every layout
    #[arg(long)]
    columns: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::History(history) => history.format,
            Command::Connector | Command::Pipeline => Format::Human,
        }
    }
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    let history = match command {
        Command::History(history) => history,
        Command::Connector => {
            return Ok(output::print(format_args!("{:#}", config::schema::of(config::schema::File::Connector, registry)))?);
        }
        Command::Pipeline => return Ok(output::print(format_args!("{:#}", config::schema::of(config::schema::File::Pipeline, registry)))?),
    };
    let pipeline = history.config.load(registry)?;
    let journal = journal::open(&pipeline.journal, "tillstream schema")?;
    let late = || Failure::new("journal.unavailable", format!("the journal did not answer within {} s", ANSWER_WITHIN.as_secs()));
    let state = tokio::time::timeout(ANSWER_WITHIN, control::replay(journal.as_ref())).await.map_err(|_| late())??;
    let wanted = |layout: &&TableLayout| history.table.as_ref().is_none_or(|table| layout.table == *table);
    let found: Vec<&TableLayout> = state.layouts().filter(wanted).collect();
    match history.format {
        Format::Json => Ok(output::print(json!(documents(&found)))?),
        Format::Human => print(&found, history.columns),
    }
}

/// Each layout with what changed since the one before it in the list, which is of the same table or of none.
fn with_changes<'l>(found: &[&'l TableLayout]) -> Vec<(&'l TableLayout, Option<Vec<String>>)> {
    let before = |at: usize| at.checked_sub(1).map(|at| found[at]).filter(|before| before.table == found[at].table);
    found.iter().enumerate().map(|(at, layout)| (*layout, before(at).map(|before| layouts::changes(before, layout)))).collect()
}

fn documents(found: &[&TableLayout]) -> Vec<Value> {
    let document = |(layout, changes): (&TableLayout, Option<Vec<String>>)| {
        let mut document = json!(layout);
        document["at"] = moment(layout.at_ms).into();
        document["changes"] = json!(changes);
        document
    };
    with_changes(found).into_iter().map(document).collect()
}

fn print(found: &[&TableLayout], columns: bool) -> Result<(), End> {
    if found.is_empty() {
        eprintln!("no layout is known: nothing was captured yet");
    }
    let mut table = "";
    for (layout, changes) in with_changes(found) {
        if layout.table != table {
            table = &layout.table;
            output::print(output::clean(table))?;
        }
        let what = match changes {
            None => {
                let key: Vec<&str> = layout.columns.iter().filter(|c| c.key).map(|c| c.name.as_str()).collect();
                let key = if key.is_empty() { "no key".to_owned() } else { format!("key {}", key.join(", ")) };
                format!("{} columns, {key}, identity {}, OID {}", layout.columns.len(), layout.identity, layout.oid)
            }
            Some(changes) => changes.join("; "),
        };
        output::print(format_args!("  {}  {}  e{}  {}", moment(layout.at_ms), layout.layout, layout.since, output::clean(&what)))?;
        for column in layout.columns.iter().filter(|_| columns) {
            let key = if column.key { ", key" } else { "" };
            let policy = column.policy.as_ref().map(|p| format!(", {p}")).unwrap_or_default();
            output::print(format_args!("    {}  {}{key}{policy}", output::clean(&column.name), output::clean(&column.type_name)))?;
        }
    }
    Ok(())
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

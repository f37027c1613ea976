//! `publication diff`: what differs between the pipeline's file and its source, with the SQL that mends it.

use clap::{Args, Subcommand};
use serde_json::json;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::admin_url::AdminUrl;
use super::output::{self, End, Format};
use crate::ops::failure::Class;
use crate::ops::publication;

/// Compares what the file captures with what the database publishes
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show tables, columns, operations and grants that differ, with the SQL that mends each
    #[command(
        after_help = "Examples:\n  tillstream publication diff\n  tillstream publication diff --format sql > mend.sql\n\nReads only. Ends with 1 when something differs."
    )]
    Diff(Diff),
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(super) struct Diff {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    admin: AdminUrl,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: DiffFormat,
}

/// How differences are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum DiffFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON document.
    Json,
    /// Statements to be read and run.
    Sql,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        let Command::Diff(diff) = self;
        if diff.format == DiffFormat::Json { Format::Json } else { Format::Human }
    }
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    let Command::Diff(diff) = command;
    let pipeline = diff.config.load(registry)?;
    let admin = diff.admin.read()?;
    let drift = publication::compare(&pipeline.source, &pipeline.name, admin.as_ref()).await?;
    match diff.format {
        DiffFormat::Human => output::print(output::clean_lines(drift.human().trim_end()))?,
        DiffFormat::Json => output::print(json!(drift))?,
        DiffFormat::Sql => output::print(output::clean_lines(drift.sql().trim_end()))?,
    }
    if drift.differences.is_empty() { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

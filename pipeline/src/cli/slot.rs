//! `slot`: replication slots of the source's server, ours and other people's.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tillstream_connectors::registry::Registry;

use super::admin_url::AdminUrl;
use super::output::{self, End, Format};
use super::{ConfigFile, confirm};
use crate::capture::catalog::Catalog;
use crate::capture::wire::application_name;
use crate::config::{Pipeline, units};
use crate::ops::failure::Failure;
use crate::ops::{audit, slots};

/// Shows what replication slots keep, who reads them and how long they last
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the slots of the source's server, ours first
    #[command(after_help = "Example:\n  tillstream slot list\n\nReads only.")]
    List(Look),
    /// Show one slot in full: what it keeps, how far it is acknowledged, time to the ceiling
    #[command(
        after_help = "Examples:\n  tillstream slot show\n  tillstream slot show legacy_reporting --sample 10s\n  tillstream slot show --format json | jq .slots[0].seconds_to_ceiling\n\nReads only. Ends with 1 when the slot is lost."
    )]
    Show(Show),
    /// Drop a slot, so that the server may remove the WAL that it keeps
    #[command(
        after_help = "Example:\n  tillstream slot drop legacy_reporting --confirm legacy_reporting --reason \"report server was switched off in May\"\n\nWhoever reads from it cannot go on where they were. A slot that is in use is not dropped. Decision and reason go to the audit records."
    )]
    Drop(DropSlot),
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct Look {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    admin: AdminUrl,
    /// How long the growth of WAL is watched
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = sample)]
    sample: Duration,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The slot; the configured one when absent
    name: Option<String>,
    #[command(flatten)]
    look: Look,
}

/// Arguments of `drop`.
#[derive(Debug, Args)]
pub(super) struct DropSlot {
    /// The slot
    name: String,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    admin: AdminUrl,
    /// The slot's name once more; asked for on a terminal when missing
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Confirm without the name
    #[arg(long, conflicts_with = "confirm")]
    yes: bool,
    /// Why; goes to the audit records
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn sample(text: &str) -> Result<Duration, String> {
    let limit = Duration::from_secs(60);
    units::duration(text).filter(|d| *d <= limit).ok_or_else(|| "a duration up to 60s, as 5s".to_owned())
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::List(look) => look.format,
            Command::Show(show) => show.look.format,
            Command::Drop(drop) => drop.format,
        }
    }
}

async fn connect(pipeline: &Pipeline, admin: &AdminUrl) -> Result<Catalog, End> {
    let admin = admin.read()?;
    let url = admin.as_ref().unwrap_or(&pipeline.source.url);
    Ok(Catalog::connect_url(url, &application_name(&pipeline.name, "slot"), pipeline.source.allow_weak_auth).await?)
}

async fn look(arguments: &Look, registry: &Registry) -> Result<(Pipeline, slots::Slots), End> {
    let pipeline = arguments.config.load(registry)?;
    let catalog = connect(&pipeline, &arguments.admin).await?;
    let found = slots::look(&pipeline.source, &catalog, arguments.sample).await?;
    Ok((pipeline, found))
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    match command {
        Command::List(arguments) => {
            let (_, found) = look(&arguments, registry).await?;
            match arguments.format {
                Format::Json => output::print(json!(found))?,
                Format::Human => output::print(output::clean_lines(found.table().trim_end()))?,
            }
            Ok(())
        }
        Command::Show(show) => {
            let (pipeline, mut found) = look(&show.look, registry).await?;
            let name = show.name.as_deref().unwrap_or(&pipeline.source.slot);
            let Some(page) = found.page(name) else {
                let what = format!("the server has no slot \"{}\"", output::clean(name));
                return Err(Failure::new(if name == pipeline.source.slot { "capture.slot_missing" } else { "slot.unknown" }, what).into());
            };
            let lost = found.slots.iter().any(|s| s.name == name && s.invalidation_reason.is_some());
            match show.look.format {
                Format::Json => {
                    found.slots.retain(|s| s.name == name);
                    output::print(json!(found))?;
                }
                Format::Human => output::print(output::clean_lines(page.trim_end()))?,
            }
            if lost { Err(End::Code(1)) } else { Ok(()) }
        }
        Command::Drop(arguments) => drop_slot(arguments, registry).await,
    }
}

async fn drop_slot(arguments: DropSlot, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let name = arguments.name.as_str();
    let reason = confirm::reason(Some(&arguments.reason))?;
    let catalog = connect(&pipeline, &arguments.admin).await?;
    let found = slots::look(&pipeline.source, &catalog, Duration::ZERO).await?;
    let Some(page) = found.page(name) else {
        return Err(Failure::new("slot.unknown", format!("the server has no slot \"{}\"", output::clean(name))).into());
    };
    if !arguments.yes {
        eprint!("{}", output::clean_lines(&page));
        confirm::typed(arguments.confirm.as_deref(), name, "drop it", "nothing was dropped")?;
    }
    slots::drop_slot(&catalog, name).await?;
    if let Err(failure) = audit::record(&pipeline, &format!("slot {name} dropped"), reason, &super::backfill::who()).await {
        eprintln!("the reason was not stored: {failure}");
    }
    match arguments.format {
        Format::Json => output::print(json!({"dropped": name}))?,
        Format::Human if name == pipeline.source.slot => {
            output::print(format_args!(
                "slot {name} is dropped; for a new beginning: tillstream setup --apply, then tillstream epoch bump"
            ))?;
        }
        Format::Human => output::print(format_args!("slot {name} is dropped; the server removes its WAL at the next checkpoint"))?,
    }
    Ok(())
}

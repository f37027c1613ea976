//! `epoch`: whether the database continues the history in the journal, and the decision that it need not.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::confirm;
use super::output::{self, End, Format};
use crate::capture::wire::PgSource;
use crate::capture::{self, CaptureError, Settings, Standing};
use crate::config::{Pipeline, units};
use crate::journal::{self, Journal};
use crate::ops::epoch::{self, Decision};
use crate::ops::failure::Failure;

/// A command answers or says why not; a broker that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Shows whether the database continues the journal's history, and begins a new epoch when it does not
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show epoch, last run, server and slot, and what a start would find
    #[command(after_help = "Example:\n  tillstream epoch show\n\nEnds with 1 when a start would halt, with 69 when the server is away.")]
    Show(Show),
    /// Begin a new epoch: positions start anew, and the tables are loaded again
    #[command(
        after_help = "Example:\n  tillstream epoch bump --confirm \"shop epoch 2\" --reason \"restored the backup of Monday\"\n\nFor a database that was restored, replaced or promoted with a loss, and for a slot that was lost and created again. What is\nin the journal stays. A capture that runs notices and goes on in the new epoch. Decision and reason go to the audit records."
    )]
    Bump(Bump),
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    config: ConfigFile,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `bump`.
#[derive(Debug, Args)]
pub(super) struct Bump {
    #[command(flatten)]
    config: ConfigFile,
    /// "PIPELINE epoch NUMBER", the new epoch's number; asked for on a terminal when missing
    #[arg(long, value_name = "TEXT")]
    confirm: Option<String>,
    /// Why; goes to the audit records
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Load nothing again: the slot was drained before the database moved (pg_upgrade, a switch-over), so nothing is missing
    #[arg(long)]
    keep_loaded: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::Show(show) => show.format,
            Command::Bump(bump) => bump.format,
        }
    }
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    match command {
        Command::Show(show) => {
            let pipeline = show.config.load(registry)?;
            let journal = journal::open(&pipeline.journal, "tillstream epoch")?;
            let standing = standing(&pipeline, journal.as_ref()).await?;
            match show.format {
                Format::Json => output::print(document(&standing))?,
                Format::Human => output::print(output::clean_lines(screen(&standing).trim_end()))?,
            }
            match standing.verdict {
                Ok(()) => Ok(()),
                Err(error) if error.is_transient() => Err(error.into()),
                Err(_) => Err(End::Code(1)),
            }
        }
        Command::Bump(bump) => begin(bump, registry).await,
    }
}

async fn standing(pipeline: &Pipeline, journal: &dyn Journal) -> Result<Standing, End> {
    let source = PgSource::new(&pipeline.source, &pipeline.name);
    let settings = Settings::new(pipeline, std::collections::HashMap::new(), who("show"));
    Ok(in_time(capture::stand(&source, journal, &settings)).await??)
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = || Failure::new("journal.unavailable", format!("the journal did not answer within {} s", ANSWER_WITHIN.as_secs()));
    tokio::time::timeout(ANSWER_WITHIN, work).await.map_err(|_| late())
}

async fn begin(bump: Bump, registry: &Registry) -> Result<(), End> {
    if bump.reason.trim().is_empty() {
        return Err(Failure::new("usage.arguments", "give a reason: whoever reads the audit will want to know").into());
    }
    let pipeline = bump.config.load(registry)?;
    let journal: Arc<dyn Journal> = journal::open(&pipeline.journal, "tillstream epoch")?;
    let standing = standing(&pipeline, journal.as_ref()).await?;
    let next = standing.epoch.checked_add(1).ok_or_else(|| Failure::new("usage.arguments", "there is no later epoch"))?;
    let wanted = capture::confirmation(&pipeline.name, next);
    eprint!("{}", output::clean_lines(&screen(&standing)));
    confirm::typed(bump.confirm.as_deref(), &wanted, "begin it", "nothing was begun")?;
    let loads = if bump.keep_loaded { "nothing is loaded again" } else { "the tables are loaded again" };
    let decision =
        Decision { epoch: next, after: standing.stored.commit_lsn, reload: !bump.keep_loaded, why: bump.reason, by: who("bump") };
    in_time(epoch::begin(journal, &pipeline.name, &pipeline.source.name, decision)).await??;
    match bump.format {
        Format::Json => output::print(json!({"epoch": next, "reload": !bump.keep_loaded}))?,
        Format::Human => output::print(format_args!("epoch {next} is begun; {loads} by the next run, or by the one that runs"))?,
    }
    Ok(())
}

fn who(command: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    format!("{user}@{} pid {}: epoch {command}", host.trim(), std::process::id())
}

fn document(standing: &Standing) -> Value {
    let last = standing.last.as_ref().map(|run| {
        json!({"run": run.token, "owner": run.owner, "system_id": run.system_id.to_string(), "timeline": run.timeline, "slot": run.slot, "epoch": run.epoch})
    });
    let server = standing.server.as_ref().ok().map(|(identity, looked)| {
        json!({
            "system_id": identity.system_id.to_string(), "timeline": identity.timeline, "wal": looked.wal.to_string(), "standby": identity.standby,
            "timelines_left": identity.switches.iter().map(|(timeline, at)| json!({"timeline": timeline, "at": at.to_string()})).collect::<Vec<_>>(),
            "slot": looked.slot.as_ref().map(|s| json!({
                "confirmed": s.confirmed.map(|l| l.to_string()), "restart": s.restart.map(|l| l.to_string()), "wal_status": s.wal_status, "holder": s.holder,
            })),
        })
    });
    let verdict = match &standing.verdict {
        Ok(()) => json!({"continues": true}),
        Err(CaptureError::Definite { code, what, why, fix }) => {
            json!({"continues": false, "code": code, "what": what, "why": why, "fix": fix})
        }
        Err(error) => json!({"continues": null, "code": error.code(), "what": error.to_string()}),
    };
    json!({
        "epoch": standing.epoch,
        "last_run": last,
        "stored": standing.stored.to_string(),
        "released": standing.released.map(|l| l.to_string()),
        "server": server,
        "verdict": verdict,
    })
}

fn screen(standing: &Standing) -> String {
    let mut out = format!("epoch      {}\n", standing.epoch);
    let mut line = |name: &str, text: String| out.push_str(&format!("{name:<10} {text}\n"));
    match &standing.last {
        Some(run) => line(
            "last run",
            format!(
                "{} of {}, epoch {}: system {}, timeline {}, slot \"{}\"",
                run.token, run.owner, run.epoch, run.system_id, run.timeline, run.slot
            ),
        ),
        None => line("last run", "none".to_owned()),
    }
    line("stored", if standing.stored.is_none() { "no change yet".to_owned() } else { format!("up to {}", standing.stored) });
    line("released", standing.released.map_or_else(|| "nothing known".to_owned(), |upto| format!("up to {upto}")));
    if let Ok((identity, looked)) = &standing.server {
        let kind = if identity.standby { "standby" } else { "primary" };
        line("server", format!("system {}, timeline {}, {kind}, WAL up to {}", identity.system_id, identity.timeline, looked.wal));
        let slot = looked.slot.as_ref().map(|slot| {
            let confirmed = slot.confirmed.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
            let kept = slot.restart.map_or(0, |restart| looked.wal.0.saturating_sub(restart.0));
            let reader = slot.holder.as_ref().map_or_else(|| "nobody reads it".to_owned(), |holder| format!("read by {holder}"));
            format!("confirmed {confirmed}, keeps {} of WAL ({}), {reader}", units::show_size(kept), slot.wal_status)
        });
        line("slot", slot.unwrap_or_else(|| "not there".to_owned()));
    }
    match &standing.verdict {
        Ok(()) => line("verdict", "the server continues this history".to_owned()),
        Err(error) => out.push_str(&format!("{}\n", Failure::from(copy(error)))),
    }
    out
}

/// The same error once more: one to print, one to end with.
fn copy(error: &CaptureError) -> CaptureError {
    match error {
        CaptureError::Definite { code, what, why, fix } => {
            CaptureError::Definite { code, what: what.clone(), why: why.clone(), fix: fix.clone() }
        }
        other => CaptureError::Unavailable(other.to_string()),
    }
}

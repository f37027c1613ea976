//! `replay`: a stretch of the journal delivered again through a connector, or the connector moved to another place. Only stores the request: the process
//! that delivers the connector takes it up, or the next one that runs.

use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tillstream_connectors::registry::Registry;

use super::output::{self, End, Format};
use super::{ConfigFile, dead_letters};
use crate::control::{self, Follower, State};
use crate::delivery::place::Place;
use crate::delivery::replay::{self, Wanted};
use crate::journal::{self, Journal};
use crate::ops::desk::{Desk, in_time};
use crate::ops::failure::Failure;
use crate::ops::replays::{self, Accepts, Proposal};

/// Delivers a stretch of the journal again through a connector, or moves the connector to another place
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream replay loyalty --from 2026-11-22T10:00:00Z --to 2026-11-22T11:00:00Z --dry-run\n  tillstream replay loyalty --from 6h --key 7 --table public.customer --reason \"profile lost\"\n  tillstream replay inventory --from 0/16B3748 --reason \"target restored from last night\" --wait\n  tillstream replay loyalty --cancel --reason \"wrong day\"\n\nWithout --to and --key the connector goes back to that place and delivers everything from there on. With one of them it delivers what is meant and\npasses over the rest, up to where it stood; new events wait until then. Ids and keys are those of the first time; open dead letters are left to\n`dead-letters redrive`. The connector's file counts as it is when the replay begins."
)]
pub(super) struct Arguments {
    /// Name of the connector
    #[arg(value_name = "CONNECTOR")]
    connector: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Where to begin: an offset (1234, p2@1234), a moment (2026-11-22T10:00:00Z), so long ago (10m), an LSN (0/16B3748), `first` or `next`
    #[arg(long, value_name = "PLACE", required_unless_present = "cancel")]
    from: Option<Place>,
    /// Where to end, this place itself not
    #[arg(long, value_name = "PLACE")]
    to: Option<Place>,
    /// Only the row with this key: its value, or column=value,… of a key of several columns
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The row's table, where the connector takes several
    #[arg(long, value_name = "TABLE", requires = "key")]
    table: Option<String>,
    /// End the replay that waits or is under way: the connector goes on where it stood before
    #[arg(long, conflicts_with_all = ["from", "to", "key"])]
    cancel: bool,
    /// Only tell what would be delivered, and what the target makes of it
    #[arg(long)]
    dry_run: bool,
    /// Why; kept with the decision
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// Go on although nothing keeps repeated events from having a second effect
    #[arg(long)]
    accept_duplicates: bool,
    /// Go on although rows changed again behind the stretch
    #[arg(long)]
    accept_older: bool,
    /// Go on although the connector leaves out what it has not delivered yet
    #[arg(long)]
    accept_loss: bool,
    /// End only when all of it is delivered
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let connector = super::named(&pipeline, &arguments.connector)?;
    if !arguments.dry_run && arguments.reason.trim().is_empty() {
        return Err(Failure::new("usage.arguments", "say why in --reason, or look first with --dry-run").into());
    }
    let row = replays::row(connector, arguments.key.as_deref(), arguments.table.as_deref())?;
    let journal = journal::open(&pipeline.journal, "tillstream replay")?;
    let state = in_time(control::replay(journal.as_ref())).await??;
    let desk = Desk::new(Arc::clone(&journal), &pipeline.name, &pipeline.source.name);
    let decision = dead_letters::decision("replay", arguments.reason.clone());
    let Some(from) = arguments.from else {
        let under_way = replay::under_way(&state, &connector.name, journal.partitions());
        if under_way.is_empty() {
            return Err(replays::none_under_way(&connector.name).into());
        }
        if !arguments.dry_run {
            let number = desk.end_replay(&state, &connector.name, &under_way, &decision).await?;
            wait(&arguments, &journal, &connector.name, &under_way, number).await?;
        }
        return print_cancelled(&arguments, &under_way);
    };
    let wanted = Wanted { from, to: arguments.to, row, mapped: arguments.dry_run };
    let accepts = Accepts { duplicates: arguments.accept_duplicates, older: arguments.accept_older, loss: arguments.accept_loss };
    let proposal = replays::propose(journal.as_ref(), &state, connector, &pipeline.source.name, &wanted, accepts).await?;
    let number = if arguments.dry_run {
        None
    } else {
        proposal.admissible()?;
        Some(desk.replay(&state, &connector.name, &proposal.parts, proposal.what.clone(), &decision).await?)
    };
    print(&arguments, &proposal, number)?;
    if let Some(number) = number {
        let partitions: Vec<u16> = proposal.parts.iter().map(|part| part.partition).collect();
        wait(&arguments, &journal, &connector.name, &partitions, number).await?;
    }
    Ok(())
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

fn print(arguments: &Arguments, proposal: &Proposal, number: Option<u32>) -> Result<(), End> {
    let [events, filtered, failing, parked] = proposal.sums();
    if arguments.format == Format::Json {
        return Ok(output::print(proposal.document(number, arguments.dry_run))?);
    }
    let more = match (arguments.dry_run, filtered, failing) {
        (false, ..) | (true, 0, 0) => String::new(),
        _ => format!(" ({filtered} of them filtered, {failing} cannot be mapped)"),
    };
    let parked = if parked > 0 { format!(", {parked} open dead letters are left to redrive") } else { String::new() };
    output::print(format_args!("{}: {events} events{more}{parked}", proposal.connector))?;
    for p in &proposal.parts {
        let between = match (p.first, p.last) {
            (Some(first), Some(last)) => format!(
                ", {} events from offset {} to {}, committed {} to {}",
                p.events,
                first.offset.0,
                last.offset.0,
                moment(first.committed_at_ms),
                moment(last.committed_at_ms)
            ),
            _ => String::new(),
        };
        let what = match p.to {
            _ if p.skips() => format!("moves on from offset {} to {}, leaving out", p.stands.0, p.from().0),
            None => format!("goes back from offset {} to {}", p.stands.0, p.from().0),
            Some(to) => format!("offsets {} to {} again, then on from {}", p.from().0, to.0, p.stands.0),
        };
        output::print(format_args!("  partition {}: {what}{between}", p.partition))?;
    }
    output::print(format_args!("  target: {}", proposal.effect.text))?;
    for warning in &proposal.effect.warnings {
        output::print(format_args!("  warning: {warning}"))?;
    }
    if let Some((code, what)) = &proposal.refused {
        output::print(format_args!("  would be refused ({code}): {what}"))?;
    }
    let end = match number {
        Some(_) => "asked for; the process that delivers the connector takes it up, or the next one that runs",
        None => "nothing was done",
    };
    Ok(output::print(end)?)
}

fn print_cancelled(arguments: &Arguments, partitions: &[u16]) -> Result<(), End> {
    if arguments.format == Format::Json {
        return Ok(output::print(json!({"cancelled": !arguments.dry_run, "partitions": partitions}))?);
    }
    let end = if arguments.dry_run { "would end; nothing was done" } else { "end; the connector goes on where it stood" };
    Ok(output::print(format_args!("replays of {} partitions {end}", partitions.len()))?)
}

/// Waits until what was asked for is delivered, where that is asked for too.
async fn wait(arguments: &Arguments, journal: &Arc<dyn Journal>, connector: &str, partitions: &[u16], number: u32) -> Result<(), End> {
    if !arguments.wait {
        return Ok(());
    }
    let (mut follower, following) = in_time(Follower::start(Arc::clone(journal))).await??;
    let is_over = |state: &State| {
        partitions.iter().all(|partition| {
            let checkpoint = state.checkpoint(connector, *partition);
            // A later request takes the place of this one.
            let taken = checkpoint.and_then(|c| c.replay.filter(|taken| taken.number >= number).map(|taken| (c.offset, taken)));
            taken.is_some_and(|(offset, taken)| taken.number > number || offset >= taken.until.offset)
        })
    };
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    tokio::select! {
        over = follower.wait_for(|state| is_over(state) || state.pause(connector).is_some()) => match over {
            Some(state) if is_over(&state) => Ok(()),
            Some(_) => {
                let what = format!("somebody paused {connector}: what was asked for is delivered when it is resumed");
                Err(Failure::new("delivery.paused", what).into())
            }
            None => Err(Failure::new("delivery.control_ended", "the control journal is no longer followed").into()),
        },
        ended = following => Ok(ended?),
        _ = &mut interrupted => Err(End::Code(130)),
    }
}

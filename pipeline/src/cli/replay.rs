//! `replay`: a stretch of the journal delivered again through a connector, or the connector moved to another place. Only stores the request: the process
//! that delivers the connector takes it up, or the next one that runs.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tillstream_connectors::registry::{Registry, Repeats, SinkPlan};
use tillstream_connectors::sink::OnDelete;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::config::{Connector, units};
use crate::control::{self, Follower, State, Writer, now_ms};
use crate::delivery::place::Place;
use crate::delivery::replay::{self, Part, RowKey, Wanted};
use crate::journal::{self, Journal};
use crate::ops::failure::Failure;

/// Storing a decision takes a moment; a broker that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

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

/// What the target makes of events that come again.
struct Effect {
    /// For machines: `compared`, `remembered` or `applied`.
    word: &'static str,
    text: String,
    warnings: Vec<String>,
    /// Code and words of what has to be accepted.
    refusals: Vec<(&'static str, String)>,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let connector = super::named(&pipeline, &arguments.connector)?;
    if !arguments.dry_run && arguments.reason.trim().is_empty() {
        return Err(Failure::new("usage.arguments", "say why in --reason, or look first with --dry-run").into());
    }
    let row = row(&arguments, connector)?;
    let journal = journal::open(&pipeline.journal, "tillstream replay")?;
    let state = in_time(control::replay(journal.as_ref())).await??;
    let under_way = replay::under_way(&state, &connector.name, journal.partitions());
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    let by = format!("{user} pid {}: replay", std::process::id());
    let operator = || Writer::take_operator(Arc::clone(&journal), &pipeline.name, &pipeline.source.name, &state, &by);
    let Some(from) = arguments.from else {
        if under_way.is_empty() {
            let what = format!("no replay of connector {} waits or is under way", connector.name);
            return Err(Failure::new("replay.nothing", what).into());
        }
        if !arguments.dry_run {
            let what = format!("connector {}: replay ended", connector.name);
            let mut writer = in_time(operator()).await??;
            let number = in_time(replay::cancel(&mut writer, &connector.name, &under_way, what, &arguments.reason, &by)).await??;
            wait(&arguments, &journal, &connector.name, &under_way, number).await?;
        }
        return print_cancelled(&arguments, &under_way);
    };
    let wanted = Wanted { from, to: arguments.to, row, mapped: arguments.dry_run };
    let parts = replay::plan(journal.as_ref(), &state, connector, &pipeline.source.name, &wanted).await.map_err(Failure::from)?;
    if parts.is_empty() {
        let what = format!("connector {} has delivered nothing there that it could deliver again", connector.name);
        return Err(Failure::new("replay.nothing", what).into());
    }
    let mut effect = effect(connector, &parts, &wanted);
    if !under_way.is_empty() {
        effect.warnings.push("this takes the place of the replay that is under way".to_owned());
    }
    let accepted = |code: &str| match code {
        "replay.would_duplicate" => arguments.accept_duplicates,
        "replay.older_states" => arguments.accept_older,
        _ => arguments.accept_loss,
    };
    let refused = effect.refusals.iter().find(|(code, _)| !accepted(code)).cloned();
    if let (Some((code, what)), false) = (&refused, arguments.dry_run) {
        return Err(Failure::new(code, format!("connector {}: {what}", connector.name)).into());
    }
    let number = if arguments.dry_run {
        None
    } else {
        let mut writer = in_time(operator()).await??;
        let what = decision(connector, &wanted, &parts);
        Some(in_time(replay::request(&mut writer, &connector.name, &parts, what, &arguments.reason, &by)).await??)
    };
    print(&arguments, connector, &parts, &effect, refused.as_ref(), number)?;
    if let Some(number) = number {
        let partitions: Vec<u16> = parts.iter().map(|part| part.partition).collect();
        wait(&arguments, &journal, &connector.name, &partitions, number).await?;
    }
    Ok(())
}

/// The row that is meant, where one is.
fn row(arguments: &Arguments, connector: &Connector) -> Result<Option<RowKey>, Failure> {
    let Some(key) = arguments.key.clone() else { return Ok(None) };
    let tables: Vec<String> = connector.tables.iter().map(|(schema, table)| format!("{schema}.{table}")).collect();
    let table = match (&arguments.table, tables.as_slice()) {
        (Some(table), tables) if tables.contains(table) => table.clone(),
        (None, [table]) => table.clone(),
        _ => return Err(Failure::new("usage.arguments", format!("name the row's table with --table: {}", tables.join(", ")))),
    };
    Ok(Some(RowKey { table, key }))
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = || Failure::new("journal.unavailable", format!("the journal did not answer within {} s", ANSWER_WITHIN.as_secs()));
    tokio::time::timeout(ANSWER_WITHIN, work).await.map_err(|_| late())
}

/// What is written down: no value of a row.
fn decision(connector: &Connector, wanted: &Wanted, parts: &[Part]) -> String {
    let row = wanted.row.as_ref().map_or_else(String::new, |row| format!(", one row of {}", row.table));
    let part = |part: &Part| {
        let to = part.to.map_or_else(|| "on".to_owned(), |to| format!("to {}", to.0));
        format!("p{} from {} {to} (stood at {})", part.partition, part.from().0, part.stands.0)
    };
    let parts: Vec<String> = parts.iter().map(part).collect();
    format!("connector {}: replay of {}{row}", connector.name, parts.join(", "))
}

fn effect(connector: &Connector, parts: &[Part], wanted: &Wanted) -> Effect {
    let SinkPlan { repeats, remembers, .. } = connector.target.plan();
    let (mut warnings, mut refusals) = (Vec::new(), Vec::new());
    let (word, text) = match repeats {
        Repeats::Compared => {
            ("compared", "what the target holds of a row stays when it is as new or newer; rows that it lost come back".to_owned())
        }
        Repeats::Remembered => {
            let window = remembers.map_or_else(
                || "its keys (how long, the connector says nowhere)".to_owned(),
                |w| format!("its keys, {}", units::show_duration(w)),
            );
            ("remembered", format!("an event has no second effect while the target remembers {window}; what it forgot is applied again"))
        }
        Repeats::Applied => {
            refusals.push(("replay.would_duplicate", "every event of the stretch has another effect at its target".to_owned()));
            ("applied", "every event is applied again".to_owned())
        }
    };
    let oldest = parts.iter().filter_map(|part| part.first).map(|edge| edge.committed_at_ms).min();
    if *repeats == Repeats::Remembered {
        warnings.extend(remembers.zip(oldest).and_then(|(window, oldest)| forgotten(window, oldest, now_ms())));
    }
    let later: u64 = parts.iter().map(|part| part.changed_later).sum();
    if later > 0 {
        let what = format!("{later} rows of the stretch changed again behind it");
        // A row that is not there any more tells no version.
        if *repeats == Repeats::Compared && connector.on_delete != OnDelete::Delete {
            warnings.push(format!(
                "{what}: one that the target lost comes back as it was at the end of the stretch; without --to it would be as it is"
            ));
        } else {
            refusals.push(("replay.older_states", format!("{what}, and the target may be left with what they were at its end")));
        }
    }
    if wanted.to.is_none() && *repeats == Repeats::Remembered && parts.iter().any(|part| !part.skips()) {
        warnings.push("where the target forgot a row's keys it shows its older states again, until the newest one has come".to_owned());
    }
    let skipped: u64 = parts.iter().filter(|part| part.skips()).map(|part| part.events).sum();
    if skipped > 0 {
        refusals.push(("replay.would_skip", format!("{skipped} events that were not delivered yet would be left out")));
    }
    Effect { word, text, warnings, refusals }
}

/// What a target has forgotten of a stretch that began at this moment.
fn forgotten(window: Duration, oldest_ms: i64, now_ms: i64) -> Option<String> {
    let age = Duration::from_millis(u64::try_from(now_ms - oldest_ms).unwrap_or(0));
    let (shown, window_shown) = (units::show_duration(age), units::show_duration(window));
    (age > window).then(|| {
        format!("the oldest event is {shown} old, and the target remembers keys for {window_shown}: what is older is applied again")
    })
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

fn print(
    arguments: &Arguments,
    connector: &Connector,
    parts: &[Part],
    effect: &Effect,
    refused: Option<&(&'static str, String)>,
    number: Option<u32>,
) -> Result<(), End> {
    let sum = |count: fn(&Part) -> u64| parts.iter().filter(|part| !part.skips()).map(count).sum::<u64>();
    let (events, filtered, failing, parked) = (sum(|p| p.events), sum(|p| p.filtered), sum(|p| p.failing), sum(|p| p.parked));
    if arguments.format == Format::Json {
        let edge = |edge: Option<replay::Edge>| edge.map(|e| json!({"offset": e.offset.0, "committed_at": moment(e.committed_at_ms)}));
        let part = |p: &Part| {
            json!({
                "partition": p.partition, "from": p.from().0, "to": p.to.map(|to| to.0), "stands": p.stands.0, "skips": p.skips(),
                "events": p.events, "filtered": p.filtered, "failing": p.failing, "dead_letters": p.parked,
                "changed_later": p.changed_later, "first": edge(p.first), "last": edge(p.last),
            })
        };
        let mapped = arguments.dry_run;
        return Ok(output::print(json!({
            "connector": connector.name, "requested": number.is_some(), "number": number, "events": events,
            "filtered": mapped.then_some(filtered), "failing": mapped.then_some(failing), "dead_letters": parked,
            "partitions": parts.iter().map(part).collect::<Vec<_>>(), "repeats": effect.word, "effect": effect.text,
            "warnings": effect.warnings, "refused": refused.map(|(code, what)| json!({"code": code, "what": what})),
        }))?);
    }
    let more = match (arguments.dry_run, filtered, failing) {
        (false, ..) | (true, 0, 0) => String::new(),
        _ => format!(" ({filtered} of them filtered, {failing} cannot be mapped)"),
    };
    let parked = if parked > 0 { format!(", {parked} open dead letters are left to redrive") } else { String::new() };
    output::print(format_args!("{}: {events} events{more}{parked}", connector.name))?;
    for p in parts {
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
    output::print(format_args!("  target: {}", effect.text))?;
    for warning in &effect.warnings {
        output::print(format_args!("  warning: {warning}"))?;
    }
    if let Some((code, what)) = refused {
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
        over = follower.wait_for(is_over) => match over {
            Some(_) => Ok(()),
            None => Err(Failure::new("delivery.control_ended", "the control journal is no longer followed").into()),
        },
        ended = following => Ok(ended?),
        _ = &mut interrupted => Err(End::Code(130)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_targets_window_is_told() {
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(forgotten(day, 0, 24 * 3600 * 1000), None);
        assert!(forgotten(day, 0, 25 * 3600 * 1000).is_some_and(|said| said.contains("remembers keys for 1 d 0 h")));
        assert_eq!(forgotten(day, 1000, 0), None);
    }
}

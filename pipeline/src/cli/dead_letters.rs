//! `dead-letters`: what targets refused, why, whether it would pass now, other values for it, the request to try again, and the decision not to.

use std::sync::Arc;

use clap::{Args, Subcommand};
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::control::{self, State};
use crate::delivery::dead_letter::{self, Wanted};
use crate::delivery::edit::Change;
use crate::journal::{self, Journal};
use crate::ops::desk::{Decision, Desk, in_time};
use crate::ops::failure::Failure;

/// Shows and redrives what targets refused for good
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List open dead letters by connector, code and field
    #[command(after_help = "Example:\n  tillstream dead-letters list --connector engagement")]
    List(List),
    /// Show open dead letters one by one, values masked
    #[command(after_help = "Example:\n  tillstream dead-letters show --connector engagement --id e1-0/16B3748-17")]
    Show(Show),
    /// Ask for open dead letters to be delivered again, under the key and version they had
    #[command(
        after_help = "Examples:\n  tillstream dead-letters redrive --connector engagement --code http.status_422 --dry-run\n  tillstream dead-letters redrive --connector engagement --limit 1000 --rate 50/s\n\nThe process that delivers the connector sends them, or the next one that runs."
    )]
    Redrive(Paced),
    /// Put other values into the row of an open dead letter, to be delivered under the same id
    #[command(
        after_help = "Example:\n  tillstream dead-letters edit --connector engagement --id e1-0/16B3748-17 --set after.tier=gold --reason \"typing error at the till\"\n  tillstream dead-letters redrive --connector engagement --id e1-0/16B3748-17\n\nThe columns, the reason and who gave it stay in the control journal; the source is not changed, and the row's next event brings what stands there."
    )]
    Edit(Edit),
    /// Print open dead letters in full, one JSON document a line
    #[command(after_help = "Example:\n  tillstream dead-letters export --connector engagement --unmask > refused.ndjson")]
    Export(Export),
    /// Try the connector files as they are now on open dead letters, and send nothing
    #[command(
        after_help = "Example:\n  tillstream dead-letters diagnose --connector engagement\n\nWhat the target would say is not known before it is asked."
    )]
    Diagnose(List),
    /// Settle open dead letters without delivering them
    #[command(
        after_help = "Example:\n  tillstream dead-letters discard --connector engagement --id e1-0/16B3748-17 --reason \"test guest\"\n\nThe reason and who gave it stay in the control journal."
    )]
    Discard(Discard),
}

/// Which dead letters are meant.
#[derive(Debug, Args)]
struct Choice {
    /// Of this connector
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// Refused with this code
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Of this event; may be repeated
    #[arg(long = "id", value_name = "EVENT_ID")]
    ids: Vec<String>,
}

impl Choice {
    fn wanted(&self) -> Wanted {
        Wanted { connector: self.connector.clone(), code: self.code.clone(), event_ids: self.ids.clone() }
    }
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    choice: Choice,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    choice: Choice,
    /// Show the rows' values
    #[arg(long)]
    unmask: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `edit`.
#[derive(Debug, Args)]
pub(super) struct Edit {
    #[command(flatten)]
    config: ConfigFile,
    /// Connector that has the dead letter
    #[arg(long, value_name = "NAME")]
    connector: String,
    /// Its event
    #[arg(long, value_name = "EVENT_ID")]
    id: String,
    /// Another value for a column, as after.tier=gold; JSON, or else text; may be repeated
    #[arg(long = "set", value_name = "PATH=VALUE", required = true, value_parser = parse_change)]
    set: Vec<Change>,
    /// Why; kept with the decision
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Only check that it can be changed so
    #[arg(long)]
    dry_run: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    choice: Choice,
    /// Print the rows' values
    #[arg(long)]
    unmask: bool,
}

fn parse_change(text: &str) -> Result<Change, String> {
    let (path, value) = text.split_once('=').ok_or_else(|| "write PATH=VALUE, as after.tier=gold".to_owned())?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
    Ok(Change { path: path.to_owned(), value })
}

/// Events a second.
fn parse_rate(text: &str) -> Result<usize, String> {
    let number = text.strip_suffix("/s").and_then(|n| n.parse().ok());
    number.filter(|n| (1..=10_000).contains(n)).ok_or_else(|| "write 50/s, at most 10000/s".to_owned())
}

/// Arguments of `redrive`.
#[derive(Debug, Args)]
pub(super) struct Redrive {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    choice: Choice,
    /// All open dead letters, where nothing narrows the choice
    #[arg(long)]
    all: bool,
    /// At most so many, oldest first
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only say how many are meant
    #[arg(long)]
    dry_run: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `redrive` alone.
#[derive(Debug, Args)]
pub(super) struct Paced {
    #[command(flatten)]
    request: Redrive,
    /// Ask for so many a second, as 50/s, and not for all at once
    #[arg(long, value_parser = parse_rate, value_name = "RATE")]
    rate: Option<usize>,
    /// Why; kept with the decision
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// Arguments of `discard`.
#[derive(Debug, Args)]
pub(super) struct Discard {
    #[command(flatten)]
    request: Redrive,
    /// Why they are not needed; kept with the decision
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::List(list) | Command::Diagnose(list) => list.format,
            Command::Show(show) => show.format,
            Command::Redrive(redrive) => redrive.request.format,
            Command::Edit(edit) => edit.format,
            Command::Export(_) => Format::Json,
            Command::Discard(discard) => discard.request.format,
        }
    }
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    match command {
        Command::List(list) => {
            let state = read(&list.config, registry).await?.2;
            print_list(&state, &list.choice.wanted(), list.format)
        }
        Command::Show(show) => {
            let state = read(&show.config, registry).await?.2;
            print_letters(&state, &show)
        }
        Command::Redrive(Paced { request: meant, rate, reason }) => request(meant, rate, reason, false, registry).await,
        Command::Edit(edit) => change(edit, registry).await,
        Command::Export(export) => {
            let state = read(&export.config, registry).await?.2;
            for letter in dead_letter::select(&state, &export.choice.wanted()) {
                output::print(dead_letter::show(letter, export.unmask))?;
            }
            Ok(())
        }
        Command::Discard(Discard { reason, .. }) if reason.trim().is_empty() => {
            Err(Failure::new("usage.arguments", "say why in --reason".to_owned()).into())
        }
        Command::Discard(Discard { request: meant, reason }) => request(meant, None, reason, true, registry).await,
        Command::Diagnose(list) => {
            let (pipeline, journal, state) = read(&list.config, registry).await?;
            let (wanted, source) = (list.choice.wanted(), &pipeline.source.name);
            let diagnoses = dead_letter::diagnose(&state, &wanted, &pipeline.connectors, source, journal.as_ref()).await;
            print_diagnoses(&diagnoses.map_err(|error| Failure::new(&error.code(), error.to_string()))?, list.format)
        }
    }
}

/// Replays the control journal.
/// A pipeline's file, its journal and what its control journal says.
pub(super) async fn read(config: &ConfigFile, registry: &Registry) -> Result<(crate::config::Pipeline, Arc<dyn Journal>, State), End> {
    let pipeline = config.load(registry)?;
    let journal = journal::open(&pipeline.journal, "tillstream operator")?;
    let state = in_time(control::replay(journal.as_ref())).await??;
    Ok((pipeline, journal, state))
}

fn print_list(state: &State, wanted: &Wanted, format: Format) -> Result<(), End> {
    let groups = dead_letter::list(state, wanted);
    if format == Format::Json {
        return Ok(output::print(serde_json::json!(groups))?);
    }
    if groups.is_empty() {
        eprintln!("no open dead letters");
    }
    for group in groups {
        let asked = if group.redrive_requested > 0 { format!(", {} asked for again", group.redrive_requested) } else { String::new() };
        let (connector, code) = (output::clean(&group.connector), output::clean(&group.code));
        let code = group.field.as_ref().map_or_else(|| code.clone(), |field| format!("{code}  {}", output::clean(field)));
        output::print(format_args!(
            "{connector}  {code}  {}{asked}  since {}  e.g. {}: {}",
            group.count,
            moment(group.first_at_ms),
            output::clean(&group.example),
            output::clean(&group.message)
        ))?;
    }
    Ok(())
}

fn print_letters(state: &State, show: &Show) -> Result<(), End> {
    let letters = dead_letter::select(state, &show.choice.wanted());
    for letter in letters.iter().take(show.limit) {
        let document = dead_letter::show(letter, show.unmask);
        match show.format {
            Format::Json => output::print(&document)?,
            Format::Human => output::print(output::clean_lines(&format!("{document:#}")))?,
        }
    }
    match letters.len() {
        0 => eprintln!("no open dead letter is meant"),
        n if n > show.limit => eprintln!("{} of {n}; raise --limit for more", show.limit),
        _ => {}
    }
    Ok(())
}

fn print_diagnoses(diagnoses: &[dead_letter::Diagnosis], format: Format) -> Result<(), End> {
    if format == Format::Json {
        return Ok(output::print(serde_json::json!(diagnoses))?);
    }
    if diagnoses.is_empty() {
        eprintln!("no open dead letters");
    }
    for d in diagnoses {
        let (connector, code) = (output::clean(&d.connector), output::clean(&d.code));
        let example = d.example.as_ref().map_or_else(String::new, |why| format!(", e.g. {}", output::clean(why)));
        output::print(format_args!(
            "{connector}  {code}  {} can be sent, {} are filtered now, {} still fail{example}, {} are not taken any more",
            d.sent, d.filtered, d.fails, d.not_taken
        ))?;
    }
    Ok(())
}

/// Asks for a redrive, or discards.
async fn request(redrive: Redrive, rate: Option<usize>, reason: String, discard: bool, registry: &Registry) -> Result<(), End> {
    let wanted = redrive.choice.wanted();
    if wanted == Wanted::default() && !redrive.all {
        return Err(Failure::new("usage.arguments", "name a connector, a code or events, or say --all").into());
    }
    let (pipeline, journal, state) = read(&redrive.config, registry).await?;
    let letters = dead_letter::select(&state, &wanted);
    let event_ids: Vec<String> = letters.iter().take(redrive.limit.unwrap_or(usize::MAX)).map(|l| l.letter.event_id.clone()).collect();
    let meant = event_ids.len();
    if !discard {
        warn_of_forgotten(&pipeline, &letters[..meant]);
    }
    // Named one by one: what is refused after this look is not meant.
    let wanted = Wanted { event_ids, ..wanted };
    if meant > 0 && !redrive.dry_run {
        let desk = Desk::new(journal, &pipeline.name, &pipeline.source.name);
        let decision = decision(if discard { "dead-letters discard" } else { "dead-letters redrive" }, reason);
        match discard {
            true => desk.discard(&state, &wanted, &decision).await?,
            false => desk.redrive(&state, &wanted, rate, &decision).await?,
        };
    }
    let done = if redrive.dry_run { 0 } else { meant };
    match (redrive.format, discard) {
        (Format::Json, true) => output::print(serde_json::json!({"discarded": done, "meant": meant}))?,
        (Format::Json, false) => output::print(serde_json::json!({"requested": done, "meant": meant}))?,
        (Format::Human, _) if redrive.dry_run => output::print(format_args!("{meant} dead letters are meant; nothing was done"))?,
        (Format::Human, true) => output::print(format_args!("discarded {meant} dead letters"))?,
        (Format::Human, false) => output::print(format_args!("asked for {meant} dead letters to be delivered again"))?,
    }
    Ok(())
}

/// A target that has forgotten a key takes what it had already taken for new.
fn warn_of_forgotten(pipeline: &crate::config::Pipeline, letters: &[&control::Letter]) {
    for connector in &pipeline.connectors {
        let Some(remembers) = connector.target.plan().remembers else { continue };
        let oldest = control::now_ms() - i64::try_from(remembers.as_millis()).unwrap_or(i64::MAX);
        let old = letters.iter().filter(|l| l.letter.connector == connector.name && l.letter.first_at_ms < oldest).count();
        if old > 0 {
            let (name, hours) = (&connector.name, remembers.as_secs() / 3600);
            eprintln!(
                "warning: {old} of them were first sent more than {hours} h ago, and the target of {name} remembers keys no longer than that: an effect that it \
                 had without saying so comes a second time"
            );
        }
    }
}

/// Puts other values into a dead letter's row.
async fn change(edit: Edit, registry: &Registry) -> Result<(), End> {
    if edit.reason.trim().is_empty() {
        return Err(Failure::new("usage.arguments", "say why in --reason").into());
    }
    let (pipeline, journal, state) = read(&edit.config, registry).await?;
    let desk = Desk::new(journal, &pipeline.name, &pipeline.source.name);
    let decision = decision("dead-letters edit", edit.reason);
    desk.edit(&state, (&edit.connector, &edit.id), &edit.set, edit.dry_run, &decision).await?;
    let columns: Vec<&str> = edit.set.iter().map(|change| change.path.as_str()).collect();
    match edit.format {
        Format::Json => output::print(serde_json::json!({"edited": !edit.dry_run, "columns": columns}))?,
        Format::Human if edit.dry_run => output::print("it can be changed so; nothing was done")?,
        Format::Human => output::print(format_args!(
            "edited {}; ask for it with `tillstream dead-letters redrive --id {}`",
            columns.join(", "),
            edit.id
        ))?,
    }
    Ok(())
}

/// Who gives a command, and why.
pub(super) fn decision(command: &str, reason: String) -> Decision {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    Decision { by: format!("{user} pid {}: {command}", std::process::id()), reason }
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

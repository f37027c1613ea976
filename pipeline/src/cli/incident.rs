//! `incident template`: the first message about an incident, filled from what the running process says.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use super::status::fetch;
use crate::config::settings::Settings;
use crate::config::{self, Pipeline};
use crate::control;
use crate::journal;
use crate::ops::failure::Failure;
use crate::ops::incident::{self, Known, Severity, Stage};

/// The journal is asked only when no process answers; whoever writes a message does not wait for it.
const JOURNAL_WITHIN: Duration = Duration::from_secs(10);

/// Helps to tell others about an incident
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the first message about an incident, filled from the running process; what is not known is left open
    #[command(
        after_help = "Examples:\n  tillstream incident template --severity 2\n  tillstream incident template --severity 1 --state identified --timezone America/Chicago\n  tillstream incident template --format json | jq -r .public\n\nSeverity: 1 the point of sale is at risk or wrong stock or consent was sent; 2 delayed by more than 15 minutes at peak or a target\ngets nothing; 3 no effect on guests or stores. First message within 15 minutes (1) or 30 (2), then at the time that was promised.\nSends nothing. Works when the process does not answer."
    )]
    Template(Template),
}

/// Arguments of `template`.
#[derive(Debug, Args)]
pub(super) struct Template {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// 1, 2 or 3; by what the status says when absent
    #[arg(long, value_name = "N", value_parser = severity)]
    severity: Option<Severity>,
    /// How far the work is
    #[arg(long, value_enum, default_value_t)]
    state: Stage,
    /// Zone in which stores read the time, as America/Chicago; `protect.timezone` when absent
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// Only the text for those who are affected
    #[arg(long)]
    public: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn severity(text: &str) -> Result<Severity, String> {
    text.trim_start_matches(['s', 'S']).parse::<u8>().map_err(|_| "1, 2 or 3".to_owned()).and_then(Severity::try_from)
}

impl Command {
    pub(super) fn format(&self) -> Format {
        let Command::Template(template) = self;
        template.format
    }
}

pub(super) async fn run(command: Command, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let Command::Template(arguments) = command;
    // With an address the message can be written where the pipeline's files are not.
    let pipeline = match (arguments.config.load(registry), &arguments.url) {
        (Ok(pipeline), _) => Some(pipeline),
        (Err(_), Some(_)) => None,
        (Err(end), None) => return Err(end),
    };
    let base = match (&arguments.url, settings.admin.listen, &pipeline) {
        (Some(url), _, _) => url.clone(),
        (None, Some(listen), _) => format!("http://{listen}"),
        (None, None, pipeline) => pipeline.as_ref().map_or_else(String::new, |p| super::admin::base(None, None, &p.admin)),
    };
    let zone = match &arguments.timezone {
        Some(name) => {
            TimeZone::get(name).map_err(|_| Failure::new("usage.arguments", format!("there is no time zone `{}`", output::clean(name))))?
        }
        None => pipeline.as_ref().and_then(|p| p.protect.peak.as_ref()).map_or(TimeZone::UTC, |peak| peak.zone().clone()),
    };
    let status = fetch(&format!("{}/api/status", base.trim_end_matches('/'))).await;
    let dead_letters = match (&status, &pipeline) {
        (Err(_), Some(pipeline)) => stored_letters(pipeline).await,
        _ => Vec::new(),
    };
    let name = pipeline.as_ref().map(|p| p.name.clone()).or_else(|| status.as_ref().ok()?["pipeline"].as_str().map(str::to_owned));
    let known = Known {
        pipeline: name.as_deref().unwrap_or("-"),
        status: status.as_ref().map_err(|failure| failure.what.clone()),
        dead_letters,
        retention: pipeline.as_ref().and_then(retention),
        zone,
        at: Timestamp::now(),
    };
    let made = incident::template(&known, arguments.severity, arguments.state);
    match arguments.format {
        Format::Json => output::print(json!(made))?,
        Format::Human if arguments.public => output::print(output::clean_lines(made.public.trim_end()))?,
        Format::Human => output::print(output::clean_lines(format!("{}\n{}", made.public, made.internal).trim_end()))?,
    }
    Ok(())
}

fn retention(pipeline: &Pipeline) -> Option<Duration> {
    match &pipeline.journal {
        config::Journal::Rabbitmq(rabbit) => rabbit.retention.age,
        config::Journal::Local(local) => local.retention.age,
    }
}

/// Open dead letters by connector, as far as the journal tells in time.
async fn stored_letters(pipeline: &Pipeline) -> Vec<(String, usize)> {
    let read = async {
        let journal = journal::open(&pipeline.journal, "tillstream incident").ok()?;
        let state = control::replay(journal.as_ref()).await.ok()?;
        let mut counts = BTreeMap::<String, usize>::new();
        for letter in state.dead_letters() {
            *counts.entry(letter.letter.connector.clone()).or_default() += 1;
        }
        Some(counts.into_iter().collect())
    };
    tokio::time::timeout(JOURNAL_WITHIN, read).await.ok().flatten().unwrap_or_default()
}

//! `doctor`: checks source, journal and targets and says what to mend; `doctor queries`: the database's own load. Both read only.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use secrecy::SecretString;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::config::units;
use crate::ops::codes;
use crate::ops::doctor::checks::{self, Needs};
use crate::ops::doctor::versions::VERSIONS;
use crate::ops::doctor::{self, FailOn, Only};
use crate::ops::failure::Failure;
use crate::ops::queries;

/// Checks source, journal and targets and says what to mend
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tillstream doctor\n  tillstream doctor --verbose\n  tillstream doctor --only identity,slot --fail-on warn\n  tillstream doctor --login-url-file dba.url     before the pipeline's roles exist\n  tillstream doctor --explain capture.keyless_table\n  tillstream doctor queries\n  tillstream doctor --format json | jq '.findings[] | select(.severity == \"fail\")'\n\nReads only, by fewer than twenty light queries. Ends with 1 when something fails."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    login: Login,
    /// Show notes and what is fine as well
    #[arg(short, long)]
    verbose: bool,
    /// Only these: ids, or source, version, settings, identity, publication, slot, load, access, ha, encoding, journal, targets
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<String>,
    /// Tell what a check means and by which SQL anybody sees the same; `versions` lists what each PostgreSQL brings
    #[arg(long, value_name = "ID", conflicts_with_all = ["only", "fail_on", "login_url", "login_url_file"])]
    explain: Option<String>,
    /// From which severity on to end with 1
    #[arg(long, value_enum, default_value_t)]
    fail_on: FailOn,
    /// How the findings are printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    Queries(Queries),
}

/// Shows what the database spends its time on, what would help, and what of it is ours
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream doctor queries\n  tillstream doctor queries --over 60s        what happens now, as at peak\n  tillstream doctor queries --login-url-file dba.url --format json\n\nReads counters only; no row, and no value of a statement, is read or shown. Indexes are tested by hypopg where it is installed: planned, never made."
)]
struct Queries {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    login: Login,
    /// Show notes and what is fine as well
    #[arg(short, long)]
    verbose: bool,
    /// How many statements to list
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: u8,
    /// Look twice, so far apart, and show what came between; else all since counters began
    #[arg(long, value_name = "DURATION", value_parser = over)]
    over: Option<Duration>,
    /// From which severity on to end with 1
    #[arg(long, value_enum, default_value_t)]
    fail_on: FailOn,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn over(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    units::duration(text).filter(|d| bounds.contains(d)).ok_or_else(|| "a time from 1s to 1h, as 60s".to_owned())
}

/// Which login looks.
#[derive(Debug, Args)]
struct Login {
    /// URL of any other login to look with, as one that may only read; the source's own when absent
    #[arg(long, value_name = "URL", conflicts_with = "login_url_file")]
    login_url: Option<String>,
    /// File with that URL, so that its password stands in no process list
    #[arg(long, value_name = "FILE")]
    login_url_file: Option<PathBuf>,
}

impl Login {
    fn url(self) -> Result<Option<SecretString>, End> {
        match (self.login_url, self.login_url_file) {
            (Some(url), _) => Ok(Some(SecretString::from(url))),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|e| Failure::new("config.unreadable_file", format!("{}: {e}", path.display())))?;
                Ok(Some(SecretString::from(text.trim().to_owned())))
            }
            (None, None) => Ok(None),
        }
    }
}

impl Arguments {
    /// How failures are printed.
    pub(super) fn format(&self) -> Format {
        match &self.command {
            Some(Command::Queries(arguments)) => arguments.format,
            None => self.format,
        }
    }
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    if let Some(Command::Queries(arguments)) = arguments.command {
        return queries(arguments, registry).await;
    }
    if let Some(id) = &arguments.explain {
        return explain(id);
    }
    let only = Only::parse(&arguments.only)
        .map_err(|word| Failure::new("usage.arguments", format!("--only: there is no check or group `{}`", output::clean(&word))))?;
    let pipeline = arguments.config.load(registry)?;
    let login = arguments.login.url()?;
    let report = Box::pin(doctor::look(&pipeline, login.as_ref(), &only)).await;
    match arguments.format {
        Format::Json => output::print(report.to_json())?,
        Format::Human => output::print(output::clean_lines(report.render(arguments.verbose).to_string().trim_end()))?,
    }
    match report.exit_code(arguments.fail_on) {
        0 => Ok(()),
        code => Err(End::Code(code)),
    }
}

async fn queries(arguments: Queries, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let login = arguments.login.url()?;
    let wish = queries::Wish { top: arguments.top.into(), over: arguments.over };
    let found = Box::pin(queries::look(&pipeline.source, &pipeline.name, login.as_ref(), &wish)).await;
    match arguments.format {
        Format::Json => output::print(serde_json::to_value(&found).unwrap_or_default())?,
        Format::Human => output::print(output::clean_lines(found.render(arguments.verbose).to_string().trim_end()))?,
    }
    match found.report.exit_code(arguments.fail_on) {
        0 => Ok(()),
        code => Err(End::Code(code)),
    }
}

fn explain(id: &str) -> Result<(), End> {
    if id == "versions" {
        for v in VERSIONS {
            let minor =
                if v.corrected == 0 { String::new() } else { format!(", from {}.{} on", v.corrected / 10_000, v.corrected % 10_000) };
            output::print(format_args!(
                "PostgreSQL {} (corrections until {}{minor})\n  brings  {}\n  beware  {}",
                v.major, v.ends, v.brings, v.beware
            ))?;
        }
        return Ok(());
    }
    let (Some(check), Some(told)) = (checks::find(id), codes::find(id)) else {
        let near = checks::ALL.iter().map(|c| (strsim::jaro_winkler(c.id, id), c.id)).max_by(|a, b| a.0.total_cmp(&b.0));
        let mut failure = Failure::new("explain.unknown_code", format!("no check `{}`", output::clean(id)));
        failure.fix = near.filter(|(score, _)| *score > 0.8).map(|(_, near)| format!("did you mean `{near}`?"));
        return Err(failure.into());
    };
    let needs = match check.needs {
        Needs::None => "nothing but the statement",
        Needs::Reload => "a reload of the server's configuration",
        Needs::Restart => "a RESTART of PostgreSQL",
    };
    output::print(format_args!(
        "{}  ({})\n\n  meaning  {}\n  impact   {}\n  fix      {}\n  needs    {needs}",
        check.id,
        check.group.as_str(),
        told.meaning,
        told.impact,
        told.fix
    ))?;
    if !check.evidence.is_empty() {
        output::print(format_args!("  see      {}", check.evidence))?;
    }
    Ok(())
}

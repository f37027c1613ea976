//! The command line: parse, call, print. Data goes to stdout, messages to stderr.

mod admin;
mod admin_url;
mod backfill;
mod backfill_link;
mod backfill_watch;
mod capacity;
mod confirm;
mod connector;
mod dead_letters;
mod diff;
mod doctor;
mod epoch;
mod explain;
mod incident;
mod output;
mod plan;
mod preview;
mod publication;
mod replay;
mod run;
mod sandbox;
mod schema;
mod setup;
mod slot;
mod status;
mod tap;
mod test;
mod top;
mod validate;
mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tillstream_connectors::registry::Registry;

use crate::config::settings::{self, LogFormat};
use crate::config::{self, Connector, Pipeline};
use crate::ops::failure::Failure;
use output::{End, Format};

const EXIT_CODES: &str = "Exit codes:
  0  done                                69  a server is away
  1  a check found something             70  a fault of the program
  2  wrong usage                         75  temporary: run it again
  3  done, but some rows are dead letters  77  a server refuses access
  4  another one holds what this needs   78  wrong configuration
  65 damaged or contradictory data       124 deadline reached, progress saved
  130/143  a command was interrupted; `run` drains on SIGTERM and ends with 0";

/// Streams the changes of a point-of-sale database into a journal and delivers them to connectors.
#[derive(Debug, Parser)]
#[command(name = "tillstream", version, max_term_width = 110, disable_help_subcommand = true, after_help = EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Settings of the process; they may also stand in the settings file or in TILLSTREAM__LOG__LEVEL and the like.
#[derive(Debug, Args)]
struct Global {
    /// File with settings of the process: log level and format, admin address
    #[arg(long, global = true, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter as `info,tillstream::capture=debug`
    #[arg(long, global = true, value_name = "FILTER")]
    log_level: Option<String>,
    /// Form of the log lines on stderr
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Environment whose overlays are laid over the files, as `crm.prod.yaml` over `crm.yaml`; also in TILLSTREAM_ENVIRONMENT
    #[arg(long, global = true, value_name = "NAME")]
    environment: Option<String>,
}

/// The pipeline file.
#[derive(Debug, Args)]
struct ConfigFile {
    /// Pipeline file
    #[arg(short, long, value_name = "FILE", default_value = "tillstream.yaml")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self, registry: &Registry) -> Result<Pipeline, End> {
        load(&self.config, registry)
    }
}

fn load(path: &Path, registry: &Registry) -> Result<Pipeline, End> {
    Ok(config::load(path, registry)?)
}

/// The pipeline's connector of this name.
fn named<'p>(pipeline: &'p Pipeline, name: &str) -> Result<&'p Connector, Failure> {
    pipeline.connectors.iter().find(|c| c.name == name).ok_or_else(|| {
        let names: Vec<&str> = pipeline.connectors.iter().map(|c| c.name.as_str()).collect();
        let what = format!("there is no connector `{}`; the pipeline has {}", output::clean(name), names.join(", "));
        let mut failure = Failure::new("usage.arguments", what);
        if let Some(near) = config::nearest(name, names.iter().copied()) {
            failure.fix = Some(format!("did you mean `{near}`?"));
        }
        failure
    })
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture changes into the journal and deliver them
    Run(run::Arguments),
    /// Show how a running pipeline is
    Status(status::Arguments),
    Capacity(capacity::Arguments),
    /// Show a running pipeline's stages and connectors, again and again
    Top(top::Arguments),
    /// Show the events of the journal as they are stored
    Tap(tap::Arguments),
    /// Show what a connector would make of stored events, and deliver none
    Preview(preview::Arguments),
    #[command(subcommand)]
    Backfill(backfill::Command),
    /// Compare a table with what a connector's target holds
    Diff(diff::Arguments),
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Deliver a stretch of the journal again, or move a connector to another place in it
    Replay(replay::Arguments),
    #[command(subcommand)]
    Epoch(epoch::Command),
    #[command(subcommand)]
    Schema(schema::Command),
    /// Check configuration files: syntax, keys, references, and the live catalogue
    Validate(validate::Arguments),
    /// Tell one row's whole life: commit, place in the journal, and what became of it at every connector
    Why(why::Arguments),
    /// Run the tests that stand in connector files
    Test(test::Arguments),
    /// Show how connector files differ from what the running process delivers by
    Plan(plan::Plan),
    /// Have the running process take over what connector files say now, on trial
    Apply(plan::Apply),
    /// Print (or run) the SQL that prepares the source database
    Setup(setup::Arguments),
    #[command(subcommand)]
    Slot(slot::Command),
    #[command(subcommand)]
    Publication(publication::Command),
    Doctor(doctor::Arguments),
    #[command(subcommand)]
    Incident(incident::Command),
    /// Tell what an error code or an alert means and what to do, or print a guide; works offline
    Explain(explain::Arguments),
    #[command(subcommand)]
    Connector(connector::Command),
    Sandbox(sandbox::Arguments),
    /// The demo: traffic, pretend targets, comparison
    #[command(subcommand)]
    Demo(crate::demo::DemoCommand),
}

/// Parses the arguments, runs the command and says how it ended. `registry` holds the kinds of sink the program offers.
#[must_use]
pub fn run(registry: Registry) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to stdout with code 0, usage errors to stderr with code 2.
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(2));
        }
    };
    let format = arguments.command.format();
    let result = prepare(&arguments.global).and_then(|(settings, runtime)| {
        let result = runtime.block_on(dispatch(arguments.command, settings, registry));
        // A blocking read of a terminal or a stuck resolver must not hold the process.
        runtime.shutdown_background();
        result
    });
    output::finish(result, format)
}

fn prepare(global: &Global) -> Result<(settings::Settings, tokio::runtime::Runtime), End> {
    let flags = settings::Flags { file: global.settings.clone(), log_level: global.log_level.clone(), log_format: global.log_format };
    let failed = |error: String| Failure::new("config.settings", error);
    let environment = global.environment.clone().or_else(|| std::env::var("TILLSTREAM_ENVIRONMENT").ok().filter(|name| !name.is_empty()));
    if let Some(name) = environment {
        if !config::overlay::is_environment(&name) {
            return Err(failed("an environment is named by small letters, digits, `-` and `_`".to_owned()).into());
        }
        config::overlay::set_environment(&name);
    }
    let settings = settings::load(&flags).map_err(|e| failed(e.to_string()))?;
    admin::set_token(settings.admin.token.clone());
    crate::telemetry::log::start(&settings.log).map_err(|e| failed(e.to_string()))?;
    // Several libraries bring a provider; the first one installed serves them all.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new("internal.runtime", format!("start the runtime: {e}")))?;
    Ok((settings, runtime))
}

impl Command {
    /// How failures are printed.
    fn format(&self) -> Format {
        match self {
            Command::Run(arguments) => arguments.format,
            Command::Status(arguments) => arguments.format,
            Command::Capacity(arguments) => arguments.format,
            Command::Top(arguments) => arguments.format,
            Command::Validate(arguments) => arguments.format.of_failures(),
            Command::Tap(arguments) => arguments.failure_format(),
            Command::Preview(arguments) => arguments.format,
            Command::Test(arguments) => arguments.format,
            Command::Backfill(command) => command.format(),
            Command::Diff(arguments) => arguments.format,
            Command::DeadLetters(command) => command.format(),
            Command::Epoch(command) => command.format(),
            Command::Schema(command) => command.format(),
            Command::Doctor(arguments) => arguments.format(),
            Command::Replay(arguments) => arguments.format,
            Command::Why(arguments) => arguments.format,
            Command::Plan(arguments) => arguments.format(),
            Command::Apply(arguments) => arguments.format(),
            Command::Connector(command) => command.format(),
            Command::Setup(arguments) => arguments.format,
            Command::Slot(command) => command.format(),
            Command::Publication(command) => command.format(),
            Command::Incident(command) => command.format(),
            Command::Explain(_) | Command::Sandbox(_) | Command::Demo(_) => Format::Human,
        }
    }
}

async fn dispatch(command: Command, settings: settings::Settings, registry: Registry) -> Result<(), End> {
    match command {
        Command::Run(arguments) => run::run(arguments, &settings, registry).await,
        Command::Status(arguments) => status::run(arguments, &settings, &registry).await,
        Command::Capacity(arguments) => capacity::run(arguments, &settings, &registry).await,
        Command::Top(arguments) => top::run(arguments, &settings, &registry).await,
        Command::Tap(arguments) => tap::run(arguments, &registry).await,
        Command::Preview(arguments) => preview::run(arguments, &registry).await,
        Command::Test(arguments) => test::run(&arguments, &registry).await,
        Command::Backfill(command) => backfill::run(command, &settings, &registry).await,
        Command::Diff(arguments) => diff::run(arguments, &settings, &registry).await,
        Command::DeadLetters(command) => dead_letters::run(command, &registry).await,
        Command::Replay(arguments) => replay::run(arguments, &registry).await,
        Command::Epoch(command) => epoch::run(command, &registry).await,
        Command::Schema(command) => schema::run(command, &registry).await,
        Command::Validate(arguments) => validate::run(arguments, &registry).await,
        Command::Why(arguments) => why::run(arguments, &registry).await,
        Command::Plan(arguments) => plan::plan(arguments, &settings, &registry).await,
        Command::Apply(arguments) => plan::apply(arguments, &settings, &registry).await,
        Command::Setup(arguments) => setup::run(arguments, &registry).await,
        Command::Slot(command) => slot::run(command, &registry).await,
        Command::Publication(command) => publication::run(command, &registry).await,
        Command::Incident(command) => incident::run(command, &settings, &registry).await,
        Command::Doctor(arguments) => doctor::run(arguments, &registry).await,
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Connector(command) => connector::run(command, &registry).await,
        Command::Sandbox(arguments) => sandbox::run(arguments).await,
        Command::Demo(command) => crate::demo::run(command).await.map_err(|error| {
            eprintln!("error[{}]: {error}", error.code);
            End::Code(error.exit)
        }),
    }
}

#[cfg(test)]
mod documented;

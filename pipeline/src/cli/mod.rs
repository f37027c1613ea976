//! The command line: parse, call, print. Data goes to stdout, messages to stderr.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tillstream_connectors::registry::Registry;

/// Streams the changes of a point-of-sale database into a journal and delivers them to connectors.
#[derive(Debug, Parser)]
#[command(name = "tillstream", version, max_term_width = 110, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The demo: traffic, pretend targets, comparison.
    #[command(subcommand, hide = true)]
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
    let _ = registry;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error[internal.runtime]: start the runtime: {error}");
            return ExitCode::from(70);
        }
    };
    runtime.block_on(async move {
        match arguments.command {
            Command::Demo(command) => match crate::demo::run(command).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error[{}]: {error}", error.code);
                    ExitCode::from(error.exit)
                }
            },
        }
    })
}

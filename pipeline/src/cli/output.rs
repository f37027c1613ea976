//! What commands print: data on stdout, failures on stderr, in one form.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use crate::config::Report;
use crate::ops::failure::{Class, Failure};

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON document.
    Json,
}

/// How a command ended that did not simply succeed.
#[derive(Debug)]
pub(super) enum End {
    /// Something failed.
    Failed(Failure),
    /// Configuration files have problems.
    Problems(Report),
    /// The command did what it should and says so with this exit code.
    Code(u8),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

impl From<Report> for End {
    fn from(report: Report) -> End {
        End::Problems(report)
    }
}

macro_rules! end_from {
    ($($error:ty),*) => {
        $(impl From<$error> for End {
            fn from(error: $error) -> End {
                End::Failed(error.into())
            }
        })*
    };
}
end_from!(crate::journal::JournalError, crate::control::ControlError, crate::capture::CaptureError);

impl From<io::Error> for End {
    /// Only stdout is written to: a reader that went away (`| head`) ends the command quietly.
    fn from(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::BrokenPipe => End::Code(0),
            _ => End::Failed(Failure::new("internal.output", format!("write to stdout: {error}"))),
        }
    }
}

/// Prints how a command ended and turns it into the exit code.
pub(super) fn finish(result: Result<(), End>, format: Format) -> ExitCode {
    let code = match result {
        Ok(()) => 0,
        Err(End::Code(code)) => code,
        Err(End::Failed(failure)) => {
            match format {
                Format::Json => eprintln!("{}", failure.to_json()),
                Format::Human => eprintln!("{failure}"),
            }
            failure.class.exit_code()
        }
        Err(End::Problems(report)) => {
            match format {
                Format::Json => eprintln!(
                    "{}",
                    serde_json::json!({"error": {"code": "config.invalid", "class": "config", "problems": report.to_json()}})
                ),
                Format::Human => eprint!("{}", report.render(color(&io::stderr()))),
            }
            Class::Config.exit_code()
        }
    };
    ExitCode::from(code)
}

/// Whether to colour: on a terminal, unless `NO_COLOR` is set.
pub(super) fn color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints a line of data.
pub(super) fn print(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Text from outside, fit for a terminal: control characters are escaped.
pub(super) fn clean(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// As [`clean`], but lines stay lines.
pub(super) fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

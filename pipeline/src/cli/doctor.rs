//! `doctor`: checks source, journal and targets and says what to mend; reads only.

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::ops::doctor;

/// Checks source, journal and targets and says what to mend
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream doctor\n  tillstream doctor --verbose\n  tillstream doctor --format json | jq '.findings[] | select(.severity == \"fail\")'\n\nReads only. Ends with 1 when something fails."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Show what is fine as well
    #[arg(short, long)]
    verbose: bool,
    /// How the findings are printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let mut report = doctor::examine(&pipeline.source, &pipeline.name).await;
    doctor::journal(&pipeline, &mut report).await;
    doctor::targets(&pipeline, &mut report).await;
    match arguments.format {
        Format::Json => output::print(report.to_json())?,
        Format::Human => output::print(output::clean_lines(report.render(arguments.verbose).to_string().trim_end()))?,
    }
    match report.exit_code() {
        0 => Ok(()),
        code => Err(End::Code(code)),
    }
}

//! `explain`: what a code means, offline.

use clap::Args;

use super::output::{self, End};
use crate::config;
use crate::ops::codes;
use crate::ops::failure::Failure;

/// Tells what an error code means
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream explain capture.slot_lost\n  tillstream explain config      every key of the configuration files\n  tillstream explain             all codes"
)]
pub(super) struct Arguments {
    /// A code as printed in brackets, or `config` for the reference of all keys
    code: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), End> {
    let Some(code) = &arguments.code else {
        for explanation in codes::ALL {
            output::print(format_args!("{:<28} {}", explanation.code, explanation.meaning))?;
        }
        return Ok(());
    };
    if code == "config" {
        output::print(config::reference())?;
        return Ok(());
    }
    let Some(e) = codes::find(code) else {
        let near = codes::ALL.iter().map(|e| (strsim::jaro_winkler(e.code, code), e.code)).max_by(|a, b| a.0.total_cmp(&b.0));
        let mut failure = Failure::new("explain.unknown_code", format!("no code `{}`", output::clean(code)));
        if let Some((score, near)) = near
            && score > 0.8
        {
            failure.fix = Some(format!("did you mean `{near}`?"));
        }
        return Err(failure.into());
    };
    output::print(format_args!(
        "{}\n\n  meaning  {}\n  impact   {}\n  fix      {}\n  exit     {} ({})",
        e.code,
        e.meaning,
        e.impact,
        e.fix,
        e.class.exit_code(),
        e.class.as_str()
    ))?;
    Ok(())
}

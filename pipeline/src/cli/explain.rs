//! `explain`: what a code or an alert means and what to do, and the guides; offline.

use clap::Args;

use super::output::{self, End};
use crate::config;
use crate::ops::failure::Failure;
use crate::ops::{codes, docs};

/// Tells what an error code or an alert means, or prints a guide
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream explain capture.slot_lost\n  tillstream explain WalCeilingSoon   an alert: what it means, what to do first\n  tillstream explain restore          a runbook or guide\n  tillstream explain config           every key of the configuration files\n  tillstream explain                  all codes, alerts, runbooks and guides"
)]
pub(super) struct Arguments {
    /// A code as printed in brackets, an alert, a page's name, or `config` for the reference of all keys
    topic: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), End> {
    let Some(topic) = &arguments.topic else {
        return list();
    };
    if topic == "config" {
        output::print(config::reference())?;
        return Ok(());
    }
    if let Some(e) = codes::find(topic) {
        output::print(format_args!(
            "{}\n\n  meaning  {}\n  impact   {}\n  fix      {}\n  exit     {} ({})",
            e.code,
            e.meaning,
            e.impact,
            e.fix,
            e.class.exit_code(),
            e.class.as_str()
        ))?;
        if let Some(page) = docs::family(topic) {
            output::print(format_args!("\n{}", page.text.trim_end()))?;
        }
        return Ok(());
    }
    // A family by its name, as `capture`, after everything that has a name of its own.
    if let Some(page) = docs::find(topic).or_else(|| docs::family(topic).filter(|page| page.name() == topic.as_str())) {
        output::print(page.text.trim_end())?;
        return Ok(());
    }
    let known = codes::ALL.iter().map(|e| e.code).chain(docs::PAGES.iter().map(docs::Page::name));
    let near =
        known.map(|name| (strsim::jaro_winkler(&name.to_lowercase(), &topic.to_lowercase()), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    let mut failure = Failure::new("explain.unknown_code", format!("no code, alert or page `{}`", output::clean(topic)));
    if let Some((score, near)) = near
        && score > 0.8
    {
        failure.fix = Some(format!("did you mean `{near}`?"));
    }
    Err(failure.into())
}

fn list() -> Result<(), End> {
    for explanation in codes::ALL {
        output::print(format_args!("{:<28} {}", explanation.code, explanation.meaning))?;
    }
    for (kind, heading) in [("alerts", "Alerts"), ("runbooks", "Runbooks"), ("guides", "Guides"), ("", "More")] {
        output::print(format_args!("\n{heading}"))?;
        for page in docs::PAGES.iter().filter(|page| page.kind() == kind) {
            output::print(format_args!("{:<28} {}", page.name(), page.title()))?;
        }
    }
    Ok(())
}

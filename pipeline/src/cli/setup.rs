//! `setup`: what the owner of the source database runs once; printed by default, run when asked.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End};
use crate::ops::setup;

/// Prints (or runs) the SQL that prepares the source database
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream setup > setup.sql\n  tillstream setup --admin-url postgres://postgres@db.example/pos --apply\n\nNothing is changed without --apply. No password is printed or set: give one to each new role with \\password in psql."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the SQL and change nothing; the default
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Run the SQL, statement by statement
    #[arg(long)]
    apply: bool,
    /// URL of a role that may create roles, publications and slots; the source's own URL when absent
    #[arg(long, value_name = "URL", alias = "source-url", conflicts_with = "admin_url_file")]
    admin_url: Option<String>,
    /// File with that URL, so that its password stands in no process list
    #[arg(long, value_name = "FILE")]
    admin_url_file: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let admin = match (arguments.admin_url, arguments.admin_url_file) {
        (Some(url), _) => Some(SecretString::from(url)),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|e| crate::ops::failure::Failure::new("config.unreadable_file", format!("{}: {e}", path.display())))?;
            Some(SecretString::from(text.trim().to_owned()))
        }
        (None, None) => None,
    };
    let (plan, catalog) = setup::prepare(&pipeline.source, &pipeline.name, admin.as_ref()).await?;
    if !arguments.apply {
        output::print(output::clean_lines(plan.to_string().trim_end()))?;
        return Ok(());
    }
    let mut shown = 0;
    let mut show_to = |step: usize| {
        for (n, step) in plan.steps.iter().enumerate().take(step).skip(shown) {
            eprintln!("{}/{} {}", n + 1, plan.steps.len(), output::clean(&step.title));
            for note in &step.notes {
                eprintln!("    {}", output::clean(note));
            }
        }
        shown = shown.max(step);
    };
    setup::apply(&plan, &catalog, |done| {
        show_to(done.step);
        eprintln!("    done: {}", output::clean(done.summary()));
    })
    .await?;
    show_to(plan.steps.len());
    Ok(())
}

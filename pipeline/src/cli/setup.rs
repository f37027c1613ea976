//! `setup`: what the owner of the source database runs once; printed by default, run when asked, and taken away again.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tillstream_connectors::registry::Registry;

use super::admin_url::AdminUrl;
use super::output::{self, End, Format};
use super::{ConfigFile, confirm};
use crate::config::Pipeline;
use crate::ops::audit;
use crate::ops::failure::Failure;
use crate::ops::provider::Provider;
use crate::ops::setup::{self, BACKFILL_ROLE, Options, Plan, Prepared, STREAM_ROLE};

/// Prints (or runs) the SQL that prepares the source database
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream setup > setup.sql\n  tillstream setup --provider rds --as-script setup.sql --rollback-script rollback.sql --change-ticket ticket.txt\n  tillstream setup --admin-url postgres://postgres@db.example/pos --apply\n  tillstream setup --remove\n  tillstream setup --remove --apply --confirm shop --reason \"moved to another region\"\n\nNothing is changed without --apply. No password is printed or set: give one to each new role with \\password in psql.\nFiles that are there already are not written over: a rollback that is written after the change would take nothing back."
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
    /// Take away what the pipeline has at the source: slot, publication, grants, and the roles that nobody else needs
    #[arg(long)]
    remove: bool,
    /// With --remove: the roles too, although other slots show that another pipeline may use them
    #[arg(long, requires = "remove")]
    drop_roles: bool,
    /// Who runs the server, when it is not to be recognised
    #[arg(long, value_name = "rds|aurora|cloudsql|azure|supabase|neon|patroni|self", value_parser = provider)]
    provider: Option<Provider>,
    /// Write the SQL into a new file
    #[arg(long, value_name = "FILE")]
    as_script: Option<PathBuf>,
    /// Write into a new file the SQL that takes the change back
    #[arg(long, value_name = "FILE", conflicts_with = "remove")]
    rollback_script: Option<PathBuf>,
    /// Write into a new file what a change ticket asks for: risk, duration, rollback, monitoring
    #[arg(long, value_name = "FILE", conflicts_with = "remove")]
    change_ticket: Option<PathBuf>,
    /// List the columns of every table in the publication, so that a later column does not leave the database by itself (15 or newer)
    #[arg(long, conflicts_with = "remove")]
    column_lists: bool,
    /// Name of the role that streams
    #[arg(long, value_name = "NAME", default_value = STREAM_ROLE)]
    stream_role: String,
    /// Name of the role that reads tables
    #[arg(long, value_name = "NAME", default_value = BACKFILL_ROLE)]
    backfill_role: String,
    #[command(flatten)]
    admin: AdminUrl,
    /// With --remove --apply: the pipeline's name; asked for on a terminal when missing
    #[arg(long, value_name = "NAME", requires = "remove")]
    confirm: Option<String>,
    /// With --remove --apply: confirm without the name
    #[arg(long, requires_all = ["remove", "reason"], conflicts_with = "confirm")]
    yes: bool,
    /// With --remove --apply: why; goes to the audit records
    #[arg(long, value_name = "TEXT", requires = "remove")]
    reason: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn provider(word: &str) -> Result<Provider, String> {
    let words = || Provider::ALL.map(Provider::as_str).join(", ");
    Provider::ALL.into_iter().find(|p| p.as_str() == word).ok_or_else(|| format!("one of {}", words()))
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let admin = arguments.admin.read()?;
    let options = Options {
        provider: arguments.provider,
        stream_role: arguments.stream_role.clone(),
        backfill_role: arguments.backfill_role.clone(),
        column_lists: arguments.column_lists,
        drop_roles: arguments.drop_roles,
    };
    let prepared = if arguments.remove {
        setup::prepare_removal(&pipeline.source, &pipeline.name, admin.as_ref(), &options).await?
    } else {
        setup::prepare(&pipeline.source, &pipeline.name, admin.as_ref(), &options).await?
    };
    let written = write_files(&arguments, &pipeline, &prepared)?;
    if arguments.remove && arguments.apply {
        let reason = confirm::reason(arguments.reason.as_deref())?;
        if !arguments.yes {
            eprint!("{}", output::clean_lines(&prepared.plan.to_string()));
            confirm::typed(arguments.confirm.as_deref(), &pipeline.name, "remove it", "nothing was removed")?;
        }
        setup::removable(&prepared.facts)?;
        apply(&prepared).await?;
        // The journal may be gone already, and the slot had to go all the same.
        let source = &pipeline.source;
        let what = format!("removed from source {}: slot {}, publication {}", source.name, source.slot, source.publication);
        if let Err(failure) = audit::record(&pipeline, &what, reason, &super::backfill::who()).await {
            eprintln!("the reason was not stored: {failure}");
        }
        return Ok(());
    }
    if arguments.apply {
        return apply(&prepared).await;
    }
    if written == 0 || arguments.format == Format::Json {
        match arguments.format {
            Format::Json => output::print(json!({
                "provider": prepared.facts.provider, "plan": prepared.plan, "rollback": prepared.plan.rollback(),
            }))?,
            Format::Human => output::print(output::clean_lines(prepared.plan.to_string().trim_end()))?,
        }
    }
    Ok(())
}

/// Writes what was asked for and says so; how many files.
fn write_files(arguments: &Arguments, pipeline: &Pipeline, prepared: &Prepared) -> Result<usize, End> {
    let Prepared { plan, facts, .. } = prepared;
    let files: [(&Option<PathBuf>, &dyn Fn() -> String); 3] = [
        (&arguments.as_script, &|| plan.to_string()),
        (&arguments.rollback_script, &|| plan.rollback().to_string()),
        (&arguments.change_ticket, &|| setup::ticket(&pipeline.source, &pipeline.name, facts, plan)),
    ];
    let wanted: Vec<(&Path, String)> =
        files.iter().filter_map(|(path, text)| Some((path.as_deref()?, output::clean_lines(&text())))).collect();
    // All or none: a rollback without its script, or the other way round, helps nobody.
    if let Some((path, _)) = wanted.iter().find(|(path, _)| path.exists()) {
        return Err(Failure::new("setup.exists", format!("{} is there already", path.display())).into());
    }
    for (path, text) in &wanted {
        use std::io::Write as _;
        let written = std::fs::File::options().write(true).create_new(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| Failure::new("setup.write", format!("{}: {e}", path.display())))?;
        eprintln!("written: {}", path.display());
    }
    Ok(wanted.len())
}

async fn apply(prepared: &Prepared) -> Result<(), End> {
    let plan: &Plan = &prepared.plan;
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
    setup::apply(plan, &prepared.catalog, |done| {
        show_to(done.step);
        eprintln!("    done: {}", output::clean(done.summary()));
    })
    .await?;
    show_to(plan.steps.len());
    Ok(())
}

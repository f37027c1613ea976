//! `connector new`: a connector file to begin with. `connector pause` and `connector resume`: nothing is sent to a target for a while, and the decision
//! that a connector goes on, after a pause or with its tables as they are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use tillstream_connectors::registry::Registry;
use tillstream_connectors::scaffold::{PLACEHOLDER, Secret};

use super::output::{self, End, Format};
use super::{ConfigFile, dead_letters};
use crate::ops::desk::{Desk, Resumed, in_time};
use crate::ops::failure::Failure;
use crate::ops::{kept, pauses};

/// Connector files, and pausing what they say
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    New(New),
    Pause(Pause),
    Resume(Resume),
}

/// Stops sending to a connector's target, in every process, until `connector resume`
#[derive(Debug, Args)]
#[command(
    after_help = "Calls in the air finish and are settled; then nothing is sent. Capture goes on, and what comes for the connector waits in the journal, in order, as long\nas that keeps it: the command says until when. The pause outlives restarts. Pausing what is paused changes nothing and succeeds.\n\nExample:\n  tillstream connector pause stock --reason \"the warehouse moves its database tonight\""
)]
pub(super) struct Pause {
    /// The connector
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Why; everybody who asks for the status is told
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Has a connector go on that somebody paused, or that waits because a table has changed
#[derive(Debug, Args)]
#[command(
    after_help = "A pause is ended, and what has waited is sent, in order. Where nobody paused it, and a table has changed so that it waits or will, it goes on with its\ntables as they are now: where its file cannot tell events of the changed table, as without a column that it uses, they become dead letters, which are\nredriven when the file was mended. To lose no time over that, mend the file first and have it taken over with `tillstream apply`.\nThe two are never decided at once. With neither the command says so and succeeds.\n\nExamples:\n  tillstream connector resume stock --reason \"it has moved\"\n  tillstream connector resume loyalty --reason \"the new column is not for partners\""
)]
pub(super) struct Resume {
    /// The connector
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Why; kept with the decision
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::New(_) => Format::Human,
            Command::Pause(pause) => pause.format,
            Command::Resume(resume) => resume.format,
        }
    }
}

/// Writes a connector file of a kind, with tests that pass and what else it needs
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is overwritten. Then add the file to `connectors` of tillstream.yaml.\n\nExamples:\n  tillstream connector new http --name loyalty\n  tillstream connector new klaviyo --name guests --dir connectors"
)]
pub(super) struct New {
    /// Kind of sink: sql, http, webhook, klaviyo, …
    #[arg(value_name = "KIND")]
    kind: String,
    /// Name of the connector; the kind's when absent
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(super) async fn run(command: Command, registry: &Registry) -> Result<(), End> {
    match command {
        Command::New(new) => scaffold(new, registry),
        Command::Pause(arguments) => pause(arguments, registry).await,
        Command::Resume(arguments) => resume(arguments, registry).await,
    }
}

async fn pause(Pause { name, config, reason, format }: Pause, registry: &Registry) -> Result<(), End> {
    if reason.trim().is_empty() {
        return Err(Failure::new("usage.arguments", "say why in --reason").into());
    }
    let (pipeline, journal, state) = dead_letters::read(&config, registry).await?;
    super::named(&pipeline, &name)?;
    let retention = pipeline.journal.retention();
    let waits = in_time(kept::kept(journal.as_ref(), &state, &name, retention)).await??;
    let desk = Desk::new(journal, &pipeline.name, &pipeline.source.name);
    let decision = dead_letters::decision("connector pause", reason);
    let already = desk.pause(&state, &name, &decision).await?;
    if format == Format::Json {
        return Ok(output::print(pauses::paused(&name, already.as_ref(), waits, retention))?);
    }
    match &already {
        Some(pause) => output::print(output::clean(&format!(
            "{name}: was paused already, by {} since {}: {}; nothing was changed",
            pause.who(),
            pause.since(),
            pause.reason
        )))?,
        None => output::print(format_args!(
            "{name}: paused; calls in the air finish, then nothing is sent until `tillstream connector resume {name}`"
        ))?,
    }
    output::print(format_args!(
        "  warning: what comes for it waits in the journal ({} entries do now), which keeps it {}; what is not delivered by then is lost to its target",
        waits.entries,
        kept::until(waits.left, retention)
    ))?;
    Ok(())
}

async fn resume(Resume { name, config, reason, format }: Resume, registry: &Registry) -> Result<(), End> {
    let (pipeline, journal, state) = dead_letters::read(&config, registry).await?;
    let connector = super::named(&pipeline, &name)?;
    let desk = Desk::new(journal, &pipeline.name, &pipeline.source.name);
    let resumed = desk.resume(&state, connector, true, &dead_letters::decision("connector resume", reason)).await?;
    if format == Format::Json {
        return Ok(output::print(pauses::resumed(&name, &resumed))?);
    }
    match resumed {
        Resumed::Pause(pause) => {
            output::print(output::clean(&format!(
                "{name}: goes on; {} had paused it since {}: {}",
                pause.who(),
                pause.since(),
                pause.reason
            )))?;
            if crate::delivery::is_undecided(connector, &state) {
                output::print(format_args!(
                    "  a table has changed too: it waits there until that is decided (`tillstream schema history`)"
                ))?;
            }
        }
        Resumed::Tables(tables) => {
            for (table, layout) in tables {
                output::print(format_args!("{name}: goes on with {} as it is (layout {layout})", output::clean(&table)))?;
            }
        }
        Resumed::Nothing => output::print(format_args!("{name}: is not paused, and no changed table makes it wait; nothing was changed"))?,
    }
    Ok(())
}

fn scaffold(New { kind, name, dir }: New, registry: &Registry) -> Result<(), End> {
    let Some(found) = registry.get(&kind) else {
        let known = registry.names().join(", ");
        return Err(Failure::new("usage.arguments", format!("there is no kind of sink `{}`: {known}", output::clean(&kind))).into());
    };
    let Some(scaffold) = found.scaffold() else {
        return Err(Failure::new("connector.no_scaffold", format!("the kind {kind} brings no connector file to begin with")).into());
    };
    let name = name.unwrap_or(kind);
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    if name.is_empty() || name.len() > 40 || !name.chars().all(good) || name.starts_with(['-', '_']) {
        let why = "the name of a connector has up to 40 small letters, digits, - and _, the first a letter or a digit";
        return Err(Failure::new("usage.arguments", why.to_owned()).into());
    }
    let mut files = vec![("yaml", scaffold.file.replace("NAME", &name), false)];
    files.extend(scaffold.beside.map(|(end, text)| (end, text.replace("NAME", &name), false)));
    files.extend(scaffold.secret.map(|secret| ("secret", content(secret), true)));
    let paths: Vec<PathBuf> = files.iter().map(|(end, ..)| dir.join(format!("{name}.{end}"))).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(Failure::new("connector.exists", format!("{} is there already", there.display())).into());
    }
    let failed = |path: &Path, error: &std::io::Error| Failure::new("connector.write", format!("write {}: {error}", path.display()));
    std::fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
    for (path, (_, text, secret)) in paths.iter().zip(&files) {
        write(path, text, *secret).map_err(|error| failed(path, &error))?;
        output::print(path.display())?;
    }
    eprintln!("next: tillstream validate --offline {0} && tillstream test {0}", paths[0].display());
    if scaffold.secret == Some(Secret::Placeholder) {
        eprintln!("      and write what the target's owner hands out into {}", paths[paths.len() - 1].display());
    }
    Ok(())
}

fn content(secret: Secret) -> String {
    match secret {
        Secret::Placeholder => format!("{PLACEHOLDER}\n"),
        Secret::Webhook => format!("whsec_{}\n", BASE64.encode(rand::random::<[u8; 32]>())),
    }
}

/// Writes a new file; a secret for its owner alone.
fn write(path: &Path, text: &str, secret: bool) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    if secret {
        options.mode(0o600);
    }
    options.open(path)?.write_all(text.as_bytes())
}

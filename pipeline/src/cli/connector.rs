//! `connector new`: a connector file to begin with. `connector resume`: the decision that one goes on with its tables as they are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use tillstream_connectors::registry::Registry;
use tillstream_connectors::scaffold::{PLACEHOLDER, Secret};

use super::output::{self, End, Format};
use super::{ConfigFile, dead_letters};
use crate::ops::desk::Desk;
use crate::ops::failure::Failure;

/// Connector files
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    New(New),
    Resume(Resume),
}

/// Has a connector that waits because a table has changed go on with its tables as they are now
#[derive(Debug, Args)]
#[command(
    after_help = "Where its file cannot tell events of the changed table, as without a column that it uses, they become dead letters, which are redriven when\nthe file was mended. To lose no time over that, mend the file first and have it taken over with `tillstream apply`.\n\nExample:\n  tillstream connector resume loyalty --reason \"the new column is not for partners\""
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
        Command::Resume(arguments) => resume(arguments, registry).await,
    }
}

async fn resume(Resume { name, config, reason, format }: Resume, registry: &Registry) -> Result<(), End> {
    let (pipeline, journal, state) = dead_letters::read(&config, registry).await?;
    let Some(connector) = pipeline.connectors.iter().find(|connector| connector.name == name) else {
        return Err(Failure::new("usage.arguments", format!("the pipeline has no connector `{}`", output::clean(&name))).into());
    };
    let desk = Desk::new(journal, &pipeline.name, &pipeline.source.name);
    let tables = desk.resume(&state, connector, &dead_letters::decision("connector resume", reason)).await?;
    match format {
        Format::Json => {
            let tables: Vec<_> = tables.iter().map(|(table, layout)| serde_json::json!({"table": table, "layout": layout})).collect();
            output::print(serde_json::json!({"connector": name, "accepted": tables}))?;
        }
        Format::Human => {
            for (table, layout) in tables {
                output::print(format_args!("{name}: goes on with {} as it is (layout {layout})", output::clean(&table)))?;
            }
        }
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

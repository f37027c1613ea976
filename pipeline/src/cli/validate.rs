//! `validate`: checks configuration files layer by layer and says which layers ran.

use std::path::PathBuf;

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::output::{self, End, Format};
use crate::config::{self, CheckedFile, Report};
use crate::ops::references;

/// Checks configuration files
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tillstream validate tillstream.yaml\n  tillstream validate --offline --format json tillstream.yaml")]
pub(super) struct Arguments {
    /// Pipeline files (their connector files are checked with them) or single connector files
    #[arg(value_name = "FILES", default_value = "tillstream.yaml")]
    files: Vec<PathBuf>,
    /// Touch no network: skip the comparison with the live catalogue
    #[arg(long)]
    offline: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let pipelines = config::check_files(&arguments.files, registry)?;
    let mut layers: Vec<(String, String)> =
        ["syntax", "keys and values", "references between files"].map(|layer| (layer.to_owned(), "ok".to_owned())).into();
    if arguments.offline {
        layers.push(("live catalogue".to_owned(), "skipped (--offline)".to_owned()));
    } else {
        let mut report = Report::default();
        for file in &pipelines {
            let compared = references::compare(file).await?;
            layers.push((format!("live catalogue of {}", file.pipeline.source.name), format!("ok ({})", compared.server)));
            report.extend(compared.report);
        }
        if !report.is_empty() {
            return Err(report.into());
        }
    }
    match arguments.format {
        Format::Json => {
            let layers: serde_json::Map<_, _> = layers.into_iter().map(|(name, result)| (name, result.into())).collect();
            output::print(serde_json::json!({"valid": true, "files": arguments.files, "layers": layers}))?;
        }
        Format::Human => {
            for CheckedFile { path, pipeline, .. } in &pipelines {
                let (tables, connectors) = (pipeline.source.tables.len(), pipeline.connectors.len());
                output::print(format_args!("{}: pipeline {}, {tables} tables, {connectors} connectors", path.display(), pipeline.name))?;
            }
            for (name, result) in layers {
                output::print(format_args!("  {name:<26} {result}"))?;
            }
        }
    }
    Ok(())
}

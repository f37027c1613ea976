//! `status`: asks a running process how things stand.

use std::time::Duration;

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::config::settings::Settings;
use crate::config::units;
use crate::ops::failure::{Class, Failure};
use crate::ops::scale::{self, Scale};
use crate::ops::status;

/// A status is numbers at hand; what takes longer than this does not answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer that is read; a status has a few kilobytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Shows how a running pipeline is
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream status\n  tillstream status --url http://127.0.0.1:7411 --format json | jq .source.state\n  tillstream status --scale-advice --drain-within 10m --format json | jq .recommended_replicas\n\nEnds with 1 when the pipeline is not ready, with 69 when no process answers."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Say instead how many processes that deliver are wanted, and why; ask one that delivers
    #[arg(long)]
    scale_advice: bool,
    /// How soon what waits shall be done, for the advice
    #[arg(long, value_name = "DURATION", value_parser = within, requires = "scale_advice")]
    drain_within: Option<Duration>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn within(text: &str) -> Result<Duration, String> {
    units::duration(text).filter(|d| d.as_secs() > 0).ok_or_else(|| "a duration as `90s`, `10m` or `2h`".to_owned())
}

pub(super) async fn run(arguments: Arguments, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let base = address(arguments.url.as_deref(), &arguments.config, settings, registry)?;
    if arguments.scale_advice {
        let seconds = arguments.drain_within.unwrap_or(scale::DRAIN_WITHIN).as_secs();
        let document = fetch(&format!("{base}/api/scale?within={seconds}")).await?;
        let advice: Scale = serde_json::from_value(document.clone())
            .map_err(|_| Failure::new("admin.unreachable", format!("{base}/api/scale answers something else than an advice")))?;
        match arguments.format {
            Format::Json => output::print(&document)?,
            Format::Human => output::print(output::clean_lines(&scale::screen(&advice)).trim_end())?,
        }
        return Ok(());
    }
    let document = fetch(&format!("{base}/api/status")).await?;
    match arguments.format {
        Format::Json => output::print(&document)?,
        Format::Human => output::print(output::clean_lines(&status::screen(&document)).trim_end())?,
    }
    if document["ready"].as_bool() == Some(true) { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

/// Where the admin endpoint is. The pipeline's file is read only where nothing else says it.
pub(super) fn address(url: Option<&str>, config: &ConfigFile, settings: &Settings, registry: &Registry) -> Result<String, End> {
    match (url, settings.admin.listen) {
        (Some(url), _) => Ok(url.trim_end_matches('/').to_owned()),
        (None, Some(listen)) => Ok(format!("http://{listen}")),
        (None, None) => Ok(super::admin::base(None, None, &config.load(registry)?.admin)),
    }
}

/// A document of the admin endpoint.
pub(super) async fn fetch(url: &str) -> Result<serde_json::Value, Failure> {
    let unreachable = |error: String| Failure::new("admin.unreachable", format!("{url}: {error}"));
    let client = super::admin::client(ANSWER_WITHIN).map_err(unreachable)?;
    let mut answer = client.get(url).send().await.map_err(|e| unreachable(reason(&e)))?;
    match answer.status() {
        status if status.is_success() => {}
        reqwest::StatusCode::UNAUTHORIZED => {
            return Err(Failure::new("admin.unauthenticated", format!("{url} wants a token that it knows")));
        }
        status => return Err(unreachable(format!("answers {status}"))),
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| unreachable(reason(&e)))? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(unreachable("answers more than a status".to_owned()));
        }
        body.extend_from_slice(&piece);
    }
    serde_json::from_slice(&body).map_err(|_| unreachable("answers something else than a status".to_owned()))
}

/// The innermost reason, which says most (`connection refused`).
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

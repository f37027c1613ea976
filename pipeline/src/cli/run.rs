//! `run`: the daemon, and the job that drains and ends.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tillstream_connectors::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::ConfigFile;
use super::output::{End, Format};
use crate::config;
use crate::config::settings::Settings;
use crate::ops::failure::Failure;
use crate::ops::process::{self, Files, Only, Options};
use crate::telemetry::traces;

/// Captures changes into the journal and delivers them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream run                              capture and deliver until SIGTERM, then drain and end with 0\n  tillstream run --until-caught-up            for cron: capture and deliver what is there, then end with 0\n                                              (3: some events became dead letters; 77: a table of the initial load may not be\n                                              read, everything else is delivered; 130/143: interrupted)\n  tillstream run --only delivery --listen 127.0.0.1:7411"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Run one loop; the other runs elsewhere
    #[arg(long, value_enum, value_name = "LOOP")]
    only: Option<Only>,
    /// End once everything up to the server's present position is captured and delivered
    #[arg(long)]
    until_caught_up: bool,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How a failure is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings, registry: Registry) -> Result<(), End> {
    let config = &arguments.config.config;
    let config::CheckedFile { pipeline, texts, .. } = config::load_file(config, &registry)?;
    traces::start(&settings.telemetry, &pipeline.name).map_err(|error| Failure::new(error.code(), error.to_string()))?;
    let files = Files { path: config.clone(), texts, registry: Arc::new(registry) };
    let options = Options {
        only: arguments.only,
        until_caught_up: arguments.until_caught_up,
        listen: arguments.listen.or(settings.admin.listen).unwrap_or(pipeline.admin.listen),
    };
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::new("internal.runtime", format!("handle signals: {e}")))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Failure::new("internal.runtime", format!("handle signals: {e}")))?;
    let mut running = std::pin::pin!(process::run(pipeline, options, files, stop.clone()));
    let mut code = None;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            signal = async {
                tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 143),
                    _ = interrupt.recv() => ("SIGINT", 130),
                }
            } => {
                if code.is_some() {
                    // Asked twice: whoever asks does not want to wait. What is stored is stored.
                    return Err(End::Code(signal.1));
                }
                code = Some(signal.1);
                tracing::info!(signal = signal.0, "asked to stop: what was read is stored and delivered, then it ends");
                stop.cancel();
            }
        }
    };
    traces::finish().await;
    let ended = ended?;
    match code {
        Some(code) if options.until_caught_up && ended.stopped => Err(End::Code(code)),
        None if options.until_caught_up && ended.dead_letters > 0 => {
            eprintln!("caught up; {} events became dead letters: see `tillstream dead-letters list`", ended.dead_letters);
            Err(End::Code(3))
        }
        _ => Ok(()),
    }
}

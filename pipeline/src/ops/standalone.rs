//! Capture for one backfill: where no pipeline runs, the backfill's own process takes the slot, writes what the stream brings, and gives
//! it back at the end. Nothing is delivered.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::process::{backfill_settings, owner};
use crate::backfill::{Backfill, SessionHooks};
use crate::capture::{self, CaptureError, CaptureParts, Stopped, catalog, wire::PgSource};
use crate::config::Pipeline;
use crate::journal;

/// A slot that another process holds for longer than this is held by a pipeline; a process that just died lets go sooner.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);
/// A server that does not answer within this is away.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A running capture without delivery.
pub struct Standalone {
    /// Its backfills.
    pub backfill: Arc<Backfill>,
    stop: CancellationToken,
    task: JoinHandle<Result<Stopped, CaptureError>>,
}

impl Standalone {
    /// Starts capture and waits until it streams.
    ///
    /// # Errors
    /// `backfill.pipeline_runs` when another process has the slot; whatever keeps capture from starting.
    pub async fn start(mut pipeline: Pipeline) -> Result<Standalone, Failure> {
        // That is the pipeline's own business.
        pipeline.source.initial_load = false;
        let journal = journal::open(&pipeline.journal, &format!("tillstream {} backfill", pipeline.name))?;
        journal.set_up().await?;
        let facts = catalog::check_start(&pipeline.source, &pipeline.name).await?;
        let stats = Arc::new(capture::Stats::default());
        let backfill = Backfill::new(backfill_settings(&pipeline, false), None);
        let stop = CancellationToken::new();
        let parts = CaptureParts {
            source: Arc::new(PgSource::new(&pipeline.source, &pipeline.name)),
            journal,
            settings: capture::Settings::new(&pipeline, facts.primary_keys(), owner()),
            hooks: Some(Arc::new(SessionHooks(Arc::clone(&backfill)))),
            stats: Arc::clone(&stats),
            stop: stop.clone(),
        };
        let task = tokio::spawn(capture::run(parts, capture::Mode::Follow));
        let mut standalone = Standalone { backfill, stop, task };
        let began = tokio::time::Instant::now();
        let mut changes = standalone.backfill.changes();
        loop {
            if standalone.backfill.is_streaming() {
                return Ok(standalone);
            }
            let state = stats.state().0;
            let waited = began.elapsed();
            if waited > START_WITHIN || (state == capture::stats::State::WaitingForSlot && waited > SLOT_PATIENCE) {
                let last = stats.last_error().map_or_else(String::new, |e| format!(": {}", e.message));
                standalone.stop.cancel();
                let _ = (&mut standalone.task).await;
                let code = if state == capture::stats::State::WaitingForSlot { "backfill.pipeline_runs" } else { "backfill.no_session" };
                return Err(Failure::new(code, format!("the stream was not to be had within {} s{last}", waited.as_secs())));
            }
            tokio::select! {
                ended = &mut standalone.task => return Err(match ended {
                    Ok(Err(error)) => error.into(),
                    _ => Failure::new("internal.panicked", "capture ended by itself"),
                }),
                _ = changes.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Stores and acknowledges what was read, and gives the slot back.
    ///
    /// # Errors
    /// What capture ended with.
    pub async fn end(self) -> Result<(), Failure> {
        self.stop.cancel();
        match self.task.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(Failure::new("internal.panicked", format!("capture ended unexpectedly: {error}"))),
        }
    }
}

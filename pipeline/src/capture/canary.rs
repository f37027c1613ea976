//! Sends the canary: every so often a logical message at the source, by a connection of its own that is closed again.
//!
//! In a transaction, although that costs a transaction id: outside one the server would write the message to its disk, and so send
//! it on, only when something else makes it to, on an idle server seconds later. Writes no table; some hundred bytes of WAL.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::CaptureError;
use super::catalog::{Catalog, sql_error};
use super::stats::{LastError, State, Stats};
use crate::config;
use crate::control::now_ms;
use crate::telemetry::canary::{Canary, PREFIX};

/// Code of the warning that the server does not let us.
pub const REFUSED: &str = "capture.canary_refused";

/// What sending one may take: connecting included. The next one is another one.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// How soon it is seen that the stream is there.
const LOOK: Duration = Duration::from_millis(250);

/// Sends one after the other until it is stopped, while capture streams. A standby that waits for the slot sends none, and
/// nothing is sent that could not be received.
pub async fn send(source: config::Source, pipeline: String, every: Duration, stats: Arc<Stats>, stop: CancellationToken) {
    let sending = async {
        for number in 1.. {
            while stats.state().0 != State::Streaming {
                sleep(LOOK).await;
            }
            let next = Instant::now() + every;
            match timeout(SEND_WITHIN, one(&source, &pipeline, number)).await {
                Ok(Ok(None)) => {
                    if stats.refuse_canary(None) {
                        tracing::info!(code = REFUSED, "no longer: the canary is sent");
                    }
                }
                Ok(Ok(Some(why))) => {
                    let error = LastError { code: REFUSED, message: why.clone(), at_ms: now_ms() };
                    if stats.refuse_canary(Some(error)) {
                        tracing::warn!(code = REFUSED, why, "no canary is sent");
                    }
                }
                // Capture says what is away, and the age of the last canary that something is.
                Ok(Err(error)) => tracing::debug!(%error, "the canary was not sent"),
                Err(_) => tracing::debug!("the canary was not sent in time"),
            }
            sleep_until(next).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = sending => {}
    }
}

/// Sends one; answers why the server does not let us, if that is so.
async fn one(source: &config::Source, pipeline: &str, number: u64) -> Result<Option<String>, CaptureError> {
    let catalog = Catalog::connect(source, pipeline, "canary").await?;
    if catalog.server().in_recovery {
        return Ok(Some("the source is a standby, which cannot write a logical message".to_owned()));
    }
    // A standby that is awaited is not what is timed, and may be away.
    catalog.client().batch_execute("SET synchronous_commit = local").await.map_err(sql_error)?;
    match catalog.emit_message(PREFIX, &Canary::now(number).content()).await {
        Err(CaptureError::Definite { code: "capture.not_permitted", what, .. }) => Ok(Some(what)),
        sent => sent.map(|()| None),
    }
}

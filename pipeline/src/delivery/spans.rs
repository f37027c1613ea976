//! The span of a call of a target.

use tillstream_connectors::sink::{Batch, Outcome, SinkError};

use crate::telemetry::traces::Span;

/// Ends it with what the call was and what became of it; `None` is no answer in time.
pub(super) fn end(mut span: Span, connector: &str, lane: usize, batch: &Batch, answer: Option<&Result<Vec<Outcome>, SinkError>>) {
    span.text("tillstream.connector", connector);
    span.count("tillstream.lane", lane);
    span.count("tillstream.events", batch.items.len());
    if let (Some(first), Some(last)) = (batch.items.first(), batch.items.last()) {
        span.text("tillstream.first_event", first.event.id());
        span.text("tillstream.last_event", last.event.id());
    }
    let failed = match answer {
        Some(Ok(outcomes)) => told(&mut span, outcomes),
        Some(Err(error)) => Some(error.code.as_str()),
        None => Some("delivery.call_timeout"),
    };
    span.text("tillstream.outcome", if failed.is_some() { "failed" } else { "ok" });
    if let Some(code) = failed {
        span.fail(code);
    }
    span.end();
}

/// Counts outcomes. The code of a call of which the target took nothing.
fn told<'o>(span: &mut Span, outcomes: &'o [Outcome]) -> Option<&'o str> {
    let (mut delivered, mut absorbed, mut rejected, mut repeated, mut code) = (0, 0, 0, 0, None);
    for outcome in outcomes {
        match outcome {
            Outcome::Delivered => delivered += 1,
            Outcome::Absorbed => absorbed += 1,
            Outcome::Rejected(reason) => {
                rejected += 1;
                code = code.or(Some(reason.code.as_str()));
            }
            Outcome::Retry(retry) => {
                repeated += 1;
                code = code.or(Some(retry.reason.code.as_str()));
            }
        }
    }
    for (key, n) in [
        ("tillstream.delivered", delivered),
        ("tillstream.absorbed", absorbed),
        ("tillstream.rejected", rejected),
        ("tillstream.repeated", repeated),
    ] {
        span.count(key, n);
    }
    if let Some(code) = code {
        span.text("tillstream.code", code);
    }
    code.filter(|_| repeated == outcomes.len())
}

//! `sandbox`: pretend targets to deliver to.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tillstream_connectors::sandbox::{Act, Faults, Sandbox, Settings, WEBHOOK_SECRET};

use super::output::{self, End};
use crate::ops::failure::Failure;

/// Serves pretend targets that fail when they are told to
#[derive(Debug, Args)]
#[command(
    long_about = "Serves pretend targets: /http/events, /http/state, /webhook, /klaviyo/api/…, /segment/v1/batch and /square/v2/inventory/changes/batch-create. They remember idempotency keys as the real ones do, refuse a key that comes with another body, and fail when they are told to, at the start or through PUT /sandbox/faults. GET /sandbox/requests, /sandbox/effects and /sandbox/counts show what came and what was applied. Everything is in memory. Ends with SIGTERM or Ctrl-C.",
    after_help = "Faults: serve, status_500, status_500_applied, status_503, status_429 [wait], status_429_date [wait], status_429_bare,\nslow [for], late [for] (applied at once, answered late), hang [for], lost_answer (applied, then cut), cut, partial, error_200\n\nExamples:\n  tillstream sandbox --listen 127.0.0.1:8080\n  tillstream sandbox --fault status_500=0.02 --fault 'late 15s=0.01' --fault lost_answer=0.01\n  curl -X PUT -d '{\"next\": [\"status_429_date 5s\"], \"refuse\": [\"guest-13\"]}' http://127.0.0.1:8080/sandbox/faults"
)]
pub(super) struct Arguments {
    /// Where to listen; port 0 takes a free one. The address is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// What happens to which share of the requests; may be given several times
    #[arg(long = "fault", value_name = "FAULT=RATE", value_parser = fault)]
    faults: Vec<(Act, f64)>,
    /// Items that hold this text are refused for good; may be given several times
    #[arg(long, value_name = "TEXT")]
    refuse: Vec<String>,
    /// Where the dice begin
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// How long idempotency keys are remembered, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    window: u64,
}

fn fault(text: &str) -> Result<(Act, f64), String> {
    let (act, rate) = text.rsplit_once('=').ok_or("write FAULT=RATE, as status_500=0.02")?;
    let rate: f64 = rate.parse().map_err(|_| "the rate is a number between 0 and 1")?;
    Ok((act.parse().map_err(|error| format!("`{act}` {error}"))?, rate))
}

pub(super) async fn run(arguments: Arguments) -> Result<(), End> {
    let Arguments { listen, faults, refuse, seed, window } = arguments;
    let faults = Faults { rates: faults.into_iter().collect(), refuse, seed, ..Faults::default() };
    faults.check().map_err(|why| Failure::new("usage.arguments", why))?;
    let settings = Settings { window: Duration::from_secs(window), faults, ..Settings::default() };
    let failed = |error: std::io::Error| Failure::new("sandbox.listen", format!("listen on {listen}: {error}"));
    let sandbox = Sandbox::start(listen, settings).await.map_err(failed)?;
    output::print(json!({"listening": sandbox.address().to_string(), "webhook_secret": WEBHOOK_SECRET}))?;
    crate::demo::terminated().await;
    output::print(json!(sandbox.counts()))?;
    Ok(())
}

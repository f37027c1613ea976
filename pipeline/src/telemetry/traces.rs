//! Spans of batches for an OpenTelemetry collector: one for each batch that capture stores, one for each call of a target.
//!
//! Off unless it is asked for; whoever handles a batch then pays one look at an atomic. A span holds numbers, names, codes and event
//! ids, never a row's value or key. What exports them is built with the feature `otlp`, and takes nothing from those who do not.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::config::settings::Telemetry;

#[cfg(feature = "otlp")]
mod otlp;

/// Which side of a span the other system is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stores something that others read later.
    Producer,
    /// Calls another system and waits for its answer.
    Client,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A number.
    Count(i64),
    /// A name, a code or an event id.
    Text(String),
}

/// A span under way. Only what exports it reads it.
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
#[derive(Debug)]
pub struct Span {
    name: &'static str,
    kind: Kind,
    began: SystemTime,
    attributes: Vec<(&'static str, Attribute)>,
    failed: Option<String>,
}

impl Span {
    /// Adds a number.
    pub fn count(&mut self, key: &'static str, n: impl TryInto<i64>) {
        self.attributes.push((key, Attribute::Count(n.try_into().unwrap_or(i64::MAX))));
    }

    /// Adds a name, a code or an event id.
    pub fn text(&mut self, key: &'static str, text: impl Into<String>) {
        self.attributes.push((key, Attribute::Text(text.into())));
    }

    /// It ends with this code rather than well.
    pub fn fail(&mut self, code: &str) {
        self.failed = Some(code.to_owned());
    }

    /// It ends now.
    pub fn end(self) {
        if let Some(traces) = TRACES.get() {
            traces.export.export(self, SystemTime::now());
        }
    }
}

/// Takes spans that have ended. Never waits: what there is no room for is dropped.
trait Export: Send + Sync {
    fn export(&self, span: Span, ended: SystemTime);
    /// Sends what is there, within this time. Blocks.
    fn finish(&self, within: Duration);
}

struct Traces {
    export: Box<dyn Export>,
    sample: f64,
}

static TRACES: OnceLock<Traces> = OnceLock::new();

/// A span that begins now; `None` where nobody wants it, or not this one.
#[inline]
#[must_use]
pub fn begin(name: &'static str, kind: Kind) -> Option<Span> {
    let traces = TRACES.get()?;
    let wanted = traces.sample >= 1.0 || rand::random::<f64>() < traces.sample;
    wanted.then(|| Span { name, kind, began: SystemTime::now(), attributes: Vec::with_capacity(8), failed: None })
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// This program was built without the feature.
    #[error("telemetry.otlp is set, and this program was built without the feature `otlp`")]
    NotBuilt,
    /// The address is none.
    #[error("telemetry.otlp: {0}")]
    Endpoint(String),
}

impl TraceError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TraceError::NotBuilt => "telemetry.otlp_not_built",
            TraceError::Endpoint(_) => "telemetry.otlp_endpoint",
        }
    }
}

/// Whether OpenTelemetry's own variables ask for spans.
fn asked_by_environment(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    let endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].iter().any(|name| variable(name).is_some());
    endpoint && !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none")
}

/// Exports spans from here on, where the settings or OpenTelemetry's own variables ask for it; later calls change nothing. Belongs to
/// the runtime that it is called on.
///
/// # Errors
/// The address is none, or the program was built without the feature. Where only the environment asks, the latter is a warning:
/// it may be set for all programs of a machine.
pub fn start(settings: &Telemetry, pipeline: &str) -> Result<(), TraceError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if settings.otlp.is_none() && !asked_by_environment(variable) {
        return Ok(());
    }
    match exporter(settings.otlp.as_deref(), pipeline) {
        Ok(export) => {
            let _ = TRACES.set(Traces { export, sample: settings.sample });
            Ok(())
        }
        Err(error @ TraceError::NotBuilt) if settings.otlp.is_none() => {
            tracing::warn!(
                code = error.code(),
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, and this program was built without the feature `otlp`"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Sends what has not been sent, for less than a second.
pub async fn finish() {
    if TRACES.get().is_some() {
        let finished = tokio::task::spawn_blocking(|| TRACES.get().map(|traces| traces.export.finish(Duration::from_millis(800))));
        let _ = finished.await;
    }
}

#[cfg(feature = "otlp")]
fn exporter(endpoint: Option<&str>, pipeline: &str) -> Result<Box<dyn Export>, TraceError> {
    Ok(Box::new(otlp::Collector::new(endpoint, pipeline)?))
}

#[cfg(not(feature = "otlp"))]
fn exporter(_: Option<&str>, _: &str) -> Result<Box<dyn Export>, TraceError> {
    Err(TraceError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_asks_by_its_standard_names() {
        let with = |set: &'static [(&str, &str)]| {
            asked_by_environment(move |name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(!with(&[]) && with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]));
        assert!(with(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/v1/traces"), ("OTEL_SDK_DISABLED", "false")]));
        assert!(!with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")]));
        assert!(!with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")]));
    }

    #[test]
    fn nobody_asked_so_nothing_begins() {
        assert!(begin("x", Kind::Client).is_none());
    }
}

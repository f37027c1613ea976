//! Spans to an OpenTelemetry collector, as protobuf over HTTP. The queue is the library's: bounded, and what does not fit is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};

use super::{Attribute, Export, Kind, Span, TraceError};

/// Spans that wait for the collector: what does not fit is dropped.
const QUEUE_MAX: usize = 2048;
/// How long spans gather before they are sent together.
const GATHER: Duration = Duration::from_secs(1);
/// What one request may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// What is read of an answer: it says how many spans were refused.
const ANSWER_MAX: usize = 64 << 10;

/// Where spans go.
pub(super) struct Collector {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Collector {
    /// A collector at this address, `/v1/traces` being added to it; without one, as OpenTelemetry's own variables say.
    pub(super) fn new(endpoint: Option<&str>, pipeline: &str) -> Result<Collector, TraceError> {
        let client = reqwest::Client::builder()
            .timeout(REQUEST_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| TraceError::Endpoint(error.to_string()))?;
        let client = Client { client, runtime: tokio::runtime::Handle::current(), away: Arc::default() };
        let mut builder = opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(client);
        if let Some(endpoint) = endpoint {
            let url = reqwest::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let url = url.ok_or_else(|| TraceError::Endpoint("no http or https URL, as http://127.0.0.1:4318".to_owned()))?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err(TraceError::Endpoint("credentials belong into OTEL_EXPORTER_OTLP_HEADERS".to_owned()));
            }
            builder = builder.with_endpoint(format!("{}/v1/traces", url.as_str().trim_end_matches('/')));
        }
        let exporter = builder.build().map_err(|error| TraceError::Endpoint(error.to_string()))?;
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE_MAX).with_scheduled_delay(GATHER).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        // Its name in the environment wins.
        let name = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "tillstream".to_owned());
        let resource = Resource::builder()
            .with_service_name(name)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("tillstream.pipeline", pipeline.to_owned()),
            ])
            .build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_sampler(Sampler::AlwaysOn).with_resource(resource).build();
        Ok(Collector { tracer: provider.tracer("tillstream"), provider })
    }
}

impl Export for Collector {
    fn export(&self, span: Span, ended: SystemTime) {
        let kind = match span.kind {
            Kind::Producer => SpanKind::Producer,
            Kind::Client => SpanKind::Client,
        };
        let mut attributes: Vec<KeyValue> = span
            .attributes
            .into_iter()
            .map(|(key, value)| match value {
                Attribute::Count(n) => KeyValue::new(key, n),
                Attribute::Text(text) => KeyValue::new(key, text),
            })
            .collect();
        attributes.extend(span.failed.iter().map(|code| KeyValue::new("error.type", code.clone())));
        let builder = SpanBuilder::from_name(span.name).with_kind(kind).with_start_time(span.began).with_attributes(attributes);
        // Each batch is a trace of its own.
        let mut exported = builder.start_with_context(&self.tracer, &Context::new());
        if let Some(code) = span.failed {
            exported.set_status(Status::error(code));
        }
        exported.end_with_timestamp(ended);
    }

    fn finish(&self, within: Duration) {
        // Whoever waits is told by the warning of the request that failed.
        let _ = self.provider.shutdown_with_timeout(within);
    }
}

/// The requests, on our runtime: the library asks from a thread of its own.
#[derive(Clone, Debug)]
struct Client {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
    away: Arc<AtomicBool>,
}

impl Client {
    /// Says once that the collector is away, and once that it is back.
    fn tell(&self, failed: Option<&str>) {
        match (failed, self.away.swap(failed.is_some(), Relaxed)) {
            (Some(why), false) => {
                tracing::warn!(
                    code = "telemetry.otlp_away",
                    why,
                    "the collector takes no spans: they are dropped, and nothing waits for it"
                );
            }
            (None, true) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
    let (parts, body) = request.into_parts();
    let mut answer = client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body).send().await?;
    let mut read = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if read.len() + chunk.len() > ANSWER_MAX {
            read.clear();
            break;
        }
        read.extend_from_slice(&chunk);
    }
    let mut response = Response::new(Bytes::from(read));
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.runtime.spawn(send(self.client.clone(), request)).await?;
        match sent {
            Ok(response) => {
                let status = response.status();
                let refused = (!status.is_success()).then(|| format!("it answers {status}"));
                self.tell(refused.as_deref());
                Ok(response)
            }
            Err(error) => {
                // Without the address: it may hold a password.
                let error = error.without_url();
                let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                self.tell(Some(&format!("{error}{cause}")));
                Err(Box::new(error))
            }
        }
    }
}

//! OpenTelemetry traces: every span of the daemon also goes to a collector, over OTLP (gRPC).
//!
//! ```text
//! spans ─▶ layer ─▶ Queue ─bounded, never waits─▶ Exporter, a task ─▶ collector
//!            ▲
//! traceparent of the RPC (W3C Trace Context): the kubelet's span is the parent, its sampling is followed
//! ```
//!
//! Without `[tracing]` nothing of this is made. A collector that is slow or away costs spans, never an RPC's time: what
//! does not fit into the queue is dropped.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::{Layer, Registry};

use crate::config::Tracing;

/// Spans that wait for the collector at most: some 2 MB.
const QUEUE: usize = 4096;
/// Spans in one message.
const BATCH: usize = 512;
/// How long spans wait for more of them.
const PERIOD: Duration = Duration::from_millis(500);
/// Longest wait for the collector's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last spans may take to leave when the daemon ends.
const LAST: Duration = Duration::from_secs(1);
/// Crates whose spans are told; those of libraries are about themselves.
const CRATES: [&str; 7] = ["meridiand", "cri", "pod", "image", "network", "streaming", "migration"];

/// Makes spans of OpenTelemetry out of the daemon's own.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The layer for the subscriber, and what is to be started once there are threads.
pub fn traces(config: &Tracing) -> (SpanLayer, Exporter) {
    let (sender, spans) = mpsc::channel(QUEUE);
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampling)));
    let provider =
        SdkTracerProvider::builder().with_sampler(sampler).with_span_processor(Queue(sender)).build();
    // What explains a span: events from warn on.
    let wanted = Targets::new()
        .with_targets(CRATES.map(|name| (name, LevelFilter::DEBUG)))
        .and(filter_fn(|it| it.is_span() || *it.level() <= LevelFilter::WARN));
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("meridiand"))
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_filter(wanted);
    (layer.boxed(), Exporter { endpoint: config.endpoint.clone(), spans, batch: Vec::new() })
}

/// Makes the span of `headers`' sender, if they name one, the parent of `span`, which must be new.
pub fn adopt(span: &tracing::Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Without a layer for traces there is nobody who would want to know.
    let _ = span.set_parent(parent);
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Where spans that ended wait.
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            // Full: the collector is away, and what it misses is said by the exporter.
            let _ = self.0.try_send(named(span));
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Named as collectors group spans: after the RPC or the phase.
fn named(mut span: SpanData) -> SpanData {
    let value = |key: &str| span.attributes.iter().find(|a| a.key.as_str() == key).map(|a| a.value.clone());
    if let Some(Value::String(rpc)) = value("rpc") {
        span.name = rpc.as_str().to_owned().into();
        span.span_kind = SpanKind::Server;
    } else if let Some(Value::String(phase)) = value("phase") {
        span.name = phase.as_str().to_owned().into();
    }
    span
}

/// Sends spans to the collector.
#[derive(Debug)]
pub struct Exporter {
    endpoint: String,
    spans: mpsc::Receiver<SpanData>,
    /// What is sent next.
    batch: Vec<SpanData>,
}

/// An exporter at work.
#[derive(Debug)]
pub struct Exporting {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Exporter {
    /// Goes to work. Must be called inside a tokio runtime; connects when there is something to send.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub fn start(self) -> Result<Exporting, ExporterBuildError> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(&self.endpoint);
        let mut collector = builder.with_timeout(PATIENCE).build()?;
        collector.set_resource(&resource());
        let (stop, stopped) = oneshot::channel();
        Ok(Exporting { stop, task: tokio::spawn(self.run(collector, stopped)) })
    }

    async fn run(mut self, collector: SpanExporter, mut stopped: oneshot::Receiver<()>) {
        let mut lost = 0;
        let mut last = false;
        while !last {
            tokio::select! {
                () = self.fill() => {}
                _ = &mut stopped => last = true,
            }
            self.top_up();
            let batch = std::mem::take(&mut self.batch);
            self.send(&collector, batch, &mut lost).await;
        }
    }

    /// Until there is something to send, and a moment more unless that fills a message. Loses nothing when dropped.
    async fn fill(&mut self) {
        self.spans.recv_many(&mut self.batch, BATCH).await;
        if self.batch.len() < BATCH {
            sleep(PERIOD).await;
        }
    }

    /// Takes what has come meanwhile.
    fn top_up(&mut self) {
        while self.batch.len() < BATCH
            && let Ok(span) = self.spans.try_recv()
        {
            self.batch.push(span);
        }
    }

    /// Tells once that spans are lost, and once that they are no longer.
    async fn send(&self, collector: &SpanExporter, batch: Vec<SpanData>, lost: &mut usize) {
        if batch.is_empty() {
            return;
        }
        let size = batch.len();
        match collector.export(batch).await {
            Ok(()) if *lost > 0 => {
                tracing::info!(lost = std::mem::take(lost), "the collector takes spans again");
            }
            Ok(()) => {}
            Err(error) => {
                if *lost == 0 {
                    tracing::warn!(endpoint = self.endpoint, %error, "the collector takes no spans: they are lost");
                }
                *lost += size;
            }
        }
    }
}

impl Exporting {
    /// Sends what waits, for a moment at most.
    pub async fn end(self) {
        let _ = self.stop.send(());
        let _ = timeout(LAST, self.task).await;
    }
}

/// Who we are to the collector (OpenTelemetry semantic conventions for resources).
fn resource() -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder()
        .with_service_name("meridiand")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("host.name", host))
        .build()
}

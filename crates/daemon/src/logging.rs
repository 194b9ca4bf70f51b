//! Log lines to standard error, where the service manager collects them.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::flags::LogFormat;
use crate::telemetry::SpanLayer;

/// Changes what is logged while the daemon runs.
#[derive(Debug, Clone)]
pub struct Logging(Handle<Targets, Registry>);

/// Starts logging, and telling spans to `traces`. Called once.
pub fn start(targets: Option<Targets>, format: LogFormat, traces: Option<SpanLayer>) -> Logging {
    let (filter, handle) = reload::Layer::new(targets.unwrap_or_else(info));
    let stderr = fmt::layer().with_writer(std::io::stderr).with_target(true);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => stderr.with_ansi(rustix::termios::isatty(std::io::stderr())).boxed(),
        LogFormat::Json => stderr.json().flatten_event(true).boxed(),
    };
    let mut layers: Vec<SpanLayer> = vec![layer.with_filter(filter).boxed()];
    layers.extend(traces);
    tracing_subscriber::registry().with(layers).init();
    Logging(handle)
}

impl Logging {
    /// Logs what `targets` say from now on; nothing said is `info`.
    pub fn set(&self, targets: Option<Targets>) {
        let set = self.0.reload(targets.unwrap_or_else(info));
        set.expect(
            "the subscriber lives as long as the process, and no log line is written while it is changed",
        );
    }
}

fn info() -> Targets {
    Targets::new().with_default(LevelFilter::INFO)
}

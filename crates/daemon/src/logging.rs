//! Log lines to standard error, where the service manager collects them.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::flags::LogFormat;

/// Starts logging. Called once.
pub fn start(targets: Targets, format: LogFormat) {
    let stderr = fmt::layer().with_writer(std::io::stderr).with_target(true);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => stderr.with_ansi(rustix::termios::isatty(std::io::stderr())).boxed(),
        LogFormat::Json => stderr.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
}

//! `meridiand`: one per node. Reads the configuration, tries what the node can do, opens images, network and pods,
//! and serves CRI and `meridian.v1` on one unix socket.
//!
//! ```text
//! flags, config ─▶ claims (root, run) ─▶ probe ─▶ images, network, pods (recovery) ─▶ socket ─▶ READY
//! SIGHUP  ─▶ configuration read again: log level and mirrors at once, what waits for a restart is named
//! SIGTERM ─▶ no new calls ─▶ those under way end, within 30 s ─▶ exit; pods run on
//! ```
//!
//! Everything before the socket either works or ends the daemon with one line that says what to do; nothing after it
//! does. The probe forks, so it runs before there are threads. This crate must not: hold state of pods, decide what
//! a pod may do, or start anything that the end of the daemon would stop.

mod config;
mod daemon;
mod deadline;
mod doctor;
mod exclusive;
mod flags;
mod logging;
mod memory;
mod meridian;
mod metrics;
mod migrate;
mod node;
mod notify;
mod probe;
mod reload;
mod server;
mod shutdown;
mod socket;
mod span;
mod telemetry;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use config::{Config, EXAMPLE};
use daemon::RunError;
use flags::{Command, ConfigCommand};

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    if let Some(Command::Config(command)) = &flags.command {
        return configuration(command);
    }
    let config = Config::load(flags.config.as_deref());
    let traces = config.as_ref().ok().and_then(|config| config.tracing.as_ref()).map(telemetry::traces);
    let (layer, exporter) = traces.unzip();
    let targets = flags.log.clone().or_else(|| config.as_ref().ok()?.log_targets());
    let logging = logging::start(targets, flags.log_format, layer);
    match config.map_err(RunError::from).and_then(|config| daemon::run(&flags, config, logging, exporter)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// `meridiand config ...`: answers on standard output, complaints on standard error.
fn configuration(command: &ConfigCommand) -> ExitCode {
    let answer = match command {
        ConfigCommand::Default => Ok(EXAMPLE.to_owned()),
        ConfigCommand::Check { file } => {
            Config::load(Some(file)).map(|_| format!("{}: the daemon would accept this\n", file.display()))
        }
    };
    match answer {
        // A reader that went away has what it wanted.
        Ok(text) => drop(std::io::stdout().write_all(text.as_bytes())),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "meridiand: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// An error with its sources, on one line.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

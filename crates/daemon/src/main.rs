//! `meridiand`: one per node. Reads the configuration, tries what the node can do, opens images, network and pods,
//! and serves CRI and `meridian.v1` on one unix socket.
//!
//! ```text
//! flags, config ─▶ claims (root, run) ─▶ probe ─▶ images, network, pods (recovery) ─▶ socket ─▶ READY
//! SIGTERM ─▶ no new calls ─▶ those under way end, within 30 s ─▶ exit; pods run on
//! ```
//!
//! Everything before the socket either works or ends the daemon with one line that says what to do; nothing after it
//! does. The probe forks, so it runs before there are threads. This crate must not: hold state of pods, decide what
//! a pod may do, or start anything that the end of the daemon would stop.

mod config;
mod daemon;
mod deadline;
mod exclusive;
mod flags;
mod logging;
mod memory;
mod meridian;
mod migrate;
mod node;
mod notify;
mod probe;
mod server;
mod shutdown;
mod socket;
mod span;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    logging::start(flags.log.clone(), flags.log_format);
    match daemon::run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its sources, on one line.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::Targets;

/// The Kubernetes container runtime whose pods can move.
#[derive(Debug, Parser)]
#[command(name = "meridiand", version)]
pub struct Flags {
    /// Configuration file (TOML). It may be absent at the default place, and every key in it is optional
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// State: images, containers' file systems, records. One daemon at a time
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meridian")]
    pub root: PathBuf,

    /// Pins, sockets and files of running pods; gone after a reboot. One daemon at a time
    #[arg(long, value_name = "DIR", default_value = "/run/meridian")]
    pub run: PathBuf,

    /// Socket for CRI and the meridian command [default: meridian.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// error, warn, info, debug or trace; per crate as in "info,pod=debug"
    ///
    /// Stronger than the configuration, which may change it while the daemon runs [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<Targets>,

    /// How log lines are written to standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Where the shim is; stronger than the configuration
    #[arg(long, value_name = "FILE", env = "MERIDIAN_SHIM", hide = true)]
    pub shim: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done instead of running the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Work with configuration files; needs no daemon
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `meridiand config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its default and what it means
    Default,
    /// Tell whether the daemon would accept a file
    Check {
        /// Configuration file (TOML)
        file: PathBuf,
    },
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

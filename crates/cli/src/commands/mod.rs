//! The subcommands, one file each.

mod attach;
mod certs;
mod checkpoint;
mod completion;
mod doctor;
mod exec;
mod image;
mod images;
mod inspect;
mod logs;
mod migrate;
mod ns;
mod pods;
mod port_forward;
mod ps;
mod pull;
mod restore;
mod rm;
mod run;
mod stop;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{client::Node, error::Error, output::Format};

/// Meridian on this node: pods that can move.
///
/// Pods and containers are named by id, by the start of an id, by name, or by NAMESPACE/POD and POD/CONTAINER.
#[derive(Debug, Parser)]
#[command(name = "meridian", version, max_term_width = 100, propagate_version = true)]
pub struct Meridian {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// What all commands share.
#[derive(Debug, Args)]
pub struct Context {
    /// Socket of the daemon
    #[arg(
        long,
        global = true,
        env = "MERIDIAN_SOCKET",
        default_value = "/run/meridian/meridian.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// How to print the result
    #[arg(long, short, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
}

impl Context {
    pub async fn connect(&self) -> Result<Node, Error> {
        Node::connect(&self.socket).await
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Pods(pods::Pods),
    Ps(ps::Ps),
    Run(Box<run::Run>),
    Exec(exec::Exec),
    Attach(attach::Attach),
    PortForward(port_forward::PortForward),
    Logs(logs::Logs),
    Stop(stop::Stop),
    Rm(rm::Rm),
    Images(images::Images),
    Pull(pull::Pull),
    Image(image::Image),
    Inspect(inspect::Inspect),
    Ns(ns::Ns),
    Checkpoint(checkpoint::Checkpoint),
    Restore(restore::Restore),
    Migrate(migrate::Migrate),
    Certs(certs::Certs),
    Doctor(doctor::Doctor),
    Completion(completion::Completion),
}

impl Meridian {
    pub async fn run(self) -> Result<ExitCode, Error> {
        let cx = &self.context;
        match self.command {
            Command::Pods(command) => command.run(cx).await?,
            Command::Ps(command) => command.run(cx).await?,
            Command::Run(command) => command.run(cx).await?,
            Command::Exec(command) => return command.run(cx).await,
            Command::Attach(command) => return command.run(cx).await,
            Command::PortForward(command) => match command.run(cx).await? {},
            Command::Logs(command) => command.run(cx).await?,
            Command::Stop(command) => command.run(cx).await?,
            Command::Rm(command) => command.run(cx).await?,
            Command::Images(command) => command.run(cx).await?,
            Command::Pull(command) => command.run(cx).await?,
            Command::Image(command) => command.run(cx).await?,
            Command::Inspect(command) => command.run(cx).await?,
            Command::Ns(command) => command.run(cx).await?,
            Command::Checkpoint(command) => command.run(cx).await?,
            Command::Restore(command) => command.run(cx).await?,
            Command::Migrate(command) => command.run(cx).await?,
            Command::Certs(command) => command.run(cx)?,
            Command::Doctor(command) => command.run(cx).await?,
            Command::Completion(command) => command.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Meridian::command().debug_assert();
    }
}

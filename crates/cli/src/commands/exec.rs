use std::{io, process::ExitCode, time::Duration};

use api::cri::v1::{ExecRequest, ExecSyncRequest};
use clap::Args;

use super::Context;
use crate::{
    duration,
    error::Error,
    find, output,
    stream::session::{self, Ours},
};

/// Run a command in a container and print what it wrote
///
/// Without --stdin and --tty the command has no standard input, and each of its two outputs is shown up to 16 MiB, when
/// it has ended. With either it is joined to this terminal or these pipes, and ends with this client. The exit code is
/// the command's own, or 125 where it could not be run.
#[derive(Debug, Args)]
pub struct Exec {
    /// Kill the command after this long: 500ms, 30s, 2m
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", conflicts_with_all = ["stdin", "tty"])]
    timeout: Option<Duration>,
    /// Send standard input to the command
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal, and join this one to it
    #[arg(long, short)]
    tty: bool,
    /// The container
    container: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, cx: &Context) -> Result<ExitCode, Error> {
        let name = self.container.clone();
        let failed = |source| Error::Exec { container: name, source: Box::new(source) };
        if self.stdin || self.tty {
            return self.joined(cx).await.map_err(failed);
        }
        let (code, stdout, stderr) = self.sync(cx).await.map_err(failed)?;
        output::bytes(&mut io::stdout().lock(), &stdout)?;
        output::bytes(&mut io::stderr().lock(), &stderr)?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
    }

    async fn joined(self, cx: &Context) -> Result<ExitCode, Error> {
        let mut node = cx.connect().await?;
        let container_id = find::container(&node, &self.container).await?.id;
        let Self { stdin, tty, command: cmd, .. } = self;
        let request = ExecRequest { container_id, cmd, tty, stdin, stdout: true, stderr: !tty };
        let url = node.runtime.exec(request).await.map_err(Error::refused("execute"))?.into_inner().url;
        Ok(session::run(&url, Ours { stdin, tty, can_leave: false }).await?.code().into())
    }

    async fn sync(self, cx: &Context) -> Result<(i32, Vec<u8>, Vec<u8>), Error> {
        let mut node = cx.connect().await?;
        let container = find::container(&node, &self.container).await?;
        let request = ExecSyncRequest {
            container_id: container.id,
            cmd: self.command,
            timeout: self.timeout.map_or(0, |t| i64::try_from(t.as_secs().max(1)).unwrap_or(i64::MAX)),
        };
        let reply = node.runtime.exec_sync(request).await.map_err(Error::refused("execute"))?.into_inner();
        Ok((reply.exit_code, reply.stdout, reply.stderr))
    }
}

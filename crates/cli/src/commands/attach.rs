use std::process::ExitCode;

use api::cri::v1::{AttachRequest, ContainerStatusRequest};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    find,
    stream::session::{self, End, Ours},
};

/// Join a container's own input and outputs
///
/// Shows what it says from now on. With --stdin what is typed reaches it. Ends with the container and its exit code, by
/// ^C, or, with --tty, by ^P ^Q, which leave the container running.
#[derive(Debug, Args)]
pub struct Attach {
    /// Send standard input to the container, which was made to have one
    #[arg(long, short = 'i')]
    stdin: bool,
    /// The container has a terminal: join this one to it
    #[arg(long, short)]
    tty: bool,
    /// The container
    container: String,
}

impl Attach {
    pub async fn run(self, cx: &Context) -> Result<ExitCode, Error> {
        let Self { stdin, tty, container } = self;
        let mut node = cx.connect().await?;
        let container_id = find::container(&node, &container).await?.id;
        let attach = Error::refused(format!("attach to {container}"));
        let request =
            AttachRequest { container_id: container_id.clone(), stdin, tty, stdout: true, stderr: !tty };
        let url = node.runtime.attach(request).await.map_err(attach)?.into_inner().url;
        let end = session::run(&url, Ours { stdin, tty, can_leave: true }).await?;
        if end != End::Exit(0) {
            return Ok(end.code().into());
        }
        let request = ContainerStatusRequest { container_id, verbose: false };
        let look = Error::refused(format!("look at {container}"));
        let status = node.runtime.container_status(request).await.map_err(look)?.into_inner().status;
        Ok(End::Exit(status.map_or(0, |status| status.exit_code)).code().into())
    }
}

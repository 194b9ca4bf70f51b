//! `Attach`.

use api::cri::v1::{AttachRequest, AttachResponse};
use pod::Pods;
use streaming::{Attach, Streaming, Streams};

use crate::{error::Failure, exec::check_streams, find};

/// Gives the URL at which the container's own streams are to be had.
pub(crate) fn attach(
    pods: &Pods,
    streaming: &Streaming,
    request: &AttachRequest,
) -> Result<AttachResponse, Failure> {
    let AttachRequest { stdin, stdout, stderr, tty, .. } = *request;
    let streams = Streams { stdin, stdout, stderr, tty };
    check_streams(streams)?;
    let container = find::running_container(pods, &request.container_id)?;
    Ok(AttachResponse { url: streaming.attach(Attach { container, streams })? })
}

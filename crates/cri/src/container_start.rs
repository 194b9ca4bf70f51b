//! `StartContainer`.

use api::cri::v1::{StartContainerRequest, StartContainerResponse};
use pod::Pods;

use crate::{error::Failure, find};

/// Lets a created container run.
pub(crate) async fn start(
    pods: &Pods,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Failure> {
    let id = find::container(pods, &request.container_id)?;
    pods.start_container(&id).await?;
    Ok(StartContainerResponse {})
}

//! `RemoveContainer`.

use api::cri::v1::{RemoveContainerRequest, RemoveContainerResponse};
use pod::Pods;

use crate::{error::Failure, find};

/// Removes a container, running or not; one that is not there is removed.
pub(crate) async fn remove(
    pods: &Pods,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Failure> {
    if let Some(id) = find::container_if_there(pods, &request.container_id)? {
        pods.remove_container(&id).await?;
    }
    Ok(RemoveContainerResponse {})
}

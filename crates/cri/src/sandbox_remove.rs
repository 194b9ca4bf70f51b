//! `RemovePodSandbox`.

use api::cri::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};
use pod::Pods;

use crate::{error::Failure, find};

/// Removes a pod with its containers; one that is not there is removed.
pub(crate) async fn remove(
    pods: &Pods,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Failure> {
    if let Some(id) = find::sandbox_if_there(pods, &request.pod_sandbox_id)? {
        pods.remove_sandbox(&id).await?;
    }
    Ok(RemovePodSandboxResponse {})
}

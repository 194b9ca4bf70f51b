//! `StopPodSandbox`.

use api::cri::v1::{StopPodSandboxRequest, StopPodSandboxResponse};
use pod::Pods;

use crate::{error::Failure, find};

/// Ends a pod; one that is not there has ended.
pub(crate) async fn stop(
    pods: &Pods,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Failure> {
    if let Some(id) = find::sandbox_if_there(pods, &request.pod_sandbox_id)? {
        pods.stop_sandbox(&id).await?;
    }
    Ok(StopPodSandboxResponse {})
}

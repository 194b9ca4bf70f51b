//! `ReopenContainerLog`.

use api::cri::v1::{ReopenContainerLogRequest, ReopenContainerLogResponse};
use pod::Pods;

use crate::{error::Failure, find};

/// Starts a new log file after the kubelet renamed the old one.
pub(crate) async fn reopen_log(
    pods: &Pods,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Failure> {
    let id = find::container(pods, &request.container_id)?;
    pods.reopen_log(&id).await?;
    Ok(ReopenContainerLogResponse {})
}

//! Check: what keeps a pod from being captured.

use api::meridian::v1::{CheckRequest, CheckResponse, Obstacle};
use pod::Pods;
use tonic::Status;

use super::namespaces::find;

pub async fn check(pods: &Pods, request: &CheckRequest) -> Result<CheckResponse, Status> {
    let id = find(pods, &request.pod_id)?;
    let found = pods.check(&id).await.map_err(cri::error::status)?;
    let obstacles = found.into_iter().map(|pod::Obstacle { container, process, what, cure }| {
        let (pid, process) = process.unwrap_or_default();
        Obstacle { container, pid, process, what, cure }
    });
    Ok(CheckResponse { obstacles: obstacles.collect() })
}

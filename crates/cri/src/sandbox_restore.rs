//! `RestorePod` (KEP-5823).

use std::{path::Path, time::Duration};

use api::cri::v1::{RestorePodRequest, RestorePodResponse, RestoredContainer};
use pod::Pods;

use crate::{check::checkpoint, error::Failure, sandbox_checkpoint::required_deadline, sandbox_run::handler};

/// Makes a pod of a checkpoint, its containers Created.
pub(crate) async fn restore(
    pods: &Pods,
    request: RestorePodRequest,
    limit: Option<Duration>,
) -> Result<RestorePodResponse, Failure> {
    handler(&request.runtime_handler)?;
    checkpoint::restore(&request)?;
    let limit = required_deadline(limit)?;
    let config = request.config.unwrap_or_default();
    let path = Path::new(&request.checkpoint_path);
    let (pod, containers) = pods.restore_pod(path, config, request.container_configs, limit).await?;
    let restored = containers.into_iter();
    Ok(RestorePodResponse {
        pod_sandbox_id: pod.to_string(),
        restored_containers: restored
            .map(|(name, id)| RestoredContainer { name, container_id: id.to_string() })
            .collect(),
    })
}

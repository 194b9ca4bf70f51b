//! `CheckpointPod` (KEP-5823).

use std::{path::Path, time::Duration};

use api::cri::v1::{CheckpointPodRequest, CheckpointPodResponse};
use pod::Pods;

use crate::{
    check::{Field, Invalid, checkpoint, distinct},
    deadline,
    error::Failure,
    find,
};

/// Writes a running pod to a directory; the pod runs on, whatever comes of it.
pub(crate) async fn checkpoint(
    pods: &Pods,
    request: CheckpointPodRequest,
    limit: Option<Duration>,
) -> Result<CheckpointPodResponse, Failure> {
    checkpoint::pod(&request)?;
    let limit = required_deadline(limit)?;
    let pod = find::sandbox(pods, &request.pod_sandbox_id)?;
    let field = Field::of("container_ids");
    let find = |(i, given): (usize, &String)| {
        pods.find_container(given).map_err(|error| Failure::from(error).at(&field.index(i)))
    };
    let ids = request.container_ids.iter().enumerate().map(find).collect::<Result<Vec<_>, _>>()?;
    // Two prefixes may mean one container.
    distinct(field, ids.iter().map(|id| id.as_str()), "given once")?;
    let written = pods.checkpoint_pod(&pod, &ids, Path::new(&request.output_path), limit).await;
    written.map_err(|error| Failure::of_checkpoint(error, &Field::of("output_path")))?;
    Ok(CheckpointPodResponse {})
}

/// The proto's rule: a frozen pod must be given a time by which it runs again.
pub(crate) fn required_deadline(limit: Option<Duration>) -> Result<Duration, Invalid> {
    let missing = || Field::of("deadline").missing("set by the caller on the call (header grpc-timeout)");
    limit.map(deadline::for_work).ok_or_else(missing)
}

//! `CheckpointContainer` (KEP-2008).

use std::{path::Path, time::Duration};

use api::cri::v1::{CheckpointContainerRequest, CheckpointContainerResponse};
use pod::Pods;

use crate::{
    check::{Field, checkpoint},
    deadline,
    error::Failure,
    find,
};

/// Time limit where neither the request nor its caller sets one.
const LIMIT: Duration = Duration::from_secs(120);

/// Writes a running container to a tar archive; the container runs on.
pub(crate) async fn checkpoint(
    pods: &Pods,
    request: CheckpointContainerRequest,
    limit: Option<Duration>,
) -> Result<CheckpointContainerResponse, Failure> {
    checkpoint::container(&request)?;
    let id = find::container(pods, &request.container_id)?;
    let asked = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.unsigned_abs()));
    let limit = [asked, limit.map(deadline::for_work)].into_iter().flatten().min().unwrap_or(LIMIT);
    let written = pods.checkpoint_container(&id, Path::new(&request.location), limit).await;
    written.map_err(|error| Failure::of_checkpoint(error, &Field::of("location")))?;
    Ok(CheckpointContainerResponse {})
}

//! `StopContainer`.

use std::time::Duration;

use api::cri::v1::{StopContainerRequest, StopContainerResponse};
use pod::Pods;

use crate::{
    check::{Field, range},
    error::Failure,
    find,
};

/// Longest grace period, in seconds: pods may ask for any, nobody waits for a century.
const GRACE_MAX: i64 = i32::MAX as i64;

/// Ends a container; one that is not there has ended.
pub(crate) async fn stop(
    pods: &Pods,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Failure> {
    range(Field::of("timeout"), request.timeout, 0, GRACE_MAX)?;
    if let Some(id) = find::container_if_there(pods, &request.container_id)? {
        pods.stop_container(&id, Duration::from_secs(request.timeout.unsigned_abs())).await?;
    }
    Ok(StopContainerResponse {})
}

//! `CreateContainer`.

use api::cri::v1::{CreateContainerRequest, CreateContainerResponse};
use pod::Pods;

use crate::{
    check::{Field, container},
    error::Failure,
    find,
};

/// Makes a container; a repeated request returns the container that is there.
///
/// The pod's configuration that comes with the request is checked like the one it was made with, which is the one that
/// counts.
pub(crate) async fn create(
    pods: &Pods,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Failure> {
    container::create(&request)?;
    let pod = find::sandbox(pods, &request.pod_sandbox_id)?;
    let config = request.config.unwrap_or_default();
    container::within(Field::of("config"), &config, &pods.sandbox(&pod)?.config)?;
    let id = pods.create_container(&pod, config).await?;
    Ok(CreateContainerResponse { container_id: id.to_string() })
}

//! `UpdateContainerResources`.

use api::cri::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use pod::Pods;

use crate::{
    check::{Field, resources},
    error::Failure,
    find,
};

/// Sets limits of a container, all or none of them.
pub(crate) async fn update(
    pods: &Pods,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Failure> {
    let id = find::container(pods, &request.container_id)?;
    let field = Field::of("linux");
    let Some(limits) = request.linux else { return Err(field.missing("the limits to set").into()) };
    resources::linux(field, &limits)?;
    pods.update_container(&id, limits).await?;
    Ok(UpdateContainerResourcesResponse {})
}

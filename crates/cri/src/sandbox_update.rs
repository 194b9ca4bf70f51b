//! `UpdatePodSandboxResources`.

use api::cri::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use pod::{PodLimits, Pods};

use crate::{
    check::{Field, resources},
    error::Failure,
    find,
};

/// Sets or, where the kubelet has set them by itself on a cgroup above ours, records limits of the pod as a whole.
pub(crate) async fn update(
    pods: &Pods,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Failure> {
    let id = find::sandbox(pods, &request.pod_sandbox_id)?;
    for (name, limits) in [("overhead", &request.overhead), ("resources", &request.resources)] {
        if let Some(limits) = limits {
            resources::linux(Field::of(name), limits)?;
        }
    }
    let limits = PodLimits { overhead: request.overhead, resources: request.resources };
    pods.update_sandbox(&id, limits).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}

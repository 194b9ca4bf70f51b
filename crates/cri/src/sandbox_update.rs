//! `UpdatePodSandboxResources`.

use api::cri::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use pod::Pods;

use crate::{
    check::{Field, resources},
    error::Failure,
    find,
};

/// The kubelet has already set the pod's limits, on a cgroup of its own above ours, and tells runtimes whose pods are
/// virtual machines. There is nothing left to do but to refuse nonsense.
pub(crate) fn update(
    pods: &Pods,
    request: &UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Failure> {
    find::sandbox(pods, &request.pod_sandbox_id)?;
    for (name, limits) in [("overhead", &request.overhead), ("resources", &request.resources)] {
        if let Some(limits) = limits {
            resources::linux(Field::of(name), limits)?;
        }
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}

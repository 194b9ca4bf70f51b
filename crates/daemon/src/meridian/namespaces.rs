//! Namespaces: which ones a pod's containers are in, and what holds them.

use api::id::PodId;
use api::meridian::v1::{NamespacesRequest, NamespacesResponse};
use pod::{LookupError, Pods};
use tonic::Status;

pub fn namespaces(pods: &Pods, request: &NamespacesRequest) -> Result<NamespacesResponse, Status> {
    let id = find(pods, &request.pod_id)?;
    pods.namespaces(&id).map_err(cri::error::status)
}

/// The pod that an id, the beginning of one, or a name means; people type all three.
pub fn find(pods: &Pods, text: &str) -> Result<PodId, Status> {
    match pods.find_sandbox(text) {
        Err(LookupError::NotFound { .. }) => {}
        found => return found.map_err(cri::error::status),
    }
    let named = |pod: &&std::sync::Arc<pod::Sandbox>| {
        pod.config.metadata.as_ref().is_some_and(|metadata| metadata.name == text)
    };
    match pods.sandboxes().iter().filter(named).collect::<Vec<_>>()[..] {
        [] => Err(Status::not_found(format!(
            "pod_id: no pod has the id, a unique beginning of it, or the name {text:?}"
        ))),
        [pod] => Ok(pod.id.clone()),
        _ => Err(Status::invalid_argument(format!("pod_id: several pods are named {text:?}; give the id"))),
    }
}

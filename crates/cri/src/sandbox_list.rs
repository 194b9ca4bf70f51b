//! `ListPodSandbox`.

use api::cri::v1::{ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxState};
use pod::Pods;

use crate::{error::Failure, filter::Filter};

/// Pods that pass the filter.
pub(crate) fn list(pods: &Pods, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Failure> {
    let filter = Filter::sandboxes(request.filter)?;
    let passes = |s: &pod::Sandbox| filter.passes(s.id.as_str(), "", state(s.state), &s.config.labels);
    let items = pods.sandboxes().iter().filter(|s| passes(s)).map(|s| sandbox(s)).collect();
    Ok(ListPodSandboxResponse { items })
}

fn sandbox(s: &pod::Sandbox) -> PodSandbox {
    PodSandbox {
        id: s.id.to_string(),
        metadata: s.config.metadata.clone(),
        state: state(s.state).into(),
        created_at: s.created_at,
        labels: s.config.labels.clone(),
        annotations: s.config.annotations.clone(),
        runtime_handler: s.handler.clone(),
    }
}

/// A state as CRI names it.
pub(crate) fn state(state: pod::SandboxState) -> PodSandboxState {
    match state {
        pod::SandboxState::Ready => PodSandboxState::SandboxReady,
        pod::SandboxState::NotReady => PodSandboxState::SandboxNotready,
    }
}

//! `PodSandboxStats` and `ListPodSandboxStats`.

use api::cri::v1::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsRequest, PodSandboxStatsResponse,
};
use pod::Pods;

use crate::{error::Failure, filter::Filter, find, sandbox_list::state};

/// Usage of one pod.
pub(crate) async fn stats(
    pods: &Pods,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Failure> {
    let id = find::sandbox(pods, &request.pod_sandbox_id)?;
    Ok(PodSandboxStatsResponse { stats: pods.sandbox_stats(&[id]).await.pop() })
}

/// Usage of the pods that are up and pass the filter.
pub(crate) async fn list(
    pods: &Pods,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Failure> {
    let filter = Filter::sandbox_stats(request.filter)?;
    let passes = |s: &pod::Sandbox| {
        s.state == pod::SandboxState::Ready
            && filter.passes(s.id.as_str(), "", state(s.state), &s.config.labels)
    };
    let ids: Vec<_> = pods.sandboxes().iter().filter(|s| passes(s)).map(|s| s.id.clone()).collect();
    Ok(ListPodSandboxStatsResponse { stats: pods.sandbox_stats(&ids).await })
}

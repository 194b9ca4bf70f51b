//! `ContainerStats` and `ListContainerStats`.

use api::cri::v1::{
    ContainerStatsRequest, ContainerStatsResponse, ListContainerStatsRequest, ListContainerStatsResponse,
};
use pod::Pods;

use crate::{container_list::state, error::Failure, filter::Filter, find};

/// Usage of one container.
pub(crate) async fn stats(
    pods: &Pods,
    request: &ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Failure> {
    let id = find::container(pods, &request.container_id)?;
    Ok(ContainerStatsResponse { stats: Some(pods.stats(&id).await?) })
}

/// Usage of the running containers that pass the filter; one that ends meanwhile is left out.
pub(crate) async fn list(
    pods: &Pods,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Failure> {
    let filter = Filter::stats(request.filter)?;
    let passes = |c: &pod::Container| {
        let m = &c.metadata;
        c.state() == pod::ContainerState::Running
            && filter.passes(m.id.as_str(), m.pod.as_str(), state(c.state()), &m.config.labels)
    };
    let ids = pods.containers().iter().filter(|c| passes(c)).map(|c| c.id().clone()).collect();
    Ok(ListContainerStatsResponse { stats: pods.list_stats(ids).await })
}

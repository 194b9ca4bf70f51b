//! `ListMetricDescriptors` and `ListPodSandboxMetrics`, with which the kubelet does without cAdvisor (KEP-2371).

use api::cri::v1::{ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse};
use pod::Pods;

/// Every metric there is.
pub(crate) fn descriptors() -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse { descriptors: pod::metrics::descriptors() }
}

/// The metrics of every pod that is up.
pub(crate) async fn list(pods: &Pods) -> ListPodSandboxMetricsResponse {
    ListPodSandboxMetricsResponse { pod_metrics: pods.metrics().await }
}

//! All metrics of all pods, in the place of the kubelet's cAdvisor: names in [`table`], readings of a container's cgroup in
//! [`container`], of its processes in [`processes`], of the pod's interfaces in [`network`].
//!
//! What this kernel or node does not have, a hierarchy or pressure information, is left out, not made up.

mod container;
mod network;
mod processes;
mod table;

use std::sync::Arc;

use api::cri::v1::{ContainerMetrics, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value};

use crate::interfaces::{self, Counts};
use crate::node::now;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::publisher::Handle;
use crate::state::ContainerState;
use crate::stats::by_shares;

/// Names, help and labels of all metrics.
#[must_use]
pub fn descriptors() -> Vec<MetricDescriptor> {
    table::TABLE.iter().map(table::Kind::descriptor).collect()
}

impl Pods {
    /// The metrics of every pod that is up. Reads some twenty files a container, on threads of their own.
    pub async fn metrics(&self) -> Vec<PodSandboxMetrics> {
        let pods = self.registry.pods();
        let read = |pods: &[Arc<Handle>]| {
            let interfaces = interfaces::read(pods.iter().map(|handle| &*handle.pod));
            pods.iter().zip(&interfaces).filter_map(|(handle, counts)| of(handle, counts)).collect()
        };
        by_shares(pods, read).await
    }
}

fn of(handle: &Handle, interfaces: &Counts) -> Option<PodSandboxMetrics> {
    let (pod, view) = (&handle.pod, handle.view());
    pod.shim.as_ref()?;
    let mut sheet = Sheet::new(pod, &["", &pod.cgroup, "", ""]);
    network::put(interfaces, &mut sheet);
    let running = view.containers.iter().filter(|c| c.status.state == ContainerState::Running);
    let containers = running.map(|c| {
        let (name, image) = (c.name().0, &c.metadata.config.image);
        let image = image.as_ref().map(|i| i.user_specified_image.as_str()).unwrap_or_default();
        let path = pod.container_cgroup(c.id());
        let mut sheet = Sheet::new(pod, &[name, &path, image, c.id().as_str()]);
        container::read(pod, c, &mut sheet);
        processes::read(pod, c, &mut sheet);
        ContainerMetrics { container_id: c.id().to_string(), metrics: sheet.metrics }
    });
    Some(PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        container_metrics: containers.collect(),
        metrics: sheet.metrics,
    })
}

/// Samples of one object, which all carry its labels.
struct Sheet {
    labels: [String; 6],
    at: i64,
    metrics: Vec<Metric>,
}

impl Sheet {
    /// `own` are the values of container, id, image and name.
    fn new(pod: &Pod, own: &[&str; 4]) -> Self {
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        let [container, id, image, name] = own.map(str::to_owned);
        let labels = [container, id, image, name, metadata.namespace, metadata.name];
        Self { labels, at: now(), metrics: Vec::new() }
    }

    /// Adds a sample of a kind in the table; `labels` are the values of the kind's own.
    fn put(&mut self, name: &str, labels: &[&str], value: Option<u64>) {
        let (Some(kind), Some(value)) = (table::kind(name), value) else { return };
        debug_assert_eq!(kind.labels.len(), labels.len(), "{name}");
        let own = labels.iter().map(ToString::to_string);
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind.metric_type().into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

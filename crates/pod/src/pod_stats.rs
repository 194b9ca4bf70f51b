//! What a pod as a whole uses: its cgroup, its interfaces, and its containers one by one.

use std::sync::Arc;

use api::cri::v1::{
    LinuxPodSandboxStats, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxStats,
    ProcessUsage,
};
use api::id::PodId;

use crate::container::Container;
use crate::interfaces::{self, Counts, RX_BYTES, RX_ERRORS, TX_BYTES, TX_ERRORS};
use crate::node::now;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::publisher::Handle;
use crate::state::ContainerState;
use crate::stats::{by_shares, stats};
use crate::usage::{Files, value};

impl Pods {
    /// What several pods use; those that are gone meanwhile are left out.
    pub async fn sandbox_stats(&self, ids: &[PodId]) -> Vec<PodSandboxStats> {
        let handles: Vec<_> = ids.iter().filter_map(|id| self.registry.pod(id).ok()).collect();
        let read = |handles: &[Arc<Handle>]| {
            let interfaces = interfaces::read(handles.iter().map(|handle| &*handle.pod));
            handles.iter().zip(interfaces).map(|(handle, counts)| of(handle, counts)).collect()
        };
        by_shares(handles, read).await
    }
}

fn of(handle: &Handle, interfaces: Counts) -> PodSandboxStats {
    let (pod, view) = (&handle.pod, handle.view());
    let (files, at) = (Files::of_pod(pod), now());
    let running = |c: &&Arc<Container>| c.state() == ContainerState::Running;
    let running: Vec<_> = view.containers.iter().filter(running).collect();
    let processes = running.iter().map(|c| processes(pod, c)).sum();
    let linux = LinuxPodSandboxStats {
        cpu: files.cpu(pod.id.as_str(), at),
        memory: files.memory(at, files.memory_stat().as_deref()),
        network: network(interfaces, at),
        process: Some(ProcessUsage { timestamp: at, process_count: value(processes) }),
        containers: running.iter().map(|c| stats(pod, c)).collect(),
        io: files.io(at),
    };
    let attributes = PodSandboxAttributes {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
    };
    PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

fn processes(pod: &Pod, container: &Container) -> u64 {
    let pids = Files::new(pod, container).gauge("", "cgroup.procs").unwrap_or_default();
    pids.lines().count() as u64
}

/// The default interface is the one that the pod's address is on, which is the first.
fn network(interfaces: Counts, at: i64) -> Option<NetworkUsage> {
    let count = |counts: &[u64], column: usize| counts.get(column).copied().and_then(value);
    let usage = |(name, counts): (String, Vec<u64>)| NetworkInterfaceUsage {
        name,
        rx_bytes: count(&counts, RX_BYTES),
        rx_errors: count(&counts, RX_ERRORS),
        tx_bytes: count(&counts, TX_BYTES),
        tx_errors: count(&counts, TX_ERRORS),
    };
    let interfaces: Vec<_> = interfaces.into_iter().map(usage).collect();
    let default_interface = interfaces.first().cloned()?;
    Some(NetworkUsage { timestamp: at, default_interface: Some(default_interface), interfaces })
}

//! What never changes in a pod after it was made.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use api::cri::v1::PodSandboxConfig;
use api::id::{ContainerId, PodId};
use network::Lease;

use crate::limits::PodLimits;
use crate::node::Node;
use crate::sandbox::{Sandbox, is_node, namespaces, user_namespace};
use crate::shim::Client;
use crate::spec::mounts::PodFiles;
use crate::state::SandboxState;

/// Immutable facts of a pod and the way to its shim.
#[derive(Debug)]
pub(crate) struct Pod {
    pub node: Arc<Node>,
    pub id: PodId,
    pub config: Arc<PodSandboxConfig>,
    pub handler: String,
    pub created_at: i64,
    pub cgroup: String,
    pub lease: Option<Lease>,
    /// Given by CNI plugins.
    pub plugged: Vec<IpAddr>,
    /// `None`: the pod was found without one, at start.
    pub shim: Option<Shim>,
    /// Held while a restored container is started: the first fixes the clocks of all.
    pub restoring: tokio::sync::Mutex<()>,
}

/// A running shim.
#[derive(Debug)]
pub(crate) struct Shim {
    pub client: Client,
    pub pid: u32,
    /// To kill it if it hangs.
    pub process: OwnedFd,
}

impl Pod {
    pub(crate) fn client(&self) -> Option<&Client> {
        self.shim.as_ref().map(|shim| &shim.client)
    }

    /// The published form of the pod in `state`.
    pub(crate) fn sandbox(&self, state: SandboxState, limits: &Arc<PodLimits>) -> Sandbox {
        let ready = state == SandboxState::Ready;
        let ips = || self.lease.as_ref().map_or_else(|| self.plugged.clone(), Lease::addresses);
        Sandbox {
            id: self.id.clone(),
            config: Arc::clone(&self.config),
            handler: self.handler.clone(),
            created_at: self.created_at,
            state,
            ips: if ready { ips() } else { Vec::new() },
            shim_pid: self.shim.as_ref().filter(|_| ready).map_or(0, |shim| shim.pid),
            limits: Arc::clone(limits),
            cgroup: self.cgroup.clone(),
        }
    }

    /// Whether the pod shares the node's System V IPC and /dev/shm.
    pub(crate) fn node_ipc(&self) -> bool {
        is_node(namespaces(&self.config).ipc)
    }

    /// Whether CNI plugins may know of the pod.
    pub(crate) fn is_plugged(&self) -> bool {
        self.lease.is_none() && !is_node(namespaces(&self.config).network)
    }

    /// Host id of the pod's root user.
    pub(crate) fn owner(&self) -> u32 {
        owner(&self.config)
    }

    pub(crate) fn files(&self) -> PodFiles {
        let node_hostname = self.config.hostname.is_empty();
        self.node.pod_files(&self.id, self.node_ipc(), node_hostname)
    }

    /// Path of a container's cgroup below the root of every hierarchy.
    pub(crate) fn container_cgroup(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.cgroup)
    }

    /// Where a container's log goes; empty when it has none.
    pub(crate) fn log_path(&self, log_path: &str) -> PathBuf {
        if self.config.log_directory.is_empty() || log_path.is_empty() {
            PathBuf::new()
        } else {
            PathBuf::from(&self.config.log_directory).join(log_path)
        }
    }
}

/// Host id of the root user of a pod with this configuration.
pub(crate) fn owner(config: &PodSandboxConfig) -> u32 {
    user_namespace(config).and_then(|user| user.uids.first().map(|range| range.host_id)).unwrap_or(0)
}

//! A pod sandbox as readers see it.

use std::net::IpAddr;
use std::sync::Arc;

use api::cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace};
use api::id::PodId;

use crate::limits::PodLimits;
use crate::state::SandboxState;

/// One published state of a sandbox; never changes, the next state is another value.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its id.
    pub id: PodId,
    /// What was asked for, unchanged.
    pub config: Arc<PodSandboxConfig>,
    /// Runtime handler it was asked with, as given (may be empty).
    pub handler: String,
    /// ns since the epoch.
    pub created_at: i64,
    /// Whether it can take containers.
    pub state: SandboxState,
    /// Addresses in its own network namespace, the first is the primary one; empty on the node's network.
    pub ips: Vec<IpAddr>,
    /// Process id of its shim, 0 when there is none any more.
    pub shim_pid: u32,
    /// What it may use as a whole.
    pub limits: Arc<PodLimits>,
    /// Its cgroup below the root of every hierarchy, such as `/meridian/<id>`.
    pub cgroup: String,
}

impl Sandbox {
    /// The pod's own namespace modes; all default when the request gave none.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        namespaces(&self.config)
    }

    /// Its configuration with the limits in force: what makes it again as it is.
    pub(crate) fn current_config(&self) -> PodSandboxConfig {
        let mut config = PodSandboxConfig::clone(&self.config);
        let PodLimits { overhead, resources } = PodLimits::clone(&self.limits);
        if overhead.is_some() || resources.is_some() || config.linux.is_some() {
            let linux = config.linux.get_or_insert_default();
            (linux.overhead, linux.resources) = (overhead, resources);
        }
        config
    }
}

/// The namespace modes of a sandbox configuration.
pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// The pid namespace mode of a pod, or of a container in it.
///
/// A request that says nothing about namespaces means what the kubelet says by default, CONTAINER, and not what the
/// proto's zero happens to be; a container that says nothing does as its pod.
pub(crate) fn pid_mode(pod: &PodSandboxConfig, container: Option<&NamespaceOption>) -> NamespaceMode {
    let context = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let pods = context.and_then(|c| c.namespace_options.as_ref());
    let mode = |options: &NamespaceOption| NamespaceMode::try_from(options.pid).unwrap_or_default();
    let pods = pods.map_or(NamespaceMode::Container, mode);
    match container.map(mode) {
        // There is no namespace of the pod to share.
        Some(NamespaceMode::Pod) if pods != NamespaceMode::Pod => NamespaceMode::Container,
        Some(own) => own,
        None => pods,
    }
}

/// Whether `mode` is the node's own namespace.
pub(crate) fn is_node(mode: i32) -> bool {
    mode == NamespaceMode::Node as i32
}

/// The pod's user namespace, if it has one of its own.
pub(crate) fn user_namespace(config: &PodSandboxConfig) -> Option<UserNamespace> {
    namespaces(config).userns_options.filter(|u| u.mode == NamespaceMode::Pod as i32)
}

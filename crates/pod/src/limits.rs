//! What a pod as a whole may use.
//!
//! The kubelet limits a pod by a cgroup of its own, names it as the parent of ours, and tells us afterwards: that is
//! recorded and shown. Where a request names no parent, nobody else limits the pod: then its cgroup is ours to limit.

use api::cri::v1::{LinuxContainerResources, PodSandboxConfig};
use api::shim::v1 as shim;

use crate::error::{Class, Classify, LookupError};
use crate::plan::lower_resources;
use crate::pod::Pod;
use crate::request::Refusal;
use crate::shim::{CallError, Client};
use crate::spec::{self, SpecError};

/// Limits of a pod, as they were asked for last. Replaced as a whole: what is not named is not limited.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodLimits {
    /// What the pod may use beside its containers.
    #[prost(message, optional, tag = "1")]
    pub overhead: Option<LinuxContainerResources>,
    /// What its containers may use together.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<LinuxContainerResources>,
}

impl PodLimits {
    /// Those that a pod was made with.
    pub(crate) fn of(config: &PodSandboxConfig) -> Self {
        let linux = config.linux.clone().unwrap_or_default();
        Self { overhead: linux.overhead, resources: linux.resources }
    }

    /// One set of limits for the whole pod: the containers' and as much again as the overhead says.
    fn sum(&self) -> LinuxContainerResources {
        let mut sum = self.resources.clone().unwrap_or_default();
        let Some(more) = &self.overhead else { return sum };
        for (sum, more) in [
            (&mut sum.cpu_quota, more.cpu_quota),
            (&mut sum.cpu_shares, more.cpu_shares),
            (&mut sum.memory_limit_in_bytes, more.memory_limit_in_bytes),
            (&mut sum.memory_swap_limit_in_bytes, more.memory_swap_limit_in_bytes),
        ] {
            // Without a limit of the containers there is none of the pod.
            if *sum > 0 && more > 0 {
                *sum = sum.saturating_add(more);
            }
        }
        sum
    }

    /// What to write for these limits after `old`: a limit that is not named any more is lifted.
    fn after(&self, old: &Self) -> LinuxContainerResources {
        let (mut new, old) = (self.sum(), old.sum());
        for (new, old) in [
            (&mut new.cpu_quota, old.cpu_quota),
            (&mut new.memory_limit_in_bytes, old.memory_limit_in_bytes),
            (&mut new.memory_swap_limit_in_bytes, old.memory_swap_limit_in_bytes),
        ] {
            if *new == 0 && old > 0 {
                *new = -1;
            }
        }
        new
    }
}

/// Why a pod's limits were not set. Those before are in force.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// No such pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The pod is not up.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The limits.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The kernel, or the way there.
    #[error("the limits of the pod cannot be set")]
    Shim(#[from] CallError),
    /// A bug, or the daemon is ending.
    #[error("the pod's driver ended early")]
    Interrupted,
}

impl Classify for LimitError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::Refused(_) => Class::FailedPrecondition,
            Self::Spec(e) => e.class(),
            Self::Shim(e) => e.class(),
            Self::Interrupted => Class::Internal,
        }
    }
}

/// Whether the pod's cgroup is ours to limit.
fn is_ours(config: &PodSandboxConfig) -> bool {
    config.linux.as_ref().is_none_or(|linux| linux.cgroup_parent.is_empty())
}

/// Limits a new pod as its configuration says.
pub(crate) async fn begin(client: &Client, config: &PodSandboxConfig) -> Result<(), LimitError> {
    if !is_ours(config) {
        return Ok(());
    }
    set(client, &PodLimits::of(config).sum()).await
}

/// Limits a pod anew; on an error the old limits are put back.
pub(crate) async fn change(pod: &Pod, old: &PodLimits, new: &PodLimits) -> Result<(), LimitError> {
    let Some(client) = pod.client().filter(|_| is_ours(&pod.config)) else { return Ok(()) };
    let changed = set(client, &new.after(old)).await;
    if changed.is_err()
        && let Err(error) = set(client, &old.after(new)).await
    {
        tracing::warn!(pod = %pod.id, %error, "putting old limits back");
    }
    changed
}

async fn set(client: &Client, limits: &LinuxContainerResources) -> Result<(), LimitError> {
    let lowered = lower_resources(&spec::cgroup::resources(limits)?);
    if lowered == shim::Resources::default() {
        return Ok(());
    }
    Ok(client.update_resources("", lowered).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: i64) -> Option<LinuxContainerResources> {
        Some(LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() })
    }

    #[test]
    fn overhead_is_on_top_of_the_containers() {
        let limit = |resources, overhead| PodLimits { overhead, resources }.sum().memory_limit_in_bytes;
        assert_eq!(limit(memory(64), memory(8)), 72);
        assert_eq!(limit(memory(64), None), 64);
        assert_eq!(limit(memory(0), memory(8)), 0, "no limit and a bit more is no limit");
        assert_eq!(limit(None, memory(8)), 0);
    }

    #[test]
    fn what_is_not_named_any_more_is_lifted() {
        let limits = |bytes| PodLimits { overhead: None, resources: memory(bytes) };
        let after = |new, old| limits(new).after(&limits(old)).memory_limit_in_bytes;
        assert_eq!((after(32, 64), after(0, 64), after(0, 0)), (32, -1, 0));
    }
}

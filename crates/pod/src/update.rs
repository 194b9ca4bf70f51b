//! Changing the limits of a container (KEP-1287, in-place resize).

use api::cri::v1::LinuxContainerResources;
use api::shim::v1 as shim;

use crate::container::Container;
use crate::error::ContainerError;
use crate::plan::lower_resources;
use crate::pod::Pod;
use crate::spec::{self, SpecError};
use crate::state::ContainerState;

/// Sets limits in the kernel; on an error the old ones are put back. Nothing to do for a container that ended.
pub(crate) async fn run(
    pod: &Pod,
    container: &Container,
    new: &LinuxContainerResources,
) -> Result<(), ContainerError> {
    let id = container.id();
    let lower = |r: &LinuxContainerResources| spec::cgroup::resources(r).map(|r| lower_resources(&r));
    let failed = |source: SpecError| ContainerError::Resources { id: id.clone(), source };
    // All of them, not the new alone: memory and swap are one number in v1 and two in v2. But for the score, which may be
    // one that the kernel refused us from the first.
    let rescored = new.oom_score_adj != 0;
    let score = |r: &LinuxContainerResources| i32::try_from(r.oom_score_adj).ok().filter(|_| rescored);
    let lower = |r: &LinuxContainerResources| {
        lower(r).map(|lowered| shim::Resources { oom_score_adj: score(r), ..lowered })
    };
    let merged = lower(&merge(container.resources(), new)).map_err(failed)?;
    if container.state() == ContainerState::Exited {
        return Ok(());
    }
    let client = pod.client().ok_or_else(|| ContainerError::NotRunning { id: id.clone() })?;
    let updated = client.update_resources(id.as_str(), merged).await;
    if updated.is_err()
        && let Some(old) = container.resources().and_then(|old| lower(old).ok())
    {
        // Half of them may be in force. What was there before fits, unless the container has grown since.
        if let Err(error) = client.update_resources(id.as_str(), old).await {
            tracing::warn!(pod = %pod.id, container = %id, %error, "putting old limits back");
        }
    }
    updated.map_err(|source| ContainerError::Shim { id: id.clone(), source })
}

/// The limits after an update: those that are 0 or empty in `new` stay.
pub(crate) fn merge(
    old: Option<&LinuxContainerResources>,
    new: &LinuxContainerResources,
) -> LinuxContainerResources {
    let mut merged = old.cloned().unwrap_or_default();
    let numbers = [
        (&mut merged.cpu_period, new.cpu_period),
        (&mut merged.cpu_quota, new.cpu_quota),
        (&mut merged.cpu_shares, new.cpu_shares),
        (&mut merged.memory_limit_in_bytes, new.memory_limit_in_bytes),
        (&mut merged.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
        (&mut merged.oom_score_adj, new.oom_score_adj),
    ];
    for (old, new) in numbers.into_iter().filter(|(_, new)| *new != 0) {
        *old = new;
    }
    for (old, new) in
        [(&mut merged.cpuset_cpus, &new.cpuset_cpus), (&mut merged.cpuset_mems, &new.cpuset_mems)]
    {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    for limit in &new.hugepage_limits {
        merged.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        merged.hugepage_limits.push(limit.clone());
    }
    merged.unified.extend(new.unified.clone());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let old = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            cpuset_cpus: "0".into(),
            unified: [("memory.high".into(), "1".into())].into(),
            ..Default::default()
        };
        let new = LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            oom_score_adj: 500,
            unified: [("memory.low".into(), "2".into())].into(),
            ..Default::default()
        };
        let merged = merge(Some(&old), &new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (512, 32 << 20));
        assert_eq!((merged.cpuset_cpus.as_str(), merged.unified.len()), ("0", 2));
        assert_eq!(merge(Some(&merged), &old).oom_score_adj, 500);
        assert_eq!(merge(None, &new), new);
    }
}

//! Where a pod's cgroup is, and what limits a container's.

use api::cri::v1::{LinuxContainerResources, PodSandboxConfig};
use api::id::PodId;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::SpecError;

/// Path of a pod's cgroup below the root of every hierarchy: in the kubelet's parent, or in our own.
///
/// # Errors
/// The parent would leave the hierarchy, or is a slice name of the systemd driver.
pub(crate) fn pod_path(config: &PodSandboxConfig, root: &str, id: &PodId) -> Result<String, SpecError> {
    let given = config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
    let parent = if given.is_empty() { root } else { given };
    let names = || parent.split('/').filter(|name| !name.is_empty());
    let bad =
        parent.len() > 4096 || names().any(|n| n == "." || n == ".." || n.len() > 255 || n.contains('\0'));
    if bad {
        return Err(SpecError::CgroupParent { path: parent.chars().take(80).collect() });
    }
    let parent = names().collect::<Vec<_>>().join("/");
    Ok(if parent.is_empty() { format!("/{id}") } else { format!("/{parent}/{id}") })
}

/// Lowers CRI's limits. Zero means "not set" on both sides.
pub(crate) fn resources(given: &LinuxContainerResources) -> Result<LinuxResources, SpecError> {
    for key in given.unified.keys() {
        // A plain file name of the container's own directory, and none that moves processes (CVE-2022-0492's kin).
        let plain = !key.is_empty() && !key.contains('/') && !key.starts_with('.') && key.contains('.');
        if !plain || key.starts_with("cgroup.") {
            return Err(SpecError::Unified { key: key.chars().take(80).collect() });
        }
    }
    let mut lowered = LinuxResources::default();
    lowered.set_devices(None);
    lowered.set_cpu(Some(cpu(given)));
    lowered.set_memory(Some(memory(given)));
    if !given.hugepage_limits.is_empty() {
        let limits = given.hugepage_limits.iter().map(|limit| {
            let mut lowered = LinuxHugepageLimit::default();
            lowered.set_page_size(limit.page_size.clone());
            lowered.set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            lowered
        });
        lowered.set_hugepage_limits(Some(limits.collect()));
    }
    if !given.unified.is_empty() {
        lowered.set_unified(Some(given.unified.clone()));
    }
    Ok(lowered)
}

fn cpu(given: &LinuxContainerResources) -> LinuxCpu {
    let mut cpu = LinuxCpu::default();
    cpu.set_period(positive(given.cpu_period));
    cpu.set_quota((given.cpu_quota != 0).then_some(given.cpu_quota));
    cpu.set_shares(positive(given.cpu_shares));
    cpu.set_cpus(Some(given.cpuset_cpus.clone()).filter(|list| !list.is_empty()));
    cpu.set_mems(Some(given.cpuset_mems.clone()).filter(|list| !list.is_empty()));
    cpu
}

fn memory(given: &LinuxContainerResources) -> LinuxMemory {
    let mut memory = LinuxMemory::default();
    memory.set_limit((given.memory_limit_in_bytes != 0).then_some(given.memory_limit_in_bytes));
    memory.set_swap((given.memory_swap_limit_in_bytes != 0).then_some(given.memory_swap_limit_in_bytes));
    memory
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|v| *v > 0)
}

#[cfg(test)]
mod tests {
    use api::cri::v1::LinuxPodSandboxConfig;

    use super::*;

    fn path(parent: &str) -> Result<String, SpecError> {
        let linux = LinuxPodSandboxConfig { cgroup_parent: parent.to_owned(), ..Default::default() };
        let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
        pod_path(&config, "/meridian", &"0".repeat(64).parse().unwrap())
    }

    #[test]
    fn a_pod_lives_below_its_parent_and_nowhere_else() {
        let id = "0".repeat(64);
        assert_eq!(path("").unwrap(), format!("/meridian/{id}"));
        assert_eq!(path("/kubepods/pod1").unwrap(), format!("/kubepods/pod1/{id}"));
        assert_eq!(path("kubepods//besteffort/").unwrap(), format!("/kubepods/besteffort/{id}"));
        for bad in ["/..", "/a/../../b", "./x", &"a".repeat(300), "a\0b"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits_keep_their_numbers_and_their_absence() {
        let given = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 20,
            unified: [("memory.high".to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        let lowered = resources(&given).unwrap();
        let cpu = lowered.cpu().clone().unwrap();
        assert_eq!((cpu.period(), cpu.quota(), cpu.shares()), (Some(100_000), Some(-1), None));
        assert_eq!(lowered.memory().unwrap().limit(), Some(1 << 20));
        assert_eq!(lowered.memory().unwrap().swap(), None);
        for key in ["../cgroup.procs", "cgroup.procs", "", ".", "memory/high", "cgroup.kill"] {
            let unified = [(key.to_owned(), "1".to_owned())].into();
            assert!(
                resources(&LinuxContainerResources { unified, ..Default::default() }).is_err(),
                "{key:?}"
            );
        }
    }
}

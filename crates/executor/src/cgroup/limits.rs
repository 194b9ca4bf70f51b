//! Resource limits in the words of cgroup2 and of v1.

use std::os::fd::{AsFd, OwnedFd};

use api::shim::v1::Resources;
use rustix::fs::{Mode, OFlags, openat};
use sys::{Errno, Result};

use super::tree;
use crate::error::{CreateError, plan};

/// Files to write for one controller, in order, in either hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// The v1 controller; empty: cgroup2 only, whatever controller it is.
    pub controller: &'static str,
    /// (file, value) where cgroup2 governs it.
    pub unified: Vec<(String, String)>,
    /// (file, value) in the v1 hierarchy.
    pub v1: Vec<(String, String)>,
    /// Holds by itself where nobody governs the controller: no huge pages are charged to anybody there.
    pub dispensable: bool,
}

#[allow(clippy::needless_pass_by_value, reason = "numbers and texts alike, without a & on each")]
impl Setting {
    fn of(controller: &'static str) -> Self {
        Self { controller, ..Self::default() }
    }

    fn v2(mut self, file: &str, value: impl ToString) -> Self {
        self.unified.push((file.to_owned(), value.to_string()));
        self
    }

    fn v1(mut self, file: &str, value: impl ToString) -> Self {
        self.v1.push((file.to_owned(), value.to_string()));
        self
    }
}

/// Whether the v1 hierarchy of `controller` must hold a directory for these limits.
pub fn concerns(resources: &Resources, controller: &str) -> bool {
    settings(resources).iter().any(|s| s.controller == controller && !s.v1.is_empty())
}

/// No limit of processor time, and the largest share of it, in cgroup2's words.
pub const MOST_CPU: [(&str, &str); 2] = [("cpu.weight", "10000"), ("cpu.max", "max")];
/// The same in v1's.
pub const MOST_CPU_V1: [(&str, &str); 2] = [("cpu.shares", "262144"), ("cpu.cfs_quota_us", "-1")];

/// Refuses what could never be written, or would reach beyond the container's directory.
pub fn check(resources: &Resources) -> std::result::Result<(), CreateError> {
    for (file, value) in &resources.unified {
        let (controller, rest) = file.split_once('.').unwrap_or((file, ""));
        let plain =
            |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !plain(controller)
            || !plain(rest)
            || controller == "cgroup"
            || file.contains("..")
            || value.contains('\0')
        {
            return Err(plan("resources.unified", file, "must be a controller's file, such as memory.high"));
        }
    }
    for set in [&resources.cpuset_cpus, &resources.cpuset_mems] {
        if !set.chars().all(|c| c.is_ascii_digit() || "-,".contains(c)) {
            return Err(plan("resources.cpuset", set, "must be a list such as 0-3,7"));
        }
    }
    for huge in &resources.hugepages {
        if !huge.page_size.chars().all(|c| c.is_ascii_alphanumeric()) || huge.page_size.is_empty() {
            return Err(plan("resources.hugepages.page_size", &huge.page_size, "must be a size such as 2MB"));
        }
    }
    let shares = resources.cpu_shares;
    if shares != 0 && !(2..=262_144).contains(&shares) {
        return Err(plan("resources.cpu_shares", shares.to_string(), "must be within 2..=262144"));
    }
    Ok(())
}

/// What to write for these limits.
pub fn settings(r: &Resources) -> Vec<Setting> {
    let mut all: Vec<Setting> =
        [cpu_shares(r), cpu_quota(r), memory(r), memory_low(r), pids(r)].into_iter().flatten().collect();
    for (file, value) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            all.push(Setting::of("cpuset").v2(file, value).v1(file, value));
        }
    }
    for huge in &r.hugepages {
        // Both what is reserved and what is used: without the first, a program that reserved more dies of SIGBUS.
        let file = |suffix: &str| format!("hugetlb.{}.{suffix}", huge.page_size);
        let reserved = Setting::of("hugetlb")
            .v2(&file("rsvd.max"), huge.limit)
            .v1(&file("rsvd.limit_in_bytes"), huge.limit);
        let both = reserved.v2(&file("max"), huge.limit).v1(&file("limit_in_bytes"), huge.limit);
        // The kubelet sends a zero for every size of the node.
        all.push(Setting { dispensable: huge.limit == 0, ..both });
    }
    // A map has no order of its own; sorted, two runs fail alike.
    let mut verbatim: Vec<_> = r.unified.iter().collect();
    verbatim.sort();
    all.extend(verbatim.into_iter().map(|(file, value)| Setting::of("").v2(file, value)));
    all
}

fn cpu_shares(r: &Resources) -> Option<Setting> {
    (r.cpu_shares != 0)
        .then(|| Setting::of("cpu").v2("cpu.weight", weight(r.cpu_shares)).v1("cpu.shares", r.cpu_shares))
}

/// 2..=262144 shares as 1..=10000 weight, linearly, as every runtime before 2026 did.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn cpu_quota(r: &Resources) -> Option<Setting> {
    if r.cpu_quota == 0 && r.cpu_period == 0 {
        return None;
    }
    let period = if r.cpu_period == 0 { 100_000 } else { r.cpu_period };
    let quota = if r.cpu_quota > 0 { r.cpu_quota.to_string() } else { "max".to_owned() };
    let mut setting = Setting::of("cpu").v2("cpu.max", format!("{quota} {period}"));
    if r.cpu_period != 0 {
        setting = setting.v1("cpu.cfs_period_us", r.cpu_period);
    }
    if r.cpu_quota != 0 {
        setting = setting.v1("cpu.cfs_quota_us", r.cpu_quota.max(-1));
    }
    Some(setting)
}

fn memory(r: &Resources) -> Option<Setting> {
    let max = |bytes: i64| if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
    let mut setting = Setting::of("memory");
    if r.memory_limit != 0 {
        setting =
            setting.v2("memory.max", max(r.memory_limit)).v1("memory.limit_in_bytes", r.memory_limit.max(-1));
    }
    if r.memory_swap_limit != 0 {
        // v2 counts swap alone, the plan memory and swap together.
        let swap =
            if r.memory_swap_limit < 0 { -1 } else { (r.memory_swap_limit - r.memory_limit.max(0)).max(0) };
        setting = setting
            .v2("memory.swap.max", max(swap))
            .v1("memory.memsw.limit_in_bytes", r.memory_swap_limit.max(-1));
    }
    (!setting.unified.is_empty()).then_some(setting)
}

fn memory_low(r: &Resources) -> Option<Setting> {
    (r.memory_low != 0).then(|| {
        Setting::of("memory").v2("memory.low", r.memory_low).v1("memory.soft_limit_in_bytes", r.memory_low)
    })
}

fn pids(r: &Resources) -> Option<Setting> {
    let max = if r.pids_limit > 0 { r.pids_limit.to_string() } else { "max".to_owned() };
    (r.pids_limit != 0).then(|| Setting::of("pids").v2("pids.max", &max).v1("pids.max", &max))
}

/// A new v1 cpuset is empty and takes no process: copies CPUs and memory nodes from the nearest ancestor with any.
///
/// # References
/// cpuset(7).
pub fn inherit_cpuset(dir: &OwnedFd) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(dir.as_fd(), file, 0)?;
    }
    Ok(())
}

fn inherit(dir: impl AsFd, file: &str, depth: u32) -> Result<String> {
    let own = tree::read(&dir, file)?;
    if !own.trim().is_empty() {
        return Ok(own);
    }
    if depth > 16 {
        return Err(Errno::LOOP);
    }
    let parent = openat(&dir, "..", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let value = inherit(&parent, file, depth + 1)?;
    tree::write(&dir, file, value.trim())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(r: &Resources) -> (Vec<String>, Vec<String>) {
        let flat =
            |pairs: &[(String, String)]| pairs.iter().map(|(f, v)| format!("{f}={v}")).collect::<Vec<_>>();
        let all = settings(r);
        (all.iter().flat_map(|s| flat(&s.unified)).collect(), all.iter().flat_map(|s| flat(&s.v1)).collect())
    }

    #[test]
    fn both_vocabularies() {
        let r = Resources {
            cpu_quota: 50_000,
            cpu_period: 100_000,
            cpu_shares: 1024,
            memory_limit: 64 << 20,
            memory_swap_limit: 64 << 20,
            pids_limit: 100,
            ..Resources::default()
        };
        let (v2, v1) = written(&r);
        assert_eq!(
            v2,
            [
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "memory.max=67108864",
                "memory.swap.max=0",
                "pids.max=100"
            ]
        );
        assert_eq!(
            v1,
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=67108864",
                "pids.max=100"
            ]
        );
    }

    #[test]
    fn unlimited_and_unset() {
        assert!(settings(&Resources::default()).is_empty());
        let (v2, v1) =
            written(&Resources { cpu_quota: -1, memory_limit: -1, pids_limit: -1, ..Resources::default() });
        assert_eq!(v2, ["cpu.max=max 100000", "memory.max=max", "pids.max=max"]);
        assert_eq!(v1, ["cpu.cfs_quota_us=-1", "memory.limit_in_bytes=-1", "pids.max=max"]);
        assert_eq!((weight(2), weight(262_144), weight(u64::MAX)), (1, 10_000, 10_000));
    }

    #[test]
    fn names_that_reach_further_are_refused() {
        for file in ["../cgroup.procs", "cgroup.procs", "memory", "memory./x", "", "a..b"] {
            let unified = [(file.to_owned(), "1".to_owned())].into();
            assert!(check(&Resources { unified, ..Resources::default() }).is_err(), "{file}");
        }
        assert!(check(&Resources { cpuset_cpus: "0-1\n".into(), ..Resources::default() }).is_err());
        let unified = [("memory.high".to_owned(), "1".to_owned())].into();
        assert!(check(&Resources { unified, ..Resources::default() }).is_ok());
    }
}

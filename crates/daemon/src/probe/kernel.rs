//! Namespaces, filters and memory tracking.

use std::fs;
use std::os::unix::fs::FileExt;

use sys::Errno;
use sys::namespace::{Kind, Kinds};
use sys::seccomp::Filter;
use sys::timens::Offsets;

use super::{Bench, Missing, failed, in_child};

pub fn release(_: &Bench<'_>) -> Result<String, Missing> {
    let path = "/proc/sys/kernel/osrelease";
    let release =
        fs::read_to_string(path).map_err(|source| Missing::File { path: path.to_owned(), source })?;
    Ok(release.trim().to_owned())
}

pub fn namespaces(_: &Bench<'_>) -> Result<String, Missing> {
    let kinds = [Kind::Mount, Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup];
    in_child("clone3 with mnt, pid, net, ipc, uts and cgroup", kinds.into_iter().collect(), || Ok(()))?;
    Ok("mnt, pid, net, ipc, uts, cgroup".to_owned())
}

pub fn user_namespaces(_: &Bench<'_>) -> Result<String, Missing> {
    in_child("clone3 with user", Kind::User.into(), || Ok(()))?;
    Ok("made one".to_owned())
}

pub fn time_namespaces(_: &Bench<'_>) -> Result<String, Missing> {
    const DAY: i64 = 86_400_000_000_000;
    in_child("unshare(time) and offsets", Kinds::NONE, || {
        sys::namespace::unshare(Kind::Time)?;
        sys::timens::write_offsets(Offsets { monotonic: DAY, boottime: DAY })
    })?;
    Ok("made one and set its offsets".to_owned())
}

pub fn seccomp(_: &Bench<'_>) -> Result<String, Missing> {
    in_child("load a seccomp filter", Kinds::NONE, || {
        sys::credentials::forbid_new_privileges()?;
        // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
        Filter::decode(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f])?.load()
    })?;
    Ok("loaded a filter".to_owned())
}

pub fn userfaultfd(_: &Bench<'_>) -> Result<String, Missing> {
    sys::userfaultfd::open().map_err(failed("userfaultfd"))?;
    Ok("opened one for user and kernel faults".to_owned())
}

/// Clears the soft-dirty bits of this process, writes to a page, and looks for its bit. See the kernel's
/// admin-guide/mm/soft-dirty.
pub fn soft_dirty(_: &Bench<'_>) -> Result<String, Missing> {
    const PAGE: usize = 4096;
    let mut memory = vec![1u8; 2 * PAGE];
    let file = |path: &str| {
        let path = path.to_owned();
        move |source| Missing::File { path, source }
    };
    fs::write("/proc/self/clear_refs", "4").map_err(file("/proc/self/clear_refs"))?;
    let pagemap = fs::File::open("/proc/self/pagemap").map_err(file("/proc/self/pagemap"))?;
    let offset = ((memory.as_ptr() as usize + PAGE) / PAGE * size_of::<u64>()) as u64;
    let is_dirty = || {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, offset).map_err(file("/proc/self/pagemap"))?;
        Ok::<_, Missing>(u64::from_ne_bytes(entry) & (1 << 55) != 0)
    };
    let before = is_dirty()?;
    std::hint::black_box(&mut memory).fill(2);
    if before || !is_dirty()? {
        return Err(Missing::Unfit { found: "the kernel does not track written pages".to_owned() });
    }
    Ok("saw a written page".to_owned())
}

pub fn cap_sys_resource(_: &Bench<'_>) -> Result<String, Missing> {
    /// capability.h
    const CAP_SYS_RESOURCE: u64 = 24;
    let effective = sys::credentials::effective().map_err(failed("capget"))?;
    if effective & (1 << CAP_SYS_RESOURCE) == 0 {
        return Err(Missing::Call { call: "raise a hard limit", errno: Errno::PERM });
    }
    Ok("effective".to_owned())
}

pub fn apparmor(_: &Bench<'_>) -> Result<String, Missing> {
    let path = "/sys/module/apparmor/parameters/enabled";
    let enabled =
        fs::read_to_string(path).map_err(|source| Missing::File { path: path.to_owned(), source })?;
    if enabled.trim() == "Y" {
        Ok("enabled".to_owned())
    } else {
        Err(Missing::Unfit { found: format!("{path} is {}", enabled.trim()) })
    }
}

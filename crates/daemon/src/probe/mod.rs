//! The start-up probe: what this node can do, found by trying, never by a version number.
//!
//! One table; a row is a name, whether pods can run without it, the attempt and the cure. Attempts that change the
//! process they run in (namespaces, seccomp) run in a forked child, which is why the probe runs before the daemon has
//! threads. What attempts make is gone afterwards: a directory in the state root, a cgroup.

mod cgroup;
mod kernel;
mod mounts;
mod tools;

use std::path::Path;

use api::meridian::v1::Feature;
use sys::Errno;
use sys::clone::{Options, fork};
use sys::namespace::Kinds;

/// Why a feature counts as missing.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("{call}: {errno}")]
    Call { call: &'static str, errno: Errno },
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("run {command}: {source}")]
    Run { command: String, source: std::io::Error },
    #[error("{found}")]
    Unfit { found: String },
}

/// What the attempts work on.
struct Bench<'a> {
    /// A new directory on the file system that will hold pods' root file systems.
    directory: &'a Path,
    /// A new cgroup of the unified hierarchy, or why there is none.
    cgroup: Result<cgroup::Bench, Missing>,
    criu: &'a [String],
    masquerade: bool,
}

type Attempt = fn(&Bench<'_>) -> Result<String, Missing>;

/// Name, whether pods need it, attempt, cure.
type Row = (&'static str, bool, Attempt, &'static str);

#[rustfmt::skip] // a table
const TABLE: &[Row] = &[
    ("kernel", true, kernel::release, "run Linux 6.1 or newer"),
    ("namespaces", true, kernel::namespaces, "run as root, on a kernel with all namespaces configured"),
    ("user-namespaces", false, kernel::user_namespaces, "raise sysctl user.max_user_namespaces"),
    ("time-namespaces", true, kernel::time_namespaces, "run a kernel with CONFIG_TIME_NS"),
    ("mount-api", true, mounts::api, "run Linux 6.1 or newer"),
    ("overlay", true, mounts::overlay, "load module overlay; keep the state root on ext4 or xfs, not on an overlay"),
    ("overlay-fd-layers", false, mounts::overlay_by_fd, "run Linux 6.13 or newer"),
    ("idmapped-mounts", false, mounts::idmapped, "keep the state root on a file system with idmapped mounts, as ext4"),
    ("recursive-read-only", false, mounts::recursive_read_only, "run Linux 5.12 or newer"),
    ("cgroup-layout", true, cgroup::layout, "mount cgroup2 at /sys/fs/cgroup, or at /sys/fs/cgroup/unified beside v1"),
    ("controllers", true, cgroup::controllers, "boot with systemd.unified_cgroup_hierarchy=1"),
    ("cgroup-freeze", true, cgroup::freeze, "mount cgroup2 writable"),
    ("cgroup-kill", true, cgroup::kill, "run Linux 5.14 or newer"),
    ("clone-into-cgroup", true, cgroup::clone_into, "mount cgroup2 writable"),
    ("device-filter", true, cgroup::device_filter, "run a kernel with CONFIG_CGROUP_BPF"),
    ("seccomp", true, kernel::seccomp, "run a kernel with CONFIG_SECCOMP_FILTER"),
    ("userfaultfd", false, kernel::userfaultfd, "run a kernel with CONFIG_USERFAULTFD: post-copy moves need it"),
    ("soft-dirty", false, kernel::soft_dirty, "run a kernel with CONFIG_MEM_SOFT_DIRTY: pre-copy moves need it"),
    ("cap-sys-resource", false, kernel::cap_sys_resource, "grant CAP_SYS_RESOURCE: limits cannot be raised without it"),
    ("apparmor", false, kernel::apparmor, "boot with apparmor=1: pods with an AppArmor profile are refused without it"),
    ("nftables", false, tools::nftables, "install nftables, or set network.masquerade to false"),
    ("criu", false, tools::criu, "install CRIU 4.1.1 or newer, or point criu.command at one: checkpoints need it"),
];

/// Tries everything. `root` is the daemon's state root. The process must have one thread.
pub fn run(root: &Path, criu: &[String], masquerade: bool) -> Vec<Feature> {
    let directory = root.join("probe");
    // A directory of a probe that was killed.
    let _ = std::fs::remove_dir_all(&directory);
    let made = std::fs::create_dir_all(&directory);
    let bench = Bench { directory: &directory, cgroup: cgroup::Bench::make(), criu, masquerade };
    let features = TABLE.iter().map(|row| attempt(&bench, row)).collect();
    if made.is_ok() {
        let _ = std::fs::remove_dir_all(&directory);
    }
    features
}

fn attempt(bench: &Bench<'_>, &(name, required, attempt, cure): &Row) -> Feature {
    let started = std::time::Instant::now();
    let result = attempt(bench);
    tracing::debug!(name, elapsed = ?started.elapsed(), "tried");
    let (available, detail) = match result {
        Ok(detail) => (true, detail),
        Err(missing) => (false, format!("{missing}; {cure}")),
    };
    Feature { name: name.to_owned(), available, required, detail }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Missing {
    move |errno| Missing::Call { call, errno }
}

/// Runs `attempt` in a forked child with `new` namespaces.
fn in_child(call: &'static str, new: Kinds, attempt: fn() -> Result<(), Errno>) -> Result<(), Missing> {
    let code = move || match attempt() {
        Ok(()) => 0,
        Err(errno) => u8::try_from(errno.raw_os_error()).unwrap_or(u8::MAX),
    };
    let child = fork(&Options { new, ..Options::default() }, code).map_err(failed(call))?;
    let status = sys::pidfd::wait(&child.pidfd).map_err(failed("waitid"))?;
    match status.code() {
        0 => Ok(()),
        code => Err(Missing::Call { call, errno: Errno::from_raw_os_error(code.cast_signed()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_cures_say_what_to_do() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        for (name, _, _, cure) in TABLE {
            let verb = cure.split(' ').next().unwrap();
            assert!(
                ["run", "raise", "load", "keep", "mount", "boot", "grant", "install"].contains(&verb),
                "{name}: {cure}"
            );
        }
    }
}

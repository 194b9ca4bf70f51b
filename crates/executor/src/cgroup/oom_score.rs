//! How the kernel ranks a container's processes when memory runs out: not a property of the cgroup but of each process,
//! inherited by what it starts.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use namespaces::channel::Step;
use rustix::fs::{Dir, Mode, OFlags, openat};
use sys::{Errno, Result};

use super::tree;
use crate::Failure;

/// Looks at a cgroup until nobody new was in it: a process may start another while we look.
const LOOKS: u32 = 10;

/// The step that needs a capability, in words that say so.
pub const PRIVILEGED: &str = "lower oom_score_adj, which needs CAP_SYS_RESOURCE, to";

/// Gives every process in the cgroup and below the score. Raising it is always allowed, lowering it below what a process
/// was given by someone privileged needs `CAP_SYS_RESOURCE`.
///
/// # References
/// `oom_score_adj` in proc_pid_oom_score_adj(5).
pub fn set(cgroup: BorrowedFd<'_>, proc: BorrowedFd<'_>, score: i32) -> std::result::Result<(), Failure> {
    let mut done = HashSet::new();
    for _ in 0..LOOKS {
        let mut found = Vec::new();
        processes(cgroup, 0, &mut found).step("read", "cgroup.procs")?;
        found.retain(|pid| !done.contains(pid));
        if found.is_empty() {
            break;
        }
        for pid in found {
            match tree::write(proc, &format!("{pid}/oom_score_adj"), &score.to_string()) {
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {} // ended meanwhile
                Err(Errno::ACCESS) => return Err(Failure::new(PRIVILEGED, score.to_string(), Errno::ACCESS)),
                failed => failed.step("set oom_score_adj", score.to_string())?,
            }
            done.insert(pid);
        }
    }
    Ok(())
}

/// Process ids in the cgroup and in those that a container made below it.
fn processes(cgroup: BorrowedFd<'_>, depth: u32, found: &mut Vec<u32>) -> Result<()> {
    found.extend(tree::read_all(cgroup, "cgroup.procs")?.lines().filter_map(|line| line.parse::<u32>().ok()));
    if depth > 32 {
        return Ok(());
    }
    for entry in Dir::read_from(cgroup)?.filter_map(Result::ok) {
        let name = entry.file_name();
        if entry.file_type().is_dir() && !matches!(name.to_bytes(), b"." | b"..") {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(cgroup, name, flags, Mode::empty()) {
                Ok(child) => processes(child.as_fd(), depth + 1, found)?,
                Err(Errno::NOENT) => {}
                Err(other) => return Err(other),
            }
        }
    }
    Ok(())
}

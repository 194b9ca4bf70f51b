//! Stopping and killing all processes of a cgroup2 directory at once.

use std::os::fd::AsFd;

use sys::Result;

use super::tree;

/// Stops every process in and below `dir`. They have stopped when [`is_frozen`] says so.
pub fn freeze(dir: impl AsFd) -> Result<()> {
    tree::write(dir, "cgroup.freeze", "1")
}

/// Lets them run again.
pub fn thaw(dir: impl AsFd) -> Result<()> {
    tree::write(dir, "cgroup.freeze", "0")
}

/// Whether all have stopped. `events` is the directory's open `cgroup.events`, which reports every change as
/// `EPOLLPRI`.
pub fn is_frozen(events: impl AsFd) -> Result<bool> {
    Ok(tree::value(&tree::read_from(events)?, "frozen") == Some(1))
}

/// Kills every process in and below `dir`, frozen ones too.
///
/// # References
/// `cgroup.kill` in the kernel's cgroup-v2 document (Linux 5.14).
pub fn kill(dir: impl AsFd) -> Result<()> {
    tree::write(dir, "cgroup.kill", "1")
}

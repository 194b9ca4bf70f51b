//! Directories and files of a cgroup hierarchy, by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, unlinkat};
use sys::{Errno, Result};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A killed process leaves its cgroup a moment after it was reaped.
const REMOVE_ATTEMPTS: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

/// Makes directory `name`. An empty one that is left from an attempt that was cut short is replaced.
///
/// # Errors
/// `EBUSY` when processes are in it.
pub fn make(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o755);
    match mkdirat(parent, name, mode) {
        Err(Errno::EXIST) => {
            unlinkat(parent, name, AtFlags::REMOVEDIR)?;
            mkdirat(parent, name, mode)?;
        }
        other => other?,
    }
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Another descriptor of the same directory.
pub fn reopen(dir: &OwnedFd) -> Result<OwnedFd> {
    openat(dir, ".", DIRECTORY, Mode::empty())
}

/// Removes directory `name` and what a container made below it; fine when it is gone.
///
/// # Errors
/// `EBUSY` when a process is still inside.
pub fn remove(parent: impl AsFd, name: &str) -> Result<()> {
    let mut last = Errno::BUSY;
    for _ in 0..REMOVE_ATTEMPTS {
        match remove_tree(parent.as_fd(), name, 0) {
            Err(Errno::BUSY) => sleep(REMOVE_PAUSE),
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(other) => {
                last = other;
                break;
            }
        }
    }
    Err(last)
}

fn remove_tree(parent: impl AsFd, name: impl rustix::path::Arg + Copy, depth: u32) -> Result<()> {
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        // The kernel says EBUSY both for processes and for directories inside.
        Err(Errno::BUSY | Errno::NOTEMPTY) if depth < 32 => {
            let dir = openat(&parent, name, DIRECTORY, Mode::empty())?;
            for entry in Dir::read_from(&dir)?.filter_map(Result::ok) {
                if entry.file_type().is_dir() && !is_dots(entry.file_name()) {
                    remove_tree(&dir, entry.file_name(), depth + 1)?;
                }
            }
            unlinkat(&parent, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Writes one value in one call, as cgroup files want it.
pub fn write(dir: impl AsFd, file: &str, value: &str) -> Result<()> {
    let fd = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    rustix::io::write(&fd, value.as_bytes()).map(drop)
}

/// Reads a small file.
pub fn read(dir: impl AsFd, file: &str) -> Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    read_from(&fd)
}

/// Reads a file of any length.
pub fn read_all(dir: impl AsFd, file: &str) -> Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let (mut all, mut page) = (Vec::new(), [0; 4096]);
    loop {
        match rustix::io::read(&fd, &mut page)? {
            0 => return Ok(String::from_utf8_lossy(&all).into_owned()),
            n => all.extend_from_slice(&page[..n]),
        }
    }
}

/// Reads a small open file from its start.
pub fn read_from(fd: impl AsFd) -> Result<String> {
    let mut bytes = [0; 4096];
    let n = rustix::io::pread(fd, &mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
}

/// The number after `key` in a flat-keyed file.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Lets the children of `dir` have every controller that it has, and says which those are.
pub fn delegate(dir: &OwnedFd) -> Result<Vec<String>> {
    let controllers: Vec<String> =
        read(dir, "cgroup.controllers")?.split_whitespace().map(str::to_owned).collect();
    if !controllers.is_empty() {
        let all: Vec<_> = controllers.iter().map(|c| format!("+{c}")).collect();
        write(dir, "cgroup.subtree_control", &all.join(" "))?;
    }
    Ok(controllers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_flat_keyed_files() {
        let text = "oom 3\noom_kill 2\noom_kill_disable 0\n";
        assert_eq!(value(text, "oom_kill"), Some(2));
        assert_eq!(value(text, "kill"), None);
    }
}

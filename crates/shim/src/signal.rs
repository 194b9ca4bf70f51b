//! A signal to every process of a container.

use std::os::fd::{AsFd, OwnedFd};

use executor::Cgroup;
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};
use sys::{Pid, pidfd};

/// Signals each process in the cgroup once. One that is forked meanwhile may be missed, as with kill(-pgid); a number
/// that has changed its process is not: whoever is signalled is still listed after its pidfd was opened.
pub fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<(), Errno> {
    let opened: Vec<(Pid, OwnedFd)> =
        processes(cgroup)?.into_iter().filter_map(|pid| Some((pid, pidfd::open(pid).ok()?))).collect();
    let listed = processes(cgroup)?;
    for (_, pidfd) in opened.iter().filter(|(pid, _)| listed.contains(pid)) {
        match pidfd::kill_raw(pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The processes in it.
pub fn processes(cgroup: &Cgroup) -> Result<Vec<Pid>, Errno> {
    let text = read(cgroup, "cgroup.procs")?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}

/// The text of one of a cgroup's files.
pub fn read(cgroup: &Cgroup, file: &str) -> Result<String, Errno> {
    let fd = openat(cgroup.as_fd(), file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(&fd, &mut part)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            length => text.extend_from_slice(&part[..length]),
        }
    }
}

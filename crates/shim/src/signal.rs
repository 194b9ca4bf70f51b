//! A signal to every process of a container.

use std::os::fd::AsFd;

use executor::{Cgroup, cgroup};
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};
use sys::{Pid, pidfd};

/// Signals each process in the cgroup once. The cgroup is frozen meanwhile, so that none forks past the list and no
/// number on it changes its process; a cgroup that was frozen before stays so.
pub fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<(), Errno> {
    let was_frozen = read(cgroup, "cgroup.freeze")?.trim() == "1";
    if !was_frozen {
        cgroup::freeze(cgroup)?;
    }
    let signalled = signal_each(cgroup, signal);
    if !was_frozen {
        cgroup::thaw(cgroup)?;
    }
    signalled
}

fn signal_each(cgroup: &Cgroup, signal: i32) -> Result<(), Errno> {
    for pid in read(cgroup, "cgroup.procs")?.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        match pidfd::open(pid).and_then(|pidfd| pidfd::kill_raw(pidfd, signal)) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read(cgroup: &Cgroup, file: &str) -> Result<String, Errno> {
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

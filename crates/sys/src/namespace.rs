//! Namespaces by descriptor: enter, leave the parent's, and ask who owns whom.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::{Errno, Pid, Result, check};

/// The eight kinds. There is no ninth up to Linux 7.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Users, groups and capabilities; owns the others.
    User,
    /// Process ids.
    Pid,
    /// Network devices, addresses, sockets.
    Net,
    /// Mounts.
    Mount,
    /// SysV IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Root of the visible cgroup tree.
    Cgroup,
    /// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME.
    Time,
}

impl Kind {
    /// All of them, in the order a joiner enters them: user first, for it grants the right to enter the rest.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Pid, Self::Net, Self::Mount, Self::Ipc, Self::Uts, Self::Cgroup, Self::Time];

    /// The file name in `/proc/PID/ns`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Mount => "mnt",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The kind with this file name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Its `CLONE_NEW*` bit.
    #[must_use]
    pub fn flag(self) -> u32 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        };
        flag.cast_unsigned()
    }
}

/// Several kinds as one set of `CLONE_NEW*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(u32);

impl Kinds {
    /// None.
    pub const NONE: Self = Self(0);

    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// With `kind` too.
    #[must_use]
    pub fn with(self, kind: Kind) -> Self {
        Self(self.0 | kind.flag())
    }

    /// With `kind` if `wanted`.
    #[must_use]
    pub fn with_if(self, kind: Kind, wanted: bool) -> Self {
        if wanted { self.with(kind) } else { self }
    }

    /// Whether `kind` is among them.
    #[must_use]
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & kind.flag() != 0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Kind> for Kinds {
    fn from(kind: Kind) -> Self {
        Self::NONE.with(kind)
    }
}

/// Enters one namespace by its own descriptor, or several at once by the descriptor of a process that is in them.
/// Only the calling thread moves.
///
/// # Errors
/// `EUSERS` for a time namespace from a process with threads or shared memory, `EINVAL` for a user namespace one is
/// in already.
///
/// # References
/// setns(2).
pub fn setns(fd: impl AsFd, kinds: impl Into<Kinds>) -> Result<()> {
    let flags = libc::c_long::from(kinds.into().bits());
    // SAFETY: a live descriptor and a number; no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_fd().as_raw_fd(), flags) })?;
    Ok(())
}

/// Gives the calling thread new namespaces of these kinds. A new pid or time namespace is for its future children.
///
/// # References
/// unshare(2).
pub fn unshare(kinds: impl Into<Kinds>) -> Result<()> {
    let flags = libc::c_long::from(kinds.into().bits());
    // SAFETY: only CLONE_NEW* bits, which share no memory and close no descriptor.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })?;
    Ok(())
}

/// The calling thread's namespace of this kind; for time and pid the one its children will be in.
pub fn own(kind: Kind) -> Result<OwnedFd> {
    let name = match kind {
        Kind::Time => "time_for_children",
        other => other.name(),
    };
    open_path(&format!("/proc/thread-self/ns/{name}")).or_else(|errno| match errno {
        // Before Linux 6.x thread-self may be hidden by a minimal proc; a single-threaded process has one entry.
        Errno::NOENT => open_path(&format!("/proc/self/ns/{name}")),
        other => Err(other),
    })
}

/// A process's namespace of this kind. Recheck with its pidfd when it is not our child.
pub fn of(pid: Pid, kind: Kind) -> Result<OwnedFd> {
    open_path(&format!("/proc/{}/ns/{}", pid.as_raw_nonzero(), kind.name()))
}

/// The inode number that identifies a namespace on this host, as in `net:[4026531840]`.
pub fn inode(fd: impl AsFd) -> Result<u64> {
    fstat(fd).map(|stat| stat.st_ino)
}

/// What kind of namespace a descriptor is.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn kind(fd: impl AsFd) -> Result<Kind> {
    let flag = ns_ioctl(&fd, libc::NS_GET_NSTYPE)?;
    Kind::ALL.into_iter().find(|k| i64::from(k.flag()) == flag).ok_or(Errno::NOTTY)
}

/// The user namespace that owns it.
///
/// # Errors
/// `EPERM` when that is not the caller's or one below.
///
/// # References
/// ioctl_ns(2).
pub fn owner(fd: impl AsFd) -> Result<OwnedFd> {
    ns_fd(&fd, libc::NS_GET_USERNS)
}

/// The parent of a pid or user namespace.
///
/// # Errors
/// `EINVAL` for other kinds, `EPERM` at the initial one or outside the caller's reach.
pub fn parent(fd: impl AsFd) -> Result<OwnedFd> {
    ns_fd(&fd, libc::NS_GET_PARENT)
}

fn open_path(path: &str) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn ns_ioctl(fd: &impl AsFd, request: libc::Ioctl) -> Result<i64> {
    // SAFETY: these requests take no argument.
    let returned = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request) };
    check(returned.into())
}

fn ns_fd(fd: &impl AsFd, request: libc::Ioctl) -> Result<OwnedFd> {
    let raw = i32::try_from(ns_ioctl(fd, request)?).map_err(|_| Errno::BADF)?;
    // SAFETY: on success the kernel returned a new descriptor (close-on-exec) that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespaces_are_what_they_say() {
        for k in Kind::ALL {
            let fd = own(k).unwrap();
            assert_eq!(kind(&fd), Ok(k));
            assert_eq!(Kind::from_name(k.name()), Some(k));
        }
        let net = own(Kind::Net).unwrap();
        assert_eq!(inode(owner(&net).unwrap()), inode(own(Kind::User).unwrap()));
        assert_eq!(parent(&net).unwrap_err(), Errno::INVAL);
    }
}

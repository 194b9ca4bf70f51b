//! A container's `/dev`: a tmpfs of its own, filled while it is still detached and nobody can reach it.
//!
//! The parent fills it, because a user namespace may make no device nodes, and because a null device that we made on a
//! filesystem that nobody else has seen is one that can be trusted (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use namespaces::channel::Step;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, major, makedev, minor, mkdirat, mknodat,
    openat, symlinkat,
};
use sys::Errno;
use sys::mount::{Filesystem, Flags};

use super::device::{self, Device};
use crate::{Failure, Sandbox};

/// A character device that every container has, mode 0666.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    name: &'static str,
    pub major: u32,
    pub minor: u32,
}

/// As the OCI runtime specification lists them; `/dev/console` and `/dev/ptmx` come with the terminal and devpts.
pub const DEFAULT_NODES: [Node; 6] = [
    Node { name: "null", major: 1, minor: 3 },
    Node { name: "zero", major: 1, minor: 5 },
    Node { name: "full", major: 1, minor: 7 },
    Node { name: "random", major: 1, minor: 8 },
    Node { name: "urandom", major: 1, minor: 9 },
    Node { name: "tty", major: 5, minor: 0 },
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// Targets of later mounts.
const DIRECTORIES: [&str; 3] = ["pts", "shm", "mqueue"];

/// Whether a path is one that [`fill`] or the terminal makes.
pub fn is_reserved(path: &Path) -> bool {
    let Ok(name) = path.strip_prefix("/dev") else { return false };
    let names = DEFAULT_NODES
        .iter()
        .map(|node| node.name)
        .chain(LINKS.iter().map(|(_, name)| *name))
        .chain(["console"]);
    names.into_iter().any(|reserved| name == Path::new(reserved))
}

/// Fills a new tmpfs with the default nodes and those of `devices` that belong below `/dev` (which are taken out),
/// owned by the container's root, and opens its null.
pub fn fill(tmpfs: &OwnedFd, sandbox: &Sandbox, devices: &mut Vec<Device>) -> Result<OwnedFd, Failure> {
    // Modes as written, whoever calls.
    let umask = rustix::process::umask(Mode::empty());
    let filled = fill_as_written(tmpfs, sandbox, devices);
    rustix::process::umask(umask);
    filled?;
    open_null(tmpfs).step("open", "/dev/null")
}

fn fill_as_written(tmpfs: &OwnedFd, sandbox: &Sandbox, devices: &mut Vec<Device>) -> Result<(), Failure> {
    let owner = (Uid::from_raw(sandbox.host_uid(0)), Gid::from_raw(sandbox.host_gid(0)));
    let own = |name: &str| {
        chownat(tmpfs, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH)
    };
    for node in DEFAULT_NODES {
        make_node(tmpfs, node.name, node.major, node.minor)
            .and_then(|()| own(node.name))
            .step("make device", node.name)?;
    }
    for (target, name) in LINKS {
        symlinkat(target, tmpfs, name).and_then(|()| own(name)).step("make link", name)?;
    }
    for name in DIRECTORIES {
        mkdirat(tmpfs, name, Mode::from_raw_mode(0o755))
            .and_then(|()| own(name))
            .step("make directory", name)?;
    }
    own("").step("chown", "/dev")?;
    device::make_below_dev(tmpfs.as_fd(), sandbox, devices)
}

/// A null device on a filesystem of its own.
pub fn null() -> sys::Result<OwnedFd> {
    open_null(&tmpfs_with_null()?)
}

/// A filesystem that holds nothing but a null device, `null`.
pub fn tmpfs_with_null() -> sys::Result<OwnedFd> {
    let flags = Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NOEXEC;
    let tmpfs = Filesystem::open("tmpfs")?.set("size", "4k")?.mount(flags)?;
    make_node(&tmpfs, "null", 1, 3)?;
    Ok(tmpfs)
}

fn make_node(dir: &OwnedFd, name: &str, major: u32, minor: u32) -> sys::Result<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
}

fn open_null(dir: &OwnedFd) -> sys::Result<OwnedFd> {
    let null = openat(dir, "null", OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if is_null(&null)? { Ok(null) } else { Err(Errno::NODEV) }
}

/// Whether a descriptor is character device 1:3.
pub fn is_null(fd: impl AsFd) -> sys::Result<bool> {
    let stat = fstat(fd)?;
    let is_char = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_char && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3))
}

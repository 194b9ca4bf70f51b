//! The descriptor-based mount API: a mount exists detached first, with its flags, and is attached by descriptor.
//!
//! A detached mount belongs to no path, so nothing can be swapped under it; `move_mount` to an `O_PATH` descriptor
//! resolves nothing either. String paths appear only where the caller owns the whole path (pins, run directory).
//!
//! Clones ([`clone_tree`]) must be made in the mount namespace where the source is mounted: another namespace's
//! descriptor is `EINVAL`. Attaching a detached mount works in every mount namespace.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::path::Arg;
use rustix::process::{fchdir, pivot_root};

pub use rustix::mount::MountAttrFlags as Flags;

use crate::{Errno, Result, check};

/// Mounts on top of each other on an old root before [`pivot`] gives up.
const MAX_STACKED: u32 = 64;

/// A filesystem instance being configured: `fsopen(2)` up to `fsmount(2)`.
#[derive(Debug)]
pub struct Filesystem(OwnedFd);

impl Filesystem {
    /// Starts an instance of this type, such as `"tmpfs"` or `"overlay"`.
    pub fn open(kind: &str) -> Result<Self> {
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map(Self)
    }

    /// Sets `key=value`.
    pub fn set(&self, key: &str, value: impl Arg) -> Result<&Self> {
        fsconfig_set_string(&self.0, key, value)?;
        Ok(self)
    }

    /// Sets a key without a value.
    pub fn set_flag(&self, key: &str) -> Result<&Self> {
        fsconfig_set_flag(&self.0, key)?;
        Ok(self)
    }

    /// Sets a key to a descriptor, such as overlay's `lowerdir+` (Linux 6.13).
    pub fn set_fd(&self, key: &str, fd: impl AsFd) -> Result<&Self> {
        fsconfig_set_fd(&self.0, key, fd)?;
        Ok(self)
    }

    /// Makes the instance and a detached mount of it with these flags from birth.
    pub fn mount(&self, flags: Flags) -> Result<OwnedFd> {
        fsconfig_create(&self.0)?;
        fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    }

    /// What the kernel had to say about the last failure, one message a line; empty if nothing.
    #[must_use]
    pub fn messages(&self) -> String {
        let mut text = String::new();
        let mut message = [0; 1024];
        while let Ok(n @ 1..) = rustix::io::read(&self.0, &mut message) {
            text.push_str(&String::from_utf8_lossy(&message[..n]));
        }
        text
    }
}

/// How mounts and unmounts travel between copies of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the peer group to here.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and the mount is left out of recursive clones.
    Unbindable,
}

/// A change for [`set_attributes`].
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'fd> {
    /// Flags to set.
    pub set: Flags,
    /// Flags to clear.
    pub clear: Flags,
    /// Propagation to give, `None`: leave.
    pub propagation: Option<Propagation>,
    /// User namespace whose map the mount shows ids through. Only on a detached mount that has none yet.
    pub id_map: Option<BorrowedFd<'fd>>,
}

impl Default for Attributes<'_> {
    fn default() -> Self {
        Self { set: Flags::empty(), clear: Flags::empty(), propagation: None, id_map: None }
    }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes a mount, or with `recursive` the whole tree of it, atomically.
///
/// # References
/// mount_setattr(2).
pub fn set_attributes(mount: impl AsFd, recursive: bool, change: &Attributes<'_>) -> Result<()> {
    let mut attr = MountAttr {
        set: u64::from(change.set.bits()),
        clear: u64::from(change.clear.bits()),
        propagation: match change.propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
            Some(Propagation::Unbindable) => libc::MS_UNBINDABLE,
        },
        userns_fd: 0,
    };
    if let Some(userns) = change.id_map {
        attr.set |= u64::from(Flags::MOUNT_ATTR_IDMAP.bits());
        attr.userns_fd = u64::from(userns.as_raw_fd().cast_unsigned());
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a live descriptor, an empty C string, and a structure of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// A detached copy of the mount that `path` below `dir` is in, seen from `path`; `recursive`: with the mounts under
/// it. An empty `path` means `dir` itself.
///
/// # References
/// open_tree(2).
pub fn clone_tree(dir: impl AsFd, path: impl Arg, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_NO_AUTOMOUNT;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags)
}

/// Attaches a detached mount onto an open directory or file.
///
/// # Errors
/// `ENOTDIR` when one is a directory and the other is not.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Attaches a detached mount onto a path that only we can change.
pub fn attach_at(mount: impl AsFd, path: impl Arg) -> Result<()> {
    move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes `root`, a mount attached in this namespace, the root of it, and drops the old root with all on and below it.
///
/// # Errors
/// `EBUSY` when the old root would stay attached: a later `setns` would then lead back to it.
///
/// # References
/// pivot_root(2), "pivot_root(".", ".")" in its notes.
pub fn pivot(root: impl AsFd) -> Result<()> {
    let old = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    // The old root now lies on the new one. From the new one "." would mean whatever lies on top of both, so start
    // from the old one: each turn takes the topmost mount of its stack, and the last the old root itself.
    fchdir(&old)?;
    for _ in 0..MAX_STACKED {
        match unmount(".", UnmountFlags::DETACH) {
            Ok(()) => {}
            // Not a mount of this namespace any more.
            Err(Errno::INVAL) => return fchdir(root),
            Err(other) => return Err(other),
        }
    }
    Err(Errno::BUSY)
}

/// Detaches what is mounted at `path` now; it is gone when its last user is. The last component is not followed.
pub fn detach(path: impl Arg) -> Result<()> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_layout_of_mount_attr() {
        assert_eq!(size_of::<MountAttr>(), 32); // MOUNT_ATTR_SIZE_VER0
    }
}

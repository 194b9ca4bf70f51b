//! Paths that a container must not read, or not write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use namespaces::channel::Step;
use rustix::fs::{FileType, fstat};
use sys::Errno;
use sys::mount::{Attributes, Filesystem, Flags, attach, clone_tree, set_attributes};
use sys::root::Root;

use super::dev::is_null;
use super::mount::checked_destination;
use crate::Failure;
use crate::error::CreateError;

/// One path, checked.
#[derive(Debug)]
pub enum Hidden {
    /// Reads as nothing: a file as the null device, a directory as an empty one.
    Masked(PathBuf),
    /// Can be read only.
    ReadOnly(PathBuf),
}

pub fn prepare(masked: &[String], read_only: &[String]) -> Result<Vec<Hidden>, CreateError> {
    let masked = masked.iter().map(|p| checked_destination("masked_paths", p).map(Hidden::Masked));
    let read_only = read_only.iter().map(|p| checked_destination("readonly_paths", p).map(Hidden::ReadOnly));
    // Read-only first: a mask below such a path must lie on top of it.
    read_only.chain(masked).collect()
}

/// Hides them inside `root`, those that exist. `null` is verified again here: whatever is bound is what it must be.
pub fn hide(root: Root<'_>, paths: &[Hidden], null: BorrowedFd<'_>) -> Result<(), Failure> {
    if !is_null(null).step("verify", "null device")? {
        return Err(Failure::new("verify", "null device", Errno::NODEV));
    }
    let mut empty = None;
    for hidden in paths {
        let (Hidden::Masked(path) | Hidden::ReadOnly(path)) = hidden;
        let object = path.to_string_lossy();
        let target = match root.locate(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            found => found.step("find path to hide", &object)?,
        };
        match hidden {
            Hidden::Masked(_) => mask(&target, null, &mut empty).step("mask", &object)?,
            Hidden::ReadOnly(_) => make_read_only(&target).step("make read-only", &object)?,
        }
    }
    Ok(())
}

fn mask(target: &OwnedFd, null: BorrowedFd<'_>, empty: &mut Option<OwnedFd>) -> sys::Result<()> {
    if FileType::from_raw_mode(fstat(target)?.st_mode) != FileType::Directory {
        return attach(clone_tree(null, "", false)?, target);
    }
    match empty {
        // One filesystem for all; the first mount of it is attached by now, so that it can be cloned before 6.15 too.
        Some(first) => attach(clone_tree(first.as_fd(), "", false)?, target),
        None => {
            let first = self::empty()?;
            attach(&first, target)?;
            *empty = Some(first);
            Ok(())
        }
    }
}

/// A detached mount of an empty directory that nothing can be written to.
pub fn empty() -> sys::Result<OwnedFd> {
    let flags = Flags::MOUNT_ATTR_RDONLY
        | Flags::MOUNT_ATTR_NOSUID
        | Flags::MOUNT_ATTR_NODEV
        | Flags::MOUNT_ATTR_NOEXEC;
    Filesystem::open("tmpfs")?.set("size", "4k")?.set("nr_inodes", "1")?.mount(flags)
}

fn make_read_only(target: &OwnedFd) -> sys::Result<()> {
    let copy = clone_tree(target, "", true)?;
    set_attributes(&copy, true, &Attributes { set: Flags::MOUNT_ATTR_RDONLY, ..Attributes::default() })?;
    attach(copy, target)
}

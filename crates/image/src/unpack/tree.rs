//! The directory a layer is unpacked into, reached by descriptor only.
//!
//! Every name out of an archive is resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` from the layer's
//! root, and the last component is never followed: a symlink of the layer, absolute or full of `..`, leads to another
//! place in the layer and nowhere else (CVE-2021-32760, CVE-2026-33056). Nothing is cached between entries.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use sys::root::Root;

use crate::limits::LimitExceeded;

/// Bytes of paths of implied directories that are remembered.
const IMPLIED: u64 = 16 << 20;
/// Marks a directory that hides the one below it (Documentation/filesystems/overlayfs.rst).
const OPAQUE: &str = "trusted.overlay.opaque";

/// What was found under a name that an entry takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing.
    Free,
    /// A directory, kept.
    Directory,
    /// Something else, removed.
    Replaced,
}

/// A layer under construction.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    implied: Vec<Vec<u8>>,
    implied_bytes: u64,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, implied: Vec::new(), implied_bytes: 0 }
    }

    /// Directories that no entry named but that had to be there.
    pub(super) fn into_implied(self) -> Vec<Vec<u8>> {
        self.implied
    }

    /// Opens the directory at `components`, making what is missing.
    pub(super) fn directory(&mut self, components: &[&[u8]]) -> io::Result<OwnedFd> {
        match open_directory(self.root, &components.join(&b'/')) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(components),
            opened => Ok(opened?),
        }
    }

    fn make(&mut self, components: &[&[u8]]) -> io::Result<OwnedFd> {
        let mut parent = self.root.try_clone_to_owned()?;
        for (at, name) in components.iter().enumerate() {
            let path = components[..=at].join(&b'/');
            parent = match open_directory(self.root, &path) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.imply(&parent, name, path)?,
                opened => opened?,
            };
        }
        Ok(parent)
    }

    fn imply(&mut self, parent: &OwnedFd, name: &[u8], path: Vec<u8>) -> io::Result<OwnedFd> {
        let whiteout = is_whiteout(parent, name)?;
        if whiteout {
            fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        let made = open_child(parent, name)?;
        fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        if whiteout {
            make_opaque(&made)?;
        }
        self.implied_bytes += path.len() as u64 + 24;
        LimitExceeded::check("bytes of paths without a directory entry", self.implied_bytes, IMPLIED)
            .map_err(io::Error::other)?;
        self.implied.push(path);
        Ok(made)
    }

    /// Status of what `path` names, a last symlink not followed, and the directory it is in.
    pub(super) fn find(&self, components: &[&[u8]]) -> io::Result<(OwnedFd, Stat)> {
        let (name, parent) = components.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = open_directory(self.root, &parent.join(&b'/'))?;
        let stat = fs::statat(&parent, *name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((parent, stat))
    }
}

/// Opens the directory at `path` below `root`; the empty path is `root` itself.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    Root::new(root).open(OsStr::from_bytes(path), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// Opens the directory `name` in `parent`, never through a symlink.
pub(super) fn open_child(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(parent, name, flags, Mode::empty())?)
}

/// Makes way for an entry: a later entry replaces an earlier one, but a directory stays for a directory.
pub(super) fn vacate(parent: &OwnedFd, name: &[u8], for_directory: bool) -> io::Result<Taken> {
    let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Taken::Free),
        stat => stat?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if for_directory => Ok(Taken::Directory),
        FileType::Directory => remove_directory(parent, name).map(|()| Taken::Replaced),
        _ => Ok(fs::unlinkat(parent, name, AtFlags::empty()).map(|()| Taken::Replaced)?),
    }
}

/// Removes `name` and everything below it.
fn remove_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let directory = open_child(parent, name)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            vacate(&directory, child, false)?;
        }
    }
    Ok(fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// True if `name` is the character device 0:0 that hides a name of the layers below.
pub(super) fn is_whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        stat => {
            let stat = stat?;
            Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
        }
    }
}

/// Hides the directory of the same name in the layers below.
pub(super) fn make_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Both times of an entry; the access time is the modification time, archives seldom have another.
pub(crate) fn times((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

/// Keeps a directory's modification time over changes to what it holds.
#[derive(Debug)]
pub(super) struct SteadyTime<'a> {
    directory: &'a OwnedFd,
    times: Timestamps,
}

impl<'a> SteadyTime<'a> {
    pub(super) fn of(directory: &'a OwnedFd) -> io::Result<Self> {
        let stat = fs::fstat(directory)?;
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Ok(Self { directory, times: times((stat.st_mtime, nanoseconds)) })
    }

    pub(super) fn restore(self) -> io::Result<()> {
        Ok(fs::futimens(self.directory, &self.times)?)
    }
}

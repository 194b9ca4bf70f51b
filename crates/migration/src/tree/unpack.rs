//! Making a tree from a tar that may be hostile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat,
    fchmod, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use sys::Errno;
use sys::root::Root;
use tar::{Archive, Entry, EntryType};

use super::{PAX_XATTR, travels};

/// What an archive may come to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of file contents, holes included.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4 << 20, bytes: 1 << 40 }
    }
}

/// The tree could not be made. What was made so far is still there: the caller discards the whole root.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a tar.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// A name that no pack of ours writes.
    #[error("entry {0:?}: names must be relative, without \"..\"")]
    Name(PathBuf),
    /// An entry of a kind that has no place in a tree.
    #[error("entry {path:?}: kind {kind:?} is not allowed")]
    Kind {
        /// Which.
        path: PathBuf,
        /// Its kind.
        kind: EntryType,
    },
    /// Larger than allowed.
    #[error("entry {0:?}: the archive is larger than allowed")]
    Limit(PathBuf),
    /// The file could not be made.
    #[error("{step} {path:?}")]
    Make {
        /// What was tried.
        step: &'static str,
        /// In the tree.
        path: PathBuf,
        /// What came back.
        source: Errno,
    },
    /// Its contents could not be written.
    #[error("write {path:?}")]
    Write {
        /// In the tree.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
}

impl UnpackError {
    /// The errno behind it, such as `ENOSPC`.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Make { source, .. } => Some(*source),
            Self::Write { source, .. } | Self::Read(source) => Some(sys::errno_of(source)),
            Self::Name(_) | Self::Kind { .. } | Self::Limit(_) => None,
        }
    }
}

/// Deletes `paths` inside `root`, directories with all that is in them. What is not there is as good as deleted.
pub fn remove(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), UnpackError> {
    for path in paths {
        let inside = inside(path)?;
        let Some(name) = inside.file_name() else { return Err(UnpackError::Name(path.clone())) };
        let parent = inside.parent().unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match Root::new(root).open(parent, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(source) => return Err(make("open parent of", &inside)(source)),
            Ok(parent) => remove_at(parent.as_fd(), name.as_bytes()).map_err(make("remove", &inside))?,
        }
    }
    Ok(())
}

/// Makes the entries of `archive` inside `root`, replacing what is in the way.
pub fn unpack(root: BorrowedFd<'_>, archive: impl Read, limits: Limits) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker { root: Root::new(root), left: limits, directories: Vec::new() };
    let mut archive = Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Read)? {
        unpacker.entry(&mut entry.map_err(UnpackError::Read)?)?;
    }
    // Last, because files made in a directory change its time.
    for (path, mtime) in unpacker.directories.iter().rev() {
        let (parent, name) = unpacker.root.parent_of(path).map_err(make("open parent of", path))?;
        set_mtime(parent.as_fd(), name.as_bytes(), *mtime).map_err(make("set time of", path))?;
    }
    Ok(())
}

struct Unpacker<'fd> {
    root: Root<'fd>,
    left: Limits,
    directories: Vec<(PathBuf, i64)>,
}

/// Owner, mode and time of an entry.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: i64,
    extended: Vec<(String, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let path = inside(&entry.path().map_err(UnpackError::Read)?)?;
        if path.as_os_str().is_empty() {
            return Ok(()); // the root itself
        }
        self.count(&path, entry.size())?;
        let attributes = attributes(entry).map_err(UnpackError::Read)?;
        let (parent, name) = self.root.parent_of(&path).map_err(make("open parent of", &path))?;
        let (parent, name) = (parent.as_fd(), name.as_bytes());
        let kind = entry.header().entry_type();
        if kind != EntryType::Directory {
            remove_at(parent, name).map_err(make("replace", &path))?;
        }
        match kind {
            EntryType::Directory => {
                let made = directory(parent, name).map_err(make("make directory", &path))?;
                self.directories.push((path.clone(), attributes.mtime));
                return finish(parent, name, Some(&made), &attributes)
                    .map_err(make("set attributes of", &path));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let made = file(parent, name, entry, &path)?;
                return finish(parent, name, Some(&made), &attributes)
                    .map_err(make("set attributes of", &path));
            }
            EntryType::Symlink => {
                let target = link_name(entry, &path)?;
                symlinkat(target.as_os_str(), parent, name).map_err(make("make symlink", &path))?;
            }
            EntryType::Link => {
                let target = inside(&link_name(entry, &path)?)?;
                return self.hardlink(&target, parent, name).map_err(make("link", &path));
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                node(parent, name, entry).map_err(make("make node", &path))?;
            }
            kind => return Err(UnpackError::Kind { path, kind }),
        }
        finish(parent, name, None, &attributes).map_err(make("set attributes of", &path))
    }

    fn count(&mut self, path: &Path, size: u64) -> Result<(), UnpackError> {
        let entries = self.left.entries.checked_sub(1);
        let bytes = self.left.bytes.checked_sub(size);
        match (entries, bytes) {
            (Some(entries), Some(bytes)) => self.left = Limits { entries, bytes },
            _ => return Err(UnpackError::Limit(path.to_owned())),
        }
        Ok(())
    }

    /// The target is an earlier entry: a regular file in the root, by its own name.
    fn hardlink(&self, target: &Path, parent: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        let (from, old) = self.root.parent_of(target)?;
        let stat = statat(&from, old, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        linkat(&from, old, parent, name, AtFlags::empty())
    }
}

/// The path without a leading `/` or `.`, if it stays inside.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => inside.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(UnpackError::Name(path.to_owned())),
        }
    }
    Ok(inside)
}

fn make(step: &'static str, path: &Path) -> impl Fn(Errno) -> UnpackError {
    move |source| UnpackError::Make { step, path: path.to_owned(), source }
}

fn link_name(entry: &Entry<'_, impl Read>, path: &Path) -> Result<PathBuf, UnpackError> {
    let target = entry.link_name().map_err(UnpackError::Read)?;
    target.map(|t| t.into_owned()).ok_or_else(|| UnpackError::Name(path.to_owned()))
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
    let mut extended = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let name = extension.key().ok().and_then(|key| key.strip_prefix(PAX_XATTR));
        if let Some(name) = name.filter(|name| travels(name)) {
            extended.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    let header = entry.header();
    let narrow = |n: u64| u32::try_from(n).map_err(|_| io::Error::other("owner beyond 32 bits"));
    Ok(Attributes {
        uid: narrow(header.uid()?)?,
        gid: narrow(header.gid()?)?,
        mode: header.mode()? & 0o7777,
        mtime: i64::try_from(header.mtime()?).unwrap_or(0),
        extended,
    })
}

fn directory(parent: BorrowedFd<'_>, name: &[u8]) -> sys::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => remove_at(parent, name)?,
        Err(Errno::NOENT) => {}
        found => return found,
    }
    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    openat(parent, name, flags, Mode::empty())
}

fn file(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &mut Entry<'_, impl Read>,
    path: &Path,
) -> Result<OwnedFd, UnpackError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(make("make", path))?;
    let file = File::from(made);
    copy_with_holes(entry, &file).map_err(|source| UnpackError::Write { path: path.to_owned(), source })?;
    Ok(file.into())
}

/// A file that was mostly holes is so again: runs of zeroes are not written.
fn copy_with_holes(from: &mut impl Read, to: &File) -> io::Result<()> {
    let mut block = [0; 64 << 10];
    let mut length = 0;
    loop {
        match from.read(&mut block) {
            Ok(0) => return to.set_len(length),
            Ok(read) => {
                let data = &block[..read];
                if data.iter().any(|byte| *byte != 0) {
                    to.write_all_at(data, length)?;
                }
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn node(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry<'_, impl Read>) -> sys::Result<()> {
    let header = entry.header();
    let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
    let (kind, device) = match header.entry_type() {
        EntryType::Fifo => (FileType::Fifo, 0),
        other => {
            let device = makedev(number(header.device_major()), number(header.device_minor()));
            let kind =
                if other == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
            (kind, device)
        }
    };
    mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
}

/// Owner first, because it clears setuid and capabilities; time last.
fn finish(
    parent: BorrowedFd<'_>,
    name: &[u8],
    made: Option<&OwnedFd>,
    attributes: &Attributes,
) -> sys::Result<()> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(attributes.mode);
    match (made, FileType::from_raw_mode(stat.st_mode)) {
        (Some(fd), _) => fchmod(fd, mode)?,
        (None, FileType::Symlink) => {}
        // Just made by us, exclusively, and not a symlink.
        (None, _) => rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?,
    }
    for (key, value) in attributes.extended.iter().filter(|_| made.is_some()) {
        if let Some(fd) = made {
            fsetxattr(fd, key.as_str(), value, XattrFlags::empty())?;
        }
    }
    set_mtime(parent, name, attributes.mtime)
}

fn set_mtime(parent: BorrowedFd<'_>, name: &[u8], mtime: i64) -> sys::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Deletes what is at `name`, if anything, without following it.
fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove_at(dir.as_fd(), child)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

//! Writing a tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, major, minor, openat, readlinkat, statat};
use rustix::io::Errno as RustixErrno;
use sys::{Errno, errno_of};
use tar::{Builder, EntryType, Header};

use super::{PAX_XATTR, travels};

/// Deepest nesting that is written: each level holds a descriptor.
const DEEPEST: usize = 512;

/// What kind of tree it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Files as they are.
    Plain,
    /// The upper directory of an overlay mount: with whiteouts and opaque directories.
    OverlayUpper,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed {
    /// Paths to delete before unpacking, absolute in the tree; from whiteouts and opaque directories.
    pub deleted: Vec<PathBuf>,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
}

/// The tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file could not be read.
    #[error("{step} {path}")]
    Read {
        /// What was tried.
        step: &'static str,
        /// On what, in the tree.
        path: PathBuf,
        /// What came back.
        source: Errno,
    },
    /// Nested too deep.
    #[error("{0} is nested deeper than 512 directories")]
    Depth(PathBuf),
    /// The tar could not be written.
    #[error("write the archive of {path}")]
    Write {
        /// Which entry.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
}

/// Writes everything below `dir` to `out` as a tar, parents first, names sorted, so that equal trees give equal tars.
/// Sockets are left out: they live only with their process.
pub fn pack(dir: impl AsFd, out: impl Write, source: Source) -> Result<Packed, PackError> {
    let mut packer =
        Packer { tar: Builder::new(out), source, links: HashMap::new(), packed: Packed::default() };
    packer.directory(dir.as_fd(), Path::new(""), 0)?;
    packer.tar.finish().map_err(|source| PackError::Write { path: "/".into(), source })?;
    Ok(packer.packed)
}

struct Packer<W: Write> {
    tar: Builder<W>,
    source: Source,
    /// First path of each file with several links.
    links: HashMap<(u64, u64), PathBuf>,
    packed: Packed,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<(), PackError> {
        if depth > DEEPEST {
            return Err(PackError::Depth(path.to_owned()));
        }
        for name in names(dir).map_err(read("list", path))? {
            let child = path.join(OsStr::from_bytes(&name));
            let name = name.as_slice();
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(read("stat", &child))?;
            self.entry(dir, name, &child, &stat, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> Result<(), PackError> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = open(dir, name, OFlags::DIRECTORY).map_err(read("open", path))?;
                let attributes = attributes(&child).map_err(read("read attributes of", path))?;
                if self.source == Source::OverlayUpper && is_opaque(&child) {
                    self.packed.deleted.push(Path::new("/").join(path));
                }
                self.append(path, header(stat, EntryType::Directory), &attributes)?;
                self.directory(child.as_fd(), path, depth + 1)
            }
            FileType::RegularFile => self.file(dir, name, path, stat),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(read("read link", path))?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
                self.link(path, header(stat, EntryType::Symlink), &target)
            }
            FileType::CharacterDevice if self.source == Source::OverlayUpper && stat.st_rdev == 0 => {
                self.packed.deleted.push(Path::new("/").join(path));
                Ok(())
            }
            FileType::CharacterDevice => self.append(path, header(stat, EntryType::Char), &[]),
            FileType::BlockDevice => self.append(path, header(stat, EntryType::Block), &[]),
            FileType::Fifo => self.append(path, header(stat, EntryType::Fifo), &[]),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &Path, stat: &Stat) -> Result<(), PackError> {
        if stat.st_nlink > 1 {
            let first =
                self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_owned()).clone();
            if first != path {
                return self.link(path, header(stat, EntryType::Link), &first);
            }
        }
        let mut file = File::from(open(dir, name, OFlags::NOATIME).map_err(read("open", path))?);
        let attributes = attributes(&file).map_err(read("read attributes of", path))?;
        self.extensions(path, &attributes)?;
        // Holes stay holes: `append_file` writes sparse entries.
        self.tar
            .append_file(path, &mut file)
            .map_err(|source| PackError::Write { path: path.to_owned(), source })?;
        self.packed.entries += 1;
        self.packed.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        Ok(())
    }

    fn append(&mut self, path: &Path, mut header: Header, attributes: &[Attribute]) -> Result<(), PackError> {
        self.extensions(path, attributes)?;
        self.packed.entries += 1;
        self.tar
            .append_data(&mut header, path, io::empty())
            .map_err(|source| PackError::Write { path: path.to_owned(), source })
    }

    fn link(&mut self, path: &Path, mut header: Header, target: &Path) -> Result<(), PackError> {
        self.packed.entries += 1;
        self.tar
            .append_link(&mut header, path, target)
            .map_err(|source| PackError::Write { path: path.to_owned(), source })
    }

    fn extensions(&mut self, path: &Path, attributes: &[Attribute]) -> Result<(), PackError> {
        if attributes.is_empty() {
            return Ok(());
        }
        let keyed: Vec<_> =
            attributes.iter().map(|(k, v)| (format!("{PAX_XATTR}{k}"), v.as_slice())).collect();
        self.tar
            .append_pax_extensions(keyed.iter().map(|(k, v)| (k.as_str(), *v)))
            .map_err(|source| PackError::Write { path: path.to_owned(), source })
    }
}

/// Name and value.
type Attribute = (String, Vec<u8>);

fn read(step: &'static str, path: &Path) -> impl Fn(Errno) -> PackError {
    move |source| PackError::Read { step, path: path.to_owned(), source }
}

fn open(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> sys::Result<OwnedFd> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags, Mode::empty())
}

fn names(dir: BorrowedFd<'_>) -> sys::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        // Cannot fail: a GNU header has these fields.
        let _always = header.set_device_major(major(stat.st_rdev));
        let _always = header.set_device_minor(minor(stat.st_rdev));
    }
    header
}

fn is_opaque(dir: impl AsFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0; 4];
        rustix::fs::fgetxattr(&dir, *name, &mut value).is_ok_and(|n| value[..n] == *b"y")
    })
}

fn attributes(file: impl AsFd) -> sys::Result<Vec<Attribute>> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&file, list.as_mut_slice()) {
        Err(RustixErrno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| travels(name)) else { continue };
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::fgetxattr(&file, name, value.as_mut_slice())?;
        value.truncate(size);
        found.push((name.to_owned(), value));
    }
    found.sort_unstable();
    Ok(found)
}

impl PackError {
    /// The errno behind it.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Read { source, .. } => Some(*source),
            Self::Write { source, .. } => Some(errno_of(source)),
            Self::Depth(_) => None,
        }
    }
}

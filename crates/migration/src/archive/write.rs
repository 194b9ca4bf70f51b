//! Writing an archive.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use serde_json::json;
use sys::{Errno, errno_of};
use tar::{Builder, EntryType, Header};

use super::{ContainerFacts, DELETED, DESCRIPTORS, Hashing, IMAGES, LOG, ROOTFS_DIFF, SHM, STATS};
use crate::manifest::{FileDigest, archive_name};

/// What goes into one archive.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Who it is.
    pub facts: &'a ContainerFacts,
    /// The directory that a dump wrote.
    pub images: BorrowedFd<'a>,
    /// What the descriptors 0, 1 and 2 were.
    pub descriptors: &'a [String],
    /// What changed in its root filesystem, a tar.
    pub rootfs_diff: &'a File,
    /// What is gone from it.
    pub deleted: &'a [PathBuf],
    /// Contents of `/dev/shm`, a tar.
    pub shm: Option<&'a File>,
}

/// The archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// One of its parts could not be read, or the archive itself not be written.
    #[error("write {entry} of the archive")]
    Entry {
        /// Which.
        entry: String,
        /// What came back.
        source: io::Error,
    },
    /// A dump leaves regular files only.
    #[error("{0} among CRIU's images is not a regular file")]
    Kind(String),
}

impl WriteError {
    fn at(entry: &str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Entry { entry: entry.to_owned(), source }
    }

    /// The errno behind it, such as `ENOSPC`.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Entry { source, .. } => Some(errno_of(source)),
            Self::Kind(_) => None,
        }
    }
}

/// Writes one container's archive and says what was written.
pub fn write(out: impl Write, parts: &Parts<'_>) -> Result<FileDigest, WriteError> {
    let mut hashing = Hashing::new(out);
    let mut tar = Builder::new(&mut hashing);
    for (name, contents) in parts.facts.files() {
        bytes(&mut tar, name, &json_bytes(&contents))?;
    }
    let deleted: Vec<_> = parts.deleted.iter().map(|path| path.to_string_lossy()).collect();
    bytes(&mut tar, DELETED, &json_bytes(&deleted))?;
    file(&mut tar, ROOTFS_DIFF, parts.rootfs_diff)?;
    if let Some(shm) = parts.shm {
        file(&mut tar, SHM, shm)?;
    }
    let mut images = Header::new_gnu();
    images.set_entry_type(EntryType::Directory);
    images.set_mode(0o700);
    images.set_size(0);
    let dir = format!("{IMAGES}/");
    tar.append_data(&mut images, &dir, io::empty()).map_err(WriteError::at(&dir))?;
    bytes(&mut tar, &format!("{IMAGES}/{DESCRIPTORS}"), &json_bytes(&parts.descriptors))?;
    dump(&mut tar, parts.images)?;
    tar.finish().map_err(WriteError::at("the end"))?;
    drop(tar);
    hashing.flush().map_err(WriteError::at("the end"))?;
    Ok(hashing.digest())
}

/// Size and digest of a file, from its start.
pub fn digest_of(mut file: &File) -> io::Result<FileDigest> {
    file.seek(SeekFrom::Start(0))?;
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut file, &mut hashing)?;
    Ok(hashing.digest())
}

/// `pod.options`: the one file for a whole pod that checkpointctl's library knows.
pub fn write_pod_options<'a>(
    out: impl Write,
    containers: impl Iterator<Item = &'a str>,
) -> Result<FileDigest, WriteError> {
    let containers: serde_json::Map<_, _> =
        containers.map(|name| (name.to_owned(), json!(archive_name(name)))).collect();
    let options = json!({ "version": 1, "containers": containers, "annotations": {} });
    let mut hashing = Hashing::new(out);
    hashing.write_all(&json_bytes(&options)).map_err(WriteError::at("pod.options"))?;
    Ok(hashing.digest())
}

/// CRIU's images into their directory, its log and numbers beside it, where checkpointctl looks for them.
fn dump<W: Write>(tar: &mut Builder<W>, images: BorrowedFd<'_>) -> Result<(), WriteError> {
    let unreadable = |errno: Errno| WriteError::at(IMAGES)(errno.into());
    let mut names = Vec::new();
    for entry in Dir::read_from(images).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type() {
            _ if name == "." || name == ".." => {}
            FileType::RegularFile => names.push(name),
            _ => return Err(WriteError::Kind(name)),
        }
    }
    names.sort_unstable();
    for name in names {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(images, name.as_str(), flags, Mode::empty());
        let opened = opened.map_err(|errno| WriteError::at(&name)(errno.into()))?;
        let beside = name == LOG || name == STATS;
        let entry = if beside { name } else { format!("{IMAGES}/{name}") };
        file(tar, &entry, &File::from(opened))?;
    }
    Ok(())
}

fn file<W: Write>(tar: &mut Builder<W>, name: &str, mut file: &File) -> Result<(), WriteError> {
    let mut append = || {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        tar.append_data(&mut header(size), Path::new(name), io::Read::take(file, size))
    };
    append().map_err(WriteError::at(name))
}

fn bytes<W: Write>(tar: &mut Builder<W>, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes).map_err(WriteError::at(name))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(size);
    header
}

fn json_bytes(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and maps with string keys")
}

//! A checkpoint directory that somebody else may have written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat};
use sys::{Errno, errno_of};
use tar::{Archive, Entry, EntryType};

use super::{DESCRIPTORS, FILES, Hashing, IMAGES};
use crate::manifest::{
    FileDigest, MANIFEST, MANIFEST_LIMIT, Manifest, ManifestError, POD_DIR, SHM, archive_name,
};

/// More directory entries than any checkpoint has.
const MOST_ENTRIES: usize = 10_000;

/// An opened checkpoint: every file is open, of the right kind and of the size that the manifest says.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it holds.
    pub manifest: Manifest,
    files: BTreeMap<String, File>,
}

/// The directory is not a checkpoint, or no longer the one that was written. The first field is the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The directory itself.
    #[error("open checkpoint directory {path}")]
    Open {
        /// Which.
        path: String,
        /// What came back.
        source: Errno,
    },
    /// A symlink, device, FIFO, socket, or a directory where a file belongs.
    #[error("{0}: only regular files, and the directory \"pod\", are allowed in a checkpoint")]
    Kind(String),
    /// Not in the manifest.
    #[error("{0}: the manifest does not name this file")]
    Extra(String),
    /// In the manifest only.
    #[error("{0}: the file is missing")]
    Missing(String),
    /// Not what was written.
    #[error("{file}: {size} bytes, the manifest says {expected}")]
    Size {
        /// Which.
        file: String,
        /// Its size.
        size: u64,
        /// What it was.
        expected: u64,
    },
    /// Too large to be read at all.
    #[error("{MANIFEST}: larger than {MANIFEST_LIMIT} bytes")]
    ManifestSize,
    /// Not what was written.
    #[error("{file}: digest is sha256:{digest}, the manifest says sha256:{expected}")]
    Digest {
        /// Which.
        file: String,
        /// Its digest.
        digest: String,
        /// What it was.
        expected: String,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An archive holds something that no archive of ours does.
    #[error("{file}: entry {entry:?} is not allowed: {rule}")]
    Entry {
        /// The archive.
        file: String,
        /// What is in it.
        entry: String,
        /// Why not.
        rule: &'static str,
    },
    /// It could not be read, or the private copy not be written.
    #[error("{file}: {step}")]
    Io {
        /// Which.
        file: String,
        /// What was tried.
        step: &'static str,
        /// What came back.
        source: io::Error,
    },
}

impl Checkpoint {
    /// Opens a directory and checks everything but the digests.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())
            .map_err(|source| CheckpointError::Open { path: path.display().to_string(), source })?;
        Self::open_at(dir.as_fd())
    }

    fn open_at(dir: BorrowedFd<'_>) -> Result<Self, CheckpointError> {
        let manifest = read_manifest(dir)?;
        let mut present = list(dir, "")?;
        if present.remove(POD_DIR) {
            present.extend(list(open_pod_dir(dir)?.as_fd(), &format!("{POD_DIR}/"))?);
        }
        present.remove(MANIFEST);
        if let Some(extra) = present.iter().find(|file| !manifest.files.contains_key(*file)) {
            return Err(CheckpointError::Extra(extra.clone()));
        }
        let mut files = BTreeMap::new();
        for (name, expected) in &manifest.files {
            files.insert(name.clone(), open_file(dir, name, expected)?);
        }
        Ok(Self { manifest, files })
    }

    /// Puts the contents of a container's archive into `into`, an empty directory of the caller's own, while
    /// checking the archive's digest. On error the caller empties the directory: nothing in it is to be trusted.
    pub fn extract(&mut self, container: &str, into: BorrowedFd<'_>) -> Result<(), CheckpointError> {
        let name = archive_name(container);
        let extractor = Extractor { file: &name, into };
        let (file, expected) = self.entry(&name)?;
        let mut hashing = Hashing::new(file);
        extractor.run(&mut hashing)?;
        // What follows the tar's end counts too.
        io::copy(&mut hashing, &mut io::sink()).map_err(failed(&name, "read"))?;
        check(&name, &hashing.digest(), &expected)
    }

    /// Contents of the pod's `/dev/shm`, copied to `into` while the digest is checked; false when there is none.
    pub fn extract_shm(&mut self, into: &mut File) -> Result<bool, CheckpointError> {
        if !self.files.contains_key(SHM) {
            return Ok(false);
        }
        let (file, expected) = self.entry(SHM)?;
        let mut hashing = Hashing::new(file);
        io::copy(&mut hashing, into).map_err(failed(SHM, "copy"))?;
        check(SHM, &hashing.digest(), &expected)?;
        Ok(true)
    }

    fn entry(&mut self, name: &str) -> Result<(&mut File, FileDigest), CheckpointError> {
        let expected = self.manifest.files.get(name).cloned();
        match (self.files.get_mut(name), expected) {
            (Some(file), Some(expected)) => {
                io::Seek::rewind(file).map_err(failed(name, "rewind"))?;
                Ok((file, expected))
            }
            _ => Err(CheckpointError::Missing(name.to_owned())),
        }
    }
}

impl CheckpointError {
    /// The errno behind it, such as `ENOSPC` of the private copy or `ENOENT` of the directory.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open { source, .. } => Some(*source),
            Self::Io { source, .. } => Some(errno_of(source)),
            _ => None,
        }
    }
}

fn failed(file: &str, step: &'static str) -> impl Fn(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io { file: file.to_owned(), step, source }
}

fn check(file: &str, found: &FileDigest, expected: &FileDigest) -> Result<(), CheckpointError> {
    if found.size != expected.size {
        let (size, expected) = (found.size, expected.size);
        return Err(CheckpointError::Size { file: file.to_owned(), size, expected });
    }
    if found.sha256 != expected.sha256 {
        return Err(CheckpointError::Digest {
            file: file.to_owned(),
            digest: found.sha256.clone(),
            expected: expected.sha256.clone(),
        });
    }
    Ok(())
}

fn read_manifest(dir: BorrowedFd<'_>) -> Result<Manifest, CheckpointError> {
    let file = open_regular(dir, MANIFEST)?;
    if file.metadata().map_err(failed(MANIFEST, "stat"))?.len() > MANIFEST_LIMIT {
        return Err(CheckpointError::ManifestSize);
    }
    let mut bytes = Vec::new();
    file.take(MANIFEST_LIMIT).read_to_end(&mut bytes).map_err(failed(MANIFEST, "read"))?;
    Ok(Manifest::parse(&bytes)?)
}

fn open_file(dir: BorrowedFd<'_>, name: &str, expected: &FileDigest) -> Result<File, CheckpointError> {
    let pod = format!("{POD_DIR}/");
    let file = match name.strip_prefix(&pod) {
        Some(inner) => open_regular(open_pod_dir(dir)?.as_fd(), inner),
        None => open_regular(dir, name),
    }
    .map_err(|error| match error {
        CheckpointError::Missing(_) => CheckpointError::Missing(name.to_owned()),
        other => other,
    })?;
    let size = file.metadata().map_err(failed(name, "stat"))?.len();
    if size == expected.size {
        Ok(file)
    } else {
        Err(CheckpointError::Size { file: name.to_owned(), size, expected: expected.size })
    }
}

/// Neither follows a symlink nor waits for a FIFO's writer.
fn open_regular(dir: BorrowedFd<'_>, name: &str) -> Result<File, CheckpointError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NXIO) => return Err(CheckpointError::Kind(name.to_owned())),
        Err(Errno::NOENT) => return Err(CheckpointError::Missing(name.to_owned())),
        other => other.map_err(|errno| failed(name, "open")(errno.into()))?,
    };
    let stat = fstat(&file).map_err(|errno| failed(name, "stat")(errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(CheckpointError::Kind(name.to_owned())),
    }
}

fn open_pod_dir(dir: BorrowedFd<'_>) -> Result<OwnedFd, CheckpointError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(dir, POD_DIR, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => Err(CheckpointError::Kind(POD_DIR.into())),
        Err(Errno::NOENT) => Err(CheckpointError::Missing(POD_DIR.into())),
        other => other.map_err(|errno| failed(POD_DIR, "open")(errno.into())),
    }
}

fn list(dir: BorrowedFd<'_>, prefix: &str) -> Result<BTreeSet<String>, CheckpointError> {
    let unreadable =
        |errno: Errno| failed(if prefix.is_empty() { "." } else { prefix }, "list")(errno.into());
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.insert(format!("{prefix}{name}"));
        }
        if names.len() > MOST_ENTRIES {
            return Err(CheckpointError::Extra(names.pop_last().unwrap_or_default()));
        }
    }
    Ok(names)
}

/// Takes one archive apart.
struct Extractor<'a> {
    file: &'a str,
    into: BorrowedFd<'a>,
}

impl Extractor<'_> {
    fn run(&self, from: impl Read) -> Result<(), CheckpointError> {
        let mut archive = Archive::new(from);
        let mut images = None;
        let mut seen = BTreeSet::new();
        for entry in archive.entries().map_err(failed(self.file, "read"))? {
            let mut entry = entry.map_err(failed(self.file, "read"))?;
            let name = entry.path().map_err(failed(self.file, "read"))?.into_owned();
            let text = name.to_string_lossy().trim_end_matches('/').to_owned();
            if !seen.insert(text.clone()) {
                return Err(self.refuse(&text, "it is there twice"));
            }
            match (entry.header().entry_type(), place(&name)) {
                (EntryType::Directory, Some(Place::Images)) => images = Some(self.make_images()?),
                (EntryType::Regular, Some(Place::Beside(name))) => self.copy(&mut entry, self.into, name)?,
                (EntryType::Regular, Some(Place::Image(name))) => {
                    let dir = match images.take() {
                        Some(dir) => dir,
                        None => self.make_images()?,
                    };
                    self.copy(&mut entry, dir.as_fd(), name)?;
                    images = Some(dir);
                }
                (EntryType::Regular | EntryType::Directory, _) => {
                    return Err(self.refuse(&text, "no checkpoint has a file of this name"));
                }
                _ => return Err(self.refuse(&text, "only regular files and directories are")),
            }
        }
        Ok(())
    }

    fn copy(
        &self,
        entry: &mut Entry<'_, impl Read>,
        dir: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), CheckpointError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(dir, name, flags, Mode::from_raw_mode(0o600));
        let mut made = File::from(made.map_err(|errno| failed(self.file, "extract")(errno.into()))?);
        io::copy(entry, &mut made).map_err(failed(self.file, "extract"))?;
        Ok(())
    }

    fn make_images(&self) -> Result<OwnedFd, CheckpointError> {
        let make = || {
            match mkdirat(self.into, IMAGES, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                other => other?,
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(self.into, IMAGES, flags, Mode::empty())
        };
        make().map_err(|errno| failed(self.file, "extract")(errno.into()))
    }

    fn refuse(&self, entry: &str, rule: &'static str) -> CheckpointError {
        CheckpointError::Entry { file: self.file.to_owned(), entry: entry.to_owned(), rule }
    }
}

/// Where an entry of an archive belongs.
enum Place<'a> {
    Images,
    Image(&'a str),
    Beside(&'a str),
}

fn place(path: &Path) -> Option<Place<'_>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    match names.as_slice() {
        [IMAGES] => Some(Place::Images),
        [IMAGES, name] if is_image(name) => Some(Place::Image(name)),
        [name] if FILES.contains(name) => Some(Place::Beside(name)),
        _ => None,
    }
}

/// A name that CRIU gives an image file, or the engines' list of descriptors.
pub(crate) fn is_image(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let image = name.ends_with(".img") && !name.starts_with('.') && name.len() < 100;
    name == DESCRIPTORS || (image && name.chars().all(plain))
}

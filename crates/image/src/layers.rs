//! The directories of unpacked layers: `layers/NUMBER/fs`.
//!
//! A layer is unpacked below `layers/new-NUMBER`. It gets its number's name once it is complete and on the disk; what
//! bears a temporary name, or a number that the catalogue does not know, is removed when the store is opened.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};

use crate::content::{self, StoreError};
use crate::unpack::tree;

const NEW: &str = "new-";
/// A directory for images that have no layer: overlayfs needs one.
const EMPTY: &str = "empty";

/// See the module.
#[derive(Debug)]
pub(crate) struct LayerStore {
    root: PathBuf,
    next: AtomicU64,
}

/// A layer under construction; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct NewLayer {
    number: u64,
    path: PathBuf,
    root: OwnedFd,
}

impl LayerStore {
    /// Opens the store below `root`, keeping only directories that are `known`.
    pub(crate) fn open(root: &Path, known: impl Fn(u64) -> bool) -> Result<Self, StoreError> {
        let root = root.join("layers");
        let empty = root.join(EMPTY).join("fs");
        fs::create_dir_all(&empty).map_err(StoreError::on("make", &empty))?;
        let mut last = 0;
        for entry in fs::read_dir(&root).map_err(StoreError::on("list", &root))? {
            let path = entry.map_err(StoreError::on("list", &root))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.trim_start_matches(NEW).parse().unwrap_or(0);
            last = last.max(number);
            if name != EMPTY && (name.starts_with(NEW) || !known(number)) {
                fs::remove_dir_all(&path).map_err(StoreError::on("clean", &path))?;
            }
        }
        Ok(Self { root, next: AtomicU64::new(last + 1) })
    }

    /// A new, empty layer.
    pub(crate) fn begin(&self) -> Result<NewLayer, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(format!("{NEW}{number}"));
        let directory = path.join("fs");
        fs::create_dir(&path).map_err(StoreError::on("make", &path))?;
        fs::create_dir(&directory).map_err(StoreError::on("make", &directory))?;
        let root = open(&directory)?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(StoreError::on("chmod", &directory))?;
        Ok(NewLayer { number, path, root })
    }

    /// Gives layers their names. Everything in them is on the disk when this returns.
    pub(crate) fn keep(&self, layers: &[NewLayer]) -> Result<(), StoreError> {
        let Some(first) = layers.first() else { return Ok(()) };
        rustix::fs::syncfs(&first.root).map_err(StoreError::on("sync", &self.root))?;
        for layer in layers {
            let path = self.root.join(layer.number.to_string());
            fs::rename(&layer.path, &path).map_err(StoreError::on("name", &path))?;
        }
        content::sync(&self.root)
    }

    /// Removes a layer that nothing refers to any more.
    pub(crate) fn remove(&self, number: u64) -> Result<(), StoreError> {
        // By a temporary name first, so that a crash half-way leaves nothing that looks like a layer.
        let (path, gone) = (self.root.join(number.to_string()), self.root.join(format!("{NEW}{number}")));
        fs::rename(&path, &gone).map_err(StoreError::on("remove", &path))?;
        fs::remove_dir_all(&gone).map_err(StoreError::on("remove", &gone))
    }

    pub(crate) fn exists(&self, number: u64) -> bool {
        self.directory(number).is_dir()
    }

    /// Where a layer's files are.
    pub(crate) fn directory(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string()).join("fs")
    }

    /// A directory without files.
    pub(crate) fn empty(&self) -> PathBuf {
        self.root.join(EMPTY).join("fs")
    }
}

impl NewLayer {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Brings what was unpacked so far to the disk, so that little is left for [`LayerStore::keep`].
    pub(crate) fn write_out(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.root).map_err(StoreError::on("sync", &self.path))
    }

    /// Gives directories that no entry named the attributes they have below: an archive that holds `tmp/x` without
    /// `tmp` does not mean to change `tmp`. `below` is top first.
    pub(crate) fn inherit(&self, implied: &[Vec<u8>], below: &[OwnedFd]) -> Result<(), StoreError> {
        for path in implied {
            let found = below.iter().find_map(|layer| directory_below(layer, path));
            let Some(source) = found else { continue };
            let target = tree::open_directory(self.root.as_fd(), path);
            let copied = target.map_err(Into::into).and_then(|target| copy_attributes(&source, &target));
            copied.map_err(StoreError::on("set attributes in", &self.path))?;
        }
        Ok(())
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        // Not there any more once the layer got its name.
        if self.path.exists()
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "half-made layer is left until the next start");
        }
    }
}

/// Opens a directory of the store.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(StoreError::on("open", path))
}

/// The directory at `path` in a layer, no symlink on the way.
fn directory_below(layer: &OwnedFd, path: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(layer, path, flags, Mode::empty(), resolve).ok()
}

/// Gives `target` the owner, mode, ACLs and time of `source`, ids as they are seen through `source`'s mount.
pub(crate) fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    rustix::fs::fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        let mut value = [0; 4096];
        if let Ok(length) = rustix::fs::fgetxattr(source, name, &mut value) {
            rustix::fs::fsetxattr(target, name, &value[..length], XattrFlags::empty())?;
        }
    }
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Ok(rustix::fs::futimens(target, &tree::times((stat.st_mtime, nanoseconds)))?)
}

//! Small blobs by digest: manifests and configurations, below `content/blobs/sha256`.
//!
//! A blob gets its name after its digest was checked and its bytes are on the disk: temporary file, fsync, rename,
//! fsync of the directory. Layers are not kept as blobs, see [`crate::ingest`].

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;
use crate::limits::Limits;
use crate::unpack;

/// Bytes copied between two looks at the free space.
const COPIED: u64 = 16 << 20;

/// Why the disk does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct StoreError {
    /// What was being done.
    pub action: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl StoreError {
    /// For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source: source.into() }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ContentStore {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl ContentStore {
    /// Opens the store below `root` and removes what an earlier process left half-written.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { blobs: root.join("content/blobs/sha256"), ingest: root.join("content/ingest") };
        if store.ingest.exists() {
            fs::remove_dir_all(&store.ingest).map_err(StoreError::on("clean", &store.ingest))?;
        }
        for directory in [&store.blobs, &store.ingest] {
            fs::create_dir_all(directory).map_err(StoreError::on("make", directory))?;
        }
        Ok(store)
    }

    /// Stores `content`; its digest is its name.
    pub(crate) fn put(&self, content: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(content);
        let path = self.path(&digest);
        if path.exists() {
            return Ok(digest);
        }
        let temporary = self.ingest.join(digest.hex());
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(StoreError::on("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(StoreError::on("name", &path))?;
        sync(&self.blobs)?;
        Ok(digest)
    }

    /// Removes a blob; one that is not there is removed.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::on("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes every blob that `keep` does not hold.
    pub(crate) fn retain(&self, keep: impl Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let listing = fs::read_dir(&self.blobs).map_err(StoreError::on("list", &self.blobs))?;
        for entry in listing {
            let name = entry.map_err(StoreError::on("list", &self.blobs))?.file_name();
            let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            if !digest.as_ref().is_some_and(&keep) {
                let path = self.blobs.join(&name);
                fs::remove_file(&path).map_err(StoreError::on("remove", &path))?;
            }
        }
        Ok(())
    }

    /// A file without a name on this file system: it is gone when it is closed.
    pub(crate) fn nameless(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(&self.ingest, flags, Mode::from_raw_mode(0o600))?))
    }

    /// Copies all of `from`, while there is space.
    pub(crate) fn copy(&self, from: &mut impl Read, to: &mut File, limits: &Limits) -> io::Result<()> {
        loop {
            unpack::free_space(to.as_fd(), limits, COPIED)?;
            if io::copy(&mut from.by_ref().take(COPIED), to)? < COPIED {
                return Ok(());
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(StoreError::on("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_named_by_digest_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let store = ContentStore::open(root.path()).unwrap();
        let digest = store.put(b"x").unwrap();
        assert_eq!(store.put(b"x").unwrap(), digest);
        assert_eq!(fs::read(store.path(&digest)).unwrap(), b"x");
        let left = store.ingest.join("half");
        fs::write(&left, "").unwrap();
        let store = ContentStore::open(root.path()).unwrap();
        assert!(!left.exists() && store.path(&digest).exists());
        store.retain(|kept| *kept == digest).unwrap();
        assert!(store.path(&digest).exists());
        store.remove(&digest).unwrap();
        store.remove(&digest).unwrap();
        assert!(!store.path(&digest).exists());
    }
}

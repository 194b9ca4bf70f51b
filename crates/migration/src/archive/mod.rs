//! One container's checkpoint as a tar that the field's tools read, and the directory of a pod's.
//!
//! ```text
//! config.dump spec.dump                 checkpointctl, CRI-O, containerd: who it was
//! status.dump status                    containerd: its CRI status
//! bind.mounts                           CRI-O: what was mounted from the host
//! rootfs-diff.tar deleted.files         plain tar of what changed, JSON list of what is gone (CRI-O, Podman)
//! devshm-checkpoint.tar                 Podman: /dev/shm (only in the archive of a single container)
//! stats-dump dump.log                   CRIU's numbers and its log
//! checkpoint/*.img descriptors.json     CRIU's images; what 0, 1 and 2 were (runc, crun)
//! ```
//!
//! This is the union of what containerd and CRI-O write, so that readers of both find their files; checkpointctl
//! takes it for containerd's. Uncompressed, mode 0600, regular files and directories only.
//!
//! [`write()`] makes one, [`Checkpoint`] opens a directory of them. A directory is untrusted: [`Checkpoint::open`] looks
//! at kinds, names and sizes without following a link, and [`Checkpoint::extract`] checks the digest of the very
//! bytes that it puts into a private directory, so that CRIU never reads one that was not looked at.

mod directory;
mod metadata;
mod write;

#[cfg(feature = "transport")]
pub(crate) use directory::is_image;
pub use directory::{Checkpoint, CheckpointError};
pub use metadata::{BindMount, ContainerFacts};
pub use write::{Parts, WriteError, digest_of, write, write_pod_options};

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::manifest::FileDigest;

const CONFIG: &str = "config.dump";
const SPEC: &str = "spec.dump";
const STATUS: &str = "status.dump";
const SHORT_STATUS: &str = "status";
const BIND_MOUNTS: &str = "bind.mounts";
/// What changed in the root filesystem: a tar.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// What is gone from the root filesystem: a JSON array of absolute paths.
pub const DELETED: &str = "deleted.files";
/// Contents of `/dev/shm`: a tar.
pub const SHM: &str = "devshm-checkpoint.tar";
const STATS: &str = "stats-dump";
const LOG: &str = "dump.log";
/// CRIU's images.
pub const IMAGES: &str = "checkpoint";
/// In [`IMAGES`]: what the descriptors 0, 1 and 2 were.
pub const DESCRIPTORS: &str = "descriptors.json";

/// Files beside [`IMAGES`].
pub(crate) const FILES: [&str; 10] =
    [CONFIG, SPEC, STATUS, SHORT_STATUS, BIND_MOUNTS, ROOTFS_DIFF, DELETED, SHM, STATS, LOG];

/// Counts and hashes what passes through.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    size: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn digest(self) -> FileDigest {
        FileDigest { size: self.size, sha256: hex::encode(self.hash.finalize()) }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.passed(&bytes[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;

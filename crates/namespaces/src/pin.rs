//! Pins: bind mounts that keep namespaces alive with no process in them.
//!
//! They live on a tmpfs that is private (no copy appears in another mount namespace) and unbindable (a recursive
//! clone of its parent, such as a hostPath of /run, leaves it out), so that nobody else can keep a dead pod's
//! namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sys::Errno;
use sys::mount::{self, Attributes, Filesystem, Flags, Propagation};
use sys::namespace::Kind;

/// The directory of all pins of one daemon: `RUN/ns/POD/KIND`.
#[derive(Debug, Clone)]
pub struct Pins(PathBuf);

/// Why a pin could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A mount call failed.
    #[error("{call} {path}")]
    Mount {
        /// What was tried.
        call: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A file call failed.
    #[error("{call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Pins {
    /// Opens the directory, making it and its tmpfs where missing. The path is the daemon's own.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        fs::create_dir_all(directory).map_err(file("make directory", directory))?;
        if !is_mount_point(directory)? {
            let tmpfs = tmpfs().map_err(mounting("make a tmpfs for", directory))?;
            mount::attach_at(&tmpfs, directory).map_err(mounting("mount", directory))?;
            // After attaching: a mount takes its propagation from the peer group of its new parent.
            let change = Attributes { propagation: Some(Propagation::Unbindable), ..Attributes::default() };
            mount::set_attributes(&tmpfs, false, &change).map_err(mounting("make unbindable", directory))?;
        }
        Ok(Self(directory.to_owned()))
    }

    /// Keeps a pod's namespace.
    pub fn pin(&self, pod: &str, kind: Kind, namespace: impl AsFd) -> Result<(), PinError> {
        let path = self.path(pod, kind);
        fs::create_dir_all(self.0.join(pod)).map_err(file("make directory", &path))?;
        File::create_new(&path).map_err(file("create", &path))?;
        let clone = mount::clone_tree(namespace, "", false).map_err(mounting("clone for", &path))?;
        mount::attach_at(&clone, &path).map_err(mounting("pin at", &path))
    }

    /// A descriptor of a pinned namespace.
    ///
    /// # Errors
    /// `NotFound` (in the source) when it was never pinned.
    pub fn get(&self, pod: &str, kind: Kind) -> Result<OwnedFd, PinError> {
        let path = self.path(pod, kind);
        let found = File::open(&path).map_err(file("open pin", &path))?;
        sys::namespace::kind(&found).map_err(mounting("no namespace is pinned at", &path))?;
        Ok(found.into())
    }

    /// The kinds pinned for a pod; empty when it is unknown.
    #[must_use]
    pub fn kinds(&self, pod: &str) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|k| self.get(pod, *k).is_ok()).collect()
    }

    /// Pods that have a directory here, for recovery.
    pub fn pods(&self) -> Result<Vec<String>, PinError> {
        let entries = fs::read_dir(&self.0).map_err(file("list", &self.0))?;
        Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
    }

    /// Lets go of one namespace. Fine when it is not pinned.
    pub fn unpin(&self, pod: &str, kind: Kind) -> Result<(), PinError> {
        let path = self.path(pod, kind);
        match mount::detach(&path) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(mounting("unpin", &path)(errno)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Lets go of all of a pod's namespaces: tries every kind and reports what stays.
    ///
    /// The kernel destroys them in the background once nothing else holds them.
    #[must_use]
    pub fn unpin_all(&self, pod: &str) -> Vec<PinError> {
        let mut errors: Vec<_> = Kind::ALL.into_iter().filter_map(|k| self.unpin(pod, k).err()).collect();
        let directory = self.0.join(pod);
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(file("remove", &directory)(error))
            }
            _ => {}
        }
        errors
    }

    /// Where a pin is: `nsenter --net=PATH` takes it.
    #[must_use]
    pub fn path(&self, pod: &str, kind: Kind) -> PathBuf {
        self.0.join(pod).join(kind.name())
    }
}

fn tmpfs() -> sys::Result<OwnedFd> {
    let flags = Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV | Flags::MOUNT_ATTR_NOEXEC;
    Filesystem::open("tmpfs")?.set("mode", "0700")?.set("size", "1m")?.mount(flags)
}

fn is_mount_point(directory: &Path) -> Result<bool, PinError> {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(file("look at", path));
    Ok(device(directory)? != device(&directory.join(".."))?)
}

fn mounting(call: &'static str, path: &Path) -> impl FnOnce(Errno) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Mount { call, path, source }
}

fn file(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::File { call, path, source }
}

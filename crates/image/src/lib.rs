//! Images: from a reference to the root filesystem of a container.
//!
//! ```text
//!  "busybox:1"      reference   what the name means
//!      |            registry    mirrors, credentials, HTTP
//!      v            manifest    which configuration and layers
//!  pull, import ->  install     fetch + hash + unpack what is missing, then commit
//!      |            ingest      one blob, hashed twice on its way
//!      v            unpack      hostile tar -> directory
//!   content         small blobs by digest             (content/blobs/sha256/HEX)
//!   layers          one directory per layer           (layers/NUMBER/fs)
//!   store           catalogue + database + locks      (images.redb)
//!      |
//!      v
//!   rootfs          overlay of layers and a container's own directory, as a detached mount
//!   volume          overlay of layers alone, read-only: an image or an artifact as a volume
//! ```
//!
//! [`Images`] is the whole interface: [`pull`](Images::pull), [`import`](Images::import), [`get`](Images::get),
//! [`list`](Images::list), [`remove`](Images::remove), [`collect`](Images::collect), [`rootfs`](Images::rootfs),
//! [`volume`](Images::volume).
//! An image's id is the digest of its configuration, so it is the same from every registry. A layer's identity is its
//! chain id; it is kept unpacked only, which halves the disk that an image takes. Nothing is visible before all of its
//! digests were right and it is on the disk; whatever an interrupted pull left is removed by the next
//! [`open`](Images::open).
//!
//! Invariants:
//! - Everything that comes from a registry or an archive is hostile: bounded, checked, and resolved inside its layer.
//! - A layer is used for an image only after that pull proved that it may have it (see `install`).
//! - An image that was removed stays on the disk while a container holds it, see [`Images::hold`].
//! - This crate knows nothing of pods, and runs nothing out of an image.

mod artifact;
mod catalogue;
mod compression;
mod content;
mod digest;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod grammar;
mod import;
mod ingest;
mod install;
mod layers;
mod limits;
mod manifest;
mod metadata;
mod overlay;
mod pull;
mod reference;
mod registry;
mod rootfs;
mod store;
mod unpack;
mod volume;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

pub use catalogue::Image;
pub use content::StoreError;
pub use digest::{ChainId, DiffId, Digest, ImageId, InvalidDigest};
pub use error::Class;
pub use grammar::GrammarError;
pub use import::ImportError;
pub use ingest::LayerError;
pub use install::InstallError;
pub use limits::{LimitExceeded, Limits};
pub use manifest::ManifestError;
pub use metadata::MetadataError;
pub use pull::PullError;
pub use reference::{Reference, ReferenceError};
pub use registry::{Auth, FetchError, Mirror, received_bytes};
pub use rootfs::{IdMap, Rootfs, RootfsError};
pub use store::{CommitError, Hold};
pub use unpack::{Malformed, NameRule, UnpackError};
pub use volume::{Volume, VolumeError};

use registry::Registries;
use store::Store;

/// How images are kept and reached.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// Directory of `images.redb`, `content` and `layers`. Made if missing.
    pub root: PathBuf,
    /// Where to ask before a registry itself, in this order.
    pub mirrors: Vec<Mirror>,
    /// Registries, with or without port, that are spoken to over plain HTTP; loopback always is.
    pub insecure: Vec<String>,
    /// Directories in containerd's `certs.d` layout that say how registries are reached.
    pub hosts: Vec<PathBuf>,
    /// Names of images that kubelet shall never remove to free space.
    pub pinned: Vec<String>,
    /// Bounds on what comes from outside.
    pub limits: Limits,
}

/// Why the images of this node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk or the database.
    #[error("cannot open the images below {}", root.display())]
    Store {
        /// The configured directory.
        root: PathBuf,
        /// What failed.
        #[source]
        source: CommitError,
    },
    /// The registry client or the configuration of mirrors.
    #[error("cannot use the configuration of registries")]
    Registries(#[source] FetchError),
    /// A name in the configuration's list of pinned images.
    #[error("cannot use the configuration of pinned images")]
    Pinned(#[from] ReferenceError),
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No image has this name or id. For CRI's RemoveImage that is success.
    #[error("image {name:?} is not here")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The disk or the database.
    #[error("cannot remove image {name:?}")]
    Commit {
        /// The name.
        name: String,
        /// What failed.
        #[source]
        source: CommitError,
    },
}

/// What the images of this node take on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// A directory on the file system that holds them.
    pub mountpoint: PathBuf,
    /// Bytes, in blocks of 4 KiB.
    pub used_bytes: u64,
    /// Files and directories.
    pub inodes_used: u64,
}

/// The images of this node. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ImageConfig,
    store: Arc<Store>,
    registries: RwLock<Arc<Registries>>,
    pinned: Vec<String>,
}

impl Images {
    /// Opens the images below `config.root`, cleaning up after earlier processes. Blocks.
    ///
    /// # Errors
    /// The directory cannot be used, another process has it, or its database belongs to a newer version.
    pub fn open(config: ImageConfig) -> Result<Self, OpenError> {
        let store = Store::open(&config.root)
            .map_err(|source| OpenError::Store { root: config.root.clone(), source })?;
        let registries = Registries::new(
            config.mirrors.clone(),
            config.insecure.clone(),
            config.hosts.clone(),
            config.limits.clone(),
        )
        .map_err(OpenError::Registries)?;
        let full = |name: &String| name.parse::<Reference>().map(|reference| reference.to_string());
        let pinned = config.pinned.iter().map(full).collect::<Result<_, _>>()?;
        let registries = RwLock::new(Arc::new(registries));
        Ok(Self { inner: Arc::new(Inner { config, store: Arc::new(store), registries, pinned }) })
    }

    /// Asks these mirrors, and these registries over plain HTTP, from now on; pulls under way end as they began.
    ///
    /// # Errors
    /// See [`OpenError::Registries`]; what was configured before stays.
    pub fn reconfigure(&self, mirrors: Vec<Mirror>, insecure: Vec<String>) -> Result<(), OpenError> {
        let (hosts, limits) = (self.inner.config.hosts.clone(), self.inner.config.limits.clone());
        let registries = Registries::new(mirrors, insecure, hosts, limits);
        let registries = Arc::new(registries.map_err(OpenError::Registries)?);
        *self.inner.registries.write().unwrap_or_else(PoisonError::into_inner) = registries;
        Ok(())
    }

    /// Makes sure that the image `reference` names in its registry now is here. Dropping the future cancels.
    ///
    /// # Errors
    /// See [`PullError::class`]; nothing is changed then.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<ImageId, PullError> {
        let Inner { config, store, registries, .. } = &*self.inner;
        let registries = Arc::clone(&registries.read().unwrap_or_else(PoisonError::into_inner));
        pull::pull(store, &registries, reference, auth, &config.limits).await
    }

    /// Imports the images of an OCI layout in a tar or of a docker-save archive, compressed or not; returns the names
    /// under which they are found now, the id for an image without a name.
    ///
    /// # Errors
    /// See [`ImportError::class`]. Images of the archive before the one at fault stay.
    pub async fn import(&self, archive: File) -> Result<Vec<String>, ImportError> {
        import::import(&self.inner.store, archive, None, &self.inner.config.limits).await
    }

    /// As [`import`](Self::import); an archive of one image without a name gives it this one.
    ///
    /// # Errors
    /// See [`ImportError::class`].
    pub async fn import_as(&self, archive: File, name: &Reference) -> Result<Vec<String>, ImportError> {
        import::import(&self.inner.store, archive, Some(name), &self.inner.config.limits).await
    }

    /// The image that a name, an id or the beginning (3 digits or more) of exactly one id means.
    #[must_use]
    pub fn get(&self, name_or_id: &str) -> Option<Arc<Image>> {
        self.inner.store.catalogue().find(name_or_id).cloned()
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.store.catalogue().listed().cloned().collect()
    }

    /// True if the configuration pins the image by one of its names.
    #[must_use]
    pub fn is_pinned(&self, image: &Image) -> bool {
        image.repo_tags.iter().chain(&image.repo_digests).any(|name| self.inner.pinned.contains(name))
    }

    /// Removes an image with all its names. Its layers go with the next [`collect`](Self::collect). Blocks for a
    /// transaction.
    ///
    /// # Errors
    /// There is no such image, or the database fails.
    pub fn remove(&self, name_or_id: &str) -> Result<(), RemoveError> {
        let name = || name_or_id.to_owned();
        let commit = self.inner.store.begin();
        let new = commit.catalogue().without_image(name_or_id);
        let new = new.ok_or_else(|| RemoveError::NotFound { name: name() })?;
        commit.publish(new).map_err(|source| RemoveError::Commit { name: name(), source: source.into() })
    }

    /// Keeps an image, listed or removed, on the disk; `None` if it is not there any more. A container holds its images
    /// from before [`rootfs`](Self::rootfs) until its directory is gone.
    #[must_use]
    pub fn hold(&self, id: &ImageId) -> Option<Hold> {
        self.inner.store.hold(id)
    }

    /// Frees what no listed image, no image that is [held](Self::hold) and no pull under way needs. Call it after an
    /// image or a container was removed, and at start once all containers hold their images. Blocks.
    ///
    /// # Errors
    /// The disk or the database fails; what is left goes next time or at the next start.
    pub fn collect(&self) -> Result<(), CommitError> {
        self.inner.store.sweep()
    }

    /// What all images take on the disk.
    #[must_use]
    pub fn fs_info(&self) -> FsUsage {
        let catalogue = self.inner.store.catalogue();
        let documents = catalogue.documents().len() as u64;
        let layers = || catalogue.layers.values();
        FsUsage {
            mountpoint: self.inner.config.root.clone(),
            used_bytes: layers().map(|layer| layer.disk).sum::<u64>() + 4096 * documents,
            inodes_used: layers().map(|layer| layer.inodes).sum::<u64>() + documents,
        }
    }

    /// Makes the root filesystem of container `key` below `directory`, which must be on a file system that can be
    /// overlayfs' upper and, with `map`, belongs to the pod's user namespace. Whatever `directory/upper` holds already
    /// is part of it. Takes about 0.2 ms. The caller removes `directory` when the container is gone.
    ///
    /// # Errors
    /// The image was swept meanwhile, or the kernel refuses.
    pub fn rootfs(
        &self,
        image: &Image,
        key: &str,
        directory: &Path,
        map: Option<IdMap<'_>>,
    ) -> Result<Rootfs, RootfsError> {
        let store = &self.inner.store;
        rootfs::make(&store.layers, &store.catalogue(), image, key, directory, map)
    }

    /// Makes a read-only volume for container `key`: `image`, or the directory or file at `path` in it; `directory` and
    /// `map` as for [`rootfs`](Self::rootfs). Takes about 0.2 ms.
    ///
    /// # Errors
    /// `path` is not in the image or a device, the image was swept meanwhile, or the kernel refuses.
    pub fn volume(
        &self,
        image: &Image,
        key: &str,
        directory: &Path,
        path: &str,
        map: Option<IdMap<'_>>,
    ) -> Result<Volume, VolumeError> {
        let store = &self.inner.store;
        volume::make(&store.layers, &store.catalogue(), image, key, directory, path, map)
    }
}

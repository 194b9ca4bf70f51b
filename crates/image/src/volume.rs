//! An image, or something in it, as a read-only volume of a container (KEP-4639).
//!
//! The volume is an overlay of the image's layers without an upper directory: its super block is read-only, so that no
//! remount makes it writable. A sub-path is resolved inside that mount, symlinks included, and cloned from the
//! descriptor that was found (CVE-2017-1002101).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;
use sys::root::Root;

use crate::catalogue::{Catalogue, Image};
use crate::layers::LayerStore;
use crate::overlay::{Attached, Overlay};
use crate::rootfs::{self, IdMap, RootfsError};

/// Why an image cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its layers.
    #[error(transparent)]
    Layers(#[from] RootfsError),
    /// The sub-path leads nowhere in the image.
    #[error("{path:?} is not in image {image}")]
    SubPath {
        /// As asked for.
        path: String,
        /// The image.
        image: crate::ImageId,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The sub-path leads to a device, a pipe or a socket.
    #[error("{path:?} in image {image} is neither a directory nor a regular file")]
    Kind {
        /// As asked for.
        path: String,
        /// The image.
        image: crate::ImageId,
    },
    /// The kernel refuses a mount of it.
    #[error("cannot mount {path:?} of image {image}")]
    Mount {
        /// As asked for.
        path: String,
        /// The image.
        image: crate::ImageId,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
}

/// A volume, attached nowhere.
#[derive(Debug)]
pub struct Volume {
    /// The detached mount.
    pub tree: OwnedFd,
    /// It is a file rather than a directory.
    pub file: bool,
}

/// Makes a volume of `image`, or of what is at `path` in it.
pub(crate) fn make(
    store: &LayerStore,
    catalogue: &Catalogue,
    image: &Image,
    key: &str,
    directory: &Path,
    path: &str,
    map: Option<IdMap<'_>>,
) -> Result<Volume, VolumeError> {
    let scratch = directory.join("mounts");
    let mut lowers = rootfs::lowers(store, catalogue, image, map)?;
    // overlayfs wants two layers where there is no upper directory.
    if lowers.len() < 2 {
        lowers.push(rootfs::open_lower(&store.empty(), map)?);
    }
    let overlay = Overlay { key, lowers: &lowers, mapped: map.is_some(), upper: None };
    let tree = overlay.mount(&scratch)?;
    if path.is_empty() {
        return Ok(Volume { tree, file: false });
    }
    let (path_of, image) = (|| path.to_owned(), || image.id.clone());
    let found = Root::new(tree.as_fd()).locate(path);
    let found = found.map_err(|source| VolumeError::SubPath { path: path_of(), image: image(), source })?;
    let failed = |source| VolumeError::Mount { path: path_of(), image: image(), source };
    let file = match FileType::from_raw_mode(rustix::fs::fstat(&found).map_err(failed)?.st_mode) {
        FileType::Directory => false,
        FileType::RegularFile => true,
        _ => return Err(VolumeError::Kind { path: path_of(), image: image() }),
    };
    match sys::mount::clone_tree(&found, "", false) {
        // Before Linux 6.15 only what is attached can be cloned.
        Err(Errno::INVAL) => {
            let mut attached = Attached::default();
            let attach = |place: &Path| sys::mount::attach_at(&tree, place);
            attached.place(&scratch, "volume", attach).map_err(RootfsError::from)?;
            sys::mount::clone_tree(&found, "", false)
        }
        cloned => cloned,
    }
    .map(|tree| Volume { tree, file })
    .map_err(failed)
}

//! A container's root filesystem: an overlay of an image's layers and a directory of its own, as a detached mount.
//!
//! Pods with a user namespace: layers are seen through idmapped clones, the upper directory belongs to the host id of
//! the container's root and holds shifted ids. An idmapped *upper* would silently be read-only, so that the finished
//! mount is asked whether it can be written.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, StatVfsMountFlags, Uid};
use sys::mount::Attributes;

use crate::catalogue::{Catalogue, Image};
use crate::content::StoreError;
use crate::layers::{self, LayerStore};
use crate::overlay::{Overlay, Upper};

/// Why a root filesystem could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The image was removed and swept since it was looked up.
    #[error("image {image} is not here any more: pull it again")]
    Gone {
        /// The image.
        image: crate::ImageId,
    },
    /// The container's directories.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be seen through the pod's user namespace.
    #[error("cannot map the ids of layer {}: the file system below does not support idmapped mounts", layer.display())]
    IdMap {
        /// The layer's directory.
        layer: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// overlayfs refused.
    #[error("cannot {step} the overlay of container {key}: {messages:?}")]
    Overlay {
        /// The container.
        key: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's messages.
        messages: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is there, but cannot be written.
    #[error(
        "the overlay of container {key} is read-only: its upper directory cannot be used by this mapping"
    )]
    ReadOnly {
        /// The container.
        key: String,
    },
}

/// The ids of a pod with a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct IdMap<'a> {
    /// The namespace, with its maps written.
    pub namespace: BorrowedFd<'a>,
    /// Host user id of its id 0.
    pub root_uid: u32,
    /// Host group id of its id 0.
    pub root_gid: u32,
}

/// A container's root filesystem.
#[derive(Debug)]
pub struct Rootfs {
    /// The overlay, a detached mount; it lives as long as this descriptor and what is attached of it.
    pub mount: OwnedFd,
    /// The directory that takes what the container writes.
    pub upper: PathBuf,
}

/// Makes the root filesystem of container `key` below `directory`, in which `upper` and `work` are made. Files that
/// `upper` already holds are part of it.
pub(crate) fn make(
    store: &LayerStore,
    catalogue: &Catalogue,
    image: &Image,
    key: &str,
    directory: &Path,
    map: Option<IdMap<'_>>,
) -> Result<Rootfs, RootfsError> {
    let lowers = lowers(store, catalogue, image, map)?;
    let (upper, work) = directories(directory, &lowers[0], map)?;
    let writable = Upper { upper: layers::open(&upper)?, work: layers::open(&work)? };
    let overlay = Overlay { key, lowers: &lowers, mapped: map.is_some(), upper: Some(writable) };
    let mount = overlay.mount(&directory.join("mounts"))?;
    let state = rustix::fs::fstatvfs(&mount).map_err(|source| overlay.error("examine", None, source))?;
    if state.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(RootfsError::ReadOnly { key: key.to_owned() });
    }
    Ok(Rootfs { mount, upper })
}

/// The directories of the image's layers, top first, down to one that lets nothing show through.
pub(crate) fn lowers(
    store: &LayerStore,
    catalogue: &Catalogue,
    image: &Image,
    map: Option<IdMap<'_>>,
) -> Result<Vec<OwnedFd>, RootfsError> {
    let mut lowers = Vec::new();
    for chain in image.layers.iter().rev() {
        let layer =
            catalogue.layers.get(chain).ok_or_else(|| RootfsError::Gone { image: image.id.clone() })?;
        lowers.push(open_lower(&store.directory(layer.directory), map)?);
        if layer.hides_everything {
            break;
        }
    }
    if lowers.is_empty() {
        lowers.push(open_lower(&store.empty(), map)?);
    }
    Ok(lowers)
}

pub(crate) fn open_lower(path: &Path, map: Option<IdMap<'_>>) -> Result<OwnedFd, RootfsError> {
    let plain = layers::open(path)?;
    let Some(map) = map else { return Ok(plain) };
    let attributes = Attributes { id_map: Some(map.namespace), ..Attributes::default() };
    sys::mount::clone_tree(&plain, "", false)
        .and_then(|clone| sys::mount::set_attributes(&clone, false, &attributes).map(|()| clone))
        .map_err(|source| RootfsError::IdMap { layer: path.to_owned(), source: source.into() })
}

/// Makes `upper`, unless it is there, and a fresh `work`. A new `upper` looks as the image's root does: overlayfs shows
/// its owner and mode as those of `/`.
fn directories(
    directory: &Path,
    top: &OwnedFd,
    map: Option<IdMap<'_>>,
) -> Result<(PathBuf, PathBuf), RootfsError> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    if !upper.exists() {
        fs::create_dir_all(&upper).map_err(StoreError::on("make", &upper))?;
        layers::copy_attributes(top, &layers::open(&upper)?)
            .map_err(StoreError::on("set attributes of", &upper))?;
    }
    // What is left of an earlier mount would make a volatile one refuse (overlayfs.rst, "Volatile mount").
    if work.exists() {
        fs::remove_dir_all(&work).map_err(StoreError::on("clean", &work))?;
    }
    fs::create_dir(&work).map_err(StoreError::on("make", &work))?;
    let (uid, gid) = map.map_or((0, 0), |map| (map.root_uid, map.root_gid));
    rustix::fs::fchown(layers::open(&work)?, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(StoreError::on("chown", &work))?;
    Ok((upper, work))
}

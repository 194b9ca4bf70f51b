//! Volumes whose source is an image (KEP-4639).

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use api::cri::v1 as cri;
use image::{Hold, IdMap, Image, Images, VolumeError};
use rustix::io::Errno;
use sys::mount::{Attributes, Propagation, set_attributes};

use super::SpecError;
use super::mounts::{Entry, option_flags};

/// Why an image is no volume of a container. The kubelet looks for the first word (cri-api pkg/errors).
#[derive(Debug, thiserror::Error)]
pub enum ImageVolumeError {
    /// The image is not on this node.
    #[error("ImageVolumeMountFailed: config.mounts: image {image:?} is not on this node: pull it first")]
    NoImage {
        /// As given.
        image: String,
    },
    /// Crate `image` refuses.
    #[error("ImageVolumeMountFailed: config.mounts: {path}")]
    Volume {
        /// The container's path.
        path: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// The kernel refuses the mount's flags.
    #[error("ImageVolumeMountFailed: config.mounts: {path} cannot get its flags")]
    Flags {
        /// The container's path.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
}

/// Where image volumes of a container come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub images: &'a Images,
    /// The container's id.
    pub key: &'a str,
    /// The container's directory.
    pub directory: &'a Path,
    /// Of a pod with a user namespace.
    pub map: Option<IdMap<'a>>,
}

/// Whether the source of a volume is an image.
pub(crate) fn is_image(volume: &cri::Mount) -> bool {
    volume.image.as_ref().is_some_and(|spec| !spec.image.is_empty())
}

impl Source<'_> {
    /// The image that a volume names.
    fn image(&self, volume: &cri::Mount) -> Result<Arc<Image>, ImageVolumeError> {
        let name = volume.image.as_ref().map(|spec| spec.image.as_str()).unwrap_or_default();
        let short = || name.chars().take(200).collect();
        self.images.get(name).ok_or_else(|| ImageVolumeError::NoImage { image: short() })
    }

    /// Holds the images among these volumes; their ids, by the container's path.
    pub(crate) fn hold(
        &self,
        volumes: &[cri::Mount],
    ) -> Result<(BTreeMap<String, String>, Vec<Hold>), SpecError> {
        let (mut ids, mut holds) = (BTreeMap::new(), Vec::new());
        for volume in volumes.iter().filter(|volume| is_image(volume)) {
            let id = self.image(volume)?.id.clone();
            let gone = || ImageVolumeError::NoImage { image: id.to_string() };
            holds.push(self.images.hold(&id).ok_or_else(gone)?);
            ids.insert(volume.container_path.clone(), id.to_string());
        }
        Ok((ids, holds))
    }

    /// The volume as a mount: read-only whatever is asked, private, with the options asked for.
    pub(super) fn open(&self, volume: &cri::Mount) -> Result<Entry, SpecError> {
        let image = self.image(volume)?;
        let path = || volume.container_path.clone();
        let made = self
            .images
            .volume(&image, self.key, self.directory, &volume.image_sub_path, self.map)
            .map_err(|source| ImageVolumeError::Volume { path: path(), source })?;
        let change = Attributes {
            set: option_flags(&volume.mount_options) | sys::mount::Flags::MOUNT_ATTR_RDONLY,
            propagation: Some(Propagation::Private),
            ..Attributes::default()
        };
        set_attributes(made.tree.as_fd(), false, &change)
            .map_err(|source| ImageVolumeError::Flags { path: path(), source })?;
        let mut options = vec!["bind".to_owned(), "rprivate".to_owned(), "ro".to_owned()];
        options.extend(volume.mount_options.iter().cloned());
        let mut mount = oci_spec::runtime::Mount::default();
        mount.set_destination(volume.container_path.clone().into());
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(format!("{}/{}", image.id, volume.image_sub_path).into()));
        mount.set_options(Some(options));
        Ok(Entry { mount, tree: Some(made.tree), file: made.file, pod_shm: false })
    }
}

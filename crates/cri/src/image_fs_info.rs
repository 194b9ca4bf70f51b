//! `ImageFsInfo`.

use api::cri::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use image::Images;

use crate::sandbox_status::now;

/// What images take. Writable layers live on the same filesystem, which an empty second list says.
pub(crate) fn fs_info(images: &Images) -> ImageFsInfoResponse {
    let usage = images.fs_info();
    let image_filesystem = FilesystemUsage {
        timestamp: now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes_used }),
    };
    ImageFsInfoResponse { image_filesystems: vec![image_filesystem], container_filesystems: Vec::new() }
}

//! `ImageFsInfo`.

use api::cri::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use image::Images;
use pod::Pods;

use crate::sandbox_status::now;

/// What images and writable layers take (KEP-4191): both have the one mount point, because they are on one file system.
/// Blocks: writable layers that were not measured of late are walked.
pub(crate) fn fs_info(pods: &Pods, images: &Images) -> ImageFsInfoResponse {
    let usage = images.fs_info();
    let (bytes, inodes) = pods.writable_layers();
    let filesystem = |bytes, inodes| FilesystemUsage {
        timestamp: now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    };
    ImageFsInfoResponse {
        image_filesystems: vec![filesystem(usage.used_bytes, usage.inodes_used)],
        container_filesystems: vec![filesystem(bytes, inodes)],
    }
}

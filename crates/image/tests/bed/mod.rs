//! What the tests of this crate stand on: a byte-level tar builder, images made of such tars, a registry that does what
//! a test tells it, and the real `docker-registry` where it is installed.

#![allow(dead_code, reason = "every test binary uses another part")]

pub mod registry;
pub mod tar;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Digest, Image, ImageConfig, Images, Rootfs};

/// Images in a directory of their own, with a tree beside it that nothing may touch.
pub struct Bed {
    pub directory: tempfile::TempDir,
    pub config: ImageConfig,
    pub images: Images,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(configure: impl FnOnce(&mut ImageConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = ImageConfig { root: directory.path().join("root"), ..ImageConfig::default() };
        config.limits.free_space = 0;
        configure(&mut config);
        let canary = directory.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "untouched").unwrap();
        let images = Images::open(config.clone()).unwrap();
        Self { directory, config, images }
    }

    /// The images as the next process sees them.
    pub fn reopened(self) -> Self {
        let Self { directory, config, images } = self;
        drop(images);
        let images = Images::open(config.clone()).unwrap();
        Self { directory, config, images }
    }

    pub fn rootfs(&self, image: &Image) -> Rootfs {
        let key = format!("container-{}", &image.id.digest().hex()[..12]);
        let directory = self.directory.path().join("containers").join(&key);
        self.images.rootfs(image, &key, &directory, None).unwrap()
    }

    pub fn get(&self, name: &str) -> Arc<Image> {
        self.images.get(name).unwrap_or_else(|| panic!("{name} is not here"))
    }

    /// Nothing outside was changed, nothing half-made is left, every blob has its digest.
    pub fn assert_clean(&self, context: &str) {
        let canary = self.directory.path().join("canary");
        assert_eq!(listing(&canary), ["file"], "{context}");
        assert_eq!(fs::read(canary.join("file")).unwrap(), b"untouched", "{context}");
        let root = &self.config.root;
        let layers: BTreeSet<_> = self.images.list().iter().flat_map(|image| image.layers.clone()).collect();
        let directories = listing(&root.join("layers"));
        assert!(directories.iter().all(|name| !name.starts_with("new-")), "{context}: {directories:?}");
        assert!(directories.len() <= layers.len() + 1, "{context}: {directories:?}");
        assert_eq!(listing(&root.join("content/ingest")), [""; 0], "{context}");
        for blob in listing(&root.join("content/blobs/sha256")) {
            let content = fs::read(root.join("content/blobs/sha256").join(&blob)).unwrap();
            assert_eq!(Digest::of(&content).hex(), blob, "{context}");
        }
    }
}

/// A path of a root filesystem that is attached nowhere.
pub fn inside(rootfs: &Rootfs, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", rootfs.mount.as_raw_fd())).join(path)
}

pub fn listing(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An error with everything below it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[derive(Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Built {
    pub blobs: Vec<Vec<u8>>,
    pub archives: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// Makes an image of uncompressed layers, bottom first.
pub fn build(layers: &[Vec<u8>], packing: Packing) -> Built {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let blobs: Vec<_> = layers.iter().map(|layer| pack(layer, packing)).collect();
    let manifest = manifest(&config, &blobs);
    Built { blobs, archives: layers.to_vec(), config, manifest }
}

pub fn manifest(config: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let layers: Vec<_> =
        blobs.iter().map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": layers,
    });
    manifest.to_string().into_bytes()
}

pub fn descriptor(kind: &str, content: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len()})
}

pub fn pack(content: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => content.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(content, 1).unwrap(),
    }
}

/// False, with the reason, where the tests cannot make devices and mounts.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

//! From the pieces of a cut to a checkpoint: one archive a container, one manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use api::cri::v1::PodSandboxConfig;
use migration::archive::{self, BindMount, ContainerFacts, Parts};
use migration::clock::Policy;
use migration::manifest::{
    self, Encoded, FileDigest, Image, MANIFEST, Manifest, Needs, POD_DIR, POD_OPTIONS, SHM, VERSION,
    archive_name,
};
use prost::Message;
use rustix::fs::{Mode, OFlags, fsync, mkdirat, openat};
use serde_json::Value;

use super::CheckpointError;
use super::cut::{Cut, Taken};
use crate::node::now;
use crate::pod::Pod;

/// A new file of the checkpoint, and how to say what went wrong with it.
struct Directory<'a> {
    fd: &'a OwnedFd,
    path: &'a Path,
}

impl Directory<'_> {
    fn create(&self, name: &str) -> Result<File, CheckpointError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(self.fd, name, flags, Mode::from_raw_mode(0o600));
        made.map(File::from).map_err(|e| self.failed(name, e.into()))
    }

    fn failed(&self, name: &str, source: io::Error) -> CheckpointError {
        CheckpointError::File { path: self.path.join(name), source }
    }

    fn written(&self, name: &str, file: &File) -> Result<(), CheckpointError> {
        file.sync_all().map_err(|e| self.failed(name, e))
    }
}

/// Writes a pod's checkpoint into the directory `fd`; everything is on disk when this returns.
pub(super) fn directory(
    pod: &Pod,
    config: &PodSandboxConfig,
    cut: &Cut,
    fd: &OwnedFd,
    path: &Path,
) -> Result<(), CheckpointError> {
    let directory = Directory { fd, path };
    let mut files: BTreeMap<String, FileDigest> = BTreeMap::new();
    for taken in &cut.taken {
        let name = archive_name(taken.container.name().0);
        let file = directory.create(&name)?;
        let digest = write_archive(pod, cut, taken, None, &file)?;
        directory.written(&name, &file)?;
        files.insert(name, digest);
    }
    if let Some(shm) = &cut.shm {
        mkdirat(fd, POD_DIR, Mode::RWXU).map_err(|e| directory.failed(POD_DIR, e.into()))?;
        let mut file = directory.create(SHM)?;
        let mut from = shm;
        let copied = io::Seek::rewind(&mut from).and_then(|()| io::copy(&mut from, &mut file));
        copied.map_err(|e| directory.failed(SHM, e))?;
        directory.written(SHM, &file)?;
        files.insert(SHM.to_owned(), archive::digest_of(&file).map_err(|e| directory.failed(SHM, e))?);
    }
    let options = directory.create(POD_OPTIONS)?;
    let names = cut.taken.iter().map(|taken| taken.container.name().0);
    files.insert(POD_OPTIONS.to_owned(), archive::write_pod_options(&options, names)?);
    directory.written(POD_OPTIONS, &options)?;
    // Last: a directory without a manifest is no checkpoint.
    let mut file = directory.create(MANIFEST)?;
    let json = manifest(pod, config, cut, files).to_json();
    file.write_all(&json).map_err(|e| directory.failed(MANIFEST, e))?;
    directory.written(MANIFEST, &file)?;
    fsync(fd).map_err(|e| directory.failed(".", e.into()))
}

/// Writes one container's checkpoint, with the pod's /dev/shm inside.
pub(super) fn container(pod: &Pod, cut: &Cut, file: &File) -> Result<(), CheckpointError> {
    for taken in &cut.taken {
        write_archive(pod, cut, taken, cut.shm.as_ref(), file)?;
    }
    file.sync_all().map_err(|source| CheckpointError::File { path: "archive".into(), source })
}

fn write_archive(
    pod: &Pod,
    cut: &Cut,
    taken: &Taken,
    shm: Option<&File>,
    file: &File,
) -> Result<FileDigest, CheckpointError> {
    let facts = facts(pod, taken, cut.clocks.realtime);
    let parts = Parts {
        facts: &facts,
        images: taken.images.as_fd(),
        descriptors: &taken.descriptors,
        rootfs_diff: &taken.diff,
        deleted: &taken.deleted,
        shm,
    };
    Ok(archive::write(BufWriter::with_capacity(1 << 20, file), &parts)?)
}

fn facts(pod: &Pod, taken: &Taken, checkpointed_at: i64) -> ContainerFacts {
    let (metadata, status) = (&taken.container.metadata, &taken.container.status);
    let (name, attempt) = taken.container.name();
    let sandbox = pod.config.metadata.clone().unwrap_or_default();
    let mounts = metadata.config.mounts.iter().map(|mount| {
        let source = PathBuf::from(&mount.host_path);
        let found = std::fs::metadata(&source).ok();
        BindMount {
            destination: mount.container_path.clone().into(),
            directory: found.as_ref().is_none_or(std::fs::Metadata::is_dir),
            permissions: found.map_or(0o755, |m| m.permissions().mode() & 0o7777),
            source,
        }
    });
    ContainerFacts {
        id: metadata.id.to_string(),
        name: name.to_owned(),
        attempt,
        pod_id: pod.id.to_string(),
        pod_name: sandbox.name,
        pod_namespace: sandbox.namespace,
        pod_uid: sandbox.uid,
        image: image(taken),
        created_at: metadata.created_at,
        started_at: status.started_at,
        checkpointed_at,
        pid: status.pid,
        log_path: metadata.log_path.to_string_lossy().into_owned(),
        labels: metadata.config.labels.clone().into_iter().collect(),
        annotations: metadata.config.annotations.clone().into_iter().collect(),
        bind_mounts: mounts.collect(),
        spec: serde_json::from_slice::<Value>(&metadata.spec).unwrap_or_default(),
    }
}

fn image(taken: &Taken) -> Image {
    let metadata = &taken.container.metadata;
    Image { reference: metadata.image_name.clone(), id: metadata.image_id.clone() }
}

fn manifest(
    pod: &Pod,
    config: &PodSandboxConfig,
    cut: &Cut,
    files: BTreeMap<String, FileDigest>,
) -> Manifest {
    let container = |taken: &Taken| manifest::Container {
        name: taken.container.name().0.to_owned(),
        id: taken.container.id().to_string(),
        config: Encoded(taken.container.current_config().encode_to_vec()),
        image: image(taken),
        descriptors: taken.descriptors.clone(),
    };
    Manifest {
        version: VERSION,
        created_at: now(),
        clocks: cut.clocks,
        clock_policy: Policy::default(),
        needs: Needs::of_this_node(),
        pod: manifest::Pod {
            id: pod.id.to_string(),
            config: Encoded(config.encode_to_vec()),
            handler: pod.handler.clone(),
        },
        containers: cut.taken.iter().map(container).collect(),
        files,
    }
}

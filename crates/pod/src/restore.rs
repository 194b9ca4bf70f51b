//! Bringing a pod back from a checkpoint.
//!
//! ```text
//! open, compare with the request ─▶ sandbox without clocks ─▶ /dev/shm ─▶ containers, each with a private, verified
//!                                                                          copy of its images ─▶ Created
//! first StartContainer: plan the release, make the time namespace, restore, hold, release at the planned instant
//! later StartContainer: restore, hold, release at once: the pod's clocks run already
//! ```
//!
//! The checkpoint is untrusted. Contents of files and memory come from it; who may do what comes from the request alone,
//! and what the request says about the process must agree with what the checkpoint says about itself.

mod compare;
mod start;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::cri::v1::{ContainerConfig, PodSandboxConfig};
use api::id::{ContainerId, PodId};
use migration::archive::{self, Checkpoint};
use migration::manifest::{Manifest, ManifestError, Needs, UnmetNeed};
use migration::tree::{self, Limits, UnpackError};
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use sys::Errno;
use tokio::time::Instant;
use tracing::Instrument;

use crate::create::{PrepareRootfs, RestoreSource};
use crate::driver::Request;
use crate::error::{Class, Classify, CreateError, RunError, StopError};
use crate::node::make_dir;
use crate::pods::{Pods, ask};
use crate::publisher::Handle;
use crate::registry::{Claimed, Name};
pub use compare::Mismatch;
pub use start::StartRestoredError;
pub(crate) use start::{Started, start};

/// Why a pod was not restored. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// This node has no CRIU.
    #[error("this node cannot restore: install CRIU and set [criu] command in the configuration")]
    NoCriu,
    /// The checkpoint is damaged, or none.
    #[error("checkpoint_path: {0}")]
    Checkpoint(#[source] archive::CheckpointError),
    /// It says another thing than the request.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// This node lacks something.
    #[error(transparent)]
    Need(#[from] UnmetNeed),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] RunError),
    /// A container.
    #[error("container {name}: {source}")]
    Container {
        /// Its name.
        name: String,
        /// Why.
        source: CreateError,
    },
    /// The private copy of the images.
    #[error("{path} for the restored pod cannot be made")]
    File {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// /dev/shm.
    #[error("the checkpoint's /dev/shm cannot be restored")]
    Shm(#[from] UnpackError),
    /// Too long.
    #[error("the pod was not restored within {} s", .limit.as_secs_f64())]
    Deadline {
        /// The caller's limit.
        limit: Duration,
    },
    /// A bug, or the daemon is ending.
    #[error("the restore ended early")]
    Interrupted,
}

impl Classify for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::NoCriu | Self::Mismatch(_) | Self::Need(_) => Class::FailedPrecondition,
            Self::Checkpoint(archive::CheckpointError::Open { .. }) => Class::InvalidArgument,
            Self::Checkpoint(archive::CheckpointError::Manifest(ManifestError::Version(_))) => {
                Class::FailedPrecondition
            }
            Self::Checkpoint(e) => match e.errno() {
                Some(Errno::NOSPC | Errno::DQUOT) => Class::ResourceExhausted,
                Some(Errno::LOOP | Errno::NOTDIR) => Class::InvalidArgument,
                _ => Class::DataLoss,
            },
            Self::Sandbox(e) => e.class(),
            Self::Container { source, .. } => source.class(),
            Self::File { source, .. } => match sys::errno_of(source) {
                Errno::NOSPC | Errno::DQUOT => Class::ResourceExhausted,
                _ => Class::Internal,
            },
            Self::Shm(_) => Class::DataLoss,
            Self::Deadline { .. } => Class::DeadlineExceeded,
            Self::Interrupted => Class::Internal,
        }
    }
}

/// File in a pod's directory with what its first start needs to know.
pub(crate) const CLOCKS: &str = "clocks.json";

/// What [`CLOCKS`] holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Clocks {
    /// At the cut.
    pub reading: migration::clock::ClockReading,
    pub policy: migration::clock::Policy,
    /// Bytes of memory images of each container, by name.
    pub memory: BTreeMap<String, u64>,
}

impl Pods {
    /// Makes a pod from the checkpoint in `dir` within `limit`, its containers `Created`: not one instruction of them
    /// runs before their start. On error everything that was made is gone again.
    pub async fn restore_pod(
        &self,
        dir: &Path,
        config: PodSandboxConfig,
        containers: Vec<ContainerConfig>,
        limit: Duration,
    ) -> Result<(PodId, Vec<(String, ContainerId)>), RestoreError> {
        if self.node.config.criu.is_empty() {
            return Err(RestoreError::NoCriu);
        }
        let (pods, dir, deadline) = (self.clone(), dir.to_owned(), Instant::now() + limit);
        let work = async move { pods.restore(dir, config, containers, deadline, limit).await };
        tokio::spawn(work.in_current_span()).await.unwrap_or(Err(RestoreError::Interrupted))
    }

    async fn restore(
        self,
        dir: PathBuf,
        config: PodSandboxConfig,
        containers: Vec<ContainerConfig>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(PodId, Vec<(String, ContainerId)>), RestoreError> {
        let opened = tokio::task::spawn_blocking(move || Checkpoint::open(&dir)).await;
        let checkpoint = opened.map_err(|_| RestoreError::Interrupted)?.map_err(RestoreError::Checkpoint)?;
        checkpoint.manifest.needs.met_by(&Needs::of_this_node())?;
        let containers = compare::request(&checkpoint.manifest, &config, containers, &self.node.images)?;
        let handle = self.restored_sandbox(config, checkpoint.manifest.pod.handler.clone()).await?;
        let fill = self.fill(&handle, checkpoint, containers);
        let filled =
            tokio::time::timeout_at(deadline, fill).await.unwrap_or(Err(RestoreError::Deadline { limit }));
        match filled {
            Ok(made) => Ok((handle.id().clone(), made)),
            Err(error) => {
                let removed = ask(&handle, |reply| Request::RemoveSandbox { reply }).await;
                if let Err(error) = removed.unwrap_or(Err(StopError::Interrupted)) {
                    tracing::warn!(pod = %handle.id(), %error, "removing a pod that was not restored");
                }
                Err(error)
            }
        }
    }

    /// A sandbox that gets its time namespace later.
    async fn restored_sandbox(
        &self,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<Arc<Handle>, RestoreError> {
        let name = Name::of(&config);
        let taken = |id: PodId| RunError::NameTaken {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            id,
        };
        loop {
            match self.registry.claim(&name) {
                // A checkpoint restored twice would be a second copy of one pod.
                Claimed::Made(handle) => return Err(taken(handle.id().clone()).into()),
                Claimed::Wait(mut decided) => while decided.changed().await.is_ok() {},
                Claimed::Ours(token) => {
                    let (node, id) = (Arc::clone(&self.node), PodId::random());
                    let ready = crate::start::run(node, id, config, handler, true).await?;
                    let handle = self.list(ready);
                    drop(token);
                    return Ok(handle);
                }
            }
        }
    }

    /// Puts the checkpoint's contents into the new pod.
    async fn fill(
        &self,
        handle: &Arc<Handle>,
        mut checkpoint: Checkpoint,
        containers: Vec<ContainerConfig>,
    ) -> Result<Vec<(String, ContainerId)>, RestoreError> {
        let base = self.node.restored_dir(handle.id());
        let shm = handle.pod.files().shm();
        let own_shm = !handle.pod.node_ipc();
        let manifest = checkpoint.manifest.clone();
        let copy = move || {
            if own_shm {
                restore_shm(&mut checkpoint, &base, &shm)?;
            }
            let names: Vec<_> = checkpoint.manifest.containers.iter().map(|c| c.name.clone()).collect();
            let extract = |name: String| Extracted::new(&mut checkpoint, &base, &name).map(|e| (name, e));
            names.into_iter().map(extract).collect::<Result<BTreeMap<_, _>, _>>()
        };
        let mut extracted =
            tokio::task::spawn_blocking(copy).await.map_err(|_| RestoreError::Interrupted)??;
        self.write_clocks(handle, &manifest, &extracted)?;
        let mut made = Vec::new();
        for config in containers {
            let name = crate::container::name(&config).0.to_owned();
            let descriptors = manifest.containers.iter().find(|c| c.name == name);
            let descriptors = descriptors.map(|c| c.descriptors.clone()).unwrap_or_default();
            let Some(extracted) = extracted.remove(&name) else { continue };
            let restore = Some(extracted.source(&descriptors));
            let create = |reply| Request::Create { config: Arc::new(config), restore, reply };
            let created = ask(handle, create).await.unwrap_or(Err(CreateError::Interrupted));
            let id = created.map_err(|source| RestoreError::Container { name: name.clone(), source })?;
            made.push((name, id));
        }
        Ok(made)
    }

    fn write_clocks(
        &self,
        handle: &Handle,
        manifest: &Manifest,
        extracted: &BTreeMap<String, Extracted>,
    ) -> Result<(), RestoreError> {
        let path = self.node.pod_dir(handle.id()).join(CLOCKS);
        let memory = extracted.iter().map(|(name, e)| (name.clone(), e.memory)).collect();
        let clocks = Clocks { reading: manifest.clocks, policy: manifest.clock_policy, memory };
        let text = serde_json::to_vec(&clocks).unwrap_or_default();
        std::fs::write(&path, text).map_err(|source| RestoreError::File { path, source })
    }
}

/// A private copy of a container's part of the checkpoint, verified.
#[derive(Debug)]
struct Extracted {
    directory: PathBuf,
    images: OwnedFd,
    memory: u64,
}

impl Extracted {
    fn new(checkpoint: &mut Checkpoint, base: &Path, name: &str) -> Result<Self, RestoreError> {
        let directory = base.join(name);
        let failed = |source| RestoreError::File { path: directory.clone(), source };
        make_dir(&directory, 0o700).map_err(failed)?;
        let fd = open_directory(&directory).map_err(|e| failed(e.into()))?;
        checkpoint.extract(name, fd.as_fd()).map_err(RestoreError::Checkpoint)?;
        let images_path = directory.join(archive::IMAGES);
        let images = open_directory(&images_path)
            .map_err(|e| RestoreError::File { path: images_path.clone(), source: e.into() })?;
        let memory = memory(&images_path);
        Ok(Self { directory, images, memory })
    }

    fn source(self, descriptors: &[String]) -> RestoreSource {
        let directory = self.directory;
        RestoreSource {
            images: self.images,
            descriptors: serde_json::to_string(descriptors).unwrap_or_default(),
            prepare: PrepareRootfs(Box::new(move |rootfs| {
                let text = |e: &dyn std::error::Error| e.to_string();
                let deleted = std::fs::read(directory.join(archive::DELETED)).unwrap_or_default();
                let deleted: Vec<PathBuf> = serde_json::from_slice(&deleted).unwrap_or_default();
                tree::remove(rootfs, &deleted).map_err(|e| text(&e))?;
                let diff = File::open(directory.join(archive::ROOTFS_DIFF)).map_err(|e| text(&e))?;
                tree::unpack(rootfs, std::io::BufReader::new(diff), Limits::default()).map_err(|e| text(&e))
            })),
        }
    }
}

/// Fills the new pod's /dev/shm.
fn restore_shm(checkpoint: &mut Checkpoint, base: &Path, shm: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::File { path: base.to_owned(), source };
    make_dir(base, 0o700).map_err(failed)?;
    let path = base.join("shm.tar");
    let mut tar = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    let _ = std::fs::remove_file(&path);
    if checkpoint.extract_shm(&mut tar).map_err(RestoreError::Checkpoint)? {
        tar.rewind().map_err(failed)?;
        let root = open_directory(shm).map_err(|e| failed(e.into()))?;
        tree::unpack(root.as_fd(), std::io::BufReader::new(tar), Limits::default())?;
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
}

/// Bytes of memory among CRIU's images.
fn memory(images: &Path) -> u64 {
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten();
    let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    pages.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

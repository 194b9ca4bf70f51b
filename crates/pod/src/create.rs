//! Making a container: everything up to `execve`, which then waits for its start.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use api::cri::v1::ContainerConfig;
use api::id::ContainerId;
use image::{IdMap, Image};
use namespaces::NamespaceKind;
use tracing::{Instrument, debug_span};

use crate::container::{Container, Metadata, Status};
use crate::error::CreateError;
use crate::headroom;
use crate::log;
use crate::node::now;
use crate::plan::{self, Extra};
use crate::pod::Pod;
use crate::shim::CallError;
use crate::spec::image_volume;
use crate::spec::process::ImageProcess;
use crate::spec::{self, Built, Input, SpecError};
use crate::store::{Change, Commit, ContainerRecord};

/// Where a container's memory comes from, if not from executing a program.
#[derive(Debug)]
pub(crate) struct RestoreSource {
    /// Directory of CRIU's images, verified.
    pub images: OwnedFd,
    /// descriptors.json.
    pub descriptors: String,
    /// Applies the root filesystem's difference, or keeps the descriptor to do so later.
    pub prepare: PrepareRootfs,
}

/// A step on the root filesystem of a container that does not exist yet: on its overlay, mounted nowhere, so that what
/// is deleted in it leaves whiteouts.
pub(crate) struct PrepareRootfs(pub Box<Prepare>);

type Prepare = dyn FnOnce(BorrowedFd<'_>) -> Result<(), String> + Send;

impl std::fmt::Debug for PrepareRootfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrepareRootfs")
    }
}

/// A container ready for the shim.
struct Prepared {
    metadata: Metadata,
    built: Built,
    rootfs: OwnedFd,
    log: Option<OwnedFd>,
    commit: Commit,
}

/// Makes container `id`; on error nothing of it is left.
pub(crate) async fn run(
    pod: Arc<Pod>,
    id: ContainerId,
    config: Arc<ContainerConfig>,
    restore: Option<RestoreSource>,
) -> Result<Container, CreateError> {
    let made = make(&pod, &id, config, restore).await;
    if made.is_err() {
        pod.node.store.post(vec![Change::RemoveContainer(id.clone())]);
        let dir = pod.node.container_dir(&id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(container = %id, %error, "undoing a container left its directory behind");
            }
            _ => {}
        }
    }
    made
}

async fn make(
    pod: &Arc<Pod>,
    id: &ContainerId,
    config: Arc<ContainerConfig>,
    restore: Option<RestoreSource>,
) -> Result<Container, CreateError> {
    headroom::check()?;
    let client = pod.client().ok_or(CreateError::Shim(CallError::Gone))?;
    let (stdin, stdin_once) = (config.stdin, config.stdin_once);
    let prepared = {
        let (pod, id) = (Arc::clone(pod), id.clone());
        let restored = restore.is_some();
        let (restore, prepare) = restore.map(|r| ((r.images, r.descriptors), r.prepare)).unzip();
        let work = move || prepare_container(&pod, &id, &config, restored, prepare).map(|p| (p, restore));
        tokio::task::spawn_blocking(work).instrument(debug_span!("prepare")).await
    };
    let (prepared, restore) = prepared.map_err(|_| CreateError::Interrupted)??;
    let Prepared { metadata, built, rootfs, log, commit } = prepared;
    let extra = Extra { id: id.to_string(), rootfs, log, stdin, stdin_once, restore };
    let lowered = plan::lower(built, extra);
    let fds: Vec<_> = lowered.fds.iter().map(AsFd::as_fd).collect();
    let create = client.create_container(lowered.plan, &fds).instrument(debug_span!("shim"));
    let durable = commit.durable().instrument(debug_span!("store"));
    let (created, durable) = tokio::join!(create, durable);
    let pid = created.map_err(CreateError::Shim)?;
    if let Err(error) = durable {
        let _ = client.delete_container(id.as_str()).await;
        return Err(error.into());
    }
    Ok(Container { metadata: Arc::new(metadata), status: Status { pid, ..Status::default() } })
}

/// What takes system calls on disks: the root filesystem, the user, the volumes, the log. Runs on a blocking thread.
fn prepare_container(
    pod: &Pod,
    id: &ContainerId,
    config: &ContainerConfig,
    restored: bool,
    prepare: Option<PrepareRootfs>,
) -> Result<Prepared, CreateError> {
    let image = find_image(pod, config)?;
    let held = pod.node.images.hold(&image.id);
    let held = held.ok_or_else(|| CreateError::NoImage { image: image.id.to_string() })?;
    let process = image_process(&image);
    let userns = match pod.owner() {
        0 => None,
        _ => Some(pod.node.pins.get(pod.id.as_str(), NamespaceKind::User)?),
    };
    let owner = pod.owner();
    let map = userns.as_ref().map(|fd| IdMap { namespace: fd.as_fd(), root_uid: owner, root_gid: owner });
    let (images, directory) = (&pod.node.images, pod.node.container_dir(id));
    let rootfs = debug_span!("rootfs").in_scope(|| images.rootfs(&image, id.as_str(), &directory, map))?;
    let volumes = image_volume::Source { images, key: id.as_str(), directory: &directory, map };
    let (volume_images, mut holds) = volumes.hold(&config.mounts)?;
    holds.push(held);
    if let Some(PrepareRootfs(prepare)) = prepare {
        prepare(rootfs.mount.as_fd()).map_err(|reason| CreateError::Diff { reason })?;
    }
    let built = debug_span!("spec").in_scope(|| {
        let input = Input {
            pod: &pod.config,
            container: config,
            image: &process,
            rootfs: rootfs.mount.as_fd(),
            files: &pod.files(),
            user_namespace: userns.as_ref().map(AsFd::as_fd),
            cgroup: &pod.container_cgroup(id),
            pins: &pod.node.config.run.join("ns").join(pod.id.as_str()),
            own_capabilities: pod.node.own_capabilities,
            image_volumes: Some(volumes),
        };
        spec::build(input, &pod.node.filters)
    })?;
    let log_path = pod.log_path(&config.log_path);
    let log = log::open(&pod.config.log_directory, &config.log_path)
        .map_err(|source| CreateError::Log { path: log_path.clone(), source })?;
    let metadata = Metadata {
        id: id.clone(),
        pod: pod.id.clone(),
        config: config.clone(),
        image_id: image.id.to_string(),
        image_name: image_name(&image, config),
        volume_images,
        created_at: now(),
        log_path,
        spec: serde_json::to_vec(&built.spec).map_err(SpecError::Serialise)?,
        stop_signal: built.stop_signal,
        user: built.user.clone(),
        restored,
        holds,
        exec: OnceLock::from(plan::template(&built)),
    };
    let record = Box::new(ContainerRecord::from(&metadata));
    let commit = pod.node.store.commit(vec![Change::Container(id.clone(), record)]);
    Ok(Prepared { metadata, built, rootfs: rootfs.mount, log, commit })
}

fn find_image(pod: &Pod, config: &ContainerConfig) -> Result<Arc<Image>, CreateError> {
    let spec = config.image.clone().unwrap_or_default();
    let name = || spec.image.chars().take(200).collect();
    let found = pod.node.images.get(&spec.image).ok_or_else(|| CreateError::NoImage { image: name() })?;
    if found.artifact { Err(CreateError::Artifact { image: name() }) } else { Ok(found) }
}

/// What people call the image: what the user wrote, else a tag, else what the request says.
fn image_name(image: &Image, config: &ContainerConfig) -> String {
    let spec = config.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        return spec.user_specified_image;
    }
    let known = image.repo_tags.first().or(image.repo_digests.first());
    if spec.image == image.id.as_str() { known.cloned().unwrap_or(spec.image) } else { spec.image }
}

fn image_process(image: &Image) -> ImageProcess {
    let Some(config) = image.config.config() else { return ImageProcess::default() };
    ImageProcess {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    }
}

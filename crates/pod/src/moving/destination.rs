//! A pod that comes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::cri::v1::{ContainerConfig, PodSandboxConfig};
use api::id::{ContainerId, PodId};
use api::peer::v1::Offer;
use futures_util::future::try_join_all;
use image::Image;
use migration::transport::{Destination, DestinationPod, Failure, FailureKind, Unwanted};
use migration::tree::{self, Limits};
use namespaces::NamespaceKind;
use prost::Message;
use sys::timens::Offsets;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{called, failure, images_dir, make_images, remove_images};
use crate::create::{PrepareRootfs, RestoreSource};
use crate::driver::Request;
use crate::error::CreateError;
use crate::node::now;
use crate::pod::Pod;
use crate::pods::{Pods, ask};
use crate::publisher::Handle;
use crate::registry::{Claimed, Name};
use crate::request::Activity;
use crate::shim::{Client, PendingRestore};
use crate::start;
use crate::state::ContainerState;

/// The pods of this node, as a place that pods come to.
#[derive(Debug, Clone)]
pub struct NodePods(pub Pods);

/// A pod that is coming.
#[derive(Debug)]
pub struct ReceivedPod {
    pods: Pods,
    handle: Arc<Handle>,
    client: Client,
    containers: Vec<Arriving>,
    restores: Mutex<Vec<(ContainerId, PendingRestore)>>,
}

/// A container of it: made, empty, waiting for its contents.
#[derive(Debug)]
struct Arriving {
    id: ContainerId,
    images: OwnedFd,
    /// Its overlay; attached nowhere.
    rootfs: OwnedFd,
}

impl Destination for NodePods {
    type Pod = ReceivedPod;

    async fn receive(&self, id: PodId, offer: Offer, mut unwanted: Unwanted) -> Result<ReceivedPod, Failure> {
        let pods = &self.0;
        if pods.node.config.criu.is_empty() {
            return Err(precondition(
                "this node cannot take pods in: set [criu] command in its configuration",
            ));
        }
        let config = PodSandboxConfig::decode(offer.sandbox_config.clone()).map_err(unreadable)?;
        let mut configs = Vec::new();
        for container in &offer.containers {
            let mut config = ContainerConfig::decode(container.config.clone()).map_err(unreadable)?;
            // The one step that may take long, and leaves nothing when it is cut short.
            let image = tokio::select! {
                found = find_image(pods, &container.image, &container.image_id) => found?,
                _ = &mut unwanted => return Err(given_up()),
            };
            // The same name may mean another image here.
            let spec = config.image.get_or_insert_default();
            if pods.node.images.get(&spec.image).is_none_or(|found| found.id != image.id) {
                spec.image = image.id.to_string();
            }
            configs.push((config, container.descriptors.clone()));
        }
        let handle = make_sandbox(pods, id, config, offer.handler).await?;
        let Some(client) = handle.pod.client().cloned() else { return Err(precondition("its shim is gone")) };
        let mut pod = ReceivedPod {
            pods: pods.clone(),
            handle,
            client,
            containers: Vec::new(),
            restores: Mutex::default(),
        };
        match pod.make_containers(configs, &mut unwanted).await {
            Ok(()) => Ok(pod),
            Err(error) => {
                pod.abort().await;
                Err(error)
            }
        }
    }
}

fn given_up() -> Failure {
    precondition("the move was given up while the pod was prepared")
}

/// The image with this id, pulled by its name if it is not here.
async fn find_image(pods: &Pods, reference: &str, id: &str) -> Result<Arc<Image>, Failure> {
    let images = &pods.node.images;
    if let Some(image) = images.get(id) {
        return Ok(image);
    }
    let pulled = images.pull(reference, None).await;
    let pulled = pulled.map_err(|error| Failure::new(FailureKind::Precondition, error))?;
    match images.get(id) {
        Some(image) => Ok(image),
        None => Err(precondition(format!("{reference} is {pulled} here, the pod runs {id}"))),
    }
}

async fn make_sandbox(
    pods: &Pods,
    id: PodId,
    config: PodSandboxConfig,
    handler: String,
) -> Result<Arc<Handle>, Failure> {
    let name = Name::of(&config);
    match pods.registry.claim(&name) {
        Claimed::Ours(token) => {
            let node = Arc::clone(&pods.node);
            let ready = start::run(node, id, config, handler, true).await.map_err(failure)?;
            let handle = pods.list(ready);
            drop(token);
            Ok(handle)
        }
        Claimed::Made(_) | Claimed::Wait(_) => {
            Err(precondition(format!("pod {}/{} is here already", name.namespace, name.name)))
        }
    }
}

impl ReceivedPod {
    async fn make_containers(
        &mut self,
        configs: Vec<(ContainerConfig, Vec<String>)>,
        unwanted: &mut Unwanted,
    ) -> Result<(), Failure> {
        let dir = images_dir(self.pod());
        for (index, (config, descriptors)) in configs.into_iter().enumerate() {
            if unwanted.try_recv() != Err(TryRecvError::Empty) {
                return Err(given_up());
            }
            let images = make_images(&dir, index)?;
            let for_shim = images.try_clone().map_err(|error| Failure::new(FailureKind::Internal, error))?;
            let (sender, rootfs) = oneshot::channel();
            let prepare = PrepareRootfs(Box::new(move |rootfs| {
                let rootfs = rootfs.try_clone_to_owned().map_err(|error| error.to_string())?;
                sender.send(rootfs).map_err(|_| "the move is over".to_owned())
            }));
            let descriptors = serde_json::to_string(&descriptors);
            let descriptors = descriptors.map_err(|error| Failure::new(FailureKind::Internal, error))?;
            let restore = Some(RestoreSource { images: for_shim, descriptors, prepare });
            let config = Arc::new(config);
            let id = ask(&self.handle, |reply| Request::Create { config, restore, reply })
                .await
                .unwrap_or(Err(CreateError::Interrupted))
                .map_err(failure)?;
            let rootfs = rootfs.await.map_err(|error| Failure::new(FailureKind::Internal, error))?;
            self.containers.push(Arriving { id, images, rootfs });
        }
        let claim = |reply| Request::BeginCapture { activity: Activity::Moving, reply };
        match ask(&self.handle, claim).await {
            Some(Ok(())) => Ok(()),
            Some(Err(refusal)) => Err(Failure::new(FailureKind::Precondition, refusal)),
            None => Err(precondition("the pod ended")),
        }
    }

    fn pod(&self) -> &Pod {
        &self.handle.pod
    }

    fn container(&self, index: usize) -> Result<&Arriving, Failure> {
        self.containers.get(index).ok_or_else(|| precondition(format!("no container {index}")))
    }
}

impl DestinationPod for ReceivedPod {
    fn id(&self) -> String {
        self.pod().id.to_string()
    }

    fn images(&self, container: usize) -> Result<OwnedFd, Failure> {
        let images = self.container(container)?.images.try_clone();
        images.map_err(|error| Failure::new(FailureKind::Internal, error))
    }

    async fn apply(&self, container: usize, archive: File, deleted: Vec<PathBuf>) -> Result<(), Failure> {
        let rootfs = self.container(container)?.rootfs.try_clone();
        let rootfs = rootfs.map_err(|error| Failure::new(FailureKind::Internal, error))?;
        blocking(move || {
            // Through the overlay, so that what is deleted leaves a whiteout.
            tree::remove(rootfs.as_fd(), &deleted)?;
            tree::unpack(rootfs.as_fd(), archive, Limits::default())
        })
        .await
    }

    async fn apply_shm(&self, archive: File) -> Result<(), Failure> {
        if self.pod().node_ipc() {
            return Err(precondition("the pod has no /dev/shm of its own"));
        }
        let shm = self.pod().node.pod_dir(&self.pod().id).join("shm");
        blocking(move || {
            let dir = File::open(&shm).map_err(tree::UnpackError::Read)?;
            tree::unpack(dir.as_fd(), archive, Limits::default())
        })
        .await
    }

    async fn set_clocks(&self, offsets: Offsets) -> Result<(), Failure> {
        let made = self.client.create_time_namespace(offsets.monotonic, offsets.boottime).await;
        let fd = made.map_err(called)?;
        let pinned = self.pod().node.pins.pin(self.pod().id.as_str(), NamespaceKind::Time, &fd);
        pinned.map_err(|error| Failure::new(FailureKind::Internal, error))
    }

    async fn begin_restore(&self, deadline: Duration) -> Result<(), Failure> {
        for container in &self.containers {
            let begun = self.client.begin_restore(container.id.as_str(), deadline).await.map_err(called)?;
            let mut restores = self.restores.lock().unwrap_or_else(PoisonError::into_inner);
            restores.push((container.id.clone(), begun));
        }
        self.client.await_restores(deadline).await.map_err(called)
    }

    async fn restore(&self) -> Result<(), Failure> {
        let restores = std::mem::take(&mut *self.restores.lock().unwrap_or_else(PoisonError::into_inner));
        let each = restores.into_iter().map(|(id, restore)| async {
            let pid = restore.wait().await.map_err(called)?;
            let restored = Request::Restored { id, pid };
            let _ended_with_its_pod = self.handle.ask(restored);
            Ok(())
        });
        try_join_all(each).await.map(drop)
    }

    async fn release(&self, at: i64) -> Result<i64, Failure> {
        let ids: Vec<_> = self.containers.iter().map(|container| container.id.clone()).collect();
        let released = release(&self.handle, &self.client, &ids, at).await?;
        remove_images(images_dir(self.pod())).await;
        Ok(released)
    }

    async fn namespaces(&self) -> Vec<Vec<u8>> {
        let (pods, id) = (self.pods.clone(), self.pod().id.clone());
        let found = tokio::task::spawn_blocking(move || pods.namespaces(&id)).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        found.namespaces.iter().map(Message::encode_to_vec).collect()
    }

    async fn abort(&self) {
        if let Err(error) = self.pods.remove_sandbox(&self.pod().id).await {
            tracing::error!(pod = %self.pod().id, %error, "removing a pod whose move failed");
        }
    }
}

/// Lets containers go and has them listed as running.
async fn release(handle: &Handle, client: &Client, ids: &[ContainerId], at: i64) -> Result<i64, Failure> {
    let names = ids.iter().map(ToString::to_string).collect();
    let released = client.release(names, at).await.map_err(called)?;
    for id in ids {
        let _ended_with_its_pod = handle.ask(Request::Released { id: id.clone(), started_at: now() });
    }
    let _ended_with_its_pod = handle.ask(Request::EndCapture);
    Ok(released)
}

/// After a crash between the commit and the release: what is held goes now, late as it is.
pub(super) async fn release_now(handle: &Handle) {
    let held =
        |c: &Arc<crate::container::Container>| c.metadata.restored && c.state() == ContainerState::Created;
    let ids: Vec<_> = handle.view().containers.iter().filter(|c| held(c)).map(|c| c.id().clone()).collect();
    let Some(client) = handle.pod.client().filter(|_| !ids.is_empty()) else { return };
    if let Err(error) = release(handle, client, &ids, sys::timens::monotonic()).await {
        tracing::error!(pod = %handle.pod.id, %error, "a pod that came cannot be let go");
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), tree::UnpackError> + Send + 'static,
) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let kind = match error.errno() {
                Some(sys::Errno::NOSPC | sys::Errno::DQUOT) => FailureKind::Exhausted,
                _ => FailureKind::Precondition,
            };
            Err(Failure::new(kind, error))
        }
        Err(error) => Err(Failure::new(FailureKind::Internal, error)),
    }
}

fn precondition(what: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Precondition, what.into())
}

fn unreadable(error: prost::DecodeError) -> Failure {
    Failure::new(FailureKind::Invalid, error)
}

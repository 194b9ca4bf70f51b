//! The pods of a node: what callers hold.

use std::sync::Arc;
use std::time::Duration;

use api::cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use api::id::{ContainerId, PodId};
use image::Images;
use network::Network;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::cni;
use crate::container::Container;
use crate::driver::{self, Request};
use crate::error::{ContainerError, CreateError, LookupError, OpenError, RunError, StopError};
use crate::events::Event;
use crate::limits::{LimitError, PodLimits};
use crate::node::{Node, PodsConfig};
use crate::ports;
use crate::publisher::Handle;
use crate::recover;
use crate::registry::{Claimed, Name, Registry};
use crate::request::Activity;
use crate::sandbox::Sandbox;
use crate::start;
use crate::state::{ContainerState, SandboxState};

/// All pods of this node. Clones are the same.
#[derive(Debug, Clone)]
pub struct Pods {
    pub(crate) node: Arc<Node>,
    pub(crate) registry: Arc<Registry>,
}

impl Pods {
    /// Opens the store, finds the pods that run, ends what was half made. Every object is listed when this returns.
    ///
    /// Must be called inside a tokio runtime. Takes at most a few seconds, whatever state single pods are in.
    ///
    /// # Errors
    /// The store, the shim program or a directory cannot be used. A single broken pod is no error.
    pub async fn open(config: PodsConfig, images: Images, network: Network) -> Result<Self, OpenError> {
        let (node, contents) = Node::open(config, images, network)?;
        let pods = Self { node: Arc::new(node), registry: Arc::default() };
        recover::all(&pods, contents).await;
        ports::settle(&pods.node.network);
        pods.node.collect_images();
        cni::settle(&pods);
        Ok(pods)
    }

    /// Makes a pod. The same request again, also while the first is under way, gives the same pod.
    ///
    /// The work goes on when the caller goes away, and a repetition finds its result.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<PodId, RunError> {
        let (pods, handler) = (self.clone(), handler.to_owned());
        let work = async move { pods.run(config, handler).await }.in_current_span();
        tokio::spawn(work).await.unwrap_or(Err(RunError::Interrupted))
    }

    async fn run(self, config: PodSandboxConfig, handler: String) -> Result<PodId, RunError> {
        let name = Name::of(&config);
        loop {
            match self.registry.claim(&name) {
                Claimed::Made(handle) => return repeated(&handle, &config, &handler, name),
                // The channel closes when the other attempt is decided; its failure makes us the maker.
                Claimed::Wait(mut decided) => while decided.changed().await.is_ok() {},
                Claimed::Ours(token) => {
                    let (node, id) = (Arc::clone(&self.node), PodId::random());
                    let ready = start::run(node, id, config, handler, false).await?;
                    let handle = self.list(ready);
                    drop(token);
                    return Ok(handle.id().clone());
                }
            }
        }
    }

    /// Gives a pod that is up its driver and lists it.
    pub(crate) fn list(&self, ready: start::Ready) -> Arc<Handle> {
        let handle = driver::start(ready.pod, &self.registry, Activity::Ready, None, &[], ready.events);
        self.registry.insert(Arc::clone(&handle));
        self.node.events.tell_begin(&handle.view());
        handle
    }

    /// Ends a pod's processes and lets go of its network and namespaces. Idempotent; unknown pods are fine.
    pub async fn stop_sandbox(&self, id: &PodId) -> Result<(), StopError> {
        let Ok(handle) = self.registry.pod(id) else { return Ok(()) };
        ask(&handle, |reply| Request::StopSandbox { reply }).await.unwrap_or(Err(StopError::Interrupted))
    }

    /// Removes a pod with its containers, ending it first if need be. Idempotent; unknown pods are fine.
    pub async fn remove_sandbox(&self, id: &PodId) -> Result<(), StopError> {
        let Ok(handle) = self.registry.pod(id) else { return Ok(()) };
        ask(&handle, |reply| Request::RemoveSandbox { reply }).await.unwrap_or(Err(StopError::Interrupted))
    }

    /// The pod whose id is, or alone starts with, `prefix`.
    pub fn find_sandbox(&self, prefix: &str) -> Result<PodId, LookupError> {
        self.registry.find_pod(prefix)
    }

    /// A pod as it is now.
    pub fn sandbox(&self, id: &PodId) -> Result<Arc<Sandbox>, LookupError> {
        Ok(Arc::clone(&self.registry.pod(id)?.view().sandbox))
    }

    /// All pods as they are now, by id.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.registry.pods().iter().map(|handle| Arc::clone(&handle.view().sandbox)).collect()
    }

    /// Makes a container up to its first instruction. The same request again gives the same container.
    pub async fn create_container(
        &self,
        pod: &PodId,
        config: ContainerConfig,
    ) -> Result<ContainerId, CreateError> {
        let handle = self.registry.pod(pod)?;
        let config = Arc::new(config);
        let create = |reply| Request::Create { config, restore: None, reply };
        ask(&handle, create).await.unwrap_or(Err(CreateError::Interrupted))
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// Also when it runs already; after an error of the start itself the container is `Exited` with the reason.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let handle = self.registry.pod_of(id)?;
        self.ask_container(&handle, |reply| Request::Start { id: id.clone(), reply }).await
    }

    /// Asks a container to stop and kills it after `grace`. Idempotent; a second call can shorten the grace.
    ///
    /// Returns when the container has ended.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), ContainerError> {
        let Ok(handle) = self.registry.pod_of(id) else { return Ok(()) };
        self.ask_container(&handle, |reply| Request::Stop { id: id.clone(), grace, reply }).await
    }

    /// Removes a container, killing it first if it runs. Idempotent; unknown containers are fine.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let Ok(handle) = self.registry.pod_of(id) else { return Ok(()) };
        self.ask_container(&handle, |reply| Request::Remove { id: id.clone(), reply }).await
    }

    /// Sets limits of a container; those that are 0 or empty stay as they are. All or nothing: on an error the old ones
    /// are in force. A container that ended only has them in its status.
    pub async fn update_container(
        &self,
        id: &ContainerId,
        resources: LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let handle = self.registry.pod_of(id)?;
        let resources = Box::new(resources);
        self.ask_container(&handle, |reply| Request::Update { id: id.clone(), resources, reply }).await
    }

    /// Sets limits of a pod as a whole, in place of those before: on an error they stay in force. They are shown, and are
    /// written to the pod's cgroup unless that has a parent of the kubelet's, which does it there.
    pub async fn update_sandbox(&self, id: &PodId, limits: PodLimits) -> Result<(), LimitError> {
        let handle = self.registry.pod(id)?;
        let limits = Box::new(limits);
        let update = |reply| Request::UpdateSandbox { limits, reply };
        ask(&handle, update).await.unwrap_or(Err(LimitError::Interrupted))
    }

    /// What happens to pods and containers from now on; whoever is [`EVENT_BACKLOG`](crate::EVENT_BACKLOG) behind loses
    /// the oldest and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Arc<Event>> {
        self.node.events.subscribe()
    }

    async fn ask_container(
        &self,
        handle: &Handle,
        request: impl FnOnce(driver::Reply<(), ContainerError>) -> Request,
    ) -> Result<(), ContainerError> {
        ask(handle, request).await.unwrap_or(Err(ContainerError::Interrupted))
    }

    /// The container whose id is, or alone starts with, `prefix`.
    pub fn find_container(&self, prefix: &str) -> Result<ContainerId, LookupError> {
        self.registry.find_container(prefix)
    }

    /// A container as it is now.
    pub fn container(&self, id: &ContainerId) -> Result<Arc<Container>, LookupError> {
        let found = self.registry.pod_of(id)?.view().container(id).cloned();
        found.ok_or_else(|| LookupError::NotFound { kind: "container", id: id.to_string() })
    }

    /// All containers as they are now, by pod and then in the order they were created.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.registry.pods().iter().flat_map(|handle| handle.view().containers.clone()).collect()
    }

    /// The containers of one pod, in the order they were created.
    pub fn containers_of(&self, pod: &PodId) -> Result<Vec<Arc<Container>>, LookupError> {
        Ok(self.registry.pod(pod)?.view().containers.clone())
    }

    /// Starts a container's log anew after its file was renamed. On error no new file exists.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let handle = self.registry.pod_of(id)?;
        let container = self.container(id)?;
        if container.state() != ContainerState::Running {
            return Err(ContainerError::NotRunning { id: id.clone() });
        }
        crate::log::reopen(&handle.pod, &container).await
    }
}

/// The pod that has the name, if it is up and what the request asks for.
fn repeated(
    handle: &Handle,
    config: &PodSandboxConfig,
    handler: &str,
    name: Name,
) -> Result<PodId, RunError> {
    let (id, Name { namespace, name, .. }) = (handle.id().clone(), name);
    if *handle.pod.config != *config || handle.pod.handler != handler {
        return Err(RunError::NameTaken { namespace, name, id });
    }
    match handle.view().sandbox.state {
        SandboxState::Ready => Ok(id),
        SandboxState::NotReady => Err(RunError::Ended { namespace, name, id }),
    }
}

/// Sends a request to a pod's driver and waits for the answer; `None` when the driver ended without one.
pub(crate) async fn ask<T>(
    handle: &Handle,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    if handle.ask(request(reply)) { answer.await.ok() } else { None }
}

/// An event channel that never brings anything: for a pod without a shim.
pub(crate) fn no_events() -> mpsc::UnboundedReceiver<crate::shim::ShimEvent> {
    mpsc::unbounded_channel().1
}

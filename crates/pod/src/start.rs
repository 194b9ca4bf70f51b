//! Setting a pod up, as stages that consume each other; each knows how to undo exactly what it did.
//!
//! ```text
//! Reserved ──isolate──▶ Isolated ──attach──▶ Networked ──ready──▶ Ready
//!  id, cgroup path,      cgroup, shim,        veth pair            durable record,
//!  lease, record on      namespaces pinned,                        marker file
//!  its way to disk       files
//!     │ undo                │ undo: kill shim, unpin, remove          (the veth goes with its namespace)
//! ```
//!
//! What takes time runs beside something else: the record is committed during the whole set-up, the pod's files are
//! written while the shim makes namespaces.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use api::cri::v1::{self as cri, NamespaceMode, PodSandboxConfig};
use api::id::PodId;
use api::shim::v1 as shim;
use namespaces::NamespaceKind;
use network::Lease;
use tokio::sync::{Mutex, mpsc};
use tracing::{Instrument, Span, debug_span};

use crate::cgroup::Directory;
use crate::cni;
use crate::error::RunError;
use crate::files;
use crate::headroom;
use crate::limits;
use crate::node::{Node, make_dir, now};
use crate::pod::{Pod, Shim, owner};
use crate::ports;
use crate::sandbox::{is_node, namespaces, pid_mode, user_namespace};
use crate::shim::{Client, ShimEvent};
use crate::spec::cgroup::pod_path;
use crate::store::{Change, Commit, CommitError, SandboxRecord};

/// File in a pod's directory with the process id of its shim and the path of its cgroup, a line each: what it takes to
/// find everything of the pod without a record.
pub(crate) const SHIM: &str = "shim";
/// File in a pod's directory that says: set-up was finished.
pub(crate) const READY: &str = "ready";

/// A pod with an id, an address and a record on its way to disk; nothing exists on the node.
#[derive(Debug)]
pub(crate) struct Reserved {
    node: Arc<Node>,
    id: PodId,
    config: Arc<PodSandboxConfig>,
    handler: String,
    created_at: i64,
    cgroup: String,
    lease: Option<Lease>,
    commit: Option<Commit>,
    /// The pod gets its time namespace later: it is restored from a checkpoint.
    restored: bool,
}

/// A pod with its shim and namespaces.
#[derive(Debug)]
pub(crate) struct Isolated {
    reserved: Reserved,
    shim: Shim,
    events: mpsc::UnboundedReceiver<ShimEvent>,
    network: Option<OwnedFd>,
    plugged: Vec<IpAddr>,
}

/// A pod that has its addresses.
#[derive(Debug)]
pub(crate) struct Networked(Isolated);

/// A pod that is up.
#[derive(Debug)]
pub(crate) struct Ready {
    pub pod: Arc<Pod>,
    pub events: mpsc::UnboundedReceiver<ShimEvent>,
}

/// Sets a pod up under a new `id`; on error nothing of it is left.
pub(crate) async fn run(
    node: Arc<Node>,
    id: PodId,
    config: PodSandboxConfig,
    handler: String,
    restored: bool,
) -> Result<Ready, RunError> {
    headroom::check()?;
    let reserved = debug_span!("reserve").in_scope(|| Reserved::new(node, id, config, handler, restored))?;
    Span::current().record("pod", reserved.id.short());
    let isolated = reserved.isolate().instrument(debug_span!("isolate")).await?;
    let networked = isolated.attach().instrument(debug_span!("network")).await?;
    networked.ready().instrument(debug_span!("ready")).await
}

impl Reserved {
    fn new(
        node: Arc<Node>,
        id: PodId,
        config: PodSandboxConfig,
        handler: String,
        restored: bool,
    ) -> Result<Self, RunError> {
        let cgroup = pod_path(&config, &node.config.cgroup_root, &id)?;
        let bridged = !is_node(namespaces(&config).network) && node.config.cni.is_none();
        let lease = if bridged { Some(node.network.allocate()?) } else { None };
        let created_at = now();
        let record = Box::new(SandboxRecord {
            config: Some(config.clone()),
            handler: handler.clone(),
            created_at,
            cgroup: cgroup.clone(),
            ipv4: lease.as_ref().map(|l| l.v4.to_string()).unwrap_or_default(),
            ipv6: lease.as_ref().and_then(|l| l.v6).map(|v6| v6.to_string()).unwrap_or_default(),
        });
        let commit = Some(node.store.commit(vec![Change::Sandbox(id.clone(), record)]));
        Ok(Self { node, id, config: Arc::new(config), handler, created_at, cgroup, lease, commit, restored })
    }

    /// Makes cgroup, shim, namespaces, pins and files.
    async fn isolate(self) -> Result<Isolated, RunError> {
        let dir = self.node.pod_dir(&self.id);
        let launched = make_dir(&dir, 0o711)
            .map_err(|e| RunError::File { what: "directory", path: dir.clone(), source: sys::errno_of(&e) })
            .and_then(|()| self.launch());
        match launched {
            Ok((cgroups, shim, events)) => {
                let isolated = Isolated { reserved: self, shim, events, network: None, plugged: Vec::new() };
                isolated.fill(&cgroups).await
            }
            Err(error) => {
                self.undo().await;
                Err(error)
            }
        }
    }

    fn launch(&self) -> Result<(Vec<Directory>, Shim, mpsc::UnboundedReceiver<ShimEvent>), RunError> {
        let file = |what, path: PathBuf, source| RunError::File { what, path, source };
        let cgroups = debug_span!("cgroup")
            .in_scope(|| self.node.cgroups.create(&self.cgroup))
            .map_err(|(path, source)| file("cgroup", path, source))?;
        let dir = self.node.pod_dir(&self.id);
        let launched = debug_span!("spawn").in_scope(|| {
            let socket = self.node.shim_socket(&self.id);
            self.node.launcher.launch(&self.id, &socket, &dir.join("shim.log"))
        })?;
        let path = dir.join(SHIM);
        std::fs::write(&path, format!("{}\n{}\n", launched.pid, self.cgroup))
            .map_err(|e| file("file", path.clone(), sys::errno_of(&e)))?;
        let (sender, events) = mpsc::unbounded_channel();
        let child = launched.pidfd.try_clone();
        let client = child.and_then(|child| Client::start(launched.socket, Some(child), sender));
        let client = client.map_err(|e| file("connection", path, sys::errno_of(&e)))?;
        Ok((cgroups, Shim { client, pid: launched.pid, process: launched.pidfd }, events))
    }

    /// Leaves nothing: what was not made is not there to remove.
    async fn undo(mut self) {
        // The removal is queued behind the record whatever becomes of that.
        let _ = self.durable().await;
        let Self { node, id, config, cgroup, lease, .. } = self;
        let _ = std::fs::remove_file(node.shim_socket(&id));
        let mut left = node.cgroups.remove(&cgroup);
        left.extend(files::remove(&node.pod_dir(&id)));
        if let Some(lease) = &lease {
            left.extend(ports::unmap(&node.network, lease, &config).await);
        }
        if !left.is_empty() {
            tracing::warn!(pod = %id, ?left, "undoing a pod left something behind");
        }
        if let Some(lease) = &lease {
            node.network.release(lease);
        }
        node.store.post(vec![Change::RemoveSandbox(id)]);
    }
}

impl Isolated {
    /// Has the shim make the namespaces while the files are written, then pins them.
    async fn fill(mut self, cgroups: &[Directory]) -> Result<Self, RunError> {
        let (request, fds) = self.reserved.request(cgroups);
        let made = {
            let call = self.shim.client.create_sandbox(request, &fds);
            let files = async { self.reserved.files() };
            let (made, files) = tokio::join!(call.instrument(debug_span!("namespaces")), files);
            made.map_err(RunError::Shim).and_then(|made| files.map(|()| made))
        };
        match made.and_then(|made| debug_span!("pin").in_scope(|| self.reserved.pin(made))) {
            Ok(network) => {
                self.network = network;
                self.limit().await
            }
            Err(error) => {
                self.undo().await;
                Err(error)
            }
        }
    }

    /// Sets the limits of the pod as a whole.
    async fn limit(self) -> Result<Self, RunError> {
        match limits::begin(&self.shim.client, &self.reserved.config).await {
            Ok(()) => Ok(self),
            Err(error) => {
                self.undo().await;
                Err(error.into())
            }
        }
    }

    /// Gives the pod its address.
    async fn attach(mut self) -> Result<Networked, RunError> {
        let Some(netns) = &self.network else { return Ok(Networked(self)) };
        let attached = match (netns.try_clone(), self.reserved.lease.clone()) {
            (Ok(netns), Some(lease)) => self.reserved.bridge(lease, netns).await,
            (Ok(netns), None) => self.reserved.plug(netns).await.map(|plugged| self.plugged = plugged),
            (Err(_), _) => Err(RunError::Interrupted),
        };
        match attached {
            Ok(()) => Ok(Networked(self)),
            Err(error) => {
                self.undo().await;
                Err(error)
            }
        }
    }

    async fn undo(self) {
        let Self { reserved, shim, network, .. } = self;
        if network.is_some() && reserved.lease.is_none() {
            cni::del(&reserved.node, &reserved.id).await;
        }
        drop(network);
        crate::stop::end_shim(&shim).await;
        for error in reserved.node.pins.unpin_all(reserved.id.as_str()) {
            tracing::warn!(pod = %reserved.id, %error, "undoing a pod left a pin behind");
        }
        reserved.undo().await;
    }
}

impl Networked {
    /// Waits for the record and marks the pod as finished.
    async fn ready(self) -> Result<Ready, RunError> {
        let mut isolated = self.0;
        let durable = isolated.reserved.durable().await.map_err(RunError::Store);
        let path = isolated.reserved.node.pod_dir(&isolated.reserved.id).join(READY);
        let marked = durable.and_then(|()| {
            std::fs::write(&path, "").map_err(|e| RunError::File {
                what: "file",
                path,
                source: sys::errno_of(&e),
            })
        });
        if let Err(error) = marked {
            isolated.undo().await;
            return Err(error);
        }
        let Isolated { reserved, shim, events, plugged, .. } = isolated;
        let Reserved { node, id, config, handler, created_at, cgroup, lease, .. } = reserved;
        let pod = Pod {
            node,
            id,
            config,
            handler,
            created_at,
            cgroup,
            lease,
            plugged,
            shim: Some(shim),
            restoring: Mutex::default(),
        };
        Ok(Ready { pod: Arc::new(pod), events })
    }
}

impl Reserved {
    /// Waits until the record is durable; once.
    async fn durable(&mut self) -> Result<(), CommitError> {
        match self.commit.take() {
            Some(commit) => commit.durable().await,
            None => Ok(()),
        }
    }

    /// Connects the pod with the embedded bridge.
    async fn bridge(&self, lease: Lease, netns: OwnedFd) -> Result<(), RunError> {
        let (network, config) = (self.node.network.clone(), Arc::clone(&self.config));
        let work = move || -> Result<(), RunError> {
            network.attach(&lease, netns.as_fd())?;
            Ok(ports::map(&network, &lease, &config)?)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(RunError::Interrupted))
    }

    /// Connects the pod by plugins, which choose its addresses: the hosts file is written again.
    async fn plug(&self, netns: OwnedFd) -> Result<Vec<IpAddr>, RunError> {
        let plugged = cni::add(&self.node, &self.id, &self.config, netns).await?;
        files::write_hosts(&self.node.pod_dir(&self.id), &self.config, &plugged, owner(&self.config))?;
        Ok(plugged)
    }

    /// What the shim is to make.
    fn request<'a>(&self, cgroups: &'a [Directory]) -> (shim::CreateSandboxRequest, Vec<BorrowedFd<'a>>) {
        let modes = namespaces(&self.config);
        let (net, ipc) = (!is_node(modes.network), !is_node(modes.ipc));
        let user = user_namespace(&self.config);
        // One descriptor for each controller, also where several share a directory: each index is taken once.
        let named = cgroups.iter().flat_map(|dir| dir.controllers.iter().map(move |c| (c, dir.fd.as_fd())));
        let (controllers, fds): (Vec<_>, Vec<_>) = named.unzip();
        let request = shim::CreateSandboxRequest {
            pod_id: self.id.to_string(),
            net,
            ipc,
            uts: net,
            time: !self.restored,
            pod_pid: pid_mode(&self.config, None) == NamespaceMode::Pod,
            hostname: if net { self.config.hostname.clone() } else { String::new() },
            user: user.map(|user| shim::UserNamespace {
                uids: user.uids.iter().map(id_mapping).collect(),
                gids: user.gids.iter().map(id_mapping).collect(),
            }),
            sysctls: sysctls(&self.config, net),
            cgroups: controllers
                .into_iter()
                .zip(0..)
                .map(|(c, dir_fd)| shim::CgroupFd { controller: c.clone(), dir_fd })
                .collect(),
            criu: self.node.config.criu.clone(),
            criu_run: self.node.criu_run(),
            log_limit: 0,
        };
        (request, fds)
    }

    fn files(&self) -> Result<(), RunError> {
        let ips = self.lease.as_ref().map(Lease::addresses).unwrap_or_default();
        let own_shm = !is_node(namespaces(&self.config).ipc);
        files::make(&self.node.pod_dir(&self.id), &self.config, &ips, own_shm, owner(&self.config))
    }

    /// Pins what the shim made; gives the network namespace back.
    fn pin(&self, made: Vec<(String, OwnedFd)>) -> Result<Option<OwnedFd>, RunError> {
        let mut network = None;
        for (kind, fd) in made {
            let Some(kind) = NamespaceKind::from_name(&kind) else { continue };
            self.node.pins.pin(self.id.as_str(), kind, &fd)?;
            if kind == NamespaceKind::Net {
                network = Some(fd);
            }
        }
        Ok(network)
    }
}

fn id_mapping(range: &cri::IdMapping) -> shim::IdMapping {
    shim::IdMapping { container_id: range.container_id, host_id: range.host_id, length: range.length }
}

/// The request's sysctls over those that let ordinary users listen on low ports and send echo requests, as the
/// field's runtimes do. In a user namespace the range of groups would name some that are not mapped: left closed.
fn sysctls(config: &PodSandboxConfig, net: bool) -> HashMap<String, String> {
    let mut all = HashMap::new();
    if net {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        if user_namespace(config).is_none() {
            all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    let asked = config.linux.iter().flat_map(|l| &l.sysctls);
    all.extend(asked.map(|(key, value)| (key.replace('/', "."), value.clone())));
    all
}

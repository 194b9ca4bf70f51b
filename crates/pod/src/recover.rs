//! Taking over the pods of an earlier daemon, or of an earlier boot.
//!
//! | record | files under RUN | shim            | then |
//! |--------|-----------------|-----------------|------|
//! | yes    | finished        | answers         | as the shim says |
//! | yes    | finished        | silent          | listed, containers `Unknown`; a stop kills through the cgroup |
//! | yes    | finished        | gone            | what is left is ended; `NotReady`, containers `Exited` |
//! | yes    | none            | -               | the machine was restarted: `NotReady`, containers `Exited` |
//! | yes    | unfinished      | any             | half made: undone, as if it had never been asked for |
//! | no     | any             | any             | an orphan: ended and removed |
//!
//! Every pod is looked at by a task of its own with a limit on time, so that none holds up the others; all of this
//! can be interrupted and run again.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::id::{ContainerId, PodId};
use api::shim::v1::{Exit, StateResponse, container_state::Phase};
use network::Lease;
use sys::seqpacket::SeqPacket;
use sys::{Pid, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::container::{Container, Metadata, Status, User};
use crate::driver::{self, ended};
use crate::files;
use crate::limits::PodLimits;
use crate::moving::HELD;
use crate::node::{Node, now};
use crate::pod::{Pod, Shim};
use crate::pods::{Pods, no_events};
use crate::ports;
use crate::request::Activity;
use crate::shim::{CallError, Client, ShimEvent};
use crate::start::{READY, SHIM};
use crate::state::ContainerState;
use crate::store::{Change, ContainerRecord, Contents, SandboxRecord, SandboxStatusRecord, StatusRecord};

/// How long a shim may take to tell its state before its pod is listed without.
const PATIENCE: Duration = Duration::from_millis(700);

type Records = Vec<(ContainerId, ContainerRecord, StatusRecord)>;

/// Lists every pod of the store and ends everything that is in none of its records.
pub(crate) async fn all(pods: &Pods, contents: Contents) {
    for (key, reason) in &contents.broken {
        tracing::error!(key, reason, "a record of the pod store cannot be read and is not served");
    }
    remove_orphans(pods, &contents);
    let mut of_pod: HashMap<String, Records> = HashMap::new();
    for (id, record, status) in contents.containers {
        of_pod.entry(record.pod.clone()).or_default().push((id, record, status));
    }
    let mut tasks = JoinSet::new();
    for (id, record, status) in contents.sandboxes {
        let containers = of_pod.remove(id.as_str()).unwrap_or_default();
        let pods = pods.clone();
        tasks.spawn(async move { one(&pods, id, record, status, containers).await });
    }
    // Containers without a pod: their pod's record is broken or gone.
    let lost = of_pod.into_values().flatten().map(|(id, ..)| Change::RemoveContainer(id)).collect::<Vec<_>>();
    if !lost.is_empty() {
        pods.node.store.post(lost);
    }
    while let Some(result) = tasks.join_next().await {
        if let Err(error) = result {
            tracing::error!(%error, "recovering a pod panicked");
        }
    }
}

async fn one(
    pods: &Pods,
    id: PodId,
    record: SandboxRecord,
    status: SandboxStatusRecord,
    containers: Records,
) {
    let node = &pods.node;
    let dir = node.pod_dir(&id);
    let finished = dir.join(READY).exists();
    if dir.exists() && !finished && !status.stopped {
        tracing::info!(pod = %id, "a half made pod is undone");
        return undo(node, id, &record, &containers).await;
    }
    let lease = lease(&record);
    let plugged = if lease.is_none() { node.cni.addresses(id.as_str()) } else { Vec::new() };
    let mut pod = Pod {
        node: Arc::clone(node),
        id,
        config: Arc::new(record.config.clone().unwrap_or_default()),
        handler: record.handler.clone(),
        created_at: record.created_at,
        cgroup: record.cgroup.clone(),
        lease,
        plugged,
        shim: None,
        restoring: tokio::sync::Mutex::default(),
    };
    if status.stopped || !finished {
        return dead(pods, pod, status.limits, containers, "the node was restarted").await;
    }
    match connect(&pod).await {
        Some((shim, events, state)) => {
            pod.shim = Some(shim);
            alive(pods, pod, status.limits, containers, events, state).await;
        }
        None => dead(pods, pod, status.limits, containers, "its shim ended").await,
    }
}

/// A connection to the pod's shim and what it says; the state is `None` if it is silent.
async fn connect(pod: &Pod) -> Option<(Shim, mpsc::UnboundedReceiver<ShimEvent>, Option<StateResponse>)> {
    let (pid, process) = shim_process(&pod.node.pod_dir(&pod.id), &pod.id)?;
    let socket = SeqPacket::connect(&pod.node.shim_socket(&pod.id)).ok()?;
    let (sender, events) = mpsc::unbounded_channel();
    // No child of ours any more: init reaps it.
    let client = Client::start(socket, None, sender).ok()?;
    let state = client.state(PATIENCE).await;
    if let Err(CallError::Gone) = &state {
        return None;
    }
    if let Err(error) = &state {
        tracing::warn!(pod = %pod.id, %error, "a shim does not tell its state");
    }
    Some((Shim { client, pid, process }, events, state.ok()))
}

/// The process of a pod's shim, checked by its command line: the id may have been reused since.
fn shim_process(dir: &Path, id: &PodId) -> Option<(u32, OwnedFd)> {
    let text = std::fs::read_to_string(dir.join(SHIM)).ok()?;
    let pid: i32 = text.lines().next()?.parse().ok()?;
    let process = sys::pidfd::open(Pid::from_raw(pid)?).ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = command.split(|b| *b == 0).any(|argument| argument == id.as_str().as_bytes());
    ours.then_some((pid.unsigned_abs(), process))
}

/// A pod whose shim lives.
async fn alive(
    pods: &Pods,
    pod: Pod,
    limits: Option<PodLimits>,
    records: Records,
    events: mpsc::UnboundedReceiver<ShimEvent>,
    state: Option<StateResponse>,
) {
    if let Some(lease) = &pod.lease {
        if let Err(error) = pods.node.network.adopt(lease) {
            tracing::error!(pod = %pod.id, %error, "the address of a pod cannot be kept");
        }
        ports::adopt(&pods.node.network, lease, &pod.config);
    }
    let containers = match &state {
        Some(state) => reconcile(&pod, records, state).await,
        None => {
            let unknown = |mut container: Container| {
                if container.status.state.is_alive() {
                    container.status.state = ContainerState::Unknown;
                }
                container
            };
            records.into_iter().map(|row| unknown(container(&pod, row))).collect()
        }
    };
    let frozen = state.as_ref().is_some_and(|state| state.frozen);
    // Held: a move was about to be committed, and only the other node knows whether it was.
    let held = frozen && pod.node.pod_dir(&pod.id).join(HELD).exists();
    if let (true, false, Some(client)) = (frozen, held, pod.client()) {
        tracing::warn!(pod = %pod.id, "a pod was left frozen: it runs again");
        if let Err(error) = client.resume(false).await {
            tracing::error!(pod = %pod.id, %error, "resuming a frozen pod");
        }
    }
    let activity = if held { Activity::Moving } else { Activity::Ready };
    let handle = driver::start(Arc::new(pod), &pods.registry, activity, limits, &containers, events);
    pods.registry.insert(handle);
}

/// Brings records and the shim's list together: the shim knows what runs, the records what was promised.
async fn reconcile(pod: &Pod, records: Records, state: &StateResponse) -> Vec<Container> {
    let mut containers = Vec::new();
    for row in records {
        let id = row.0.clone();
        let recorded = row.2.state == api::cri::v1::ContainerState::ContainerExited as i32;
        let Some(found) = state.containers.iter().find(|c| c.id == id.as_str()) else {
            if recorded {
                containers.push(container(pod, row));
            } else {
                // Its record was on its way when the daemon ended; nobody was told of it.
                discard(&pod.node, &id);
            }
            continue;
        };
        let mut container = container(pod, row);
        let status = &mut container.status;
        status.pid = found.pid;
        status.started_at = found.started_at;
        match (found.phase(), &found.exit) {
            (Phase::Exited, exit) => {
                if !recorded {
                    let lost = Exit { code: 255, finished_at: now(), ..Exit::default() };
                    status.state = ContainerState::Exited;
                    ended(status, exit.as_ref().unwrap_or(&lost));
                    pod.node.store.post(vec![Change::Status(id, (&*status).into())]);
                }
                status.pid = 0;
            }
            (Phase::Running, _) => status.state = ContainerState::Running,
            (Phase::Created, _) => status.state = ContainerState::Created,
        }
        containers.push(container);
    }
    remove_unrecorded(pod, &containers, state).await;
    containers.sort_by_key(|c| c.metadata.created_at);
    containers
}

/// Containers that only the shim knows: created, but not recorded before the daemon ended.
async fn remove_unrecorded(pod: &Pod, known: &[Container], state: &StateResponse) {
    for extra in state.containers.iter().filter(|c| !known.iter().any(|k| k.id().as_str() == c.id)) {
        if let (Some(client), Ok(id)) = (pod.client(), extra.id.parse::<ContainerId>()) {
            let _ = pod.node.cgroups.kill(&pod.container_cgroup(&id));
            let _ = client.kill(&extra.id, 9, true).await;
            if let Err(error) = client.delete_container(&extra.id).await {
                tracing::warn!(pod = %pod.id, container = extra.id, %error, "removing an unrecorded container");
            }
            discard(&pod.node, &id);
        }
    }
}

fn discard(node: &Node, id: &ContainerId) {
    node.store.post(vec![Change::RemoveContainer(id.clone())]);
    let _ = std::fs::remove_dir_all(node.container_dir(id));
}

/// A pod without a shim: everything of it is ended, the objects stay listed until they are removed.
async fn dead(pods: &Pods, pod: Pod, limits: Option<PodLimits>, records: Records, why: &str) {
    for error in end(&pods.node, &pod.id, &pod.cgroup).await {
        tracing::warn!(pod = %pod.id, error, "ending a pod without a shim");
    }
    let mut containers: Vec<_> = records.into_iter().map(|row| container(&pod, row)).collect();
    let mut changes = vec![Change::SandboxStatus(
        pod.id.clone(),
        Box::new(SandboxStatusRecord { stopped: true, limits: limits.clone(), ..Default::default() }),
    )];
    for container in &mut containers {
        if container.status.state.is_alive() {
            let status = &mut container.status;
            let exit = Exit { code: 255, finished_at: now(), ..Exit::default() };
            status.state = ContainerState::Exited;
            ended(status, &exit);
            why.clone_into(&mut status.message);
            changes.push(Change::Status(container.metadata.id.clone(), (&container.status).into()));
        }
    }
    pods.node.store.post(changes);
    containers.sort_by_key(|c| c.metadata.created_at);
    let (pod, stopped) = (Arc::new(pod), Activity::Stopped);
    let handle = driver::start(pod, &pods.registry, stopped, limits, &containers, no_events());
    pods.registry.insert(handle);
}

/// Removes every trace of a pod that was never finished.
async fn undo(node: &Arc<Node>, id: PodId, record: &SandboxRecord, containers: &Records) {
    let mut left = end(node, &id, &record.cgroup).await;
    left.extend(files::remove(&node.pod_dir(&id)));
    for (container, ..) in containers {
        discard(node, container);
    }
    for error in left {
        tracing::warn!(pod = %id, error, "undoing a half made pod");
    }
    node.store.post(vec![Change::RemoveSandbox(id)]);
}

/// Kills a pod's processes and its shim, lets go of pins, cgroups and socket.
async fn end(node: &Node, id: &PodId, cgroup: &str) -> Vec<String> {
    node.cgroups.thaw(cgroup);
    if let Err(error) = node.cgroups.kill(cgroup) {
        tracing::warn!(pod = %id, %error, "killing a pod's cgroup");
    }
    match shim_process(&node.pod_dir(id), id) {
        Some((_, process)) => drop(sys::pidfd::kill(process.as_fd(), Signal::KILL)),
        None => dismiss(node, id).await,
    }
    for _ in 0..100 {
        if !node.cgroups.is_populated(cgroup) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut left: Vec<String> = node.pins.unpin_all(id.as_str()).iter().map(ToString::to_string).collect();
    left.extend(node.cgroups.remove(cgroup));
    let _ = std::fs::remove_file(node.shim_socket(id));
    left
}

/// Ends a shim whose process id was not written down: the daemon ended between making it and that. It hears us on its
/// socket; there is nobody on that of a shim which has ended.
async fn dismiss(node: &Node, id: &PodId) {
    let Ok(socket) = SeqPacket::connect(&node.shim_socket(id)) else { return };
    let (sender, _events) = mpsc::unbounded_channel();
    let Ok(client) = Client::start(socket, None, sender) else { return };
    if let Err(error) = client.shutdown(PATIENCE).await {
        tracing::warn!(pod = %id, %error, "ending the shim of a half made pod");
    }
}

/// What no record knows: pods whose store was lost, layers whose container was never finished.
fn remove_orphans(pods: &Pods, contents: &Contents) {
    let node = Arc::clone(&pods.node);
    let known: Vec<String> = contents.sandboxes.iter().map(|row| row.0.to_string()).collect();
    let layers: Vec<String> = contents.containers.iter().map(|row| row.0.to_string()).collect();
    let run = &node.config.run;
    let mut orphans: Vec<PodId> = Vec::new();
    for dir in [run.join("pods"), run.join("ns"), run.join("shim")] {
        let found =
            names(&dir).into_iter().filter(|name| !known.contains(name)).filter_map(|n| n.parse().ok());
        for id in found {
            if !orphans.contains(&id) {
                orphans.push(id);
            }
        }
    }
    let restored = node.config.root.join("restored");
    for name in names(&restored).into_iter().filter(|name| !known.contains(name)) {
        let _ = std::fs::remove_dir_all(restored.join(name));
    }
    let unused: Vec<_> = names(&node.config.root.join("containers"))
        .into_iter()
        .filter(|name| !layers.contains(name))
        .collect();
    tokio::spawn(async move {
        for id in orphans {
            tracing::warn!(pod = %id, "a pod without a record is ended");
            let text = std::fs::read_to_string(node.pod_dir(&id).join(SHIM)).unwrap_or_default();
            let cgroup = text
                .lines()
                .nth(1)
                .map_or_else(|| format!("{}/{id}", node.config.cgroup_root), str::to_owned);
            let mut left = end(&node, &id, &cgroup).await;
            left.extend(files::remove(&node.pod_dir(&id)));
            for error in left {
                tracing::warn!(pod = %id, error, "ending a pod without a record");
            }
        }
        for name in unused {
            let dir = node.config.root.join("containers").join(name);
            let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        }
    });
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn lease(record: &SandboxRecord) -> Option<Lease> {
    Some(Lease { v4: record.ipv4.parse().ok()?, v6: record.ipv6.parse().ok() })
}

fn container(pod: &Pod, (id, record, status): (ContainerId, ContainerRecord, StatusRecord)) -> Container {
    let state = match api::cri::v1::ContainerState::try_from(status.state) {
        Ok(api::cri::v1::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(api::cri::v1::ContainerState::ContainerExited) => ContainerState::Exited,
        Ok(api::cri::v1::ContainerState::ContainerUnknown) => ContainerState::Unknown,
        _ => ContainerState::Created,
    };
    let ids = record.volume_images.values().chain([&record.image_id]);
    let holds = ids.filter_map(|id| pod.node.images.hold(&id.parse().ok()?)).collect();
    let metadata = Metadata {
        id,
        pod: pod.id.clone(),
        config: record.config.unwrap_or_default(),
        image_id: record.image_id,
        image_name: record.image_name,
        volume_images: record.volume_images,
        created_at: record.created_at,
        log_path: record.log_path.into(),
        spec: record.spec,
        stop_signal: record.stop_signal,
        user: User { uid: record.uid, gid: record.gid, groups: record.groups },
        restored: record.restored,
        holds,
        exec: std::sync::OnceLock::new(),
    };
    let status = Status {
        state,
        pid: 0,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        resources: status.resources,
    };
    Container { metadata: Arc::new(metadata), status }
}

impl From<&Metadata> for ContainerRecord {
    fn from(metadata: &Metadata) -> Self {
        Self {
            pod: metadata.pod.to_string(),
            config: Some(metadata.config.clone()),
            image_id: metadata.image_id.clone(),
            image_name: metadata.image_name.clone(),
            volume_images: metadata.volume_images.clone(),
            created_at: metadata.created_at,
            log_path: metadata.log_path.to_string_lossy().into_owned(),
            spec: metadata.spec.clone(),
            stop_signal: metadata.stop_signal,
            uid: metadata.user.uid,
            gid: metadata.user.gid,
            groups: metadata.user.groups.clone(),
            restored: metadata.restored,
        }
    }
}

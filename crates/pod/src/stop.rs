//! Taking a pod down: try everything, report what stays, wait for no single object.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use sys::Signal;
use tokio::time::Instant;

use crate::cni;
use crate::files;
use crate::pod::{Pod, Shim};
use crate::ports;

/// Longest wait for killed processes to be gone.
const DEATH: Duration = Duration::from_secs(5);
/// Longest wait for a shim to end by itself.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Kills every process of the pod.
pub(crate) fn kill(pod: &Pod) {
    if let Err(error) = pod.node.cgroups.kill(&pod.cgroup) {
        tracing::warn!(pod = %pod.id, %error, "killing a pod's cgroup");
    }
}

/// Waits until no process of the pod is left. False: some are still there after [`DEATH`].
pub(crate) async fn wait_for_death(pod: &Pod) -> bool {
    let deadline = Instant::now() + DEATH;
    let mut pause = Duration::from_micros(200);
    while pod.node.cgroups.is_populated(&pod.cgroup) {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}

/// Ends the shim and lets go of network, namespaces and cgroups. The containers' exits are known by now.
///
/// Returns what stayed, and why.
pub(crate) async fn release(pod: Arc<Pod>) -> Vec<String> {
    if let Some(shim) = &pod.shim {
        end_shim(shim).await;
    }
    let mut left = Vec::new();
    if pod.is_plugged() {
        cni::del(&pod.node, &pod.id).await;
    }
    left.extend(pod.node.pins.unpin_all(pod.id.as_str()).iter().map(ToString::to_string));
    if let Some(lease) = &pod.lease {
        left.extend(ports::unmap(&pod.node.network, lease, &pod.config).await);
        pod.node.network.release(lease);
    }
    left.extend(pod.node.cgroups.remove(&pod.cgroup));
    let _ = std::fs::remove_file(pod.node.shim_socket(&pod.id));
    match std::fs::remove_dir_all(pod.node.restored_dir(&pod.id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            left.push(format!("checkpoint: {error}"))
        }
        _ => {}
    }
    left
}

/// Removes the pod's files: the last trace of it under RUN.
pub(crate) fn remove_files(pod: &Pod) -> Vec<String> {
    files::remove(&pod.node.pod_dir(&pod.id))
}

/// Asks the shim to end; kills it if it does not answer.
pub(crate) async fn end_shim(shim: &Shim) {
    if shim.client.shutdown(SHUTDOWN).await.is_err() {
        let _ = sys::pidfd::kill(shim.process.as_fd(), Signal::KILL);
    }
}

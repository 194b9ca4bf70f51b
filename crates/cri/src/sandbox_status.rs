//! `PodSandboxStatus`.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use api::cri::v1::{
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use image::Images;
use pod::Pods;
use serde_json::json;

use crate::{container_status, error::Failure, find, info, sandbox_list::state};

/// One pod and its containers.
pub(crate) fn status(
    pods: &Pods,
    images: &Images,
    request: &PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Failure> {
    let id = find::sandbox(pods, &request.pod_sandbox_id)?;
    // Before the state is read: events up to then are contained in it.
    let timestamp = now();
    let sandbox = pods.sandbox(&id)?;
    let containers = pods.containers_of(&id)?;
    Ok(PodSandboxStatusResponse {
        status: Some(of(&sandbox)),
        info: if request.verbose { verbose(pods, &sandbox) } else { HashMap::new() },
        containers_statuses: containers.iter().map(|c| container_status::of(images, c)).collect(),
        timestamp,
    })
}

/// The status message of a pod.
pub(crate) fn of(s: &pod::Sandbox) -> PodSandboxStatus {
    PodSandboxStatus {
        id: s.id.to_string(),
        metadata: s.config.metadata.clone(),
        state: state(s.state).into(),
        created_at: s.created_at,
        network: Some(network(s)),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(s.namespaces()) }) }),
        labels: s.config.labels.clone(),
        annotations: s.config.annotations.clone(),
        runtime_handler: s.handler.clone(),
    }
}

/// Addresses while the pod has them.
fn network(s: &pod::Sandbox) -> PodSandboxNetworkStatus {
    if s.state != pod::SandboxState::Ready {
        return PodSandboxNetworkStatus::default();
    }
    let mut ips = s.ips.iter().map(ToString::to_string);
    let ip = ips.next().unwrap_or_default();
    PodSandboxNetworkStatus { ip, additional_ips: ips.map(|ip| PodIp { ip }).collect() }
}

fn verbose(pods: &Pods, s: &pod::Sandbox) -> HashMap<String, String> {
    let namespaces = pods.namespaces(&s.id).map(|found| found.namespaces).unwrap_or_default();
    let info = json!({
        "shimPid": s.shim_pid,
        "cgroup": s.cgroup,
        "runtimeHandler": s.handler,
        "addresses": s.ips,
        "hostname": s.config.hostname,
        "logDirectory": s.config.log_directory,
        "runtimeType": "meridian",
        "config": info::sandbox_config(&s.config),
        "runtimeSpec": info::pinned_namespaces(&namespaces),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

//! `PodSandboxStatus`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use api::cri::v1::{
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use image::Images;
use pod::Pods;
use serde_json::{Value, json};

use crate::{container_status, error::Failure, find, info, sandbox_list::state};

/// One pod and its containers.
pub(crate) async fn status(
    pods: &Pods,
    images: &Images,
    request: &PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Failure> {
    let id = find::sandbox(pods, &request.pod_sandbox_id)?;
    let sandbox = pods.sandbox(&id)?;
    let containers = pods.containers_of(&id)?;
    Ok(PodSandboxStatusResponse {
        status: Some(of(&sandbox)),
        info: if request.verbose { verbose(pods, &sandbox).await } else { HashMap::new() },
        containers_statuses: containers.iter().map(|c| container_status::of(images, c)).collect(),
        // None: with one, a kubelet v1.37 with EventedPLEG takes the containers from here and believes none of them to be of
        // the current sandbox, so that it runs init containers again and again. Without one it asks for each of them.
        timestamp: 0,
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

/// What is read for it blocks: on a thread where it may.
async fn verbose(pods: &Pods, s: &Arc<pod::Sandbox>) -> HashMap<String, String> {
    let (pods, s) = (pods.clone(), Arc::clone(s));
    let info = tokio::task::spawn_blocking(move || info(&pods, &s).to_string()).await;
    HashMap::from([("info".to_owned(), info.unwrap_or_default())])
}

fn info(pods: &Pods, s: &pod::Sandbox) -> Value {
    let namespaces = pods.namespaces(&s.id).map(|found| found.namespaces).unwrap_or_default();
    json!({
        "shimPid": s.shim_pid,
        "cgroup": s.cgroup,
        "overhead": info::limits(s.limits.overhead.as_ref()),
        "resources": info::limits(s.limits.resources.as_ref()),
        "runtimeHandler": s.handler,
        "addresses": s.ips,
        "hostname": s.config.hostname,
        "logDirectory": s.config.log_directory,
        "runtimeType": "meridian",
        "config": info::sandbox_config(&s.config),
        "runtimeSpec": info::pinned_namespaces(&namespaces),
    })
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

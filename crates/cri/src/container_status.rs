//! `ContainerStatus`.

use std::{collections::HashMap, sync::Arc};

use api::cri::v1::{
    ContainerResources, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ContainerUser,
    LinuxContainerUser, Mount,
};
use image::Images;
use pod::Pods;
use serde_json::{Value, json};

use crate::{
    container_list::{image_ref, image_spec, state},
    error::Failure,
    find, info, signal,
};

/// One container.
pub(crate) async fn status(
    pods: &Pods,
    images: &Images,
    request: &ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Failure> {
    let id = find::container(pods, &request.container_id)?;
    let container = pods.container(&id)?;
    let info = if request.verbose { verbose(pods, &container).await } else { HashMap::new() };
    Ok(ContainerStatusResponse { status: Some(of(images, &container)), info })
}

/// The status message of a container.
pub(crate) fn of(images: &Images, c: &pod::Container) -> ContainerStatus {
    let (m, s) = (&c.metadata, &c.status);
    ContainerStatus {
        id: m.id.to_string(),
        metadata: m.config.metadata.clone(),
        state: state(s.state).into(),
        created_at: m.created_at,
        started_at: s.started_at,
        finished_at: s.finished_at,
        exit_code: s.exit_code,
        image: Some(image_spec(m)),
        image_ref: image_ref(images, m),
        reason: s.reason.clone(),
        message: s.message.clone(),
        labels: m.config.labels.clone(),
        annotations: m.config.annotations.clone(),
        mounts: mounts(m),
        log_path: m.log_path.display().to_string(),
        resources: Some(ContainerResources { linux: c.resources().cloned(), windows: None }),
        image_id: m.image_id.clone(),
        user: Some(ContainerUser { linux: Some(user(&m.user)) }),
        stop_signal: signal::name(m.stop_signal).into(),
    }
}

/// The mounts that were asked for; those of images with the id of the image that is mounted (KEP-5365).
fn mounts(m: &pod::Metadata) -> Vec<Mount> {
    let mut mounts = m.config.mounts.clone();
    for mount in &mut mounts {
        if let (Some(image), Some(id)) = (&mut mount.image, m.volume_images.get(&mount.container_path)) {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

fn user(user: &pod::User) -> LinuxContainerUser {
    LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.groups.iter().copied().map(i64::from).collect(),
    }
}

/// As the links in /proc/PID/ns read: `net:[4026531840]`.
fn namespaces(pods: &Pods, c: &pod::Container) -> Vec<String> {
    let all = pods.namespaces(&c.metadata.pod).map(|found| found.namespaces).unwrap_or_default();
    let own =
        all.iter().filter(|n| n.members.iter().any(|member| member.container_id == c.metadata.id.as_str()));
    own.map(|n| format!("{}:[{}]", n.kind, n.inode)).collect()
}

/// The keys that crictl and the scripts around it read. What is read for them blocks: on a thread where it may.
async fn verbose(pods: &Pods, c: &Arc<pod::Container>) -> HashMap<String, String> {
    let (pods, c) = (pods.clone(), Arc::clone(c));
    let info = tokio::task::spawn_blocking(move || info(&pods, &c).to_string()).await;
    HashMap::from([("info".to_owned(), info.unwrap_or_default())])
}

fn info(pods: &Pods, c: &pod::Container) -> Value {
    json!({
        "pid": c.status.pid,
        "namespaces": namespaces(pods, c),
        "sandboxID": c.metadata.pod.as_str(),
        "restored": c.metadata.restored,
        "snapshotter": "overlayfs",
        "runtimeType": "meridian",
        "config": info::container_config(&c.metadata.config),
        "runtimeSpec": serde_json::from_slice::<Value>(&c.metadata.spec).unwrap_or_default(),
    })
}

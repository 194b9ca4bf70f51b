//! `ListContainers`.

use std::collections::HashMap;

use api::cri::v1::{Container, ContainerState, ImageSpec, ListContainersRequest, ListContainersResponse};
use image::Images;
use pod::Pods;

use crate::{error::Failure, filter::Filter};

/// Containers that pass the filter.
pub(crate) fn list(
    pods: &Pods,
    images: &Images,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Failure> {
    let filter = Filter::containers(request.filter)?;
    let passes = |c: &pod::Container| {
        let m = &c.metadata;
        filter.passes(m.id.as_str(), m.pod.as_str(), state(c.state()), &m.config.labels)
    };
    let all = pods.containers();
    // A node's containers come from few images: each is looked up once.
    let mut refs: HashMap<&str, String> = HashMap::new();
    let mut containers = Vec::with_capacity(all.len());
    for c in all.iter().filter(|c| passes(c)) {
        let m = &c.metadata;
        let image_ref = refs.entry(&m.image_id).or_insert_with(|| image_ref(images, m));
        containers.push(container(c, image_ref.clone()));
    }
    Ok(ListContainersResponse { containers })
}

fn container(c: &pod::Container, image_ref: String) -> Container {
    let m = &c.metadata;
    Container {
        id: m.id.to_string(),
        pod_sandbox_id: m.pod.to_string(),
        metadata: m.config.metadata.clone(),
        image: Some(image_spec(m)),
        image_ref,
        state: state(c.state()).into(),
        created_at: m.created_at,
        labels: m.config.labels.clone(),
        annotations: m.config.annotations.clone(),
        image_id: m.image_id.clone(),
    }
}

/// The image by the name that people know, beside what the request said of it.
pub(crate) fn image_spec(m: &pod::Metadata) -> ImageSpec {
    let mut spec = m.config.image.clone().unwrap_or_default();
    spec.image.clone_from(&m.image_name);
    spec.image_ref.clear();
    spec
}

/// The digest that the image was pulled by or, without one, its id.
pub(crate) fn image_ref(images: &Images, m: &pod::Metadata) -> String {
    let pulled = images.get(&m.image_id).and_then(|image| image.repo_digests.first().cloned());
    pulled.unwrap_or_else(|| m.image_id.clone())
}

/// A state as CRI names it.
pub(crate) fn state(state: pod::ContainerState) -> ContainerState {
    match state {
        pod::ContainerState::Created => ContainerState::ContainerCreated,
        pod::ContainerState::Running => ContainerState::ContainerRunning,
        pod::ContainerState::Exited => ContainerState::ContainerExited,
        pod::ContainerState::Unknown => ContainerState::ContainerUnknown,
    }
}

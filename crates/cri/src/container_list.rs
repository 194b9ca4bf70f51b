//! `ListContainers`.

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
    let containers = all.iter().filter(|c| passes(c)).map(|c| container(images, c)).collect();
    Ok(ListContainersResponse { containers })
}

fn container(images: &Images, c: &pod::Container) -> Container {
    let m = &c.metadata;
    Container {
        id: m.id.to_string(),
        pod_sandbox_id: m.pod.to_string(),
        metadata: m.config.metadata.clone(),
        image: Some(image_spec(m)),
        image_ref: image_ref(images, m),
        state: state(c.state()).into(),
        created_at: m.created_at,
        labels: m.config.labels.clone(),
        annotations: m.config.annotations.clone(),
        image_id: m.image_id.clone(),
    }
}

/// The image by the name that people know, beside what the request said of it.
pub(crate) fn image_spec(m: &pod::Metadata) -> ImageSpec {
    let given = m.config.image.clone().unwrap_or_default();
    ImageSpec { image: m.image_name.clone(), image_ref: String::new(), ..given }
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

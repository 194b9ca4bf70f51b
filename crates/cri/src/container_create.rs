//! `CreateContainer`.

use api::{
    cri::v1::{ContainerConfig, CreateContainerRequest, CreateContainerResponse, NamespaceMode},
    id::PodId,
};
use pod::Pods;

use crate::{
    check::{Field, container},
    error::Failure,
    find, span,
};

/// Makes a container; a repeated request returns the container that is there.
///
/// The pod's configuration that comes with the request is checked like the one it was made with, which is the one that
/// counts.
pub(crate) async fn create(
    pods: &Pods,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Failure> {
    container::create(&request)?;
    let pod = find::sandbox(pods, &request.pod_sandbox_id)?;
    let config = request.config.unwrap_or_default();
    span::image(config.image.as_ref().map_or("", |image| image.image.as_str()));
    container::within(Field::of("config"), &config, &pods.sandbox(&pod)?.config)?;
    target(pods, &pod, &config)?;
    let id = pods.create_container(&pod, config).await?;
    Ok(CreateContainerResponse { container_id: id.to_string() })
}

/// A container joins the pid namespace of a container of its own pod, or of none.
fn target(pods: &Pods, pod: &PodId, config: &ContainerConfig) -> Result<(), Failure> {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let Some(modes) = context.and_then(|c| c.namespace_options.as_ref()) else { return Ok(()) };
    let (of, target) = (modes.pid(), modes.target_id.as_str());
    if of != NamespaceMode::Target || pods.containers_of(pod)?.iter().any(|c| c.id().as_str() == target) {
        return Ok(());
    }
    let field = Field::of("config.linux.security_context.namespace_options.target_id");
    Err(field.wrong(target, "the id of a container in this pod").into())
}

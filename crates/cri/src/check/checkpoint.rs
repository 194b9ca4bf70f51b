//! Checkpoint and restore requests (KEP-5823, KEP-2008).

use std::collections::HashMap;

use api::cri::v1::{CheckpointContainerRequest, CheckpointPodRequest, RestorePodRequest};

use super::{Check, Field, container, distinct, id, range, required, sandbox, text};

/// Longest time limit a request may ask for, in seconds: a day.
const TIMEOUT_MAX: i64 = 86_400;

/// `CheckpointContainer`.
pub(crate) fn container(request: &CheckpointContainerRequest) -> Check {
    id::lookup(Field::of("container_id"), &request.container_id)?;
    text::absolute(Field::of("location"), &request.location)?;
    range(Field::of("timeout"), request.timeout, 0, TIMEOUT_MAX)
}

/// `CheckpointPod`.
pub(crate) fn pod(request: &CheckpointPodRequest) -> Check {
    id::lookup(Field::of("pod_sandbox_id"), &request.pod_sandbox_id)?;
    text::absolute(Field::of("output_path"), &request.output_path)?;
    let field = Field::of("container_ids");
    if request.container_ids.is_empty() {
        return Err(field.missing("the ids of all running containers of the pod"));
    }
    for (i, given) in request.container_ids.iter().enumerate() {
        id::lookup(field.index(i), given)?;
    }
    distinct(field, request.container_ids.iter().map(String::as_str), "given once")?;
    no_options(&request.options)
}

/// `RestorePod`.
pub(crate) fn restore(request: &RestorePodRequest) -> Check {
    text::absolute(Field::of("checkpoint_path"), &request.checkpoint_path)?;
    let pod = required(Field::of("config"), request.config.as_ref())?;
    sandbox::config(Field::of("config"), pod)?;
    let field = Field::of("container_configs");
    if request.container_configs.is_empty() {
        return Err(field.missing("one for each container of the checkpoint"));
    }
    for (i, config) in request.container_configs.iter().enumerate() {
        container::config(field.index(i), config)?;
        container::within(field.index(i), config, pod)?;
    }
    let names = request.container_configs.iter().filter_map(|c| c.metadata.as_ref()).map(|m| m.name.as_str());
    distinct(field, names, "named once")?;
    no_options(&request.options)
}

/// An option that is not known must not be ignored: it may be what keeps a secret or a connection.
fn no_options(options: &HashMap<String, String>) -> Check {
    match options.keys().next() {
        Some(key) => Err(Field::of("options").key(key).conflict("is not known: this build has no options")),
        None => Ok(()),
    }
}

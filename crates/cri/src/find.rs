//! From the ids of a request to objects, whose ids the RPC's span gets.

use api::id::{ContainerId, PodId};
use pod::{Class, Classify, ContainerError, ContainerState, LookupError, Pods};

use crate::{
    check::{Field, id},
    error::Failure,
    span,
};

/// The pod of a request.
pub(crate) fn sandbox(pods: &Pods, given: &str) -> Result<PodId, Failure> {
    id::lookup(Field::of("pod_sandbox_id"), given)?;
    let id = pods.find_sandbox(given)?;
    span::pod(&id);
    Ok(id)
}

/// The container of a request.
pub(crate) fn container(pods: &Pods, given: &str) -> Result<ContainerId, Failure> {
    id::lookup(Field::of("container_id"), given)?;
    let id = pods.find_container(given)?;
    span::container(pods, &id);
    Ok(id)
}

/// The container of a request that needs it to run.
pub(crate) fn running_container(pods: &Pods, given: &str) -> Result<ContainerId, Failure> {
    let id = container(pods, given)?;
    if pods.container(&id)?.state() == ContainerState::Running {
        Ok(id)
    } else {
        Err(ContainerError::NotRunning { id }.into())
    }
}

/// For requests that a missing pod satisfies.
pub(crate) fn sandbox_if_there(pods: &Pods, given: &str) -> Result<Option<PodId>, Failure> {
    id::lookup(Field::of("pod_sandbox_id"), given)?;
    Ok(if_there(pods.find_sandbox(given))?.inspect(span::pod))
}

/// For requests that a missing container satisfies.
pub(crate) fn container_if_there(pods: &Pods, given: &str) -> Result<Option<ContainerId>, Failure> {
    id::lookup(Field::of("container_id"), given)?;
    Ok(if_there(pods.find_container(given))?.inspect(|id| span::container(pods, id)))
}

fn if_there<T>(found: Result<T, LookupError>) -> Result<Option<T>, LookupError> {
    match found {
        Err(error) if error.class() == Class::NotFound => Ok(None),
        found => found.map(Some),
    }
}

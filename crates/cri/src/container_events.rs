//! `GetContainerEvents`.

use api::cri::v1::{ContainerEventResponse, ContainerEventType};
use image::Images;
use pod::{EventKind, Pods};
use tokio_stream::{StreamExt, wrappers::BroadcastStream, wrappers::errors::BroadcastStreamRecvError};

use crate::{container_status, error::Failure, sandbox_status, stream::Items};

/// Every event from now on, until the client goes away or falls behind.
pub(crate) fn events(pods: &Pods, images: &Images) -> Items<ContainerEventResponse> {
    let images = images.clone();
    let events = BroadcastStream::new(pods.subscribe()).map(move |event| match event {
        Ok(event) => Ok(response(&images, &event)),
        // An error ends the stream: the client lists and subscribes anew.
        Err(BroadcastStreamRecvError::Lagged(lost)) => Err(Failure::behind(lost).into()),
    });
    Box::pin(events)
}

fn response(images: &Images, event: &pod::Event) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind(event.kind).into(),
        created_at: event.at,
        pod_sandbox_status: Some(sandbox_status::of(&event.sandbox)),
        containers_statuses: event.containers.iter().map(|c| container_status::of(images, c)).collect(),
    }
}

fn kind(kind: EventKind) -> ContainerEventType {
    match kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    }
}

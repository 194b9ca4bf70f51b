//! New limits for a container that exists.

use std::sync::Arc;

use api::cri::v1::LinuxContainerResources;
use api::id::ContainerId;

use super::container::not_found;
use super::{Done, Driver, Reply};
use crate::error::ContainerError;
use crate::store::Change;
use crate::update;

impl Driver {
    pub(super) fn update_container(
        &mut self,
        id: &ContainerId,
        resources: Box<LinuxContainerResources>,
        reply: Reply<(), ContainerError>,
    ) {
        let pod = Arc::clone(&self.pod);
        let Some(container) = self.slot(id).and_then(|slot| slot.container.clone()) else {
            return not_found(id, reply);
        };
        let id = id.clone();
        self.operations.spawn(async move {
            let result = update::run(&pod, &container, &resources).await;
            Done::Updated { id, resources, result, reply }
        });
    }

    /// The kernel has them: they are the container's from now on, across a restart of the daemon, too.
    pub(super) fn updated(&mut self, id: &ContainerId, resources: &LinuxContainerResources) {
        let store = self.pod.node.store.clone();
        let Some(container) = self.slot(id).and_then(|slot| slot.container.as_mut()) else { return };
        let merged = update::merge(container.resources(), resources);
        container.status.resources = Some(Box::new(merged));
        store.post(vec![Change::Status(id.clone(), (&container.status).into())]);
        self.publish();
    }
}

//! New limits, for a container that exists and for the pod as a whole. Those of one object are set one after the other:
//! each changes what the one before it left.

use std::collections::VecDeque;
use std::sync::Arc;

use api::cri::v1::LinuxContainerResources;
use api::id::ContainerId;

use super::container::not_found;
use super::slot::Update;
use super::{Done, Driver, Reply};
use crate::error::ContainerError;
use crate::limits::{self, LimitError, PodLimits};
use crate::request::{Activity, Refusal};
use crate::store::Change;
use crate::update;

/// Limits of the pod as a whole: those in force, and those whose turn comes.
#[derive(Debug)]
pub(super) struct Limits {
    pub now: Arc<PodLimits>,
    queue: VecDeque<(Box<PodLimits>, Reply<(), LimitError>)>,
    busy: bool,
}

impl Limits {
    pub(super) fn new(now: PodLimits) -> Self {
        Self { now: Arc::new(now), queue: VecDeque::new(), busy: false }
    }
}

impl Driver {
    pub(super) fn update_sandbox(&mut self, limits: Box<PodLimits>, reply: Reply<(), LimitError>) {
        if matches!(self.activity, Activity::Ready | Activity::Checkpointing) {
            self.limits.queue.push_back((limits, reply));
            self.next_limits();
        } else {
            let _ = reply.send(Err(Refusal::Pod(self.activity).into()));
        }
    }

    fn next_limits(&mut self) {
        if self.limits.busy {
            return;
        }
        let Some((limits, reply)) = self.limits.queue.pop_front() else { return };
        self.limits.busy = true;
        let (pod, old) = (Arc::clone(&self.pod), Arc::clone(&self.limits.now));
        self.operate(async move {
            let result = limits::change(&pod, &old, &limits).await;
            Done::UpdatedSandbox { limits, reply, result }
        });
    }

    pub(super) fn updated_sandbox(
        &mut self,
        limits: PodLimits,
        reply: Reply<(), LimitError>,
        result: Result<(), LimitError>,
    ) {
        self.limits.busy = false;
        if result.is_ok() {
            self.limits.now = Arc::new(limits);
            self.record_status();
            self.publish();
        }
        let _ = reply.send(result);
        self.next_limits();
    }

    pub(super) fn update_container(&mut self, id: &ContainerId, update: Update) {
        match self.slot(id).filter(|slot| slot.container.is_some()) {
            Some(slot) => slot.updates.push_back(update),
            None => return not_found(id, update.reply),
        }
        self.next_update(id);
    }

    /// Begins the next update, unless one is under way.
    fn next_update(&mut self, id: &ContainerId) {
        let pod = Arc::clone(&self.pod);
        let Some(slot) = self.slot(id).filter(|slot| !slot.updating) else { return };
        let Some(container) = slot.container.clone() else { return };
        let Some(Update { resources, reply }) = slot.updates.pop_front() else { return };
        slot.updating = true;
        let id = id.clone();
        self.operate(async move {
            let result = update::run(&pod, &container, &resources).await;
            Done::Updated { id, update: Update { resources, reply }, result }
        });
    }

    pub(super) fn updated(&mut self, id: &ContainerId, update: Update, result: Result<(), ContainerError>) {
        if result.is_ok() {
            self.adopt(id, &update.resources);
        }
        let _ = update.reply.send(result);
        if let Some(slot) = self.slot(id) {
            slot.updating = false;
        }
        self.next_update(id);
    }

    /// The kernel has them: they are the container's from now on, across a restart of the daemon, too.
    fn adopt(&mut self, id: &ContainerId, resources: &LinuxContainerResources) {
        let store = self.pod.node.store.clone();
        let Some(container) = self.slot(id).and_then(|slot| slot.container.as_mut()) else { return };
        let merged = update::merge(container.resources(), resources);
        container.status.resources = Some(Box::new(merged));
        store.post(vec![Change::Status(id.clone(), (&container.status).into())]);
        self.publish();
    }
}

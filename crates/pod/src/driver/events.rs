//! What the shim reports.

use api::id::ContainerId;
use api::shim::v1::Exit;

use super::Driver;
use crate::container::Status;
use crate::node::now;
use crate::request::Activity;
use crate::shim::ShimEvent;
use crate::state::{ContainerEvent, ContainerState};
use crate::store::{Change, StatusRecord};

impl Driver {
    pub(super) fn on_event(&mut self, event: ShimEvent) {
        match event {
            ShimEvent::Exit(exit) => {
                if let Ok(id) = exit.id.parse() {
                    self.exited(&id, &exit);
                }
            }
            ShimEvent::Thawed(reason) => {
                tracing::warn!(pod = %self.pod.id, reason, "the shim let a frozen pod run again");
            }
            ShimEvent::PodInitExit => {
                tracing::warn!(pod = %self.pod.id, "the pod's pid namespace ended");
                self.collapse();
            }
            ShimEvent::Gone => self.shim_gone(),
        }
    }

    fn exited(&mut self, id: &ContainerId, exit: &Exit) {
        let store = self.pod.node.store.clone();
        let Some(slot) = self.slot(id) else { return };
        if !slot.apply(ContainerEvent::Ended, |status| ended(status, exit)) {
            return;
        }
        if let Some(container) = &slot.container {
            store.post(vec![Change::Status(id.clone(), (&container.status).into())]);
        }
        let stopping = slot.stopping.take();
        self.publish();
        for reply in stopping.into_iter().flat_map(|s| s.replies) {
            let _ = reply.send(Ok(()));
        }
        self.go_on(id);
    }

    /// The connection to the shim ended: its pod is over, whoever killed it.
    fn shim_gone(&mut self) {
        if matches!(self.activity, Activity::Ready | Activity::Checkpointing | Activity::Moving) {
            tracing::error!(pod = %self.pod.id, "the pod's shim is gone: the pod ends with it");
        }
        self.collapse();
    }

    /// Kills what is left of the pod and counts every container as ended.
    pub(super) fn collapse(&mut self) {
        if let Err(error) = self.pod.node.cgroups.kill(&self.pod.cgroup) {
            tracing::warn!(pod = %self.pod.id, %error, "killing a pod's cgroup");
        }
        let alive = |slot: &&super::Slot| slot.state().is_some_and(ContainerState::is_alive);
        let ids: Vec<_> = self.slots.iter().filter(alive).map(|slot| slot.id.clone()).collect();
        for id in ids {
            let exit = Exit { id: id.to_string(), code: 137, finished_at: now(), oom_killed: false };
            self.exited(&id, &exit);
        }
        if self.activity == Activity::Ready {
            self.begin_stop();
        }
    }
}

/// The status of a container after `exit`.
pub(crate) fn ended(status: &mut Status, exit: &Exit) {
    status.pid = 0;
    status.finished_at = if exit.finished_at == 0 { now() } else { exit.finished_at };
    status.exit_code = i32::try_from(exit.code).unwrap_or(255);
    status.reason = match exit {
        Exit { oom_killed: true, .. } => "OOMKilled",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    }
    .to_owned();
}

impl From<&Status> for StatusRecord {
    fn from(status: &Status) -> Self {
        Self {
            state: api::cri::v1::ContainerState::from(status.state) as i32,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            resources: status.resources.clone(),
        }
    }
}

//! Requests about the pod as a whole.

use std::sync::Arc;

use super::{Done, Driver, Reply};
use crate::error::StopError;
use crate::limits::PodLimits;
use crate::pod::Pod;
use crate::request::{Activity, Admission, Kind, Refusal, admit};
use crate::state::ContainerState;
use crate::stop;
use crate::store::{Change, SandboxStatusRecord};

impl Driver {
    pub(super) fn stop_sandbox(&mut self, reply: Reply<(), StopError>) {
        if admit(self.activity, Kind::StopSandbox, None) == Ok(Admission::Done) && self.left.is_empty() {
            let _ = reply.send(Ok(()));
            return;
        }
        self.stop_replies.push(reply);
        self.begin_stop();
    }

    /// Kills the pod's processes, waits for their exits, lets go of everything that is not a file or a record.
    pub(super) fn begin_stop(&mut self) {
        if self.activity == Activity::Stopping {
            return;
        }
        if self.activity != Activity::Removing {
            self.activity = Activity::Stopping;
        }
        self.record_status();
        self.publish();
        let pod = Arc::clone(&self.pod);
        let mut views = self.views.subscribe();
        self.operate(async move {
            stop::kill(&pod);
            // The exits arrive as events, which the driver publishes; a shim that hangs reports none.
            let exits =
                views.wait_for(|view| !view.containers.iter().any(|c| c.state() == ContainerState::Running));
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), exits).await;
            let dead = stop::wait_for_death(&pod).await;
            let left = stop::release(pod).await;
            Done::Stopped { alive: !dead, left }
        });
    }

    /// Records what changes in a pod.
    pub(super) fn record_status(&self) {
        let stopped = matches!(self.activity, Activity::Stopping | Activity::Stopped | Activity::Removing);
        let limits = Some(PodLimits::clone(&self.limits.now));
        let status = Box::new(SandboxStatusRecord { stopped, migration: String::new(), limits });
        self.pod.node.store.post(vec![Change::SandboxStatus(self.pod.id.clone(), status)]);
    }

    pub(super) fn stopped(&mut self, alive: bool, left: Vec<String>) {
        if self.activity == Activity::Stopping {
            self.activity = Activity::Stopped;
        }
        // Whoever did not report an end by now has had one: the cgroup is empty, or the shim is dead.
        self.collapse();
        for id in self.slots.iter().map(|slot| slot.id.as_str()).chain([self.pod.id.as_str()]) {
            self.pod.node.samples.forget(id); // their cgroups are gone
        }
        self.left = left;
        self.publish();
        for reply in std::mem::take(&mut self.stop_replies) {
            let _ = reply.send(self.outcome(alive));
        }
        if alive || !self.left.is_empty() {
            for reply in std::mem::take(&mut self.remove_replies) {
                let _ = reply.send(self.outcome(alive));
            }
            if self.activity == Activity::Removing {
                self.activity = Activity::Stopped;
            }
        }
    }

    fn outcome(&self, alive: bool) -> Result<(), StopError> {
        let pod = self.pod.id.clone();
        match (alive, self.left.is_empty()) {
            (true, _) => Err(StopError::Alive { pod }),
            (false, false) => Err(StopError::Left { pod, left: self.left.clone() }),
            (false, true) => Ok(()),
        }
    }

    pub(super) fn remove_sandbox(&mut self, reply: Reply<(), StopError>) {
        self.remove_replies.push(reply);
        match self.activity {
            Activity::Removing => {}
            Activity::Stopped if self.left.is_empty() => {
                self.activity = Activity::Removing;
                self.go_on_sandbox();
            }
            Activity::Stopping => self.activity = Activity::Removing,
            _ => {
                self.begin_stop();
                self.activity = Activity::Removing;
            }
        }
    }

    /// Once the pod is to be removed and stopped: removes the containers, then the pod itself.
    pub(super) fn go_on_sandbox(&mut self) {
        if self.activity != Activity::Removing {
            return;
        }
        let ids: Vec<_> = self.slots.iter().map(|slot| slot.id.clone()).collect();
        for id in &ids {
            if let Some(slot) = self.slot(id) {
                slot.doomed = true;
            }
            self.go_on(id);
        }
        // Also waits for a stop that is under way: `stopped` comes back here.
        if ids.is_empty() && self.operations.is_empty() {
            let pod = Arc::clone(&self.pod);
            self.operate(async move { Done::Gone { result: remove(&pod).await } });
        }
    }

    /// The driver's last act. False: the record is still on disk, so the pod is still there.
    pub(super) fn finish(&mut self, result: Result<(), StopError>) -> bool {
        let kept = matches!(result, Err(StopError::Store(_)));
        if kept {
            self.activity = Activity::Stopped;
        } else if let Some(registry) = self.registry.upgrade() {
            registry.remove(&self.pod.id);
            self.pod.node.samples.forget(self.pod.id.as_str());
            self.pod.node.events.tell_end(&self.views.borrow());
        }
        let mut replies = std::mem::take(&mut self.remove_replies).into_iter();
        if let Err(error) = result
            && let Some(first) = replies.next()
        {
            let _ = first.send(Err(error));
        }
        for reply in replies.chain(std::mem::take(&mut self.stop_replies)) {
            let _ = reply.send(Ok(()));
        }
        !kept
    }

    pub(super) fn begin_capture(&mut self, activity: Activity, reply: Reply<(), Refusal>) {
        let kind = if activity == Activity::Moving { Kind::Move } else { Kind::Checkpoint };
        let answer = admit(self.activity, kind, None).map(|_| self.activity = activity);
        let _ = reply.send(answer);
    }

    pub(super) fn end_capture(&mut self) {
        if matches!(self.activity, Activity::Checkpointing | Activity::Moving) {
            self.activity = Activity::Ready;
        }
    }
}

/// Removes the last traces: files, then the record.
async fn remove(pod: &Pod) -> Result<(), StopError> {
    let left = stop::remove_files(pod);
    let commit = pod.node.store.commit(vec![Change::RemoveSandbox(pod.id.clone())]);
    commit.durable().await?;
    if left.is_empty() { Ok(()) } else { Err(StopError::Left { pod: pod.id.clone(), left }) }
}

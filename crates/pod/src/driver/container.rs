//! Requests about one container.

use std::sync::Arc;
use std::time::Duration;

use api::cri::v1::ContainerConfig;
use api::id::ContainerId;
use tokio::time::Instant;
use tracing::{Instrument, debug_span};

use super::slot::{Operation, Stopping};
use super::{DEATH, Done, Driver, Reply, Slot};
use crate::container::{Container, name};
use crate::create::{self, RestoreSource};
use crate::error::{ContainerError, CreateError, LookupError};
use crate::node::now;
use crate::request::{Admission, Kind, admit};
use crate::restore;
use crate::shim::CallError;
use crate::state::{ContainerEvent, ContainerState};
use crate::stop_signal;
use crate::store::Change;

impl Driver {
    pub(super) fn create(
        &mut self,
        config: Arc<ContainerConfig>,
        restore: Option<RestoreSource>,
        reply: Reply<ContainerId, CreateError>,
    ) {
        if let Err(refusal) = admit(self.activity, Kind::CreateContainer, None) {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        let taken = self.slots.iter_mut().find(|slot| name(&slot.config) == name(&config) && !slot.doomed);
        match taken {
            Some(slot) if slot.config == config && slot.operation == Operation::Creating => {
                slot.creators.push(reply)
            }
            Some(slot) if slot.config == config => {
                let _ = reply.send(Ok(slot.id.clone()));
            }
            Some(slot) => {
                let (name, attempt) = name(&config);
                let taken = CreateError::NameTaken { name: name.to_owned(), attempt, id: slot.id.clone() };
                let _ = reply.send(Err(taken));
            }
            None => self.begin_create(config, restore, vec![reply]),
        }
    }

    fn begin_create(
        &mut self,
        config: Arc<ContainerConfig>,
        restore: Option<RestoreSource>,
        creators: Vec<Reply<ContainerId, CreateError>>,
    ) {
        let id = ContainerId::random();
        tracing::Span::current().record("container", id.short());
        let mut slot = Slot::new(id.clone(), Arc::clone(&config));
        slot.operation = Operation::Creating;
        slot.creators = creators;
        self.slots.push(slot);
        let pod = Arc::clone(&self.pod);
        self.operate(async move {
            let result = Box::new(create::run(pod, id.clone(), config, restore).await);
            Done::Created { id, result }
        });
    }

    pub(super) fn created(&mut self, id: &ContainerId, result: Result<Container, CreateError>) {
        let Some(at) = self.slots.iter().position(|slot| slot.id == *id) else { return };
        match result {
            Ok(container) => {
                let slot = &mut self.slots[at];
                slot.operation = Operation::None;
                slot.container = Some(container);
                let creators = std::mem::take(&mut slot.creators);
                if let Some(registry) = self.registry.upgrade() {
                    registry.insert_container(id, &self.pod.id);
                }
                self.publish();
                for creator in creators {
                    let _ = creator.send(Ok(id.clone()));
                }
                self.go_on(id);
            }
            Err(error) => {
                // A child that was killed with its pod tells nothing; what went wrong is that the pod goes.
                let error = match admit(self.activity, Kind::CreateContainer, None) {
                    Err(refusal) => refusal.into(),
                    Ok(_) => error,
                };
                let Slot { config, mut creators, .. } = self.slots.remove(at);
                // Those who came later asked for it themselves: they get an attempt of their own.
                let first = creators.drain(..creators.len().min(1)).next();
                if let Some(first) = first {
                    let _ = first.send(Err(error));
                }
                for creator in creators {
                    self.create(Arc::clone(&config), None, creator);
                }
            }
        }
    }

    pub(super) fn start_container(&mut self, id: &ContainerId, reply: Reply<(), ContainerError>) {
        let activity = self.activity;
        let pod = Arc::clone(&self.pod);
        let Some(slot) = self.slot(id) else { return not_found(id, reply) };
        if slot.operation == Operation::Starting {
            slot.starters.push(reply);
            return;
        }
        match admit(activity, Kind::StartContainer, slot.state()) {
            Ok(Admission::Run) => {}
            Ok(Admission::Done) => return drop(reply.send(Ok(()))),
            Err(source) => {
                return drop(reply.send(Err(ContainerError::Refused { id: id.clone(), source })));
            }
        }
        slot.operation = Operation::Starting;
        slot.starters.push(reply);
        let restored = slot.container.clone().filter(|c| c.metadata.restored);
        let id = id.clone();
        self.operate(async move {
            match (pod.client(), restored) {
                (Some(client), Some(container)) => Done::Restored {
                    id,
                    result: restore::start(&pod, client, &container).instrument(debug_span!("restore")).await,
                },
                (Some(client), None) => {
                    let result = client.start_container(id.as_str()).instrument(debug_span!("shim")).await;
                    Done::Started { id, result }
                }
                (None, _) => Done::Started { id, result: Err(CallError::Gone) },
            }
        });
    }

    pub(super) fn started(&mut self, id: &ContainerId, result: Result<i64, ContainerError>) {
        let store = self.pod.node.store.clone();
        let Some(slot) = self.slot(id) else { return };
        slot.operation = Operation::None;
        let starters = std::mem::take(&mut slot.starters);
        let failure = match result {
            Ok(started_at) => {
                // The exit may have been faster than the answer: then the state stays Exited.
                if !slot.apply(ContainerEvent::Started, |status| status.started_at = started_at)
                    && let Some(container) = &mut slot.container
                {
                    container.status.started_at = started_at;
                }
                None
            }
            Err(error) => {
                let message = error.to_string();
                slot.apply(ContainerEvent::Ended, |status| {
                    status.finished_at = now();
                    status.exit_code = 128;
                    status.reason = "StartError".to_owned();
                    status.message.clone_from(&message);
                    status.pid = 0;
                });
                Some(error)
            }
        };
        if let Some(container) = &slot.container {
            store.post(vec![Change::Status(id.clone(), (&container.status).into())]);
        }
        self.publish();
        answer_start(id, starters, failure);
        self.go_on(id);
    }

    pub(super) fn stop_container(
        &mut self,
        id: &ContainerId,
        grace: Duration,
        reply: Reply<(), ContainerError>,
    ) {
        let activity = self.activity;
        let Some(slot) = self.slot(id) else {
            // Stopping what does not exist is done.
            let _ = reply.send(Ok(()));
            return;
        };
        if slot.operation != Operation::Starting
            && admit(activity, Kind::StopContainer, slot.state()) == Ok(Admission::Done)
        {
            let _ = reply.send(Ok(()));
            return;
        }
        // A grace beyond the clock's reach is as good as none given: ten years.
        let deadline = Instant::now() + grace.min(Duration::from_secs(315_360_000));
        match &mut slot.stopping {
            Some(stopping) => {
                stopping.replies.push(reply);
                if !stopping.killed {
                    stopping.deadline = stopping.deadline.min(deadline);
                }
            }
            None => {
                let signal = slot.container.as_ref().map_or(15, |c| c.metadata.stop_signal);
                slot.stopping = Some(Stopping { deadline, killed: false, replies: vec![reply] });
                if !grace.is_zero() {
                    self.signal(id, signal, grace);
                }
            }
        }
        if grace.is_zero() {
            self.kill(id);
        }
    }

    /// Sends the stop signal to the container's first process, if that takes it before it ends.
    fn signal(&mut self, id: &ContainerId, signal: u32, grace: Duration) {
        let pid = self.slot(id).and_then(|slot| slot.container.as_ref()).map_or(0, |c| c.status.pid);
        let (pod, id, mut views) = (Arc::clone(&self.pod), id.clone(), self.views.subscribe());
        self.operate(async move {
            let lives = |c: &Arc<Container>| c.metadata.id == id && c.state() != ContainerState::Exited;
            let ended = async {
                let _ = views.wait_for(|view| !view.containers.iter().any(lives)).await;
            };
            let sent = async {
                match pod.client() {
                    Some(client) => stop_signal::send(client, &id, pid, signal, grace).await,
                    None => Err(CallError::Gone),
                }
            };
            let result = tokio::select! {
                result = sent => result,
                () = ended => Ok(()),
            };
            Done::Signalled { id, result }
        });
    }

    /// Kills everything in the container's cgroup; its exit must follow within [`DEATH`].
    pub(super) fn kill(&mut self, id: &ContainerId) {
        let path = self.pod.container_cgroup(id);
        if let Err(error) = self.pod.node.cgroups.kill(&path) {
            tracing::warn!(pod = %self.pod.id, container = %id, %error, "killing a container's cgroup");
        }
        if let Some(stopping) = self.slot(id).and_then(|slot| slot.stopping.as_mut()) {
            stopping.killed = true;
            stopping.deadline = Instant::now() + DEATH;
        }
    }

    /// The earliest instant at which somebody's patience ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.stopping.as_ref()).map(|s| s.deadline).min()
    }

    pub(super) fn on_deadline(&mut self) {
        let now = Instant::now();
        let due = |slot: &&Slot| slot.stopping.as_ref().is_some_and(|s| s.deadline <= now);
        let ids: Vec<_> = self.slots.iter().filter(due).map(|slot| slot.id.clone()).collect();
        for id in ids {
            let Some(slot) = self.slot(&id) else { continue };
            if slot.stopping.as_ref().is_some_and(|s| !s.killed) {
                self.kill(&id);
            } else if let Some(stopping) = slot.stopping.take() {
                for reply in stopping.replies {
                    let _ = reply.send(Err(ContainerError::Alive { id: id.clone() }));
                }
            }
        }
    }

    pub(super) fn remove_container(&mut self, id: &ContainerId, reply: Reply<(), ContainerError>) {
        let Some(slot) = self.slot(id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        slot.doomed = true;
        slot.removers.push(reply);
        self.go_on(id);
    }

    /// Removes a doomed container as far as it can go now: kill, wait for the end, remove.
    pub(super) fn go_on(&mut self, id: &ContainerId) {
        let pod = Arc::clone(&self.pod);
        let Some(slot) = self.slot(id) else { return };
        if !slot.doomed || slot.operation != Operation::None {
            return;
        }
        if slot.is_running() {
            if slot.stopping.as_ref().is_none_or(|s| !s.killed) {
                slot.stopping.get_or_insert_with(|| Stopping {
                    deadline: Instant::now(),
                    killed: false,
                    replies: Vec::new(),
                });
                self.kill(id);
            }
            return;
        }
        slot.operation = Operation::Removing;
        let awaited = !slot.removers.is_empty();
        let id = id.clone();
        self.operate(async move {
            let result = remove(&pod, &id, awaited).await;
            Done::Removed { id, result }
        });
    }

    pub(super) fn removed(&mut self, id: &ContainerId, result: Result<(), ContainerError>) {
        let Some(at) = self.slots.iter().position(|slot| slot.id == *id) else { return };
        if let Err(error) = result {
            let slot = &mut self.slots[at];
            slot.operation = Operation::None;
            slot.doomed = false;
            tracing::warn!(pod = %self.pod.id, container = %id, %error, "removing a container");
            let mut removers = std::mem::take(&mut slot.removers).into_iter();
            if let Some(first) = removers.next() {
                let _ = first.send(Err(error));
            }
            // The others try again with their own attempt.
            for remover in removers {
                self.remove_container(id, remover);
            }
        } else {
            let slot = self.slots.remove(at);
            if let Some(registry) = self.registry.upgrade() {
                registry.remove_container(id);
            }
            self.pod.node.samples.forget(id.as_str());
            drop(slot.container);
            self.publish();
            self.pod.node.collect_images();
            for update in slot.updates {
                not_found(id, update.reply);
            }
            for remover in slot.removers {
                let _ = remover.send(Ok(()));
            }
        }
    }

    /// The process of a restored container exists from now on.
    pub(super) fn restored(&mut self, id: &ContainerId, pid: u32) {
        if let Some(container) = self.slot(id).and_then(|slot| slot.container.as_mut()) {
            container.status.pid = pid;
            self.publish();
        }
    }
}

pub(super) fn not_found(id: &ContainerId, reply: Reply<(), ContainerError>) {
    let error = LookupError::NotFound { kind: "container", id: id.to_string() };
    let _ = reply.send(Err(error.into()));
}

fn answer_start(id: &ContainerId, starters: Vec<Reply<(), ContainerError>>, failure: Option<ContainerError>) {
    let mut starters = starters.into_iter();
    if let Some(error) = failure
        && let Some(first) = starters.next()
    {
        let _ = first.send(Err(error));
        for starter in starters.by_ref() {
            let source = crate::request::Refusal::Container(ContainerState::Exited);
            let _ = starter.send(Err(ContainerError::Refused { id: id.clone(), source }));
        }
    }
    for starter in starters {
        let _ = starter.send(Ok(()));
    }
}

/// Removes what a container that ended has: its entry in the shim with its cgroup, its layer, its record. If nobody
/// waits for it but its pod's removal, the commit of that one is awaited, which comes after.
async fn remove(pod: &crate::pod::Pod, id: &ContainerId, awaited: bool) -> Result<(), ContainerError> {
    let commit = pod.node.store.commit(vec![Change::RemoveContainer(id.clone())]);
    let forgotten = match pod.client() {
        Some(client) => client.delete_container(id.as_str()).await,
        None => Ok(()),
    };
    match forgotten {
        // Without a shim the pod's tear-down removes the cgroup.
        Ok(()) | Err(CallError::Gone) => {}
        Err(CallError::Refused(refused)) if refused.0.kind() == api::shim::v1::error::Kind::NotFound => {}
        Err(source) => return Err(ContainerError::Shim { id: id.clone(), source }),
    }
    let dir = pod.node.container_dir(id);
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
    match removed.unwrap_or_else(|e| Err(e.into())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ContainerError::Left {
                id: id.clone(),
                left: vec![format!("writable layer: {error}")],
            });
        }
        _ => {}
    }
    if awaited { Ok(commit.durable().await?) } else { Ok(()) }
}

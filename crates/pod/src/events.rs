//! What happens to pods and containers, told to whoever listens.
//!
//! An event is the difference between two views that a driver published one after the other, so that it never says more
//! than a reader sees. Subscribers share one ring: nobody waits for a slow one, who instead learns how many it lost.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::container::Container;
use crate::node::now;
use crate::publisher::View;
use crate::sandbox::Sandbox;
use crate::state::{ContainerState, SandboxState};

/// Events that a subscriber may be behind before it loses the oldest.
pub const BACKLOG: usize = 4096;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It exists.
    Created,
    /// It runs.
    Started,
    /// It ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a pod or to one of its containers.
#[derive(Debug, Clone)]
pub struct Event {
    /// Id of the container or of the pod.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// ns since the epoch.
    pub at: i64,
    /// The pod as it was published with the event.
    pub sandbox: Arc<Sandbox>,
    /// Its containers likewise.
    pub containers: Vec<Arc<Container>>,
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Sender<Arc<Event>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }

    /// A pod came into being.
    pub(crate) fn tell_begin(&self, view: &View) {
        let id = view.sandbox.id.as_str();
        self.tell_all(view, [(id, EventKind::Created), (id, EventKind::Started)]);
    }

    /// A pod was removed.
    pub(crate) fn tell_end(&self, view: &View) {
        self.tell_all(view, [(view.sandbox.id.as_str(), EventKind::Deleted)]);
    }

    /// A pod's driver replaced `old` by `new`.
    pub(crate) fn tell(&self, old: &View, new: &View) {
        if self.0.receiver_count() > 0 {
            self.tell_all(new, between(old, new));
        }
    }

    fn tell_all<'a>(&self, view: &View, what: impl IntoIterator<Item = (&'a str, EventKind)>) {
        for (id, kind) in what {
            let (sandbox, containers) = (Arc::clone(&view.sandbox), view.containers.clone());
            // An error means that nobody listens.
            let _ = self.0.send(Arc::new(Event { id: id.to_owned(), kind, at: now(), sandbox, containers }));
        }
    }
}

/// What happened between two views of one pod: containers first, for a pod ends after them.
fn between<'a>(old: &'a View, new: &'a View) -> Vec<(&'a str, EventKind)> {
    let mut events = Vec::new();
    for container in &new.containers {
        let id = container.id();
        let before = old.container(id).map(|c| &c.status);
        let (was, is) = (before.map(|status| status.state), container.state());
        if was.is_none() {
            events.push((id.as_str(), EventKind::Created));
        }
        if container.status.started_at != 0 && before.is_none_or(|status| status.started_at == 0) {
            events.push((id.as_str(), EventKind::Started));
        }
        if is == ContainerState::Exited && was != Some(ContainerState::Exited) {
            events.push((id.as_str(), EventKind::Stopped));
        }
    }
    let gone = old.containers.iter().filter(|c| new.container(c.id()).is_none());
    events.extend(gone.map(|c| (c.id().as_str(), EventKind::Deleted)));
    if old.sandbox.state == SandboxState::Ready && new.sandbox.state == SandboxState::NotReady {
        events.push((new.sandbox.id.as_str(), EventKind::Stopped));
    }
    events
}

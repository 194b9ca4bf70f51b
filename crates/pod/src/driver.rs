//! One task per pod: the only writer of the pod's state.
//!
//! ```text
//! callers ──Request──▶ ┌────────┐ ──spawn──▶ operations (create, start, remove, tear down)
//! shim ───ShimEvent──▶ │ driver │ ◀──Done─── that change nothing themselves
//! clock ──deadline───▶ └────────┘ ──View──▶ readers
//! ```
//!
//! Whatever takes time runs as an operation beside the loop, so that a hanging create does not hold up a stop. The
//! loop itself decides ([`crate::request::admit`]), applies results, publishes, and answers.
//!
//! Requests that mean the same converge: a second create with the same configuration, a second start while the
//! first is under way, a second stop (which can only shorten the wait) and a second remove all get the answer of
//! the first.

mod container;
mod events;
mod sandbox;
mod slot;
mod update;

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::cri::v1::{ContainerConfig, LinuxContainerResources};
use api::id::ContainerId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::container::Container;
use crate::create::RestoreSource;
use crate::error::{ContainerError, CreateError, StopError};
use crate::limits::{LimitError, PodLimits};
use crate::pod::Pod;
use crate::publisher::{Asked, Handle, View};
use crate::registry::Registry;
use crate::request::{Activity, Refusal};
use crate::restore;
use crate::shim::{CallError, ShimEvent};
use crate::state::SandboxState;
pub(crate) use events::ended;
pub(crate) use slot::Slot;
use slot::Update;
use update::Limits;

/// Longest wait for the end of a container that was killed.
const DEATH: Duration = Duration::from_secs(5);

/// Where an answer goes. Nobody may be waiting for it any more.
pub(crate) type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What callers ask for.
#[derive(Debug)]
pub(crate) enum Request {
    Create {
        config: Arc<ContainerConfig>,
        restore: Option<RestoreSource>,
        reply: Reply<ContainerId, CreateError>,
    },
    Start {
        id: ContainerId,
        reply: Reply<(), ContainerError>,
    },
    Stop {
        id: ContainerId,
        grace: Duration,
        reply: Reply<(), ContainerError>,
    },
    Remove {
        id: ContainerId,
        reply: Reply<(), ContainerError>,
    },
    /// Sets limits; those that are 0 or empty stay.
    Update {
        id: ContainerId,
        resources: Box<LinuxContainerResources>,
        reply: Reply<(), ContainerError>,
    },
    /// Sets limits of the pod as a whole.
    UpdateSandbox {
        limits: Box<PodLimits>,
        reply: Reply<(), LimitError>,
    },
    StopSandbox {
        reply: Reply<(), StopError>,
    },
    RemoveSandbox {
        reply: Reply<(), StopError>,
    },
    /// Claims the pod for a checkpoint or a move until `EndCapture`.
    BeginCapture {
        activity: Activity,
        reply: Reply<(), Refusal>,
    },
    EndCapture,
    /// A restored container's process exists (held) or runs: its process id.
    Restored {
        id: ContainerId,
        pid: u32,
    },
    /// A restored container that was held runs.
    Released {
        id: ContainerId,
        started_at: i64,
    },
}

/// How an operation ended.
#[derive(Debug)]
enum Done {
    Created {
        id: ContainerId,
        result: Box<Result<Container, CreateError>>,
    },
    Started {
        id: ContainerId,
        result: Result<i64, CallError>,
    },
    Restored {
        id: ContainerId,
        result: Result<restore::Started, restore::StartRestoredError>,
    },
    Removed {
        id: ContainerId,
        result: Result<(), ContainerError>,
    },
    Updated {
        id: ContainerId,
        update: Update,
        result: Result<(), ContainerError>,
    },
    UpdatedSandbox {
        limits: Box<PodLimits>,
        reply: Reply<(), LimitError>,
        result: Result<(), LimitError>,
    },
    /// The stop signal could not be sent; the kill follows at its time.
    Signalled {
        id: ContainerId,
        result: Result<(), CallError>,
    },
    Stopped {
        alive: bool,
        left: Vec<String>,
    },
    Gone {
        result: Result<(), StopError>,
    },
}

/// The state of a pod and everything that may change it.
#[derive(Debug)]
pub(crate) struct Driver {
    pod: Arc<Pod>,
    /// Weak: the registry holds the sender whose end ends this task.
    registry: Weak<Registry>,
    activity: Activity,
    slots: Vec<Slot>,
    limits: Limits,
    views: watch::Sender<Arc<View>>,
    operations: JoinSet<Done>,
    stop_replies: Vec<Reply<(), StopError>>,
    remove_replies: Vec<Reply<(), StopError>>,
    /// The last tear-down left something; the next stop tries again.
    left: Vec<String>,
}

/// Starts the driver of a pod with the containers it has; returns the way to it. `limits`: if they were changed since the
/// pod was made.
pub(crate) fn start(
    pod: Arc<Pod>,
    registry: &Arc<Registry>,
    activity: Activity,
    limits: Option<PodLimits>,
    containers: &[Container],
    events: mpsc::UnboundedReceiver<ShimEvent>,
) -> Arc<Handle> {
    let slots: Vec<_> = containers.iter().map(Slot::found).collect();
    let limits = Limits::new(limits.unwrap_or_else(|| PodLimits::of(&pod.config)));
    let (views, receiver) = watch::channel(Arc::new(view(&pod, activity, &limits, &slots)));
    let (sender, requests) = mpsc::unbounded_channel();
    let handle = Arc::new(Handle { pod: Arc::clone(&pod), requests: sender, views: receiver });
    let driver = Driver {
        pod,
        registry: Arc::downgrade(registry),
        activity,
        slots,
        limits,
        views,
        operations: JoinSet::new(),
        stop_replies: Vec::new(),
        remove_replies: Vec::new(),
        left: Vec::new(),
    };
    tokio::spawn(driver.run(requests, events));
    handle
}

fn view(pod: &Pod, activity: Activity, limits: &Limits, slots: &[Slot]) -> View {
    let state = match activity {
        Activity::Ready | Activity::Checkpointing | Activity::Moving => SandboxState::Ready,
        Activity::Stopping | Activity::Stopped | Activity::Removing => SandboxState::NotReady,
    };
    let containers = slots.iter().filter_map(|slot| slot.container.clone()).map(Arc::new);
    View { sandbox: Arc::new(pod.sandbox(state, &limits.now)), containers: containers.collect() }
}

impl Driver {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Asked>,
        mut events: mpsc::UnboundedReceiver<ShimEvent>,
    ) {
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                // Events first: an exit that is known must be seen before a request is judged.
                biased;
                Some(event) = events.recv() => self.on_event(event),
                Some(done) = self.operations.join_next(), if !self.operations.is_empty() => match done {
                    Ok(Done::Gone { result }) => if self.finish(result) { return },
                    Ok(done) => self.on_done(done),
                    Err(error) => tracing::error!(pod = %self.pod.id, %error, "an operation panicked"),
                },
                request = requests.recv() => match request {
                    Some(Asked { request, span }) => span.in_scope(|| self.on_request(request)),
                    None => return,
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.on_deadline();
                }
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Create { config, restore, reply } => self.create(config, restore, reply),
            Request::Start { id, reply } => self.start_container(&id, reply),
            Request::Stop { id, grace, reply } => self.stop_container(&id, grace, reply),
            Request::Remove { id, reply } => self.remove_container(&id, reply),
            Request::Update { id, resources, reply } => {
                self.update_container(&id, Update { resources, reply });
            }
            Request::UpdateSandbox { limits, reply } => self.update_sandbox(limits, reply),
            Request::StopSandbox { reply } => self.stop_sandbox(reply),
            Request::RemoveSandbox { reply } => self.remove_sandbox(reply),
            Request::BeginCapture { activity, reply } => self.begin_capture(activity, reply),
            Request::EndCapture => self.end_capture(),
            Request::Restored { id, pid } => self.restored(&id, pid),
            Request::Released { id, started_at } => self.started(&id, Ok(started_at)),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Created { id, result } => self.created(&id, *result),
            Done::Started { id, result } => {
                self.started(&id, result.map_err(|source| ContainerError::Shim { id: id.clone(), source }));
            }
            Done::Restored { id, result } => {
                if let Ok(started) = &result {
                    self.restored(&id, started.pid);
                }
                let result = result.map(|started| started.at);
                self.started(
                    &id,
                    result.map_err(|source| ContainerError::Restore { id: id.clone(), source }),
                );
            }
            Done::Removed { id, result } => self.removed(&id, result),
            Done::Updated { id, update, result } => self.updated(&id, update, result),
            Done::UpdatedSandbox { limits, reply, result } => self.updated_sandbox(*limits, reply, result),
            Done::Signalled { id, result } => {
                if let Err(error) = result {
                    tracing::warn!(pod = %self.pod.id, container = %id, %error, "sending the stop signal");
                }
            }
            Done::Stopped { alive, left } => self.stopped(alive, left),
            Done::Gone { .. } => {}
        }
        self.go_on_sandbox();
    }

    /// Runs `work` beside the loop, in the span of the request that is being handled.
    fn operate(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.operations.spawn(work.in_current_span());
    }

    fn slot(&mut self, id: &ContainerId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.id == *id)
    }

    /// Replaces what readers see, and tells subscribers what is new in it.
    fn publish(&self) {
        let new = Arc::new(view(&self.pod, self.activity, &self.limits, &self.slots));
        let old = self.views.send_replace(Arc::clone(&new));
        self.pod.node.events.tell(&old, &new);
    }
}

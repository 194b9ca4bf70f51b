//! One container as its driver knows it: what is published, what is under way, and who waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use api::cri::v1::{ContainerConfig, LinuxContainerResources};
use api::id::ContainerId;
use tokio::time::Instant;

use super::Reply;
use crate::container::{Container, Status};
use crate::error::{ContainerError, CreateError};
use crate::state::{ContainerEvent, ContainerState};

/// The operation under way on a container; one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    None,
    Creating,
    Starting,
    Removing,
}

/// A container that was asked to stop.
#[derive(Debug)]
pub(super) struct Stopping {
    /// When it is killed, or after that, when waiting ends.
    pub deadline: Instant,
    pub killed: bool,
    pub replies: Vec<Reply<(), ContainerError>>,
}

/// Limits that were asked for.
#[derive(Debug)]
pub(super) struct Update {
    pub resources: Box<LinuxContainerResources>,
    pub reply: Reply<(), ContainerError>,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: ContainerId,
    pub(super) config: Arc<ContainerConfig>,
    /// What readers see; `None` while it is being created.
    pub container: Option<Container>,
    pub(super) operation: Operation,
    pub(super) stopping: Option<Stopping>,
    pub(super) creators: Vec<Reply<ContainerId, CreateError>>,
    pub(super) starters: Vec<Reply<(), ContainerError>>,
    pub(super) removers: Vec<Reply<(), ContainerError>>,
    /// New limits to be set, after those that are being set: each changes what the one before it left.
    pub(super) updates: VecDeque<Update>,
    pub(super) updating: bool,
    /// To be removed, also when nobody waits for it: its pod is.
    pub(super) doomed: bool,
}

impl Slot {
    /// A container that exists.
    pub(super) fn found(container: &Container) -> Self {
        let config = Arc::new(container.metadata.config.clone());
        Self { container: Some(container.clone()), ..Self::new(container.metadata.id.clone(), config) }
    }

    /// A container about to be created.
    pub(super) fn new(id: ContainerId, config: Arc<ContainerConfig>) -> Self {
        Self {
            id,
            config,
            container: None,
            operation: Operation::None,
            stopping: None,
            creators: Vec::new(),
            starters: Vec::new(),
            removers: Vec::new(),
            updates: VecDeque::new(),
            updating: false,
            doomed: false,
        }
    }

    pub(super) fn state(&self) -> Option<ContainerState> {
        self.container.as_ref().map(Container::state)
    }

    /// Whether its process may be alive.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state(), Some(ContainerState::Running | ContainerState::Unknown))
    }

    /// Applies `event`, then lets `change` fill in the rest of the status. False: the event cannot happen here.
    pub(super) fn apply(&mut self, event: ContainerEvent, change: impl FnOnce(&mut Status)) -> bool {
        let Some(container) = &mut self.container else { return false };
        match container.status.state.transition(event) {
            Ok(state) => {
                container.status.state = state;
                change(&mut container.status);
                true
            }
            Err(impossible) => {
                tracing::debug!(container = %self.id, %impossible, "event ignored");
                false
            }
        }
    }
}

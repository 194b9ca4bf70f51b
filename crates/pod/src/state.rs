//! States of a sandbox and of a container, and the only ways between them.
//!
//! ```text
//! sandbox                       container
//! Ready ──stop, shim lost──▶ NotReady      Created ──start──▶ Running ──exit──▶ Exited
//!                                             └──────────start failed, killed──────▲
//!                                          Created, Running ──shim silent──▶ Unknown ──found again──▶ where it is
//! ```

use api::cri::v1 as cri;

/// Whether a pod can take containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxState {
    /// Its namespaces, cgroup, address and shim exist.
    Ready,
    /// They are gone, or going. There is no way back.
    NotReady,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// Everything up to `execve` is done; not one instruction has run.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended, or never could start.
    Exited,
    /// Its shim does not answer.
    Unknown,
}

/// What moves a container from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The shim let it run.
    Started,
    /// Its first process is gone.
    Ended,
    /// The shim was asked and did not answer.
    Silent,
}

/// An event that cannot happen in a state; a bug in the shim or here, and never acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {state:?} cannot have {event:?}")]
pub struct Impossible {
    state: ContainerState,
    event: ContainerEvent,
}

impl ContainerState {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`Impossible`] when the event has no meaning here: nothing leaves `Exited`, nothing starts twice.
    pub fn transition(self, event: ContainerEvent) -> Result<Self, Impossible> {
        use ContainerEvent::{Ended, Silent, Started};
        match (self, event) {
            (Self::Created | Self::Unknown, Started) => Ok(Self::Running),
            (Self::Created | Self::Running | Self::Unknown, Ended) => Ok(Self::Exited),
            (Self::Created | Self::Running | Self::Unknown, Silent) => Ok(Self::Unknown),
            (state, event) => Err(Impossible { state, event }),
        }
    }

    /// Whether processes of it may exist.
    #[must_use]
    pub fn is_alive(self) -> bool {
        self != Self::Exited
    }
}

impl From<SandboxState> for cri::PodSandboxState {
    fn from(state: SandboxState) -> Self {
        match state {
            SandboxState::Ready => Self::SandboxReady,
            SandboxState::NotReady => Self::SandboxNotready,
        }
    }
}

impl From<ContainerState> for cri::ContainerState {
    fn from(state: ContainerState) -> Self {
        match state {
            ContainerState::Created => Self::ContainerCreated,
            ContainerState::Running => Self::ContainerRunning,
            ContainerState::Exited => Self::ContainerExited,
            ContainerState::Unknown => Self::ContainerUnknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ContainerEvent::*, ContainerState::*};

    #[test]
    fn every_pair_of_state_and_event() {
        let table = [
            (Created, Started, Some(Running)),
            (Created, Ended, Some(Exited)),
            (Created, Silent, Some(Unknown)),
            (Running, Started, None),
            (Running, Ended, Some(Exited)),
            (Running, Silent, Some(Unknown)),
            (Exited, Started, None),
            (Exited, Ended, None),
            (Exited, Silent, None),
            (Unknown, Started, Some(Running)),
            (Unknown, Ended, Some(Exited)),
            (Unknown, Silent, Some(Unknown)),
        ];
        for (state, event, expected) in table {
            assert_eq!(state.transition(event).ok(), expected, "{state:?} {event:?}");
        }
    }
}

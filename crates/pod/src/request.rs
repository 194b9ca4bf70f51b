//! Admission: which request may run in which state. Pure, so that its rules can be read and tested as rules.

use crate::state::ContainerState;

/// What a pod as a whole is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Up; containers come and go.
    Ready,
    /// Frozen, or about to be, for a checkpoint that ends where it began.
    Checkpointing,
    /// Under a migration, until that commits or fails.
    Moving,
    /// Being stopped.
    Stopping,
    /// Stopped: no processes, no network.
    Stopped,
    /// Being removed.
    Removing,
}

/// What is asked of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Make a container.
    CreateContainer,
    /// Let a created container run.
    StartContainer,
    /// End a container.
    StopContainer,
    /// End the pod.
    StopSandbox,
    /// Write the pod to a directory.
    Checkpoint,
    /// Move the pod to another node.
    Move,
}

/// How an admitted request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Do it.
    Run,
    /// It is true already: answer at once.
    Done,
}

/// Why a request cannot run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pod is not up.
    #[error("the pod is {0:?}: it must be Ready")]
    Pod(Activity),
    /// The container is in the wrong state.
    #[error("the container is {0:?}: it must be Created")]
    Container(ContainerState),
}

/// Decides on a request for a pod that is doing `activity`; `container` is the state of the container it names.
///
/// # Errors
/// [`Refusal`] with the state that stands in the way.
pub fn admit(
    activity: Activity,
    kind: Kind,
    container: Option<ContainerState>,
) -> Result<Admission, Refusal> {
    use Activity::{Checkpointing, Ready, Removing, Stopped, Stopping};
    match kind {
        // Ending is always admitted: the user must be able to get rid of a pod in whatever state it hangs. Removing
        // is not even asked about.
        Kind::StopSandbox if activity == Stopped || activity == Removing => Ok(Admission::Done),
        Kind::StopSandbox => Ok(Admission::Run),
        Kind::StopContainer => Ok(match container {
            Some(ContainerState::Running | ContainerState::Unknown) => Admission::Run,
            _ => Admission::Done,
        }),
        Kind::CreateContainer | Kind::Checkpoint | Kind::Move if activity == Ready => Ok(Admission::Run),
        Kind::StartContainer if activity == Ready => match container {
            Some(ContainerState::Created) | None => Ok(Admission::Run),
            // A client that gave up on its first call asks again.
            Some(ContainerState::Running) => Ok(Admission::Done),
            Some(state) => Err(Refusal::Container(state)),
        },
        Kind::CreateContainer | Kind::StartContainer | Kind::Checkpoint | Kind::Move => {
            debug_assert!(matches!(
                activity,
                Checkpointing | Activity::Moving | Stopping | Stopped | Removing
            ));
            Err(Refusal::Pod(activity))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVITIES: [Activity; 6] = [
        Activity::Ready,
        Activity::Checkpointing,
        Activity::Moving,
        Activity::Stopping,
        Activity::Stopped,
        Activity::Removing,
    ];
    const STATES: [Option<ContainerState>; 5] = [
        None,
        Some(ContainerState::Created),
        Some(ContainerState::Running),
        Some(ContainerState::Exited),
        Some(ContainerState::Unknown),
    ];

    #[test]
    fn a_pod_can_be_ended_whatever_it_does() {
        for activity in ACTIVITIES {
            for state in STATES {
                for kind in [Kind::StopSandbox, Kind::StopContainer] {
                    assert!(admit(activity, kind, state).is_ok(), "{activity:?} {kind:?} {state:?}");
                }
            }
        }
    }

    #[test]
    fn stopping_is_idempotent() {
        assert_eq!(admit(Activity::Stopped, Kind::StopSandbox, None), Ok(Admission::Done));
        let exited = Some(ContainerState::Exited);
        assert_eq!(admit(Activity::Ready, Kind::StopContainer, exited), Ok(Admission::Done));
    }

    #[test]
    fn only_a_ready_pod_changes() {
        for activity in ACTIVITIES {
            for kind in [Kind::CreateContainer, Kind::StartContainer, Kind::Checkpoint, Kind::Move] {
                let created = Some(ContainerState::Created);
                assert_eq!(
                    admit(activity, kind, created).is_ok(),
                    activity == Activity::Ready,
                    "{activity:?}"
                );
            }
        }
    }

    #[test]
    fn a_container_starts_once() {
        let running = Some(ContainerState::Running);
        assert_eq!(admit(Activity::Ready, Kind::StartContainer, running), Ok(Admission::Done));
        for state in [ContainerState::Exited, ContainerState::Unknown] {
            let refused = admit(Activity::Ready, Kind::StartContainer, Some(state));
            assert_eq!(refused, Err(Refusal::Container(state)));
        }
    }
}

//! What keeps a pod from being captured, told before anything is frozen.

use std::fmt;
use std::sync::Arc;

use api::id::PodId;

use crate::container::Container;
use crate::error::{Class, Classify, LookupError};
use crate::moving::MoveError;
use crate::pods::Pods;
use crate::shim::{CallError, Client};

/// One thing that a capture would fail at, or lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Name of the container; empty: it belongs to the whole pod.
    pub container: String,
    /// Process id on the node and name, where it is a process's.
    pub process: Option<(u32, String)>,
    /// Reads on after "has ".
    pub what: String,
    /// An imperative.
    pub cure: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container, process, what, cure } = self;
        match (container.as_str(), process) {
            ("", _) => write!(f, "the pod has {what}: {cure}"),
            (container, Some((pid, name))) => {
                write!(f, "process {pid} ({name}) of container {container} has {what}: {cure}")
            }
            (container, None) => write!(f, "container {container} has {what}: {cure}"),
        }
    }
}

/// All of them; not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacles(pub Vec<Obstacle>);

/// How many are told in an error.
const TOLD: usize = 3;

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, obstacle) in self.0.iter().take(TOLD).enumerate() {
            write!(f, "{}{obstacle}", if at == 0 { "" } else { "; " })?;
        }
        match self.0.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, "; and {more} more, which meridian checkpoint --check lists"),
        }
    }
}

impl std::error::Error for Obstacles {}

/// It could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No such pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Its shim.
    #[error("look at the processes of pod {pod}")]
    Shim {
        /// Which.
        pod: PodId,
        /// Why.
        source: CallError,
    },
}

impl Classify for CheckError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(error) => error.class(),
            Self::Shim { source, .. } => source.class(),
        }
    }
}

/// Asks the shim about these containers.
pub(crate) async fn obstacles(
    client: &Client,
    containers: &[Arc<Container>],
) -> Result<Vec<Obstacle>, CallError> {
    let ids = containers.iter().map(|container| container.id().to_string()).collect();
    let name = |id: &str| {
        let found = containers.iter().find(|container| container.id().as_str() == id);
        found.map_or_else(String::new, |container| container.name().0.to_owned())
    };
    let found = client.check(ids).await?;
    Ok(found
        .into_iter()
        .map(|found| Obstacle {
            container: name(&found.id),
            process: (found.pid != 0).then_some((found.pid, found.process)),
            what: found.what,
            cure: found.cure,
        })
        .collect())
}

impl Pods {
    /// Why the pod could not be moved to another node now; empty: it could.
    pub async fn check(&self, id: &PodId) -> Result<Vec<Obstacle>, CheckError> {
        let whole = |what: String, cure: &str| Obstacle {
            container: String::new(),
            process: None,
            what,
            cure: cure.to_owned(),
        };
        match self.begin_move(id).await {
            Ok(_claim_ends_here) => Ok(Vec::new()),
            Err(MoveError::Obstacles { obstacles, .. }) => Ok(obstacles.0),
            Err(MoveError::Unsupported { reason, .. }) => Ok(vec![whole(reason, "")]),
            Err(MoveError::Lookup(error)) => Err(error.into()),
            Err(MoveError::Shim { pod, source }) => Err(CheckError::Shim { pod, source }),
            Err(other) => Ok(vec![whole(other.to_string(), "")]),
        }
    }
}

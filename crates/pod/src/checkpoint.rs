//! Writing a running pod to a directory.

use std::path::Path;
use std::time::Duration;

use api::id::{ContainerId, PodId};

use crate::error::{Class, Classify, LookupError};
use crate::pods::Pods;

/// Why a pod or container was not checkpointed. It runs on, and nothing was left in the destination.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No such pod or container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// This node has no CRIU.
    #[error("this node cannot checkpoint: set [criu] command in the configuration")]
    NoCriu,
}

impl Classify for CheckpointError {
    fn class(&self) -> Class {
        match self {
            Self::Lookup(e) => e.class(),
            Self::NoCriu => Class::FailedPrecondition,
        }
    }
}

impl Pods {
    /// Writes the running containers `ids` of a pod to the empty directory `dir` at one consistent cut.
    pub async fn checkpoint_pod(
        &self,
        pod: &PodId,
        _ids: &[ContainerId],
        _dir: &Path,
        _limit: Duration,
    ) -> Result<(), CheckpointError> {
        self.sandbox(pod)?;
        Err(CheckpointError::NoCriu)
    }

    /// Writes one container to the tar archive `path`.
    pub async fn checkpoint_container(
        &self,
        id: &ContainerId,
        _path: &Path,
        _limit: Duration,
    ) -> Result<(), CheckpointError> {
        self.container(id)?;
        Err(CheckpointError::NoCriu)
    }
}

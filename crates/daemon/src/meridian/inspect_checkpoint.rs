//! InspectCheckpoint: what a checkpoint directory says about its pod, so that a client can word a RestorePod.
//!
//! Only the manifest is read, and no digest computed: RestorePod verifies all before it trusts any of it.

use std::path::Path;

use api::meridian::v1::{ContainerConfig, InspectCheckpointRequest, InspectCheckpointResponse};
use migration::archive::{Checkpoint, CheckpointError};
use migration::manifest::{Manifest, ManifestError};
use sys::Errno;
use tonic::{Code, Status};

use crate::chain;

pub async fn inspect_checkpoint(
    request: InspectCheckpointRequest,
) -> Result<InspectCheckpointResponse, Status> {
    if !Path::new(&request.path).is_absolute() {
        return Err(Status::invalid_argument(format!("path: {:?} must be an absolute path", request.path)));
    }
    let opened = tokio::task::spawn_blocking(move || Checkpoint::open(Path::new(&request.path))).await;
    let opened = opened.map_err(|panic| Status::internal(panic.to_string()))?;
    let checkpoint = opened.map_err(|error| Status::new(code(&error), chain(&error)))?;
    Ok(describe(checkpoint.manifest))
}

fn describe(manifest: Manifest) -> InspectCheckpointResponse {
    let text = String::from_utf8_lossy(&manifest.to_json()).into_owned();
    let container = |c: migration::manifest::Container| ContainerConfig { name: c.name, config: c.config.0 };
    InspectCheckpointResponse {
        sandbox_config: manifest.pod.config.0,
        containers: manifest.containers.into_iter().map(container).collect(),
        manifest: text,
    }
}

/// As RestorePod answers for the same directory.
fn code(error: &CheckpointError) -> Code {
    match error {
        CheckpointError::Open { source: Errno::NOENT, .. } => Code::NotFound,
        CheckpointError::Open { .. } => Code::InvalidArgument,
        CheckpointError::Manifest(ManifestError::Version(_)) => Code::FailedPrecondition,
        CheckpointError::Io { .. } => Code::Internal,
        _ => Code::DataLoss,
    }
}

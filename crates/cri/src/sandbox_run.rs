//! `RunPodSandbox`.

use api::cri::v1::{RunPodSandboxRequest, RunPodSandboxResponse};
use pod::Pods;

use crate::{
    check::{Field, Invalid, required, sandbox},
    error::Failure,
    status::HANDLER,
};

/// Makes a pod; a repeated request returns the pod that is there.
pub(crate) async fn run(
    pods: &Pods,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Failure> {
    handler(&request.runtime_handler)?;
    sandbox::config(Field::of("config"), required(Field::of("config"), request.config.as_ref())?)?;
    let id = pods.run_sandbox(request.config.unwrap_or_default(), &request.runtime_handler).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// The handler that a pod asks for.
pub(crate) fn handler(name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name == HANDLER {
        return Ok(());
    }
    Err(Field::of("runtime_handler").wrong(name, format_args!("empty or {HANDLER:?}")))
}

//! The start of a restored container: the planned release of design.md section 5.

use std::path::PathBuf;
use std::time::Duration;

use migration::clock::{self, ClockError};
use namespaces::{NamespaceKind, PinError};
use sys::timens;

use super::{CLOCKS, Clocks};
use crate::container::Container;
use crate::pod::Pod;
use crate::shim::{CallError, Client};

/// Longest restore of one container.
const LIMIT: Duration = Duration::from_secs(120);
/// Of a restore without memory, and the margin for what else happens on the node.
const BASE: Duration = Duration::from_millis(150);
/// Restoring memory, and again as much for a slow moment.
const PER_MEBIBYTE: Duration = Duration::from_micros(1500);

/// Why a restored container did not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it; fields are the objects they name")]
pub enum StartRestoredError {
    #[error(transparent)]
    Shim(#[from] CallError),
    #[error("the pod's clocks cannot be set: {0}")]
    Clock(#[from] ClockError),
    #[error("the pod's time namespace cannot be kept")]
    Pin(#[from] PinError),
    #[error("{path} says nothing about the pod's clocks")]
    Reading { path: PathBuf },
}

/// A container that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    /// ns since the epoch.
    pub at: i64,
    /// Its first process.
    pub pid: u32,
}

/// Lets a restored container run; the first of its pod fixes the pod's clocks.
pub(crate) async fn start(
    pod: &Pod,
    client: &Client,
    container: &Container,
) -> Result<Started, StartRestoredError> {
    let _one_at_a_time = pod.restoring.lock().await;
    let id = container.id().to_string();
    let planned = if pod.node.pins.get(pod.id.as_str(), NamespaceKind::Time).is_ok() {
        None
    } else {
        Some(set_clocks(pod, client, container).await?)
    };
    let pid = client.restore(&id, LIMIT).await?;
    let at = planned.map_or_else(timens::monotonic, |release| release.at);
    let released = client.release(vec![id], at).await?;
    if let Some(release) = planned {
        let achieved = clock::achieved(&release, released, Duration::ZERO);
        tracing::info!(pod = %pod.id, late_ns = achieved.late, "a restored pod's clocks run on");
    }
    let directory = pod.node.restored_dir(&pod.id).join(container.name().0);
    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory));
    Ok(Started { at: timens::realtime(), pid })
}

/// Makes the pod's time namespace so that its clocks are right at the instant it gives.
async fn set_clocks(
    pod: &Pod,
    client: &Client,
    container: &Container,
) -> Result<clock::Release, StartRestoredError> {
    let path = pod.node.pod_dir(&pod.id).join(CLOCKS);
    let text = std::fs::read(&path).unwrap_or_default();
    let clocks: Clocks = serde_json::from_slice(&text).map_err(|_| StartRestoredError::Reading { path })?;
    let memory = clocks.memory.get(container.name().0).copied().unwrap_or(0);
    let mebibytes = u32::try_from(memory >> 20).unwrap_or(u32::MAX);
    let ahead = BASE + PER_MEBIBYTE.saturating_mul(mebibytes);
    let release = clock::plan(timens::clocks(), clock::own_offsets(), ahead)?;
    let offsets = clock::offsets(&clocks.reading, &release, clocks.policy)?;
    let namespace = client.create_time_namespace(offsets.monotonic, offsets.boottime).await?;
    pod.node.pins.pin(pod.id.as_str(), NamespaceKind::Time, &namespace)?;
    Ok(release)
}

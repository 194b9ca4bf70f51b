//! The start of a restored container: the planned release of design.md section 5.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use migration::clock::{self, ClockError};
use migration::transport::weight;
use namespaces::{NamespaceKind, PinError};
use sys::timens;

use super::{CLOCKS, Clocks};
use crate::container::Container;
use crate::pod::Pod;
use crate::shim::{CallError, Client};

/// Longest restore of one container.
const LIMIT: Duration = Duration::from_secs(120);

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
    let restore = client.begin_restore(&id, LIMIT).await?;
    let planned = if pod.node.pins.get(pod.id.as_str(), NamespaceKind::Time).is_ok() {
        None
    } else {
        Some(set_clocks(pod, client, container).await?)
    };
    let pid = restore.wait().await?;
    let at = planned.as_ref().map_or_else(timens::monotonic, |planned| planned.release.at);
    if let Some(planned) = &planned {
        pod.node.restores.saw(planned.weight, planned.since.elapsed());
    }
    let released = client.release(vec![id], at).await?;
    if let Some(planned) = planned {
        let achieved = clock::achieved(&planned.release, released, Duration::ZERO);
        tracing::info!(pod = %pod.id, late_ns = achieved.late, "a restored pod's clocks run on");
    }
    let directory = pod.node.restored_dir(&pod.id).join(container.name().0);
    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory));
    Ok(Started { at: timens::realtime(), pid })
}

struct Planned {
    release: clock::Release,
    since: Instant,
    weight: u64,
}

/// Makes the pod's time namespace so that its clocks are right at the instant it gives.
async fn set_clocks(
    pod: &Pod,
    client: &Client,
    container: &Container,
) -> Result<Planned, StartRestoredError> {
    let path = pod.node.pod_dir(&pod.id).join(CLOCKS);
    let text = std::fs::read(&path).unwrap_or_default();
    let clocks: Clocks = serde_json::from_slice(&text).map_err(|_| StartRestoredError::Reading { path })?;
    let memory = clocks.memory.get(container.name().0).copied().unwrap_or(0);
    client.await_restores(LIMIT).await?;
    let weight = weight(memory, 1);
    let (since, ahead) = (Instant::now(), pod.node.restores.ahead(weight));
    let release = clock::plan(timens::clocks(), clock::own_offsets(), ahead)?;
    let offsets = clock::offsets(&clocks.reading, &release, clocks.policy)?;
    let namespace = client.create_time_namespace(offsets.monotonic, offsets.boottime).await?;
    pod.node.pins.pin(pod.id.as_str(), NamespaceKind::Time, &namespace)?;
    Ok(Planned { release, since, weight })
}

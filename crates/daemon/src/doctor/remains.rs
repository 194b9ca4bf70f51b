//! Pods that are not whole, and what is left of pods that are gone.

use std::time::Duration;

use api::meridian::v1::Check;
use pod::{Pods, Remains};

use super::{fail, ok, warn};

/// What is being made or removed is whole, or gone, after that.
const AGAIN: Duration = Duration::from_millis(500);

/// Everything here.
pub async fn remains(pods: &Pods) -> Vec<Check> {
    let mut found = look(pods).await;
    if !found.is_empty() {
        tokio::time::sleep(AGAIN).await;
        let still = look(pods).await;
        found.retain(|remains| still.contains(remains));
    }
    if found.is_empty() {
        let (pods, containers) = (pods.sandboxes().len(), pods.containers().len());
        return vec![ok("remains", "node", format!("none beside {pods} pods and {containers} containers"))];
    }
    found.into_iter().map(told).collect()
}

async fn look(pods: &Pods) -> Vec<Remains> {
    let pods = pods.clone();
    tokio::task::spawn_blocking(move || pods.remains()).await.unwrap_or_default()
}

fn told(remains: Remains) -> Check {
    let restart = "restart meridiand: it removes what no pod has; pods run on";
    match remains {
        Remains::Dead { container, pid } => fail(
            "remains",
            format!("container {}", short(&container)),
            format!("counts as running, but process {pid} is gone"),
            "remove it: meridian rm CONTAINER; the kubelet makes a new one",
        ),
        Remains::WithoutShim { pod } => fail(
            "remains",
            format!("pod {}", short(&pod)),
            "counts as ready, but its shim is gone",
            "stop it: meridian stop POD; the kubelet makes a new one",
        ),
        Remains::Stray { what, path } => {
            warn("remains", path.display().to_string(), format!("{what} of a pod that is gone"), restart)
        }
    }
}

fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

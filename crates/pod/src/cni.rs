//! Pods on the network of CNI plugins, where the node is configured so: from a pod's request and namespace to
//! `network::cni`. The plugins are processes and take their time, so all of it runs beside the workers.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use api::cri::v1::PodSandboxConfig;
use api::id::PodId;
use network::cni::{Cni, CniError, PodRequest};

use crate::error::RunError;
use crate::node::Node;
use crate::pod_cidr::PodCidr;
use crate::pods::Pods;
use crate::ports;
use crate::state::SandboxState;

/// Between a refused DEL and the next, doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest pause between two.
const SELDOM: Duration = Duration::from_secs(60);

/// Connects a new pod by its pinned namespace.
pub(crate) async fn add(
    node: &Arc<Node>,
    id: &PodId,
    config: &PodSandboxConfig,
    netns: OwnedFd,
) -> Result<Vec<IpAddr>, RunError> {
    let cidr = *node.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner);
    let (node, request) = (Arc::clone(node), request(id, config, cidr));
    let path = node.config.run.join("ns").join(id.as_str()).join("net");
    let added = tokio::task::spawn_blocking(move || node.cni.add(&request, netns.as_fd(), &path));
    added.await.map_err(|_| RunError::Interrupted)?.map_err(RunError::Cni)
}

/// Disconnects a pod. What a plugin refuses is asked of it again until it does it: the pod is gone either way, and waits
/// for nobody's network.
pub(crate) async fn del(node: &Arc<Node>, id: &PodId) {
    if let Err(error) = once(node, id.as_str()).await {
        tracing::warn!(pod = %id, error, "a pod's network is taken down later");
        tokio::spawn(insist(Arc::downgrade(node), id.to_string()));
    }
}

async fn once(node: &Arc<Node>, id: &str) -> Result<(), String> {
    let (node, id) = (Arc::clone(node), id.to_owned());
    let asked = tokio::task::spawn_blocking(move || node.cni.del(&id)).await;
    asked.map_err(|_| "the daemon is ending".to_owned())?.map_err(|error| chain(&error))
}

async fn insist(node: Weak<Node>, id: String) {
    let mut pause = AGAIN;
    loop {
        tokio::time::sleep(pause).await;
        let Some(node) = node.upgrade() else { return };
        match once(&node, &id).await {
            Ok(()) => return tracing::info!(pod = id, "a pod's network is taken down at last"),
            Err(error) => tracing::debug!(pod = id, error, "a pod's network is still there"),
        }
        pause = (pause * 2).min(SELDOM);
    }
}

/// Takes down what earlier pods left with the plugins, and asks whether those that are there are still connected. Nobody
/// waits for it.
pub(crate) fn settle(pods: &Pods) {
    let ready = pods.sandboxes().into_iter().filter(|pod| pod.state == SandboxState::Ready);
    let alive: Vec<_> = ready.map(|pod| pod.id.to_string()).collect();
    let stale = pods.node.cni.stale(&alive);
    if stale.is_empty() && pods.node.config.cni.is_none() {
        return;
    }
    let node = Arc::clone(&pods.node);
    tokio::spawn(async move {
        for id in stale {
            if let Err(error) = once(&node, &id).await {
                tracing::warn!(pod = id, error, "the network of an earlier pod is taken down later");
                tokio::spawn(insist(Arc::downgrade(&node), id));
            }
        }
        let _ = tokio::task::spawn_blocking(move || look_after(&node.cni, &alive)).await;
    });
}

fn look_after(cni: &Cni, alive: &[String]) {
    for id in alive {
        if let Err(error) = cni.check(id) {
            tracing::warn!(pod = id, error = chain(&error), "a pod is not connected as it was");
        }
    }
    if let Err(error) = cni.collect() {
        tracing::warn!(error = chain(&error), "plugins may hold something for pods that are gone");
    }
}

/// Whether pods can be connected, and by which list.
#[derive(Debug, Clone)]
pub struct CniStatus {
    /// Why not.
    pub problem: Option<String>,
    /// The configuration list as it was written.
    pub list: Option<serde_json::Value>,
}

impl Pods {
    /// `None`: the node uses the embedded bridge.
    pub async fn cni_status(&self) -> Option<CniStatus> {
        self.node.config.cni.as_ref()?;
        let node = Arc::clone(&self.node);
        let ask = move || {
            let problem = node.cni.status().err().map(|error| chain(&error));
            CniStatus { problem, list: node.cni.list() }
        };
        tokio::task::spawn_blocking(ask).await.ok()
    }
}

fn request(id: &PodId, config: &PodSandboxConfig, cidr: Option<PodCidr>) -> PodRequest {
    let metadata = config.metadata.clone().unwrap_or_default();
    let rate = |direction| {
        config.annotations.get(&format!("kubernetes.io/{direction}-bandwidth")).and_then(|text| rate(text))
    };
    PodRequest {
        id: id.to_string(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        ports: ports::of(config),
        dns: config.dns_config.clone().map(|dns| (dns.servers, dns.searches, dns.options)),
        bandwidth: (rate("ingress"), rate("egress")),
        cidrs: cidr.map(PodCidr::ranges).unwrap_or_default(),
    }
}

/// A quantity of Kubernetes in bits per second: digits and a suffix of SI or of powers of 1024.
fn rate(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (suffix, factor) = SUFFIXES.into_iter().find(|(suffix, _)| text.ends_with(suffix))?;
    text.strip_suffix(suffix)?.parse::<u64>().ok()?.checked_mul(factor)
}

/// An error with its sources.
fn chain(error: &CniError) -> String {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_a_quantity() {
        let found = ["10M", "1Ki", "512", "1G", "x", "-1", "18446744073709551615k"].map(rate);
        assert_eq!(found, [Some(10_000_000), Some(1024), Some(512), Some(1_000_000_000), None, None, None]);
    }
}

use api::cri::v1::{PodSandbox, PodSandboxState, PodSandboxStatusRequest};
use clap::Args;

use super::Context;
use crate::{
    client::Node,
    error::Error,
    find, format, json,
    output::{self, Format, Table},
};

/// List pods
#[derive(Debug, Args)]
pub struct Pods {
    /// Only ids
    #[arg(long, short)]
    quiet: bool,
    /// Only pods of this namespace
    #[arg(long, short)]
    namespace: Option<String>,
}

impl Pods {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        let mut pods = find::pods(&node).await?;
        if let Some(namespace) = &self.namespace {
            pods.retain(|p| p.metadata.as_ref().is_some_and(|m| m.namespace == *namespace));
        }
        if self.quiet {
            return output::print(pods.iter().map(|p| format!("{}\n", p.id)).collect::<String>());
        }
        match cx.output {
            Format::Json => output::json(&json::list("items", "runtime.v1.PodSandbox", &pods)),
            Format::Text => output::print(table(&node, &pods).await),
        }
    }
}

async fn table(node: &Node, pods: &[PodSandbox]) -> Table {
    let mut table = Table::new(["POD", "NAME", "NAMESPACE", "STATE", "AGE", "ADDRESS"]);
    let now = format::now();
    for pod in pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        table.row([
            format::short(&pod.id).to_owned(),
            metadata.name,
            metadata.namespace,
            state(pod).to_owned(),
            format::age(pod.created_at, now),
            address(node, &pod.id).await,
        ]);
    }
    table
}

fn state(pod: &PodSandbox) -> &'static str {
    match pod.state() {
        PodSandboxState::SandboxReady => "Ready",
        PodSandboxState::SandboxNotready => "NotReady",
    }
}

/// The pod's addresses; none for a pod that is gone by now, is stopped, or uses the node's network.
async fn address(node: &Node, id: &str) -> String {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let Ok(reply) = node.runtime.clone().pod_sandbox_status(request).await else { return String::new() };
    let network = reply.into_inner().status.and_then(|s| s.network).unwrap_or_default();
    let others = network.additional_ips.into_iter().map(|a| a.ip);
    [network.ip].into_iter().chain(others).filter(|ip| !ip.is_empty()).collect::<Vec<_>>().join(",")
}

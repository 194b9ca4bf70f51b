use std::time::Duration;

use api::cri::v1::{StopContainerRequest, StopPodSandboxRequest};
use clap::Args;

use super::Context;
use crate::{
    client::Node,
    duration,
    error::Error,
    find::{self, Object},
    output,
};

/// Stop pods or containers
#[derive(Debug, Args)]
pub struct Stop {
    /// How long containers may take before they are killed
    #[arg(long, short, value_parser = duration::parse, default_value = "10s", value_name = "DURATION")]
    timeout: Duration,
    /// Pods and containers
    #[arg(required = true)]
    names: Vec<String>,
}

impl Stop {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        for name in &self.names {
            let id = match find::any(&node, name).await? {
                Object::Container(c) => container(&node, c.id, self.timeout).await?,
                Object::Pod(p) => pod(&node, p.id, self.timeout).await?,
            };
            output::print(format_args!("{id}\n"))?;
        }
        Ok(())
    }
}

/// Stops the containers within their grace period, then the pod.
pub async fn pod(node: &Node, id: String, grace: Duration) -> Result<String, Error> {
    let containers = find::containers(node).await?;
    let stops = containers.into_iter().filter(|c| c.pod_sandbox_id == id).map(|c| {
        let node = node.clone();
        tokio::spawn(async move { container(&node, c.id, grace).await })
    });
    for stop in stops.collect::<Vec<_>>() {
        if let Ok(result) = stop.await {
            result?;
        }
    }
    let request = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
    let reply = node.runtime.clone().stop_pod_sandbox(request).await;
    reply.map_err(Error::refused(format!("stop pod {id}")))?;
    Ok(id)
}

async fn container(node: &Node, id: String, grace: Duration) -> Result<String, Error> {
    let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let request = StopContainerRequest { container_id: id.clone(), timeout };
    let reply = node.runtime.clone().stop_container(request).await;
    reply.map_err(Error::refused(format!("stop container {id}")))?;
    Ok(id)
}

use std::{fs, io::ErrorKind, path::Path, time::Duration};

use api::cri::v1::{ContainerState, PodSandbox, RemoveContainerRequest, RemovePodSandboxRequest};
use clap::Args;

use super::{Context, run, stop};
use crate::{
    client::Node,
    error::Error,
    find::{self, Object},
    output,
};

/// Remove pods or containers
///
/// Logs of pods that `meridian run` made go with them; those of other pods belong to whoever made them.
#[derive(Debug, Args)]
pub struct Rm {
    /// Also those that run: they are killed
    #[arg(long, short)]
    force: bool,
    /// All pods
    #[arg(long, short, conflicts_with = "names")]
    all: bool,
    /// Pods and containers
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
}

impl Rm {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        let mut objects = Vec::new();
        if self.all {
            objects.extend(find::pods(&node).await?.into_iter().map(Object::Pod));
        }
        for name in &self.names {
            objects.push(find::any(&node, name).await?);
        }
        for object in objects {
            let id = match object {
                Object::Container(c) if c.state() == ContainerState::ContainerRunning && !self.force => {
                    return Err(runs("container", &c.id));
                }
                Object::Container(c) => container(&node, c.id).await?,
                Object::Pod(p) if !self.force && has_running(&node, &p.id).await? => {
                    return Err(runs("pod", &p.id));
                }
                Object::Pod(p) => pod(&node, p).await?,
            };
            output::print(format_args!("{id}\n"))?;
        }
        Ok(())
    }
}

async fn has_running(node: &Node, pod: &str) -> Result<bool, Error> {
    let containers = find::containers(node).await?;
    Ok(containers.iter().any(|c| c.pod_sandbox_id == pod && c.state() == ContainerState::ContainerRunning))
}

fn runs(kind: &str, id: &str) -> Error {
    Error::Usage(format!("{kind} {id} runs: stop it first, or give --force"))
}

async fn container(node: &Node, id: String) -> Result<String, Error> {
    let request = RemoveContainerRequest { container_id: id.clone() };
    let reply = node.runtime.clone().remove_container(request).await;
    reply.map_err(Error::refused(format!("remove container {id}")))?;
    Ok(id)
}

/// Stops, as kubelet and crictl do before they remove, and removes.
async fn pod(node: &Node, pod: PodSandbox) -> Result<String, Error> {
    let id = stop::pod(node, pod.id, Duration::ZERO).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
    let reply = node.runtime.clone().remove_pod_sandbox(request).await;
    reply.map_err(Error::refused(format!("remove pod {id}")))?;
    if let Some(directory) = pod.annotations.get(run::LOG_DIRECTORY) {
        remove_logs(Path::new(directory))?;
    }
    Ok(id)
}

fn remove_logs(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::File { what: "remove", path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

use std::collections::HashMap;

use api::cri::v1::{Container, ContainerState, PodSandbox};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    find, format, json,
    output::{self, Format, Table},
};

/// List containers
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(long, short)]
    all: bool,
    /// Only ids
    #[arg(long, short)]
    quiet: bool,
    /// Only containers of this pod
    #[arg(long, short)]
    pod: Option<String>,
}

impl Ps {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        let mut containers = find::containers(&node).await?;
        if let Some(name) = &self.pod {
            let pod = find::pod(&node, name).await?.id;
            containers.retain(|c| c.pod_sandbox_id == pod);
        }
        if !self.all {
            containers.retain(|c| c.state() == ContainerState::ContainerRunning);
        }
        if self.quiet {
            return output::print(containers.iter().map(|c| format!("{}\n", c.id)).collect::<String>());
        }
        match cx.output {
            Format::Json => output::json(&json::list("containers", "runtime.v1.Container", &containers)),
            Format::Text => output::print(table(&containers, &find::pods(&node).await?)),
        }
    }
}

fn table(containers: &[Container], pods: &[PodSandbox]) -> Table {
    let names: HashMap<&str, &str> =
        pods.iter().filter_map(|p| Some((p.id.as_str(), p.metadata.as_ref()?.name.as_str()))).collect();
    let mut table = Table::new(["CONTAINER", "NAME", "POD", "IMAGE", "STATE", "AGE", "ATTEMPT"]);
    let now = format::now();
    for c in containers {
        let metadata = c.metadata.clone().unwrap_or_default();
        let pod = names.get(c.pod_sandbox_id.as_str()).copied();
        table.row([
            format::short(&c.id).to_owned(),
            metadata.name,
            pod.unwrap_or(format::short(&c.pod_sandbox_id)).to_owned(),
            image(c),
            state(c).to_owned(),
            format::age(c.created_at, now),
            metadata.attempt.to_string(),
        ]);
    }
    table
}

/// The image as its author wrote it, an id shortened.
fn image(c: &Container) -> String {
    let spec = c.image.clone().unwrap_or_default();
    let name = if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image };
    if name.starts_with("sha256:") { format::short(&name).to_owned() } else { name }
}

fn state(c: &Container) -> &'static str {
    match c.state() {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

use std::{path, path::PathBuf, time::Duration};

use api::{
    cri::v1::{
        ContainerConfig, PodSandboxConfig, RestorePodRequest, RestorePodResponse, StartContainerRequest,
    },
    meridian::v1::{InspectCheckpointRequest, InspectCheckpointResponse},
};
use clap::Args;
use prost::Message;
use tonic::Request;

use super::{Context, run};
use crate::{
    client::Node,
    duration,
    error::Error,
    json,
    output::{self, Format},
};

/// Make a pod from a directory that `meridian checkpoint` wrote
///
/// The pod gets the configuration it had; its uid is new. The directory is only read and can be restored again.
#[derive(Debug, Args)]
pub struct Restore {
    /// Leave the containers Created: their processes run when they are started
    #[arg(long)]
    no_start: bool,
    /// Name for the pod, where the one it had is taken
    #[arg(long)]
    name: Option<String>,
    /// Give up, leaving nothing, after this long
    #[arg(long, value_parser = duration::parse, default_value = "2m", value_name = "DURATION")]
    timeout: Duration,
    /// The directory
    directory: PathBuf,
}

impl Restore {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        let reply = self.restore(&node).await?;
        if !self.no_start {
            for container in &reply.restored_containers {
                let request = StartContainerRequest { container_id: container.container_id.clone() };
                let started = node.runtime.clone().start_container(request).await;
                started.map_err(Error::refused(format!("start restored container {}", container.name)))?;
            }
        }
        match cx.output {
            Format::Json => output::json(&json::message("runtime.v1.RestorePodResponse", &reply)),
            Format::Text => output::print(format_args!("{}\n", reply.pod_sandbox_id)),
        }
    }

    async fn restore(&self, node: &Node) -> Result<RestorePodResponse, Error> {
        let absolute = path::absolute(&self.directory);
        let path = absolute
            .map_err(|source| Error::File { what: "find", path: self.directory.clone(), source })?
            .display()
            .to_string();
        let request = InspectCheckpointRequest { path: path.clone() };
        let inspected = node.meridian.clone().inspect_checkpoint(request).await;
        let inspected = inspected.map_err(Error::refused(format!("read the checkpoint in {path}")))?;
        let (config, container_configs) = self.configurations(&inspected.into_inner())?;
        let mut request = Request::new(RestorePodRequest {
            checkpoint_path: path.clone(),
            config: Some(config),
            container_configs,
            ..Default::default()
        });
        request.set_timeout(self.timeout);
        let reply = node.runtime.clone().restore_pod(request).await;
        Ok(reply.map_err(Error::refused(format!("restore {path}")))?.into_inner())
    }

    /// The configurations that the checkpoint remembers, made those of another pod.
    fn configurations(
        &self,
        inspected: &InspectCheckpointResponse,
    ) -> Result<(PodSandboxConfig, Vec<ContainerConfig>), Error> {
        let unreadable = |what| move |source| Error::Answer { what, source };
        let mut pod = PodSandboxConfig::decode(inspected.sandbox_config.as_slice())
            .map_err(unreadable("a pod's configuration"))?;
        let containers = inspected.containers.iter().map(|c| ContainerConfig::decode(c.config.as_slice()));
        let containers =
            containers.collect::<Result<_, _>>().map_err(unreadable("a container's configuration"))?;
        let metadata = pod.metadata.get_or_insert_default();
        if let Some(name) = &self.name {
            metadata.name.clone_from(name);
        }
        metadata.uid = run::uid()?;
        if !pod.log_directory.is_empty() {
            run::log_to_own_directory(&mut pod);
        }
        Ok((pod, containers))
    }
}

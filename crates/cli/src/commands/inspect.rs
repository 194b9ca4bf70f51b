use api::cri::v1::{ContainerStatusRequest, ImageSpec, ImageStatusRequest, PodSandboxStatusRequest};
use clap::Args;
use serde_json::{Value, json};

use super::Context;
use crate::{
    client::Node,
    error::Error,
    find::{self, Object},
    json, output,
};

/// Show all that is known of pods, containers or images, as JSON
#[derive(Debug, Args)]
pub struct Inspect {
    /// Pods, containers and images
    #[arg(required = true)]
    names: Vec<String>,
}

impl Inspect {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let node = cx.connect().await?;
        for name in &self.names {
            let value = match find::any(&node, name).await {
                Ok(Object::Container(c)) => container(&node, c.id).await?,
                Ok(Object::Pod(p)) => pod(&node, p.id).await?,
                Err(error @ Error::NotFound { .. }) => image(&node, name).await?.ok_or(error)?,
                Err(error) => return Err(error),
            };
            output::json(&value)?;
        }
        Ok(())
    }
}

async fn container(node: &Node, id: String) -> Result<Value, Error> {
    let failed = Error::refused(format!("inspect container {id}"));
    let request = ContainerStatusRequest { container_id: id, verbose: true };
    let reply = node.runtime.clone().container_status(request).await.map_err(failed)?.into_inner();
    let status = json::message("runtime.v1.ContainerStatus", &reply.status.unwrap_or_default());
    Ok(json!({ "status": status, "info": json::info(reply.info) }))
}

async fn pod(node: &Node, id: String) -> Result<Value, Error> {
    let failed = Error::refused(format!("inspect pod {id}"));
    let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
    let reply = node.runtime.clone().pod_sandbox_status(request).await.map_err(failed)?.into_inner();
    let status = json::message("runtime.v1.PodSandboxStatus", &reply.status.unwrap_or_default());
    Ok(json!({ "status": status, "info": json::info(reply.info) }))
}

async fn image(node: &Node, name: &str) -> Result<Option<Value>, Error> {
    let image = Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    let reply = node.images.clone().image_status(ImageStatusRequest { image, verbose: true }).await;
    let reply = match reply {
        Ok(reply) => reply.into_inner(),
        // A name that no image can have is not the name of one.
        Err(status) if status.code() == tonic::Code::InvalidArgument => return Ok(None),
        Err(status) => return Err(Error::refused(format!("inspect image {name}"))(status)),
    };
    Ok(reply.image.map(|image| {
        json!({ "status": json::message("runtime.v1.Image", &image), "info": json::info(reply.info) })
    }))
}

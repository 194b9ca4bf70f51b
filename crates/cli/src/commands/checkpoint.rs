use std::{
    fs, path,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api::cri::v1::{CheckpointPodRequest, ContainerState};
use clap::Args;
use tonic::Request;

use super::Context;
use crate::{
    duration,
    error::Error,
    find, format,
    output::{self, Format},
};

/// Write a running pod to a directory; the pod runs on
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Give up, with the pod running, after this long
    #[arg(long, value_parser = duration::parse, default_value = "2m", value_name = "DURATION")]
    timeout: Duration,
    /// The pod
    pod: String,
    /// The directory: made if missing, else it must be empty
    directory: PathBuf,
}

impl Checkpoint {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let pod = find::pod(&node, &self.pod).await?;
        let containers = find::containers(&node).await?;
        let runs = |c: &api::cri::v1::Container| c.state() == ContainerState::ContainerRunning;
        let own = containers.into_iter().filter(|c| c.pod_sandbox_id == pod.id && runs(c));
        let container_ids: Vec<String> = own.map(|c| c.id).collect();
        if container_ids.is_empty() {
            return Err(Error::Usage(format!(
                "pod {} has no running container: nothing to checkpoint",
                self.pod
            )));
        }
        let (directory, made) = prepare(&self.directory)?;
        let mut request = Request::new(CheckpointPodRequest {
            pod_sandbox_id: pod.id,
            output_path: directory.display().to_string(),
            container_ids,
            options: Default::default(),
        });
        request.set_timeout(self.timeout);
        let begun = Instant::now();
        if let Err(status) = node.runtime.checkpoint_pod(request).await {
            if made {
                // The daemon left it empty; where it did not, the content is worth a look.
                fs::remove_dir(&directory).ok();
            }
            return Err(Error::refused(format!("checkpoint pod {}", self.pod))(status));
        }
        report(cx, &self.pod, &directory, begun.elapsed())
    }
}

fn report(cx: &Context, pod: &str, directory: &Path, took: Duration) -> Result<(), Error> {
    let bytes = size(directory).map_err(|source| file("read", directory, source))?;
    match cx.output {
        Format::Text => output::print(format_args!(
            "{pod} written to {}: {} in {}\n",
            directory.display(),
            format::bytes(bytes),
            format::duration(took)
        )),
        Format::Json => output::json(&serde_json::json!({
            "pod": pod,
            "directory": directory,
            "bytes": bytes,
            "milliseconds": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })),
    }
}

/// The directory's absolute path, and whether it was made here.
fn prepare(directory: &Path) -> Result<(PathBuf, bool), Error> {
    let absolute = path::absolute(directory).map_err(|source| file("find", directory, source))?;
    if absolute.exists() {
        return Ok((absolute, false));
    }
    fs::create_dir_all(&absolute).map_err(|source| file("make", &absolute, source))?;
    Ok((absolute, true))
}

fn file(what: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { what, path: path.to_owned(), source }
}

fn size(directory: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let metadata = entry.as_ref().map_err(|e| e.kind())?.metadata()?;
        sum += if metadata.is_dir() { size(&entry?.path())? } else { metadata.len() };
    }
    Ok(sum)
}

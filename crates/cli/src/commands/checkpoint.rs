use std::{
    fs, path,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api::cri::v1::{CheckpointPodRequest, ContainerState};
use api::meridian::v1::{CheckRequest, Obstacle};
use clap::Args;
use tonic::Request;

use super::Context;
use crate::{
    client::Node,
    duration,
    error::Error,
    find, format, json,
    output::{self, Format},
};

/// Write a running pod to a directory; the pod runs on
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Give up, with the pod running, after this long
    #[arg(long, value_parser = duration::parse, default_value = "2m", value_name = "DURATION")]
    timeout: Duration,
    /// Only tell what a checkpoint or a move of the pod would fail at; exit code 1 if there is anything
    #[arg(long, conflicts_with = "directory")]
    check: bool,
    /// The pod
    pod: String,
    /// The directory: made if missing, else it must be empty
    #[arg(required_unless_present = "check")]
    directory: Option<PathBuf>,
}

impl Checkpoint {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let pod = find::pod(&node, &self.pod).await?;
        let Some(directory) = self.directory else { return check(cx, node, pod.id, &self.pod).await };
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
        let (directory, made) = prepare(&directory)?;
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

/// What `--check` tells.
async fn check(cx: &Context, mut node: Node, pod_id: String, name: &str) -> Result<(), Error> {
    let asked = node.meridian.check(CheckRequest { pod_id }).await;
    let found = asked.map_err(Error::refused(format!("check pod {name}")))?.into_inner();
    match cx.output {
        Format::Json => output::json(&json::message("meridian.v1.CheckResponse", &found))?,
        Format::Text if found.obstacles.is_empty() => {
            output::print(format_args!("{name} can be checkpointed and moved\n"))?;
        }
        Format::Text => {
            for obstacle in &found.obstacles {
                output::print(format_args!("{}\n", describe(obstacle)))?;
            }
        }
    }
    if found.obstacles.is_empty() { Ok(()) } else { Err(Error::Obstacles { pod: name.to_owned() }) }
}

fn describe(Obstacle { container, pid, process, what, cure }: &Obstacle) -> String {
    let whose = match (container.as_str(), pid) {
        ("", _) => "the pod".to_owned(),
        (container, 0) => format!("container {container}"),
        (container, pid) => format!("process {pid} ({process}) of container {container}"),
    };
    let cure = if cure.is_empty() { String::new() } else { format!(": {cure}") };
    format!("{whose} has {what}{cure}")
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

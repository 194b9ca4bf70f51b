use std::path::PathBuf;

use api::cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, ImageStatusRequest, Int64Value,
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use clap::Args;
use serde_json::json;

use super::{Context, pull};
use crate::{
    client::Node,
    error::Error,
    find,
    output::{self, Format},
};

/// Annotation of pods made here: where their logs are, to be removed with them.
pub const LOG_DIRECTORY: &str = "meridian.dev/log-directory";

/// Run a container in a new pod, or in a pod that is there
///
/// The image is pulled if this node does not have it. Prints the pod's id and the container's.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the new pod; by default the container's
    #[arg(long)]
    pod_name: Option<String>,
    /// Run in this pod instead of a new one
    #[arg(long, conflicts_with_all = ["pod_name", "namespace", "host_network", "host_pid", "host_ipc", "cgroup_parent"])]
    pod: Option<String>,
    /// Namespace of the new pod
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Name of the container; by default the image's
    #[arg(long)]
    name: Option<String>,
    /// Environment variable, NAME=VALUE
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Volume, HOST:CONTAINER or HOST:CONTAINER:ro
    #[arg(long, short, value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<String>,
    /// Program instead of the image's Entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Working directory
    #[arg(long, short, default_value = "", hide_default_value = true)]
    workdir: String,
    /// User id to run as
    #[arg(long, short)]
    user: Option<i64>,
    /// Memory limit in bytes
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    memory: i64,
    /// CPU limit, such as 0.5
    #[arg(long, value_name = "CPUS")]
    cpus: Option<f64>,
    /// Use the node's network
    #[arg(long)]
    host_network: bool,
    /// Use the node's pid namespace
    #[arg(long)]
    host_pid: bool,
    /// Use the node's ipc namespace
    #[arg(long)]
    host_ipc: bool,
    /// All capabilities and devices
    #[arg(long)]
    privileged: bool,
    /// Give the container a standard input, for meridian attach
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the container a terminal
    #[arg(long, short)]
    tty: bool,
    /// Parent of the new pod's cgroup
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PATH")]
    cgroup_parent: String,
    /// Directory for the new pod's logs
    #[arg(long, default_value = "/var/log/pods", value_name = "DIR")]
    logs: PathBuf,
    /// The image
    image: String,
    /// Arguments instead of the image's: its Cmd
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Run {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let config = self.container()?;
        let node = cx.connect().await?;
        let mut config = ContainerConfig { image: Some(image(&node, &self.image).await?), ..config };
        let (pod_id, sandbox_config) = self.pod(&node).await?;
        let metadata = config.metadata.get_or_insert_default();
        config.log_path = format!("{}/{}.log", metadata.name, metadata.attempt);
        let made = sandbox_config.is_some();
        let container_id = match start(&node, &pod_id, config, sandbox_config).await {
            Ok(id) => id,
            Err(error) => {
                if made {
                    discard(&node, &pod_id).await;
                }
                return Err(error);
            }
        };
        match cx.output {
            Format::Text => output::print(format_args!("{pod_id}\n{container_id}\n")),
            Format::Json => output::json(&json!({ "podSandboxId": pod_id, "containerId": container_id })),
        }
    }

    /// The pod to run in, which is made unless one was named.
    async fn pod(&self, node: &Node) -> Result<(String, Option<PodSandboxConfig>), Error> {
        if let Some(name) = &self.pod {
            return Ok((find::pod(node, name).await?.id, None));
        }
        let config = self.sandbox()?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let reply = node.runtime.clone().run_pod_sandbox(request).await;
        let id = reply.map_err(Error::refused("run a pod"))?.into_inner().pod_sandbox_id;
        Ok((id, Some(config)))
    }

    fn sandbox(&self) -> Result<PodSandboxConfig, Error> {
        let mode = |node| if node { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
        let pid = if self.host_pid { NamespaceMode::Node } else { NamespaceMode::Container } as i32;
        let options = NamespaceOption {
            network: mode(self.host_network),
            pid,
            ipc: mode(self.host_ipc),
            ..Default::default()
        };
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            privileged: self.privileged,
            ..Default::default()
        };
        let name = self.pod_name.clone().unwrap_or_else(|| self.name());
        let mut config = PodSandboxConfig {
            hostname: if self.host_network { String::new() } else { hostname(&name) },
            metadata: Some(PodSandboxMetadata {
                name,
                uid: uid()?,
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            log_directory: self.logs.join("pod").display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(security_context),
                ..Default::default()
            }),
            ..Default::default()
        };
        log_to_own_directory(&mut config);
        Ok(config)
    }

    fn container(&self) -> Result<ContainerConfig, Error> {
        let pid = if self.host_pid { NamespaceMode::Node } else { NamespaceMode::Container } as i32;
        let security_context = LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption { pid, ..Default::default() }),
            privileged: self.privileged,
            run_as_user: self.user.map(|value| Int64Value { value }),
            ..Default::default()
        };
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: self.name(), attempt: 0 }),
            command: self.entrypoint.iter().cloned().collect(),
            args: self.args.clone(),
            working_dir: self.workdir.clone(),
            envs: self.env.iter().map(|e| variable(e)).collect::<Result<_, _>>()?,
            mounts: self.volume.iter().map(|v| volume(v)).collect::<Result<_, _>>()?,
            stdin: self.stdin,
            tty: self.tty,
            linux: Some(LinuxContainerConfig {
                resources: Some(self.resources()?),
                security_context: Some(security_context),
            }),
            ..Default::default()
        })
    }

    fn resources(&self) -> Result<LinuxContainerResources, Error> {
        const PERIOD: i32 = 100_000;
        let quota = self.cpus.map_or(0.0, |cpus| cpus * f64::from(PERIOD));
        if !(0.0..=1e12).contains(&quota) {
            return Err(Error::Usage(format!(
                "--cpus {} is no number of CPUs",
                self.cpus.unwrap_or_default()
            )));
        }
        #[allow(clippy::cast_possible_truncation)] // the range is checked above
        let cpu_quota = quota as i64;
        let cpu_period = if cpu_quota == 0 { 0 } else { PERIOD.into() };
        Ok(LinuxContainerResources {
            cpu_period,
            cpu_quota,
            memory_limit_in_bytes: self.memory,
            ..Default::default()
        })
    }

    /// The container's name: as given, or the last part of the image's.
    fn name(&self) -> String {
        let of_image = || {
            let path = self.image.split('@').next().unwrap_or_default();
            let last = path.rsplit('/').next().unwrap_or_default();
            last.split(':').next().unwrap_or_default().to_owned()
        };
        self.name.clone().unwrap_or_else(of_image)
    }
}

/// The image as a container wants it: by id, beside the name that was given. Pulled where it is not there.
async fn image(node: &Node, name: &str) -> Result<ImageSpec, Error> {
    let image = Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    let reply = node.images.clone().image_status(ImageStatusRequest { image, verbose: false }).await;
    let found = reply.map_err(Error::refused(format!("look for image {name}")))?.into_inner().image;
    let id = match found {
        Some(image) => image.id,
        None => pull::pull(node, name, None).await?,
    };
    Ok(ImageSpec { image: id, user_specified_image: name.to_owned(), ..Default::default() })
}

/// Creates and starts; a container that does not start is removed again.
async fn start(
    node: &Node,
    pod: &str,
    config: ContainerConfig,
    sandbox_config: Option<PodSandboxConfig>,
) -> Result<String, Error> {
    let mut runtime = node.runtime.clone();
    let request =
        CreateContainerRequest { pod_sandbox_id: pod.to_owned(), config: Some(config), sandbox_config };
    let created = runtime.create_container(request).await;
    let container_id = created
        .map_err(Error::refused(format!("create a container in pod {pod}")))?
        .into_inner()
        .container_id;
    let started = runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await;
    if let Err(status) = started {
        runtime.remove_container(RemoveContainerRequest { container_id: container_id.clone() }).await.ok();
        return Err(Error::refused(format!("start container {container_id}"))(status));
    }
    Ok(container_id)
}

/// Takes back a pod that was made for a container that could not run. The reason for that is what the user needs to
/// read; a pod that cannot be removed either is still in the list.
async fn discard(node: &Node, pod: &str) {
    let mut runtime = node.runtime.clone();
    let pod_sandbox_id = pod.to_owned();
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await.ok();
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.ok();
}

/// Moves a pod's logs below a directory of its own, as the kubelet names it, and remembers it.
pub fn log_to_own_directory(config: &mut PodSandboxConfig) {
    let m = config.metadata.clone().unwrap_or_default();
    let parent = config.log_directory.rsplit_once('/').map_or("", |(parent, _)| parent);
    config.log_directory = format!("{parent}/{}_{}_{}", m.namespace, m.name, m.uid);
    config.annotations.insert(LOG_DIRECTORY.to_owned(), config.log_directory.clone());
}

/// A random UUID (RFC 9562, version 4), as the API server gives to pods.
pub fn uid() -> Result<String, Error> {
    let mut b = [0u8; 16];
    getrandom::fill(&mut b).map_err(|e| Error::Usage(format!("the kernel gives no random numbers: {e}")))?;
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// A host name made of a pod's name.
fn hostname(name: &str) -> String {
    let word: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    word.trim_matches('-').to_owned()
}

fn variable(text: &str) -> Result<KeyValue, Error> {
    let usage = || Error::Usage(format!("--env {text:?}: write NAME=VALUE"));
    let (key, value) = text.split_once('=').ok_or_else(usage)?;
    Ok(KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() })
}

fn volume(text: &str) -> Result<Mount, Error> {
    let usage = || Error::Usage(format!("--volume {text:?}: write HOST:CONTAINER or HOST:CONTAINER:ro"));
    let (host_path, container_path, readonly) = match text.split(':').collect::<Vec<_>>()[..] {
        [host, container] | [host, container, "rw"] => (host, container, false),
        [host, container, "ro"] => (host, container, true),
        _ => return Err(usage()),
    };
    if !host_path.starts_with('/') || !container_path.starts_with('/') {
        return Err(usage());
    }
    Ok(Mount {
        host_path: host_path.to_owned(),
        container_path: container_path.to_owned(),
        readonly,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let mount = volume("/a:/b:ro").expect("three parts");
        assert_eq!(
            (mount.host_path.as_str(), mount.container_path.as_str(), mount.readonly),
            ("/a", "/b", true)
        );
        assert!(!volume("/a:/b").expect("two parts").readonly);
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/b:x", "/a:/b:ro:x"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_keep_everything_after_the_first_equals_sign() {
        let v = variable("A=b=c").expect("a variable");
        assert_eq!((v.key.as_str(), v.value.as_slice()), ("A", b"b=c".as_slice()));
        assert!(variable("A").is_err());
    }

    #[test]
    fn uids_are_version_4_and_differ() {
        let (a, b) = (uid().expect("random"), uid().expect("random"));
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[14..15]), (36, "4"));
    }

    #[test]
    fn logs_lie_where_the_kubelet_puts_them() {
        let metadata =
            PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "shop".into(), attempt: 0 };
        let mut config = PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: "/var/log/pods/x".into(),
            ..Default::default()
        };
        log_to_own_directory(&mut config);
        assert_eq!(config.log_directory, "/var/log/pods/shop_web_u");
        assert_eq!(config.annotations[LOG_DIRECTORY], config.log_directory);
    }
}

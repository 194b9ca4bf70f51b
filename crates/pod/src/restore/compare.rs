//! Whether a restore request agrees with the checkpoint (KEP-5823): the same containers, the same images, the same
//! processes. Everything else, labels, mounts, limits, is the request's to say.

use api::cri::v1::{ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig};
use image::Images;
use migration::manifest::{Container, Manifest};
use prost::Message;

use crate::container::name;
use crate::sandbox::{namespaces, pid_mode, user_namespace};
use crate::spec::security_context;

/// The request and the checkpoint disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it; fields are the objects they name")]
pub enum Mismatch {
    #[error("container_configs names {name:?}, which is not in the checkpoint")]
    Extra { name: String },
    #[error("container_configs lacks {name:?}, which is in the checkpoint")]
    Missing { name: String },
    #[error("container_configs names {name:?} twice")]
    Twice { name: String },
    #[error("container {container}: {field} is not what it was when the checkpoint was taken")]
    Container { container: String, field: &'static str },
    #[error("container {container}: image {image:?} is not on this node: pull it first")]
    NoImage { container: String, image: String },
    #[error("container {container}: image {image:?} is {found}, the checkpoint was taken with {expected}")]
    Image { container: String, image: String, found: String, expected: String },
    #[error("config: {field} is not what it was when the checkpoint was taken")]
    Pod { field: &'static str },
    #[error("meridian.json: the configuration of {of} cannot be read")]
    Unreadable { of: String },
}

/// Compares; gives the containers' configurations in the checkpoint's order.
pub(super) fn request(
    manifest: &Manifest,
    pod: &PodSandboxConfig,
    containers: Vec<ContainerConfig>,
    images: &Images,
) -> Result<Vec<ContainerConfig>, Mismatch> {
    let unreadable = |of: &str| Mismatch::Unreadable { of: of.to_owned() };
    let was =
        PodSandboxConfig::decode(manifest.pod.config.0.as_slice()).map_err(|_| unreadable("the pod"))?;
    compare_pods(pod, &was)?;
    let mut by_name = std::collections::BTreeMap::new();
    for config in containers {
        let name = name(&config).0.to_owned();
        if !manifest.containers.iter().any(|c| c.name == name) {
            return Err(Mismatch::Extra { name });
        }
        if by_name.insert(name.clone(), config).is_some() {
            return Err(Mismatch::Twice { name });
        }
    }
    let mut ordered = Vec::new();
    for container in &manifest.containers {
        let missing = || Mismatch::Missing { name: container.name.clone() };
        let config = by_name.remove(&container.name).ok_or_else(missing)?;
        let was = ContainerConfig::decode(container.config.0.as_slice());
        compare_containers(&container.name, &config, &was.map_err(|_| unreadable(&container.name))?)?;
        compare_images(container, &config, images)?;
        ordered.push(config);
    }
    Ok(ordered)
}

fn compare_pods(now: &PodSandboxConfig, was: &PodSandboxConfig) -> Result<(), Mismatch> {
    let (a, b) = (namespaces(now), namespaces(was));
    let sysctls =
        |config: &PodSandboxConfig| config.linux.as_ref().map(|l| l.sysctls.clone()).unwrap_or_default();
    let checks = [
        ("hostname", now.hostname == was.hostname),
        ("linux.security_context.namespace_options.network", a.network == b.network),
        ("linux.security_context.namespace_options.ipc", a.ipc == b.ipc),
        ("linux.security_context.namespace_options.pid", pid_mode(now, None) == pid_mode(was, None)),
        (
            "linux.security_context.namespace_options.userns_options",
            user_namespace(now) == user_namespace(was),
        ),
        ("linux.sysctls", sysctls(now) == sysctls(was)),
    ];
    match checks.into_iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Mismatch::Pod { field }),
        None => Ok(()),
    }
}

fn compare_containers(container: &str, now: &ContainerConfig, was: &ContainerConfig) -> Result<(), Mismatch> {
    let (a, b) = (security_context(now), security_context(was));
    let checks = [
        ("command", now.command == was.command),
        ("args", now.args == was.args),
        ("envs", now.envs == was.envs),
        ("working_dir", now.working_dir == was.working_dir),
        ("tty", now.tty == was.tty),
        ("stdin", now.stdin == was.stdin),
        ("linux.security_context.run_as_user", user(&a) == user(&b)),
        ("linux.security_context.capabilities", a.capabilities == b.capabilities),
        ("linux.security_context.privileged", a.privileged == b.privileged),
        ("linux.security_context.no_new_privs", a.no_new_privs == b.no_new_privs),
        ("linux.security_context.seccomp", a.seccomp == b.seccomp),
        ("linux.security_context.namespace_options", a.namespace_options == b.namespace_options),
    ];
    match checks.into_iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Mismatch::Container { container: container.to_owned(), field }),
        None => Ok(()),
    }
}

/// Everything that decides who the process is.
fn user(context: &LinuxContainerSecurityContext) -> impl PartialEq {
    (
        context.run_as_user,
        context.run_as_group,
        context.run_as_username.clone(),
        context.supplemental_groups.clone(),
        context.supplemental_groups_policy,
    )
}

/// The same files, whatever they are called: by digest.
fn compare_images(container: &Container, config: &ContainerConfig, images: &Images) -> Result<(), Mismatch> {
    let image = config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
    let name = container.name.clone();
    let Some(found) = images.get(&image) else { return Err(Mismatch::NoImage { container: name, image }) };
    if found.id.as_str() == container.image.id {
        return Ok(());
    }
    let (found, expected) = (found.id.to_string(), container.image.id.clone());
    Err(Mismatch::Image { container: name, image, found, expected })
}

#[cfg(test)]
mod tests {
    use api::cri::v1::KeyValue;

    use super::*;

    #[test]
    fn the_process_must_be_the_same_and_the_rest_need_not() {
        let was = ContainerConfig { command: vec!["a".into()], ..Default::default() };
        let relabelled = ContainerConfig { labels: [("k".to_owned(), "v".to_owned())].into(), ..was.clone() };
        assert_eq!(compare_containers("c", &relabelled, &was), Ok(()));
        let other = ContainerConfig { command: vec!["b".into()], ..was.clone() };
        let error = compare_containers("c", &other, &was).unwrap_err();
        assert_eq!(error, Mismatch::Container { container: "c".into(), field: "command" });
        let env = KeyValue { key: "K".into(), value: b"v".to_vec() };
        let other = ContainerConfig { envs: vec![env], ..was.clone() };
        assert!(compare_containers("c", &other, &was).unwrap_err().to_string().contains("envs"));
    }

    #[test]
    fn the_sandbox_must_isolate_the_same() {
        let was = PodSandboxConfig { hostname: "a".into(), ..Default::default() };
        let other = PodSandboxConfig { hostname: "b".into(), ..Default::default() };
        assert_eq!(compare_pods(&other, &was), Err(Mismatch::Pod { field: "hostname" }));
        let logs = PodSandboxConfig { log_directory: "/elsewhere".into(), ..was.clone() };
        assert_eq!(compare_pods(&logs, &was), Ok(()));
    }
}

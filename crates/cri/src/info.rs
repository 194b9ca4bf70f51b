//! The parts of verbose info that scripts around crictl read and that are the same for pods and containers.
//!
//! Names are those of containerd's info: `.info.config`, `.info.runtimeSpec.linux.namespaces`.

use api::cri::v1::{ContainerConfig, KeyValue, LinuxContainerResources, Mount, PodSandboxConfig};
use api::meridian::v1::Namespace;
use serde_json::{Value, json};

/// A container's request as JSON, with the proto's field names. Security and resources are in the runtime spec.
pub(crate) fn container_config(config: &ContainerConfig) -> Value {
    let metadata = config.metadata.clone().unwrap_or_default();
    let image = config.image.clone().unwrap_or_default();
    json!({
        "metadata": { "name": metadata.name, "attempt": metadata.attempt },
        "image": { "image": image.image, "user_specified_image": image.user_specified_image },
        "command": config.command,
        "args": config.args,
        "working_dir": config.working_dir,
        "envs": config.envs.iter().map(env).collect::<Vec<_>>(),
        "mounts": config.mounts.iter().map(mount).collect::<Vec<_>>(),
        "labels": config.labels,
        "annotations": config.annotations,
        "log_path": config.log_path,
        "stdin": config.stdin,
        "stdin_once": config.stdin_once,
        "tty": config.tty,
    })
}

fn env(variable: &KeyValue) -> Value {
    json!({ "key": variable.key, "value": String::from_utf8_lossy(&variable.value) })
}

fn mount(mount: &Mount) -> Value {
    json!({
        "container_path": mount.container_path,
        "host_path": mount.host_path,
        "readonly": mount.readonly,
        "propagation": mount.propagation().as_str_name(),
    })
}

/// A pod's request as JSON, with the proto's field names.
pub(crate) fn sandbox_config(config: &PodSandboxConfig) -> Value {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    let ports = config.port_mappings.iter().map(|port| {
        json!({
            "protocol": port.protocol().as_str_name(),
            "container_port": port.container_port,
            "host_port": port.host_port,
            "host_ip": port.host_ip,
        })
    });
    json!({
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "attempt": metadata.attempt,
        },
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "dns_config": { "servers": dns.servers, "searches": dns.searches, "options": dns.options },
        "port_mappings": ports.collect::<Vec<_>>(),
        "labels": config.labels,
        "annotations": config.annotations,
        "linux": { "cgroup_parent": linux.cgroup_parent, "sysctls": linux.sysctls },
    })
}

/// Limits as JSON, with the proto's field names; nothing for none.
pub(crate) fn limits(limits: Option<&LinuxContainerResources>) -> Value {
    let Some(limits) = limits else { return Value::Null };
    json!({
        "cpu_period": limits.cpu_period,
        "cpu_quota": limits.cpu_quota,
        "cpu_shares": limits.cpu_shares,
        "cpuset_cpus": limits.cpuset_cpus,
        "cpuset_mems": limits.cpuset_mems,
        "memory_limit_in_bytes": limits.memory_limit_in_bytes,
        "memory_swap_limit_in_bytes": limits.memory_swap_limit_in_bytes,
        "unified": limits.unified,
    })
}

/// The pod's own namespaces in the words of the OCI runtime spec, each with the path that holds it: network plugins and
/// people enter a pod by it (`nsenter --net=PATH`).
pub(crate) fn pinned_namespaces(namespaces: &[Namespace]) -> Value {
    let pinned = namespaces.iter().filter(|namespace| !namespace.pin.is_empty());
    let listed = pinned.map(|n| json!({ "type": oci_name(&n.kind), "path": n.pin }));
    json!({ "linux": { "namespaces": listed.collect::<Vec<_>>() } })
}

/// The spec writes some kinds out in full.
fn oci_name(kind: &str) -> &str {
    match kind {
        "net" => "network",
        "mnt" => "mount",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use api::cri::v1::{ImageSpec, PodSandboxMetadata};

    use super::*;

    #[test]
    fn requests_read_as_they_were_sent() {
        let config = ContainerConfig {
            image: Some(ImageSpec { image: "app:1".into(), ..Default::default() }),
            envs: vec![KeyValue { key: "A".into(), value: b"b".to_vec() }],
            ..Default::default()
        };
        let shown = container_config(&config);
        assert_eq!(shown["image"]["image"], "app:1");
        assert_eq!(shown["envs"][0]["value"], "b");
        let metadata = PodSandboxMetadata { namespace: "default".into(), ..Default::default() };
        let pod = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        assert_eq!(sandbox_config(&pod)["metadata"]["namespace"], "default");
    }

    #[test]
    fn only_pinned_namespaces_have_a_path() {
        let net = Namespace { kind: "net".into(), pin: "/run/ns/net".into(), ..Default::default() };
        let pid = Namespace { kind: "pid".into(), ..Default::default() };
        let spec = pinned_namespaces(&[net, pid]);
        assert_eq!(spec["linux"]["namespaces"], json!([{ "type": "network", "path": "/run/ns/net" }]));
    }
}

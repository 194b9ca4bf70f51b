//! A pod's configuration.

use std::collections::HashSet;

use api::cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol,
};

use super::{Check, Field, one_of, range, required, resources, security, text};

/// `RunPodSandboxRequest.config`, `RestorePodRequest.config`.
pub(crate) fn config(field: Field<'_>, config: &PodSandboxConfig) -> Check {
    metadata(field.at("metadata"), required(field.at("metadata"), config.metadata.as_ref())?)?;
    text::hostname(field.at("hostname"), &config.hostname)?;
    if !config.log_directory.is_empty() {
        text::absolute(field.at("log_directory"), &config.log_directory)?;
    }
    if let Some(given) = &config.dns_config {
        dns(field.at("dns_config"), given)?;
    }
    port_mappings(field.at("port_mappings"), &config.port_mappings)?;
    text::labels(field.at("labels"), &config.labels)?;
    text::labels(field.at("annotations"), &config.annotations)?;
    if config.windows.is_some() {
        return Err(field.at("windows").conflict("is for Windows nodes: this one runs Linux"));
    }
    config.linux.as_ref().map_or(Ok(()), |given| linux(field.at("linux"), given))
}

fn metadata(field: Field<'_>, metadata: &PodSandboxMetadata) -> Check {
    text::name(field.at("name"), &metadata.name)?;
    text::name(field.at("uid"), &metadata.uid)?;
    text::name(field.at("namespace"), &metadata.namespace)
}

/// Everything that ends up in a line of resolv.conf(5).
fn dns(field: Field<'_>, dns: &DnsConfig) -> Check {
    let each = |name, list: &[String], check: fn(Field<'_>, &str) -> Check| {
        list.iter().enumerate().try_for_each(|(i, value)| check(field.at(name).index(i), value))
    };
    each("servers", &dns.servers, text::address)?;
    each("searches", &dns.searches, text::word)?;
    each("options", &dns.options, text::word)
}

fn port_mappings(field: Field<'_>, mappings: &[PortMapping]) -> Check {
    let mut taken = HashSet::new();
    for (i, m) in mappings.iter().enumerate() {
        let field = field.index(i);
        one_of::<Protocol>(field.at("protocol"), m.protocol, "TCP, UDP or SCTP (0 to 2)")?;
        range(field.at("container_port"), m.container_port.into(), 1, 65_535)?;
        range(field.at("host_port"), m.host_port.into(), i32::MIN.into(), 65_535)?;
        if !m.host_ip.is_empty() {
            text::address(field.at("host_ip"), &m.host_ip)?;
        }
        if m.host_port > 0 && !taken.insert((m.protocol, m.host_port, m.host_ip.as_str())) {
            return Err(field.at("host_port").wrong(m.host_port, "mapped once"));
        }
    }
    Ok(())
}

fn linux(field: Field<'_>, linux: &LinuxPodSandboxConfig) -> Check {
    if !linux.cgroup_parent.is_empty() {
        text::absolute(field.at("cgroup_parent"), &linux.cgroup_parent)?;
    }
    let context = linux.security_context.as_ref();
    if let Some(context) = context {
        security::sandbox(field.at("security_context"), context)?;
    }
    let namespaces = context.and_then(|c| c.namespace_options.as_ref());
    security::sysctls(
        field.at("sysctls"),
        &linux.sysctls,
        namespaces.unwrap_or(&NamespaceOption::default()),
    )?;
    for (name, given) in [("overhead", &linux.overhead), ("resources", &linux.resources)] {
        if let Some(given) = given {
            resources::linux(field.at(name), given)?;
        }
    }
    Ok(())
}

/// The namespace modes of a pod; all POD where nothing is said.
pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// Whether the pod's processes share the node's namespace of this mode.
pub(crate) fn is_node(mode: i32) -> bool {
    mode == NamespaceMode::Node as i32
}

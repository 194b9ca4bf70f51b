//! From a request to an OCI runtime specification: everything decided, nothing done but opening what is named.
//!
//! ```text
//! PodSandboxConfig ─┐
//! ContainerConfig ──┼─▶ build() ─▶ Built { spec, mounts with their trees, device nodes, seccomp program, user }
//! image config ─────┤                 └─▶ plan::lower() ─▶ shim.v1 ContainerPlan + descriptors
//! root filesystem ──┘
//! ```
//!
//! Syntax was checked at the door (crate cri, `check`). What is checked here needs the node: a path that must
//! exist, a user that the image must know, a capability that this daemon must hold.

mod apparmor;
pub(crate) mod cgroup;
mod default_seccomp;
pub(crate) mod devices;
pub(crate) mod image_volume;
pub(crate) mod mounts;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod security;
mod selinux;
pub(crate) mod user;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use api::cri::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceMode, PodSandboxConfig,
    SecurityProfile, security_profile::ProfileType,
};
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, Process, Root, Spec, User as SpecUser,
};
use sys::Errno;

use crate::container::User;
use crate::error::{Class, Classify};
use crate::sandbox::{is_node, namespaces, pid_mode, user_namespace};
use mounts::{Entry, PodFiles, PodUsers};
use process::ImageProcess;
pub use seccomp::ProfileError;
use security::Set;

/// Why no specification can be made of a request.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it; fields are the objects they name")]
pub enum SpecError {
    #[error("config.command is missing and the image has neither Entrypoint nor Cmd: say what to execute")]
    NoCommand,
    #[error("config.envs[{key}].value is not UTF-8")]
    Environment { key: String },
    #[error("stop signal {text:?} is unknown: it must be a name or number of signal(7)")]
    StopSignal { text: String },
    #[error("user {text:?} is no user: it must be a number from 0 to 2147483647, or a name")]
    InvalidUser { text: String },
    #[error("{field} is {value}: it must be from 0 to 2147483647")]
    IdOutOfRange { field: &'static str, value: i64 },
    #[error("user {name:?} is not in the image's /etc/passwd")]
    NoSuchUser { name: String },
    #[error("group {name:?} is not in the image's /etc/group")]
    NoSuchGroup { name: String },
    #[error("the image's {path} cannot be read")]
    AccountFile { path: &'static str, source: Errno },
    #[error("the image's {path} must be a regular file of at most 10 MiB")]
    AccountFileKind { path: &'static str },
    #[error("capability {name:?} is unknown: it must be a name of capabilities(7), or ALL")]
    Capability { name: String },
    #[error("capability {name:?} cannot be given: this daemon does not hold it itself")]
    CapabilityNotHeld { name: String },
    #[error("config.mounts: host_path {} cannot be mounted: {source}", path.display())]
    Volume { path: PathBuf, source: Errno },
    #[error("config.mounts: host_path {} is not on a shared mount, which {wanted} needs", path.display())]
    Propagation { path: PathBuf, wanted: &'static str },
    #[error("config.mounts: host_path {}: id mappings must be those of the pod's user namespace", path.display())]
    IdMap { path: PathBuf },
    #[error(transparent)]
    ImageVolume(#[from] image_volume::ImageVolumeError),
    #[error("config.devices: host_path {} cannot be used: {source}", path.display())]
    Device { path: PathBuf, source: Errno },
    #[error("config.devices: host_path {} is neither a device node nor a directory with some", path.display())]
    NoDevice { path: PathBuf },
    #[error("config.devices: host_path {} holds more than 4096 device nodes", path.display())]
    TooManyDevices { path: PathBuf },
    #[error("linux.cgroup_parent {path:?} must be a path below the hierarchy's root, without . and ..")]
    CgroupParent { path: String },
    #[error("linux.resources.unified[{key:?}] must be a file name of the container's own cgroup")]
    Unified { key: String },
    #[error("linux.security_context.namespace_options.target_id {id:?} is no running container of this pod")]
    Target { id: String },
    #[error("linux.security_context.apparmor: this node has no AppArmor to load profile {profile:?} with")]
    NoAppArmor { profile: String },
    #[error("linux.security_context.apparmor: profile {profile:?} is not loaded on this node")]
    AppArmorProfile { profile: String },
    #[error(transparent)]
    Seccomp(#[from] ProfileError),
    #[error("the specification cannot be written")]
    Serialise(#[source] serde_json::Error),
}

impl Classify for SpecError {
    fn class(&self) -> Class {
        match self {
            Self::CapabilityNotHeld { .. }
            | Self::NoAppArmor { .. }
            | Self::AppArmorProfile { .. }
            | Self::Propagation { .. } => Class::FailedPrecondition,
            Self::ImageVolume(_) => Class::ImageVolume,
            Self::Serialise(_) => Class::Internal,
            Self::Volume { source, .. } | Self::Device { source, .. } | Self::AccountFile { source, .. } => {
                match *source {
                    Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC => Class::ResourceExhausted,
                    Errno::IO => Class::Internal,
                    _ => Class::InvalidArgument,
                }
            }
            _ => Class::InvalidArgument,
        }
    }
}

/// What a specification is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub pod: &'a PodSandboxConfig,
    pub container: &'a ContainerConfig,
    pub image: &'a ImageProcess,
    pub rootfs: BorrowedFd<'a>,
    pub files: &'a PodFiles,
    /// The pod's user namespace, if it has one.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// Path of the container's cgroup, for the specification's reader.
    pub cgroup: &'a str,
    /// Where the pod's namespaces are pinned, for the specification's reader.
    pub pins: &'a std::path::Path,
    /// What this daemon can hand on.
    pub own_capabilities: Set,
    /// Where volumes that are images come from.
    pub image_volumes: Option<image_volume::Source<'a>>,
}

/// A specification and what goes with it.
#[derive(Debug)]
pub(crate) struct Built {
    pub spec: Spec,
    pub mounts: Vec<Entry>,
    pub nodes: Vec<devices::Node>,
    pub filter: Option<seccomp::Filter>,
    pub user: User,
    pub pid: NamespaceMode,
    pub target: String,
    pub privileged: bool,
    pub stop_signal: u32,
}

/// Builds the specification of a container.
pub(crate) fn build(input: Input<'_>, filters: &seccomp::Filters) -> Result<Built, SpecError> {
    let context = security_context(input.container);
    let resolved = user::resolve(&context, &input.image.user, input.rootfs)?;
    let capabilities = security::capabilities(&context, input.own_capabilities)?;
    let filter = filter(&context, capabilities.all, filters)?;
    let userns = input.user_namespace.is_some();
    let nodes = devices::nodes(&input.container.devices, context.privileged, userns)?;
    let mapped = user_namespace(input.pod);
    let users = input.user_namespace.zip(mapped.as_ref());
    let mounts = mounts::all(
        &input.container.mounts,
        mounts::Context {
            files: input.files,
            privileged: context.privileged,
            readonly_rootfs: context.readonly_rootfs,
            users: users.map(|(namespace, map)| PodUsers { namespace, uids: &map.uids, gids: &map.gids }),
            node_network: is_node(namespaces(input.pod).network),
            image_volumes: input.image_volumes,
        },
    )?;
    let mut spec = Spec::default();
    spec.set_hostname(Some(input.pod.hostname.clone()).filter(|name| !name.is_empty()));
    spec.set_annotations(Some(input.container.annotations.clone()));
    spec.set_mounts(Some(mounts.iter().map(|entry| entry.mount.clone()).collect()));
    spec.set_root(Some(root(context.readonly_rootfs)));
    spec.set_process(Some(process_of(input, &context, &resolved, capabilities)?));
    spec.set_linux(Some(linux_of(input, &context, &nodes)?));
    Ok(Built {
        spec,
        mounts,
        nodes,
        filter,
        user: resolved.user,
        pid: pid_mode(input.pod, context.namespace_options.as_ref()),
        target: context.namespace_options.as_ref().map(|o| o.target_id.clone()).unwrap_or_default(),
        privileged: context.privileged,
        stop_signal: process::stop_signal(input.container, input.image)?,
    })
}

fn root(readonly: bool) -> Root {
    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(readonly));
    root
}

fn process_of(
    input: Input<'_>,
    context: &LinuxContainerSecurityContext,
    resolved: &user::Resolved,
    capabilities: security::Capabilities,
) -> Result<Process, SpecError> {
    let mut user = SpecUser::default();
    user.set_uid(resolved.user.uid);
    user.set_gid(resolved.user.gid);
    user.set_additional_gids(Some(resolved.user.groups.clone()));
    let all: std::collections::HashSet<_> = capabilities.all.names().collect();
    let ambient: std::collections::HashSet<_> = capabilities.ambient.names().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()));
    sets.set_permitted(Some(all.clone()));
    sets.set_effective(Some(all));
    sets.set_inheritable(Some(ambient.clone()));
    sets.set_ambient(Some(ambient));
    let mut process = Process::default();
    process.set_terminal(Some(input.container.tty));
    process.set_user(user);
    process.set_args(Some(process::args(input.container, input.image)?));
    process.set_env(Some(process::env(input.container, input.image, &input.pod.hostname, &resolved.home)?));
    process.set_cwd(process::cwd(input.container, input.image).into());
    process.set_capabilities(Some(sets));
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(context.no_new_privs));
    process.set_apparmor_profile(apparmor::profile(context)?);
    process.set_selinux_label(selinux::label(context.selinux_options.as_ref()));
    process.set_oom_score_adj(resources(input.container).and_then(|r| i32::try_from(r.oom_score_adj).ok()));
    Ok(process)
}

fn linux_of(
    input: Input<'_>,
    context: &LinuxContainerSecurityContext,
    nodes: &[devices::Node],
) -> Result<Linux, SpecError> {
    let (masked, read_only) = security::paths(context, input.user_namespace.is_some());
    let mut limits = cgroup::resources(&resources(input.container).cloned().unwrap_or_default())?;
    limits.set_devices(Some(devices::rules(nodes)));
    let mut linux = Linux::default();
    linux.set_resources(Some(limits));
    linux.set_cgroups_path(Some(input.cgroup.into()));
    linux.set_namespaces(Some(namespaces_of(input, context)));
    linux.set_devices(Some(nodes.iter().map(|node| node.device.clone()).collect()));
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(read_only));
    linux.set_sysctl(input.pod.linux.as_ref().map(|l| l.sysctls.clone()).filter(|s| !s.is_empty()));
    if let Some(user) = user_namespace(input.pod) {
        linux.set_uid_mappings(Some(user.uids.iter().map(mounts::id_mapping).collect()));
        linux.set_gid_mappings(Some(user.gids.iter().map(mounts::id_mapping).collect()));
    }
    Ok(linux)
}

/// Namespaces as the specification lists them: own ones without a path, the pod's with the path of their pin.
fn namespaces_of(input: Input<'_>, context: &LinuxContainerSecurityContext) -> Vec<LinuxNamespace> {
    let modes = namespaces(input.pod);
    let make = |typ: LinuxNamespaceType, pin: Option<&str>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace.set_path(pin.map(|name| input.pins.join(name)));
        namespace
    };
    let mut list = vec![make(LinuxNamespaceType::Mount, None), make(LinuxNamespaceType::Cgroup, None)];
    if pid_mode(input.pod, context.namespace_options.as_ref()) != NamespaceMode::Node {
        list.push(make(LinuxNamespaceType::Pid, None));
    }
    list.push(make(LinuxNamespaceType::Time, Some("time")));
    if !is_node(modes.network) {
        list.push(make(LinuxNamespaceType::Network, Some("net")));
        list.push(make(LinuxNamespaceType::Uts, Some("uts")));
    }
    if !is_node(modes.ipc) {
        list.push(make(LinuxNamespaceType::Ipc, Some("ipc")));
    }
    if input.user_namespace.is_some() {
        list.push(make(LinuxNamespaceType::User, Some("user")));
    }
    list
}

/// A container's security context, all default when the request has none.
pub(crate) fn security_context(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

fn resources(config: &ContainerConfig) -> Option<&LinuxContainerResources> {
    config.linux.as_ref().and_then(|l| l.resources.as_ref())
}

/// The seccomp filter of a container with these capabilities.
pub(crate) fn filter(
    context: &LinuxContainerSecurityContext,
    capabilities: Set,
    filters: &seccomp::Filters,
) -> Result<Option<seccomp::Filter>, ProfileError> {
    filters.of(seccomp_profile(context).as_ref(), context.privileged, capabilities)
}

/// The profile asked for, also in the old form of a path (`runtime/default`, `unconfined`, `localhost/PATH`).
fn seccomp_profile(context: &LinuxContainerSecurityContext) -> Option<SecurityProfile> {
    #[allow(deprecated, reason = "crictl configurations in the field still use it")]
    let old = context.seccomp_profile_path.as_str();
    let profile = |kind: ProfileType, path: &str| {
        Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() })
    };
    match (&context.seccomp, old) {
        (Some(given), _) => Some(given.clone()),
        (None, "runtime/default" | "docker/default") => profile(ProfileType::RuntimeDefault, ""),
        (None, "" | "unconfined") => None,
        (None, path) => profile(ProfileType::Localhost, path.strip_prefix("localhost/").unwrap_or(path)),
    }
}

#[cfg(test)]
mod tests;

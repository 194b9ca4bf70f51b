//! Credentials, confinement and namespaces.

use std::collections::HashMap;

use api::cri::v1::{
    Capability, IdMapping, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
    security_profile::ProfileType,
};

use super::{Check, Field, id, one_of, range, text};

/// capabilities(7) up to Linux 6.18, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Kubernetes gives ids as signed numbers of which half are legal.
const ID_MAX: i64 = i32::MAX as i64;

/// A pod's security context.
pub(crate) fn sandbox(field: Field<'_>, c: &LinuxSandboxSecurityContext) -> Check {
    if let Some(options) = &c.namespace_options {
        let pid = mode(field.at("namespace_options").at("pid"), options.pid)?;
        if pid == NamespaceMode::Target {
            return Err(field
                .at("namespace_options")
                .at("pid")
                .wrong("TARGET", "POD, CONTAINER or NODE for a pod"));
        }
        namespaces(field.at("namespace_options"), options)?;
    }
    user(field.at("run_as_user"), c.run_as_user.as_ref())?;
    group(field.at("run_as_group"), c.run_as_group.as_ref(), c.run_as_user.is_some())?;
    groups(field.at("supplemental_groups"), &c.supplemental_groups)?;
    policy(field.at("supplemental_groups_policy"), c.supplemental_groups_policy)?;
    seccomp(field.at("seccomp"), c.seccomp.as_ref())?;
    apparmor(field.at("apparmor"), c.apparmor.as_ref())?;
    selinux(field.at("selinux_options"), c.selinux_options.as_ref())
}

/// A container's security context.
pub(crate) fn container(field: Field<'_>, c: &LinuxContainerSecurityContext) -> Check {
    if let Some(options) = &c.namespace_options {
        namespaces(field.at("namespace_options"), options)?;
    }
    if let Some(change) = &c.capabilities {
        capabilities(field.at("capabilities"), change)?;
    }
    user(field.at("run_as_user"), c.run_as_user.as_ref())?;
    if !c.run_as_username.is_empty() {
        if c.run_as_user.is_some() {
            return Err(field.at("run_as_username").conflict("contradicts run_as_user: give one of the two"));
        }
        text::name(field.at("run_as_username"), &c.run_as_username)?;
    }
    let named = c.run_as_user.is_some() || !c.run_as_username.is_empty();
    group(field.at("run_as_group"), c.run_as_group.as_ref(), named)?;
    groups(field.at("supplemental_groups"), &c.supplemental_groups)?;
    policy(field.at("supplemental_groups_policy"), c.supplemental_groups_policy)?;
    paths(field.at("masked_paths"), &c.masked_paths)?;
    paths(field.at("readonly_paths"), &c.readonly_paths)?;
    seccomp(field.at("seccomp"), c.seccomp.as_ref())?;
    apparmor(field.at("apparmor"), c.apparmor.as_ref())?;
    selinux(field.at("selinux_options"), c.selinux_options.as_ref())
}

/// Modes that fit their kind.
pub(crate) fn namespaces(field: Field<'_>, options: &NamespaceOption) -> Check {
    for (kind, value) in [("network", options.network), ("ipc", options.ipc)] {
        if !matches!(mode(field.at(kind), value)?, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(field.at(kind).wrong(value, "POD or NODE (0 or 2)"));
        }
    }
    let target = mode(field.at("pid"), options.pid)? == NamespaceMode::Target;
    match (target, options.target_id.is_empty()) {
        (true, _) => id::lookup(field.at("target_id"), &options.target_id)?,
        (false, true) => {}
        (false, false) => return Err(field.at("target_id").conflict("needs pid: TARGET")),
    }
    match &options.userns_options {
        Some(user) => user_namespace(field.at("userns_options"), user),
        None => Ok(()),
    }
}

fn mode(field: Field<'_>, value: i32) -> Result<NamespaceMode, super::Invalid> {
    one_of(field, value, "POD, CONTAINER, NODE or TARGET (0 to 3)")
}

/// KEP-127: one range, from id 0 of the container, the same for users and groups, and never onto the node's root.
fn user_namespace(field: Field<'_>, user: &UserNamespace) -> Check {
    match mode(field.at("mode"), user.mode)? {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => return Ok(()),
        NamespaceMode::Node => return Err(field.at("uids").conflict("and gids contradict mode: NODE")),
        NamespaceMode::Pod => {}
        other => return Err(field.at("mode").wrong(other.as_str_name(), "POD or NODE")),
    }
    if user.uids.len() != 1 || user.uids != user.gids {
        return Err(field.at("uids").conflict("and gids must be one range each, the same for both"));
    }
    id_ranges(field.at("uids"), &user.uids)?;
    let range = &user.uids[0];
    if range.container_id != 0 {
        return Err(field
            .at("uids")
            .index(0)
            .at("container_id")
            .wrong(range.container_id, "0: root must be mapped"));
    }
    if range.host_id == 0 {
        return Err(field
            .at("uids")
            .index(0)
            .at("host_id")
            .wrong(0, "above 0: the node's root is never mapped"));
    }
    Ok(())
}

/// Ranges that neither end beyond the last id nor overlap (user_namespaces(7)).
pub(crate) fn id_ranges(field: Field<'_>, ranges: &[IdMapping]) -> Check {
    if ranges.len() > 340 {
        return Err(field.conflict(format_args!("has {} ranges: the kernel takes at most 340", ranges.len())));
    }
    for (i, r) in ranges.iter().enumerate() {
        let fits = |start: u32| start.checked_add(r.length).is_some();
        if r.length == 0 || !fits(r.host_id) || !fits(r.container_id) {
            return Err(field
                .index(i)
                .at("length")
                .wrong(r.length, "at least 1, and end below id 4294967295"));
        }
        let meets =
            |a: u32, b: u32, length: u32| a < b.saturating_add(length) && b < a.saturating_add(r.length);
        let overlap = |o: &IdMapping| {
            meets(r.host_id, o.host_id, o.length) || meets(r.container_id, o.container_id, o.length)
        };
        if ranges[..i].iter().any(overlap) {
            return Err(field.index(i).conflict("overlaps a range before it"));
        }
    }
    Ok(())
}

fn user(field: Field<'_>, user: Option<&Int64Value>) -> Check {
    user.map_or(Ok(()), |user| range(field, user.value, 0, ID_MAX))
}

fn group(field: Field<'_>, group: Option<&Int64Value>, has_user: bool) -> Check {
    let Some(group) = group else { return Ok(()) };
    if !has_user {
        return Err(field.conflict("needs a run_as_user"));
    }
    range(field, group.value, 0, ID_MAX)
}

fn groups(field: Field<'_>, groups: &[i64]) -> Check {
    if groups.len() > 65_536 {
        return Err(field.conflict(format_args!("has {} entries: setgroups(2) takes 65536", groups.len())));
    }
    groups.iter().enumerate().try_for_each(|(i, group)| range(field.index(i), *group, 0, ID_MAX))
}

fn policy(field: Field<'_>, value: i32) -> Check {
    one_of::<SupplementalGroupsPolicy>(field, value, "Merge or Strict (0 or 1)").map(|_| ())
}

fn paths(field: Field<'_>, paths: &[String]) -> Check {
    paths.iter().enumerate().try_for_each(|(i, path)| text::absolute(field.index(i), path))
}

fn capabilities(field: Field<'_>, change: &Capability) -> Check {
    let lists = [
        ("add_capabilities", &change.add_capabilities),
        ("drop_capabilities", &change.drop_capabilities),
        ("add_ambient_capabilities", &change.add_ambient_capabilities),
    ];
    for (name, list) in lists {
        for (i, given) in list.iter().enumerate() {
            let upper = given.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare != "ALL" && !CAPABILITIES.contains(&bare) {
                return Err(field.at(name).index(i).wrong(given, "a name of capabilities(7), or ALL"));
            }
        }
    }
    Ok(())
}

fn seccomp(field: Field<'_>, profile: Option<&SecurityProfile>) -> Check {
    match profile {
        Some(p) if kind(field, p)? == ProfileType::Localhost => {
            text::absolute(field.at("localhost_ref"), &p.localhost_ref)
        }
        _ => Ok(()),
    }
}

fn apparmor(field: Field<'_>, profile: Option<&SecurityProfile>) -> Check {
    match profile {
        Some(p) if kind(field, p)? == ProfileType::Localhost => {
            text::word(field.at("localhost_ref"), &p.localhost_ref)
        }
        _ => Ok(()),
    }
}

/// Parts of one label: a colon in another than the last would move the rest.
fn selinux(field: Field<'_>, options: Option<&SeLinuxOption>) -> Check {
    let Some(o) = options else { return Ok(()) };
    for (name, part) in [("user", &o.user), ("role", &o.role), ("type", &o.r#type), ("level", &o.level)] {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let level = |b: u8| name == "level" && b":,".contains(&b);
        if part.len() > 255 || !part.bytes().all(|b| fits(b) || level(b)) {
            return Err(field.at(name).wrong(part, "a part of an SELinux label"));
        }
    }
    Ok(())
}

fn kind(field: Field<'_>, profile: &SecurityProfile) -> Result<ProfileType, super::Invalid> {
    one_of(field.at("profile_type"), profile.profile_type, "RuntimeDefault, Unconfined or Localhost (0 to 2)")
}

/// Only knobs of namespaces that the pod owns (namespaces(7), ipc_namespaces(7)). A name is words joined by dots; a
/// slash within stands for a dot of an interface's name (sysctl(8)). It cannot leave /proc/sys.
pub(crate) fn sysctls(
    field: Field<'_>,
    sysctls: &HashMap<String, String>,
    options: &NamespaceOption,
) -> Check {
    for (key, value) in sysctls {
        let field = field.key(key);
        let word = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if !key.split(['.', '/']).all(word) {
            return Err(field.conflict("is no sysctl name: it must be words joined by dots"));
        }
        let (kind, mode) = owner(key, options).ok_or_else(|| {
            field.conflict(
                "is not namespaced: it must be net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*",
            )
        })?;
        if mode == NamespaceMode::Node as i32 {
            return Err(field.conflict(format_args!("would change the node: the pod has {kind}: NODE")));
        }
        if value.len() > 4096 || value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(field.wrong(value, "one line of at most 4096 bytes"));
        }
    }
    Ok(())
}

/// The kind of namespace that a sysctl belongs to, and the pod's mode of it.
fn owner(key: &str, options: &NamespaceOption) -> Option<(&'static str, i32)> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| key.starts_with(p));
    match key {
        _ if ipc => Some(("ipc", options.ipc)),
        _ if key.starts_with("net.") => Some(("network", options.network)),
        _ => None,
    }
}

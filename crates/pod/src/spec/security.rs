//! Capabilities, masked and read-only paths.

use api::cri::v1::{Capability as Change, LinuxContainerSecurityContext};
use oci_spec::runtime::Capability;

use super::SpecError;

/// What a container may do when nothing is asked: the set that Docker chose and images rely on.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// By number: capabilities(7), include/uapi/linux/capability.h.
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Kernel knobs and state that tell about or change the node.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/proc/kmsg",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A set of capabilities: bit N is capability number N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) struct Set(pub u64);

impl Set {
    fn with(self, capability: Capability) -> Self {
        Self(self.0 | bit(capability))
    }

    #[cfg(test)]
    fn without(self, capability: Capability) -> Self {
        Self(self.0 & !bit(capability))
    }

    pub(crate) fn contains(self, capability: Capability) -> bool {
        self.0 & bit(capability) != 0
    }

    /// Names for the specification.
    pub(crate) fn names(self) -> impl Iterator<Item = Capability> {
        BY_NUMBER.into_iter().filter(move |c| self.contains(*c))
    }

    pub(crate) fn from_names<'a>(names: impl IntoIterator<Item = &'a Capability>) -> Self {
        names.into_iter().fold(Self::default(), |set, c| set.with(*c))
    }
}

/// Capability sets of a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Bounding, permitted and effective.
    pub all: Set,
    /// Ambient and inheritable; empty unless asked for (CVE-2022-24769).
    pub ambient: Set,
}

/// Applies the request's changes to the default set. Adding wins over dropping `ALL`; naming one in both drops it.
///
/// `own` is what this daemon may hand on: `ALL` means all of those, and asking by name for another is refused.
pub(crate) fn capabilities(
    context: &LinuxContainerSecurityContext,
    own: Set,
) -> Result<Capabilities, SpecError> {
    if context.privileged {
        return Ok(Capabilities { all: own, ambient: Set::default() });
    }
    let empty = Change::default();
    let change = context.capabilities.as_ref().unwrap_or(&empty);
    let base = if names_all(&change.add_capabilities) {
        own
    } else if names_all(&change.drop_capabilities) {
        Set::default()
    } else {
        Set(Set::from_names(&DEFAULT).0 & own.0)
    };
    let ambient = parse_list(&change.add_ambient_capabilities, own)?;
    let added = Set(base.0 | parse_list(&change.add_capabilities, own)?.0 | ambient.0);
    let dropped = parse_list(&change.drop_capabilities, Set(u64::MAX))?;
    let all = Set(added.0 & !dropped.0);
    Ok(Capabilities { all, ambient: Set(ambient.0 & all.0) })
}

fn names_all(list: &[String]) -> bool {
    list.iter().any(|name| bare(name) == "ALL")
}

fn parse_list(list: &[String], own: Set) -> Result<Set, SpecError> {
    let mut set = Set::default();
    for name in list.iter().filter(|name| bare(name) != "ALL") {
        let capability = parse(name).ok_or_else(|| SpecError::Capability { name: name.clone() })?;
        if !own.contains(capability) {
            return Err(SpecError::CapabilityNotHeld { name: name.clone() });
        }
        set = set.with(capability);
    }
    Ok(set)
}

fn bare(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn parse(name: &str) -> Option<Capability> {
    let name = format!("CAP_{}", bare(name));
    BY_NUMBER.into_iter().find(|c| serde_json::to_value(c).is_ok_and(|v| v == name.as_str()))
}

fn bit(capability: Capability) -> u64 {
    BY_NUMBER.iter().position(|c| *c == capability).map_or(0, |n| 1 << n)
}

/// The bounding set of this process: what it can hand on. All, when /proc does not tell.
pub(crate) fn own() -> Set {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let all = (1 << BY_NUMBER.len()) - 1;
    Set(line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).map_or(all, |own| own & all))
}

/// Masked and read-only paths: none for a privileged container, else those of the request.
///
/// A request without any gets the defaults, but for a pod with a user namespace of its own: there the kubelet's
/// `procMount: Unmasked` arrives as two empty lists (KEP-4265), and the kernel guards those files by ownership.
pub(crate) fn paths(
    context: &LinuxContainerSecurityContext,
    user_namespace: bool,
) -> (Vec<String>, Vec<String>) {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let (masked, read_only) = (&context.masked_paths, &context.readonly_paths);
    if context.privileged {
        (Vec::new(), Vec::new())
    } else if masked.is_empty() && read_only.is_empty() && !user_namespace {
        (owned(&MASKED), owned(&READ_ONLY))
    } else {
        (masked.clone(), read_only.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Set = Set((1 << 41) - 1);

    fn asked(add: &[&str], drop: &[&str], ambient: &[&str]) -> LinuxContainerSecurityContext {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let capabilities = Some(Change {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        });
        LinuxContainerSecurityContext { capabilities, ..Default::default() }
    }

    fn set(context: &LinuxContainerSecurityContext) -> Set {
        capabilities(context, EVERY).unwrap().all
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(bit(Capability::Chown), 1);
        assert_eq!(bit(Capability::SysAdmin), 1 << 21);
        assert_eq!(bit(Capability::CheckpointRestore), 1 << 40);
        assert_eq!(Set::from_names(&DEFAULT).0, 0xa804_25fb, "CapEff of a default Docker container");
    }

    #[test]
    fn adding_and_dropping() {
        let default = Set::from_names(&DEFAULT);
        assert_eq!(set(&asked(&[], &[], &[])), default);
        assert_eq!(set(&asked(&["NET_ADMIN"], &[], &[])), default.with(Capability::NetAdmin));
        assert_eq!(set(&asked(&["cap_net_admin"], &["ALL"], &[])), Set(bit(Capability::NetAdmin)));
        assert_eq!(set(&asked(&["ALL"], &["SYS_ADMIN"], &[])), EVERY.without(Capability::SysAdmin));
        assert_eq!(set(&asked(&[], &["CHOWN"], &[])), default.without(Capability::Chown));
        assert_eq!(set(&asked(&["CHOWN"], &["CHOWN"], &[])), default.without(Capability::Chown));
    }

    #[test]
    fn ambient_only_when_asked() {
        assert_eq!(capabilities(&asked(&["ALL"], &[], &[]), EVERY).unwrap().ambient, Set::default());
        let both = capabilities(&asked(&[], &["ALL"], &["NET_RAW"]), EVERY).unwrap();
        assert_eq!((both.all, both.ambient), (Set(bit(Capability::NetRaw)), Set(bit(Capability::NetRaw))));
    }

    #[test]
    fn unknown_and_unheld_names_are_refused() {
        assert!(matches!(capabilities(&asked(&["FLY"], &[], &[]), EVERY), Err(SpecError::Capability { .. })));
        let own = EVERY.without(Capability::SysResource);
        let refused = capabilities(&asked(&["SYS_RESOURCE"], &[], &[]), own);
        assert!(matches!(refused, Err(SpecError::CapabilityNotHeld { .. })));
        assert_eq!(capabilities(&asked(&["ALL"], &["SYS_RESOURCE"], &[]), own).unwrap().all, own);
    }

    #[test]
    fn masks_follow_the_request_and_privilege() {
        let default = LinuxContainerSecurityContext::default();
        assert_eq!(paths(&default, false).0.len(), MASKED.len());
        assert_eq!(paths(&default, true), (vec![], vec![]));
        let own = LinuxContainerSecurityContext { masked_paths: vec!["/x".into()], ..Default::default() };
        assert_eq!(paths(&own, false), (vec!["/x".to_owned()], vec![]));
        let privileged = LinuxContainerSecurityContext { privileged: true, ..own };
        assert_eq!(paths(&privileged, false), (vec![], vec![]));
    }
}

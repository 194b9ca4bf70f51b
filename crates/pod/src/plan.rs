//! Lowers a specification and its descriptors to what the shim takes: numbers and indices, no OCI parsing left.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::cri::v1::NamespaceMode;
use api::shim::v1::{self as shim, ContainerPlan, container_plan::PidMode, mount::Source};
use oci_spec::runtime::{Capabilities, LinuxDeviceCgroup, LinuxResources, Process, Spec};

use crate::container::ExecTemplate;
use crate::spec::Built;
use crate::spec::mounts::{self, Entry};
use crate::spec::security::Set;

/// A plan and the descriptors its indices mean.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub plan: ContainerPlan,
    pub fds: Vec<OwnedFd>,
}

/// Descriptors of a frame, in order.
#[derive(Debug, Default)]
struct Fds(Vec<OwnedFd>);

impl Fds {
    fn push(&mut self, fd: OwnedFd) -> u32 {
        self.0.push(fd);
        u32::try_from(self.0.len() - 1).expect("a process has fewer than 2^32 descriptors")
    }
}

/// What the specification does not say.
#[derive(Debug)]
pub(crate) struct Extra {
    pub id: String,
    pub rootfs: OwnedFd,
    pub log: Option<OwnedFd>,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Directory of CRIU's images and descriptors.json, for a container to be restored.
    pub restore: Option<(OwnedFd, String)>,
}

/// Lowers `built`.
pub(crate) fn lower(built: Built, extra: Extra) -> Lowered {
    let mut fds = Fds::default();
    let Built { spec, mounts, nodes, filter, pid, target, privileged, .. } = built;
    let program = filter.map_or_else(Vec::new, |f| f.program.to_vec());
    let process = spec.process().as_ref().map(|p| process(p, program));
    let linux = spec.linux().clone().unwrap_or_default();
    let resources = linux.resources().clone().unwrap_or_default();
    let plan = ContainerPlan {
        cgroup: extra.id.clone(),
        id: extra.id,
        process,
        pid_mode: pid_mode(pid) as i32,
        target_id: target,
        rootfs_fd: fds.push(extra.rootfs),
        readonly_rootfs: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        mounts: mounts.into_iter().map(|entry| mount(entry, &mut fds)).collect(),
        devices: nodes.into_iter().map(|node| device(node, &mut fds)).collect(),
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        device_rules: resources.devices().iter().flatten().map(device_rule).collect(),
        resources: Some(lower_resources(&resources)),
        privileged_devices: privileged,
        stdio: Some(shim::Stdio {
            stdin: extra.stdin,
            stdin_once: extra.stdin_once,
            log_fd: extra.log.map(|log| fds.push(log)),
        }),
        restore: extra.restore.map(|(images, descriptors)| shim::RestorePlan {
            images_fd: fds.push(images),
            descriptors,
            tcp_established: false,
        }),
    };
    Lowered { plan, fds: fds.0 }
}

fn pid_mode(mode: NamespaceMode) -> PidMode {
    match mode {
        NamespaceMode::Pod => PidMode::Pod,
        NamespaceMode::Container => PidMode::Container,
        NamespaceMode::Node => PidMode::Node,
        NamespaceMode::Target => PidMode::Target,
    }
}

/// What an exec takes over from the container's own process.
pub(crate) fn template(built: &Built) -> ExecTemplate {
    let program = built.filter.as_ref().map(|filter| Arc::clone(&filter.program));
    built.spec.process().as_ref().map(|spec| (process(spec, Vec::new()), program))
}

/// A process, also of an exec, with its filter.
pub(crate) fn process(spec: &Process, seccomp: Vec<u8>) -> shim::Process {
    let set = |names: &Option<Capabilities>| Set::from_names(names.iter().flatten()).0;
    let capabilities = spec.capabilities().as_ref().map(|c| shim::Capabilities {
        bounding: set(c.bounding()),
        effective: set(c.effective()),
        permitted: set(c.permitted()),
        inheritable: set(c.inheritable()),
        ambient: set(c.ambient()),
    });
    let user = spec.user();
    shim::Process {
        args: spec.args().clone().unwrap_or_default(),
        env: spec.env().clone().unwrap_or_default(),
        cwd: spec.cwd().to_string_lossy().into_owned(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: 0,
        capabilities,
        no_new_privileges: spec.no_new_privileges().unwrap_or(false),
        seccomp,
        rlimits: Vec::new(),
        oom_score_adj: spec.oom_score_adj(),
        // CRI derives the score from the pod's class; nobody asked for exactly this number.
        oom_score_adj_clamp: true,
        apparmor_profile: spec.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: spec.selinux_label().clone().unwrap_or_default(),
        tty: spec.terminal().unwrap_or(false),
    }
}

fn mount(entry: Entry, fds: &mut Fds) -> shim::Mount {
    let options = entry.mount.options().clone().unwrap_or_default();
    let source = match entry.tree {
        Some(tree) => Source::TreeFd(fds.push(tree)),
        None => Source::Filesystem(shim::Filesystem {
            r#type: entry.mount.typ().clone().unwrap_or_default(),
            options: mounts::filesystem_options(&options),
            attributes: u64::from(mounts::option_flags(&options).bits()),
        }),
    };
    let host = entry.mount.source().as_ref().filter(|_| matches!(source, Source::TreeFd(_)));
    shim::Mount {
        destination: entry.mount.destination().to_string_lossy().into_owned(),
        file: entry.file,
        pod_shm: entry.pod_shm,
        host_path: host.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
        read_only: options.iter().any(|o| o == "ro" || o == "rro"),
        source: Some(source),
    }
}

fn device(node: crate::spec::devices::Node, fds: &mut Fds) -> shim::Device {
    let device = &node.device;
    shim::Device {
        path: device.path().to_string_lossy().into_owned(),
        r#type: device.typ().as_str().to_owned(),
        major: u32::try_from(device.major()).unwrap_or(0),
        minor: u32::try_from(device.minor()).unwrap_or(0),
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        node_fd: node.bind.map(|fd| fds.push(fd)),
    }
}

fn device_rule(rule: &LinuxDeviceCgroup) -> shim::DeviceRule {
    shim::DeviceRule {
        allow: rule.allow(),
        r#type: rule.typ().unwrap_or_default().as_str().to_owned(),
        major: rule.major().and_then(|n| u32::try_from(n).ok()),
        minor: rule.minor().and_then(|n| u32::try_from(n).ok()),
        access: rule.access().clone().unwrap_or_default(),
    }
}

/// Limits; 0 or empty where the specification has none.
pub(crate) fn lower_resources(given: &LinuxResources) -> shim::Resources {
    let cpu = given.cpu().clone().unwrap_or_default();
    let memory = given.memory().unwrap_or_default();
    let hugepages = given.hugepage_limits().iter().flatten().map(|limit| shim::HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or(0),
    });
    shim::Resources {
        cpu_period: cpu.period().and_then(|n| i64::try_from(n).ok()).unwrap_or(0),
        cpu_quota: cpu.quota().unwrap_or(0),
        cpu_shares: cpu.shares().unwrap_or(0),
        cpuset_cpus: cpu.cpus().clone().unwrap_or_default(),
        cpuset_mems: cpu.mems().clone().unwrap_or_default(),
        memory_limit: memory.limit().unwrap_or(0),
        memory_swap_limit: memory.swap().unwrap_or(0),
        memory_low: memory.reservation().unwrap_or(0),
        pids_limit: given.pids().as_ref().map_or(0, oci_spec::runtime::LinuxPids::limit),
        hugepages: hugepages.collect(),
        unified: given.unified().clone().unwrap_or_default(),
        oom_score_adj: None,
    }
}

/// The process of a specification kept as JSON.
pub(crate) fn spec_of(json: &[u8]) -> Option<Spec> {
    serde_json::from_slice(json).ok()
}

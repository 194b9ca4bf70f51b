//! A specification as a whole; its parts have tests of their own.

use std::os::fd::AsFd;

use api::cri::v1::{
    Capability, Int64Value, KeyValue, LinuxContainerConfig, LinuxSandboxSecurityContext, NamespaceOption,
};

use super::*;

struct Place {
    dir: tempfile::TempDir,
    rootfs: std::fs::File,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["rootfs", "pod/shm"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for file in ["hosts", "hostname", "resolv.conf"] {
            std::fs::write(dir.path().join("pod").join(file), "").unwrap();
        }
        let rootfs = std::fs::File::open(dir.path().join("rootfs")).unwrap();
        Self { dir, rootfs }
    }

    fn build(&self, pod: &PodSandboxConfig, container: &ContainerConfig) -> Result<Built, SpecError> {
        let files = PodFiles { dir: self.dir.path().join("pod"), node_shm: false, node_hostname: false };
        let image = ImageProcess { entrypoint: vec!["/bin/app".into()], ..Default::default() };
        let input = Input {
            pod,
            container,
            image: &image,
            rootfs: self.rootfs.as_fd(),
            files: &files,
            user_namespace: None,
            cgroup: "/meridian/p/c",
            pins: std::path::Path::new("/run/ns"),
            own_capabilities: Set((1 << 41) - 1),
            image_volumes: None,
        };
        build(input, &seccomp::Filters::default())
    }
}

/// Cloning a mount takes CAP_SYS_ADMIN.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: cloning mounts needs root");
    }
    root
}

fn container(context: LinuxContainerSecurityContext) -> ContainerConfig {
    ContainerConfig {
        envs: vec![KeyValue { key: "K".into(), value: b"v".to_vec() }],
        linux: Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn an_ordinary_container() {
    if !is_root() {
        return;
    }
    let pod = PodSandboxConfig { hostname: "web".into(), ..Default::default() };
    let context = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: 1000 }),
        capabilities: Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() }),
        seccomp: Some(SecurityProfile::default()),
        no_new_privs: true,
        readonly_rootfs: true,
        ..Default::default()
    };
    let built = Place::new().build(&pod, &container(context)).unwrap();
    let process = built.spec.process().clone().unwrap();
    assert_eq!(process.args().clone().unwrap(), ["/bin/app"]);
    assert!(process.env().clone().unwrap().contains(&"K=v".to_owned()));
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 0));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert!(built.filter.is_some());
    let lowered = crate::plan::lower(built, extra(&Place::new()));
    let process = lowered.plan.process.unwrap();
    assert_eq!(process.capabilities.unwrap().bounding, 0);
    assert!(lowered.plan.readonly_rootfs && !process.seccomp.is_empty());
    let destinations: Vec<_> = lowered.plan.mounts.iter().map(|m| m.destination.as_str()).collect();
    let expected = [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/dev/shm",
    ];
    assert_eq!(destinations, expected);
    assert!(lowered.plan.mounts.iter().filter(|m| m.pod_shm).count() == 1);
    assert!(!lowered.plan.masked_paths.is_empty());
}

#[test]
fn volumes_replace_standard_mounts_and_come_parents_first() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let volume = |path: &str| api::cri::v1::Mount {
        container_path: path.into(),
        host_path: place.dir.path().join("pod").to_string_lossy().into_owned(),
        ..Default::default()
    };
    let config = ContainerConfig {
        mounts: vec![volume("/a/b"), volume("/dev/shm"), volume("/a")],
        ..container(Default::default())
    };
    let built = place.build(&PodSandboxConfig::default(), &config).unwrap();
    let list: Vec<_> =
        built.mounts.iter().map(|e| e.mount.destination().to_str().unwrap().to_owned()).collect();
    let tail: Vec<_> = list.iter().rev().take(3).rev().map(String::as_str).collect();
    assert_eq!(tail, ["/a", "/a/b", "/dev/shm"].map(|p| p).into_iter().collect::<Vec<_>>());
    assert_eq!(list.iter().filter(|p| *p == "/dev/shm").count(), 1);
}

#[test]
fn a_privileged_container_has_no_masks_and_all_devices() {
    if !is_root() {
        return;
    }
    let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let built = Place::new().build(&PodSandboxConfig::default(), &container(context)).unwrap();
    assert!(built.privileged && built.filter.is_none());
    let linux = built.spec.linux().clone().unwrap();
    assert_eq!(linux.masked_paths().clone().unwrap(), Vec::<String>::new());
    let lowered = crate::plan::lower(built, extra(&Place::new()));
    assert_eq!(lowered.plan.process.unwrap().capabilities.unwrap().bounding, (1 << 41) - 1);
}

#[test]
fn node_namespaces_are_not_listed() {
    let options = NamespaceOption {
        network: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        ..Default::default()
    };
    let pod = PodSandboxConfig {
        linux: Some(api::cri::v1::LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    if !is_root() {
        return;
    }
    let built = Place::new().build(&pod, &container(Default::default())).unwrap();
    let kinds: Vec<_> = built
        .spec
        .linux()
        .clone()
        .unwrap()
        .namespaces()
        .clone()
        .unwrap()
        .iter()
        .map(LinuxNamespace::typ)
        .collect();
    assert!(!kinds.contains(&LinuxNamespaceType::Network) && !kinds.contains(&LinuxNamespaceType::Ipc));
    assert!(kinds.contains(&LinuxNamespaceType::Time));
}

fn extra(place: &Place) -> crate::plan::Extra {
    crate::plan::Extra {
        id: "c".into(),
        rootfs: place.rootfs.try_clone().unwrap().into(),
        log: None,
        stdin: false,
        stdin_once: false,
        restore: None,
    }
}

//! Every rule as a row: what is done to a good request, and the words of the complaint.

use std::collections::HashMap;

use api::cri::v1::*;

use super::{Check, Field, checkpoint, container, id, sandbox};

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "2f1d0c".into(),
            namespace: "shop".into(),
            attempt: 0,
        }),
        hostname: "web".into(),
        log_directory: "/var/log/pods/shop_web_2f1d0c".into(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into(), "fe80::1%eth0".into()],
            searches: vec!["shop.svc.cluster.local".into(), ".".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }],
        labels: HashMap::from([("app".into(), "web".into())]),
        annotations: HashMap::from([("note".into(), "two\nlines".into())]),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/pod2f1d0c".into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption::default()),
                run_as_user: Some(Int64Value { value: 1000 }),
                run_as_group: Some(Int64Value { value: 1000 }),
                ..Default::default()
            }),
            sysctls: HashMap::from([
                ("net.ipv4.ip_local_port_range".into(), "1024\t65535".into()),
                ("net.ipv4.conf.eth0/1.rp_filter".into(), "1".into()),
                ("kernel.shm_rmid_forced".into(), "1".into()),
            ]),
            ..Default::default()
        }),
        windows: None,
    }
}

fn ctr() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 3 }),
        image: Some(ImageSpec { image: "registry.example/busybox:1".into(), ..Default::default() }),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec!["echo one\necho two".into()],
        working_dir: "/work".into(),
        envs: vec![KeyValue { key: "CERT".into(), value: b"line 1\nline 2".to_vec() }],
        mounts: vec![Mount {
            container_path: "/data".into(),
            host_path: "/srv/data".into(),
            ..Default::default()
        }],
        devices: vec![Device {
            container_path: "/dev/fuse".into(),
            host_path: "/dev/fuse".into(),
            permissions: "mrw".into(),
        }],
        log_path: "main/3.log".into(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 2,
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 64 << 20,
                oom_score_adj: -997,
                cpuset_cpus: "0-3,7".into(),
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
                unified: HashMap::from([("memory.high".into(), "1000000".into())]),
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: vec!["NET_ADMIN".into(), "cap_sys_time".into()],
                    drop_capabilities: vec!["ALL".into()],
                    ..Default::default()
                }),
                masked_paths: vec!["/proc/kcore".into()],
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The field at fault, words of the complaint, and what is done to the good value.
type Row<T> = (&'static str, &'static str, fn(&mut T));

/// Runs a table: each row spoils a good value; the complaint must name the field and hold the second text.
fn table<T>(good: fn() -> T, check: fn(&T) -> Check, rows: &[Row<T>]) {
    check(&good()).expect("the request that the rows start from is good");
    for (field, words, spoil) in rows {
        let mut value = good();
        spoil(&mut value);
        let complaint = check(&value).expect_err(&format!("{field} ({words}) must be refused")).to_string();
        assert!(complaint.starts_with(&format!("{field} ")), "{complaint:?} does not name {field}");
        assert!(complaint.contains(words), "{complaint:?} does not say {words:?}");
        assert!(!complaint.contains(['\n', '\0']), "{complaint:?} is not one line");
        assert!(complaint.len() < 450, "{complaint:?} is too long to read");
    }
}

macro_rules! meta {
    ($c:ident . $f:ident = $v:expr) => {
        $c.metadata.as_mut().unwrap().$f = $v
    };
}
macro_rules! linux {
    ($c:ident . $f:ident = $v:expr) => {
        $c.linux.as_mut().unwrap().$f = $v
    };
}
macro_rules! secure {
    ($c:ident . $f:ident = $v:expr) => {
        $c.linux.as_mut().unwrap().security_context.as_mut().unwrap().$f = $v
    };
}
macro_rules! limit {
    ($c:ident . $f:ident = $v:expr) => {
        $c.linux.as_mut().unwrap().resources.as_mut().unwrap().$f = $v
    };
}

fn int(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

fn modes(network: i32, pid: i32, ipc: i32, target: &str) -> Option<NamespaceOption> {
    Some(NamespaceOption { network, pid, ipc, target_id: target.into(), userns_options: None })
}

fn userns(mode: NamespaceMode, container_id: u32, host_id: u32, length: u32) -> Option<NamespaceOption> {
    let range = vec![IdMapping { host_id, container_id, length }];
    let user = UserNamespace { mode: mode as i32, uids: range.clone(), gids: range };
    Some(NamespaceOption { userns_options: Some(user), ..Default::default() })
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn pods() {
    table(
        pod,
        |c| sandbox::config(Field::of("config"), c),
        &[
            ("config.metadata", "is missing", |c| c.metadata = None),
            ("config.metadata.name", "is missing", |c| meta!(c.name = String::new())),
            ("config.metadata.name", r#""../../etc""#, |c| meta!(c.name = "../../etc".into())),
            ("config.metadata.name", r#""a/b""#, |c| meta!(c.name = "a/b".into())),
            ("config.metadata.name", r#""..""#, |c| meta!(c.name = "..".into())),
            ("config.metadata.name", "100002 bytes", |c| meta!(c.name = "x".repeat(100_000))),
            ("config.metadata.name", r"a\nb", |c| meta!(c.name = "a\nb".into())),
            ("config.metadata.uid", "is missing", |c| meta!(c.uid = String::new())),
            ("config.metadata.uid", r"a\0b", |c| meta!(c.uid = "a\0b".into())),
            ("config.metadata.namespace", "is missing", |c| meta!(c.namespace = String::new())),
            ("config.metadata.namespace", "letter or digit", |c| meta!(c.namespace = "-x".into())),
            ("config.hostname", r"web\n127.0.0.1 bank", |c| c.hostname = "web\n127.0.0.1 bank".into()),
            ("config.hostname", "64 bytes", |c| c.hostname = "h".repeat(65)),
            ("config.hostname", "host name", |c| c.hostname = "a..b".into()),
            ("config.hostname", "host name", |c| c.hostname = "-a".into()),
            ("config.log_directory", "absolute", |c| c.log_directory = "var/log".into()),
            ("config.log_directory", "..", |c| c.log_directory = "/var/log/../../etc".into()),
            ("config.log_directory", "4095", |c| c.log_directory = "/x".repeat(3000)),
            ("config.dns_config.servers[0]", "IP address", |c| {
                c.dns_config.as_mut().unwrap().servers[0] = "1.2.3.4\noptions rotate".into();
            }),
            ("config.dns_config.servers[1]", "IP address", |c| {
                c.dns_config.as_mut().unwrap().servers[1] = "fe80::1%".into();
            }),
            ("config.dns_config.searches[0]", "white space", |c| {
                c.dns_config.as_mut().unwrap().searches[0] = "a b".into();
            }),
            ("config.dns_config.options[0]", "white space", |c| {
                c.dns_config.as_mut().unwrap().options[0] = "ndots:5\nnameserver 6.6.6.6".into();
            }),
            ("config.port_mappings[0].protocol", "TCP", |c| c.port_mappings[0].protocol = 9),
            ("config.port_mappings[0].container_port", "1 to 65535", |c| {
                c.port_mappings[0].container_port = 0
            }),
            ("config.port_mappings[0].container_port", "-1", |c| c.port_mappings[0].container_port = -1),
            ("config.port_mappings[0].host_port", "65535", |c| c.port_mappings[0].host_port = 65_536),
            ("config.port_mappings[0].host_ip", "IP address", |c| {
                c.port_mappings[0].host_ip = "localhost".into()
            }),
            ("config.port_mappings[1].host_port", "once", |c| {
                c.port_mappings.push(c.port_mappings[0].clone())
            }),
            ("config.labels[\"a\\nb\"]", "key", |c| drop(c.labels.insert("a\nb".into(), String::new()))),
            ("config.annotations", "524288", |c| drop(c.annotations.insert("a".into(), "x".repeat(1 << 20)))),
            ("config.windows", "Linux", |c| c.windows = Some(WindowsPodSandboxConfig::default())),
            ("config.linux.cgroup_parent", "..", |c| linux!(c.cgroup_parent = "/a/../../b".into())),
            ("config.linux.cgroup_parent", "absolute", |c| linux!(c.cgroup_parent = "pods".into())),
            ("config.linux.cgroup_parent", "4095", |c| linux!(c.cgroup_parent = "/a".repeat(2500))),
            ("config.linux.security_context.run_as_user", "-1", |c| secure!(c.run_as_user = int(-1))),
            ("config.linux.security_context.run_as_user", "4294967296", |c| {
                secure!(c.run_as_user = int(1 << 32))
            }),
            ("config.linux.security_context.run_as_group", "run_as_user", |c| secure!(c.run_as_user = None)),
            ("config.linux.security_context.supplemental_groups[1]", "2147483647", |c| {
                secure!(c.supplemental_groups = vec![1, i64::MAX]);
            }),
            ("config.linux.security_context.supplemental_groups_policy", "Strict", |c| {
                secure!(c.supplemental_groups_policy = 2);
            }),
            ("config.linux.security_context.seccomp.profile_type", "Localhost", |c| {
                secure!(c.seccomp = Some(SecurityProfile { profile_type: 7, localhost_ref: String::new() }));
            }),
            ("config.linux.security_context.namespace_options.network", "NODE", |c| {
                secure!(c.namespace_options = modes(1, 0, 0, ""));
            }),
            ("config.linux.security_context.namespace_options.ipc", "NODE", |c| {
                secure!(c.namespace_options = modes(0, 0, 3, ""));
            }),
            ("config.linux.security_context.namespace_options.pid", "TARGET", |c| {
                secure!(c.namespace_options = modes(0, 3, 0, "abc"));
            }),
            ("config.linux.security_context.namespace_options.pid", "77", |c| {
                secure!(c.namespace_options = modes(0, 77, 0, ""));
            }),
            ("config.linux.security_context.namespace_options.target_id", "TARGET", |c| {
                secure!(c.namespace_options = modes(0, 0, 0, "abc"));
            }),
            ("config.linux.security_context.namespace_options.userns_options.mode", "POD or NODE", |c| {
                secure!(c.namespace_options = userns(NamespaceMode::Container, 0, 100_000, 65_536));
            }),
            ("config.linux.security_context.namespace_options.userns_options.uids", "NODE", |c| {
                secure!(c.namespace_options = userns(NamespaceMode::Node, 0, 100_000, 65_536));
            }),
            (
                "config.linux.security_context.namespace_options.userns_options.uids[0].container_id",
                "root",
                |c| {
                    secure!(c.namespace_options = userns(NamespaceMode::Pod, 1, 100_000, 65_536));
                },
            ),
            ("config.linux.security_context.namespace_options.userns_options.uids[0].host_id", "root", |c| {
                secure!(c.namespace_options = userns(NamespaceMode::Pod, 0, 0, 65_536));
            }),
            (
                "config.linux.security_context.namespace_options.userns_options.uids[0].length",
                "at least 1",
                |c| {
                    secure!(c.namespace_options = userns(NamespaceMode::Pod, 0, 100_000, 0));
                },
            ),
            (
                "config.linux.security_context.namespace_options.userns_options.uids[0].length",
                "4294967295",
                |c| {
                    secure!(c.namespace_options = userns(NamespaceMode::Pod, 0, 100_000, u32::MAX));
                },
            ),
            ("config.linux.security_context.namespace_options.userns_options.uids", "the same", |c| {
                let mut modes = userns(NamespaceMode::Pod, 0, 100_000, 65_536);
                modes.as_mut().unwrap().userns_options.as_mut().unwrap().gids[0].host_id = 200_000;
                secure!(c.namespace_options = modes);
            }),
            ("config.linux.sysctls[\"kernel.core_pattern\"]", "not namespaced", |c| {
                linux!(c.sysctls = sysctl("kernel.core_pattern", "|/bin/x"));
            }),
            ("config.linux.sysctls[\"net.//.//.kernel.core_pattern\"]", "words", |c| {
                linux!(c.sysctls = sysctl("net.//.//.kernel.core_pattern", "|/bin/x"));
            }),
            ("config.linux.sysctls[\"net..ipv4\"]", "words", |c| {
                linux!(c.sysctls = sysctl("net..ipv4", "1"))
            }),
            ("config.linux.sysctls[\"net.core.x=1\\n\"]", "words", |c| {
                linux!(c.sysctls = sysctl("net.core.x=1\n", "1"))
            }),
            ("config.linux.sysctls[\"net.core.somaxconn\"]", "one line", |c| {
                linux!(c.sysctls = sysctl("net.core.somaxconn", "1\n2"));
            }),
            ("config.linux.sysctls[\"net.core.somaxconn\"]", "network: NODE", |c| {
                linux!(c.sysctls = sysctl("net.core.somaxconn", "1"));
                secure!(c.namespace_options = modes(2, 0, 0, ""));
            }),
            ("config.linux.sysctls[\"kernel.shm_rmid_forced\"]", "ipc: NODE", |c| {
                linux!(c.sysctls = sysctl("kernel.shm_rmid_forced", "1"));
                secure!(c.namespace_options = modes(0, 0, 2, ""));
            }),
        ],
    );
}

fn sysctl(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.into(), value.into())])
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn containers() {
    table(
        ctr,
        |c| container::config(Field::of("config"), c),
        &[
            ("config.metadata", "is missing", |c| c.metadata = None),
            ("config.metadata.name", "is missing", |c| meta!(c.name = String::new())),
            ("config.metadata.name", "letters", |c| meta!(c.name = "a/../b".into())),
            ("config.image", "is missing", |c| c.image = None),
            ("config.image.image", "is missing", |c| c.image = Some(ImageSpec::default())),
            ("config.command[0]", "NUL", |c| c.command[0] = "/bin/sh\0".into()),
            ("config.args[0]", "131071", |c| c.args[0] = "x".repeat(131_072)),
            ("config.envs", "execve(2)", |c| c.args = vec!["x".repeat(131_071); 17]),
            ("config.working_dir", "absolute", |c| c.working_dir = "work".into()),
            ("config.working_dir", "..", |c| c.working_dir = "/proc/self/fd/7/../..".into()),
            ("config.envs[0].key", "'='", |c| c.envs[0].key = "A=B".into()),
            ("config.envs[0].key", "name", |c| c.envs[0].key = String::new()),
            ("config.envs[0].key", r"A\nB", |c| c.envs[0].key = "A\nB".into()),
            ("config.envs[0].value", "UTF-8", |c| c.envs[0].value = vec![b'a', 0xff]),
            ("config.envs[0].value", "NUL", |c| c.envs[0].value = b"a\0b".to_vec()),
            ("config.envs[1].value", "one line", |c| {
                c.envs.push(KeyValue { key: "HOME".into(), value: b"/\nroot::0:0::/:/bin/sh".to_vec() });
            }),
            ("config.mounts[0].container_path", "is missing", |c| c.mounts[0].container_path = String::new()),
            ("config.mounts[0].container_path", "absolute", |c| c.mounts[0].container_path = "data".into()),
            ("config.mounts[0].container_path", "below the root", |c| {
                c.mounts[0].container_path = "//".into()
            }),
            ("config.mounts[0].container_path", "..", |c| c.mounts[0].container_path = "/../../etc".into()),
            ("config.mounts[0].host_path", "is missing", |c| c.mounts[0].host_path = String::new()),
            ("config.mounts[0].host_path", "..", |c| c.mounts[0].host_path = "/srv/../etc".into()),
            ("config.mounts[1]", "no other", |c| c.mounts.push(c.mounts[0].clone())),
            ("config.mounts[0].image", "host_path", |c| {
                c.mounts[0].image = Some(ImageSpec { image: "x".into(), ..Default::default() });
            }),
            ("config.mounts[0].image_sub_path", "relative", |c| {
                c.mounts[0] = Mount {
                    container_path: "/model".into(),
                    image: Some(ImageSpec { image: "x".into(), ..Default::default() }),
                    image_sub_path: "../../etc".into(),
                    readonly: true,
                    ..Default::default()
                };
            }),
            ("config.mounts[0].readonly", "must be true", |c| c.mounts[0] = image_volume(false, 0)),
            ("config.mounts[0].propagation", "nothing is mounted below", |c| {
                c.mounts[0] = image_volume(true, 1)
            }),
            ("config.mounts[0].propagation", "PROPAGATION_PRIVATE", |c| c.mounts[0].propagation = 3),
            ("config.mounts[0].recursive_read_only", "readonly", |c| c.mounts[0].recursive_read_only = true),
            ("config.mounts[0].recursive_read_only", "PROPAGATION_HOST_TO_CONTAINER", |c| {
                c.mounts[0].readonly = true;
                c.mounts[0].recursive_read_only = true;
                c.mounts[0].propagation = 1;
            }),
            ("config.mounts[0].mount_options[0]", "noexec", |c| {
                c.mounts[0].mount_options = vec!["suid".into()]
            }),
            ("config.mounts[0].mount_options[1]", "once", |c| {
                c.mounts[0].mount_options = vec!["nodev".into(), "nodev".into()];
            }),
            ("config.mounts[0].uidMappings", "together", |c| {
                c.mounts[0].uid_mappings = vec![IdMapping { host_id: 1, container_id: 0, length: 1 }];
            }),
            ("config.mounts[0].uidMappings[1]", "overlaps", |c| {
                let range = IdMapping { host_id: 1, container_id: 0, length: 10 };
                c.mounts[0].uid_mappings = vec![range, range];
                c.mounts[0].gid_mappings = vec![range];
            }),
            ("config.devices[0].host_path", "..", |c| c.devices[0].host_path = "/dev/../etc".into()),
            ("config.devices[0].permissions", "rwm", |c| c.devices[0].permissions = "rwx".into()),
            ("config.devices[0].permissions", "once", |c| c.devices[0].permissions = "rr".into()),
            ("config.CDI_devices[0].name", "CDI", |c| {
                c.cdi_devices = vec![CdiDevice { name: "v/c=d".into() }]
            }),
            ("config.log_path", "relative", |c| c.log_path = "/etc/cron.d/x".into()),
            ("config.log_path", "..", |c| c.log_path = "../../etc/cron.d/x".into()),
            ("config.stop_signal", "99", |c| c.stop_signal = 99),
            ("config.windows", "Linux", |c| c.windows = Some(WindowsContainerConfig::default())),
            ("config.linux.resources.cpu_period", "1000000", |c| limit!(c.cpu_period = 1_000_001)),
            ("config.linux.resources.cpu_quota", "-5", |c| limit!(c.cpu_quota = -5)),
            ("config.linux.resources.cpu_shares", "262144", |c| limit!(c.cpu_shares = i64::MAX)),
            ("config.linux.resources.memory_limit_in_bytes", "-2", |c| limit!(c.memory_limit_in_bytes = -2)),
            ("config.linux.resources.memory_swap_limit_in_bytes", "at least", |c| {
                limit!(c.memory_swap_limit_in_bytes = 1)
            }),
            ("config.linux.resources.oom_score_adj", "1000", |c| limit!(c.oom_score_adj = 1001)),
            ("config.linux.resources.cpuset_cpus", "0-3,7", |c| limit!(c.cpuset_cpus = "3-1".into())),
            ("config.linux.resources.cpuset_cpus", "0-3,7", |c| limit!(c.cpuset_cpus = "0,".into())),
            ("config.linux.resources.cpuset_mems", "0-3,7", |c| limit!(c.cpuset_mems = "+1".into())),
            ("config.linux.resources.hugepage_limits[0].page_size", "2MB", |c| {
                limit!(c.hugepage_limits = vec![HugepageLimit { page_size: "../2MB".into(), limit: 0 }]);
            }),
            ("config.linux.resources.hugepage_limits[1]", "once", |c| {
                limit!(c.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }; 2]);
            }),
            ("config.linux.resources.unified[\"../cgroup.procs\"]", "control file", |c| {
                limit!(c.unified = sysctl("../cgroup.procs", "1"));
            }),
            ("config.linux.resources.unified[\"cgroup.freeze\"]", "control file", |c| {
                limit!(c.unified = sysctl("cgroup.freeze", "1"));
            }),
            ("config.linux.security_context.capabilities.add_capabilities[0]", "capabilities(7)", |c| {
                let added = Capability { add_capabilities: vec!["ROOT".into()], ..Default::default() };
                secure!(c.capabilities = Some(added));
            }),
            ("config.linux.security_context.run_as_user", "2147483648", |c| {
                secure!(c.run_as_user = int(1 << 31))
            }),
            ("config.linux.security_context.run_as_username", "one of the two", |c| {
                secure!(c.run_as_user = int(0));
                secure!(c.run_as_username = "root".into());
            }),
            ("config.linux.security_context.run_as_username", "letters", |c| {
                secure!(c.run_as_username = "a:b\n".into())
            }),
            ("config.linux.security_context.run_as_group", "run_as_user", |c| {
                secure!(c.run_as_group = int(5))
            }),
            ("config.linux.security_context.masked_paths[0]", "absolute", |c| {
                secure!(c.masked_paths = vec!["x".into()])
            }),
            ("config.linux.security_context.readonly_paths[0]", "..", |c| {
                secure!(c.readonly_paths = vec!["/proc/../etc".into()]);
            }),
            ("config.linux.security_context.seccomp.localhost_ref", "is missing", |c| {
                secure!(c.seccomp = Some(SecurityProfile { profile_type: 2, localhost_ref: String::new() }));
            }),
            ("config.linux.security_context.selinux_options.type", "label", |c| {
                secure!(
                    c.selinux_options = Some(SeLinuxOption { r#type: "a:b".into(), ..Default::default() })
                );
            }),
            ("config.linux.security_context.apparmor.localhost_ref", "white space", |c| {
                secure!(c.apparmor = Some(SecurityProfile { profile_type: 2, localhost_ref: "a b".into() }));
            }),
            ("config.linux.security_context.namespace_options.target_id", "is missing", |c| {
                secure!(c.namespace_options = modes(0, 3, 0, ""));
            }),
        ],
    );
}

fn create() -> CreateContainerRequest {
    CreateContainerRequest {
        pod_sandbox_id: "1a".repeat(32),
        config: Some(ctr()),
        sandbox_config: Some(pod()),
    }
}

#[test]
fn containers_within_their_pods() {
    table(
        create,
        container::create,
        &[
            ("pod_sandbox_id", "is missing", |r| r.pod_sandbox_id = String::new()),
            ("pod_sandbox_id", "id", |r| r.pod_sandbox_id = "../1a".into()),
            ("config", "is missing", |r| r.config = None),
            ("config.linux.security_context.privileged", "not privileged", |r| {
                let c = r.config.as_mut().unwrap();
                secure!(c.privileged = true);
            }),
            ("config.linux.security_context.namespace_options.network", "the pod's", |r| {
                let c = r.config.as_mut().unwrap();
                secure!(c.namespace_options = modes(2, 0, 0, ""));
            }),
            ("config.linux.security_context.namespace_options.ipc", "the pod's", |r| {
                let c = r.config.as_mut().unwrap();
                secure!(c.namespace_options = modes(0, 0, 2, ""));
            }),
        ],
    );
}

#[test]
fn checkpoints() {
    let good = || CheckpointPodRequest {
        pod_sandbox_id: "ab12".into(),
        output_path: "/var/lib/kubelet/pod-checkpoints/1".into(),
        container_ids: vec!["c1".into(), "c2".into()],
        options: HashMap::new(),
    };
    table(
        good,
        checkpoint::pod,
        &[
            ("pod_sandbox_id", "id", |r| r.pod_sandbox_id = "a b".into()),
            ("output_path", "absolute", |r| r.output_path = "out".into()),
            ("output_path", "..", |r| r.output_path = "/a/../b".into()),
            ("container_ids", "is missing", |r| r.container_ids.clear()),
            ("container_ids[1]", "once", |r| r.container_ids[1] = "c1".into()),
            ("options[\"leave-running\"]", "not known", |r| {
                drop(r.options.insert("leave-running".into(), String::new()))
            }),
        ],
    );
    let good = || CheckpointContainerRequest {
        container_id: "c1".into(),
        location: "/tmp/c1.tar".into(),
        timeout: 0,
    };
    table(
        good,
        checkpoint::container,
        &[
            ("container_id", "is missing", |r| r.container_id = String::new()),
            ("location", "is missing", |r| r.location = String::new()),
            ("timeout", "-1", |r| r.timeout = -1),
            ("timeout", "86400", |r| r.timeout = i64::MAX),
        ],
    );
}

#[test]
fn restores() {
    let good = || RestorePodRequest {
        checkpoint_path: "/var/lib/kubelet/pod-checkpoints/1".into(),
        config: Some(pod()),
        container_configs: vec![ctr()],
        ..Default::default()
    };
    table(
        good,
        checkpoint::restore,
        &[
            ("checkpoint_path", "is missing", |r| r.checkpoint_path = String::new()),
            ("config", "is missing", |r| r.config = None),
            ("config.hostname", "host name", |r| r.config.as_mut().unwrap().hostname = "a b".into()),
            ("container_configs", "is missing", |r| r.container_configs.clear()),
            ("container_configs[0].metadata", "is missing", |r| r.container_configs[0].metadata = None),
            ("container_configs[1]", "once", |r| r.container_configs.push(ctr())),
            ("options[\"x\"]", "not known", |r| drop(r.options.insert("x".into(), "y".into()))),
        ],
    );
}

#[test]
fn ids_may_be_anything_that_is_no_path() {
    for good in ["a", "1b2c", &"f".repeat(64), "9c0d-11ee", "no_such_pod"] {
        id::lookup(Field::of("id"), good).expect(good);
    }
    for bad in ["", ".", "..", "../x", "a/b", "a b", "a\0", "ä", &"f".repeat(254)] {
        id::lookup(Field::of("id"), bad).expect_err(bad);
    }
}

fn image_volume(readonly: bool, propagation: i32) -> Mount {
    let image = Some(ImageSpec { image: "x".into(), ..Default::default() });
    Mount { container_path: "/model".into(), image, readonly, propagation, ..Default::default() }
}

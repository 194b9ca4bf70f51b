//! What a container may see and do, by what its request says.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod lab;

use api::cri::v1::{
    IdMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, SecurityProfile, UserNamespace,
};
use api::id::ContainerId;
use lab::{Lab, enter, namespace};
use pod::Pods;

async fn shell(pods: &Pods, id: &ContainerId, script: &str) -> String {
    let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let output = pods.exec_sync(id, command, None).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim_end().to_owned()
}

fn with(mut sandbox: PodSandboxConfig, options: NamespaceOption) -> PodSandboxConfig {
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    sandbox.linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
    sandbox
}

async fn container(lab: &Lab, pods: &Pods, pod: &api::id::PodId, options: &NamespaceOption) -> ContainerId {
    let mut config = lab.container("c", "sleep 1000");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(options.clone());
    context.seccomp = Some(SecurityProfile::default());
    let id = pods.create_container(pod, config).await.unwrap();
    pods.start_container(&id).await.unwrap();
    id
}

fn own_pid() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_namespace_shows_plain_ids_inside_and_shifted_ones_outside() {
    if !enter("a_user_namespace_shows_plain_ids_inside_and_shifted_ones_outside") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let range = vec![IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod as i32, uids: range.clone(), gids: range.clone() };
    let options = NamespaceOption { userns_options: Some(user), ..own_pid() };
    let pod = pods.run_sandbox(with(lab.sandbox("user"), options.clone()), "").await.unwrap();
    let volume = lab.root.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mut config = lab.container("c", "sleep 1000");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options);
    config.mounts.push(Mount {
        container_path: "/volume".into(),
        host_path: volume.to_string_lossy().into_owned(),
        uid_mappings: range.clone(),
        gid_mappings: range,
        ..Default::default()
    });
    let id = pods.create_container(&pod, config).await.unwrap();
    pods.start_container(&id).await.unwrap();
    let script = "id -u; stat -c %u /bin/sh /dev/null /dev/shm /etc/hosts; touch /x /volume/y /dev/shm/z && echo written";
    assert_eq!(shell(&pods, &id, script).await, "0\n0\n0\n0\n0\nwritten");
    let pid = pods.container(&id).unwrap().status.pid;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    let owner = |path: std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().uid()
    };
    assert_eq!(owner(lab.root.join("root/containers").join(id.as_str()).join("upper/x")), 200_000);
    assert_eq!(owner(volume.join("y")), 0, "a mapped volume keeps plain ids on disk");
    assert_ne!(namespace(pid, "user"), namespace(std::process::id(), "user"));
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_of_namespaces() {
    if !enter("modes_of_namespaces") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let node = NamespaceOption {
        network: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        pid: NamespaceMode::Node as i32,
        ..Default::default()
    };
    let mut config = with(lab.sandbox("node"), node.clone());
    config.hostname = String::new();
    let pod = pods.run_sandbox(config, "").await.unwrap();
    assert!(pods.sandbox(&pod).unwrap().ips.is_empty());
    let id = container(&lab, &pods, &pod, &node).await;
    let pid = pods.container(&id).unwrap().status.pid;
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(pid, kind), namespace(std::process::id(), kind), "{kind}");
    }
    pods.remove_sandbox(&pod).await.unwrap();

    let shared = NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() };
    let pod = pods.run_sandbox(with(lab.sandbox("shared"), shared.clone()), "").await.unwrap();
    let id = container(&lab, &pods, &pod, &shared).await;
    let mut other = lab.container("other", "exit 9");
    other.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(shared);
    let other = pods.create_container(&pod, other).await.unwrap();
    let pids = [&id, &other].map(|id| pods.container(id).unwrap().status.pid);
    assert_eq!(namespace(pids[0], "pid"), namespace(pids[1], "pid"));
    assert_ne!(namespace(pids[0], "pid"), namespace(std::process::id(), "pid"));
    pods.start_container(&other).await.unwrap();
    lab::eventually("its own exit", || pods.container(&other).unwrap().status.exit_code == 9).await;
    assert_eq!(shell(&pods, &id, "echo alive").await, "alive");
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_container_is_confined() {
    if !enter("a_default_container_is_confined") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let mut sandbox = with(lab.sandbox("confined"), own_pid());
    sandbox.linux.as_mut().unwrap().sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    let pod = pods.run_sandbox(sandbox, "").await.unwrap();
    let id = container(&lab, &pods, &pod, &own_pid()).await;
    let status = shell(&pods, &id, "grep -E '^(Cap(Bnd|Inh|Amb)|Seccomp|NoNewPrivs):' /proc/1/status").await;
    for line in
        ["CapInh:\t0000000000000000", "CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    let exec = shell(&pods, &id, "grep -E '^(CapBnd|Seccomp):' /proc/self/status").await;
    assert_eq!(exec, "CapBnd:\t00000000a80425fb\nSeccomp:\t2", "an exec is confined alike");
    assert_eq!(shell(&pods, &id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "0");
    assert_eq!(shell(&pods, &id, "cat /proc/sys/net/ipv4/ip_forward").await, "1");
    let denied = shell(&pods, &id, "unshare -m true; mount -t tmpfs t /mnt; cat /proc/kcore | head -c1; echo x > /proc/sys/vm/swappiness").await;
    assert!(
        denied.contains("unshare: ") && denied.contains("mount: ") && denied.contains("Read-only"),
        "{denied}"
    );
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

//! The daemon through a client that others wrote: crate k8s-cri, generated from the API of an older Kubernetes. What
//! it says and understands must work, whatever this repository's own proto says.
//!
//! Each test runs a real meridiand in directories, a network namespace and a cgroup of its own.

#![allow(clippy::unwrap_used)] // a test

mod node;

use std::collections::HashMap;

use k8s_cri::v1::{self as cri, ContainerState, PodSandboxState};
use tonic::Code;

use node::{Node, node};

const SLEEP: &str = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.05; done";

fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let option = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-of-{name}"),
            namespace: "rust".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: node.path("logs").display().to_string(),
        labels: HashMap::from([("app".into(), name.into())]),
        annotations: HashMap::from([("note".into(), "two\nlines".into())]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(option),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(pod: &cri::PodSandboxConfig, image: &str, script: &str) -> cri::ContainerConfig {
    let options = pod
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|c| c.namespace_options.clone());
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        command: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()],
        envs: vec![cri::KeyValue { key: "GREETING".into(), value: "good morning".into() }],
        labels: HashMap::from([("tier".into(), "front".into())]),
        log_path: "main_0.log".into(),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: options,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn create(node: &mut Node, config: &cri::PodSandboxConfig, image: &str) -> (String, String) {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = node.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(container(config, image, SLEEP)),
        sandbox_config: Some(config.clone()),
    };
    let container_id = node.runtime.create_container(request).await.unwrap().into_inner().container_id;
    (pod_sandbox_id, container_id)
}

async fn status(node: &mut Node, id: &str) -> cri::ContainerStatus {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
    node.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
}

#[tokio::test]
async fn what_a_kubelet_asks_first() {
    let Some(mut node) = node().await else { return };
    let version =
        node.runtime.version(cri::VersionRequest { version: "0.1.0".into() }).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("meridian", "v1"));
    let status = node.runtime.status(cri::StatusRequest { verbose: true }).await.unwrap().into_inner();
    for condition in status.status.unwrap().conditions {
        assert!(condition.status, "{condition:?}");
    }
    assert!(!status.info.is_empty());
    let config = node.runtime.runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver, i32::from(cri::CgroupDriver::Cgroupfs));
    let list = node.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap();
    assert!(list.into_inner().items.is_empty());
    let attach =
        node.runtime.attach(cri::AttachRequest { container_id: "x".into(), ..Default::default() }).await;
    let refused = attach.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("stdin and stderr"), "{refused}");
}

#[tokio::test]
async fn the_life_of_a_pod() {
    let Some(mut node) = node().await else { return };
    let Some(image) = node.image().await else { return };
    let config = pod(&node, "life");
    let (pod_id, id) = create(&mut node, &config, &image).await;
    assert_eq!(
        create(&mut node, &config, &image).await,
        (pod_id.clone(), id.clone()),
        "the same requests again"
    );
    assert_eq!(status(&mut node, &id).await.state(), ContainerState::ContainerCreated);
    node.runtime.start_container(cri::StartContainerRequest { container_id: id.clone() }).await.unwrap();

    let running = status(&mut node, &id).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.created_at > 0 && running.started_at >= running.created_at);
    assert!(!running.image_ref.is_empty() && running.image.is_some_and(|i| !i.image.is_empty()));
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod_id[..12].into(), verbose: true };
    let sandbox = node.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    assert_eq!(sandbox.containers_statuses.len(), 1);
    let sandbox = sandbox.status.unwrap();
    assert_eq!((sandbox.id.as_str(), sandbox.state()), (pod_id.as_str(), PodSandboxState::SandboxReady));
    assert_eq!((sandbox.labels, sandbox.annotations), (config.labels, config.annotations));
    assert!(!sandbox.network.unwrap().ip.is_empty());

    executes(&mut node, &id).await;
    let stats =
        node.runtime.container_stats(cri::ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);

    node.runtime
        .stop_container(cri::StopContainerRequest { container_id: id.clone(), timeout: 10 })
        .await
        .unwrap();
    let ended = status(&mut node, &id).await;
    assert_eq!(
        (ended.state(), ended.exit_code, ended.reason.as_str()),
        (ContainerState::ContainerExited, 3, "Error")
    );
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    gone(&mut node, &pod_id, &id).await;
    node.end().await;
}

/// A command sees the container's environment; its outputs and its exit code come back apart.
async fn executes(node: &mut Node, id: &str) {
    let script = "echo $GREETING; echo no >&2; exit 7";
    let cmd = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 10 };
    let output = node.runtime.exec_sync(request).await.unwrap().into_inner();
    let text =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr), output.exit_code);
    assert_eq!(text, ("good morning\n".into(), "no\n".into(), 7));
    let cmd = ["/bin/busybox", "sleep", "30"].map(str::to_owned).to_vec();
    let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 1 };
    assert_eq!(node.runtime.exec_sync(request).await.unwrap_err().code(), Code::DeadlineExceeded);
}

/// Stop and remove may be said twice; then nothing answers to the ids.
async fn gone(node: &mut Node, pod_id: &str, id: &str) {
    for _ in 0..2 {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod_id.into() };
        node.runtime.stop_pod_sandbox(request).await.unwrap();
    }
    for _ in 0..2 {
        node.runtime.remove_container(cri::RemoveContainerRequest { container_id: id.into() }).await.unwrap();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod_id.into() };
        node.runtime.remove_pod_sandbox(request).await.unwrap();
    }
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
    assert_eq!(node.runtime.container_status(request).await.unwrap_err().code(), Code::NotFound);
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod_id.into(), verbose: false };
    assert_eq!(node.runtime.pod_sandbox_status(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn lists_and_their_filters() {
    let Some(mut node) = node().await else { return };
    let Some(image) = node.image().await else { return };
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let config = pod(&node, name);
        ids.push(create(&mut node, &config, &image).await);
    }
    let filter = |f: cri::ContainerFilter| cri::ListContainersRequest { filter: Some(f) };
    let both = cri::ContainerFilter {
        label_selector: HashMap::from([("tier".into(), "front".into())]),
        ..Default::default()
    };
    let one = cri::ContainerFilter { pod_sandbox_id: ids[0].0.clone(), ..both.clone() };
    let running = cri::ContainerState::ContainerRunning.into();
    let none =
        cri::ContainerFilter { state: Some(cri::ContainerStateValue { state: running }), ..both.clone() };
    for (given, expected) in [(both, 2), (one, 1), (none, 0)] {
        let list = node.runtime.list_containers(filter(given.clone())).await.unwrap().into_inner();
        assert_eq!(list.containers.len(), expected, "{given:?}");
    }
    let label = HashMap::from([("app".into(), "two".into())]);
    let filter = Some(cri::PodSandboxFilter { label_selector: label, ..Default::default() });
    let list =
        node.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await.unwrap().into_inner();
    assert_eq!(list.items.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), [ids[1].0.as_str()]);
    node.end().await;
}

#[tokio::test]
async fn images_by_name_and_id() {
    let Some(mut node) = node().await else { return };
    let Some(image) = node.image().await else { return };
    let spec = |name: &str| Some(cri::ImageSpec { image: name.into(), ..Default::default() });
    let request = |name: &str| cri::ImageStatusRequest { image: spec(name), verbose: true };
    let found = node.images.image_status(request(&image)).await.unwrap().into_inner();
    let id = found.image.unwrap().id;
    assert!(id.starts_with("sha256:") && found.info.contains_key("info"));
    let by_id = node.images.image_status(request(&id)).await.unwrap().into_inner().image.unwrap();
    assert!(by_id.size > 0 && by_id.repo_tags == [image.clone()], "{by_id:?}");
    let usage = node.images.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value >= by_id.size / 2);
    for _ in 0..2 {
        node.images.remove_image(cri::RemoveImageRequest { image: spec(&image) }).await.unwrap();
    }
    assert!(node.images.image_status(request(&id)).await.unwrap().into_inner().image.is_none());
    assert!(
        node.images
            .list_images(cri::ListImagesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .images
            .is_empty()
    );
    node.end().await;
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let Some(mut node) = node().await else { return };
    let mut bad = pod(&node, "bad");
    bad.hostname = "bad\n127.0.0.1 bank".into();
    let request = cri::RunPodSandboxRequest { config: Some(bad), runtime_handler: String::new() };
    let error = node.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with(r#"config.hostname is "bad\n127.0.0.1 bank""#), "{error}");
    let unknown = "0".repeat(64);
    let request = cri::StartContainerRequest { container_id: unknown.clone() };
    assert_eq!(node.runtime.start_container(request).await.unwrap_err().code(), Code::NotFound);
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: unknown };
    node.runtime.stop_pod_sandbox(request).await.unwrap();
    let request = cri::RemoveContainerRequest { container_id: "../../etc".into() };
    assert_eq!(node.runtime.remove_container(request).await.unwrap_err().code(), Code::InvalidArgument);
}

//! A pod from RunPodSandbox to RemovePodSandbox, with the real shim.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::too_many_lines, reason = "a test tells one story from beginning to end")]

mod lab;

use std::time::{Duration, Instant};

use lab::{Lab, enter, eventually, namespace};
use pod::{Class, Classify, ContainerState, SandboxState};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_leaves_nothing() {
    if !enter("a_pod_lives_and_leaves_nothing") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let pod = pods.run_sandbox(lab.sandbox("web"), "").await.unwrap();
    let sandbox = pods.sandbox(&pod).unwrap();
    assert_eq!(sandbox.state, SandboxState::Ready);
    assert_eq!(sandbox.ips.len(), 2, "{:?}", sandbox.ips);
    assert_eq!(
        pods.run_sandbox(lab.sandbox("web"), "").await.unwrap(),
        pod,
        "the same request, the same pod"
    );

    let script = "echo hello; echo oops >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let one = pods.create_container(&pod, lab.container("one", script)).await.unwrap();
    assert_eq!(pods.create_container(&pod, lab.container("one", script)).await.unwrap(), one);
    assert_eq!(pods.container(&one).unwrap().state(), ContainerState::Created);
    assert_eq!(lab.log("web", "one"), "", "not one instruction before the start");
    pods.start_container(&one).await.unwrap();
    let two = pods.create_container(&pod, lab.container("two", "sleep 1000")).await.unwrap();
    pods.start_container(&two).await.unwrap();
    let (a, b) = (pods.container(&one).unwrap().status.pid, pods.container(&two).unwrap().status.pid);
    for kind in ["net", "ipc", "uts", "time"] {
        assert_eq!(namespace(a, kind), namespace(b, kind), "{kind} is shared");
        assert_ne!(namespace(a, kind), namespace(std::process::id(), kind), "{kind} is not the node's");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(namespace(a, kind), namespace(b, kind), "{kind} is each container's own");
    }
    eventually("the log", || lab.log("web", "one").contains("stderr F oops")).await;
    assert!(lab.log("web", "one").contains("stdout F hello"));

    let command = |script: &str| ["/bin/sh", "-c", script].map(String::from).to_vec();
    let output = pods.exec_sync(&one, command("hostname; echo e >&2; exit 3"), None).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.code),
        (&b"web\n"[..], &b"e\n"[..], 3)
    );
    let timeout =
        pods.exec_sync(&one, command("sleep 4321"), Some(Duration::from_millis(100))).await.unwrap_err();
    assert_eq!(timeout.class(), Class::DeadlineExceeded, "{timeout}");
    let output = pods.exec_sync(&one, command("ps | grep -c 'sleep [4]321'"), None).await.unwrap();
    assert_eq!(output.stdout, b"0\n", "a command that timed out is gone");

    let stats = pods.stats(&one).await.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(pods.namespaces(&pod).unwrap().namespaces.iter().filter(|n| !n.pin.is_empty()).count(), 4);

    pods.stop_container(&one, Duration::from_secs(5)).await.unwrap();
    let status = pods.container(&one).unwrap().status.clone();
    assert_eq!(
        (status.state, status.exit_code, status.reason.as_str()),
        (ContainerState::Exited, 7, "Error")
    );
    pods.stop_sandbox(&pod).await.unwrap();
    assert_eq!(pods.sandbox(&pod).unwrap().state, SandboxState::NotReady);
    assert_eq!(pods.container(&two).unwrap().status.exit_code, 137);
    pods.stop_sandbox(&pod).await.unwrap();
    let refused = pods.create_container(&pod, lab.container("three", "true")).await.unwrap_err();
    assert_eq!(refused.class(), Class::FailedPrecondition, "{refused}");
    pods.remove_sandbox(&pod).await.unwrap();
    pods.remove_sandbox(&pod).await.unwrap();
    assert!(pods.sandboxes().is_empty() && pods.containers().is_empty());
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_can_be_shortened_and_ends_in_a_kill() {
    if !enter("a_stop_can_be_shortened_and_ends_in_a_kill") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let pod = pods.run_sandbox(lab.sandbox("deaf"), "").await.unwrap();
    let deaf =
        pods.create_container(&pod, lab.container("deaf", "trap '' TERM; while :; do sleep 1; done")).await;
    let deaf = deaf.unwrap();
    pods.start_container(&deaf).await.unwrap();
    let begun = Instant::now();
    let patient = tokio::spawn({
        let (pods, deaf) = (pods.clone(), deaf.clone());
        async move { pods.stop_container(&deaf, Duration::from_secs(60)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    pods.stop_container(&deaf, Duration::from_millis(200)).await.unwrap();
    patient.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(pods.container(&deaf).unwrap().status.exit_code, 137);
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_leaves_nothing() {
    if !enter("what_fails_leaves_nothing") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let pod = pods.run_sandbox(lab.sandbox("bad"), "").await.unwrap();
    let mut config = lab.container("volume", "true");
    config.mounts.push(api::cri::v1::Mount {
        container_path: "/x".into(),
        host_path: "/no/such/place".into(),
        ..Default::default()
    });
    let error = pods.create_container(&pod, config).await.unwrap_err();
    assert_eq!(error.class(), Class::InvalidArgument);
    assert!(error.to_string().contains("/no/such/place"), "{error}");
    let mut config = lab.container("image", "true");
    config.image.as_mut().unwrap().image = "no/such:image".into();
    assert_eq!(pods.create_container(&pod, config).await.unwrap_err().class(), Class::NotFound);
    let mut config = lab.container("program", "true");
    config.command = vec!["/no/such/program".into()];
    let error = pods.create_container(&pod, config).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert!(pods.containers().is_empty());
    let other = api::cri::v1::PodSandboxConfig { hostname: "other".into(), ..lab.sandbox("bad") };
    assert_eq!(pods.run_sandbox(other, "").await.unwrap_err().class(), Class::AlreadyExists);
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_converge() {
    if !enter("duplicates_converge") {
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (pods, config) = (pods.clone(), lab.sandbox("same"));
        runs.spawn(async move { pods.run_sandbox(config, "").await.unwrap() });
    }
    let ids: std::collections::HashSet<_> = runs.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1);
    let pod = ids.into_iter().next().unwrap();
    let mut creates = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (pods, pod, config) = (pods.clone(), pod.clone(), lab.container("same", "sleep 100"));
        creates.spawn(async move { pods.create_container(&pod, config).await.unwrap() });
    }
    let ids: std::collections::HashSet<_> = creates.join_all().await.into_iter().collect();
    assert_eq!((ids.len(), pods.containers().len()), (1, 1));
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

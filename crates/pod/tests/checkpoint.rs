//! A pod of two containers to disk and back, with the real shim and CRIU.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::too_many_lines, reason = "a test tells one story from beginning to end")]

mod lab;

use std::path::Path;
use std::time::Duration;

use lab::{Lab, criu, enter, eventually, namespace};
use pod::{Class, Classify, ContainerState, Pods};

const LIMIT: Duration = Duration::from_secs(30);

/// Counts in memory; writes the counter to the log and to /dev/shm.
fn counter(name: &str) -> String {
    format!(
        "echo kept > /changed; rm -f /etc/group; i=0; while :; do i=$((i+1)); echo $i; echo $i > /dev/shm/{name}; sleep 0.02; done"
    )
}

fn last(log: &str) -> u64 {
    log.lines().rev().find_map(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

async fn shell(pods: &Pods, id: &api::id::ContainerId, script: &str) -> String {
    let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let output = pods.exec_sync(id, command, Some(LIMIT)).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_to_disk_and_comes_back() {
    if !enter("a_pod_goes_to_disk_and_comes_back") {
        return;
    }
    if criu().is_empty() {
        eprintln!("skipped: CRIU is not installed (hack/install)");
        return;
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let pod = pods.run_sandbox(lab.sandbox("old"), "").await.unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let id = pods.create_container(&pod, lab.container(name, &counter(name))).await.unwrap();
        pods.start_container(&id).await.unwrap();
        ids.push(id);
    }
    eventually("both count", || last(&lab.log("old", "one")) > 5 && last(&lab.log("old", "two")) > 5).await;

    let dir = lab.dir.path().join("checkpoint");
    let refused = pods.checkpoint_pod(&pod, &ids, &dir, LIMIT).await.unwrap_err();
    assert_eq!(refused.class(), Class::InvalidArgument, "{refused}");
    std::fs::create_dir(&dir).unwrap();
    let refused = pods.checkpoint_pod(&pod, &ids[..1], &dir, LIMIT).await.unwrap_err();
    assert_eq!(refused.class(), Class::InvalidArgument, "{refused}");
    let late = pods.checkpoint_pod(&pod, &ids, &dir, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(late.class(), Class::DeadlineExceeded, "{late}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "a failed checkpoint leaves nothing");
    pods.checkpoint_pod(&pod, &ids, &dir, LIMIT).await.unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["meridian.json", "one.tar", "pod", "pod.options", "two.tar"]);
    let before = last(&lab.log("old", "one"));
    eventually("it runs on", || last(&lab.log("old", "one")) > before + 5).await;
    let tar = lab.dir.path().join("one.tar");
    pods.checkpoint_container(&ids[0], &tar, LIMIT).await.unwrap();
    assert!(tar.metadata().unwrap().len() > 0);
    pods.remove_sandbox(&pod).await.unwrap();

    let configs = || ["one", "two"].map(|name| lab.container(name, &counter(name))).to_vec();
    let mut sandbox = lab.sandbox("new");
    sandbox.hostname = "old".to_owned();
    mismatches(&pods, &dir, &lab).await;
    let (pod, restored) = pods.restore_pod(&dir, sandbox, configs(), LIMIT).await.unwrap();
    let (one, two) = (&restored[0].1, &restored[1].1);
    assert_eq!(pods.container(one).unwrap().state(), ContainerState::Created);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(lab.log("new", "one"), "", "not one instruction before the start");
    pods.start_container(one).await.unwrap();
    pods.start_container(two).await.unwrap();
    eventually("both count again", || !lab.log("new", "one").is_empty() && !lab.log("new", "two").is_empty())
        .await;
    let first =
        lab.log("new", "one").lines().next().and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).unwrap();
    assert!(first > 5 && first <= before + 1, "counting goes on where the cut was: {first}, seen {before}");
    assert_eq!(shell(&pods, one, "cat /changed; ls /etc/group 2>&1 | wc -l").await, "kept\n1\n");
    assert_eq!(shell(&pods, one, "hostname").await, "old\n");
    assert!(!shell(&pods, two, "cat /dev/shm/one").await.is_empty());
    let pids = restored.iter().map(|(_, id)| pods.container(id).unwrap().status.pid).collect::<Vec<_>>();
    for kind in ["net", "ipc", "uts", "time"] {
        assert_eq!(namespace(pids[0], kind), namespace(pids[1], kind), "{kind} is shared");
    }
    pods.stop_container(one, Duration::ZERO).await.unwrap();
    assert_eq!(pods.container(one).unwrap().status.exit_code, 137);
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(lab.dir.path().join("root/restored")).unwrap().count(), 0);
}

/// Requests that must fail, and leave nothing.
async fn mismatches(pods: &Pods, dir: &Path, lab: &Lab) {
    let mut sandbox = lab.sandbox("bad");
    sandbox.hostname = "old".to_owned();
    let both = ["one", "two"].map(|name| lab.container(name, &counter(name))).to_vec();
    let mut other = both.clone();
    other[0].command = vec!["/bin/other".into()];
    for (configs, text) in [(both[..1].to_vec(), "lacks \"two\""), (other, "command")] {
        let error = pods.restore_pod(dir, sandbox.clone(), configs, LIMIT).await.unwrap_err();
        assert_eq!(error.class(), Class::FailedPrecondition, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let file = dir.join("two.tar");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = pods.restore_pod(dir, sandbox.clone(), both.clone(), LIMIT).await.unwrap_err();
    assert_eq!(error.class(), Class::DataLoss, "{error}");
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(pods.sandboxes().is_empty());
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

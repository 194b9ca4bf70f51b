//! The daemon is killed and comes back: a child process of this test is the daemon.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::too_many_lines, reason = "a test tells one story from beginning to end")]

mod lab;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, enter, eventually};
use pod::{ContainerState, Pods, SandboxState};

const PODS: usize = 20;
const DAEMON: &str = "POD_TEST_DAEMON";

/// Not a test of its own: what the killed daemon does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon() {
    let Some(dir) = std::env::var_os(DAEMON) else { return };
    let lab = Lab::at(std::path::Path::new(&dir)).await;
    let pods = lab.pods().await;
    for n in 0..PODS {
        let pod = pods.run_sandbox(lab.sandbox(&format!("p{n}")), "").await.unwrap();
        let script = if n == 0 {
            "sleep 0.4; exit 5"
        } else {
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
        };
        let id = pods.create_container(&pod, lab.container("c", script)).await.unwrap();
        pods.start_container(&id).await.unwrap();
        println!("pid {}", pods.container(&id).unwrap().status.pid);
    }
    std::fs::write(lab.root.join("up"), "").unwrap();
    // Half made when the kill comes, again and again.
    for n in 0.. {
        let pod = pods.run_sandbox(lab.sandbox(&format!("half{n}")), "").await.unwrap();
        pods.create_container(&pod, lab.container("c", "true")).await.unwrap();
        pods.remove_sandbox(&pod).await.unwrap();
    }
}

fn spawn(dir: &std::path::Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "daemon", "--nocapture", "--test-threads", "1"]);
    command.env(DAEMON, dir).stdout(Stdio::null()).spawn().unwrap()
}

fn pids(pods: &Pods) -> Vec<(String, u32)> {
    let mut all: Vec<_> = pods.containers().iter().map(|c| (c.pod().to_string(), c.status.pid)).collect();
    all.sort();
    all
}

fn consecutive(log: &str) -> bool {
    let numbers: Vec<u64> = log.lines().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    numbers.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_finds_its_pods_again() {
    if !enter("a_killed_daemon_finds_its_pods_again") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = spawn(dir.path());
    let up = dir.path().join("up");
    eventually("the daemon has its pods", || up.exists()).await;
    tokio::time::sleep(Duration::from_millis(437)).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let lab = Lab::at(dir.path()).await;

    let begun = Instant::now();
    let pods = lab.pods().await;
    let took = begun.elapsed();
    println!("{} pods listed again after {took:?}", pods.sandboxes().len());
    // A second is the promise; the rest is for a machine that builds beside this test.
    assert!(took < Duration::from_secs(5), "{took:?}");
    let of_name = |prefix: &str| {
        let all = pods.sandboxes().into_iter();
        all.filter(|s| s.config.metadata.as_ref().unwrap().name.starts_with(prefix)).collect::<Vec<_>>()
    };
    let old = of_name("p");
    assert_eq!(old.len(), PODS);
    assert!(old.iter().all(|s| s.state == SandboxState::Ready && s.ips.len() == 2));
    for sandbox in &old {
        let name = &sandbox.config.metadata.as_ref().unwrap().name;
        let containers = pods.containers_of(&sandbox.id).unwrap();
        assert_eq!(containers.len(), 1, "{name}");
        let status = &containers[0].status;
        if name == "p0" {
            assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 5), "ended meanwhile");
            continue;
        }
        assert_eq!(status.state, ContainerState::Running, "{name}");
        assert!(std::path::Path::new(&format!("/proc/{}", status.pid)).exists(), "{name}");
        assert!(consecutive(&lab.log(name, "c")), "{name}: the log has a gap");
    }
    let before = pids(&pods);
    let one = old.iter().find(|s| s.config.metadata.as_ref().unwrap().name == "p1").unwrap();
    let id = pods.containers_of(&one.id).unwrap()[0].id().clone();
    let command = ["/bin/sh", "-c", "echo again"].map(String::from).to_vec();
    assert_eq!(pods.exec_sync(&id, command, None).await.unwrap().stdout, b"again\n");
    // Whatever was half made can be made again under its name.
    for half in of_name("half") {
        pods.remove_sandbox(&half.id).await.unwrap();
    }
    let again = pods.run_sandbox(lab.sandbox("half0"), "").await.unwrap();
    pods.remove_sandbox(&again).await.unwrap();

    // A second restart, with a shim that hangs and one that is dead.
    drop(pods);
    let shim =
        |name: &str| old.iter().find(|s| s.config.metadata.as_ref().unwrap().name == name).unwrap().shim_pid;
    let signal = |pid: u32, signal: &str| {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    };
    signal(shim("p2"), "-STOP");
    signal(shim("p3"), "-KILL");
    let pods = reopen(&lab).await;
    let find = |name: &str| pods.find_sandbox(old_id(&old, name)).unwrap();
    assert_eq!(pods.sandboxes().len(), PODS);
    assert_eq!(pods.containers_of(&find("p2")).unwrap()[0].state(), ContainerState::Unknown);
    let dead = pods.sandbox(&find("p3")).unwrap();
    assert_eq!(dead.state, SandboxState::NotReady);
    assert_eq!(pods.containers_of(&find("p3")).unwrap()[0].state(), ContainerState::Exited);
    assert!(pids(&pods).iter().filter(|pid| before.contains(pid)).count() >= PODS - 2, "same pids");
    for sandbox in pods.sandboxes() {
        pods.remove_sandbox(&sandbox.id).await.unwrap();
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

fn old_id<'a>(old: &'a [std::sync::Arc<pod::Sandbox>], name: &str) -> &'a str {
    old.iter().find(|s| s.config.metadata.as_ref().unwrap().name == name).unwrap().id.as_str()
}

/// The store of a dropped daemon closes when its last task has ended.
async fn reopen(lab: &Lab) -> Pods {
    for _ in 0..200 {
        match Pods::open(lab.config(), lab.images.clone(), lab.network.clone()).await {
            Ok(pods) => return pods,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    lab.pods().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_everything_is_listed_and_nothing_runs() {
    if !enter("after_a_reboot_everything_is_listed_and_nothing_runs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path()).await;
    let pods = lab.pods().await;
    let pod = pods.run_sandbox(lab.sandbox("web"), "").await.unwrap();
    let id = pods.create_container(&pod, lab.container("c", "sleep 1000")).await.unwrap();
    pods.start_container(&id).await.unwrap();
    let sandbox = pods.sandbox(&pod).unwrap();
    drop(pods);
    // As the machine would: every process dies, and /run is empty.
    let kill = format!("/sys/fs/cgroup/unified{}/cgroup.kill", sandbox.cgroup);
    std::fs::write(kill, "1").unwrap();
    assert!(Command::new("kill").args(["-KILL", &sandbox.shim_pid.to_string()]).status().unwrap().success());
    eventually("the cgroup is empty", || {
        let events = format!("/sys/fs/cgroup/unified{}/cgroup.events", sandbox.cgroup);
        std::fs::read_to_string(events).unwrap_or_default().contains("populated 0")
    })
    .await;
    lab.wipe_run();
    let pods = reopen(&lab).await;
    assert_eq!(pods.sandbox(&pod).unwrap().state, SandboxState::NotReady);
    let container = pods.container(&id).unwrap();
    assert_eq!(container.state(), ContainerState::Exited);
    assert_ne!(container.status.exit_code, 0);
    pods.remove_sandbox(&pod).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

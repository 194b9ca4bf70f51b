//! The four pid modes.

use std::fs;
use std::os::fd::AsFd;

use api::shim::v1::CreateSandboxRequest;
use api::shim::v1::container_plan::PidMode;
use executor::{Created, Descriptors, Stdio, create};
use sys::{Signal, pidfd};

use crate::bed::{Bed, Plan, eventually, namespace, read_all, status};

pub const TESTS: &[(&str, fn())] = &[
    ("pid mode POD", pod),
    ("pid mode NODE", node),
    ("pid mode TARGET", target),
    ("process 1 takes all with it", all_die),
];

fn start_with(bed: &Bed, plan: Plan, target: Option<&Created>) -> (Created, std::os::fd::OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio { stdin: None, stdout: Some(write), stderr: None };
    let target = target.map(|c| c.pidfd.as_fd());
    let mut created =
        create(bed.sandbox(), &plan.plan, &mut Descriptors::new(plan.fds), &stdio, target).unwrap();
    created.start().unwrap();
    (created, read)
}

fn pod() {
    let mut bed = Bed::with(CreateSandboxRequest {
        net: true,
        ipc: true,
        uts: true,
        time: true,
        pod_pid: true,
        ..Default::default()
    });
    let init = bed.sandbox().pod_init().unwrap().pid;
    let mut plan1 = bed.plan("exec sleep 100");
    let mut plan2 = bed.plan("ps -o pid,comm; (sleep 0.2 &) ; exit 5");
    plan1.plan.set_pid_mode(PidMode::Pod);
    plan2.plan.set_pid_mode(PidMode::Pod);
    let (c1, out1) = start_with(&bed, plan1, None);
    eventually("sleep", || status(c1.pid, "Name") == "sleep");
    let (c2, out2) = start_with(&bed, plan2, None);
    assert_eq!(namespace(c1.pid, "pid"), namespace(init, "pid"));
    assert_ne!(namespace(c1.pid, "mnt"), namespace(init, "mnt"));
    for kind in ["net", "ipc", "uts", "time"] {
        assert_eq!(namespace(init, kind), namespace(c1.pid, kind), "{kind}");
    }
    let outcome = bed.finish(c2, out2);
    assert_eq!(outcome.code, 5);
    assert!(outcome.text.contains("1 pod-init") && outcome.text.contains("sleep"), "{}", outcome.text);
    assert_eq!(status(c1.pid, "State").chars().next(), Some('S'), "c2's end does not stop c1");
    // The orphan ended as pod-init's child and left no zombie.
    eventually("no zombie", || {
        fs::read_to_string(format!("/proc/{init}/task/{init}/children", init = init.as_raw_nonzero()))
            .unwrap()
            .is_empty()
    });
    assert_eq!(
        fs::read_dir(format!("/proc/{}/fd", init.as_raw_nonzero()))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap() > 2)
            .count(),
        0
    );
    pidfd::kill(&bed.sandbox().pod_init().unwrap().pidfd, Signal::KILL).unwrap();
    assert_eq!(bed.finish(c1, out1).code, 137, "the namespace's death");
}

fn node() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("echo $$; exec sleep 100");
    plan.plan.set_pid_mode(PidMode::Node);
    let (created, output) = start_with(&bed, plan, None);
    assert_eq!(namespace(created.pid, "pid"), namespace(sys::process::id(), "pid"));
    eventually("sleep", || status(created.pid, "Name") == "sleep");
    created.cgroup.kill().unwrap();
    let pid = created.pid.as_raw_nonzero().to_string();
    assert_eq!(bed.finish(created, output).text, pid);
}

fn target() {
    let mut bed = Bed::new();
    let plan = bed.plan("exec sleep 100");
    let (first, first_out) = bed.start(plan);
    eventually("sleep", || status(first.pid, "Name") == "sleep");
    let mut plan = bed.plan("ps -o pid,comm");
    plan.plan.set_pid_mode(PidMode::Target);
    let (debug, output) = start_with(&bed, plan, Some(&first));
    let outcome = bed.finish(debug, output);
    assert!(outcome.text.lines().any(|l| l.trim() == "1 sleep"), "{}", outcome.text);
    first.cgroup.kill().unwrap();
    bed.finish(first, first_out);
}

fn all_die() {
    let mut bed = Bed::new();
    let plan = bed.plan("for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 100 &) ; done; echo up; exec sleep 100");
    let (created, output) = bed.start(plan);
    let procs = bed.cgroup().join("c1/cgroup.procs");
    eventually("eleven processes", || fs::read_to_string(&procs).unwrap().lines().count() == 11);
    eventually("echo", || status(created.pid, "Name") == "sleep");
    pidfd::kill(&created.pidfd, Signal::KILL).unwrap();
    assert_eq!(pidfd::wait(&created.pidfd).unwrap().code(), 137);
    eventually("empty", || fs::read_to_string(&procs).unwrap().is_empty());
    assert_eq!(read_all(output), "up");
    created.cgroup.remove(bed.sandbox(), "c1");
}

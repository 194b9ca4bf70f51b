//! Pods with a user namespace.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use api::shim::v1::container_plan::PidMode;
use api::shim::v1::{CreateSandboxRequest, IdMapping, UserNamespace};
use executor::{Descriptors, Stdio, exec};
use sys::namespace::{inode, of, owner};
use sys::pidfd;

use crate::bed::{Bed, read_all};

pub const TESTS: &[(&str, fn())] = &[
    ("a user namespace owns everything of its pod", ownership),
    ("root inside is nobody outside", ids),
    ("exec into a user namespace", exec_in_user),
    ("pid mode POD in a user namespace", pod_pid),
];

const BASE: u32 = 700_000;

fn user_bed(pod_pid: bool) -> Bed {
    let map = vec![IdMapping { container_id: 0, host_id: BASE, length: 65536 }];
    let user = Some(UserNamespace { uids: map.clone(), gids: map });
    Bed::with(CreateSandboxRequest {
        net: true,
        ipc: true,
        uts: true,
        time: true,
        pod_pid,
        user,
        ..Default::default()
    })
}

fn ownership() {
    let mut bed = user_bed(false);
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    let user = inode(of(created.pid, sys::namespace::Kind::User).unwrap()).unwrap();
    for kind in sys::namespace::Kind::ALL.into_iter().filter(|k| *k != sys::namespace::Kind::User) {
        let namespace = of(created.pid, kind).unwrap();
        assert_eq!(inode(owner(&namespace).unwrap()).unwrap(), user, "{kind:?}");
    }
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

fn ids() {
    let mut bed = user_bed(false);
    let plan = bed.plan(
        "id -u; cat /proc/self/uid_map | tr -s ' '; touch /mine; stat -c %u /mine /dev/null /dev /proc/1/status; echo x > /dev/null && echo null;
         ls /sys/class/net; mount -t tmpfs none /tmp && echo mounted; mknod /n c 1 3",
    );
    let upper = plan.upper.clone();
    let outcome = bed.run(plan);
    let lines: Vec<_> = outcome.text.lines().collect();
    assert_eq!(lines[..2], ["0", &format!(" 0 {BASE} 65536")], "{}", outcome.text);
    assert_eq!(lines[2..8], ["0", "0", "0", "0", "null", "lo"], "{}", outcome.text);
    assert!(outcome.text.contains("mknod: /n: Operation not permitted"), "{}", outcome.text);
    assert!(!outcome.text.contains("mounted"), "CAP_SYS_ADMIN is not in the plan");
    assert_eq!(fs::metadata(upper.join("mine")).unwrap().uid(), BASE);
}

fn exec_in_user() {
    let mut bed = user_bed(false);
    let plan = bed.plan("exec sleep 100");
    let (mut created, output) = bed.create(plan).unwrap();
    created.start().unwrap();
    let mut process = bed.plan("id -u; stat -c %u /proc/1; echo > /dev/null && echo ok");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio { stdin: None, stdout: Some(write), stderr: None };
    let executed =
        exec(bed.sandbox(), created.pidfd.as_fd(), &created.cgroup, process.process(), &stdio).unwrap();
    drop(stdio);
    assert_eq!(pidfd::wait(&executed.pidfd).unwrap().code(), 0);
    assert_eq!(read_all(read), "0\n0\nok");
    crate::basics::check_mounts(created.pid);
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

fn pod_pid() {
    let mut bed = user_bed(true);
    let mut plan = bed.plan("ps -o pid,user,comm");
    plan.plan.set_pid_mode(PidMode::Pod);
    let init = bed.sandbox().pod_init().unwrap().pid;
    assert_eq!(crate::bed::status(init, "Uid").split_whitespace().next(), Some(BASE.to_string().as_str()));
    let (created, output) = bed.start(plan);
    let outcome = bed.finish(created, output);
    assert!(outcome.text.contains("pod-init"), "{}", outcome.text);
    let _ = Descriptors::new(Vec::new());
}

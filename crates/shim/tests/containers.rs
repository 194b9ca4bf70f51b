//! One pod, its containers, their ends.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bed;

use std::{fs, io::Read, time::Duration};

use api::shim::v1::{
    self as proto, container_plan::PidMode, container_state::Phase, error::Kind, request::Call,
};
use bed::{Bed, Wish, plan::Wanted, proc_field, wait_for};

#[test]
fn exit_codes_and_logs_of_both_streams() {
    let Some(mut bed) = Bed::new() else { return };
    let script = "echo out; echo err >&2; echo -n end; exit 42";
    let exit = bed.finish(Wanted::new("c", &["sh", "-c", script]));
    assert_eq!((exit.code, exit.oom_killed), (42, false));
    // Complete at the moment when the exit is heard of.
    let log = bed.log("c");
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F end", "stdout F out"]);
    let state = bed.client.state_of("c");
    assert_eq!((state.phase(), state.exit), (Phase::Exited, Some(exit)));
    bed.delete("c");
    assert!(bed.client.state().containers.is_empty());
}

#[test]
fn nothing_runs_before_start() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.create(Wanted::new("c", &["sh", "-c", "echo ran"])).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let state = bed.client.state_of("c");
    assert_eq!((state.phase(), state.pid, state.started_at), (Phase::Created, pid, 0));
    assert_eq!(bed.log("c"), "");
    bed.start("c").unwrap();
    assert_eq!(bed.client.exit("c").code, 0);
    assert_eq!(bed.log("c"), "stdout F ran\n");
}

#[test]
fn namespaces_are_shared_within_the_pod_and_pids_are_not() {
    let Some(mut bed) = Bed::bare() else { return };
    let made = bed.create_sandbox(Wish::default());
    let mut kinds: Vec<_> = made.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["ipc", "net", "time", "uts"]);
    let one = bed.run(Wanted::new("one", &["sleep", "1000"]));
    let two = bed.run(Wanted::new("two", &["sleep", "1000"]));
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for (kind, fd) in &made {
        let inode = rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(namespace(one, kind).to_string_lossy(), format!("{kind}:[{inode}]"));
        assert_eq!(namespace(one, kind), namespace(two, kind));
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(namespace(one, kind), namespace(two, kind), "{kind}");
    }
    assert_eq!(proc_field(one.cast_signed(), "status", "NSpid").split_whitespace().last(), Some("1"));
}

#[test]
fn pod_mode_shares_one_init() {
    let Some(mut bed) = Bed::bare() else { return };
    bed.create_sandbox(Wish { pod_pid: true, ..Wish::default() });
    let init = bed.client.state().pod_init_pid;
    assert_ne!(init, 0);
    let sleeper =
        Wanted { pid_mode: PidMode::Pod, ..Wanted::new("one", &["sh", "-c", "sleep 1000 & exit 3"]) };
    let exit = bed.finish(sleeper);
    assert_eq!(exit.code, 3);
    // No pid namespace ended with it, and yet nothing of the container is left.
    let procs = bed.unified().join("one/cgroup.procs");
    wait_for("the container's rest to end", || fs::read_to_string(&procs).unwrap().is_empty());
    assert_eq!(bed.client.state().pod_init_pid, init);
}

#[test]
fn memory_over_the_limit_is_an_oom_kill() {
    let Some(mut bed) = Bed::new() else { return };
    let eater = ["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=256M count=1"];
    let exit = bed.finish(Wanted { memory_limit: 32 << 20, ..Wanted::new("c", &eater) });
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    // A kill by anybody else is none.
    bed.run(Wanted { memory_limit: 32 << 20, ..Wanted::new("d", &["sleep", "1000"]) });
    bed.kill("d", 9, false);
    let exit = bed.client.exit("d");
    assert_eq!((exit.code, exit.oom_killed), (137, false));
}

#[test]
fn signals_reach_process_one_or_all() {
    let Some(mut bed) = Bed::new() else { return };
    let trap = "trap 'echo got; exit 7' USR1; echo ready; while :; do usleep 1000; done";
    bed.run(Wanted::new("c", &["sh", "-c", trap]));
    wait_for("the trap", || bed.log("c").contains("ready"));
    // Ignored by a process 1 without a handler.
    bed.kill("c", 15, false);
    bed.kill("c", 10, false);
    assert_eq!(bed.client.exit("c").code, 7);
    assert_eq!(bed.log("c"), "stdout F ready\nstdout F got\n");

    bed.run(Wanted::new("d", &["sh", "-c", "sleep 1000 & sleep 1000"]));
    bed.kill("d", 9, true);
    assert_eq!(bed.client.exit("d").code, 137);
    assert_eq!(fs::read_to_string(bed.unified().join("d/cgroup.procs")).unwrap(), "");
    let script =
        "trap : USR1; (trap 'echo child; exit' USR1; touch /up; while :; do usleep 1000; done) & wait; wait";
    bed.run(Wanted::new("e", &["sh", "-c", script]));
    let up = bed.dir.join("overlay3/upper/up");
    wait_for("the child's trap", || up.exists());
    bed.kill("e", 10, true);
    bed.client.exit("e");
    assert!(bed.log("e").contains("stdout F child\n"), "{}", bed.log("e"));
    // A signal to what has ended already is done.
    bed.kill("d", 9, false);
}

#[test]
fn a_created_container_can_be_deleted() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.create(Wanted::new("c", &["sleep", "1000"])).unwrap();
    assert!(bed.unified().join("c").exists());
    bed.delete("c");
    assert!(!bed.unified().join("c").exists());
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn bad_requests_name_what_is_wrong_and_leave_nothing() {
    let Some(mut bed) = Bed::bare() else { return };
    let error = bed.create(Wanted::new("c", &["sh"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{error:?}");
    bed.create_sandbox(Wish::default());
    let error = bed.start("nobody").unwrap_err();
    assert_eq!((error.kind(), error.object.as_str()), (Kind::NotFound, "nobody"));
    let error = bed.create(Wanted::new("c", &["/bin/nothing"])).unwrap_err();
    assert!(error.object.contains("/bin/nothing") && error.errno == 2, "{error:?}");
    assert!(!bed.unified().join("c").exists() && bed.client.state().containers.is_empty());
    bed.run(Wanted::new("c", &["sleep", "1000"]));
    let error = bed.create(Wanted::new("c", &["sleep", "1000"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    let error = bed.start("c").unwrap_err();
    assert_eq!((error.kind(), error.object.as_str()), (Kind::Precondition, "c"));
    let error = bed.client.call(Call::DeleteContainer(proto::DeleteContainerRequest { id: "c".into() }), &[]);
    assert_eq!(error.unwrap_err().kind(), Kind::Precondition);
    let kill = proto::KillRequest { id: "c".into(), signal: 65, all: false };
    assert_eq!(bed.client.call(Call::Kill(kill), &[]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn execs_answer_with_output_and_code() {
    let Some(mut bed) = Bed::new() else { return };
    bed.run(Wanted::new("c", &["sleep", "1000"]));
    let [out, err] =
        bed.exec("e1", "c", &["sh", "-c", "echo $PPID; hostname; echo bad >&2; exit 5"]).unwrap();
    assert_eq!(bed.client.exec_exit("e1").code, 5);
    assert_eq!(read_all(out), "0\nbed\n");
    assert_eq!(read_all(err), "bad\n");
    let error = bed.exec("e2", "c", &["nothing"]).unwrap_err();
    assert_eq!(error.errno, 2, "{error:?}");
    let error = bed.exec("e3", "nobody", &["sh"]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn shutdown_leaves_nothing() {
    let Some(mut bed) = Bed::bare() else { return };
    bed.create_sandbox(Wish { pod_pid: true, ..Wish::default() });
    let init = bed.client.state().pod_init_pid;
    let running = bed.run(Wanted::new("c", &["sh", "-c", "sleep 1000 & sleep 1000"]));
    let created = bed.create(Wanted::new("d", &["sleep", "1000"])).unwrap();
    bed.client.done(Call::Shutdown(proto::ShutdownRequest {}));
    assert_eq!(sys::pidfd::wait(&bed.shim.pidfd).unwrap().code(), 0);
    for pid in [init, running, created] {
        wait_for("a process of the pod to end", || !fs::exists(format!("/proc/{pid}")).unwrap());
    }
    let entries = fs::read_dir(bed.unified()).unwrap();
    let cgroups = entries.flatten().filter(|entry| entry.file_type().unwrap().is_dir()).count();
    assert_eq!(cgroups, 0);
}

fn read_all(fd: std::os::fd::OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

//! The daemon dies, comes back, misbehaves.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bed;

use std::{fs, os::fd::AsFd, time::Duration};

use api::shim::v1::{
    self as proto, container_state::Phase, error::Kind, event::What, request::Call, response,
};
use bed::{Bed, plan::Wanted, wait_for};

/// Whether a running task makes progress, seen by its CPU time.
fn is_running(pid: u32) -> bool {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(11).unwrap().parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(60));
    ticks() > before
}

const SPIN: [&str; 3] = ["sh", "-c", "while :; do :; done"];

fn freeze(bed: &mut Bed, ids: &[&str], watchdog_ms: u64) -> Result<proto::FreezeResponse, proto::Error> {
    let ids = ids.iter().map(|&id| id.to_owned()).collect();
    match bed.client.call(Call::Freeze(proto::FreezeRequest { ids, watchdog_ms }), &[])? {
        (response::Result::Freeze(frozen), _) => Ok(frozen),
        other => panic!("{other:?}"),
    }
}

#[test]
fn containers_outlive_a_daemon_and_their_exits_are_kept() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("runs", &["sh", "-c", "while :; do echo tick; usleep 5000; done"]));
    bed.run(Wanted::new("ends", &["sh", "-c", "usleep 50000; exit 9"]));
    bed.reconnect();
    wait_for("the end that nobody was told", || bed.client.state_of("ends").phase() == Phase::Exited);
    assert_eq!(bed.client.state_of("ends").exit.unwrap().code, 9);
    let state = bed.client.state_of("runs");
    assert_eq!((state.pid, state.phase()), (pid, Phase::Running));
    let before = bed.log("runs").len();
    wait_for("the log to grow", || bed.log("runs").len() > before);
}

#[test]
fn a_new_connection_replaces_the_old() {
    let Some(mut bed) = Bed::new() else { return };
    let mut old = std::mem::replace(&mut bed.client, bed::Client::connect(&bed.dir.join("socket")));
    assert!(bed.client.state().sandbox_created);
    assert!(old.is_closed());
}

#[test]
fn execs_without_a_reader_are_killed_and_others_are_not() {
    let Some(mut bed) = Bed::new() else { return };
    bed.run(Wanted::new("c", &["sleep", "1000"]));
    let _ends = bed.exec("replaced", "c", &["sh", "-c", "sleep 1000 & sleep 1000"]).unwrap();
    bed.reconnect();
    assert_eq!(bed.client.exec_exit("replaced").code, 137);
    // With nobody to hear of it, it is kept.
    let _ends = bed.exec("lost", "c", &["sleep", "1000"]).unwrap();
    bed.client.close();
    let procs = bed.unified().join("c/cgroup.procs");
    wait_for("the execs to end", || fs::read_to_string(&procs).unwrap().lines().count() == 1);
    std::thread::sleep(Duration::from_millis(20));
    bed.reconnect();
    let exits = bed.client.state().exec_exits;
    assert_eq!(
        exits.iter().map(|exit| (exit.exec_id.as_str(), exit.code)).collect::<Vec<_>>(),
        [("lost", 137)]
    );
    assert!(bed.client.state().exec_exits.is_empty(), "told once");
    assert_eq!(bed.client.state_of("c").phase(), Phase::Running);
}

#[test]
fn a_cut_stops_all_at_once_and_resume_lets_all_run() {
    let Some(mut bed) = Bed::new() else { return };
    let one = bed.run(Wanted::new("one", &SPIN));
    let two = bed.run(Wanted::new("two", &SPIN));
    let frozen = freeze(&mut bed, &["one", "two"], 10_000).unwrap();
    let clocks = frozen.clocks.unwrap();
    assert!(frozen.frozen_at >= frozen.froze_at);
    assert!(
        clocks.monotonic.unsigned_abs() >= frozen.froze_at
            && clocks.monotonic.unsigned_abs() <= frozen.frozen_at
    );
    println!("cut to frozen {} us", (frozen.frozen_at - frozen.froze_at) / 1000);
    assert!(!is_running(one) && !is_running(two));
    assert!(bed.client.state().frozen);
    // CRIU needs the pod's cgroup thawed and the container's frozen.
    let read = |bed: &Bed, path: &str| fs::read_to_string(bed.unified().join(path)).unwrap();
    assert_eq!(read(&bed, "cgroup.freeze"), "0\n");
    assert_eq!(read(&bed, "one/cgroup.freeze"), "1\n");
    assert_eq!(freeze(&mut bed, &["one"], 1000).unwrap_err().kind(), Kind::Precondition);
    bed.client.done(Call::Resume(proto::ResumeRequest { kill: false }));
    wait_for("both to run again", || is_running(one) && is_running(two));
    let error = bed.client.call(Call::Resume(proto::ResumeRequest { kill: false }), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
}

#[test]
fn the_watchdog_resumes_at_its_deadline() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &SPIN));
    freeze(&mut bed, &["c"], 2000).unwrap();
    assert!(!is_running(pid));
    bed.client.event(|what| matches!(what, What::Thawed(_)).then_some(()));
    wait_for("the container to run again", || is_running(pid));
    assert!(!bed.client.state().frozen);
}

#[test]
fn a_daemon_that_dies_in_a_freeze_leaves_a_running_pod() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &SPIN));
    freeze(&mut bed, &["c"], 60_000).unwrap();
    assert!(!is_running(pid));
    bed.client.close();
    wait_for("the pod to run again", || is_running(pid));
}

#[test]
fn after_hold_only_resume_ends_a_freeze() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &SPIN));
    freeze(&mut bed, &["c"], 1500).unwrap();
    bed.client.done(Call::Hold(proto::HoldRequest {}));
    bed.reconnect();
    std::thread::sleep(Duration::from_millis(1600));
    assert!(!is_running(pid) && bed.client.state().frozen);
    bed.client.done(Call::Resume(proto::ResumeRequest { kill: true }));
    assert_eq!(bed.client.exit("c").code, 137);
}

#[test]
fn a_frozen_container_takes_no_exec_and_the_watchdog_still_runs() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &SPIN));
    bed.run(Wanted::new("free", &["sleep", "1000"]));
    freeze(&mut bed, &["c"], 2000).unwrap();
    assert_eq!(bed.exec("e", "c", &["sh"]).unwrap_err().kind(), Kind::Precondition);
    let _ends = bed.exec("e", "free", &["sh", "-c", "exit 3"]).unwrap();
    assert_eq!(bed.client.exec_exit("e").code, 3);
    bed.client.event(|what| matches!(what, What::Thawed(_)).then_some(()));
    wait_for("the container to run again", || is_running(pid));
}

#[test]
fn a_daemon_that_does_not_read_is_cut_off() {
    let Some(mut bed) = Bed::new() else { return };
    bed.run(Wanted::new("c", &["sleep", "1000"]));
    let asked = (0..100_000).take_while(|_| bed.client.try_ask(Call::State(proto::StateRequest {}))).count();
    assert!((1000..50_000).contains(&asked), "{asked}");
    bed.reconnect();
    assert_eq!(bed.client.state_of("c").phase(), Phase::Running);
}

#[test]
fn garbage_is_answered_and_harms_nothing() {
    let Some(mut bed) = Bed::new() else { return };
    let empty = bed.client.call_empty();
    assert_eq!(empty.unwrap_err().kind(), Kind::Invalid);
    bed.client.send_bytes(&[0xff; 100]);
    assert!(bed.client.state().sandbox_created);
    // A plan that names descriptors which did not come.
    let plan = proto::ContainerPlan { id: "c".into(), rootfs_fd: 9, ..Default::default() };
    let call = Call::CreateContainer(proto::CreateContainerRequest { plan: Some(plan) });
    let null = fs::File::open("/dev/null").unwrap();
    assert_eq!(bed.client.call(call, &[null.as_fd()]).unwrap_err().kind(), Kind::Invalid);
    assert!(bed.client.state().containers.is_empty());
}

#[test]
fn a_dead_shim_ends_its_pod_when_its_cgroup_is_killed() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &["sleep", "1000"]));
    sys::pidfd::kill(&bed.shim.pidfd, sys::Signal::KILL).unwrap();
    // What the daemon does when the connection ends.
    assert!(bed.client.is_closed());
    fs::write(bed.unified().join("cgroup.kill"), "1").unwrap();
    wait_for("the container to end", || {
        !fs::exists(format!("/proc/{pid}/exe")).unwrap() || fs::read_link(format!("/proc/{pid}/exe")).is_err()
    });
}

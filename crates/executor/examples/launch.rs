//! Measures what the executor costs: `cargo run --release -p executor --example launch [N]`, as root.
//!
//! Runs as the shim does, in a mount namespace with next to nothing in it, and prints the median, the 90th percentile
//! and the least of N containers (default 100) that each run `true`, with default capabilities, masks, read-only paths
//! and eight filesystems, and of as many execs.

#![allow(clippy::unwrap_used, reason = "a measurement: any failure ends it")]

#[path = "../tests/containers/bed/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests")]
mod bed;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Instant;

use executor::{Cgroup, Descriptors, Stdio, create, exec};

type Times = BTreeMap<&'static str, Vec<f64>>;

fn main() {
    if let Some(reason) = bed::missing() {
        println!("skipped: {reason}");
        return;
    }
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100);
    bed::isolate();
    let mut bed = bed::Bed::new();
    let plans: Vec<_> = (0..=count).map(|_| bed.plan("true")).collect();
    let name = |plan: &bed::Plan| plan.plan.cgroup.clone();
    let mut execs = bed.plan("sleep 1000");
    execs.process().args = vec!["/bin/busybox".into(), "sleep".into(), "1000".into()];
    let host = sys::namespace::own(sys::namespace::Kind::Mount).unwrap();
    leave_host();
    let mut times = Times::new();
    for mut plan in plans {
        plan.process().args = vec!["/bin/busybox".into(), "true".into()];
        let name = name(&plan);
        launch(&bed, plan, &name, &mut times);
    }
    let (running, _output) = bed.start(execs);
    for _ in 0..=count {
        execute(&bed, &running, &mut times);
    }
    print(&mut times);
    running.cgroup.kill().unwrap();
    sys::pidfd::wait(&running.pidfd).unwrap();
    running.cgroup.remove(bed.sandbox(), &format!("c{}", count + 2));
    // Back to where the bed can clean up by path.
    sys::namespace::setns(host, sys::namespace::Kind::Mount).unwrap();
}

fn launch(bed: &bed::Bed, plan: bed::Plan, name: &str, times: &mut Times) {
    let mut lap = Laps::new();
    let probe = Cgroup::create(bed.sandbox(), &plan.plan).unwrap();
    lap.record("cgroup, limits, device filter (part of create)", times);
    probe.remove(bed.sandbox(), name);
    let mut lap = Laps::new();
    let mut fds = Descriptors::new(plan.fds);
    let mut created = create(bed.sandbox(), &plan.plan, &mut fds, &Stdio::default(), None).unwrap();
    lap.record("create", times);
    created.start().unwrap();
    lap.record("start: go to execve done", times);
    lap.total("create + start", times);
    sys::pidfd::wait(&created.pidfd).unwrap();
    lap.record("true runs and is reaped", times);
    created.cgroup.remove(bed.sandbox(), name);
    lap.record("cgroup removed", times);
}

fn execute(bed: &bed::Bed, running: &executor::Created, times: &mut Times) {
    let process = api::shim::v1::Process {
        args: vec!["/bin/busybox".into(), "true".into()],
        no_new_privileges: true,
        ..Default::default()
    };
    let mut lap = Laps::new();
    let stdio = Stdio::default();
    let executed = exec(bed.sandbox(), running.pidfd.as_fd(), &running.cgroup, &process, &stdio).unwrap();
    lap.record("exec: to execve done", times);
    sys::pidfd::wait(&executed.pidfd).unwrap();
    lap.record("exec: true runs and is reaped", times);
}

/// The shim's own surroundings: an empty root with a procfs.
fn leave_host() {
    use sys::mount::{Filesystem, Flags, attach_at, pivot};
    sys::namespace::unshare(sys::namespace::Kind::Mount).unwrap();
    let root = Filesystem::open("tmpfs").unwrap().mount(Flags::empty()).unwrap();
    rustix::fs::mkdirat(&root, "proc", rustix::fs::Mode::from_raw_mode(0o555)).unwrap();
    attach_at(&root, "/mnt").unwrap();
    pivot(&root).unwrap();
    attach_at(Filesystem::open("proc").unwrap().mount(Flags::empty()).unwrap(), "/proc").unwrap();
}

struct Laps(Instant, Instant);

impl Laps {
    fn new() -> Self {
        Self(Instant::now(), Instant::now())
    }

    fn record(&mut self, what: &'static str, times: &mut Times) {
        times.entry(what).or_default().push(self.1.elapsed().as_secs_f64() * 1e6);
        self.1 = Instant::now();
    }

    fn total(&self, what: &'static str, times: &mut Times) {
        times.entry(what).or_default().push(self.0.elapsed().as_secs_f64() * 1e6);
    }
}

fn print(times: &mut Times) {
    println!("{:>10} {:>10} {:>10}  us", "median", "p90", "least");
    for (what, laps) in times {
        laps.remove(0);
        laps.sort_by(f64::total_cmp);
        let (median, p90) = (laps[laps.len() / 2], laps[laps.len() * 9 / 10]);
        println!("{median:>10.0} {p90:>10.0} {:>10.0}  {what}", laps[0]);
    }
}

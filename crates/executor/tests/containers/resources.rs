//! Limits, by whichever hierarchy governs them here.

use std::fs;

use executor::cgroup::{freeze, is_frozen, thaw};
use sys::cgroup::Layout;

use crate::bed::{Bed, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("limits are in the files", limits),
    ("out of memory", out_of_memory),
    ("freeze and thaw", freezing),
    ("limits that cannot be are refused", refused),
];

/// The file of a container's limit in the hierarchy that has it.
fn file(bed: &Bed, controller: &str, unified: &str, v1: &str) -> String {
    let layout = Layout::detect().unwrap();
    let path = match layout.v1_of(controller) {
        Some(mount) if !layout.on_unified(controller) => {
            mount.join(bed.cgroup().file_name().unwrap()).join("c1").join(v1)
        }
        _ => bed.cgroup().join("c1").join(unified),
    };
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

fn limits() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("exec sleep 100");
    let r = plan.resources();
    (r.memory_limit, r.cpu_quota, r.cpu_period, r.cpu_shares, r.pids_limit) =
        (64 << 20, 50_000, 100_000, 512, 10);
    let (created, output) = bed.start(plan);
    assert_eq!(file(&bed, "memory", "memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert!(file(&bed, "cpu", "cpu.max", "cpu.cfs_quota_us").starts_with("50000"));
    assert_eq!(file(&bed, "pids", "pids.max", "pids.max"), "10");
    let more = api::shim::v1::Resources { memory_limit: 128 << 20, ..Default::default() };
    created.cgroup.update(bed.sandbox(), &more).unwrap();
    assert_eq!(file(&bed, "memory", "memory.max", "memory.limit_in_bytes"), (128 << 20).to_string());
    assert_eq!(file(&bed, "pids", "pids.max", "pids.max"), "10");
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

fn out_of_memory() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    plan.resources().memory_limit = 8 << 20;
    plan.resources().memory_swap_limit = 8 << 20;
    let (created, output) = bed.start(plan);
    drop(crate::bed::read_all(output));
    assert_eq!(sys::pidfd::wait(&created.pidfd).unwrap().code(), 137);
    assert_eq!(created.cgroup.oom_kills(), 1);
    assert!(created.cgroup.remove(bed.sandbox(), "c1").is_empty());
}

fn freezing() {
    let mut bed = Bed::new();
    let plan = bed.plan("while true; do true; done");
    let (created, output) = bed.start(plan);
    let events = fs::File::open(bed.cgroup().join("c1/cgroup.events")).unwrap();
    assert!(!is_frozen(&events).unwrap());
    freeze(&created.cgroup).unwrap();
    eventually("frozen", || is_frozen(&events).unwrap());
    thaw(&created.cgroup).unwrap();
    eventually("thawed", || !is_frozen(&events).unwrap());
    freeze(&created.cgroup).unwrap();
    created.cgroup.kill().unwrap();
    assert_eq!(bed.finish(created, output).code, 137, "the frozen die too");
}

fn refused() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("true");
    plan.resources().unified.insert("../cgroup.procs".into(), "1".into());
    assert!(bed.create(plan).unwrap_err().is_invalid());
    let mut plan = bed.plan("true");
    plan.plan.cgroup = "../up".into();
    assert!(bed.create(plan).unwrap_err().is_invalid());
    let mut plan = bed.plan("true");
    plan.resources().unified.insert("nosuch.max".into(), "1".into());
    assert_eq!(bed.create(plan).unwrap_err().failure(), ("limit", 19, "nosuch.max = 1"));
    assert_eq!(
        fs::read_dir(bed.cgroup())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir())
            .count(),
        0
    );
}

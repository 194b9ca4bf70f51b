//! What a shim costs: memory beside one running container, and time from CreateContainer to a started program.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bed;

use std::time::{Duration, Instant};

use bed::{Bed, plan::Wanted, proc_field};

/// kB of a field of smaps_rollup.
fn kilobytes(bed: &Bed, field: &str) -> u64 {
    proc_field(bed.pid(), "smaps_rollup", field).trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn private_memory_with_one_container() {
    let Some(mut bed) = Bed::new() else { return };
    bed.run(Wanted::new("c", &["sh", "-c", "echo started; sleep 1000"]));
    bed.client.state();
    let private = kilobytes(&bed, "Private_Dirty") + kilobytes(&bed, "Private_Clean");
    let (anonymous, shared) = (kilobytes(&bed, "Anonymous"), kilobytes(&bed, "Rss") - private);
    println!("one container: {private} kB private, of it {anonymous} kB anonymous; {shared} kB shared");
    // A test's shim is alone with its binary, so its text counts as private; the daemon's shims share one copy.
    if std::env::var_os("MERIDIAN_SHIM").is_some() {
        assert!(anonymous <= 200, "{anonymous} kB");
    }
}

#[test]
fn time_from_create_to_start() {
    let Some(mut bed) = Bed::new() else { return };
    let mut create = Vec::new();
    let mut start = Vec::new();
    for turn in 0..50 {
        let id = format!("c{turn}");
        bed.create(Wanted::new(&id, &["sleep", "1000"])).unwrap();
        create.push(bed.client.took);
        bed.start(&id).unwrap();
        start.push(bed.client.took);
        bed.kill(&id, 9, false);
        bed.client.exit(&id);
        bed.delete(&id);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (create, start) = (median(&mut create), median(&mut start));
    println!("median of 50: create {create:?}, start {start:?}");
    bed.run(Wanted::new("c", &["sleep", "1000"]));
    let mut exec: Vec<_> = (0..50)
        .map(|turn| {
            let begun = Instant::now();
            let exec_id = format!("e{turn}");
            bed.exec(&exec_id, "c", &["sync", "--help"]).unwrap();
            bed.client.exec_exit(&exec_id);
            begun.elapsed()
        })
        .collect();
    println!("median of 50: exec to its exit {:?}", median(&mut exec));
    assert!(create + start < Duration::from_millis(100), "{create:?} {start:?}");
}

//! The CRI log under everything that output can do to it.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bed;

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use api::shim::v1::{self as proto, request::Call};
use bed::{Bed, Tmpfs, plan::Wanted, wait_for};

#[test]
fn every_line_has_time_stream_and_tag() {
    let Some(mut bed) = Bed::new() else { return };
    bed.finish(Wanted::new("c", &["sh", "-c", "echo one; echo two"]));
    let text = fs::read_to_string(bed.log_path("c")).unwrap();
    let year = text.get(..2).unwrap();
    assert_eq!(year, "20");
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ');
        let time = parts.next().unwrap();
        assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        assert_eq!((parts.next(), parts.next()), (Some("stdout"), Some("F")));
    }
}

#[test]
fn a_line_over_the_limit_comes_in_parts() {
    let Some(mut bed) = Bed::new() else { return };
    bed.finish(Wanted::new("c", &["sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo after"]));
    let log = bed.log("c");
    let shape: Vec<_> = log.lines().map(|line| (&line[..8], line.len() - 9)).collect();
    assert_eq!(shape, [("stdout P", 16384), ("stdout P", 16384), ("stdout F", 7232), ("stdout F", 5)]);
}

#[test]
fn single_bytes_are_one_line() {
    let Some(mut bed) = Bed::new() else { return };
    bed.finish(Wanted::new("c", &["sh", "-c", "for i in a b c d e; do echo -n $i; usleep 2000; done; echo"]));
    assert_eq!(bed.log("c"), "stdout F abcde\n");
}

#[test]
fn a_flood_arrives_whole() {
    let Some(mut bed) = Bed::new() else { return };
    bed.finish(Wanted::new("c", &["seq", "1", "200000"]));
    let text = bed.log("c");
    let expected: String = (1..=200_000).map(|n| format!("stdout F {n}\n")).collect();
    assert!(text == expected, "{} of {} bytes", text.len(), expected.len());
}

#[test]
fn rotation_loses_and_repeats_nothing() {
    let Some(mut bed) = Bed::new() else { return };
    bed.run(Wanted::new(
        "c",
        &["sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 1000"],
    ));
    let mut rotated = Vec::new();
    for turn in 0..5 {
        let old = bed.log_path(&format!("c.{turn}"));
        fs::rename(bed.log_path("c"), &old).unwrap();
        let file = bed.open_log("c");
        let request = proto::ReopenLogRequest { id: "c".into(), log_fd: 0 };
        bed.client.call(Call::ReopenLog(request), &[file.as_fd()]).unwrap();
        rotated.push(old);
    }
    rotated.push(bed.log_path("c"));
    let all = |files: &[std::path::PathBuf]| -> Vec<String> {
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    };
    wait_for("the last line", || all(&rotated).len() >= 2000);
    let expected: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
    assert_eq!(all(&rotated), expected);
    bed.kill("c", 9, false);
    bed.client.exit("c");
}

#[test]
fn a_full_disk_stops_no_container_and_ends_with_room() {
    let Some(mut bed) = Bed::new() else { return };
    let disk = Tmpfs::new(bed.dir.join("disk"), 64 << 10);
    let path = disk.0.join("log");
    let log = File::options().append(true).create(true).open(&path).unwrap();
    let script = "seq 1 100000; echo -n > /flooded; while [ ! -e /room ]; do usleep 1000; done; echo after";
    let id = "c";
    bed.run(Wanted { log: Some(log), ..Wanted::new(id, &["sh", "-c", script]) });
    // The container got rid of all of it although the disk took 64 KiB.
    let root = bed.dir.join("overlay1/upper");
    wait_for("the flood to end", || root.join("flooded").exists());
    let mut dropped = 0;
    wait_for("the loss to be counted", || {
        let before = std::mem::replace(&mut dropped, bed.client.state_of(id).log_dropped);
        std::thread::sleep(Duration::from_millis(20));
        dropped > 90_000 && dropped == before
    });
    let full = fs::read_to_string(&path).unwrap();
    assert!(full.ends_with('\n') && full.len() > 60_000, "{} bytes", full.len());
    // Room again.
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let [out, _] = bed.exec("room", id, &["sh", "-c", "echo > /room"]).unwrap();
    drop(out);
    assert_eq!(bed.client.exit(id).code, 0);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("stdout F after\n") && text.lines().all(|line| line.starts_with("20")), "{text}");
    drop(disk);
}

#[test]
fn a_terminal_is_one_stream_and_has_a_size() {
    let Some(mut bed) = Bed::new() else { return };
    let script = "while [ \"$(stty size)\" != '33 77' ]; do usleep 1000; done; tty; echo err >&2; stty size";
    bed.run(Wanted { tty: true, ..Wanted::new("c", &["sh", "-c", script]) });
    let resize = proto::ResizeTtyRequest { id: "c".into(), width: 77, height: 33 };
    bed.client.done(Call::ResizeTty(resize));
    assert_eq!(bed.client.exit("c").code, 0);
    let log = bed.log("c");
    assert!(log.contains("stdout F err\n") && log.contains("stdout F 33 77\n"), "{log:?}");
    let error = bed
        .client
        .call(Call::ResizeTty(proto::ResizeTtyRequest { id: "x".into(), width: 1, height: 1 }), &[]);
    assert!(error.is_err());
}

#[test]
fn a_stranger_with_the_pipe_delays_the_end_but_shortly() {
    let Some(mut bed) = Bed::new() else { return };
    let pid = bed.run(Wanted::new("c", &["sh", "-c", "echo first; sleep 1000"]));
    wait_for("the first line", || bed.log("c").contains("first"));
    // A process outside of the container that writes to its standard output.
    let mut stranger = File::options().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    let begun = Instant::now();
    bed.kill("c", 9, false);
    writeln!(stranger, "last").unwrap();
    assert_eq!(bed.client.exit("c").code, 137);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(bed.log("c"), "stdout F first\nstdout F last\n");
}

#[test]
fn a_user_that_is_not_root_may_open_its_output_anew() {
    let Some(mut bed) = Bed::new() else { return };
    let script = "echo again > /dev/stdout; echo wrong > /dev/stderr; id -u";
    let exit = bed.finish(Wanted { uid: 1000, ..Wanted::new("c", &["sh", "-c", script]) });
    assert_eq!((exit.code, bed.log("c").contains("stdout F again\n")), (0, true), "{}", bed.log("c"));
    assert!(bed.log("c").contains("stderr F wrong\n") && bed.log("c").contains("stdout F 1000\n"));
}

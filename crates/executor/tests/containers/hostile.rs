//! Images and neighbours that mean harm.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sys::{Signal, pidfd};

use crate::bed::Bed;

pub const TESTS: &[(&str, fn())] = &[
    ("system mounts on symlinks are refused", symlinked_mounts),
    ("volume targets stay inside the root", escaping_targets),
    ("working directories stay inside the root", working_directories),
    ("a failed create leaves nothing", nothing_left),
    ("a container whose shim is gone ends", orphan),
    ("mount targets exchanged under way: no escape", exchange_race),
];

fn symlinked_mounts() {
    for (name, target) in [("proc", "/tmp"), ("sys", "tmp"), ("dev", "../../tmp")] {
        let mut bed = Bed::new();
        fs::remove_dir(bed.image().join(name)).unwrap();
        symlink(target, bed.image().join(name)).unwrap();
        let plan = bed.plan("true");
        let error = bed.create(plan).unwrap_err();
        assert!(error.is_invalid(), "{error}");
        let (step, errno, object) = error.failure();
        assert!(step.starts_with("mount ") && [20, 40].contains(&errno), "{step} {errno}");
        assert_eq!(object, format!("/{name}"));
    }
    let mut bed = Bed::new();
    fs::remove_dir(bed.image().join("proc")).unwrap();
    fs::write(bed.image().join("proc"), "").unwrap();
    let plan = bed.plan("true");
    assert!(bed.create(plan).unwrap_err().is_invalid());
}

fn escaping_targets() {
    let mut bed = Bed::new();
    let volume = bed.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("here"), "").unwrap();
    let outside = bed.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bed.image().join("absolute")).unwrap();
    symlink("../../../../../..", bed.image().join("up")).unwrap();
    symlink("/proc/self/root", bed.image().join("magic")).unwrap();
    let mut plan = bed.plan("ls -d /absolute/here /up/tmp/deep/here");
    plan.volume(&volume, "/absolute", false);
    plan.volume(&volume, "/up/tmp/deep", false);
    let outcome = bed.run(plan);
    assert_eq!(outcome.text, "/absolute/here\n/up/tmp/deep/here");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let mut plan = bed.plan("true");
    plan.volume(&volume, "/magic/x", false);
    assert_eq!(bed.create(plan).unwrap_err().failure(), ("mount volume", 40, "/magic/x"));
    for bad in ["relative", "/../x", "/", ""] {
        let mut plan = bed.plan("true");
        plan.volume(&volume, bad, false);
        assert!(bed.create(plan).unwrap_err().is_invalid(), "{bad}");
    }
}

fn working_directories() {
    let mut bed = Bed::new();
    symlink("/proc/self/fd/7/..", bed.image().join("fd")).unwrap();
    symlink("../../..", bed.image().join("up")).unwrap();
    for (cwd, errnos) in [("/fd", [2, 40]), ("/proc/1/cwd", [40; 2]), ("/bin/sh", [20; 2])] {
        let mut plan = bed.plan("pwd");
        plan.process().cwd = cwd.into();
        let error = match bed.create(plan) {
            Ok((mut created, output)) => {
                created.start().unwrap();
                panic!("{cwd}: {:?}", bed.finish(created, output));
            }
            Err(error) => error,
        };
        let (step, got, _) = error.failure();
        assert_eq!(step, "open working directory", "{cwd}");
        assert!(errnos.contains(&got), "{cwd}: {got}");
    }
    let mut plan = bed.plan("pwd; ls");
    plan.process().cwd = "/up".into();
    assert!(bed.run(plan).text.starts_with("/\nbin"));
}

fn nothing_left() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("true");
    plan.process().args = vec!["/nothing".into()];
    assert_eq!(bed.create(plan).unwrap_err().failure(), ("find program", 2, "/nothing"));
    fs::write(bed.image().join("bin/text"), "no program").unwrap();
    rustix::fs::chmod(bed.image().join("bin/text"), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let mut plan = bed.plan("true");
    plan.process().args = vec!["text".into()];
    let (mut created, output) = bed.create(plan).unwrap();
    let error = created.start().unwrap_err();
    assert_eq!(error.failure(), ("execve", 8, "/bin/text"));
    assert_eq!(bed.finish(created, output).code, 1);
    let mut plan = bed.plan("true");
    plan.fds.clear();
    assert!(bed.create(plan).unwrap_err().is_invalid());
}

fn orphan() {
    let mut bed = Bed::new();
    let plan = bed.plan("echo ran");
    let (created, output) = bed.create(plan).unwrap();
    let other = bed.plan("exec sleep 100");
    let (other, other_out) = bed.create(other).unwrap(); // holds no copy of the first one's channel
    let (pidfd, cgroup) = forsake(created);
    assert_eq!(pidfd::wait(&pidfd).unwrap().code(), 1);
    assert_eq!(crate::bed::read_all(output), "");
    drop(cgroup.remove(bed.sandbox(), "c1"));
    pidfd::kill(&other.pidfd, Signal::KILL).unwrap();
    bed.finish(other, other_out);
}

/// As if the shim had died: its end of the channel is closed.
fn forsake(created: executor::Created) -> (std::os::fd::OwnedFd, executor::Cgroup) {
    (created.pidfd, created.cgroup)
}

/// A neighbour that shares a volume exchanges a directory and a symlink to the host's directory as fast as it can,
/// while containers mount a volume there.
fn exchange_race() {
    let tries = 300;
    let mut bed = Bed::new();
    let (shared, victim) = (bed.dir.join("shared"), bed.dir.join("victim"));
    fs::create_dir_all(shared.join("target")).unwrap();
    fs::create_dir(&victim).unwrap();
    symlink(&victim, shared.join("link")).unwrap();
    let volume = bed.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("canary"), "").unwrap();
    let attacker = sys::clone::fork(&sys::clone::Options::default(), || {
        loop {
            let _ =
                renameat_with(CWD, shared.join("target"), CWD, shared.join("link"), RenameFlags::EXCHANGE);
        }
    });
    let attacker = attacker.unwrap();
    let (mut escaped, mut refused) = (0, 0);
    for _ in 0..tries {
        let mut plan = bed.plan("true");
        plan.volume(&shared, "/shared", false);
        plan.volume(&volume, "/shared/target/deep", false);
        match bed.create(plan) {
            Ok((mut created, output)) => {
                escaped += u32::from(is_elsewhere(created.pid));
                created.start().unwrap();
                bed.finish(created, output);
            }
            Err(_) => refused += 1,
        }
        // A directory made outside would be an escape as well.
        escaped += u32::from(victim.join("deep").exists());
    }
    pidfd::kill(&attacker.pidfd, Signal::KILL).unwrap();
    pidfd::wait(&attacker.pidfd).unwrap();
    println!("    {tries} tries: {escaped} escapes, {refused} refused");
    assert_eq!(escaped, 0);
}

/// Whether the volume was mounted elsewhere than in the container: on the host, or on the host's directory in the mount
/// namespace that the container's was copied from, which is gone after pivot_root.
fn is_elsewhere(pid: sys::Pid) -> bool {
    let info = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let seen = |text: String| {
        text.lines().filter(|l| l.split(' ').nth(3).is_some_and(|root| root.ends_with("/volume"))).count()
    };
    seen(info("self")) != 0 || seen(info(&pid.as_raw_nonzero().to_string())) != 1
}

//! A container does what its plan says, and looks from outside as it should.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use api::shim::v1::Process;
use executor::{Executed, Stdio, exec};
use sys::namespace::{Kind, inode, own};
use sys::{Pid, Signal, pidfd};

use crate::bed::{Bed, Plan, eventually, namespace, read_all, status};

pub const TESTS: &[(&str, fn())] = &[
    ("output and exit code arrive", output_and_exit_code),
    ("nothing runs before start", nothing_runs_before_start),
    ("user, groups, environment, umask, cwd", user_and_environment),
    ("two containers share the pod's namespaces and no others", namespaces_from_outside),
    ("mounts are exactly those of the plan", mounts_from_outside),
    ("a terminal", terminal),
    ("exec joins everything", exec_joins_everything),
    ("exec reports its failures", exec_failures),
    ("exec with a terminal", exec_terminal),
    ("volumes: read-only, file, propagation", volumes),
    ("the pod's clocks", clocks),
    ("staging for a restore", staging),
];

fn output_and_exit_code() {
    let mut bed = Bed::new();
    let outcome = bed.sh("echo hello; echo there >&2; exit 42");
    assert_eq!((outcome.code, outcome.text.as_str()), (42, "hello\nthere"));
    assert_eq!(bed.sh("kill -TERM $$; sleep 1; echo alive").text, "alive"); // process 1 ignores what it has no handler for
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    pidfd::kill(&created.pidfd, Signal::KILL).unwrap();
    assert_eq!(bed.finish(created, output).code, 137);
}

fn nothing_runs_before_start() {
    let mut bed = Bed::new();
    let plan = bed.plan("echo ran > /ran");
    let ran = plan.upper.join("ran");
    let (mut created, output) = bed.create(plan).unwrap();
    let comm = || fs::read_to_string(format!("/proc/{}/comm", created.pid.as_raw_nonzero())).unwrap();
    assert_ne!(comm().trim(), "sh");
    assert!(!ran.exists());
    created.start().unwrap();
    bed.finish(created, output);
    assert!(ran.exists());
}

fn user_and_environment() {
    let mut bed = Bed::new();
    let mut plan = bed.plan(
        "id -u; id -g; id -G; pwd; echo $WHO; touch f; stat -c %a f; cat /proc/self/oom_score_adj; ulimit -n",
    );
    let process = plan.process();
    process.uid = 1000;
    process.gid = 1001;
    process.additional_gids = vec![2000, 2001];
    process.cwd = "/made/on/the/way".into();
    process.env.push("WHO=me".into());
    process.umask = 0o027;
    process.oom_score_adj = Some(321);
    process.rlimits = vec![api::shim::v1::Rlimit { resource: 7, soft: 100, hard: 200 }];
    let outcome = bed.run(plan);
    // The directory is root's, so that touch fails there; only the rest is of interest then.
    let lines: Vec<_> =
        outcome.text.lines().filter(|l| !l.contains("touch") && !l.contains("stat:")).collect();
    assert_eq!(lines, ["1000", "1001", "1001 2000 2001", "/made/on/the/way", "me", "321", "100"]);
    let mut plan = bed.plan("touch /f; mkdir /d; stat -c %a /f /d");
    plan.process().umask = 0o027;
    assert_eq!(bed.run(plan).text, "640\n750");
}

fn namespaces_from_outside() {
    let mut bed = Bed::new();
    let (plan1, plan2) = (bed.plan("exec sleep 100"), bed.plan("exec sleep 100"));
    let (c1, out1) = bed.start(plan1);
    let (c2, out2) = bed.start(plan2);
    let host = sys::process::id();
    for kind in ["net", "ipc", "uts", "time"] {
        assert_eq!(namespace(c1.pid, kind), namespace(c2.pid, kind), "{kind}");
        assert_ne!(namespace(c1.pid, kind), namespace(host, kind), "{kind}");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(namespace(c1.pid, kind), namespace(c2.pid, kind), "{kind}");
        assert_ne!(namespace(c1.pid, kind), namespace(host, kind), "{kind}");
    }
    assert_eq!(namespace(c1.pid, "user"), namespace(host, "user"));
    for kind in ["pid", "time"] {
        assert_eq!(namespace(c1.pid, kind), namespace(c1.pid, &format!("{kind}_for_children")));
    }
    assert!(status(c1.pid, "NSpid").ends_with("\t1"));
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", c1.pid.as_raw_nonzero())).unwrap();
    let path = bed.cgroup().file_name().unwrap().to_string_lossy().into_owned();
    assert!(cgroup.lines().any(|line| line == format!("0::/{path}/c1")), "{cgroup}");
    let fds = fs::read_dir(format!("/proc/{}/fd", c1.pid.as_raw_nonzero())).unwrap();
    let mut fds: Vec<_> = fds.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    fds.sort();
    assert_eq!(fds, ["0", "1", "2"]);
    let null = fs::read_link(format!("/proc/{}/fd/0", c1.pid.as_raw_nonzero())).unwrap();
    assert_eq!(null.to_str(), Some("/dev/null"));
    for (created, output) in [(c1, out1), (c2, out2)] {
        created.cgroup.kill().unwrap();
        bed.finish(created, output);
    }
    let seen = bed.sh("cat /proc/self/cgroup");
    assert!(
        seen.text.lines().filter(|l| !l.contains("name=") && is_ours(l)).all(|l| l.ends_with(":/")),
        "{}",
        seen.text
    );
}

/// A line of a hierarchy that the bed has a directory in.
fn is_ours(line: &str) -> bool {
    let controllers = line.split(':').nth(1).unwrap();
    controllers.is_empty()
        || ["memory", "cpu", "cpuacct", "pids"].iter().any(|c| controllers.split(',').any(|x| x == *c))
}

fn mounts_from_outside() {
    let mut bed = Bed::new();
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    check_mounts(created.pid);
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

/// What the default plan mounts is there, once each, and nothing else.
pub fn check_mounts(pid: Pid) {
    let info = fs::read_to_string(format!("/proc/{}/mountinfo", pid.as_raw_nonzero())).unwrap();
    let mut points: Vec<_> = info.lines().map(|l| l.split(' ').nth(4).unwrap()).collect();
    points.sort_unstable();
    let masked = |path: &&str| fs::metadata(path).is_ok();
    let mut wanted: Vec<_> =
        ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"].to_vec();
    wanted.extend(
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            .iter()
            .filter(|p| masked(p)),
    );
    wanted.extend(
        ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/sys/firmware"]
            .iter()
            .filter(|p| masked(p)),
    );
    wanted.sort_unstable();
    assert_eq!(points, wanted, "{info}");
}

fn terminal() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo back > /dev/console; read line; echo got $line");
    plan.process().tty = true;
    let (mut created, output) = bed.create(plan).unwrap();
    let master = created.terminal.take().unwrap();
    created.start().unwrap();
    rustix::io::write(&master, b"typed\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while let Ok(n @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    for wanted in ["/dev/pts/0\r\n", "all\r\n", "back\r\n", "got typed\r\n"] {
        assert!(text.contains(wanted), "{text:?}");
    }
    bed.finish(created, output);
}

fn exec_in(
    bed: &Bed,
    created: &executor::Created,
    script: &str,
    change: impl FnOnce(&mut Process),
) -> Result<(Executed, OwnedFd), executor::ExecError> {
    let mut process = Plan { plan: bed_plan(script), fds: Vec::new(), upper: "/".into() };
    change(process.process());
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio { stdin: None, stdout: Some(write), stderr: None };
    let executed = exec(bed.sandbox(), created.pidfd.as_fd(), &created.cgroup, process.process(), &stdio)?;
    Ok((executed, read))
}

fn bed_plan(script: &str) -> api::shim::v1::ContainerPlan {
    let caps = crate::bed::DEFAULT_CAPABILITIES;
    api::shim::v1::ContainerPlan {
        process: Some(Process {
            args: ["sh", "-c", script].map(String::from).to_vec(),
            env: vec!["PATH=/usr/bin:/bin".into()],
            capabilities: Some(api::shim::v1::Capabilities {
                bounding: caps,
                effective: caps,
                permitted: caps,
                ..api::shim::v1::Capabilities::default()
            }),
            no_new_privileges: true,
            ..Process::default()
        }),
        ..api::shim::v1::ContainerPlan::default()
    }
}

fn exec_joins_everything() {
    let mut bed = Bed::new();
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    eventually("sleep", || status(created.pid, "Name") == "sleep");
    let (executed, text) =
        exec_in(&bed, &created, "echo in; read x < /proc/1/comm; echo $x; exec sleep 100", |_| {}).unwrap();
    eventually("sleep", || {
        fs::read_to_string(format!("/proc/{}/comm", executed.pid.as_raw_nonzero())).unwrap() == "sleep\n"
    });
    for kind in
        ["mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user", "pid_for_children", "time_for_children"]
    {
        assert_eq!(namespace(executed.pid, kind), namespace(created.pid, kind), "{kind}");
    }
    for key in [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Uid",
        "Gid",
        "Groups",
        "SigBlk",
        "SigIgn",
    ] {
        assert_eq!(status(executed.pid, key), status(created.pid, key), "{key}");
    }
    let cgroup = |pid: Pid| fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap();
    assert_eq!(cgroup(executed.pid), cgroup(created.pid));
    assert_eq!(status(executed.pid, "PPid"), sys::process::id().as_raw_nonzero().to_string());
    created.cgroup.kill().unwrap();
    assert_eq!(pidfd::wait(&executed.pidfd).unwrap().code(), 137);
    assert_eq!(read_all(text), "in\nsleep");
    bed.finish(created, output);
}

fn exec_failures() {
    let mut bed = Bed::new();
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    let (executed, _) = exec_in(&bed, &created, "exit 7", |_| {}).unwrap();
    assert_eq!(pidfd::wait(&executed.pidfd).unwrap().code(), 7);
    let missing = exec_in(&bed, &created, "", |p| p.args = vec!["nothing-there".into()]).unwrap_err();
    assert_eq!(missing.failure(), ("find program", 2, "nothing-there"));
    let data = exec_in(&bed, &created, "", |p| p.args = vec!["/etc".into()]).unwrap_err();
    assert_eq!(data.failure(), ("find program", 13, "/etc"));
    let absurd = exec_in(&bed, &created, "", |p| p.uid = u32::MAX).unwrap_err();
    assert!(absurd.is_invalid() && absurd.to_string().contains("process.uid"), "{absurd}");
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

fn exec_terminal() {
    let mut bed = Bed::new();
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    let (mut executed, _) = exec_in(&bed, &created, "tty; stat -c %u $(tty)", |p| {
        p.tty = true;
        p.uid = 55;
    })
    .unwrap();
    let master = executed.terminal.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while let Ok(n @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert_eq!(text, "/dev/pts/0\r\n55\r\n");
    pidfd::wait(&executed.pidfd).unwrap();
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

fn volumes() {
    use sys::mount::{Attributes, Flags, Propagation, clone_tree, set_attributes};
    let mut bed = Bed::new();
    let volume = bed.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "contents\n").unwrap();
    let mut plan = bed.plan("cat /data/file /etc/one; touch /data/new; touch /ro/no; exec cat");
    plan.volume(&volume, "/data", false);
    plan.volume(&volume.join("file"), "/etc/one", true);
    let clone = clone_tree(rustix::fs::CWD, volume.as_path(), true).unwrap();
    let read_only = Attributes {
        set: Flags::MOUNT_ATTR_RDONLY,
        propagation: Some(Propagation::Private),
        ..Attributes::default()
    };
    set_attributes(&clone, true, &read_only).unwrap();
    plan.tree(clone, "/ro", false);
    let outcome = bed.run(plan);
    assert_eq!(outcome.text, "contents\ncontents\ntouch: /ro/no: Read-only file system");
    assert!(volume.join("new").exists());
}

fn clocks() {
    let mut bed = Bed::new();
    let day = 86_400_000_000_000;
    let before = namespace_inode(&bed);
    bed.sandbox_mut()
        .create_time_namespace(executor::ClockOffsets { monotonic: day, boottime: day })
        .unwrap();
    assert_ne!(before, namespace_inode(&bed));
    let outcome = bed.sh("read up rest < /proc/uptime; echo ${up%.*}; cat /proc/self/timens_offsets");
    let inside: i64 = outcome.text.lines().next().unwrap().parse().unwrap();
    let host = sys::timens::clocks().boottime / 1_000_000_000;
    assert!((inside - host - 86_400).abs() <= 10, "{inside} {host}");
    assert!(outcome.text.contains("boottime        86400"), "{}", outcome.text);
}

fn namespace_inode(bed: &Bed) -> u64 {
    let time = bed.sandbox().time().unwrap();
    assert_ne!(inode(time).unwrap(), inode(own(Kind::Time).unwrap()).unwrap());
    inode(time).unwrap()
}

fn staging() {
    let mut bed = Bed::new();
    let volume = bed.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    let mut plan = bed.plan("true");
    plan.volume(&volume, "/data/deep", false);
    plan.volume(&volume.join("file"), "/dev/termination-log", true);
    let directory = bed.dir.join("stage");
    fs::create_dir(&directory).unwrap();
    let cgroup = executor::Cgroup::create(bed.sandbox(), &plan.plan).unwrap();
    // In a child with a mount namespace of its own, as the shim's helper is.
    let child =
        sys::clone::fork(&sys::clone::Options { new: Kind::Mount.into(), ..Default::default() }, || {
            let root = fs::File::open("/").unwrap();
            let private = sys::mount::Attributes {
                propagation: Some(sys::mount::Propagation::Private),
                ..Default::default()
            };
            sys::mount::set_attributes(&root, true, &private).unwrap();
            let mut fds = executor::Descriptors::new(plan.fds);
            let staged = executor::stage(bed.sandbox(), &plan.plan, &mut fds, &cgroup, &directory).unwrap();
            let keys: Vec<_> = staged.external.iter().map(|e| e.key.as_str()).collect();
            let all = executor::external_keys(&plan.plan);
            assert!(keys.iter().all(|key| all.iter().any(|k| k == key)), "{keys:?} {all:?}");
            assert!(
                ["/dev", "/sys/fs/cgroup", "/data/deep", "/dev/termination-log"]
                    .iter()
                    .all(|k| keys.contains(k)),
                "{keys:?}"
            );
            let path = |key: &str| staged.external.iter().find(|e| e.key == key).unwrap().path.clone();
            assert!(path("/dev").join("null").exists() && path("/dev").join("termination-log").exists());
            assert!(staged.root.join("bin/sh").exists() && staged.root.join("data/deep").is_dir());
            assert!(path("/data/deep").join("file").exists());
            let seen = fs::read_to_string(path("/sys/fs/cgroup").join("cgroup.events")).unwrap();
            assert!(seen.contains("populated 0"), "its root is the container's cgroup: {seen}");
            0
        });
    assert_eq!(pidfd::wait(child.unwrap().pidfd).unwrap().code(), 0);
    cgroup.remove(bed.sandbox(), "c1");
}

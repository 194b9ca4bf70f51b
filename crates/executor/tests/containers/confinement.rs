//! What a container cannot do.

use api::shim::v1::{Capabilities, Device, DeviceRule};

use crate::bed::{Bed, READ_ONLY, namespace, status};

pub const TESTS: &[(&str, fn())] = &[
    ("masked and read-only paths", masks),
    ("devices: the default ones, and no others", devices),
    ("capabilities are exactly those of the plan", capabilities),
    ("seccomp with and without no-new-privileges", seccomp),
    ("a read-only root", read_only_root),
    ("the process cannot be looked at before execve", undumpable),
    ("limits and the OOM score", limits),
    ("a label that nobody enforces is an error", labels),
];

fn masks() {
    let mut bed = Bed::new();
    let outcome = bed.sh(
        "cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n'; echo;
         echo 1 > /proc/sys/vm/overcommit_memory || echo refused; touch /proc/irq/x || echo refused;
         touch /proc/acpi/x || echo refused; ls -l /proc/keys",
    );
    let lines: Vec<_> = outcome.text.lines().filter(|l| !l.contains(": ")).collect();
    assert_eq!(lines[0], "0", "{}", outcome.text);
    assert_eq!(lines[1], "", "{}", outcome.text);
    assert!(lines[2..5].iter().all(|l| *l == "refused"), "{}", outcome.text);
    assert!(lines[5].starts_with("crw-rw-rw-") && lines[5].contains("1,   3"), "{}", outcome.text);
}

fn devices() {
    let mut bed = Bed::new();
    let outcome = bed.sh(
        "ls /dev | tr '\\n' ' '; echo; head -c 4 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c; echo x > /dev/null;
         echo x > /dev/full || echo full; for l in ptmx stdin fd; do readlink /dev/$l; done",
    );
    let text: Vec<_> = outcome.text.lines().filter(|l| !l.contains("write error")).collect();
    assert_eq!(
        text[0], "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        "{}",
        outcome.text
    );
    assert_eq!(text[1..], ["4", "1", "full", "pts/ptmx", "/proc/self/fd/0", "/proc/self/fd"]);
    // A node of the host's disk and of its memory can be made and not opened.
    let outcome = bed.sh("mknod /d b 254 0 && mknod /m c 1 1 && echo made; cat /d /m");
    assert_eq!(outcome.text.lines().next(), Some("made"));
    assert_eq!(outcome.text.matches("Operation not permitted").count(), 2, "{}", outcome.text);
    // One more device, in /dev and elsewhere, with a rule for it.
    let mut plan = bed.plan(
        "stat -c '%t:%T %a %u %g' /dev/deep/kmsg /opt/kmsg; dd if=/opt/kmsg bs=8192 count=1 2>/dev/null | wc -l | tr -d 0",
    );
    // The host's own /dev/null and /dev/ptmx, as a privileged pod lists them, change nothing.
    for path in ["/dev/deep/kmsg", "/opt/kmsg", "/dev/null", "/dev/ptmx"] {
        plan.plan.devices.push(Device {
            path: path.into(),
            r#type: "c".into(),
            major: 1,
            minor: 11,
            mode: 0o640,
            uid: 3,
            gid: 4,
            node_fd: None,
        });
    }
    let rule =
        DeviceRule { allow: true, r#type: "c".into(), major: Some(1), minor: Some(11), access: "r".into() };
    plan.plan.device_rules.push(rule);
    let caps = plan.process().capabilities.as_mut().unwrap();
    for set in [&mut caps.bounding, &mut caps.permitted, &mut caps.effective] {
        *set |= 1 << 34; // CAP_SYSLOG: the kernel asks for it beyond the node's mode
    }
    assert_eq!(bed.run(plan).text, "1:b 640 3 4\n1:b 640 3 4\n1");
}

fn capabilities() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("exec sleep 100");
    let set = 1 << 10 | 1 << 0;
    plan.process().capabilities = Some(Capabilities {
        bounding: set | 2,
        effective: set,
        permitted: set,
        inheritable: 1 << 10,
        ambient: 1 << 10,
    });
    plan.process().uid = 1000;
    let (created, output) = bed.start(plan);
    let wanted = [
        ("CapBnd", set | 2),
        ("CapInh", 1 << 10),
        ("CapAmb", 1 << 10),
        ("CapPrm", 1 << 10),
        ("CapEff", 1 << 10),
    ];
    for (key, value) in wanted {
        assert_eq!(status(created.pid, key), format!("{value:016x}"), "{key}");
    }
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
    let plan = bed.plan("exec sleep 100");
    let (created, output) = bed.start(plan);
    for (key, value) in [("CapInh", 0), ("CapAmb", 0), ("CapEff", crate::bed::DEFAULT_CAPABILITIES)] {
        assert_eq!(status(created.pid, key), format!("{value:016x}"), "{key}");
    }
    created.cgroup.kill().unwrap();
    bed.finish(created, output);
}

/// Refuses mkdir with EACCES and allows the rest: load nr; jeq mkdir; ret errno; ret allow.
fn no_mkdir() -> Vec<u8> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut bytes = code.to_le_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_le_bytes());
        bytes
    };
    [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, 83),
        instruction(6, 0, 0, 0x0005_000d),
        instruction(6, 0, 0, 0x7fff_0000),
    ]
    .concat()
}

fn seccomp() {
    let mut bed = Bed::new();
    for (no_new_privileges, uid) in [(true, 0), (true, 1000), (false, 0), (false, 1000)] {
        let mut plan = bed.plan("mkdir /tmp/d || echo refused; exec sleep 100");
        plan.process().seccomp = no_mkdir();
        plan.process().no_new_privileges = no_new_privileges;
        plan.process().uid = uid;
        let (created, output) = bed.start(plan);
        assert_eq!(status(created.pid, "Seccomp"), "2");
        assert_eq!(status(created.pid, "NoNewPrivs"), u8::from(no_new_privileges).to_string());
        let effective = if uid == 0 { crate::bed::DEFAULT_CAPABILITIES } else { 0 };
        assert_eq!(status(created.pid, "CapEff"), format!("{effective:016x}"));
        crate::bed::eventually("sleep", || status(created.pid, "Name") == "sleep");
        created.cgroup.kill().unwrap();
        assert!(bed.finish(created, output).text.ends_with("refused"));
    }
    let mut plan = bed.plan("true");
    plan.process().seccomp = vec![0; 12];
    assert!(bed.create(plan).unwrap_err().is_invalid());
}

fn read_only_root() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("touch /f; touch /tmp/f && echo tmp; touch /dev/shm/f && echo shm; pwd");
    plan.plan.readonly_rootfs = true;
    plan.process().cwd = "/srv/dir".into();
    let mut tmp = crate::bed::default_mounts().into_iter().find(|m| m.destination == "/dev/shm").unwrap();
    tmp.destination = "/tmp".into();
    plan.plan.mounts.push(tmp);
    assert_eq!(bed.run(plan).text, "touch: /f: Read-only file system\ntmp\nshm\n/srv/dir");
    let _ = READ_ONLY;
}

fn undumpable() {
    let mut bed = Bed::new();
    let plan = bed.plan("true");
    let (mut created, output) = bed.create(plan).unwrap();
    // A process that is not dumpable has root-owned /proc entries, whatever its user.
    let pid = created.pid.as_raw_nonzero();
    let child = sys::clone::fork(&sys::clone::Options::default(), || {
        sys::credentials::limit_bounding(0).unwrap();
        sys::credentials::set_ids(1000, 1000, &[]).unwrap();
        u8::from(std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
    });
    assert_eq!(sys::pidfd::wait(child.unwrap().pidfd).unwrap().code(), 0);
    let _ = namespace(created.pid, "pid");
    created.start().unwrap();
    bed.finish(created, output);
}

fn limits() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("cat /proc/self/oom_score_adj");
    plan.process().oom_score_adj = Some(-999);
    plan.process().oom_score_adj_clamp = true;
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let score = bed.run(plan).text;
    assert!(score == "-999" || score == own.trim(), "{score}");
    if score != "-999" {
        let mut plan = bed.plan("true");
        plan.process().oom_score_adj = Some(-999);
        assert_eq!(bed.create(plan).unwrap_err().failure(), ("set oom_score_adj", 13, "-999"));
    }
}

/// Where the kernel has no such module: never a start without the confinement that was asked for.
fn labels() {
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let mut bed = Bed::new();
    for (module, step) in [("apparmor", "set apparmor profile"), ("selinux", "set selinux label")] {
        if modules.contains(module) {
            println!("    skipped: {module} is active here");
            continue;
        }
        let mut plan = bed.plan("echo ran");
        match module {
            "apparmor" => plan.process().apparmor_profile = "nothing".into(),
            _ => plan.process().selinux_label = "system_u:system_r:container_t:s0".into(),
        }
        let (mut created, output) = bed.create(plan).unwrap();
        assert_eq!(created.start().unwrap_err().failure().0, step);
        let outcome = bed.finish(created, output);
        assert_eq!((outcome.code, outcome.text.as_str()), (1, ""));
    }
}

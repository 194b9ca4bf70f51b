//! What a dump would fail at, or lose without a word, found before anything is frozen: by the kernel's own account of
//! each process, and of the pod's System V and POSIX queues, which belong to no process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use api::shim::v1::{self as proto, Obstacle, response};
use executor::{Cgroup, NamespaceKind};
use rustix::fs::{Dir, Mode, OFlags, major, minor, openat, stat};
use sys::{Pid, clone, credentials, mount, namespace, pidfd};

use crate::{
    error::RequestError,
    pod::{Answer, Pod},
    signal::processes,
};

const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// A finding: what, and the cure.
type Finding = (String, &'static str);

impl Pod {
    pub fn check(&self, request: &proto::CheckRequest) -> Result<Answer, RequestError> {
        let mut obstacles = self.check_ipc()?;
        for id in &request.ids {
            let task = self.task(id)?;
            if let (Some((first, _)), Some(cgroup)) = (task.process(), task.cgroup()) {
                obstacles.extend(check_container(id, first, cgroup));
            }
        }
        Ok(response::Result::Check(proto::CheckResponse { obstacles }).into())
    }

    /// The pod's ipc namespace is not dumped, and what is in it belongs to no process.
    fn check_ipc(&self) -> Result<Vec<Obstacle>, RequestError> {
        let Some(ipc) = self.sandbox()?.namespace(NamespaceKind::Ipc) else { return Ok(Vec::new()) };
        let look = || {
            let seen = namespace::setns(ipc, NamespaceKind::Ipc).map(|()| objects());
            seen.unwrap_or_default()
        };
        let looked =
            clone::fork(&clone::Options::default(), look).and_then(|child| pidfd::wait(&child.pidfd));
        let seen = match looked.map_err(RequestError::system("look into the ipc namespace of", "pod"))? {
            pidfd::ExitStatus::Exited(seen) => seen,
            pidfd::ExitStatus::Signaled(_) => 0,
        };
        let found = OBJECTS.iter().zip(0..).filter(|(_, bit)| seen & (1 << bit) != 0);
        Ok(found.map(|((_, what), _)| pod_wide(what)).collect())
    }
}

/// Where each kind is listed, below a line of headings, and what it is.
const OBJECTS: [(&str, &str); 4] = [
    ("/proc/sysvipc/shm", "System V shared memory"),
    ("/proc/sysvipc/sem", "System V semaphores"),
    ("/proc/sysvipc/msg", "System V message queues"),
    ("", "a POSIX message queue"),
];

/// In a child that is in the pod's ipc namespace: a bit for each kind that is there.
fn objects() -> u8 {
    let exists = |path: &str| match path {
        "" => queues().is_ok_and(|count| count > 0),
        path => fs::read_to_string(path).is_ok_and(|text| text.lines().count() > 1),
    };
    OBJECTS.iter().zip(0..).fold(0, |seen, ((path, _), bit)| seen | u8::from(exists(path)) << bit)
}

/// How many message queues there are, through a mount of their own.
fn queues() -> sys::Result<usize> {
    let mqueue = mount::Filesystem::open("mqueue")?.mount(mount::Flags::empty())?;
    // A mount's descriptor is a path only.
    let root = openat(&mqueue, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names = Dir::new(root)?.map(|entry| Ok(entry?.file_name().to_owned()));
    let names: Vec<_> = names.collect::<sys::Result<_>>()?;
    Ok(names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")).count())
}

fn pod_wide(what: &str) -> Obstacle {
    let cure = "remove it (ipcrm, mq_unlink), or use shared memory in /dev/shm";
    Obstacle { what: what.to_owned(), cure: cure.to_owned(), ..Obstacle::default() }
}

fn check_container(id: &str, first: Pid, cgroup: &Cgroup) -> Vec<Obstacle> {
    let may_read_others = credentials::effective().is_ok_and(|set| set & CAP_SYS_RESOURCE != 0);
    let first = Process::new(first);
    let mut obstacles = Vec::new();
    for pid in processes(cgroup).unwrap_or_default() {
        let process = Process::new(pid);
        // One that has ended meanwhile is no obstacle.
        let found = process.findings(&first, may_read_others).unwrap_or_default();
        obstacles.extend(found.into_iter().map(|(what, cure)| Obstacle {
            id: id.to_owned(),
            pid: pid.as_raw_nonzero().get().unsigned_abs(),
            process: fs::read_to_string(process.0.join("comm")).unwrap_or_default().trim().to_owned(),
            what,
            cure: cure.to_owned(),
        }));
    }
    obstacles
}

/// A process's directory in /proc.
struct Process(PathBuf);

impl Process {
    fn new(pid: Pid) -> Self {
        Self(Path::new("/proc").join(pid.as_raw_nonzero().to_string()))
    }

    fn findings(&self, first: &Self, may_read_others: bool) -> io::Result<Vec<Finding>> {
        let status = fs::read_to_string(self.0.join("status"))?;
        let mut found: Vec<Finding> = self.foreign_namespaces(first);
        found.extend(tracer(&status));
        if !may_read_others {
            found.extend(user(&status));
        }
        for entry in fs::read_dir(self.0.join("fd"))? {
            let path = entry?.path();
            let target = fs::read_link(&path)?.to_string_lossy().into_owned();
            let info =
                || fs::read_to_string(self.0.join("fdinfo").join(path.file_name().unwrap_or_default()));
            found.extend(descriptor(&target, &info));
            if target == "anon_inode:inotify" && self.watches_root(&info()?) {
                let cure = "close it, or let it watch a volume";
                found.push(("an inotify watch on its root filesystem".to_owned(), cure));
            }
        }
        found.dedup();
        Ok(found)
    }

    /// CRIU up to 4.2 finds the files of no handle on overlayfs.
    fn watches_root(&self, fdinfo: &str) -> bool {
        let Ok(root) = stat(self.0.join("root")) else { return false };
        // The kernel's own numbers: proc(5).
        let device = major(root.st_dev) << 20 | minor(root.st_dev);
        let watched = fdinfo.lines().filter_map(|line| line.split_once(" sdev:")?.1.split(' ').next());
        watched.filter_map(|device| u32::from_str_radix(device, 16).ok()).any(|watched| watched == device)
    }

    /// A dump takes processes and clocks of one namespace.
    fn foreign_namespaces(&self, first: &Self) -> Vec<Finding> {
        let link = |process: &Self, kind: &str| fs::read_link(process.0.join("ns").join(kind)).ok();
        let differs = |kind: &&&str| link(self, kind) != link(first, kind);
        let cure = "let it run in those of its container";
        ["pid", "user", "time", "net", "ipc", "uts"]
            .iter()
            .filter(differs)
            .map(|kind| (format!("a {kind} namespace of its own"), cure))
            .collect()
    }
}

fn tracer(status: &str) -> Option<Finding> {
    let pid = value(status, "TracerPid:")?.trim().to_owned();
    (pid != "0").then(|| (format!("a tracer, process {pid}"), "detach the debugger"))
}

/// CRIU runs as root, and without the capability may not read the limits of other users' processes.
fn user(status: &str) -> Option<Finding> {
    let ids: Vec<&str> = ["Uid:", "Gid:"].iter().filter_map(|key| value(status, key)).collect();
    let foreign = ids.iter().flat_map(|line| line.split_whitespace().take(3)).any(|id| id != "0");
    let uid = ids.first()?.split_whitespace().next()?;
    let cure = "give the node's daemon CAP_SYS_RESOURCE, which CRIU needs for users other than root";
    foreign.then(|| (format!("user {uid}"), cure))
}

fn value<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key))
}

fn descriptor(target: &str, info: &dyn Fn() -> io::Result<String>) -> Option<Finding> {
    match target {
        "anon_inode:[io_uring]" => {
            Some(("an io_uring".into(), "turn it off in the program (Node.js: UV_USE_IO_URING=0)"))
        }
        "anon_inode:[timerfd]" => {
            let clock = value(&info().ok()?, "clockid:")?.trim().to_owned();
            let cure = "use CLOCK_MONOTONIC or CLOCK_REALTIME";
            (!matches!(clock.as_str(), "0" | "1")).then(|| (format!("a timerfd of clock {clock}"), cure))
        }
        "anon_inode:[userfaultfd]"
        | "anon_inode:[perf_event]"
        | "anon_inode:bpf-prog"
        | "anon_inode:bpf-map" => {
            let name = target.trim_start_matches("anon_inode:");
            Some((format!("a descriptor of {name}"), "close it"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_queues_are_counted() {
        match queues() {
            Err(sys::Errno::PERM) => println!("skipped: a mount needs root"),
            counted => assert!(counted.is_ok(), "{counted:?}"),
        }
    }

    #[test]
    fn users_tracers_and_descriptors_are_named() {
        let status = "Name:\tx\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n";
        assert_eq!((tracer(status), user(status)), (None, None));
        let traced = status.replace("TracerPid:\t0", "TracerPid:\t41");
        assert_eq!(tracer(&traced).unwrap().0, "a tracer, process 41");
        let other = status.replace("Uid:\t0\t0", "Uid:\t1000\t0");
        assert_eq!(user(&other).unwrap().0, "user 1000");
        assert!(user(&status.replace("Gid:\t0", "Gid:\t33")).is_some());
        let none = || Ok(String::new());
        assert_eq!(descriptor("anon_inode:[io_uring]", &none).unwrap().0, "an io_uring");
        assert_eq!(descriptor("pipe:[1]", &none), None);
        let clock = |id| move || Ok(format!("pos:\t0\nclockid: {id}\n"));
        assert_eq!(descriptor("anon_inode:[timerfd]", &clock(1)), None);
        assert_eq!(descriptor("anon_inode:[timerfd]", &clock(7)).unwrap().0, "a timerfd of clock 7");
    }
}

//! From image files to a process tree that has not run yet.
//!
//! The pod's time namespace is joined as late as CRIU allows: its offsets are fixed by the first entry, for an instant
//! that has to be guessed, and the less is still to be done the better the guess.
//!
//! ```text
//! CRIU starts, reads images ─ setup-namespaces: entry() ─ process 1 joins, mounts, memory ─ pre-resume: hold()
//! ```

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::Errno;
use sys::cgroup::Layout;
use sys::namespace::Kind as NamespaceKind;

use super::rpc::{InheritFd, JoinNamespace, Kind, Options, Request};
use super::session::{Place, Point, Session, Verdict};
use super::{Criu, CriuError, dump, log};

const LOG: &str = "restore.log";

/// What to restore and into what.
#[derive(Debug)]
pub struct RestoreOptions<'a> {
    /// How CRIU is started.
    pub criu: &'a Criu,
    /// The pod's own net, ipc and uts namespaces.
    pub namespaces: &'a [(NamespaceKind, BorrowedFd<'a>)],
    /// CRIU's image files, verified. Not written to.
    pub images: BorrowedFd<'a>,
    /// The root filesystem, a mount point in the staging directory.
    pub root: &'a Path,
    /// (destination, staged path) of every external mount.
    pub external: &'a [(String, PathBuf)],
    /// The container's cgroup2 directory, not frozen.
    pub cgroup: BorrowedFd<'a>,
    /// The container's directory in each v1 hierarchy.
    pub legacy_cgroups: &'a [BorrowedFd<'a>],
    /// That of them which shares out the processors: joined when all is restored, because a pod with a small share, or
    /// a quota, would be restored accordingly slowly.
    pub legacy_cpu: Option<BorrowedFd<'a>>,
    /// (what descriptors.json says, what replaces it), such as `("pipe:[123]", fd)`.
    pub stdio: &'a [(String, BorrowedFd<'a>)],
    /// As at the dump.
    pub tcp_established: bool,
    /// From now; then everything that was restored is killed.
    pub deadline: Duration,
}

/// What becomes of a tree that is restored and held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseDecision {
    /// CRIU lets go of it. It runs when its cgroup is thawed.
    Release,
    /// It is killed without having run.
    Abort,
}

/// A restored tree. Its cgroup is frozen.
#[derive(Debug)]
pub struct Restored {
    /// Its process 1 as the caller sees it; a child of the nearest subreaper above the caller.
    pub pid: sys::Pid,
    /// Masters of its terminals, which the tree had no end of itself.
    pub terminals: Vec<OwnedFd>,
}

/// Nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The caller decided so.
    #[error("the restore was given up before anything ran")]
    Aborted,
    /// CRIU never told which process it made.
    #[error("criu reported no process")]
    NoProcess,
    /// The cgroup could not be frozen, so that nothing would have held the tasks.
    #[error("freeze the restored container")]
    Freeze(#[source] Errno),
    /// The tasks could not be put under the container's limits.
    #[error("limit the restored container's share of the processors")]
    Limit(#[source] Errno),
    /// CRIU did not do it.
    #[error(transparent)]
    Criu(#[from] CriuError),
}

/// Restores a container after [`enter`](super::enter) and staging.
///
/// `entry` is called when CRIU is about to make the tree, which waits for the pod's time namespace with its offsets
/// written; none: the restore is given up. `hold` is called when every task is back and stopped, and the cgroup is
/// frozen.
pub fn restore(
    options: &RestoreOptions<'_>,
    entry: &mut dyn FnMut() -> Option<OwnedFd>,
    hold: &mut dyn FnMut(sys::Pid) -> ReleaseDecision,
) -> Result<Restored, RestoreError> {
    let work = work_dir(options.root)?;
    let mut keep = vec![options.images, work.as_fd()];
    keep.extend(options.stdio.iter().map(|(_, fd)| *fd));
    let (own_cgroup, own_cpu) = own_cgroups().map_err(CriuError::step("open own cgroup"))?;
    let place = Place {
        namespaces: options.namespaces,
        cgroup: Some(options.cgroup),
        legacy_cgroups: options.legacy_cgroups,
        cpu: own_cpu.as_ref().map(AsFd::as_fd),
        keep,
    };
    // CRIU opens it by its name below /proc when process 1 joins; until then it is a namespace like any other.
    let time = sys::namespace::own(NamespaceKind::Time).map_err(CriuError::step("open time namespace"))?;
    let request = request(options, &work, &time);
    let session = Session::start(options.criu, &place, options.deadline)?;
    let mut holder = Holder {
        cgroup: options.cgroup,
        cpu: options.legacy_cpu,
        own_cgroup,
        time,
        pid: None,
        terminals: vec![],
        failed: None,
    };
    let answer = session.run(&request, &mut |criu, point| match point.name.as_str() {
        "setup-namespaces" => holder.enter(entry()),
        _ => holder.reached(criu, point, hold),
    });
    if let Some(error) = holder.failed {
        return Err(error);
    }
    if !answer?.success {
        return Err(CriuError::Failed(log::last_errors(&work, LOG)).into());
    }
    let pid = holder.pid.ok_or(RestoreError::NoProcess)?;
    Ok(Restored { pid, terminals: holder.terminals })
}

/// Follows CRIU's notifies up to the hold.
struct Holder<'a> {
    cgroup: BorrowedFd<'a>,
    cpu: Option<BorrowedFd<'a>>,
    own_cgroup: OwnedFd,
    time: OwnedFd,
    pid: Option<sys::Pid>,
    terminals: Vec<OwnedFd>,
    failed: Option<RestoreError>,
}

impl Holder<'_> {
    /// Puts the pod's time namespace where CRIU will look.
    fn enter(&mut self, time: Option<OwnedFd>) -> Verdict {
        let placed = match time {
            Some(time) => rustix::io::dup2(&time, &mut self.time)
                .map_err(|errno| CriuError::step("place time namespace")(errno).into()),
            None => Err(RestoreError::Aborted),
        };
        match placed {
            Ok(()) => Verdict::Go,
            Err(error) => {
                self.failed = Some(error);
                Verdict::RollBack
            }
        }
    }

    fn reached(
        &mut self,
        criu: sys::Pid,
        point: Point,
        hold: &mut dyn FnMut(sys::Pid) -> ReleaseDecision,
    ) -> Verdict {
        self.pid = point.pid.and_then(sys::Pid::from_raw).or(self.pid);
        self.terminals.extend(point.fds);
        if point.name != "pre-resume" {
            return Verdict::Go;
        }
        let decision = self.freeze_without(criu).and_then(|()| match self.pid.map(hold) {
            Some(ReleaseDecision::Release) => Ok(()),
            Some(ReleaseDecision::Abort) => Err(RestoreError::Aborted),
            None => Err(RestoreError::NoProcess),
        });
        match decision {
            Ok(()) => Verdict::Go,
            Err(error) => {
                // CRIU ignores a refusal this late and would let the tasks go. They end here, and CRIU with them: as
                // their tracer it would wait for process 1, which waits for its children's tracer.
                let _gone_with_the_cgroup = write(self.cgroup, "cgroup.kill", b"1");
                self.failed = Some(error);
                Verdict::Die
            }
        }
    }

    /// Freezes the container's cgroup with the tasks in it, but not CRIU.
    fn freeze_without(&self, criu: sys::Pid) -> Result<(), RestoreError> {
        let pid = criu.as_raw_nonzero().to_string();
        write(&self.own_cgroup, "cgroup.procs", pid.as_bytes()).map_err(RestoreError::Freeze)?;
        write(self.cgroup, "cgroup.freeze", b"1").map_err(RestoreError::Freeze)?;
        wait_frozen(self.cgroup).map_err(RestoreError::Freeze)?;
        self.limit_cpu().map_err(RestoreError::Limit)
    }

    /// Puts the tasks, of which there will be no more, under the container's share of the processors.
    fn limit_cpu(&self) -> sys::Result<()> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        for pid in read(self.cgroup, "cgroup.procs")?.lines() {
            write(cpu, "cgroup.procs", pid.as_bytes())?;
        }
        Ok(())
    }
}

fn request(options: &RestoreOptions<'_>, work: &OwnedFd, time: &OwnedFd) -> Request {
    let mount = |(key, path): &(String, PathBuf)| format!("mnt[{key}]:{}", path.display());
    let inherit = |(key, fd): &(String, BorrowedFd<'_>)| InheritFd { key: key.clone(), fd: fd.as_raw_fd() };
    let options = Options {
        images_dir_fd: options.images.as_raw_fd(),
        work_dir_fd: Some(work.as_raw_fd()),
        root: Some(options.root.display().to_string()),
        external: options.external.iter().map(mount).collect(),
        inherit_fd: options.stdio.iter().map(inherit).collect(),
        join_ns: vec![JoinNamespace { kind: "time".into(), path: own_descriptor(time) }],
        tcp_established: Some(options.tcp_established),
        tcp_close: Some(!options.tcp_established),
        ..dump::common(LOG)
    };
    Request { kind: Kind::Restore.into(), options: Some(options), ..Request::default() }
}

/// The path by which another process reaches a descriptor of this one.
fn own_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", sys::process::id().as_raw_nonzero(), fd.as_raw_fd())
}

/// CRIU's working directory: beside the staged root, because a checkpoint is not written to.
fn work_dir(root: &Path) -> Result<OwnedFd, CriuError> {
    let path = root.with_file_name("criu");
    super::make_dir(&path).map_err(CriuError::step("make working directory"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).map_err(CriuError::step("open working directory"))
}

/// The directories that the calling process is in: of cgroup2, and of the v1 hierarchy that shares out the processors.
fn own_cgroups() -> sys::Result<(OwnedFd, Option<OwnedFd>)> {
    let layout = Layout::detect()?;
    let text = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| sys::errno_of(&error))?;
    // "4:cpu,cpuacct:/path", "0::/path": cgroups(7)
    let own = |mount: &Path, controller: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(":/"));
        let of = |list: &str| list.split(',').any(|c| c == controller);
        let path = lines.find_map(|(list, path)| of(list).then_some(path)).ok_or(Errno::NOENT)?;
        openat(CWD, mount.join(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let cpu = layout.v1_of("cpu").map(|mount| own(mount, "cpu")).transpose()?;
    Ok((own(layout.unified.as_deref().ok_or(Errno::NODEV)?, "")?, cpu))
}

fn read(dir: impl AsFd, file: &str) -> sys::Result<String> {
    let mut text = String::new();
    let file = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(file).read_to_string(&mut text).map_err(|error| sys::errno_of(&error))?;
    Ok(text)
}

fn write(dir: impl AsFd, file: &str, bytes: &[u8]) -> sys::Result<()> {
    let file = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// The tasks are stopped by ptrace already, so this is a matter of microseconds.
fn wait_frozen(cgroup: impl AsFd) -> sys::Result<()> {
    let events = openat(cgroup, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let until = Instant::now() + Duration::from_secs(1);
    let mut text = [0; 256];
    loop {
        let read = rustix::io::pread(&events, &mut text, 0)?;
        if String::from_utf8_lossy(&text[..read]).contains("frozen 1") {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Errno::TIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

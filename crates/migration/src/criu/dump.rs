//! From a running process tree to image files.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::AtFlags;
use sys::Errno;
use sys::namespace::Kind as NamespaceKind;

use super::rpc::{CgroupMode, Kind, NetworkLock, Options, PageServer, Request};
use super::session::{Place, Session, Verdict};
use super::{Criu, CriuError, DumpStats, log, mend, stats};

/// CRIU's log of a dump, in the images directory; checkpointctl knows the name.
pub const LOG: &str = "dump.log";
/// CRIU records the clocks of its own time namespace here, and would make a new one from it. Ours are in the manifest.
const OWN_CLOCKS: &str = "timens-0.img";
/// Deleted files that are still open go into the images up to this size, in bytes.
pub(super) const GHOST_LIMIT: u32 = 64 << 20;

/// What to dump and where to.
#[derive(Debug)]
pub struct DumpOptions<'a> {
    /// How CRIU is started.
    pub criu: &'a Criu,
    /// The pod's own net, ipc, uts and time namespaces.
    pub namespaces: &'a [(NamespaceKind, BorrowedFd<'a>)],
    /// Process 1 of the container, as the caller sees it.
    pub pid: sys::Pid,
    /// The container's cgroup2 directory. Its parents must not be frozen; itself it may be.
    pub cgroup: BorrowedFd<'a>,
    /// An empty directory.
    pub images: BorrowedFd<'a>,
    /// A connected stream socket to a page server, which then gets the memory instead of `images`.
    pub page_socket: Option<BorrowedFd<'a>>,
    /// Destinations of the mounts that CRIU is not to look into (see the module's page).
    pub external: &'a [String],
    /// Keep established TCP connections; else they are left out.
    pub tcp_established: bool,
    /// From now; then CRIU rolls back.
    pub deadline: Duration,
}

/// No dump was made; the tasks are as they were.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The caller gave the cut up.
    #[error("the pod was not frozen")]
    NotFrozen,
    /// CRIU's syntax has no way to name this mount.
    #[error("mount destination {0:?} holds a bracket")]
    Destination(String),
    /// CRIU did not do it.
    #[error(transparent)]
    Criu(#[from] CriuError),
}

/// Dumps a container after [`enter`](super::enter).
///
/// `cut` is called when CRIU has started and is about to stop the tasks: it returns once the pod is frozen, or false
/// to give up. On return the container's cgroup is as frozen as it was at the cut.
pub fn dump(options: &DumpOptions<'_>, cut: &mut dyn FnMut() -> bool) -> Result<DumpStats, DumpError> {
    let request = request(options)?;
    let mut keep = vec![options.images, options.cgroup];
    keep.extend(options.page_socket);
    let place = Place { namespaces: options.namespaces, keep, ..Place::default() };
    let mut session = Session::start(options.criu, &place, options.deadline)?;
    session.shut_at_deadline(options.page_socket);
    let mut frozen = true;
    let response = session.run_to_response(&request, &mut |_, point| {
        if point.name == "pre-dump" {
            frozen = cut();
        }
        if frozen { Verdict::Go } else { Verdict::RollBack }
    })?;
    if !frozen {
        return Err(DumpError::NotFrozen);
    }
    if !response.success {
        return Err(CriuError::Failed(log::last_errors(options.images, LOG)).into());
    }
    mend::mend(options.images)
        .map_err(|error| CriuError::Step { step: "mend the images", source: sys::errno_of(&error) })?;
    match rustix::fs::unlinkat(options.images, OWN_CLOCKS, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(stats::read(options.images)),
        Err(errno) => Err(CriuError::Step { step: "unlink timens-0.img", source: errno }.into()),
    }
}

fn request(options: &DumpOptions<'_>) -> Result<Request, DumpError> {
    let external = options.external.iter().map(|destination| match destination.contains(['[', ']']) {
        true => Err(DumpError::Destination(destination.clone())),
        false => Ok(format!("mnt[{destination}]:{destination}")),
    });
    let options = Options {
        images_dir_fd: options.images.as_raw_fd(),
        pid: Some(options.pid.as_raw_nonzero().get()),
        // The caller decides about the tasks' end, when it knows that another copy exists.
        leave_running: Some(true),
        tcp_established: Some(options.tcp_established),
        tcp_close: Some(!options.tcp_established),
        page_server: options.page_socket.map(|socket| PageServer { fd: Some(socket.as_raw_fd()) }),
        external: external.collect::<Result<_, _>>()?,
        freeze_cgroup: Some(format!("/proc/self/fd/{}", options.cgroup.as_fd().as_raw_fd())),
        ..common(LOG)
    };
    Ok(Request { kind: Kind::Dump.into(), options: Some(options), ..Request::default() })
}

/// What dump and restore have in common.
pub(super) fn common(log: &str) -> Options {
    Options {
        log_level: Some(LOG_LEVEL),
        log_file: Some(log.to_owned()),
        notify_scripts: Some(true),
        file_locks: Some(true),
        manage_cgroups_mode: Some(CgroupMode::Ignore.into()),
        network_lock: Some(NetworkLock::Skip.into()),
        orphan_pts_master: Some(true),
        ghost_limit: Some(GHOST_LIMIT),
        ..Options::default()
    }
}

/// Errors and warnings.
const LOG_LEVEL: i32 = 2;

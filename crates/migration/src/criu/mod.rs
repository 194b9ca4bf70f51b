//! CRIU, driven over its RPC by a forked helper of the shim: one process, one request.
//!
//! ```text
//! shim ── fork ── helper ── enter() ── [executor::stage] ── dump() / restore() / probe() ── criu swrk
//! ```
//!
//! The recipe, each part found by trying (CRIU 4.2.1, Linux 6.18):
//! - **CRIU runs inside the pod's net, ipc and uts namespaces, and time's at a dump.** What CRIU shares with its target it neither
//!   dumps nor remakes: no rules and links of the network (25 ms a dump), no hostname and no IPC objects of a
//!   namespace that several containers share, and no time namespace of CRIU's own over ours.
//! - **Mounts**: proc, sysfs, devpts and mqueue are made again by CRIU; everything else is external, so that no `tar`
//!   runs while the pod is frozen. `/tmp` and `/run` are private to the helper: CRIU leaves nothing on the host.
//! - **The freezer**: the container's cgroup2 directory is frozen before and after a dump; between, CRIU holds the
//!   tasks by ptrace. A frozen *parent* would hang CRIU. After a restore the cgroup is frozen in the `pre-resume`
//!   notify, when CRIU still holds every task: CRIU can then let go and leave, and nothing has run an instruction.
//! - **cgroups** are not CRIU's business (`manage_cgroups=ignore`): it starts in the container's cgroup.
//! - **The network is not locked by CRIU** (`skip`): connections are closed, or a guard of ours holds them.
//!
//! Everything here runs in a process that was forked for it and ends with it, because [`enter`] changes the mount
//! namespace for good.

mod dump;
mod log;
mod mend;
mod restore;
mod rpc;
mod session;
mod stats;
mod wire;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::CWD;
use sys::mount::{self, Attributes, Filesystem, Flags, Propagation};
use sys::namespace::{self, Kind as NamespaceKind};
use sys::{Errno, errno_of};

pub use dump::{DumpError, DumpOptions, dump};
pub use restore::{ReleaseDecision, RestoreError, RestoreOptions, Restored, restore};
pub use stats::DumpStats;

use rpc::{Features, Kind, Request, Response};
use session::{Place, Session, Verdict};

/// How CRIU is started on this node.
#[derive(Debug, Clone)]
pub struct Criu {
    /// Its command line without arguments: a program, or a loader with its options and the program.
    pub command: Vec<String>,
    /// A directory on a tmpfs, kept over calls, that CRIU sees as `/run`: what it finds out about the kernel is
    /// kept there (only on tmpfs), which saves 40 to 80 ms a call.
    pub run: PathBuf,
}

/// Why CRIU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// `[criu] command` is empty or holds a NUL byte.
    #[error("no CRIU command on this node: set [criu] command")]
    NoCommand,
    /// A system call around CRIU.
    #[error("{step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What came back.
        source: Errno,
    },
    /// CRIU's last words, from its log.
    #[error("criu: {0}")]
    Failed(String),
    /// It ended without an answer; the exit code, or 128 + signal.
    #[error("criu ended with code {0} and no answer")]
    Died(u32),
    /// The deadline passed; CRIU rolled back.
    #[error("criu did not finish before the deadline")]
    Deadline,
    /// Not the RPC we know.
    #[error("criu sent a message that cannot be read")]
    Message(#[from] prost::DecodeError),
}

impl CriuError {
    fn step(step: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self::Step { step, source }
    }

    /// The errno behind it, if a system call of ours failed.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Step { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// The helper could not be given a place to work in.
#[derive(Debug, thiserror::Error)]
#[error("{step} {object}")]
pub struct EnterError {
    /// What was tried.
    pub step: &'static str,
    /// On what.
    pub object: String,
    /// What came back.
    pub source: Errno,
}

/// Gives the calling process, forked for this, a private copy of the host's mounts in which `/run` is CRIU's and
/// `/tmp` is empty. Returns an empty private directory to stage a root filesystem in.
pub fn enter(criu: &Criu, host_mounts: BorrowedFd<'_>) -> Result<PathBuf, EnterError> {
    let failed = |step: &'static str, object: &Path| {
        let object = object.display().to_string();
        move |source| EnterError { step, object, source }
    };
    let stage = Path::new("/run/stage");
    let root = Path::new("/");
    namespace::setns(host_mounts, NamespaceKind::Mount).map_err(failed("enter mount namespace of", root))?;
    namespace::unshare(NamespaceKind::Mount).map_err(failed("copy mount namespace of", root))?;
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    mount::clone_tree(CWD, &criu.run, false)
        .and_then(|run| {
            mount::set_attributes(open(root)?, true, &private)?;
            // A copy of a part of the host's /run is as shared as that is: what is mounted in it would appear there.
            mount::set_attributes(&run, false, &private)?;
            mount::attach_at(run, "/run")
        })
        .map_err(failed("mount", &criu.run))?;
    make_dir(stage).map_err(failed("make", stage))?;
    for path in [stage, Path::new("/tmp")] {
        tmpfs().and_then(|tmpfs| mount::attach_at(tmpfs, path)).map_err(failed("mount tmpfs on", path))?;
    }
    Ok(stage.to_owned())
}

/// What this node's CRIU is and can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Version, such as (4, 2, 1).
    pub version: (i32, i32, i32),
    /// Soft-dirty tracking: pre-copy is possible.
    pub mem_track: bool,
    /// userfaultfd: post-copy is possible.
    pub lazy_pages: bool,
}

/// Asks CRIU what it is and what the kernel lets it do; fills its cache of kernel features on the way. After
/// [`enter`], in a network namespace whose loopback is up.
pub fn probe(criu: &Criu) -> Result<Probe, CriuError> {
    let ask = |kind: Kind| -> Result<Response, CriuError> {
        let all = Features { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) };
        let request = Request { kind: kind.into(), features: Some(all), ..Request::default() };
        let session = Session::start(criu, &Place::default(), Duration::from_secs(10))?;
        let response = session.run(&request, &mut |_, _| Verdict::Go)?;
        if response.success { Ok(response) } else { Err(CriuError::Failed(format!("{kind:?} refused"))) }
    };
    let version = ask(Kind::Version)?.version.unwrap_or_default();
    let features = ask(Kind::FeatureCheck)?.features.unwrap_or_default();
    Ok(Probe {
        version: (version.major, version.minor, version.sublevel.unwrap_or(0)),
        mem_track: features.mem_track == Some(true),
        lazy_pages: features.lazy_pages == Some(true),
    })
}

fn open(path: &Path) -> sys::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn make_dir(path: &Path) -> sys::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(errno_of(&error)),
        _ => Ok(()),
    }
}

fn tmpfs() -> sys::Result<std::os::fd::OwnedFd> {
    Filesystem::open("tmpfs")?.set("mode", "0700")?.mount(Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV)
}

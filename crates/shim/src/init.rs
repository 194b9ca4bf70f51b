//! From what the daemon started to what a shim is: a session leader and subreaper in a mount namespace with next to
//! nothing in it.
//!
//! The mount namespace holds a tmpfs with `proc/`, a procfs, and `dev/null`, because every mount in it would be
//! copied for each container (1000 of them add 2.7 ms to a clone), and a pin seen from it would keep a dead pod's
//! namespace alive. CRIU needs the host's tools and files, so the namespace the shim came from is kept as a
//! descriptor for its helpers.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat},
    io::Errno,
};
use sys::{
    mount::{self, Attributes, Filesystem, Flags, Propagation},
    namespace::{self, Kind},
    process,
    seqpacket::Listener,
    signal,
};

/// The descriptor that the daemon leaves open: the pod's listening socket.
const LISTENER: i32 = 3;

/// A step of becoming a shim that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct InitError {
    step: &'static str,
    #[source]
    errno: Errno,
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> InitError {
    move |errno| InitError { step, errno }
}

/// What the rest of the shim's life is built on.
pub struct Init {
    pub listener: Listener,
    /// Mount namespace of the host (of the daemon).
    pub host_mounts: OwnedFd,
}

/// Must be called once, first, with one thread.
pub fn run() -> Result<Init, InitError> {
    let listener =
        Listener::from_fd(process::inherited(LISTENER).map_err(step("take the socket on descriptor 3"))?);
    listener.set_nonblocking(true).map_err(step("set the socket non-blocking"))?;
    rustix::process::umask(Mode::empty());
    // EPERM: a session leader already.
    process::new_session()
        .or_else(|e| if e == Errno::PERM { Ok(()) } else { Err(e) })
        .map_err(step("setsid"))?;
    process::become_subreaper().map_err(step("become subreaper"))?;
    process::set_undumpable().map_err(step("become undumpable"))?;
    signal::ignore_broken_pipes();
    let host_mounts = namespace::own(Kind::Mount).map_err(step("open the host's mount namespace"))?;
    namespace::unshare(Kind::Mount).map_err(step("unshare the mount namespace"))?;
    empty_root().map_err(step("move into an empty root"))?;
    Ok(Init { listener, host_mounts })
}

/// Replaces the root by a tmpfs with `proc` and `dev/null` alone.
fn empty_root() -> Result<(), Errno> {
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    mount::set_attributes(open_directory("/")?, true, &private)?;
    let tmpfs = Filesystem::open("tmpfs")?;
    tmpfs.set("mode", "0755")?.set("size", "64k")?;
    let root = tmpfs.mount(Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NOEXEC)?;
    mkdirat(&root, "proc", Mode::from_raw_mode(0o555))?;
    mkdirat(&root, "dev", Mode::from_raw_mode(0o755))?;
    mknodat(&root, "dev/null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))?;
    // Attached anywhere, then made the root: pivot(2) wants a mount of this namespace.
    mount::attach_at(&root, "/proc")?;
    mount::pivot(&root)?;
    let quiet = Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV | Flags::MOUNT_ATTR_NOEXEC;
    mount::attach_at(Filesystem::open("proc")?.mount(quiet)?, "/proc")
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

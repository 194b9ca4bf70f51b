//! `clone3`: a child in new namespaces and in its cgroup from the first instruction, with a pidfd.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::namespace::Kinds;
use crate::{Errno, Pid, Result, check};

/// A child process of ours.
#[derive(Debug)]
pub struct Child {
    /// Its id in our pid namespace.
    pub pid: Pid,
    /// For signals and waiting.
    pub pidfd: OwnedFd,
}

/// Where and as what the child starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'fd> {
    /// New namespaces for it.
    pub new: Kinds,
    /// Directory of the cgroup2 cgroup it starts in; `None`: ours.
    pub cgroup: Option<BorrowedFd<'fd>>,
    /// Make it a sibling: a child of our parent, which then reaps it.
    pub sibling: bool,
}

/// Bit 33: for clone3 only, and beyond the `int` that libc's constant is.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// `struct clone_args` up to `cgroup` (CLONE_ARGS_SIZE_VER2, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks: the child runs `child` on a copy of our memory and exits with the code it returns, running no
/// destructors.
///
/// The caller is single-threaded, or the child neither allocates nor locks (see the crate's page).
///
/// # References
/// clone(2), "clone3()".
pub fn fork(options: &Options<'_>, child: impl FnOnce() -> u8) -> Result<Child> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = u64::from(options.new.bits()) | libc::CLONE_PIDFD.cast_unsigned() as u64;
    let mut args = CloneArgs {
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = options.cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    if options.sibling {
        // The exit signal is then the one our own parent gets for us; giving another is EINVAL.
        flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
        args.exit_signal = 0;
    }
    args.flags = flags;
    // SAFETY: no CLONE_VM, so the child has its own copy of everything, stack included; `args` is of the size
    // given and `pidfd` outlives the call.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if check(returned)? == 0 {
        let code = child();
        crate::process::exit_now(code);
    }
    let pid = i32::try_from(returned).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)?;
    // SAFETY: on success the kernel stored a new descriptor that nobody else owns.
    Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

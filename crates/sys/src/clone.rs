//! `clone3`: a child in new namespaces and in its cgroup from the first instruction, with a pidfd.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::namespace::{Kind, Kinds, setns};
use crate::{Errno, Pid, Result, check, pidfd};

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

/// Forks a child that is born in the pid namespace of `process`. Ours for children changes for that long, so no other
/// thread may fork meanwhile.
///
/// # Errors
/// As [`fork`]'s; `ENOMEM` when process 1 of that namespace has ended, `EINVAL` when it lies outside of ours.
///
/// # References
/// setns(2), "PID namespaces".
pub fn fork_into(
    process: BorrowedFd<'_>,
    options: &Options<'_>,
    child: impl FnOnce() -> u8,
) -> Result<Child> {
    let home = pidfd::open(crate::process::id())?;
    setns(process, Kind::Pid)?;
    let born = fork(options, child);
    setns(home, Kind::Pid).expect("a process may always return to the pid namespace that it is in");
    born
}

/// Stack of a process that runs [`aside`], in bytes: some formatting and a few paths.
const ASIDE: usize = 128 << 10;

/// Work that is done aside, and what it gave.
struct Errand<F, T> {
    work: Option<F>,
    result: Option<T>,
}

/// Runs `work` in a process of its own that shares nothing with us but memory, while the calling thread waits for its
/// end: it may close descriptors, enter namespaces and cgroups and fork without our moving, and no page is copied for
/// it. What it gives back must not own descriptors, for they are numbers of its own table.
///
/// A time namespace cannot be entered there (`EUSERS`), but by a process that it forks.
///
/// # Errors
/// As fork's; `ECHILD` when it was killed.
///
/// # References
/// `CLONE_VM` and `CLONE_VFORK` in clone(2).
pub fn aside<F: FnOnce() -> T, T>(work: F) -> Result<T> {
    extern "C" fn run<F: FnOnce() -> T, T>(errand: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the errand below, which its owner does not touch until we have ended. A panic ends in an abort.
        let errand = unsafe { &mut *errand.cast::<Errand<F, T>>() };
        errand.result = errand.work.take().map(|work| work());
        0
    }
    let mut errand = Errand { work: Some(work), result: None };
    let mut stack = [MaybeUninit::<u128>::uninit(); ASIDE / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is ours alone, aligned to 16 bytes, and grows down from its end; stack and errand outlive the
    // process, because CLONE_VFORK holds this thread until it has ended (`run` never executes another program).
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end;
        libc::clone(run::<F, T>, top.cast(), flags, (&raw mut errand).cast())
    };
    check(pid.into())?;
    let pid = Pid::from_raw(pid).ok_or(Errno::CHILD)?;
    pidfd::bury(pid)?;
    errand.result.ok_or(Errno::CHILD)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_one_child_is_born_elsewhere() {
        let (reader, writer) = std::io::pipe().unwrap();
        let wait = || {
            let mut end = [0];
            u8::try_from(rustix::io::read(&reader, &mut end).unwrap()).unwrap()
        };
        // Closes its own copy of the writing end first: it waits for ours.
        let close = || crate::process::close_all_but(&[reader.as_fd()]).unwrap();
        let elsewhere = Options { new: Kind::Pid.into(), ..Options::default() };
        let first = fork(&elsewhere, || {
            close();
            wait()
        });
        let first = match first {
            Err(Errno::PERM) => return println!("skipped: a pid namespace needs root"),
            other => other.unwrap(),
        };
        let own_id = || u8::try_from(crate::process::id().as_raw_nonzero().get()).unwrap_or(u8::MAX);
        let second = fork_into(first.pidfd.as_fd(), &Options::default(), own_id).unwrap();
        assert_eq!(pidfd::wait(&second.pidfd), Ok(pidfd::ExitStatus::Exited(2)));
        let third = fork(&Options::default(), own_id).unwrap();
        assert_ne!(pidfd::wait(&third.pidfd), Ok(pidfd::ExitStatus::Exited(3)));
        drop(writer);
        assert_eq!(pidfd::wait(&first.pidfd), Ok(pidfd::ExitStatus::Exited(0)));
        assert_eq!(fork_into(first.pidfd.as_fd(), &Options::default(), || 0).unwrap_err(), Errno::SRCH);
    }

    #[test]
    fn work_aside_shares_memory_and_no_descriptors() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let (mut seen, before) = (Vec::new(), rustix::process::getpid());
        let forked = aside(|| {
            seen.push(rustix::process::getpid());
            crate::process::close_all_but(&[]).unwrap();
            assert_eq!(rustix::io::fcntl_getfd(&reader), Err(Errno::BADF));
            fork(&Options { sibling: true, ..Options::default() }, || 7).map(|child| {
                let pid = child.pid;
                std::mem::forget(child);
                pid
            })
        });
        assert_eq!(seen.len(), 1);
        assert_ne!(seen, [before]);
        assert!(rustix::io::fcntl_getfd(&reader).is_ok());
        let child = pidfd::open(forked.unwrap().unwrap()).unwrap();
        assert_eq!(pidfd::wait(child.as_fd()), Ok(pidfd::ExitStatus::Exited(7)));
    }
}

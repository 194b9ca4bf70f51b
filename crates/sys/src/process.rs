//! The calling process itself: its last moments before execve, and its place among others.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{DumpableBehavior, Pid, set_child_subreaper, set_dumpable_behavior, setsid};

use crate::spawn::pointers;
use crate::{Errno, Result, check};

/// A program to become, with the pointer arrays execve wants made beforehand.
#[derive(Debug)]
pub struct Image {
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    /// Arguments and environment of the program.
    ///
    /// # Errors
    /// `EINVAL` when one holds a NUL byte.
    pub fn new<S: AsRef<[u8]>>(args: &[S], env: &[S]) -> Result<Self> {
        Ok(Self { args: crate::spawn::c_strings(args)?, env: crate::spawn::c_strings(env)? })
    }

    /// Becomes the program at `path`. Comes back only to say why not.
    pub fn exec(&self, path: &CString) -> Errno {
        let (argv, envp) = (pointers(&self.args), pointers(&self.env));
        // SAFETY: `path` and both arrays are live, NUL- and NULL-terminated.
        let returned =
            unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        check(returned).err().unwrap_or(Errno::IO)
    }
}

/// Ends the process at once, without destructors or exit handlers.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: never returns and touches no memory of ours.
    unsafe { libc::_exit(code.into()) }
}

/// Nobody but the host's root may attach to us or read our `/proc` entries (until execve).
pub fn set_undumpable() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Orphans among our descendants become our children.
pub fn become_subreaper() -> Result<()> {
    set_child_subreaper(Some(rustix::process::getpid()))
}

/// A session of our own, without a controlling terminal.
pub fn new_session() -> Result<()> {
    setsid().map(drop)
}

/// Our own id as we see it.
#[must_use]
pub fn id() -> Pid {
    rustix::process::getpid()
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # References
/// `CLOSE_RANGE_CLOEXEC` in close_range(2).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: only marks descriptors; nothing is closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Puts a descriptor at number 0, 1 or 2, there open over execve.
pub fn place(fd: impl AsFd, stream: Stream) -> Result<()> {
    match stream {
        Stream::In => rustix::stdio::dup2_stdin(fd),
        Stream::Out => rustix::stdio::dup2_stdout(fd),
        Stream::Err => rustix::stdio::dup2_stderr(fd),
    }
}

/// One of the three standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// 0.
    In,
    /// 1.
    Out,
    /// 2.
    Err,
}

/// Takes over a descriptor that the parent left open at this number; once per number and process.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    if number < 3 {
        return Err(Errno::BADF);
    }
    // SAFETY: borrowed for one call only, which reports a closed number as EBADF.
    rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open; by this function's contract it was left to us and is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets resource limit number `resource` (`RLIMIT_*`).
///
/// # Errors
/// `EPERM` when raising a hard limit without CAP_SYS_RESOURCE, or beyond `fs.nr_open`.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: a live structure to read, and no old value asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, none) })?;
    Ok(())
}

/// Closes every descriptor from 3 on that is not in `keep`: what a child must not hold of its siblings.
///
/// Owners of the closed ones must never be dropped in this process; a forked child that ends by execve or
/// [`exit_now`] drops none.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        close_range(first, fd.wrapping_sub(1))?;
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: by the contract of the only caller nobody uses these descriptors any more.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Raises the hard limit `resource` to `hard` where it is lower, and leaves the soft one.
///
/// # Errors
/// `EPERM` without CAP_SYS_RESOURCE.
pub fn raise_limit(resource: u32, hard: u64) -> Result<()> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: asks for the old value into a live structure, sets nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, none, &raw mut now) })?;
    if hard <= now.rlim_max { Ok(()) } else { set_limit(resource, now.rlim_cur, hard) }
}

//! Handling page faults in user space: so far, only whether we may.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::{Errno, Result, check};

/// A descriptor for faults of user and kernel mode, as lazy pages need.
///
/// # Errors
/// `ENOSYS` where the kernel has it not, `EPERM` without CAP_SYS_PTRACE.
///
/// # References
/// userfaultfd(2).
pub fn open() -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a plain number.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

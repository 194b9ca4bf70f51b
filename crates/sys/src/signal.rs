//! Signals as a descriptor for an event loop, and their defaults for a program about to start.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

use crate::{Errno, Result, check};

/// Signals that arrive by reading.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks these signals for the calling thread and collects them. Does not block in [`SignalFd::next`].
    ///
    /// # References
    /// signalfd(2).
    pub fn new(signals: &[Signal]) -> Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is initialised before use and outlives the calls.
        let raw = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
            }
            check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()).into())?;
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        check(raw.into())?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// The number of a signal that arrived, `None` when none is waiting.
    pub fn next(&self) -> Result<Option<i32>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        // SAFETY: room for one whole record.
        let n = unsafe {
            libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size_of::<libc::signalfd_siginfo>())
        };
        match check(n as libc::c_long) {
            Err(Errno::AGAIN) => Ok(None),
            Err(other) => Err(other),
            // SAFETY: signalfd gives whole records only.
            Ok(_) => Ok(Some(unsafe { info.assume_init() }.ssi_signo.cast_signed())),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Every signal unblocked, and SIGPIPE at its default: what execve does not reset by itself. No other is ignored in a
/// process of ours, for [`crate::spawn`] starts the shim with all at their defaults.
pub fn reset() -> Result<()> {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised before it is read.
    let returned = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    check(returned.into()).map(drop)
}

/// Writing to a closed pipe or socket is an error, not an end: for programs that live on.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Reaps children and does nothing else until it is killed. Process 1 of a pid namespace gets no signal it has no
/// handler for, except from outside, KILL.
pub fn reap_forever() -> ! {
    // SAFETY: SIG_IGN runs no code of ours; for SIGCHLD it makes the kernel reap, see wait(2).
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    loop {
        // SAFETY: waits, touches nothing.
        unsafe { libc::pause() };
    }
}

//! The kernel interface of Meridian, and the only crate with `unsafe` in it.
//!
//! ```text
//! daemon ── seqpacket, memfd, spawn, mount, root, cgroup, netns ──┐
//! shim, executor ── clone, pidfd, namespace, timens, credentials, ├── sys ── rustix, libc::syscall
//!                   seccomp, bpf, pty, process, signal ───────────┘
//! ```
//!
//! Descriptors go in as `AsFd`/`BorrowedFd` and come out as `OwnedFd`, always close-on-exec; flags are types, not
//! numbers; the error is the plain [`Errno`], because only the caller knows which object to name beside it. Calls
//! that rustix already offers safely and completely (epoll, pipes, `*at` file calls, termios) are used from rustix
//! directly and are not wrapped again here.
//!
//! Whoever calls [`clone::fork`] must be single-threaded: the child runs Rust code that allocates, which would wait
//! forever for a lock that another thread held. The shim and its helpers are; the daemon never forks and uses
//! [`spawn`] instead.
//!
//! [`clone::aside`] is cheaper where no copy of the memory is wanted: it borrows the caller's while the caller waits.
//!
//! What this crate must not do: decide policy, format messages, or know what a pod is.

#![allow(unsafe_code)]

pub mod bpf;
pub mod cgroup;
pub mod clone;
pub mod credentials;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netns;
pub mod pidfd;
pub mod process;
pub mod pty;
pub mod root;
pub mod schedule;
pub mod seccomp;
pub mod seqpacket;
pub mod signal;
pub mod spawn;
pub mod timens;
pub mod timex;
pub mod userfaultfd;

pub use rustix::io::Errno;
pub use rustix::process::{Pid, Signal};

/// Result of one system call, or of a few that fail alike.
pub type Result<T> = std::result::Result<T, Errno>;

/// What libc's `-1` return means, as a [`Result`].
fn check(returned: libc::c_long) -> Result<libc::c_long> {
    if returned < 0 { Err(last_errno()) } else { Ok(returned) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The errno of an `io::Error`, `EIO` when it carries none.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

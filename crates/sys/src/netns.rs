//! Work inside another network namespace, from a process with many threads.
//!
//! A thread may enter a network namespace alone (sockets it makes there stay there); user, time and mount
//! namespaces forbid it, which is why the other kinds are the shim's business.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use crate::namespace::{Kind, setns};
use crate::{Errno, Result};

/// Runs `work` in a new OS thread that has entered `netns`, and waits for it. Blocks the caller: call it where
/// blocking is fine.
///
/// # Errors
/// `EAGAIN` when no thread could be made, `ENOTRECOVERABLE` when `work` panicked, else setns(2)'s.
pub fn run<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = move || {
            setns(netns.as_fd(), Kind::Net)?;
            Ok(work())
        };
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside);
        thread.map_err(|e| crate::errno_of(&e))?.join().unwrap_or(Err(Errno::NOTRECOVERABLE))
    })
}

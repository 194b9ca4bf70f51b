//! Work inside another network namespace, from a process with many threads.
//!
//! A thread may enter a network namespace alone (sockets it makes there stay there); user, time and mount
//! namespaces forbid it, which is why the other kinds are the shim's business.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::namespace::{Kind, setns};
use crate::{Errno, Result, check};

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

/// As [`run`], in one namespace after the other, by one thread: making a thread costs more than most `work`. A namespace
/// that cannot be entered gives its error and does not keep the others from their turn.
///
/// # Errors
/// `EAGAIN` when no thread could be made, `ENOTRECOVERABLE` when `work` panicked.
pub fn each<N: AsFd + Sync, T: Send>(
    namespaces: &[N],
    work: impl Fn() -> T + Send,
) -> Result<Vec<Result<T>>> {
    thread::scope(|scope| {
        let one = move |netns: &N| setns(netns.as_fd(), Kind::Net).map(|()| work());
        let all = move || namespaces.iter().map(one).collect();
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, all);
        thread.map_err(|e| crate::errno_of(&e))?.join().map_err(|_| Errno::NOTRECOVERABLE)
    })
}

/// Sets the loopback interface of the caller's network namespace up.
///
/// # References
/// `SIOCSIFFLAGS` in netdevice(7).
pub fn bring_up_loopback() -> Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid: an empty name and a union of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(i16::MAX);
    // SAFETY: a live socket and a request that the kernel only reads.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())?;
    Ok(())
}

//! `posix_spawn`: the only way the daemon starts a process. It costs 80 us at any size of the caller, where `fork`
//! costs 18 us per MB, and runs nothing of ours in between.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::{Errno, Pid, Result};

/// A process that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Its id in our pid namespace.
    pub pid: Pid,
    /// For waiting and signals; the process is our child, so the id cannot have been reused before this was opened.
    pub pidfd: OwnedFd,
}

/// Starts `program` with exactly these arguments, environment and descriptors.
///
/// `fds` lists (descriptor here, number there); everything else is closed there, 0, 1 and 2 included. Signals are
/// reset to their defaults and unblocked.
///
/// # Errors
/// The errno of `execve` too: glibc reports it through the spawn.
///
/// # References
/// posix_spawn(3).
pub fn spawn(
    program: &CString,
    args: &[CString],
    env: &[CString],
    fds: &[(BorrowedFd<'_>, RawFd)],
) -> Result<Spawned> {
    // Sources above every target, so that no dup2 overwrites a source that is still to come.
    let above = fds.iter().map(|(_, target)| target + 1).max().unwrap_or(3).max(3);
    let mut sources = Vec::with_capacity(fds.len());
    for (fd, target) in fds {
        sources.push((fcntl_dupfd_cloexec(fd, above)?, *target));
    }
    let actions = Actions::new(&sources)?;
    let attributes = Attributes::new()?;
    let argv = pointers(args);
    let envp = pointers(env);
    let mut pid = 0;
    // SAFETY: every pointer is valid for the call: C strings and NULL-terminated arrays of them borrowed from
    // `args` and `env`, initialised attribute and action objects that drop later.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    };
    check(errno)?;
    let pid = Pid::from_raw(pid).ok_or(Errno::CHILD)?;
    Ok(Spawned { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
}

/// C strings of `items`, for [`spawn`] and `execve`.
///
/// # Errors
/// `EINVAL` when one holds a NUL byte.
pub fn c_strings<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Result<Vec<CString>> {
    items.into_iter().map(|s| CString::new(s.as_ref()).map_err(|_| Errno::INVAL)).collect()
}

pub(crate) fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn check(errno: libc::c_int) -> Result<()> {
    if errno == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(errno)) }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(fds: &[(OwnedFd, RawFd)]) -> Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: initialises the object it is given; read only after success.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        let mut actions = Self(unsafe { raw.assume_init() });
        let mut next = 0;
        let mut targets: Vec<_> = fds.iter().collect();
        targets.sort_by_key(|(_, target)| *target);
        for (source, target) in targets {
            for unused in next..*target {
                // SAFETY: an initialised object and a plain number; closing a closed descriptor is ignored.
                check(unsafe { libc::posix_spawn_file_actions_addclose(&raw mut actions.0, unused) })?;
            }
            // SAFETY: an initialised object and two plain numbers.
            check(unsafe {
                libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, source.as_raw_fd(), *target)
            })?;
            next = target + 1;
        }
        // SAFETY: an initialised object and a plain number.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut actions.0, next) })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: initialises the object it is given; read only after success.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        let mut attributes = Self(unsafe { raw.assume_init() });
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is filled before it is read, and the attribute object is initialised.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, set.as_ptr()))?;
            libc::sigfillset(set.as_mut_ptr());
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, set.as_ptr()))?;
        }
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = libc::c_short::try_from(flags).map_err(|_| Errno::INVAL)?;
        // SAFETY: the attribute object is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::pidfd;

    #[test]
    fn only_the_given_descriptors_exist_there() {
        let (_read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let shell = CString::new("/bin/sh").unwrap();
        let script = "test -e /proc/$$/fd/5 || exit 5
            for n in 0 1 2 3 4 6 7 8 9 10 11 12; do test -e /proc/$$/fd/$n && exit 4; done
            exit 3";
        let args = c_strings(["sh", "-c", script]).unwrap();
        let child = spawn(&shell, &args, &[], &[(write.as_fd(), 5)]).unwrap();
        assert_eq!(pidfd::wait(&child.pidfd).unwrap().code(), 3);
    }

    #[test]
    fn a_missing_program_is_an_error_of_the_spawn() {
        let none = CString::new("/nonexistent").unwrap();
        assert_eq!(spawn(&none, &[], &[], &[]).unwrap_err(), Errno::NOENT);
    }
}

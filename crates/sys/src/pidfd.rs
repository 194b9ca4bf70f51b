//! Processes by descriptor: no signal, wait or join can hit a process that reused the number.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::process::{
    PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::{Errno, Pid, Result, Signal};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code, 0..=255.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

impl ExitStatus {
    /// The code a shell and CRI show: the exit code, or 128 + signal.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code),
            Self::Signaled(signal) => 128 + u32::from(signal),
        }
    }

    /// Ended by itself with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    fn from_wait(status: &WaitIdStatus) -> Self {
        let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Exited(byte(code)),
            (None, signal) => Self::Signaled(byte(signal.unwrap_or(0))),
        }
    }
}

/// A descriptor of process `pid`. Race-free only for our own unreaped children; for others recheck what you took
/// `pid` from.
pub fn open(pid: Pid) -> Result<OwnedFd> {
    pidfd_open(pid, PidfdFlags::empty())
}

/// Sends a signal.
///
/// # Errors
/// `ESRCH` when it was reaped already.
pub fn kill(pidfd: impl AsFd, signal: Signal) -> Result<()> {
    pidfd_send_signal(pidfd, signal)
}

/// Sends signal number 1..=64, realtime signals included.
///
/// # Errors
/// `EINVAL` for another number.
pub fn kill_raw(pidfd: impl AsFd, signal: i32) -> Result<()> {
    if !(1..=64).contains(&signal) {
        return Err(Errno::INVAL);
    }
    // SAFETY: 1..=64 are the signal numbers the kernel knows, and the signal goes to another process; glibc's
    // reserved ones (32, 33) matter only when sent to a thread of one's own.
    kill(pidfd, unsafe { Signal::from_raw_unchecked(signal) })
}

/// Waits for our child to end and reaps it.
pub fn wait(pidfd: impl AsFd) -> Result<ExitStatus> {
    let fd = pidfd.as_fd();
    let status = retry_on_intr(|| waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED))?;
    status.as_ref().map(ExitStatus::from_wait).ok_or(Errno::CHILD)
}

/// Waits for our child by its number, which is its own until it is reaped.
pub(crate) fn bury(pid: Pid) -> Result<()> {
    retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)).map(drop)
}

/// Reaps our child if it has ended.
pub fn try_wait(pidfd: impl AsFd) -> Result<Option<ExitStatus>> {
    let fd = pidfd.as_fd();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = retry_on_intr(|| waitid(WaitId::PidFd(fd), options))?;
    Ok(status.as_ref().map(ExitStatus::from_wait))
}

/// Reaps one ended child of ours, whoever it is: a subreaper's way to bury orphans.
pub fn try_wait_any() -> Result<Option<(Pid, ExitStatus)>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Look first, then reap by id: waitid reports no id through rustix's status.
    match waitpid_any(options)? {
        None => Ok(None),
        Some(pid) => {
            let status = retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED))?;
            Ok(status.as_ref().map(|s| (pid, ExitStatus::from_wait(s))))
        }
    }
}

fn waitpid_any(options: WaitIdOptions) -> Result<Option<Pid>> {
    let flags = i32::try_from(options.bits()).map_err(|_| Errno::INVAL)?;
    // SAFETY: an all-zero siginfo_t is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for the write.
    let returned = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    match crate::check(returned.into()) {
        Err(Errno::CHILD) => return Ok(None),
        other => other?,
    };
    // SAFETY: waitid filled the SIGCHLD member, or left the whole zero when nobody has ended.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_signals() {
        let run = |script: &str| {
            let args = crate::spawn::c_strings(["sh", "-c", script]).unwrap();
            let shell = std::ffi::CString::new("/bin/sh").unwrap();
            wait(crate::spawn::spawn(&shell, &args, &[], &[]).unwrap().pidfd).unwrap()
        };
        assert_eq!(run("exit 42"), ExitStatus::Exited(42));
        assert_eq!(run("kill -9 $$").code(), 137);
        assert_eq!(kill_raw(open(rustix::process::getpid()).unwrap(), 65), Err(Errno::INVAL));
    }
}

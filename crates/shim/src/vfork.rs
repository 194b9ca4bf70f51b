//! Tasks that cannot be dumped at this instant: parents in vfork(2).
//!
//! Such a parent sleeps in the kernel until its child executes a program or ends. The freezer counts it as frozen, but
//! ptrace cannot stop it, and CRIU waits for that until its deadline (seen with busybox's shell; posix_spawn, Go and
//! Python start programs the same way). The window is some 100 us long, so the cut is simply made again a little later.

use executor::Cgroup;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use crate::signal::read;

/// Where such a parent sleeps: wait_for_vfork_done, which compilers put into its caller.
const WAITING_IN: [&[u8]; 2] = [b"kernel_clone", b"wait_for_vfork_done"];

/// Whether a thread of this cgroup, which is frozen, waits for its child in vfork. About 3 us a thread.
pub fn is_waiting(cgroup: &Cgroup) -> bool {
    let threads = read(cgroup, "cgroup.threads").unwrap_or_default();
    threads.lines().any(|thread| sleeps_in_clone(thread).unwrap_or(false))
}

/// wchan is a bare 0 while a task is on its way into sleep, or is left in the scheduler's queue for a while (since Linux
/// 6.12). Its state tells as well: of what the freezer counts, all but a parent in vfork sleep interruptibly, and that
/// one is counted even before it sleeps.
fn sleeps_in_clone(thread: &str) -> Result<bool, Errno> {
    let mut text = [0; 512];
    let function = read_of(thread, "wchan", &mut text)?;
    if function != b"0" {
        return Ok(WAITING_IN.contains(&function));
    }
    let stat = read_of(thread, "stat", &mut text)?;
    let after_name = stat.iter().rposition(|byte| *byte == b')').map_or(stat, |end| &stat[end..]);
    Ok(after_name.starts_with(b") D") || after_name.starts_with(b") R"))
}

fn read_of<'a>(thread: &str, file: &str, text: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let file =
        openat(CWD, format!("/proc/{thread}/{file}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut *text)?;
    Ok(&text[..length])
}

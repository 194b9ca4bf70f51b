//! A helper: a process that enters what the shim could not leave again, and forks the wanted process as the shim's own
//! child (`CLONE_PARENT`). It borrows the shim's memory while the shim stands still, so that only the wanted process
//! costs a copy of it. Dumpable or not is a property of that memory: a helper that becomes undumpable makes the shim so
//! too, which it is anyway.

use namespaces::channel::Step;
use sys::clone::{Child, aside};
use sys::pidfd;

use crate::Failure;
use crate::error::CreateError;

/// Runs `work` in a helper, which gives the process that it forked.
pub fn birth(work: impl FnOnce() -> Result<Child, Failure>) -> Result<Child, CreateError> {
    let born = aside(|| work().map(|child| child.pid)).step("clone", "helper")?;
    let pid = born?;
    // Ours and not reaped yet: the number is its own.
    let pidfd = pidfd::open(pid).step("pidfd_open", "the helper's child")?;
    Ok(Child { pid, pidfd })
}

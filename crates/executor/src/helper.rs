//! A helper: a short-lived child that enters what the shim could not leave again, and forks the wanted process as
//! the shim's own child (`CLONE_PARENT`).

use namespaces::channel::{Channel, Step};
use sys::clone::{Child, Options, fork};
use sys::pidfd;

use crate::Failure;
use crate::error::CreateError;

/// Runs `work` in a helper, which gives the process that it forked. That process has a channel of its own, so that its
/// first word cannot come before the helper's last.
pub fn birth(work: impl FnOnce(&Channel) -> Result<Child, Failure>) -> Result<Child, CreateError> {
    let (ours, theirs) = Channel::pair().step("socketpair", "helper")?;
    let helper = fork(&Options::default(), || {
        let reported = work(&theirs).and_then(|child| theirs.born(&child).step("report", "child"));
        match reported {
            Ok(()) => 0,
            Err(failure) => {
                theirs.failed(&failure);
                1
            }
        }
    });
    let helper = helper.step("clone3", "helper")?;
    drop(theirs);
    let born = ours.wait_born();
    let _ = pidfd::wait(&helper.pidfd);
    Ok(born?)
}

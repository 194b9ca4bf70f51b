//! The three standard streams of a program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use namespaces::channel::Step;
use sys::process::{Stream, place};

use crate::Failure;

/// The program's ends. Ignored when it gets a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// What it reads; `None`: nothing, `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Where it writes; `None`: nowhere.
    pub stdout: Option<OwnedFd>,
    /// Where it complains; `None`: nowhere.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Puts the streams at 0, 1 and 2, `null` where there is none. Only in the child.
    pub(crate) fn place(&self, null: BorrowedFd<'_>) -> Result<(), Failure> {
        let streams = [(&self.stdin, Stream::In), (&self.stdout, Stream::Out), (&self.stderr, Stream::Err)];
        for (fd, stream) in streams {
            place(fd.as_ref().map_or(null, AsFd::as_fd), stream).step("place", format!("{stream:?}"))?;
        }
        Ok(())
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }
}

/// Makes `slave` all three streams and the controlling terminal of the calling session leader.
pub(crate) fn place_terminal(slave: BorrowedFd<'_>) -> Result<(), Failure> {
    sys::pty::make_controlling(slave).step("set controlling terminal", "")?;
    for stream in [Stream::In, Stream::Out, Stream::Err] {
        place(slave, stream).step("place", format!("{stream:?}"))?;
    }
    Ok(())
}

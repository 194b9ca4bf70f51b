//! A container's terminal, seen from its master end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// The master of a pty. The log reads from one copy of the descriptor, resizing uses the other, which lives until
/// the container is deleted.
pub struct Terminal {
    master: OwnedFd,
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

impl Terminal {
    pub fn new(master: OwnedFd) -> Self {
        Self { master }
    }

    /// A second descriptor of the master, for reading.
    pub fn reader(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self.master.as_fd(), 3)
    }

    /// Size in character cells, cut to what a terminal can have.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Errno> {
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        sys::pty::resize(&self.master, cells(width), cells(height))
    }
}

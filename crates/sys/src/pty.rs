//! Pseudo-terminals of one devpts instance.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstatfs, openat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use crate::{Errno, Result};

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end that a terminal emulator (or a log writer) holds.
    pub master: OwnedFd,
    /// The end that programs use.
    pub slave: OwnedFd,
}

/// A new terminal of the devpts instance mounted at `devpts`. The slave is opened through the master
/// (`TIOCGPTPEER`), never by a path that a container could have replaced (CVE-2025-52565).
///
/// # Errors
/// `ENODEV` when `devpts` is not a devpts.
pub fn open(devpts: impl AsFd) -> Result<Pty> {
    if fstatfs(&devpts)?.f_type != libc::DEVPTS_SUPER_MAGIC {
        return Err(Errno::NODEV);
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = openat(devpts, "ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok(Pty { master, slave })
}

/// Makes the slave the controlling terminal of the calling session leader, which has none.
pub fn make_controlling(slave: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave)
}

/// Sets the size in character cells; the foreground processes get SIGWINCH.
pub fn resize(master: impl AsFd, width: u16, height: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}

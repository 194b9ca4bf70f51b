//! Standard streams as anonymous pipes.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

/// One pipe, by who holds which end.
pub struct Pipe {
    pub container: OwnedFd,
    pub shim: OwnedFd,
}

/// Owner that the container's program runs as, on the host: a program that opens /dev/stdout anew opens the pipe's
/// inode, and must be let in when it is not root.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// For what the container writes.
pub fn output(owner: Owner) -> Result<Pipe, Errno> {
    let (read, write) = make(owner)?;
    Ok(Pipe { container: write, shim: read })
}

/// For what the container reads.
pub fn input(owner: Owner) -> Result<Pipe, Errno> {
    let (read, write) = make(owner)?;
    Ok(Pipe { container: read, shim: write })
}

fn make(owner: Owner) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchown(&write, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    Ok((read, write))
}

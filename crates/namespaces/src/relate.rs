//! Which namespace is which, and which owns which.

use std::fmt;
use std::os::fd::AsFd;

use sys::Result;
use sys::namespace::{self, Kind};

/// A namespace as `/proc/PID/ns` shows it; unique on a host while the namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// What it isolates.
    pub kind: Kind,
    /// Its inode on nsfs.
    pub inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:[{}]", self.kind.name(), self.inode)
    }
}

/// A namespace and its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation {
    /// Itself.
    pub identity: Identity,
    /// Inode of the user namespace that owns it; `None` beyond the caller's reach.
    pub owner: Option<u64>,
    /// Inode of its parent; user and pid namespaces only, `None` at the top or beyond the caller's reach.
    pub parent: Option<u64>,
}

/// Kind and inode of a namespace descriptor.
///
/// # Errors
/// `ENOTTY` when it is not one.
pub fn identify(fd: impl AsFd) -> Result<Identity> {
    Ok(Identity { kind: namespace::kind(&fd)?, inode: namespace::inode(&fd)? })
}

/// A namespace with its owner and parent.
///
/// # References
/// ioctl_ns(2).
pub fn relate(fd: impl AsFd) -> Result<Relation> {
    let reach = |found: Result<_>| found.ok().and_then(|fd: std::os::fd::OwnedFd| namespace::inode(fd).ok());
    Ok(Relation {
        identity: identify(&fd)?,
        owner: reach(namespace::owner(&fd)),
        parent: reach(namespace::parent(&fd)),
    })
}

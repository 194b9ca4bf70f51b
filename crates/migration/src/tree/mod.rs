//! A directory tree to a plain tar and back: what a container changed in its root filesystem, what is in `/dev/shm`.
//!
//! ```text
//! frozen pod: upper directory of the overlay ── pack ──> rootfs-diff.tar + deleted paths
//! new pod:    fresh overlay mount <──────────── remove, unpack ──┘
//! ```
//!
//! The tar has no whiteouts; what was deleted is a list beside it, as CRI-O and Podman write it. A directory that the
//! container replaced whole (overlay's "opaque") is in both: first removed, then made again.
//!
//! Neither side trusts the other. Packing never follows a symlink. Unpacking resolves every name inside the target
//! root with `openat2`, makes files only where none was, bounds their number and size, and restores only extended
//! attributes that a container could have set itself, and file capabilities.

mod pack;
mod unpack;

pub use pack::{PackError, Packed, Source, pack};
pub use unpack::{Limits, UnpackError, remove, unpack};

/// Extended attributes that travel: the user's own, POSIX ACLs and file capabilities. Overlay's own bookkeeping
/// (`trusted.overlay.*`) and labels of security modules belong to the host.
fn travels(attribute: &str) -> bool {
    attribute.starts_with("user.")
        || attribute == "security.capability"
        || attribute.starts_with("system.posix_acl_")
}

/// Key prefix of extended attributes in PAX headers, as GNU tar, libarchive and Go write them.
const PAX_XATTR: &str = "SCHILY.xattr.";

#[cfg(test)]
mod tests;

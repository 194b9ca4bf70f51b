//! Whiteouts: how a layer says that something below it is gone.
//!
//! An archive says it by names (OCI image specification, "Whiteouts"), overlayfs by a character device 0:0 or an
//! attribute on a directory. A whiteout hides what lower layers hold, never what the same layer holds, wherever in the
//! archive it stands.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{self, FileType, Mode};

use super::tree::{self, Tree};

const PREFIX: &[u8] = b".wh.";
/// Beginning of names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name says about lower layers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// The name is gone.
    Name(&'a [u8]),
    /// Everything in this directory is gone.
    Everything,
    /// Nothing: bookkeeping of aufs.
    Ignored,
    /// It names no file: `.wh.`, `.wh..`, `.wh...`.
    Invalid,
}

impl<'a> Whiteout<'a> {
    /// What `name` says, `None` for the name of an ordinary entry.
    pub(super) fn parse(name: &'a [u8]) -> Option<Self> {
        let hidden = name.strip_prefix(PREFIX)?;
        Some(match hidden {
            _ if name == OPAQUE => Self::Everything,
            _ if name.starts_with(AUFS) => Self::Ignored,
            b"" | b"." | b".." => Self::Invalid,
            hidden => Self::Name(hidden),
        })
    }
}

/// Hides `name` of the lower layers in `directory`.
pub(super) fn hide(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(rustix::io::Errno::EXIST) => hide_below(directory, name),
        made => Ok(made?),
    }
}

/// The layer itself has `name`: only if that is a directory can anything below show through it.
fn hide_below(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match tree::open_child(directory, name) {
        Ok(child) => tree::make_opaque(child),
        Err(_) => Ok(()),
    }
}

/// Hides everything that lower layers hold in the directory at `components`; true if that is the whole image below.
pub(super) fn hide_everything(tree: &mut Tree<'_>, components: &[&[u8]]) -> io::Result<bool> {
    tree::make_opaque(tree.directory(components)?)?;
    Ok(components.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whiteouts() {
        for (name, whiteout) in [
            (&b"file"[..], None),
            (b".why", None),
            (b".wh", None),
            (b".wh.file", Some(Whiteout::Name(b"file"))),
            (b".wh..hidden", Some(Whiteout::Name(b".hidden"))),
            (b".wh..wh..opq", Some(Whiteout::Everything)),
            (b".wh..wh.plnk", Some(Whiteout::Ignored)),
            (b".wh.", Some(Whiteout::Invalid)),
            (b".wh..", Some(Whiteout::Invalid)),
            (b".wh...", Some(Whiteout::Invalid)),
        ] {
            assert_eq!(Whiteout::parse(name), whiteout);
        }
    }
}

//! Making one entry of a layer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};

use super::archive::{Kind, Member};
use super::tree::{self, SteadyTime, Taken, Tree};
use super::{NameRule, UnpackError};

/// Extended attributes of one entry that are kept.
const XATTRS: usize = 64;
const CHUNK: usize = 128 << 10;

/// Makes `member` as `name` in `parent`, with its data from `data`.
pub(super) fn make(
    tree: &Tree<'_>,
    parent: &OwnedFd,
    name: &[u8],
    member: &Member,
    data: &mut impl Read,
) -> Result<(), UnpackError> {
    let at = |step| move |source| UnpackError::entry(member, step, source);
    let steady = SteadyTime::of(parent).map_err(at("stat parent"))?;
    let target = match member.kind {
        Kind::Hardlink => {
            Some(super::components(&member.link).map_err(|rule| UnpackError::name(member, rule))?)
        }
        _ => None,
    };
    let taken = tree::vacate(parent, name, member.kind == Kind::Directory).map_err(at("replace"))?;
    match member.kind {
        Kind::Directory => directory(parent, name, member, &taken).map_err(at("mkdir"))?,
        Kind::Regular => file(parent, name, member, data)?,
        Kind::Symlink => symlink(parent, name, member).map_err(at("symlink"))?,
        Kind::Hardlink => hardlink(tree, parent, name, member, &target.unwrap_or_default())?,
        Kind::Character | Kind::Block | Kind::Fifo => node(parent, name, member).map_err(at("mknod"))?,
    }
    steady.restore().map_err(at("set parent's time"))
}

/// Gives the layer's root what its entry says.
pub(super) fn root(root: impl AsFd, member: &Member) -> Result<(), UnpackError> {
    attributes(root, member).map_err(|source| UnpackError::entry(member, "set attributes", source))
}

fn directory(parent: &OwnedFd, name: &[u8], member: &Member, taken: &Taken) -> io::Result<()> {
    if *taken != Taken::Directory {
        fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    }
    let made = tree::open_child(parent, name)?;
    // What was here hid the lower layers' directory of this name; so must what replaces it.
    if *taken == Taken::Replaced {
        tree::make_opaque(&made)?;
    }
    attributes(made, member)
}

fn file(parent: &OwnedFd, name: &[u8], member: &Member, data: &mut impl Read) -> Result<(), UnpackError> {
    let at = |step| move |source| UnpackError::entry(member, step, source);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made =
        fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(|e| at("create")(e.into()))?;
    let mut made = File::from(made);
    copy(data, &mut made, member)?;
    attributes(&made, member).map_err(at("set attributes"))
}

/// Copies the data; a failure to read is the archive's, a failure to write the disk's.
fn copy(data: &mut impl Read, file: &mut File, member: &Member) -> Result<(), UnpackError> {
    let mut left = member.size;
    let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
    while left > 0 {
        let most = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let read =
            data.read(&mut chunk[..most]).map_err(|source| UnpackError::archive(source.into(), member))?;
        file.write_all(&chunk[..read]).map_err(|source| UnpackError::entry(member, "write", source))?;
        left -= read as u64;
    }
    Ok(())
}

fn symlink(parent: &OwnedFd, name: &[u8], member: &Member) -> io::Result<()> {
    fs::symlinkat(member.link.as_slice(), parent, name)?;
    own_name(parent, name, member)
}

fn node(parent: &OwnedFd, name: &[u8], member: &Member) -> io::Result<()> {
    let kind = match member.kind {
        Kind::Character => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = fs::makedev(member.device.0, member.device.1);
    fs::mknodat(parent, name, kind, Mode::empty(), device)?;
    own_name(parent, name, member)?;
    // Just made by us and no symlink, so that chmod(2), which would follow one, is right.
    Ok(fs::chmodat(parent, name, Mode::from_raw_mode(member.mode), AtFlags::empty())?)
}

fn hardlink(
    tree: &Tree<'_>,
    parent: &OwnedFd,
    name: &[u8],
    member: &Member,
    target: &[&[u8]],
) -> Result<(), UnpackError> {
    let missing = || UnpackError::name(member, NameRule::LinkTarget);
    let (directory, stat) = tree.find(target).map_err(|_| missing())?;
    let last = target.last().ok_or_else(missing)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(missing());
    }
    fs::linkat(&directory, *last, parent, name, AtFlags::empty())
        .map_err(|source| UnpackError::entry(member, "link", source.into()))
}

/// Owner and time of what cannot be opened without side effects.
fn own_name(parent: &OwnedFd, name: &[u8], member: &Member) -> io::Result<()> {
    let (uid, gid) = owner(member);
    fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(fs::utimensat(parent, name, &tree::times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, mode, extended attributes and time, in an order in which no later step undoes an earlier one:
/// chown(2) clears set-id bits and `security.capability`.
fn attributes(made: impl AsFd, member: &Member) -> io::Result<()> {
    let (uid, gid) = owner(member);
    fs::fchown(&made, uid, gid)?;
    fs::fchmod(&made, Mode::from_raw_mode(member.mode))?;
    for (name, value) in member.xattrs.iter().filter(|(name, _)| is_kept(name)).take(XATTRS) {
        match fs::fsetxattr(&made, name.as_slice(), value, XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            set => set?,
        }
    }
    Ok(fs::futimens(&made, &tree::times(member.mtime))?)
}

fn owner(member: &Member) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))
}

/// Attributes that a layer may set. Those of overlayfs would redirect or hide files of other layers, labels are the
/// host's policy, and the rest of `trusted.*` is for the host alone.
fn is_kept(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    user || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

#[cfg(test)]
mod tests {
    #[test]
    fn overlay_attributes_and_labels_are_stripped() {
        for kept in [&b"user.comment"[..], b"security.capability", b"system.posix_acl_access"] {
            assert!(super::is_kept(kept));
        }
        for stripped in [
            &b"trusted.overlay.opaque"[..],
            b"user.overlay.redirect",
            b"trusted.x",
            b"security.selinux",
            b"x",
        ] {
            assert!(!super::is_kept(stripped));
        }
    }
}

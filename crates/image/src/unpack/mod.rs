//! A layer's archive -> a directory that overlayfs can stack.
//!
//! ```text
//! bytes -> archive (which entries are there) -> entry (what each may be) -> tree (where it may go)
//!                                                  whiteout (what it hides)
//! ```
//! The archive is hostile: names are resolved by the kernel inside the layer's root, amounts are bounded, and any
//! failure leaves a half-made directory behind that the caller throws away.

pub(crate) mod archive;
#[cfg(test)]
mod differential;
mod entry;
mod pax;
pub(crate) mod tree;
mod whiteout;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs;

pub use archive::Malformed;
use archive::{Archive, Kind, Member};
use tree::{SteadyTime, Tree};
use whiteout::Whiteout;

use crate::limits::{LimitExceeded, Limits};

/// Longest path accepted, in bytes: the kernel's PATH_MAX.
const LONGEST_PATH: usize = 4095;
/// Free space is looked at after so many bytes, and an entry counts as some.
const LOOK_AFTER: u64 = 16 << 20;
const ENTRY_COST: u64 = BLOCK;
const BLOCK: u64 = 4 << 10;

/// Rules that a name in an archive can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameRule {
    /// Empty, or the root where a directory is not meant.
    #[error("it names no file")]
    Empty,
    /// A component `..`.
    #[error("it has a component \"..\"")]
    Parent,
    /// A NUL byte.
    #[error("it holds a NUL byte")]
    Nul,
    /// Beyond PATH_MAX or 255 bytes for one component.
    #[error("it is longer than 4095 bytes, or a component of it than 255")]
    Long,
    /// Too many components.
    #[error("it is nested too deep")]
    Deep,
    /// A whiteout of nothing.
    #[error("it is a whiteout of no file")]
    Whiteout,
    /// A hard link to what is not in this layer, or is a directory.
    #[error("its link target is no earlier file of the same layer")]
    LinkTarget,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is not an archive.
    #[error("the layer is malformed after entry {after:?}")]
    Archive {
        /// The last good entry.
        after: String,
        /// What is wrong.
        #[source]
        source: Malformed,
    },
    /// A name is not allowed.
    #[error("layer entry {entry:?} is refused: {rule}")]
    Name {
        /// The entry's path, shortened.
        entry: String,
        /// The rule it breaks.
        rule: NameRule,
    },
    /// It is larger than allowed.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The file system refused.
    #[error("cannot {step} layer entry {entry:?}")]
    Entry {
        /// The entry's path, shortened.
        entry: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    fn name(member: &Member, rule: NameRule) -> Self {
        Self::Name { entry: shorten(&member.path), rule }
    }

    fn entry(member: &Member, step: &'static str, source: io::Error) -> Self {
        match source.downcast::<LimitExceeded>() {
            Ok(limit) => Self::Limit(limit),
            Err(source) => Self::Entry { entry: shorten(&member.path), step, source },
        }
    }

    fn archive(source: Malformed, after: &Member) -> Self {
        Self::malformed(source, shorten(&after.path))
    }

    fn malformed(source: Malformed, after: String) -> Self {
        match source {
            Malformed::Read(source) => match source.downcast::<LimitExceeded>() {
                Ok(limit) => Self::Limit(limit),
                Err(source) => Self::Archive { after, source: Malformed::Read(source) },
            },
            source => Self::Archive { after, source },
        }
    }
}

/// What a layer turned out to hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Bytes it takes on the disk, in blocks of 4 KiB.
    pub(crate) disk: u64,
    /// Entries made, as an estimate of inodes.
    pub(crate) inodes: u64,
    /// Directories that no entry named, the root (empty) among them; they take the attributes they have below.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Nothing of the layers below shows through.
    pub(crate) hides_everything: bool,
}

/// Unpacks the archive in `stream` into the empty directory `root`.
///
/// # Errors
/// The archive is malformed, asks for something outside, exceeds a limit, or the disk fails. `root` is then in an
/// undefined state.
pub(crate) fn unpack(
    stream: impl Read,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(stream);
    let mut unpacking = Unpacking::new(root, limits);
    let mut last = String::new();
    while let Some(member) = archive.next().map_err(|source| UnpackError::malformed(source, last.clone()))? {
        unpacking.account(&member)?;
        unpacking.place(&member, &mut archive)?;
        last = shorten(&member.path);
    }
    Ok(unpacking.finish())
}

/// Writes `stream`, all `size` bytes of it, as the file `path` into the empty directory `root`.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn file(
    stream: impl Read,
    path: &str,
    size: u64,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let member = Member::file(path, size);
    let mut unpacking = Unpacking::new(root, limits);
    unpacking.account(&member)?;
    unpacking.place(&member, &mut Archive::of_data(stream, size))?;
    Ok(unpacking.finish())
}

struct Unpacking<'a> {
    root: BorrowedFd<'a>,
    tree: Tree<'a>,
    limits: &'a Limits,
    until_look: u64,
    root_named: bool,
    unpacked: Unpacked,
}

impl<'a> Unpacking<'a> {
    fn new(root: BorrowedFd<'a>, limits: &'a Limits) -> Self {
        Self {
            root,
            tree: Tree::new(root),
            limits,
            until_look: 0,
            root_named: false,
            unpacked: Unpacked::default(),
        }
    }

    fn finish(self) -> Unpacked {
        let mut unpacked = self.unpacked;
        unpacked.implied = self.tree.into_implied();
        unpacked.inodes += unpacked.implied.len() as u64;
        if !self.root_named {
            unpacked.implied.push(Vec::new());
        }
        unpacked
    }

    fn account(&mut self, member: &Member) -> Result<(), UnpackError> {
        self.unpacked.inodes += 1;
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(member.size);
        self.unpacked.disk = self.unpacked.disk.saturating_add(match member.kind {
            Kind::Regular => member.size.next_multiple_of(BLOCK),
            Kind::Directory => BLOCK,
            _ => 0,
        });
        LimitExceeded::check("entries of a layer", self.unpacked.inodes, self.limits.entries)?;
        LimitExceeded::check("bytes of a layer", self.unpacked.bytes, self.limits.layer)?;
        let cost = member.size.saturating_add(ENTRY_COST);
        if self.until_look < cost {
            free_space(self.root, self.limits, member.size)
                .map_err(|source| UnpackError::entry(member, "find space for", source))?;
            self.until_look = LOOK_AFTER;
        }
        self.until_look = self.until_look.saturating_sub(cost);
        Ok(())
    }

    fn place(&mut self, member: &Member, data: &mut impl Read) -> Result<(), UnpackError> {
        let refuse = |rule| UnpackError::name(member, rule);
        let components = components(&member.path).map_err(refuse)?;
        if components.len() > self.limits.depth {
            return Err(refuse(NameRule::Deep));
        }
        let Some((name, parent)) = components.split_last() else {
            return match member.kind {
                Kind::Directory => {
                    self.root_named = true;
                    entry::root(self.root, member)
                }
                _ => Err(refuse(NameRule::Empty)),
            };
        };
        let whiteout = Whiteout::parse(name);
        let at = |source| UnpackError::entry(member, "reach", source);
        match whiteout {
            Some(Whiteout::Ignored) => Ok(()),
            Some(Whiteout::Invalid) => Err(refuse(NameRule::Whiteout)),
            Some(Whiteout::Name(name)) => {
                let directory = self.tree.directory(parent).map_err(at)?;
                let steady = SteadyTime::of(&directory).map_err(at)?;
                whiteout::hide(&directory, name).and_then(|()| steady.restore()).map_err(at)
            }
            Some(Whiteout::Everything) => {
                let whole = whiteout::hide_everything(&mut self.tree, parent).map_err(at)?;
                self.unpacked.hides_everything |= whole;
                Ok(())
            }
            None => {
                let directory = self.tree.directory(parent).map_err(at)?;
                entry::make(&self.tree, &directory, name, member, data)
            }
        }
    }
}

/// The components of a path out of an archive. A leading slash means the layer's root, as do `.` and `/` anywhere.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, NameRule> {
    if path.is_empty() {
        return Err(NameRule::Empty);
    }
    if path.contains(&0) {
        return Err(NameRule::Nul);
    }
    let components: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|c| !matches!(*c, b"" | b".")).collect();
    if components.contains(&&b".."[..]) {
        return Err(NameRule::Parent);
    }
    if path.len() > LONGEST_PATH || components.iter().any(|c| c.len() > 255) {
        return Err(NameRule::Long);
    }
    Ok(components)
}

/// Fails when `wanted` more bytes would take the space that stays free.
pub(crate) fn free_space(root: BorrowedFd<'_>, limits: &Limits, wanted: u64) -> io::Result<()> {
    let stat = fs::fstatvfs(root)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let full = free < wanted.saturating_add(limits.free_space) || (stat.f_files > 0 && stat.f_favail < 1024);
    match full {
        true => Err(io::Error::other(LimitExceeded {
            what: "space on the image file system, of which some bytes and 1024 inodes stay free,",
            limit: limits.free_space,
        })),
        false => Ok(()),
    }
}

fn shorten(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(160)]).into_owned()
}

//! Reading a tar stream: one entry after the other, by one fixed rule for every ambiguity.
//!
//! The layout of headers and types is the `tar` crate's; which bytes are a header, which are an entry's data, which
//! number and which name an entry has is decided here, because readers that differ in it see different archives
//! (CVE-2025-62518). Extended headers win over the header, and two of them that disagree end the reading; links,
//! directories and devices have no data; an unknown type, a wrong checksum, a sparse file or a malformed number ends the
//! reading. What is accepted, Python's `tarfile` reads the same way: see the tests in `differential`. Extended headers
//! are bounded, so that no entry costs more memory than [`super::pax::LONGEST`].

use std::io::{self, Read};
use std::ops::Range;

use tar::{EntryType, Header};

use super::pax::{self, Records};

const BLOCK: u64 = 512;
// Fields of a header (POSIX.1-2017, pax, "ustar Header Block").
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;

/// Why a stream is not an archive that can be read in exactly one way.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The stream ended inside a header or an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum is wrong.
    #[error("a header's checksum is wrong")]
    Checksum,
    /// A number is not one, is negative or is too large.
    #[error("{field} is not a number in range")]
    Number {
        /// Header field or PAX key.
        field: &'static str,
    },
    /// A PAX record is not `LENGTH KEY=VALUE`.
    #[error("a PAX record is malformed")]
    Pax,
    /// A PAX key comes twice for one entry.
    #[error("PAX key {key:?} is given twice for one entry")]
    PaxTwice {
        /// The key.
        key: String,
    },
    /// A PAX name and a GNU long name for one entry.
    #[error("an entry has both a PAX name and a GNU long name")]
    TwoNames,
    /// A global PAX header that would rename or resize every entry.
    #[error("a global PAX header sets path, linkpath or size")]
    PaxGlobal,
    /// An extended header that is too long to be one.
    #[error("an extended header has {length} bytes, at most {} are allowed", pax::LONGEST)]
    ExtendedHeader {
        /// Its length in bytes.
        length: u64,
    },
    /// A sparse file, which container layers do not hold.
    #[error("sparse files are not supported in layers")]
    Sparse,
    /// A type of entry that is not known.
    #[error("entry type {kind:#04x} is not supported")]
    Kind {
        /// The type flag.
        kind: u8,
    },
    /// The stream below failed.
    #[error("reading failed")]
    Read(#[source] io::Error),
}

impl From<io::Error> for Malformed {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Read(source),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    Regular,
    /// Another name for an earlier entry.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Member {
    /// A file of root's that all may read.
    pub(super) fn file(path: &str, size: u64) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            link: Vec::new(),
            kind: Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

/// One entry, before any check of what it asks for.
#[derive(Debug)]
pub struct Member {
    /// Its path as written.
    pub path: Vec<u8>,
    /// Target of a link as written.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since the epoch.
    pub mtime: (i64, i64),
    /// Bytes of data that follow.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream; reading from it reads the current entry's data.
#[derive(Debug)]
pub struct Archive<R> {
    stream: R,
    position: u64,
    data: u64,
    padding: u64,
}

#[derive(Default)]
struct Extensions {
    pax: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    /// Reads from the beginning of `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, position: 0, data: 0, padding: 0 }
    }

    /// Reads the data of one entry of `size` bytes, all there is in `stream`.
    pub(super) fn of_data(stream: R, size: u64) -> Self {
        Self { stream, position: 0, data: size, padding: 0 }
    }

    /// Bytes read so far: after `next`, where the entry's data begin.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` at the end. What was not read of the entry before is skipped.
    ///
    /// # Errors
    /// The stream is not an archive; nothing more can be read from it then.
    pub fn next(&mut self) -> Result<Option<Member>, Malformed> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = extensions.pax.number("size")?;
            match header.entry_type() {
                EntryType::XHeader => extensions.pax = Records::parse(&self.extended(&header)?)?,
                EntryType::XGlobalHeader => {
                    if Records::parse(&self.extended(&header)?)?.changes_entries() {
                        return Err(Malformed::PaxGlobal);
                    }
                }
                EntryType::GNULongName => extensions.path = Some(long_name(self.extended(&header)?)),
                EntryType::GNULongLink => extensions.link = Some(long_name(self.extended(&header)?)),
                _ => {
                    let member = member(&header, &extensions, size)?;
                    self.expect(member.size);
                    return Ok(Some(member));
                }
            }
        }
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    fn skip_data(&mut self) -> Result<(), Malformed> {
        let rest = self.data + self.padding;
        let skipped = io::copy(&mut (&mut self.stream).take(rest), &mut io::sink())?;
        self.position += skipped;
        (self.data, self.padding) = (0, 0);
        if skipped == rest { Ok(()) } else { Err(Malformed::Truncated) }
    }

    fn header(&mut self) -> Result<Option<Header>, Malformed> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? || header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(at, b)| match at {
                _ if CHECKSUM.contains(&at) => u32::from(b' '),
                _ => u32::from(*b),
            })
            .sum();
        if number("checksum", &header, CHECKSUM).ok() != Some(u64::from(sum)) {
            return Err(Malformed::Checksum);
        }
        Ok(Some(header))
    }

    /// Fills one block; false when the stream ends exactly before it.
    fn block(&mut self, block: &mut [u8; 512]) -> Result<bool, Malformed> {
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(Malformed::Truncated),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK;
        Ok(true)
    }

    fn extended(&mut self, header: &Header) -> Result<Vec<u8>, Malformed> {
        let length = number("size", header, SIZE)?;
        if length > pax::LONGEST {
            return Err(Malformed::ExtendedHeader { length });
        }
        self.expect(length);
        let mut content = Vec::new();
        self.by_ref().read_to_end(&mut content)?;
        if content.len() as u64 == length { Ok(content) } else { Err(Malformed::Truncated) }
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.stream.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

fn member(header: &Header, extensions: &Extensions, size: Option<u64>) -> Result<Member, Malformed> {
    let pax = &extensions.pax;
    if pax.is_sparse() {
        return Err(Malformed::Sparse);
    }
    let path = name(pax.get("path"), extensions.path.as_deref())?
        .map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
    let link = name(pax.get("linkpath"), extensions.link.as_deref())?
        .map_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned(), <[u8]>::to_vec);
    let kind = kind(header, &path)?;
    Ok(Member {
        link,
        path,
        kind,
        mode: u32::try_from(number("mode", header, MODE)? & 0o7777).expect("twelve bits"),
        uid: id("uid", pax, number("uid", header, UID)?)?,
        gid: id("gid", pax, number("gid", header, GID)?)?,
        mtime: pax.time("mtime")?.unwrap_or((time(header)?, 0)),
        size: data(kind, number("size", header, SIZE)?, size)?,
        device: device(header, kind)?,
        xattrs: pax.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    })
}

/// The name of an extended header. Readers disagree which of two would win.
fn name<'a>(pax: Option<&'a [u8]>, gnu: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, Malformed> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(Malformed::TwoNames),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, Malformed> {
    // Archives older than POSIX, whose type flag is NUL, mark directories by the slash alone.
    let ancient = header.as_bytes()[156] == 0;
    Ok(match header.entry_type() {
        EntryType::Regular if ancient && path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::Regular,
        EntryType::Link => Kind::Hardlink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::Character,
        EntryType::Block => Kind::Block,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => return Err(Malformed::Sparse),
        other => return Err(Malformed::Kind { kind: other.as_byte() }),
    })
}

/// Bytes of data that follow. Their sum with the padding must not overflow.
fn data(kind: Kind, header: u64, pax: Option<u64>) -> Result<u64, Malformed> {
    match pax.unwrap_or(header) {
        _ if kind != Kind::Regular => Ok(0),
        size if size > i64::MAX as u64 => Err(Malformed::Number { field: "size" }),
        size => Ok(size),
    }
}

fn device(header: &Header, kind: Kind) -> Result<(u32, u32), Malformed> {
    let field = |field, range, bits: u32| {
        let number = number(field, header, range)?;
        u32::try_from(number).ok().filter(|n| n >> bits == 0).ok_or(Malformed::Number { field })
    };
    match kind {
        // 12 bits of major and 20 of minor number is what the kernel has (include/linux/kdev_t.h).
        Kind::Character | Kind::Block => Ok((field("devmajor", MAJOR, 12)?, field("devminor", MINOR, 20)?)),
        _ => Ok((0, 0)),
    }
}

fn id(field: &'static str, pax: &Records, header: u64) -> Result<u32, Malformed> {
    let id = pax.number(field)?.unwrap_or(header);
    // The last id is "none" to chown(2).
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Malformed::Number { field })
}

/// The header's time; one before the epoch, which only base-256 can say, is the epoch.
fn time(header: &Header) -> Result<i64, Malformed> {
    if header.as_bytes()[MTIME][0] == 0xff {
        return Ok(0);
    }
    i64::try_from(number("mtime", header, MTIME)?).map_err(|_| Malformed::Number { field: "mtime" })
}

/// A number of the header: octal digits between spaces up to a NUL, nothing at all for 0, or, with the first bit set,
/// base 256. One that is negative or needs more than eight bytes is out of range.
fn number(field: &'static str, header: &Header, range: Range<usize>) -> Result<u64, Malformed> {
    let raw = &header.as_bytes()[range];
    let parsed = match raw[0] & 0x80 {
        0 => octal(raw),
        _ => base_256(raw),
    };
    parsed.ok_or(Malformed::Number { field })
}

fn octal(raw: &[u8]) -> Option<u64> {
    let text = raw.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    let digit = |sum: Option<u64>, b: &u8| match b {
        b'0'..=b'7' => sum?.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    };
    text.iter().fold(Some(0), digit)
}

fn base_256(raw: &[u8]) -> Option<u64> {
    let (high, low) = raw.split_at(raw.len().saturating_sub(8).max(1));
    let positive = high[0] == 0x80 && high[1..].iter().all(|b| *b == 0);
    positive.then(|| low.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
}

fn long_name(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

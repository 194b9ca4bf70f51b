//! The receiving end of CRIU's page server, into image files.
//!
//! A dump with `ps.fd` set writes memory to a stream socket instead of files. Each message begins with a header of
//! native integers; pages follow one kind of them:
//!
//! ```text
//! header   u32 command | flags << 16, number of pages, u64 address, u64 (id << 8 | kind)
//!          the number is a u32 before CRIU 4.2 (24 bytes in all) and a u64 since (32 bytes with padding)
//! PARENT   is there an earlier dump of this id?   answer: i32 0, there is none
//! OPEN2    the next pages belong to this id       answer: u8 0, no earlier dump
//! ADD_F    a run of pages; with flag PRESENT their contents follow
//! CLOSE    everything was sent                    answer: i32 0
//! ```
//!
//! Out of it come the same files that CRIU would have written: `pagemap-ID.img` (two magic numbers, then length and
//! message: a head, then one entry a run) and `pages-N.img`, the contents. The other node is not trusted: ids are
//! opened once, runs ascend and do not overlap, and lie in user space. What pages belong to a mapping at all, CRIU
//! checks when it restores.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;

use prost::Message;
use rustix::fs::{Mode, OFlags, openat};

const PAGE: u64 = 4096;
/// Exclusive end of user space (4-level or 5-level tables).
const TASK_SIZE: u64 = 1 << 56;
/// Pages announced by one header at most: 1 TiB.
const MOST_PAGES: u64 = 1 << 28;

const OPEN2: u32 = 4;
const PARENT: u32 = 5;
const ADD_F: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;
const COMMAND_BITS: u32 = 16;

/// Flag of a run whose contents follow.
const PRESENT: u32 = 1 << 2;
/// Flag of a run whose contents are in an earlier dump.
const IN_PARENT: u32 = 1 << 0;

const IMAGE_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// `pagemap_head`.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

/// `pagemap_entry`. CRIU since 4.2 has a wider number beside the old one, and takes the old one when it is absent.
#[derive(Clone, PartialEq, Message)]
struct Run {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    nr_pages: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
}

/// What CRIU says cannot be.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A header that no dump sends.
    #[error("page stream: {0}")]
    Stream(String),
    /// The image could not be written.
    #[error("write pages")]
    Write(#[from] io::Error),
}

/// A state machine: bytes in, image files and answers out.
#[derive(Debug)]
pub struct PageReceiver {
    images: OwnedFd,
    header: Vec<u8>,
    layout: Option<Layout>,
    /// Bytes of the current run that have not come yet.
    due: u64,
    current: Option<Pagemap>,
    opened: BTreeSet<u64>,
    received: u64,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Narrow,
    Wide,
}

#[derive(Debug)]
struct Pagemap {
    id: u64,
    map: BufWriter<File>,
    pages: File,
    end: u64,
}

#[derive(Debug)]
struct Header {
    command: u32,
    flags: u32,
    pages: u64,
    address: u64,
    id: u64,
}

impl PageReceiver {
    /// Writes into directory `images`.
    #[must_use]
    pub fn new(images: OwnedFd) -> Self {
        Self {
            images,
            header: Vec::with_capacity(32),
            layout: None,
            due: 0,
            current: None,
            opened: BTreeSet::new(),
            received: 0,
            closed: false,
        }
    }

    /// Takes the next bytes of the stream and gives what is to be answered.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, PageError> {
        let mut answer = Vec::new();
        while !bytes.is_empty() {
            if self.due > 0 {
                bytes = self.pages(bytes)?;
                continue;
            }
            let wanted = self.header_size() - self.header.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.header.extend_from_slice(now);
            bytes = later;
            if self.layout.is_none() && self.header.len() == self.header_size() {
                // The first header has an id, and neither pages nor an address: what is zero tells the layout.
                self.layout = Some(if self.word(16) == 0 { Layout::Wide } else { Layout::Narrow });
            }
            if self.header.len() == self.header_size() {
                let header = self.fields();
                self.header.clear();
                self.command(&header, &mut answer)?;
            }
        }
        Ok(answer)
    }

    /// Whether the dump has said that everything was sent.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether everything was sent, and how many bytes of pages that were.
    pub fn finish(mut self) -> Result<u64, PageError> {
        self.close_current()?;
        if self.closed { Ok(self.received) } else { Err(stream("it ends before it is closed")) }
    }

    fn header_size(&self) -> usize {
        match self.layout {
            Some(Layout::Wide) => 32,
            // The first 24 bytes tell the layout; a wide one then has 8 more.
            Some(Layout::Narrow) | None => 24,
        }
    }

    fn fields(&self) -> Header {
        let first = self.half(0);
        let (command, flags) = (first & ((1 << COMMAND_BITS) - 1), first >> COMMAND_BITS);
        let wide = self.layout == Some(Layout::Wide);
        let (pages, address, id) = match wide {
            true => (self.word(8), self.word(16), self.word(24)),
            false => (u64::from(self.half(4)), self.word(8), self.word(16)),
        };
        Header { command, flags, pages, address, id }
    }

    fn half(&self, at: usize) -> u32 {
        self.header[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
    }

    fn word(&self, at: usize) -> u64 {
        self.header[at..at + 8].try_into().map_or(0, u64::from_ne_bytes)
    }

    fn command(&mut self, header: &Header, answer: &mut Vec<u8>) -> Result<(), PageError> {
        if self.closed {
            return Err(stream("it goes on after its end"));
        }
        match header.command {
            PARENT => answer.extend_from_slice(&0_i32.to_ne_bytes()),
            OPEN2 => {
                self.open(header.id)?;
                answer.push(0);
            }
            ADD_F => self.run(header)?,
            CLOSE | FORCE_CLOSE => {
                self.close_current()?;
                self.closed = true;
                answer.extend_from_slice(&0_i32.to_ne_bytes());
            }
            other => return Err(stream(format!("unknown command {other:#x}"))),
        }
        Ok(())
    }

    fn open(&mut self, id: u64) -> Result<(), PageError> {
        self.close_current()?;
        let name = match id & 0xff {
            1 => format!("pagemap-{}.img", id >> 8),
            2 => format!("pagemap-shmem-{}.img", id >> 8),
            kind => return Err(stream(format!("unknown kind of pages {kind}"))),
        };
        if !self.opened.insert(id) {
            return Err(stream(format!("{name} is opened twice")));
        }
        let number = u32::try_from(self.opened.len()).map_err(|_| stream("too many address spaces"))?;
        let mut map = BufWriter::new(self.create(&name)?);
        map.write_all(&IMAGE_MAGIC.to_le_bytes())?;
        map.write_all(&PAGEMAP_MAGIC.to_le_bytes())?;
        write_message(&mut map, &Head { pages_id: number })?;
        let pages = self.create(&format!("pages-{number}.img"))?;
        self.current = Some(Pagemap { id, map, pages, end: 0 });
        Ok(())
    }

    fn run(&mut self, header: &Header) -> Result<(), PageError> {
        let Some(current) = self.current.as_mut().filter(|current| current.id == header.id) else {
            return Err(stream("pages of an address space that is not open"));
        };
        let nr_pages = u32::try_from(header.pages).ok().filter(|n| u64::from(*n) <= MOST_PAGES && *n > 0);
        let end = header.pages.checked_mul(PAGE).and_then(|length| header.address.checked_add(length));
        let aligned = header.address.is_multiple_of(PAGE);
        let (Some(nr_pages), Some(end), true) = (nr_pages, end.filter(|end| *end <= TASK_SIZE), aligned)
        else {
            return Err(stream(format!("{} pages at {:#x}", header.pages, header.address)));
        };
        if header.address < current.end {
            return Err(stream(format!("pages at {:#x} overlap", header.address)));
        }
        if header.flags & IN_PARENT != 0 {
            return Err(stream("pages of an earlier dump"));
        }
        current.end = end;
        let run = Run { vaddr: header.address, nr_pages, flags: Some(header.flags) };
        write_message(&mut current.map, &run)?;
        if header.flags & PRESENT != 0 {
            self.due = header.pages * PAGE;
        }
        Ok(())
    }

    fn pages<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], PageError> {
        let take = usize::try_from(self.due).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at(take);
        let current = self.current.as_mut().ok_or_else(|| stream("pages of no address space"))?;
        current.pages.write_all(now)?;
        self.due -= take as u64;
        self.received += take as u64;
        Ok(later)
    }

    fn close_current(&mut self) -> Result<(), PageError> {
        if self.due > 0 {
            return Err(stream("it ends in the middle of a page"));
        }
        if let Some(mut current) = self.current.take() {
            current.map.flush()?;
        }
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&self.images, name, flags, Mode::from_raw_mode(0o600))?.into())
    }
}

fn stream(what: impl Into<String>) -> PageError {
    PageError::Stream(what.into())
}

fn write_message(out: &mut impl Write, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn header(wide: bool, command: u32, pages: u64, address: u64, id: u64) -> Vec<u8> {
        let mut bytes = command.to_ne_bytes().to_vec();
        if wide {
            bytes.extend([0; 4]);
            bytes.extend(pages.to_ne_bytes());
        } else {
            bytes.extend(u32::try_from(pages).unwrap().to_ne_bytes());
        }
        bytes.extend(address.to_ne_bytes());
        bytes.extend(id.to_ne_bytes());
        bytes
    }

    const TASK: u64 = 5 << 8 | 1;
    const ADD: u32 = PRESENT << COMMAND_BITS | ADD_F;

    fn receiver() -> (tempfile::TempDir, PageReceiver) {
        let dir = tempfile::tempdir().unwrap();
        let receiver = PageReceiver::new(File::open(dir.path()).unwrap().into());
        (dir, receiver)
    }

    #[test]
    fn both_layouts_become_images_at_any_cut() {
        for wide in [true, false] {
            let mut all = header(wide, OPEN2, 0, 0, TASK);
            all.extend(header(wide, ADD, 2, 0x1000, TASK));
            all.extend([1; 8192]);
            all.extend(header(wide, 2 << COMMAND_BITS | ADD_F, 1, 0x5000, TASK)); // lazy, not present
            all.extend(header(wide, PARENT, 0, 0, 7 << 8 | 2));
            all.extend(header(wide, OPEN2, 0, 0, 7 << 8 | 2));
            all.extend(header(wide, FORCE_CLOSE, 0, 0, 0));
            for piece in [1, 7, 24, 100_000] {
                let (dir, mut receiver) = receiver();
                let answers: Vec<u8> =
                    all.chunks(piece).flat_map(|bytes| receiver.feed(bytes).unwrap()).collect();
                assert_eq!(answers, [0; 1 + 4 + 1 + 4]);
                assert_eq!(receiver.finish().unwrap(), 8192);
                assert_eq!(fs::read(dir.path().join("pages-1.img")).unwrap(), [1; 8192]);
                let map = fs::read(dir.path().join("pagemap-5.img")).unwrap();
                assert_eq!(map[8..14], [2, 0, 0, 0, 8, 1]);
                assert_eq!(
                    Run::decode(&map[18..18 + 7]).unwrap(),
                    Run { vaddr: 0x1000, nr_pages: 2, flags: Some(4) }
                );
                assert!(
                    dir.path().join("pagemap-shmem-7.img").exists()
                        && dir.path().join("pages-2.img").exists()
                );
            }
        }
    }

    #[test]
    fn what_no_dump_sends_is_refused() {
        let open = header(true, OPEN2, 0, 0, TASK);
        let then = |more: Vec<u8>| [open.clone(), more].concat();
        let cases = [
            (header(true, OPEN2, 0, 0, 3), "unknown kind"),
            (then(open.clone()), "opened twice"),
            (header(true, 99, 0, 0, 0), "unknown command"),
            (then(header(true, ADD, 1, 0x1000, 6 << 8 | 1)), "not open"),
            (then(header(true, ADD, 0, 0x1000, TASK)), "0 pages"),
            (then(header(true, ADD, 1, 0x1001, TASK)), "1 pages at 0x1001"),
            (then(header(true, ADD, u64::MAX, 0x1000, TASK)), "pages at"),
            (then(header(true, ADD, 1, u64::MAX - 4095, TASK)), "pages at"),
            (then(header(true, ADD, 1 << 29, 0, TASK)), "pages at 0x0"),
            (then(header(true, 1 << COMMAND_BITS | ADD_F, 1, 0, TASK)), "earlier dump"),
            (
                then(
                    [header(true, ADD, 1, 0x5000, TASK), vec![0; 4096], header(true, ADD, 1, 0x5000, TASK)]
                        .concat(),
                ),
                "overlap",
            ),
            (then([header(true, CLOSE, 0, 0, 0), open.clone()].concat()), "after its end"),
        ];
        for (bytes, message) in cases {
            let (_dir, mut receiver) = receiver();
            let error = receiver.feed(&bytes).expect_err(message).to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
        let (_dir, mut torn) = receiver();
        torn.feed(&then(header(true, ADD, 1, 0, TASK))).unwrap();
        assert!(torn.finish().is_err());
        let (_dir, mut unclosed) = receiver();
        unclosed.feed(&open).unwrap();
        assert!(unclosed.finish().is_err());
    }
}

//! `stats-dump`: what CRIU measured.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use prost::Message;
use rustix::fs::{Mode, OFlags, openat};

/// A dump in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DumpStats {
    /// Pages that went into the images or to the page server.
    pub pages_written: u64,
    /// From the first task stopped to the last let go.
    pub frozen: Duration,
    /// Collecting pages.
    pub memory_dump: Duration,
    /// Writing them; part of `memory_dump`.
    pub memory_write: Duration,
}

/// `stats_entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    dump: Option<Dump>,
}

/// `dump_stats_entry`, times in us.
#[derive(Clone, PartialEq, Message)]
struct Dump {
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
    #[prost(uint32, tag = "3")]
    memdump_time: u32,
    #[prost(uint32, tag = "4")]
    memwrite_time: u32,
    #[prost(uint64, tag = "7")]
    pages_written: u64,
}

/// Two magic numbers and the length of the message, each 4 bytes.
const HEADER: usize = 12;

/// Reads the statistics in an images directory; zeroes when CRIU wrote none (they are no part of a checkpoint).
pub(super) fn read(images: impl AsFd) -> DumpStats {
    bytes(images).as_deref().and_then(parse).unwrap_or_default()
}

fn bytes(images: impl AsFd) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(images, "stats-dump", flags, Mode::empty()).ok()?);
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn parse(bytes: &[u8]) -> Option<DumpStats> {
    let length = u32::from_le_bytes(bytes.get(8..HEADER)?.try_into().ok()?);
    let message = bytes.get(HEADER..)?.get(..usize::try_from(length).ok()?)?;
    let dump = Entry::decode(message).ok()?.dump?;
    Some(DumpStats {
        pages_written: dump.pages_written,
        frozen: Duration::from_micros(dump.frozen_time.into()),
        memory_dump: Duration::from_micros(dump.memdump_time.into()),
        memory_write: Duration::from_micros(dump.memwrite_time.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_and_garbage_is_not() {
        let dump = Dump { frozen_time: 5, memdump_time: 4, memwrite_time: 3, pages_written: 2 };
        let message = Entry { dump: Some(dump) }.encode_to_vec();
        let mut bytes = vec![0; 8];
        bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
        bytes.extend(&message);
        assert_eq!(parse(&bytes).unwrap().pages_written, 2);
        assert_eq!(parse(&bytes).unwrap().frozen, Duration::from_micros(5));
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(parse(b"short"), None);
    }
}

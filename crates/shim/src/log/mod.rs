//! The CRI log of a container: `RFC3339Nano stdout|stderr P|F text\n`, appended to the file that the daemon opened.
//!
//! Text is cut at newlines, and at the line limit (16 KiB unless the daemon says otherwise). A cut line is a run of `P`
//! records closed by an `F`; a last line without a newline is an `F` too. What has neither newline nor the limit yet
//! waits in memory, so that a program which writes single bytes costs one record a line.
//!
//! **Policy**: a container never waits for its log. When the file takes nothing (disk full, quota, I/O error) the
//! records are dropped and counted, a record torn by a short write is cut off again, and the next record is tried
//! afresh, so that logging goes on by itself as soon as there is room. The one thing that this cannot cover is a file
//! system whose write(2) itself hangs.

pub mod timestamp;

use std::{io::IoSlice, os::fd::OwnedFd};

use rustix::io::Errno;

/// Largest text of a record in bytes, unless the daemon says otherwise.
pub const LIMIT: usize = 16 << 10;

/// Where a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// `TIMESTAMP stdout F `
const HEADER: usize = timestamp::LENGTH + 10;
type Header = [u8; HEADER];

/// Slices of one writev(2); IOV_MAX is 1024.
const SLICES: usize = 256;
/// A record is at most header, waiting text, text, newline.
const SLICES_OF_RECORD: usize = 4;
const RECORDS: usize = SLICES / 2;

/// The line of one stream that is not finished yet.
#[derive(Debug)]
pub struct Line {
    stream: Stream,
    waiting: Vec<u8>,
}

impl Line {
    pub fn new(stream: Stream) -> Self {
        Self { stream, waiting: Vec::new() }
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }
}

/// The log file of one container, shared by its streams.
#[derive(Debug)]
pub struct Log {
    file: Option<OwnedFd>,
    limit: usize,
    dropped: u64,
}

impl Log {
    /// `file`: O_WRONLY|O_APPEND; none: output is read and dropped. `limit`: largest text of a record, at least 1.
    pub fn new(file: Option<OwnedFd>, limit: usize) -> Self {
        Self { file, limit: limit.max(1), dropped: 0 }
    }

    /// Records that the file did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Goes on in another file, after rotation.
    pub fn reopen(&mut self, file: OwnedFd) {
        self.file = Some(file);
    }

    /// Adds what a stream has just written; `now` in nanoseconds since the epoch.
    pub fn write(&mut self, line: &mut Line, data: &[u8], now: i64) {
        let headers = Headers::new(line.stream, now);
        let mut batch = Batch::new();
        let (mut waiting, mut rest) = (line.waiting.as_slice(), data);
        while let Some(cut) = cut(waiting.len(), rest, self.limit) {
            let (text, full) = (&rest[..cut.record], cut.full);
            batch.push(if full { &headers.full } else { &headers.partial }, waiting, text, !full);
            (waiting, rest) = (&[], &rest[cut.record..]);
            if batch.is_full() {
                self.append(&mut batch);
            }
        }
        self.append(&mut batch);
        if waiting.is_empty() {
            line.waiting = rest.to_vec();
        } else {
            line.waiting.extend_from_slice(rest);
        }
    }

    /// Ends a stream: text without a newline becomes a last full record.
    pub fn finish(&mut self, line: &mut Line, now: i64) {
        if !line.waiting.is_empty() {
            let headers = Headers::new(line.stream, now);
            let mut batch = Batch::new();
            batch.push(&headers.full, &line.waiting, &[], true);
            self.append(&mut batch);
            line.waiting = Vec::new();
        }
    }

    fn append(&mut self, batch: &mut Batch<'_>) {
        let Some(file) = &self.file else { return batch.clear() };
        let total = batch.length();
        let mut written = 0;
        let mut slices = &mut batch.slices[..batch.used];
        while written < total {
            match rustix::io::writev(file, slices) {
                Ok(0) => break,
                Ok(n) => {
                    written += n;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if written < total {
            self.dropped += batch.lost(written);
            cut_torn(file, written - batch.complete(written));
        }
        batch.clear();
    }
}

/// Takes the torn bytes of a short write off the end again. Where that fails (not a regular file) there is nothing
/// better to do.
fn cut_torn(file: &OwnedFd, torn: usize) {
    if torn > 0
        && let Ok(status) = rustix::fs::fstat(file)
    {
        let length = u64::try_from(status.st_size).unwrap_or(0);
        let _ = rustix::fs::ftruncate(file, length.saturating_sub(torn as u64));
    }
}

struct Cut {
    /// Bytes of the new text that belong to this record, with the newline if it has one.
    record: usize,
    full: bool,
}

/// Where the next record ends in `rest`, when `waiting` bytes of the line came before; none: more text is needed.
fn cut(waiting: usize, rest: &[u8], limit: usize) -> Option<Cut> {
    let room = limit.saturating_sub(waiting);
    let window = &rest[..rest.len().min(room + 1)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(newline) => Some(Cut { record: newline + 1, full: true }),
        None if rest.len() > room => Some(Cut { record: room, full: false }),
        None => None,
    }
}

/// All records of one batch were read at one time from one stream: two headers serve them all.
struct Headers {
    full: Header,
    partial: Header,
}

impl Headers {
    fn new(stream: Stream, now: i64) -> Self {
        let mut full = [b' '; HEADER];
        full[..timestamp::LENGTH].copy_from_slice(&timestamp::format(now));
        full[timestamp::LENGTH + 1..HEADER - 1].copy_from_slice(match stream {
            Stream::Stdout => b"stdout F",
            Stream::Stderr => b"stderr F",
        });
        let mut partial = full;
        partial[HEADER - 2] = b'P';
        Self { full, partial }
    }
}

/// Records on their way into one writev(2): nothing is copied.
struct Batch<'a> {
    slices: [IoSlice<'a>; SLICES],
    used: usize,
    /// Bytes up to the end of each record.
    ends: [usize; RECORDS],
    records: usize,
}

impl<'a> Batch<'a> {
    fn new() -> Self {
        Self { slices: [IoSlice::new(&[]); SLICES], used: 0, ends: [0; RECORDS], records: 0 }
    }

    fn is_full(&self) -> bool {
        self.used + SLICES_OF_RECORD > SLICES || self.records == RECORDS
    }

    fn push(&mut self, header: &'a Header, waiting: &'a [u8], text: &'a [u8], newline: bool) {
        let end: &[u8] = if newline { b"\n" } else { b"" };
        let mut length = self.length();
        for part in [header.as_slice(), waiting, text, end] {
            if !part.is_empty() {
                self.slices[self.used] = IoSlice::new(part);
                self.used += 1;
                length += part.len();
            }
        }
        self.ends[self.records] = length;
        self.records += 1;
    }

    fn length(&self) -> usize {
        self.records.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Bytes of the complete records among the first `written`.
    fn complete(&self, written: usize) -> usize {
        self.ends[..self.records].iter().copied().take_while(|end| *end <= written).last().unwrap_or(0)
    }

    fn lost(&self, written: usize) -> u64 {
        self.ends[..self.records].iter().filter(|end| **end > written).count() as u64
    }

    fn clear(&mut self) {
        (self.used, self.records) = (0, 0);
    }
}

#[cfg(test)]
mod tests;

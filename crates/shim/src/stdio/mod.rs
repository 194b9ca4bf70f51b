//! The shim's side of what a container reads and writes.
//!
//! ```text
//! container  0 ◄── stdin pipe ◄── (attach)          with a terminal:  0,1,2 ◄──► pty ◄──► master ──► log, "stdout"
//!            1 ──► pipe ──► read, cut ──► log
//!            2 ──► pipe ──► read, cut ──► log
//! ```
//!
//! Whoever is attached gets a copy of what is read, see [`attach`].
//!
//! The pipes are anonymous ones, because those are what CRIU can give again to a restored process.

pub mod attach;
pub mod pipe;
pub mod terminal;

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use sys::timens;

use attach::Attached;

use crate::{
    log::{Line, Log, Stream},
    poll::{Interest, Poll, Token},
};

/// Bytes taken at once from one stream, before the others have their turn.
pub const BUFFER: usize = 32 << 10;

/// Reads that empty a pipe of the largest size an unprivileged process may ask for (1 MiB). Somebody who writes on
/// and on is cut there.
const DRAIN_READS: usize = 1 + (1 << 20) / BUFFER;

/// One end that the container's output arrives at.
struct Source {
    number: u32,
    fd: OwnedFd,
    line: Line,
}

/// The output of one container on its way to the log.
pub struct Output {
    sources: Vec<Source>,
    pub log: Log,
    pub attached: Attached,
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    Text,
    /// Nothing for now.
    Nothing,
    /// No writer is left.
    End,
}

impl Output {
    pub fn new(log: Log) -> Self {
        Self { sources: Vec::new(), log, attached: Attached::default() }
    }

    /// Reads `fd` from now on. `number` must be new in this shim.
    pub fn add(&mut self, fd: OwnedFd, stream: Stream, number: u32, poll: &Poll) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        poll.add(&fd, Token::Output(number), Interest::Read)?;
        self.sources.push(Source { number, fd, line: Line::new(stream) });
        Ok(())
    }

    pub fn has(&self, number: u32) -> bool {
        self.sources.iter().any(|source| source.number == number)
    }

    /// Every writer is gone and every byte is in the log.
    pub fn is_finished(&self) -> bool {
        self.sources.is_empty()
    }

    /// One read of one stream, after epoll said that there is something.
    pub fn pump(&mut self, number: u32, buffer: &mut [u8], poll: &Poll) {
        if let Some(index) = self.sources.iter().position(|source| source.number == number)
            && self.read(index, buffer) == Got::End
        {
            self.close(index, poll);
        }
    }

    /// Takes everything that is in the pipes now.
    pub fn drain(&mut self, buffer: &mut [u8], poll: &Poll) {
        for index in (0..self.sources.len()).rev() {
            let last = (0..DRAIN_READS).map(|_| self.read(index, buffer)).find(|got| *got != Got::Text);
            if last == Some(Got::End) {
                self.close(index, poll);
            }
        }
    }

    /// Ends every stream, writers or not.
    pub fn finish(&mut self, poll: &Poll) {
        while !self.sources.is_empty() {
            self.close(self.sources.len() - 1, poll);
        }
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Got {
        let source = &mut self.sources[index];
        match rustix::io::read(&source.fd, &mut *buffer) {
            Ok(0) => Got::End,
            Ok(length) => {
                self.log.write(&mut source.line, &buffer[..length], timens::realtime());
                self.attached.copy(source.line.stream(), &buffer[..length]);
                Got::Text
            }
            Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
            // A pty's master says EIO when the last slave is closed.
            Err(_) => Got::End,
        }
    }

    fn close(&mut self, index: usize, poll: &Poll) {
        let mut source = self.sources.swap_remove(index);
        poll.remove(&source.fd);
        self.log.finish(&mut source.line, timens::realtime());
        self.attached.end(source.line.stream());
    }

    /// Closes the ends without a word in the log: in a forked helper, whose copies they are.
    pub fn forget(&mut self) {
        self.sources.clear();
        self.attached = Attached::default();
    }
}

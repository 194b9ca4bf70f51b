//! The one connection to the daemon: frames out, frames in, and what happens when the daemon does not read.
//!
//! The socket never blocks the shim. What does not fit is queued; a daemon that lets [`QUEUE`] frames pile up is cut
//! off, and finds everything that must not be lost in State when it connects again.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use api::shim::v1::{Event, Frame, Response, event, frame, response};
use prost::Message;
use rustix::{io::Errno, net::Shutdown};
use sys::seqpacket::{self, SeqPacket};

use crate::poll::{Interest, Poll, Token};

/// Frames that may wait for a slow daemon.
const QUEUE: usize = 1024;

struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The daemon is gone, or as good as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

pub struct Connection {
    socket: SeqPacket,
    queue: VecDeque<Outgoing>,
    /// The socket was full, and its having room is waited for.
    blocked: bool,
    /// Tells this connection from those before it.
    pub number: u32,
}

impl Connection {
    pub fn new(socket: SeqPacket, number: u32, poll: &Poll) -> Result<Self, Errno> {
        socket.set_nonblocking(true)?;
        poll.add(&socket, Token::Daemon, Interest::Read)?;
        Ok(Self { socket, queue: VecDeque::new(), blocked: false, number })
    }

    /// Cuts the connection for good, whoever else holds a copy of the socket.
    pub fn close(self, poll: &Poll) {
        poll.remove(&self.socket);
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// The next request frame; none: nothing is there now.
    pub fn receive(&mut self) -> Result<Option<seqpacket::Frame>, Gone> {
        match self.socket.recv() {
            Ok(Some(frame)) => Ok(Some(frame)),
            Err(Errno::AGAIN) => Ok(None),
            Ok(None) | Err(_) => Err(Gone),
        }
    }

    pub fn respond(
        &mut self,
        id: u64,
        result: response::Result,
        fds: Vec<OwnedFd>,
        poll: &Poll,
    ) -> Result<(), Gone> {
        self.send(id, frame::Body::Response(Response { result: Some(result) }), fds, poll)
    }

    pub fn tell(&mut self, what: event::What, poll: &Poll) -> Result<(), Gone> {
        self.send(0, frame::Body::Event(Event { what: Some(what) }), Vec::new(), poll)
    }

    fn send(&mut self, id: u64, body: frame::Body, fds: Vec<OwnedFd>, poll: &Poll) -> Result<(), Gone> {
        if self.queue.len() >= QUEUE {
            return Err(Gone);
        }
        self.queue.push_back(Outgoing { bytes: Frame { id, body: Some(body) }.encode_to_vec(), fds });
        self.flush(poll)
    }

    /// Sends what the socket takes now.
    pub fn flush(&mut self, poll: &Poll) -> Result<(), Gone> {
        let mut blocked = false;
        while let Some(next) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match self.socket.send(&next.bytes, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::AGAIN) => {
                    blocked = true;
                    break;
                }
                Err(_) => return Err(Gone),
            }
        }
        if blocked == self.blocked {
            return Ok(());
        }
        self.blocked = blocked;
        let interest = if blocked { Interest::ReadWrite } else { Interest::Read };
        poll.change(&self.socket, Token::Daemon, interest).map_err(|_| Gone)
    }
}

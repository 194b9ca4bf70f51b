//! A child that waits inside the pod's time namespace to read the clocks at a word.
//!
//! Nobody but a task in the namespace sees the pod's clocks, and starting one takes milliseconds. This one is started,
//! and has entered, before the freeze.

use std::os::fd::BorrowedFd;

use api::shim::v1::ClockReading;
use prost::Message;
use rustix::io::Errno;
use sys::{
    clone::{self, Child},
    namespace::{self, Kind},
    pidfd,
    schedule::RealTime,
    seqpacket::SeqPacket,
    timens,
};

pub struct ClockReader {
    child: Child,
    socket: SeqPacket,
}

const READY: &[u8] = b"ready";
const READ: &[u8] = b"read";

impl ClockReader {
    /// Starts it and waits until it is inside. `time`: none for a pod with the node's clocks.
    pub fn new(time: Option<BorrowedFd<'_>>) -> Result<Self, Errno> {
        let (outside, inside) = SeqPacket::pair()?;
        let mut outside = Some(outside);
        let child = clone::fork(&clone::Options::default(), || {
            // The child's copy, so that it sees the end when the shim's own is closed.
            drop(outside.take());
            u8::from(wait_and_read(time, &inside).is_err())
        })?;
        let reader = Self { child, socket: outside.ok_or(Errno::BADF)? };
        drop(inside);
        match reader.socket.recv()? {
            Some(frame) if frame.bytes == READY => Ok(reader),
            Some(_) | None => Err(Errno::PERM),
        }
    }

    /// The three clocks now.
    pub fn read(&self) -> Result<ClockReading, Errno> {
        self.socket.send(READ, &[])?;
        let frame = self.socket.recv()?.ok_or(Errno::CHILD)?;
        ClockReading::decode(frame.bytes.as_slice()).map_err(|_| Errno::PROTO)
    }
}

impl Drop for ClockReader {
    /// It has nothing to lose. The reaper buries it.
    fn drop(&mut self) {
        let _ = pidfd::kill(&self.child.pidfd, sys::Signal::KILL);
    }
}

fn wait_and_read(time: Option<BorrowedFd<'_>>, socket: &SeqPacket) -> Result<(), Errno> {
    if let Some(time) = time {
        namespace::setns(time, Kind::Time)?;
    }
    let _urgent = RealTime::enter();
    // Once before, so that code and vDSO pages are there when it counts.
    let _ = timens::clocks();
    socket.send(READY, &[])?;
    if socket.recv()?.is_some() {
        let clocks = timens::clocks();
        let reading = ClockReading {
            monotonic: clocks.monotonic,
            boottime: clocks.boottime,
            realtime: clocks.realtime,
        };
        socket.send(&reading.encode_to_vec(), &[])?;
    }
    Ok(())
}

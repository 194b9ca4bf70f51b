//! Frames with descriptors beside them: `AF_UNIX`, `SOCK_SEQPACKET`, `SCM_RIGHTS`.
//!
//! One datagram is one frame. A frame over 64 KiB travels in a sealed memory file: the datagram is then empty and
//! the memory file is its last descriptor. Sockets are close-on-exec; `send` and `recv` block or not as the socket
//! is set (see [`SeqPacket::set_nonblocking`]), and report `EAGAIN` in the second case.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, recvmsg, sendmsg, socket_with, socketpair, sockopt,
};

use crate::{Errno, Result, memfd};

/// Largest frame sent inline, in bytes.
pub const INLINE_LIMIT: usize = 64 << 10;
/// Largest frame accepted at all, in bytes.
pub const FRAME_LIMIT: u64 = 64 << 20;
/// Most descriptors beside one frame (`SCM_MAX_FD`); a large frame uses one of them.
pub const FD_LIMIT: usize = 253;

/// One end of a connection.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

/// A socket that accepts connections on a path.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// What one datagram carried.
#[derive(Debug)]
pub struct Frame {
    /// The message.
    pub bytes: Vec<u8>,
    /// Descriptors beside it, in order, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Who connected, as the kernel recorded it at connect time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id in our pid namespace.
    pub pid: i32,
    /// User id in our user namespace.
    pub uid: u32,
}

impl Listener {
    /// Binds and listens on `path`, which must not exist yet. The socket file gets mode 0600: it is the credential.
    pub fn bind(path: &Path) -> Result<Self> {
        let socket = new_socket()?;
        let (_dir, address) = address(path)?;
        bind(&socket, &address)?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o600))?;
        listen(&socket, 16)?;
        Ok(Self(socket))
    }

    /// Takes over a listening socket that another process bound, such as descriptor 3 of a new shim.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The next connection.
    pub fn accept(&self) -> Result<SeqPacket> {
        retry_on_intr(|| accept_with(&self.0, SocketFlags::CLOEXEC)).map(SeqPacket)
    }

    /// Makes `accept` return `EAGAIN` instead of waiting.
    pub fn set_nonblocking(&self, on: bool) -> Result<()> {
        rustix::io::ioctl_fionbio(&self.0, on)
    }
}

impl SeqPacket {
    /// Connects to a listener's path.
    pub fn connect(path: &Path) -> Result<Self> {
        let socket = new_socket()?;
        let (_dir, address) = address(path)?;
        retry_on_intr(|| connect(&socket, &address))?;
        Ok(Self(socket))
    }

    /// Two connected ends, for a parent and the helper it forks.
    pub fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// Takes over a connected socket, such as the one CRIU or a parent left open.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Makes `send` and `recv` return `EAGAIN` instead of waiting.
    pub fn set_nonblocking(&self, on: bool) -> Result<()> {
        rustix::io::ioctl_fionbio(&self.0, on)
    }

    /// The process at the other end.
    pub fn peer(&self) -> Result<Peer> {
        let credentials = sockopt::socket_peercred(&self.0)?;
        Ok(Peer { pid: credentials.pid.as_raw_nonzero().get(), uid: credentials.uid.as_raw() })
    }

    /// Sends one frame with descriptors beside it. The peer gets copies; ours stay open.
    ///
    /// # Errors
    /// `E2BIG` for too many descriptors or bytes, `EPIPE` when the peer is gone (no signal is raised).
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if bytes.len() as u64 > FRAME_LIMIT || fds.len() + usize::from(is_large(bytes)) > FD_LIMIT {
            return Err(Errno::TOOBIG);
        }
        if is_large(bytes) {
            let body = memfd::sealed("frame", bytes)?;
            let mut all = fds.to_vec();
            all.push(body.as_fd());
            return self.send_datagram(&[], &all);
        }
        self.send_datagram(bytes, fds)
    }

    fn send_datagram(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOBIG);
        }
        retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next frame, or `None` when the peer closed its end.
    ///
    /// # Errors
    /// `EMSGSIZE` for a frame beyond the protocol's bounds or a truncated descriptor list, `EPERM` for an unsealed
    /// large frame, `EAGAIN` when nothing is there and the socket does not block.
    pub fn recv(&self) -> Result<Option<Frame>> {
        // The length first: a buffer for the largest frame would cost every shim 64 KiB for good.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let (_, length) = retry_on_intr(|| recv(&self.0, &mut [0; 0][..], peek))?;
        let mut bytes = vec![0; length.clamp(1, INLINE_LIMIT)];
        let mut fds = Vec::new();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(Errno::MSGSIZE);
        }
        bytes.truncate(got.bytes);
        if got.bytes > 0 {
            return Ok(Some(Frame { bytes, fds }));
        }
        match fds.pop() {
            None => Ok(None),
            Some(body) => Ok(Some(Frame { bytes: memfd::read(body, FRAME_LIMIT)?, fds })),
        }
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SeqPacket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl From<SeqPacket> for OwnedFd {
    fn from(socket: SeqPacket) -> Self {
        socket.0
    }
}

impl From<Listener> for OwnedFd {
    fn from(socket: Listener) -> Self {
        socket.0
    }
}

fn is_large(bytes: &[u8]) -> bool {
    // An empty frame too: an empty datagram without descriptors would read as the peer's end.
    bytes.len() > INLINE_LIMIT || bytes.is_empty()
}

fn new_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// The address of `path`; beyond the 108 bytes of `sun_path` it goes through a descriptor of the directory, which
/// must live until the call is made.
fn address(path: &Path) -> Result<(Option<OwnedFd>, SocketAddrUnix)> {
    match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            let parent = path.parent().ok_or(Errno::NAMETOOLONG)?;
            let name = path.file_name().ok_or(Errno::NAMETOOLONG)?;
            let dir = openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
            let address = SocketAddrUnix::new(short)?;
            Ok((Some(dir), address))
        }
        other => Ok((None, other?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (a, b) = SeqPacket::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(b"one", &[read.as_fd(), write.as_fd()]).unwrap();
        a.send(b"two", &[]).unwrap();
        let first = b.recv().unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (b"one".as_slice(), 2));
        rustix::io::write(&first.fds[1], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        assert_eq!(b.recv().unwrap().unwrap().bytes, b"two");
        drop(a);
        assert!(b.recv().unwrap().is_none());
    }

    #[test]
    fn large_and_empty_frames_travel_in_memory() {
        let (a, b) = SeqPacket::pair().unwrap();
        let large = vec![7; 3 << 20];
        a.send(&large, &[a.as_fd()]).unwrap();
        a.send(&[], &[]).unwrap();
        let frame = b.recv().unwrap().unwrap();
        assert!(frame.bytes == large && frame.fds.len() == 1);
        assert!(b.recv().unwrap().unwrap().bytes.is_empty());
    }

    #[test]
    fn paths_beyond_sun_path_work() {
        let dir = std::env::temp_dir().join(format!("seqpacket-{}-{}", std::process::id(), "d".repeat(100)));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let listener = Listener::bind(&path).unwrap();
        let client = SeqPacket::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        client.send(b"hello", &[]).unwrap();
        assert_eq!(server.recv().unwrap().unwrap().bytes, b"hello");
        assert_eq!(server.peer().unwrap().pid, std::process::id().cast_signed());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

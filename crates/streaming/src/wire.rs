//! The two directions of a connection to a client, whatever carries them.

use std::io::{self, Cursor};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;

pub(crate) type Incoming = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Outgoing = Box<dyn AsyncWrite + Send + Unpin>;

/// How often somebody who does not read on looks whether the client is still there.
const LOOK: Duration = Duration::from_secs(1);

/// A connection.
pub(crate) struct Wire {
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    pub(crate) peer: Peer,
}

impl Wire {
    /// Puts back what was read too much.
    pub(crate) fn unread(self, bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return self;
        }
        Self { incoming: Box::new(Cursor::new(bytes).chain(self.incoming)), ..self }
    }
}

/// Both directions as one.
#[allow(missing_debug_implementations, reason = "boxed traits have none")]
pub(crate) struct Both(pub(crate) Incoming, pub(crate) Outgoing);

impl AsyncRead for Both {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Both {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.1).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_shutdown(cx)
    }
}

/// Where whole frames go out, one after another.
pub(crate) struct Frames {
    wire: Outgoing,
    /// A frame was begun and never ended, because its sender was dropped: nothing that follows would make sense.
    torn: bool,
}

impl Frames {
    pub(crate) fn new(wire: Outgoing) -> Self {
        Self { wire, torn: false }
    }

    pub(crate) async fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for part in parts {
            self.wire.write_all(part).await?;
        }
        self.wire.flush().await?;
        self.torn = false;
        Ok(())
    }

    /// Closes the sending half.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.wire.shutdown().await
    }
}

/// The client's socket, to see that it has left while what it sent last is not read yet.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) OwnedFd);

impl Peer {
    fn has_left(&self) -> bool {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut socket = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut socket, Some(&NOW)).is_ok_and(|ready| ready > 0)
    }

    /// Hands `bytes` to whoever takes them, however slow. `false`: the client has left meanwhile. Where nobody takes
    /// them any more they are dropped.
    pub(crate) async fn deliver(&self, to: &mut Option<mpsc::Sender<Bytes>>, bytes: Bytes) -> bool {
        let Some(taker) = to.clone() else { return true };
        loop {
            match tokio::time::timeout(LOOK, taker.reserve()).await {
                Ok(Ok(place)) => {
                    place.send(bytes);
                    return true;
                }
                Ok(Err(_)) => {
                    *to = None;
                    return true;
                }
                Err(_) if self.has_left() => return false,
                Err(_) => {}
            }
        }
    }
}

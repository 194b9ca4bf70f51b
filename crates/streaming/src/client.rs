//! A client that is connected to a process's streams, over whichever protocol.
//!
//! ```text
//!              ┌─ stdin ───▶ mpsc ─────▶ session ─────▶ pipe or pty
//! wire ─ Router┤  resize ──▶ watch ────▶ session
//!              └─ (end) ───▶ gone ─────▶ session
//! wire ◀─────── Sender (stdout, stderr, error) ◀────────── session
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::outcome::{Form, Outcome};
use crate::wire::Peer;
use crate::{spdy, websocket};

/// How long a client may take to hang up after it was told the end.
const GOODBYE: Duration = Duration::from_secs(2);
/// Pieces of input that may wait for the process; with pieces of 64 KiB half a MiB.
const INPUT: usize = 8;
/// Longest text about a terminal's size.
const SIZE_TEXT: usize = 256;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// One stream to the client.
#[derive(Debug, Clone)]
pub(crate) enum Sender {
    Spdy(Arc<spdy::Writer>, u32),
    WebSocket(Arc<websocket::Writer>, u8),
}

impl Sender {
    pub(crate) async fn send(&self, chunk: &mut Chunk) -> io::Result<()> {
        match self {
            Self::Spdy(writer, stream) => writer.data(*stream, chunk).await,
            Self::WebSocket(writer, channel) => writer.data(*channel, chunk).await,
        }
    }

    /// Nothing more will come on this stream. WebSocket channels end with their connection.
    async fn end(&self) -> io::Result<()> {
        match self {
            Self::Spdy(writer, stream) => writer.end(*stream).await,
            Self::WebSocket(..) => Ok(()),
        }
    }

    async fn close(&self) -> io::Result<()> {
        match self {
            Self::Spdy(writer, stream) => writer.go_away(*stream, false).await,
            Self::WebSocket(writer, _) => writer.close().await,
        }
    }
}

/// Hands what arrives to where it belongs.
#[derive(Debug)]
pub(crate) struct Router {
    stdin: Option<mpsc::Sender<Bytes>>,
    size: watch::Sender<Option<Size>>,
    size_text: Vec<u8>,
    peer: Peer,
}

impl Router {
    /// `false`: the client has left.
    pub(crate) async fn stdin(&mut self, bytes: Bytes) -> bool {
        bytes.is_empty() || self.peer.deliver(&mut self.stdin, bytes).await
    }

    pub(crate) fn end_stdin(&mut self) {
        self.stdin = None;
    }

    /// `{"Width":80,"Height":24}`, one object after another; what is no such object is passed over.
    pub(crate) fn size(&mut self, text: &[u8]) {
        self.size_text.extend_from_slice(text);
        let mut sizes = serde_json::Deserializer::from_slice(&self.size_text).into_iter::<Size>();
        let last = sizes.by_ref().take_while(Result::is_ok).flatten().last();
        let read = sizes.byte_offset();
        if let Some(size) = last {
            self.size.send_replace(Some(size));
            self.size_text.drain(..read);
        }
        if self.size_text.len() > SIZE_TEXT {
            self.size_text.clear();
        }
    }
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    /// What it types; ended when it has half-closed.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(crate) size: watch::Receiver<Option<Size>>,
    pub(crate) stdout: Option<Sender>,
    pub(crate) stderr: Option<Sender>,
    error: Sender,
    form: Form,
    /// Cancelled once it has left, broke the protocol, or was idle for too long.
    pub(crate) gone: CancellationToken,
    reader: JoinHandle<()>,
}

/// The streams to a client.
#[derive(Debug)]
pub(crate) struct Senders {
    pub(crate) stdout: Option<Sender>,
    pub(crate) stderr: Option<Sender>,
    pub(crate) error: Sender,
    pub(crate) form: Form,
}

impl Client {
    /// `read` reads what arrives until the client leaves.
    pub(crate) fn start<R>(
        senders: Senders,
        stdin: bool,
        peer: Peer,
        (activity, limit): (Arc<Activity>, Duration),
        read: impl FnOnce(Router) -> R,
    ) -> Self
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let (to_stdin, from_stdin) = mpsc::channel(INPUT);
        let (to_size, size) = watch::channel(None);
        let stdin = stdin.then_some(from_stdin);
        let to_stdin = stdin.is_some().then_some(to_stdin);
        let read = read(Router { stdin: to_stdin, size: to_size, size_text: Vec::new(), peer });
        let gone = CancellationToken::new();
        let left = gone.clone().drop_guard();
        let reader = tokio::spawn(async move {
            let _left = left;
            tokio::select! {
                () = read => {}
                () = activity.idle(limit) => tracing::debug!("a streaming client was idle for too long"),
            }
        });
        let Senders { stdout, stderr, error, form } = senders;
        Self { stdin, size, stdout, stderr, error, form, gone, reader }
    }

    /// Tells the client how it ended and waits a moment for it to hang up.
    pub(crate) async fn finish(self, outcome: &Outcome) {
        let goodbye = async {
            let message = outcome.message(self.form);
            self.error.send(&mut Chunk::of(message.as_bytes())).await?;
            if let Some(stdout) = &self.stdout {
                stdout.end().await?;
            }
            if let Some(stderr) = &self.stderr {
                stderr.end().await?;
            }
            self.error.end().await?;
            self.error.close().await?;
            let _ = tokio::time::timeout(GOODBYE, self.gone.cancelled()).await;
            io::Result::Ok(())
        };
        tokio::select! {
            () = self.gone.cancelled() => {}
            _ = goodbye => {}
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_whole_in_pieces_and_among_rubbish() {
        let (size, seen) = watch::channel(None);
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut router = Router { stdin: None, size, size_text: Vec::new(), peer: Peer(ours.into()) };
        router.size(b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Hei");
        assert_eq!(*seen.borrow(), Some(Size { width: 80, height: 24 }));
        router.size(b"ght\":30}\n");
        assert_eq!(*seen.borrow(), Some(Size { width: 100, height: 30 }));
        router.size(&[b'x'; 1000]);
        assert!(router.size_text.is_empty());
        router.size(b"{\"Width\":1,\"Height\":2}");
        assert_eq!(*seen.borrow(), Some(Size { width: 1, height: 2 }));
    }
}

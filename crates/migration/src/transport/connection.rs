//! Frames over one TLS connection: a task that writes, a task that reads, queues between them and the migration.

use std::io;
use std::sync::Arc;

use api::peer::v1::{Frame, frame::Body};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::MoveError;
use super::pieces::Pieces;

/// Largest frame, in bytes: a configuration or a piece of data.
const LARGEST: usize = 8 << 20;
/// Frames that wait to be written or handled: bounds the memory of a connection.
const QUEUED: usize = 16;

/// One conversation.
#[derive(Debug)]
pub(super) struct Connection {
    /// For sending, also from other tasks.
    pub outgoing: Outgoing,
    /// What comes.
    pub incoming: Incoming,
    reader: JoinHandle<()>,
    writer: JoinHandle<io::Result<u64>>,
}

/// The sending side.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    peer: Arc<str>,
    queue: mpsc::Sender<Body>,
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Incoming {
    peer: Arc<str>,
    queue: mpsc::Receiver<io::Result<Body>>,
}

impl Connection {
    pub fn new(peer: &str, stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (outgoing, to_write) = mpsc::channel(QUEUED);
        let (from_read, incoming) = mpsc::channel(QUEUED);
        let reader = tokio::spawn(read_frames(read, from_read));
        let writer = tokio::spawn(write_frames(write, to_write));
        let peer: Arc<str> = peer.into();
        Self {
            outgoing: Outgoing { peer: Arc::clone(&peer), queue: outgoing },
            incoming: Incoming { peer, queue: incoming },
            reader,
            writer,
        }
    }

    /// Writes what is queued, says goodbye and gives the bytes written.
    pub async fn close(self) -> u64 {
        drop(self.outgoing);
        let written = self.writer.await.ok().and_then(Result::ok).unwrap_or(0);
        self.reader.abort();
        written
    }
}

impl Outgoing {
    /// The other node's address.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Queues a frame.
    pub async fn send(&self, body: Body, during: &'static str) -> Result<(), MoveError> {
        self.queue.send(body).await.map_err(|_| self.lost(during))
    }

    /// Queues a frame from a thread that may block.
    pub fn blocking_send(&self, body: Body, during: &'static str) -> Result<(), MoveError> {
        self.queue.blocking_send(body).map_err(|_| self.lost(during))
    }

    pub fn malformed(&self, what: impl Into<String>) -> MoveError {
        MoveError::Malformed { peer: self.peer.to_string(), what: what.into() }
    }

    fn lost(&self, during: &'static str) -> MoveError {
        MoveError::Lost { peer: self.peer.to_string(), during, source: None }
    }
}

impl Incoming {
    /// The next frame; an [`Body::Abort`] is an error.
    pub async fn receive(&mut self, during: &'static str) -> Result<Body, MoveError> {
        let lost = |source| MoveError::Lost { peer: self.peer.to_string(), during, source };
        match self.queue.recv().await {
            Some(Ok(Body::Abort(abort))) => Err(MoveError::from_abort(&self.peer, &abort)),
            Some(Ok(body)) => Ok(body),
            Some(Err(error)) => Err(lost(Some(error))),
            None => Err(lost(None)),
        }
    }

    /// A frame that was not due.
    pub fn unexpected(&self, found: &Body, wanted: &'static str) -> MoveError {
        MoveError::Protocol { peer: self.peer.to_string(), found: name(found).to_owned(), wanted }
    }
}

async fn write_frames(stream: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Body>) -> io::Result<u64> {
    let mut stream = BufWriter::with_capacity(256 << 10, stream);
    let (mut written, mut bytes) = (0, Vec::new());
    while let Some(body) = queue.recv().await {
        let frame = Frame { body: Some(body) };
        let length = frame.encoded_len();
        let header = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?.to_be_bytes();
        stream.write_all(&header).await?;
        bytes.clear();
        frame.encode(&mut bytes).map_err(io::Error::other)?;
        stream.write_all(&bytes).await?;
        written += 4 + length as u64;
        if queue.is_empty() {
            stream.flush().await?;
        }
    }
    stream.shutdown().await?;
    Ok(written)
}

async fn read_frames(mut stream: impl AsyncRead + Unpin, queue: mpsc::Sender<io::Result<Body>>) {
    let pieces = Pieces::default();
    loop {
        let frame = read_frame(&mut stream, &pieces).await.transpose();
        let Some(frame) = frame else { return };
        let end = frame.is_err();
        if queue.send(frame).await.is_err() || end {
            return;
        }
    }
}

/// `None` at a clean end between frames.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin), pieces: &Pieces) -> io::Result<Option<Body>> {
    let mut header = [0; 4];
    match stream.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes(header) as usize;
    if length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut piece = pieces.get(length);
    stream.read_exact(&mut piece.room()[..length]).await?;
    let frame = Frame::decode(piece.take(length)).map_err(io::Error::other)?;
    frame.body.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame that it made up"))
}

/// The name of a frame's kind, for messages.
fn name(body: &Body) -> &'static str {
    match body {
        Body::Hello(_) => "Hello",
        Body::Resolve(_) => "Resolve",
        Body::Accepted(_) => "Accepted",
        Body::Prepared(_) => "Prepared",
        Body::Cut(_) => "Cut",
        Body::Pages(_) => "Pages",
        Body::PageReply(_) => "PageReply",
        Body::PagesEnd(_) => "PagesEnd",
        Body::File(_) => "File",
        Body::Data(_) => "Data",
        Body::FileEnd(_) => "FileEnd",
        Body::Sent(_) => "Sent",
        Body::Restored(_) => "Restored",
        Body::Commit(_) => "Commit",
        Body::Confirmed(_) => "Confirmed",
        Body::Abort(_) => "Abort",
        Body::Resolved(_) => "Resolved",
        Body::Done(_) => "Done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_and_lies_about_length_do_not() {
        let (a, b) = tokio::io::duplex(64);
        let a = Connection::new("b", a);
        let mut b = Connection::new("a", b);
        let pages = api::peer::v1::Pages { container: 3, data: vec![7; 100_000].into() };
        a.outgoing.send(Body::Pages(pages.clone()), "test").await.unwrap();
        assert_eq!(b.incoming.receive("test").await.unwrap(), Body::Pages(pages));
        a.close().await;
        assert!(matches!(b.incoming.receive("test").await, Err(MoveError::Lost { source: None, .. })));

        for bytes in [&[0xff; 4][..], &[0, 0, 0, 1, 0xff], &[0, 0, 0, 0]] {
            let (mut evil, good) = tokio::io::duplex(64);
            evil.write_all(bytes).await.unwrap();
            let mut good = Connection::new("evil", good);
            assert!(matches!(
                good.incoming.receive("test").await,
                Err(MoveError::Lost { source: Some(_), .. })
            ));
        }
    }
}

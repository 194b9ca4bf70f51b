//! Frames in, and the rules of a connection: what a client may open, and when it is cut off.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use ::spdy::frame::{Control, FrameError, HEAD, Head, Status};
use ::spdy::header::{self, HeaderError, Headers};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::writer::Writer;
use crate::activity::Activity;

/// Most streams that a client may have open. A pod's page that a browser loads through a port takes some dozens.
const STREAMS: usize = 512;
/// Data is handed on in pieces of at most this many bytes, however long the frame is.
const PIECE: usize = 64 << 10;
/// A burst of small frames is read at once.
const BUFFER: usize = 8 << 10;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("stream {0} cannot be opened: a client's streams have odd and growing numbers")]
    Number(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a client did.
#[derive(Debug)]
pub(crate) enum Event {
    /// Opened a stream, which is neither accepted nor refused yet. `fin`: it will send nothing.
    Open { stream: u32, headers: Headers, fin: bool },
    /// Sent something. `fin`: it will send nothing more.
    Data { stream: u32, data: Bytes, fin: bool },
    /// Gave a stream up, both ways.
    Reset { stream: u32 },
}

/// A data frame of which some is still to come.
struct Partial {
    stream: u32,
    left: usize,
    fin: bool,
}

/// The receiving half of a connection.
pub(crate) struct Reader {
    wire: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Arc<Writer>,
    headers: header::Reader,
    activity: Arc<Activity>,
    /// Streams on which the client may still send.
    open: HashSet<u32>,
    last: u32,
    partial: Option<Partial>,
    /// Handed on, and not yet credited.
    taken: Option<(u32, u32)>,
}

impl Reader {
    pub(crate) fn new(
        wire: Box<dyn AsyncRead + Send + Unpin>,
        writer: Arc<Writer>,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            wire: BufReader::with_capacity(BUFFER, wire),
            writer,
            headers: header::Reader::new(),
            activity,
            open: HashSet::new(),
            last: 0,
            partial: None,
            taken: None,
        }
    }

    /// The last stream that the client opened.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    /// The next thing that concerns a session; `None`: the client has left.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, SpdyError> {
        if let Some((stream, length)) = self.taken.take()
            && self.writer.windows().are_binding()
        {
            self.writer.credit(stream, length).await?;
        }
        loop {
            if let Some(partial) = self.partial.take() {
                if let Some(event) = self.data(partial).await? {
                    return Ok(Some(event));
                }
                continue;
            }
            let Some(head) = self.head().await? else { return Ok(None) };
            self.activity.touch();
            match head {
                Head::Data { stream, fin, length } => {
                    self.partial = Some(Partial { stream, left: length, fin });
                }
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.wire.read_exact(&mut payload).await?;
                    if let Some(event) = self.control(Control::parse(kind, flags, &payload)?).await? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// The end between two frames is a client's leaving, and one inside a frame an error.
    async fn head(&mut self) -> Result<Option<Head>, SpdyError> {
        let mut head = [0; HEAD];
        match self.wire.read(&mut head).await {
            Ok(0) => return Ok(None),
            Ok(read) => self.wire.read_exact(&mut head[read..]).await?,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Head::parse(head)?))
    }

    /// The next piece of a data frame; none for a stream that is not open.
    async fn data(&mut self, partial: Partial) -> Result<Option<Event>, SpdyError> {
        let Partial { stream, left, fin } = partial;
        let mut piece = BytesMut::with_capacity(left.min(PIECE));
        if left > 0 && (&mut self.wire).take(left.min(PIECE) as u64).read_buf(&mut piece).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let left = left - piece.len();
        if left > 0 {
            self.partial = Some(Partial { stream, left, fin });
        }
        if !self.open.contains(&stream) {
            if left == 0 {
                self.writer.reset(stream, Status::InvalidStream).await?;
            }
            return Ok(None);
        }
        let fin = fin && left == 0;
        if fin {
            self.open.remove(&stream);
        }
        self.taken = u32::try_from(piece.len()).ok().filter(|n| *n > 0).map(|n| (stream, n));
        Ok(Some(Event::Data { stream, data: piece.freeze(), fin }))
    }

    async fn control(&mut self, control: Control<'_>) -> Result<Option<Event>, SpdyError> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.headers.read(block)?;
                return self.open(stream, headers, fin).await;
            }
            Control::SynReply { block } => drop(self.headers.read(block)?),
            Control::Headers { stream, fin, block } => {
                self.headers.read(block)?;
                if fin && self.open.remove(&stream) {
                    return Ok(Some(Event::Data { stream, data: Bytes::new(), fin }));
                }
            }
            Control::Reset { stream } => {
                self.open.remove(&stream);
                self.writer.windows().forget(stream);
                return Ok(Some(Event::Reset { stream }));
            }
            Control::Settings { window: Some(window) } => self.writer.windows().set_initial(window),
            Control::WindowUpdate { stream, delta } => self.writer.windows().widen(stream, delta),
            // An even number would answer a ping of ours.
            Control::Ping { id } if id % 2 == 1 => self.writer.ping(id).await?,
            Control::Ping { .. } | Control::Settings { .. } | Control::GoAway | Control::Unknown => {}
        }
        Ok(None)
    }

    async fn open(&mut self, stream: u32, headers: Headers, fin: bool) -> Result<Option<Event>, SpdyError> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(SpdyError::Number(stream));
        }
        self.last = stream;
        if self.open.len() >= STREAMS {
            self.writer.reset(stream, Status::Refused).await?;
            return Ok(None);
        }
        if !fin {
            self.open.insert(stream);
        }
        Ok(Some(Event::Open { stream, headers, fin }))
    }

    /// Whatever else the client sends on this stream is not wanted.
    pub(crate) fn forget(&mut self, stream: u32) {
        self.open.remove(&stream);
    }
}

#[cfg(test)]
mod tests;

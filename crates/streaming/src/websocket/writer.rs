//! Messages out, from whoever has something to send.

use std::sync::Arc;
use std::{fmt, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Socket;
use crate::activity::Activity;
use crate::chunk::{Chunk, ROOM};

/// How a channel's bytes stand in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The channel's number as a byte, then the bytes.
    Binary,
    /// The channel's number as a digit, then base64.
    Base64,
}

/// The sending half of a connection.
pub(crate) struct Writer {
    sink: Mutex<SplitSink<Socket, Message>>,
    encoding: Encoding,
    activity: Arc<Activity>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("encoding", &self.encoding).finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(sink: SplitSink<Socket, Message>, encoding: Encoding, activity: Arc<Activity>) -> Self {
        Self { sink: Mutex::new(sink), encoding, activity }
    }

    /// Sends a chunk on a channel below 10.
    pub(crate) async fn data(&self, channel: u8, chunk: &mut Chunk) -> io::Result<()> {
        let message = match self.encoding {
            Encoding::Binary => {
                chunk.bytes[ROOM - 1] = channel;
                Message::Binary(chunk.bytes.split().freeze().slice(ROOM - 1..))
            }
            Encoding::Base64 => {
                let mut text = String::from(char::from(b'0' + channel));
                STANDARD.encode_string(chunk.payload(), &mut text);
                Message::text(text)
            }
        };
        self.send(message).await
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        self.sink.lock().await.send(message).await.map_err(io_error)?;
        self.activity.touch();
        Ok(())
    }

    pub(crate) async fn close(&self) -> io::Result<()> {
        self.close_for(CloseCode::Normal, "").await
    }

    pub(crate) async fn close_for(&self, code: CloseCode, reason: &'static str) -> io::Result<()> {
        self.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await
    }
}

pub(super) fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

/// What a message says: its channel and bytes. `None`: it is none of this protocol.
pub(super) fn decode(message: Message, encoding: Encoding) -> Option<(u8, Bytes)> {
    match (message, encoding) {
        (Message::Binary(bytes), Encoding::Binary) => Some((*bytes.first()?, bytes.slice(1..))),
        (Message::Text(text), Encoding::Base64) => {
            let (channel, rest) = text.as_bytes().split_first()?;
            let channel = channel.checked_sub(b'0').filter(|n| *n < 10)?;
            Some((channel, STANDARD.decode(rest).ok()?.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let binary =
            |bytes: &'static [u8]| decode(Message::Binary(Bytes::from_static(bytes)), Encoding::Binary);
        assert_eq!(binary(b"\x00hi"), Some((0, Bytes::from_static(b"hi"))));
        assert_eq!(binary(b"\xff\x00"), Some((255, Bytes::from_static(b"\0"))));
        assert_eq!(binary(b""), None);
        let text = |text: &'static str| decode(Message::text(text), Encoding::Base64);
        assert_eq!(text("0aGk="), Some((0, Bytes::from_static(b"hi"))));
        for wrong in ["", "aGk=", "0a", "/aGk="] {
            assert_eq!(text(wrong), None, "{wrong}");
        }
        assert_eq!(decode(Message::text("0hi"), Encoding::Binary), None);
    }
}

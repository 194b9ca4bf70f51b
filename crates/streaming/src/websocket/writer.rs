//! Messages out, from whoever has something to send.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::frame::{Head, Opcode};
use crate::activity::Activity;
use crate::chunk::{Chunk, ROOM};
use crate::wire::{Frames, Outgoing};

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
    frames: Mutex<Frames>,
    /// The last frame was sent, or is being.
    closed: AtomicBool,
    encoding: Encoding,
    activity: Arc<Activity>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("encoding", &self.encoding).finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(wire: Outgoing, encoding: Encoding, activity: Arc<Activity>) -> Self {
        Self { frames: Mutex::new(Frames::new(wire)), closed: AtomicBool::new(false), encoding, activity }
    }

    /// Sends a chunk on a channel below 10.
    pub(crate) async fn data(&self, channel: u8, chunk: &mut Chunk) -> io::Result<()> {
        match self.encoding {
            Encoding::Binary => {
                let head = Head::new(Opcode::Binary, chunk.payload().len() + 1);
                let mut start = [0; ROOM];
                let length = head.bytes().len();
                start[..length].copy_from_slice(head.bytes());
                start[length] = channel;
                self.write(&[chunk.behind(&start[..=length])]).await
            }
            Encoding::Base64 => {
                let mut text = String::from(char::from(b'0' + channel));
                STANDARD.encode_string(chunk.payload(), &mut text);
                self.send(Opcode::Text, text.as_bytes()).await
            }
        }
    }

    async fn send(&self, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        self.write(&[Head::new(opcode, payload.len()).bytes(), payload]).await
    }

    async fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        self.frames.lock().await.write(parts).await?;
        self.activity.touch();
        Ok(())
    }

    /// Answers a ping.
    pub(super) async fn pong(&self, ping: &[u8]) -> io::Result<()> {
        self.send(Opcode::Pong, ping).await
    }

    pub(crate) async fn close(&self) -> io::Result<()> {
        self.close_for(CloseCode::Normal, "").await
    }

    /// Only the first close is sent. `reason` has at most 123 bytes.
    pub(crate) async fn close_for(&self, code: CloseCode, reason: &'static str) -> io::Result<()> {
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let payload = [&u16::from(code).to_be_bytes()[..], reason.as_bytes()].concat();
        self.send(Opcode::Close, &payload).await
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

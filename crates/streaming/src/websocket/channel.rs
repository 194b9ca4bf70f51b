//! Exec and attach over WebSocket: five numbered channels in one connection.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::writer::{decode, io_error};
use super::{Encoding, Socket, Writer, reader};
use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::client::{Client, Router, Sender, Senders};
use crate::outcome::Form;
use crate::request::Streams;
use crate::wire::Wire;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Since version 5: its message names a channel that will bring nothing more.
const CLOSE: u8 = 255;

/// A version of the channel protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    number: u8,
    encoding: Encoding,
}

const fn version(number: u8, encoding: Encoding) -> Version {
    Version { number, encoding }
}

impl Version {
    pub(crate) fn name(self) -> &'static str {
        PROTOCOLS.iter().find(|(_, version)| *version == self).map_or("", |(name, _)| name)
    }
}

/// The protocols by name.
pub(crate) const PROTOCOLS: [(&str, Version); 5] = [
    ("v5.channel.k8s.io", version(5, Encoding::Binary)),
    ("v4.channel.k8s.io", version(4, Encoding::Binary)),
    ("v4.base64.channel.k8s.io", version(4, Encoding::Base64)),
    ("channel.k8s.io", version(1, Encoding::Binary)),
    ("base64.channel.k8s.io", version(1, Encoding::Base64)),
];

/// Connects a client that has switched to WebSocket.
pub(crate) async fn accept(
    wire: Wire,
    wanted: Streams,
    version: Version,
    idle: Duration,
) -> std::io::Result<Client> {
    let activity = Arc::new(Activity::new());
    let writer = Arc::new(Writer::new(wire.outgoing, version.encoding, Arc::clone(&activity)));
    let stream = reader(wire.incoming).await;
    let sender = |channel| Sender::WebSocket(Arc::clone(&writer), channel);
    let senders = Senders {
        stdout: wanted.stdout.then(|| sender(STDOUT)),
        stderr: wanted.stderr.then(|| sender(STDERR)),
        error: sender(ERROR),
        form: if version.number >= 4 { Form::Status } else { Form::Text },
    };
    // An empty message tells the client that its streams are there.
    let first = senders.stdout.as_ref().or(senders.stderr.as_ref()).unwrap_or(&senders.error);
    first.send(&mut Chunk::of(&[])).await?;
    let shared = Arc::clone(&activity);
    let read = |router| read(stream, writer, version, router, shared);
    Ok(Client::start(senders, wanted.stdin, wire.peer, (activity, idle), read))
}

/// Reads until the client leaves or breaks the protocol.
async fn read(
    mut stream: Socket,
    writer: Arc<Writer>,
    version: Version,
    mut router: Router,
    activity: Arc<Activity>,
) {
    while let Some(message) = stream.next().await {
        activity.touch();
        let (code, reason) = match message {
            Ok(Message::Ping(ping)) => match writer.pong(&ping).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            Ok(Message::Pong(_)) => continue,
            Ok(Message::Close(_)) => return drop(writer.close().await),
            Ok(message) => match take(message, version, &mut router).await {
                Taken::Yes => continue,
                Taken::Left => return,
                Taken::No(reason) => (CloseCode::Policy, reason),
            },
            Err(Error::Protocol(_)) => (CloseCode::Protocol, "this is not the WebSocket protocol"),
            Err(Error::Capacity(_)) => (CloseCode::Size, "messages may have 1 MiB"),
            Err(Error::Utf8(_)) => (CloseCode::Invalid, "text is not UTF-8"),
            Err(error) => {
                let error = io_error(error);
                return tracing::debug!(%error, "a streaming client was lost");
            }
        };
        tracing::debug!(reason, "a streaming client was cut off");
        let _ = writer.close_for(code, reason).await;
        return;
    }
}

enum Taken {
    Yes,
    /// It belongs to no channel.
    No(&'static str),
    /// The client has left meanwhile.
    Left,
}

async fn take(message: Message, version: Version, router: &mut Router) -> Taken {
    let Some((channel, bytes)) = decode(message, version.encoding) else {
        return Taken::No("a message must begin with its channel, in the encoding of the protocol");
    };
    match channel {
        STDIN => {
            if !router.stdin(bytes).await {
                return Taken::Left;
            }
        }
        RESIZE => router.size(&bytes),
        CLOSE if version.number >= 5 => {
            if bytes.first() == Some(&STDIN) {
                router.end_stdin();
            }
        }
        _ => return Taken::No("a client sends on channels 0 and 4, and since version 5 on 255"),
    }
    Taken::Yes
}

//! Exec and attach over SPDY: one stream each for errors, input, outputs and sizes, opened by the client.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::{Event, Reader, SpdyError, Status, Writer};
use crate::activity::Activity;
use crate::client::{Client, Router, Sender, Senders};
use crate::outcome::Form;
use crate::request::Streams;
use crate::wire::Wire;

/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// Most input that is kept before the streams are there.
const EARLY: usize = 64 << 10;

/// Protocols, the best first; the number is their version.
pub(crate) const PROTOCOLS: [(&str, u8); 4] =
    [("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];

/// The name of a version.
pub(crate) fn name(version: u8) -> &'static str {
    PROTOCOLS.iter().find(|(_, number)| *number == version).map_or("", |(name, _)| name)
}

/// Why a client was not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error(transparent)]
    Spdy(#[from] SpdyError),
    #[error("the client left before it opened its streams")]
    Left,
    #[error("the client sent more than {EARLY} bytes before it opened its streams")]
    Early,
    #[error("the client did not open its streams within {} s", OPENING.as_secs())]
    Slow,
}

/// The streams that the client has opened so far.
#[derive(Debug, Default)]
struct Opened {
    error: Option<u32>,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
    stdin_ended: bool,
    /// Input that came before the last stream was opened.
    early: BytesMut,
}

impl Opened {
    /// Where a stream of this type belongs; none for what was not asked for.
    fn place(&mut self, kind: Option<&str>, wanted: Streams) -> Option<&mut Option<u32>> {
        let place = match kind? {
            "error" => &mut self.error,
            "stdin" if wanted.stdin => &mut self.stdin,
            "stdout" if wanted.stdout => &mut self.stdout,
            "stderr" if wanted.stderr => &mut self.stderr,
            "resize" if wanted.tty => &mut self.resize,
            _ => return None,
        };
        place.is_none().then_some(place)
    }

    /// The error stream, once every stream is there.
    fn complete(&self, wanted: Streams, version: u8) -> Option<u32> {
        let there = |wanted: bool, stream: Option<u32>| !wanted || stream.is_some();
        let all = there(wanted.stdin, self.stdin)
            && there(wanted.stdout, self.stdout)
            && there(wanted.stderr, self.stderr)
            && there(wanted.tty && version >= 3, self.resize);
        self.error.filter(|_| all)
    }
}

/// Connects a client that has switched to SPDY.
pub(crate) async fn accept(
    wire: Wire,
    wanted: Streams,
    version: u8,
    idle: Duration,
) -> Result<Client, AcceptError> {
    let activity = Arc::new(Activity::new());
    let writer = Arc::new(Writer::new(wire.outgoing, Arc::clone(&activity)));
    let mut reader = Reader::new(wire.incoming, Arc::clone(&writer), Arc::clone(&activity));
    let opening = open(&mut reader, &writer, wanted, version);
    let (opened, error) = match tokio::time::timeout(OPENING, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            let _ = writer.go_away(reader.last(), true).await;
            return Err(error);
        }
        Err(_) => return Err(AcceptError::Slow),
    };
    let sender = |stream: Option<u32>| stream.map(|stream| Sender::Spdy(Arc::clone(&writer), stream));
    let senders = Senders {
        stdout: sender(opened.stdout),
        stderr: sender(opened.stderr),
        error: Sender::Spdy(Arc::clone(&writer), error),
        form: if version >= 4 { Form::Status } else { Form::Text },
    };
    let read = |router| read(reader, writer, opened, router);
    Ok(Client::start(senders, wanted.stdin, wire.peer, (activity, idle), read))
}

async fn open(
    reader: &mut Reader,
    writer: &Writer,
    wanted: Streams,
    version: u8,
) -> Result<(Opened, u32), AcceptError> {
    let mut opened = Opened::default();
    loop {
        if let Some(error) = opened.complete(wanted, version) {
            return Ok((opened, error));
        }
        match reader.next().await?.ok_or(AcceptError::Left)? {
            Event::Open { stream, headers, fin } => {
                let stdin = headers.get("streamtype") == Some("stdin");
                if let Some(place) = opened.place(headers.get("streamtype"), wanted) {
                    *place = Some(stream);
                    opened.stdin_ended |= stdin && fin;
                    writer.accept(stream).await.map_err(SpdyError::from)?;
                } else {
                    reader.forget(stream);
                    writer.reset(stream, Status::Refused).await.map_err(SpdyError::from)?;
                }
            }
            Event::Data { stream, data, fin } if opened.stdin == Some(stream) => {
                opened.early.extend_from_slice(&data);
                opened.stdin_ended |= fin;
                if opened.early.len() > EARLY {
                    return Err(AcceptError::Early);
                }
            }
            Event::Data { .. } | Event::Reset { .. } => {}
        }
    }
}

/// Reads until the client leaves or breaks the protocol.
async fn read(mut reader: Reader, writer: Arc<Writer>, mut opened: Opened, mut router: Router) {
    if !router.stdin(opened.early.split().freeze()).await {
        return;
    }
    if opened.stdin_ended {
        router.end_stdin();
    }
    let error = loop {
        let event = match reader.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => break error,
        };
        match event {
            Event::Data { stream, data, fin } if opened.stdin == Some(stream) => {
                if !router.stdin(data).await {
                    return;
                }
                if fin {
                    router.end_stdin();
                }
            }
            Event::Data { stream, data, .. } if opened.resize == Some(stream) => router.size(&data),
            Event::Reset { stream } if opened.stdin == Some(stream) => router.end_stdin(),
            Event::Open { stream, .. } => {
                reader.forget(stream);
                if writer.reset(stream, Status::Refused).await.is_err() {
                    return;
                }
            }
            Event::Data { .. } | Event::Reset { .. } => {}
        }
    };
    tracing::debug!(%error, "a streaming client was cut off");
    let _ = writer.go_away(reader.last(), true).await;
}

//! A WebSocket as a stream of bytes, for another protocol to be spoken through it.

use std::future::ready;

use futures_util::{SinkExt, StreamExt, TryStreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::socket;
use super::writer::io_error;
use crate::wire::{Both, Wire};

/// Binary messages one after another are the bytes; where they begin and end means nothing.
pub(crate) async fn tunnel(Wire { incoming, outgoing, peer }: Wire) -> Wire {
    let (sink, stream) = socket(Both(incoming, outgoing)).await.split();
    let bytes = stream.map_err(io_error).try_filter_map(|message| {
        ready(Ok(match message {
            Message::Binary(bytes) => Some(bytes),
            _ => None,
        }))
    });
    let sink = sink.with(|bytes| ready(Ok(Message::Binary(bytes)))).sink_map_err(io_error);
    Wire {
        incoming: Box::new(StreamReader::new(bytes)),
        outgoing: Box::new(SinkWriter::new(CopyToBytes::new(sink))),
        peer,
    }
}

//! WebSocket, the server's side: channels in one connection, or SPDY through it.
//!
//! [`channel`] is what exec and attach speak: the first byte (or, in base64 protocols, digit) of a message says which
//! stream it belongs to. [`mod@tunnel`] makes a connection a stream of bytes, for SPDY to be spoken through it, which is how
//! ports are forwarded. Reading, with masks and fragments, is tungstenite's; what channels send is written by [`writer`],
//! straight from the buffer it was read into.

pub(crate) mod channel;
mod frame;
mod tunnel;
mod writer;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::http::{self, Head, Refusal};
use crate::wire::{Both, Incoming, Wire};

pub(crate) use tunnel::tunnel;
pub(crate) use writer::{Encoding, Writer};

pub(crate) type Socket = WebSocketStream<Both>;

/// Largest message that is read. Clients send pieces of some ten KiB.
const MESSAGE: usize = 1 << 20;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_asked(head: &Head) -> bool {
    head.says("connection", "upgrade") && head.says("upgrade", "websocket")
}

/// The first of `spoken` that the client offers, in the client's order.
pub(crate) fn negotiate<T: Copy>(
    head: &Head,
    spoken: &[(&'static str, T)],
) -> Result<(&'static str, T), Refusal> {
    if head.get("sec-websocket-version") != Some("13") || head.get("sec-websocket-key").is_none() {
        return Err(Refusal::Upgrade);
    }
    let offered = head.list("sec-websocket-protocol");
    let known = |name: &String| spoken.iter().find(|(own, _)| own == name).copied();
    offered.iter().find_map(known).ok_or(Refusal::Protocol(offered))
}

/// Switches to WebSocket with the protocol that was agreed upon.
pub(crate) async fn switch(wire: &mut Wire, head: &Head, protocol: &str) -> std::io::Result<()> {
    let key = derive_accept_key(head.get("sec-websocket-key").unwrap_or_default().as_bytes());
    let headers = [("Sec-WebSocket-Accept", key.as_str()), ("Sec-WebSocket-Protocol", protocol)];
    http::switch(&mut wire.outgoing, "websocket", &headers).await
}

/// What arrives. Whoever reads has to answer pings and closes.
async fn reader(wire: Incoming) -> Socket {
    socket(Both(wire, Box::new(tokio::io::sink()))).await
}

async fn socket(wire: Both) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 << 20);
    WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await
}

//! Doors for the fuzzers (`fuzz/`): a client, from its bytes.

use std::fs::File;
use std::io::Cursor;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::client::Client;
use crate::request::Streams;
use crate::wire::{Peer, Wire};
use crate::{http, spdy, websocket};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };
const IDLE: Duration = Duration::from_secs(60);

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
}

/// Frames of a client that has upgraded to SPDY.
pub fn spdy(bytes: &[u8]) {
    run(bytes, async |wire| spdy::client::accept(wire, ALL, 4, IDLE).await.ok());
}

/// With a first byte of 0 an HTTP request, else WebSocket frames in the protocol of that number.
pub fn websocket(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if *kind == 0 {
        return RUNTIME.with(|runtime| drop(runtime.block_on(http::read(&mut &*bytes))));
    }
    let (_, version) =
        websocket::channel::PROTOCOLS[usize::from(*kind) % websocket::channel::PROTOCOLS.len()];
    run(bytes, async |wire| websocket::channel::accept(wire, ALL, version, IDLE).await.ok());
}

/// Connects, and takes all input until the client has left.
fn run(bytes: &[u8], connect: impl AsyncFnOnce(Wire) -> Option<Client>) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let peer = Peer(File::open("/dev/null").expect("it is there").into());
            let incoming = Box::new(Cursor::new(bytes.to_vec()));
            let wire = Wire { incoming, outgoing: Box::new(tokio::io::sink()), peer };
            let Some(mut client) = connect(wire).await else { return };
            let mut taken = 0;
            if let Some(mut stdin) = client.stdin.take() {
                while let Some(piece) = stdin.recv().await {
                    taken += piece.len();
                }
            }
            client.gone.cancelled().await;
            assert!(taken <= bytes.len(), "{taken} bytes of input came of {}", bytes.len());
        });
    });
}

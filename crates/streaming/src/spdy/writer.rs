//! Frames out: whole, one after another, from whoever has something to send.

use std::io;
use std::sync::Arc;

use ::spdy::frame::{self, HEAD, Status};
use ::spdy::header;
use tokio::sync::Mutex;

use super::window::Windows;
use crate::activity::Activity;
use crate::chunk::{Chunk, ROOM};
use crate::wire::{Frames, Outgoing};

/// Most bytes of a data frame to a peer that has windows: so that its streams take turns.
const FAIR: usize = 32 << 10;

const _: () = assert!(ROOM >= HEAD);

struct Out {
    frames: Frames,
    headers: header::Writer,
}

/// The sending half of a connection.
pub(crate) struct Writer {
    out: Mutex<Out>,
    windows: Windows,
    activity: Arc<Activity>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(wire: Outgoing, activity: Arc<Activity>) -> Self {
        let out = Out { frames: Frames::new(wire), headers: header::Writer::new() };
        Self { out: Mutex::new(out), windows: Windows::new(), activity }
    }

    pub(super) fn windows(&self) -> &Windows {
        &self.windows
    }

    async fn write(&self, frame: &[&[u8]]) -> io::Result<()> {
        self.out.lock().await.frames.write(frame).await?;
        self.activity.touch();
        Ok(())
    }

    /// Accepts a stream that the client has opened.
    pub(crate) async fn accept(&self, stream: u32) -> io::Result<()> {
        let mut out = self.out.lock().await;
        let block = out.headers.write(&[]);
        out.frames.write(&[&frame::syn_reply(stream, &block)]).await
    }

    /// Sends a chunk, as far as windows let it in pieces.
    pub(crate) async fn data(&self, stream: u32, chunk: &mut Chunk) -> io::Result<()> {
        let length = chunk.payload().len();
        if length == 0 {
            return Ok(());
        }
        if !self.windows.are_binding() {
            return self.write(&[chunk.behind(&frame::data(stream, length, false))]).await;
        }
        let mut rest = chunk.payload();
        while !rest.is_empty() {
            let taken = self.windows.take(stream, rest.len().min(FAIR)).await;
            let (now, later) = rest.split_at(taken);
            self.write(&[&frame::data(stream, taken, false), now]).await?;
            rest = later;
        }
        Ok(())
    }

    /// Ends our half of a stream.
    pub(crate) async fn end(&self, stream: u32) -> io::Result<()> {
        self.windows.forget(stream);
        self.write(&[&frame::data(stream, 0, true)]).await
    }

    /// Ends a stream both ways.
    pub(crate) async fn reset(&self, stream: u32, status: Status) -> io::Result<()> {
        self.windows.forget(stream);
        self.write(&[&frame::reset(stream, status)]).await
    }

    pub(super) async fn ping(&self, id: u32) -> io::Result<()> {
        self.write(&[&frame::ping(id)]).await
    }

    /// What the client sent on a stream was taken: it may send as much again.
    pub(super) async fn credit(&self, stream: u32, length: u32) -> io::Result<()> {
        let (connection, own) = (frame::window_update(0, length), frame::window_update(stream, length));
        self.write(&[&connection, &own]).await
    }

    /// Says that no further stream will be accepted, and closes the sending half.
    pub(crate) async fn go_away(&self, last: u32, error: bool) -> io::Result<()> {
        let mut out = self.out.lock().await;
        out.frames.write(&[&frame::go_away(last, error)]).await?;
        out.frames.shutdown().await
    }
}

//! SPDY/3.1, the server's side of it, as far as Kubernetes speaks it: the client opens streams, both send data.
//!
//! ```text
//!  wire ──▶ Reader ──Event──▶ session       session ──▶ Writer ──▶ wire
//!             │ pings, settings, windows, refusals      ▲
//!             └─────────────────────────────────────────┘
//! ```
//!
//! Crate `spdy` turns bytes into frames and back and does no I/O; [`reader`] keeps the rules of a connection; [`writer`]
//! keeps frames whole and windows kept.
//!
//! **Flow control**: the library that all Go clients use neither sends WINDOW_UPDATE nor heeds it. So windows bind only
//! once the peer has shown that it knows them, by SETTINGS or WINDOW_UPDATE; until then TCP alone holds a sender back.
//! What a client sends is bounded by not reading on while nobody takes it.

pub(crate) mod client;
mod reader;
mod window;
mod writer;

pub(crate) use ::spdy::frame::Status;
pub(crate) use ::spdy::header::Headers;
pub(crate) use reader::{Event, Reader, SpdyError};
pub(crate) use writer::Writer;

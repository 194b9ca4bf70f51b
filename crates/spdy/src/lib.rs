//! SPDY/3.1 as bytes: frames and header blocks, read and written. No I/O here.
//!
//! ```text
//! bytes ──▶ Head::parse ──┬─▶ data of a stream
//!                         └─▶ Control::parse ──▶ SYN_STREAM, SYN_REPLY, HEADERS ──▶ header::Reader ──▶ Headers
//! bytes ◀── frame::{syn_stream, syn_reply, data, reset, ping, go_away, window_update} ◀── header::Writer
//! ```
//!
//! Kubernetes has carried exec, attach and port-forward over SPDY since 2014. Crate `streaming` keeps the rules of a
//! connection, as the server; `meridian port-forward` is a client. What arrives is bounded before it is kept: a control
//! frame by [`frame::CONTROL_LIMIT`], an unpacked header block by [`header::BLOCK_LIMIT`].

mod dictionary;
pub mod frame;
pub mod header;

//! A client's HTTP request; and all that a client sends over a WebSocket after it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| streaming::fuzz::websocket(bytes));

//! All that a client sends over SPDY after the upgrade.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| streaming::fuzz::spdy(bytes));

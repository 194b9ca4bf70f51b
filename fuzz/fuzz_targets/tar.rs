//! A layer's blob: decompressed, and every entry of the archive in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| image::fuzz::tar(bytes));

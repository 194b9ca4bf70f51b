//! A manifest, an index or an image's configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| image::fuzz::manifest(bytes));

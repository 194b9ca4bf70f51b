//! A CRI request: from its protobuf to the checks that it must pass before anything is done for it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cri::fuzz::request(bytes));

#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| spillway_fuzz::parameters(octets));

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: keelson_fuzz_targets::plant("spdy"),
    |data: &[u8]| keelson_fuzz_targets::run("spdy", data)
);

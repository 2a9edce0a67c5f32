#![no_main]

libfuzzer_sys::fuzz_target!(
    init: keelson_fuzz_targets::plant("json"),
    |data: &[u8]| keelson_fuzz_targets::run("json", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: keelson_fuzz_targets::plant("quantity"),
    |data: &[u8]| keelson_fuzz_targets::run("quantity", data)
);

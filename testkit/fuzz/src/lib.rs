//! What must answer any bytes without a panic, in time and in bounded memory: the functions behind
//! both the fuzzers in `/fuzz` and the seeded loop that `cargo test` runs.
//!
//! A target also asserts the laws that hold for whatever it accepts.

#[cfg(feature = "server")]
mod asking;
mod decoding;
mod patching;
mod selecting;
#[cfg(feature = "store")]
mod storing;
#[cfg(feature = "streaming")]
mod streaming;

/// One function and inputs to start from.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static [u8]],
}

#[rustfmt::skip]
pub static TARGETS: &[Target] = &[
    Target { name: "json", run: decoding::json, seeds: decoding::JSON },
    Target { name: "protobuf", run: decoding::protobuf, seeds: decoding::PROTOBUF },
    Target { name: "cbor", run: decoding::cbor, seeds: decoding::CBOR },
    Target { name: "patch", run: patching::patch, seeds: patching::PATCHES },
    Target { name: "apply", run: patching::apply, seeds: patching::CONFIGURATIONS },
    Target { name: "selector", run: selecting::selector, seeds: selecting::SELECTORS },
    Target { name: "quantity", run: selecting::quantity, seeds: selecting::QUANTITIES },
    Target { name: "cel", run: selecting::cel, seeds: selecting::EXPRESSIONS },
    #[cfg(feature = "store")]
    Target { name: "store", run: storing::store, seeds: storing::PROGRAMS },
    #[cfg(feature = "streaming")]
    Target { name: "spdy", run: streaming::spdy, seeds: streaming::WIRES },
    #[cfg(feature = "server")]
    Target { name: "parameters", run: asking::parameters, seeds: asking::REQUESTS },
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(data);
    }
}

/// Puts the seeds of a target where a fuzzer begins, the directory that `FUZZ_SEEDS` names.
pub fn plant(name: &str) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS") else {
        return;
    };
    for target in TARGETS.iter().filter(|target| target.name == name) {
        for (number, seed) in target.seeds.iter().enumerate() {
            let file = std::path::Path::new(&directory).join(format!("seed-{number}"));
            if let Err(error) = std::fs::write(&file, seed) {
                eprintln!("{}: {error}", file.display());
            }
        }
    }
}

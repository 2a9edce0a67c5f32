//! The targets on inputs made of their seeds: reproducible, bounded, and no substitute for the
//! fuzzers, which look where they have not been.

use std::time::{Duration, Instant};

use keelson_fuzz_targets::{TARGETS, Target};

/// Inputs a target gets at most, and the time it may take for them.
const INPUTS: u64 = 1500;
const TIME: Duration = Duration::from_secs(4);
/// One input may not take longer, on a machine that does other things as well.
const SLOW: Duration = Duration::from_secs(10);

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    fn input(&mut self, seeds: &[&[u8]]) -> Vec<u8> {
        let mut input = seeds[self.next(seeds.len())].to_vec();
        for _ in 0..=self.next(6) {
            self.mutate(&mut input, seeds);
        }
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[&[u8]]) {
        const TEXTS: &[&[u8]] = &[
            b"null",
            b"-1",
            b"18446744073709551616",
            b"1e999",
            b"[[[[",
            b"{}",
            b"\"\"",
            b"\xff",
            b"\0",
            b"((((",
            b"$patch",
            b"/",
            b"!",
            b"\\u0000",
            b"\xf0\x9f\x98\x80",
        ];
        let at = self.next(input.len() + 1);
        let length = self.next(8).min(input.len() - at);
        match self.next(6) {
            0 if at < input.len() => input[at] ^= 1 << self.next(8),
            1 => drop(input.drain(at..at + length)),
            2 => {
                let text = TEXTS[self.next(TEXTS.len())];
                input.splice(at..at + length, text.iter().copied());
            }
            3 => {
                let piece = input[at..].to_vec();
                let to = self.next(input.len() + 1);
                input.splice(to..to, piece.into_iter().take(64));
            }
            4 => {
                let other = seeds[self.next(seeds.len())];
                let from = self.next(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => input.insert(at, self.next(256) as u8),
        }
        input.truncate(1 << 16);
    }
}

fn smoke(target: &Target) {
    let mut random = Random(0x5eed_0000 + target.name.len() as u64);
    let started = Instant::now();
    for seed in target.seeds {
        (target.run)(seed);
    }
    for round in 0..INPUTS {
        let input = random.input(target.seeds);
        let before = Instant::now();
        let outcome = std::panic::catch_unwind(|| (target.run)(&input));
        let shown = input.escape_ascii();
        assert!(outcome.is_ok(), "{} round {round}: {shown}", target.name);
        let took = before.elapsed();
        assert!(
            took < SLOW,
            "{} round {round}: {took:?}: {shown}",
            target.name
        );
        if started.elapsed() > TIME {
            break;
        }
    }
}

macro_rules! smoke {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            let target = TARGETS.iter().find(|target| target.name == name);
            smoke(target.expect("a target of this name"));
        })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
smoke!(
    json, protobuf, cbor, patch, apply, selector, quantity, cel, store, spdy, parameters
);

#[test]
fn every_target_is_run() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, NAMES);
}

//! Texts that are nearly expressions: the engine answers all of them.

use keelson_cel::{
    DeclSizes, DeclType, Environment, SizeEstimator, SizeRange, Type, Value, Variables, Version,
    display_issues,
};
use std::sync::Arc;

const ROUNDS: usize = 3_000;

/// A small generator, so that every run feeds the same texts.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let i = self.below(items.len());
        &items[i]
    }
}

const PIECES: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "?",
    ":",
    "+",
    "-",
    "*",
    "/",
    "%",
    "!",
    "&&",
    "||",
    "==",
    "<",
    "in",
    "'",
    "\"",
    "\\",
    "r'",
    "b'",
    "1",
    "0x",
    "1e",
    "1u",
    "x",
    "l",
    "m",
    "d",
    "o",
    ".all(",
    ".map(i, ",
    ".?",
    "[?",
    "null",
    "true",
    "dyn(",
    "size(",
    "optional.of(",
    "é",
    "\u{0}",
    "9223372036854775807",
    "-9223372036854775808",
    "duration('",
    "matches('",
    "[^",
    "{1,",
    "\n",
];

fn mutate(random: &mut Random, texts: &[&str]) -> String {
    let mut text: Vec<char> = random.pick(texts).chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(text.len() + 1);
        match random.below(5) {
            0 if !text.is_empty() => {
                text.remove(at.min(text.len() - 1));
            }
            1 => {
                let other: Vec<char> = random.pick(texts).chars().collect();
                let from = random.below(other.len() + 1);
                text.splice(at..at, other[from..].iter().copied());
            }
            2 => text.truncate(at),
            3 if text.len() > 1 => {
                let other = random.below(text.len());
                text.swap(at.min(other), other);
            }
            _ => {
                let piece = random.pick(PIECES);
                text.splice(at..at, piece.chars());
            }
        }
    }
    text.truncate(400);
    text.into_iter().collect()
}

struct Known;

impl SizeEstimator for Known {
    fn estimate_size(&self, path: &[Arc<str>], ty: &Type) -> Option<SizeRange> {
        DeclSizes::new(DeclType::scalar(Type::Int)).estimate_size(path, ty)
    }
}

#[test]
fn every_text_is_answered() {
    let data = serde_json::json!({"a": {"b": "c"}, "n": null, "i": 1, "l": [1, 2, 3]});
    let environment = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("x", Type::Int)
        .variable("s", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("m", Type::map(Type::String, Type::Int))
        .variable("d", Type::Dyn)
        .variable("o", Type::optional(Type::String))
        .mutation()
        .build();
    let list = serde_json::json!([1, 2, 3]);
    let map = serde_json::json!({"a": 1, "b": 2});
    let variables = Variables::new()
        .with("x", Value::Int(5))
        .with("s", Value::string("hello"))
        .with("l", Value::from_json(&list, None).unwrap())
        .with("m", Value::from_json(&map, None).unwrap())
        .with("d", Value::from_json(&data, None).unwrap())
        .with("o", Value::some(Value::string("opt")));
    let facts: Vec<serde_json::Value> = super::facts::all()
        .map(|(_, line)| serde_json::from_str(line).unwrap())
        .collect();
    let texts: Vec<&str> = facts.iter().filter_map(|f| f["expr"].as_str()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut compiled = 0;
    for _ in 0..ROUNDS {
        let text = mutate(&mut random, &texts);
        match environment.compile(&text) {
            Err(issues) => assert!(display_issues(&issues).starts_with("ERROR: "), "{text}"),
            Ok(expression) => {
                compiled += 1;
                let estimate = expression.estimate_cost(&Known);
                assert!(estimate.min <= estimate.max || estimate.max == 0, "{text}");
                let evaluation = expression.eval(&variables, 10_000);
                match evaluation.result {
                    Ok(v) => drop(v.to_json().map(|_| v.to_source())),
                    Err(e) => assert!(!e.to_string().is_empty(), "{text}"),
                }
            }
        }
    }
    assert!(compiled > ROUNDS / 20, "{compiled} of {ROUNDS} compiled");
}

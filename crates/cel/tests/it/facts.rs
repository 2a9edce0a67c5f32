//! Expressions with what upstream makes of them: type, value, cost, errors.
//!
//! The facts in `cases` were printed by upstream's own environment, for the variables below.

use keelson_cel::{
    Environment, SizeEstimator, SizeRange, Type, Value, Variables, Version, display_issues,
};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// The language's own functions, and those of Kubernetes.
const CASES: &[(&str, &str)] = &[
    ("language", include_str!("cases/language.jsonl")),
    ("syntax", include_str!("cases/syntax.jsonl")),
    ("library", include_str!("cases/library.jsonl")),
];

/// Every fact, with the name of its file.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let files = CASES.iter();
    files.flat_map(|(file, text)| text.lines().map(|line| (*file, line)))
}

fn environment() -> Environment {
    Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("x", Type::Int)
        .variable("s", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("sl", Type::list(Type::String))
        .variable("m", Type::map(Type::String, Type::Int))
        .variable("d", Type::Dyn)
        .variable("o", Type::optional(Type::String))
        .mutation()
        .build()
}

fn data() -> Json {
    json!({
        "l": [1, 2, 3], "sl": ["a", "b"], "m": {"a": 1, "b": 2},
        "d": {"a": {"b": "c"}, "n": null, "i": 1, "f": 1.5, "t": true, "l": [1, 2, 3], "e": {}, "el": []},
    })
}

fn show(v: &Value<'_>) -> String {
    match v {
        Value::String(s) => serde_json::to_string(s.as_str()).unwrap(),
        v => v.to_source(),
    }
}

/// Knows nothing of variables.
struct NoSizes;

impl SizeEstimator for NoSizes {
    fn estimate_size(&self, _: &[Arc<str>], _: &Type) -> Option<SizeRange> {
        None
    }
}

#[test]
fn upstream_agrees() {
    let environment = environment();
    let data = data();
    let of = |name: &str| Value::from_json(&data[name], None).unwrap();
    let variables = Variables::new()
        .with("x", Value::Int(5))
        .with("s", Value::string("hello"))
        .with("l", of("l"))
        .with("sl", of("sl"))
        .with("m", of("m"))
        .with("d", of("d"))
        .with("o", Value::some(Value::string("opt")));
    let mut wrong = Vec::new();
    let mut count = 0;
    for (file, line) in all() {
        let fact: Json = serde_json::from_str(line).unwrap();
        let source = fact["expr"].as_str().unwrap();
        let expected = |key: &str| fact.get(key).cloned().unwrap_or(Json::Null);
        count += 1;
        let mut complain = |what: &str, found: Json, wanted: Json| {
            if found != wanted {
                wrong.push(format!(
                    "{file}: {source}\n  {what}: {found}\n  wanted: {wanted}"
                ));
            }
        };
        let expression = match environment.compile(source) {
            Ok(e) => e,
            Err(issues) => {
                complain("issues", json!(display_issues(&issues)), expected("issues"));
                continue;
            }
        };
        complain("issues", Json::Null, expected("issues"));
        if fact.get("issues").is_some() {
            continue;
        }
        complain(
            "type",
            json!(expression.output_type().declared()),
            expected("type"),
        );
        let program = expression.instantiation_error().map(ToString::to_string);
        complain("program", json!(program), expected("program"));
        if program.is_some() || fact.get("program").is_some() {
            continue;
        }
        let estimate = expression.estimate_cost(&NoSizes);
        complain("min", json!(estimate.min), expected("min"));
        complain("max", json!(estimate.max.to_string()), expected("max"));
        let evaluation = expression.eval(&variables, 1_000_000);
        let (value, error) = match evaluation.result {
            Ok(v) => (json!(show(&v)), Json::Null),
            Err(e) => (Json::Null, json!(e.to_string())),
        };
        complain("value", value, expected("value"));
        complain("error", error, expected("error"));
        complain("cost", json!(evaluation.cost), expected("cost"));
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

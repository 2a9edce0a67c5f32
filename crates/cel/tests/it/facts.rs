//! Expressions with what upstream makes of them: type, value, cost, errors.
//!
//! The facts in `cases` were printed by upstream's own environment, for the variables below.

use keelson_cel::{
    DeclSizes, DeclType, Declarations, Environment, Schema, SizeEstimator, SizeRange, Type, Value,
    Variables, Version, display_issues,
};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// The language's own functions, and those of Kubernetes.
const CASES: &[(&str, &str)] = &[
    ("language", include_str!("cases/language.jsonl")),
    ("syntax", include_str!("cases/syntax.jsonl")),
    ("library", include_str!("cases/library.jsonl")),
    ("regular", include_str!("cases/regular.jsonl")),
    ("more", include_str!("cases/more.jsonl")),
    ("extra", include_str!("cases/extra.jsonl")),
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

/// What differs between a fact and what this engine makes of its expression.
fn differences(
    fact: &Json,
    environment: &Environment,
    sizes: &dyn SizeEstimator,
    variables: &Variables<'_>,
) -> Vec<String> {
    let source = fact["expr"].as_str().unwrap();
    let mut wrong = Vec::new();
    let mut compare = |key: &str, found: Json| {
        let wanted = fact.get(key).cloned().unwrap_or(Json::Null);
        if found != wanted {
            wrong.push(format!("{source}\n  {key}: {found}\n  wanted: {wanted}"));
        }
        wanted.is_null()
    };
    let expression = match environment.compile(source) {
        Ok(e) => e,
        Err(issues) => {
            compare("issues", json!(display_issues(&issues)));
            return wrong;
        }
    };
    if !compare("issues", Json::Null) {
        return wrong;
    }
    compare("type", json!(expression.output_type().declared()));
    let estimate = expression.estimate_cost(sizes);
    compare("min", json!(estimate.min));
    compare("max", json!(estimate.max.to_string()));
    let program = expression.instantiation_error().map(ToString::to_string);
    if !compare("program", json!(program)) || program.is_some() {
        return wrong;
    }
    let evaluation = expression.eval(variables, 1_000_000);
    let (value, error) = match evaluation.result {
        Ok(v) => (json!(show(&v)), Json::Null),
        Err(e) => (Json::Null, json!(e.to_string())),
    };
    compare("value", value);
    compare("error", error);
    compare("cost", json!(evaluation.cost));
    wrong
}

fn assert_none(wrong: &[String], of: usize) {
    assert!(
        wrong.is_empty(),
        "{} of {of} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
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
    // More facts of the same form can be given in a file.
    let more = std::env::var("KEELSON_CEL_FACTS").map(|f| std::fs::read_to_string(f).unwrap());
    let more = more.unwrap_or_default();
    let mut count = 0;
    for line in all().map(|(_, line)| line).chain(more.lines()) {
        let fact: Json = serde_json::from_str(line).unwrap();
        wrong.extend(differences(&fact, &environment, &NoSizes, &variables));
        count += 1;
    }
    assert_none(&wrong, count);
}

#[test]
fn upstream_agrees_on_data_with_a_schema() {
    let mut lines = include_str!("cases/typed.jsonl").lines();
    let first: Json = serde_json::from_str(lines.next().unwrap()).unwrap();
    let schema = Schema::from_openapi(&first["schema"]).with_type_and_object_meta();
    let decl = DeclType::from_schema(&schema, true)
        .unwrap()
        .named("selfType1");
    let environment = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("self", decl.ty.clone())
        .variable("oldSelf", decl.ty.clone())
        .provider(Arc::new(
            Declarations::new([&decl]).with_keywords_as_fields(),
        ))
        .build();
    // Facts about mutations were taken without a schema.
    let mutations = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("self", Type::Dyn)
        .mutation()
        .build();
    let of = || Value::from_json(&first["data"], Some(&schema)).unwrap();
    let variables = Variables::new().with("self", of()).with("oldSelf", of());
    let sizes = DeclSizes::new(decl);
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in lines {
        let fact: Json = serde_json::from_str(line).unwrap();
        let environment = match fact.get("mutation") {
            Some(_) => &mutations,
            None => &environment,
        };
        wrong.extend(differences(&fact, environment, &sizes, &variables));
        count += 1;
    }
    assert_none(&wrong, count);
}

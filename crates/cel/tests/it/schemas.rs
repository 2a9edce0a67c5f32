//! Names and declarations of schemas.

use keelson_cel::{
    DeclType, Declarations, Environment, Schema, Type, TypeProvider, Value, Variables, Version,
    escape, unescape,
};
use serde_json::json;
use std::sync::Arc;

#[test]
fn names_are_escaped_and_back() {
    for (name, escaped) in [
        ("a", "a"),
        ("namespace", "__namespace__"),
        ("a.b", "a__dot__b"),
        ("a-b/c", "a__dash__b__slash__c"),
        ("a__b", "a__underscores__b"),
        ("___", "__underscores___"),
    ] {
        assert_eq!(escape(name).as_deref(), Some(escaped));
        assert_eq!(unescape(escaped).as_deref(), Some(name));
    }
    assert_eq!(escape("1a"), None);
    assert_eq!(escape("a b"), None);
    assert_eq!(unescape("a__while__"), None);
}

#[test]
fn embedded_resources_have_a_kind_and_a_name() {
    let schema = Schema::from_openapi(&json!({
        "type": "object",
        "properties": {"template": {
            "type": "object",
            "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true,
        }},
    }));
    let decl = DeclType::from_schema(&schema, false).unwrap().named("t");
    let environment = Environment::builder(Version::NEW_EXPRESSIONS)
        .variable("self", decl.ty.clone())
        .provider(Arc::new(Declarations::new([&decl])))
        .build();
    let data = json!({"template": {
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "labels": {}},
    }});
    let run = |source: &str| {
        let expression = environment.compile(source).unwrap();
        let value = Value::from_json(&data, Some(&schema)).unwrap();
        let variables = Variables::new().with("self", value);
        expression.eval(&variables, 1_000).result.unwrap()
    };
    let source = "self.template.kind == 'Pod' && self.template.metadata.name == 'x'";
    assert_eq!(run(source).as_bool(), Some(true));
    assert!(
        environment
            .compile("self.template.metadata.labels")
            .is_err()
    );
    assert_eq!(run("self == self").as_bool(), Some(true));
}

#[test]
fn declarations_name_what_lies_inside() {
    let schema = Schema::from_openapi(&json!({
        "type": "object",
        "properties": {
            "spec": {"type": "object", "required": ["for"], "properties": {
                "for": {"type": "array", "maxItems": 3, "items": {
                    "type": "object", "properties": {"x": {"type": "integer"}}}},
                "hidden": {"x-kubernetes-preserve-unknown-fields": true},
            }},
        },
    }));
    let decl = DeclType::from_schema(&schema, true)
        .unwrap()
        .named("selfType");
    let types = Declarations::new([&decl]);
    assert_eq!(
        types.field("selfType.spec", "__for__"),
        Some(Type::list(Type::object("selfType.spec.__for__.@idx")))
    );
    assert_eq!(types.field("selfType.spec", "hidden"), None);
    assert_eq!(types.field("selfType.metadata", "name"), Some(Type::String));
}

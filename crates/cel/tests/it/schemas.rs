//! Names and declarations of schemas.

use keelson_cel::{DeclType, Declarations, Schema, Type, TypeProvider, escape, unescape};
use serde_json::json;

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

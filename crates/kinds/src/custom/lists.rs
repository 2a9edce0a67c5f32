//! Lists of type set and map: no two items are the same, or have the same keys.

use keelson_api::{Additional, ListType, Schema};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::{Map, Value};

/// Every item that stands for the second time in a list where it may stand once.
pub fn lists(schema: &Schema, value: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    walk(schema, value, &Path::root(), &mut e);
    e
}

fn walk(schema: &Schema, value: &Value, path: &Path, e: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    walk(&field.schema, child, &path.child(name), e);
                } else if let Additional::Of(values) = schema.additional() {
                    walk(values, child, &path.key(name), e);
                }
            }
        }
        Value::Array(items) => {
            match schema.list_type() {
                ListType::Set => repeated(items, path, e),
                ListType::Map => repeated_keys(schema, items, path, e),
                ListType::Atomic => {}
            }
            if let Some(of) = schema.items() {
                for (i, item) in items.iter().enumerate() {
                    walk(of, item, &path.index(i), e);
                }
            }
        }
        _ => {}
    }
}

/// What comes a third time was reported when it came the second.
fn repeated(items: &[Value], path: &Path, e: &mut ErrorList) {
    for (i, item) in items.iter().enumerate() {
        if items[..i].iter().filter(|other| *other == item).count() == 1 {
            e.push(FieldError::duplicate(&path.index(i), item.clone()));
        }
    }
}

fn repeated_keys(schema: &Schema, items: &[Value], path: &Path, e: &mut ErrorList) {
    let other = |item: &&Value| !item.is_null() && !item.is_object();
    if let Some(at) = items.iter().position(|item| other(&item)) {
        let detail = "must be an object for an array of list-type map";
        e.push(FieldError::invalid(
            &path.index(at),
            items[at].clone(),
            detail,
        ));
        return;
    }
    let keys = |item: &Value| -> Value {
        let named = schema.list_keys().iter();
        let found =
            named.filter_map(|key| Some((key.to_string(), item.get(key.as_ref())?.clone())));
        Value::Object(found.collect::<Map<_, _>>())
    };
    let all: Vec<Value> = items.iter().map(keys).collect();
    repeated(&all, path, e);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_item_is_reported_where_it_comes_again() {
        let schema = Schema::from_openapi(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}}))
        .unwrap();
        let value = json!({"s": ["a", "b", "a", "a"], "m": [{"k": "x"}, {"k": "x", "v": 1}]});
        let texts: Vec<_> = lists(&schema, &value)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                r#"m[1]: Duplicate value: {"k":"x"}"#,
                r#"s[2]: Duplicate value: "a""#
            ]
        );
    }
}

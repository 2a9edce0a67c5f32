//! Validation of custom objects against their schema, with upstream's messages. What an update
//! leaves as it was is not complained about.

use keelson_api::{Additional, ListType, Rules, Schema, Type};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::{formats, named};

/// More errors than this help nobody.
const MAX_ERRORS: usize = 100;
/// The errors of a value, be it a whole object or a part of one.
pub fn validate(schema: &Schema, value: &Value, old: Option<&Value>) -> ErrorList {
    let mut walk = Walk {
        errors: ErrorList::new(),
    };
    walk.value(schema, value, old, &Path::root());
    walk.errors
}

struct Walk {
    errors: ErrorList,
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &Path) {
        if old == Some(value) || self.errors.len() >= MAX_ERRORS {
            return;
        }
        if value.is_null() {
            if !schema.nullable && !matches!(schema.kind(), Type::Any) {
                self.wrong_type(schema, value, path);
            }
            self.one_of_those(schema, value, path);
            return;
        }
        // What follows is asked of the value as it is, whatever it should have been.
        if !has_type(schema, value) {
            self.wrong_type(schema, value, path);
        }
        if let Some(rules) = &schema.rules {
            self.combinations(rules, value, path);
        }
        match value {
            Value::String(text) => self.text(schema, text, path),
            Value::Number(_) => self.number(schema, value, path),
            Value::Array(items) => self.count(schema, items.len(), path),
            _ => {}
        }
        self.one_of_those(schema, value, path);
        if let Value::Object(map) = value {
            self.properties(schema, map.len(), path);
        }
        match value {
            Value::Object(map) => self.fields(schema, map, old, path),
            Value::Array(items) => self.items(schema, items, old.and_then(Value::as_array), path),
            _ => {}
        }
    }

    fn fields(
        &mut self,
        schema: &Schema,
        map: &serde_json::Map<String, Value>,
        old: Option<&Value>,
        path: &Path,
    ) {
        // Embedded objects have the metadata of all objects, which has rules of its own.
        let of_object = |name: &str| {
            schema.is_embedded_resource() && matches!(name, "apiVersion" | "kind" | "metadata")
        };
        if let Additional::Of(values) = schema.additional() {
            for (name, child) in map.iter().filter(|(name, _)| schema.field(name).is_none()) {
                let old = old.and_then(|o| o.get(name));
                self.value(values, child, old, &path.child(name));
            }
        }
        for field in schema.fields().iter().filter(|f| !of_object(&f.name)) {
            if let Some(child) = map.get(field.name.as_ref()) {
                let old = old.and_then(|o| o.get(field.name.as_ref()));
                self.value(&field.schema, child, old, &path.child(&field.name));
            }
        }
        let required = schema.rules.as_ref().map(|rules| rules.required.as_slice());
        for name in required.unwrap_or_default() {
            if !map.contains_key(name) {
                self.missing(&path.child(name));
            }
        }
    }

    fn missing(&mut self, at: &Path) {
        let error = FieldError::required(at, "");
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn items(&mut self, schema: &Schema, items: &[Value], old: Option<&Vec<Value>>, path: &Path) {
        let Some(of) = schema.items() else { return };
        for (at, item) in items.iter().enumerate() {
            // Only items with keys can be matched with what they were.
            let before = old.and_then(|old| match schema.list_type() {
                ListType::Map => old.iter().find(|o| {
                    schema
                        .list_keys()
                        .iter()
                        .all(|k| o[k.as_ref()] == item[k.as_ref()])
                }),
                ListType::Set | ListType::Atomic => None,
            });
            self.value(of, item, before, &path.index(at));
        }
    }

    fn wrong_type(&mut self, schema: &Schema, value: &Value, path: &Path) {
        let wanted = match schema.kind() {
            Type::Object => "object",
            Type::Array => "array",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::IntOrString => "integer,string",
            _ => "string",
        };
        let given = type_name(value);
        self.errors.push(FieldError::type_invalid(
            path,
            given,
            format!(
                "{} in body must be of type {wanted}: {given:?}",
                named(path)
            ),
        ));
    }

    fn invalid(&mut self, path: &Path, value: &Value, detail: &str) {
        let detail = format!("{} in body {detail}", named(path));
        self.errors
            .push(FieldError::invalid(path, value.clone(), detail));
    }

    /// What is said of a value as a whole names the value in the text alone.
    fn whole(&mut self, detail: String) {
        self.errors
            .push(FieldError::invalid(&Path::root(), "", detail));
    }

    fn one_of_those(&mut self, schema: &Schema, value: &Value, path: &Path) {
        let allowed = schema.rules.as_ref().map(|rules| &rules.enum_values);
        let Some(allowed) = allowed.filter(|all| !all.is_empty() && !all.contains(value)) else {
            return;
        };
        let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned);
        let allowed: Vec<String> = allowed.iter().map(shown).collect();
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        self.errors
            .push(FieldError::not_supported(path, value.clone(), &allowed));
    }

    /// The first thing that is wrong with a text, and its format.
    fn text(&mut self, schema: &Schema, text: &str, path: &Path) {
        let value = Value::from(text);
        if let Some(rules) = &schema.rules {
            let length = text.chars().count() as u64;
            if let Some(maximum) = rules.max_length.filter(|maximum| length > *maximum) {
                let maximum = usize::try_from(maximum).unwrap_or(usize::MAX);
                self.errors.push(FieldError::too_long(path, maximum));
            } else if let Some(minimum) = rules.min_length.filter(|minimum| length < *minimum) {
                let detail = format!("should be at least {minimum} chars long");
                self.invalid(path, &value, &detail);
            } else if let Some(pattern) = &rules.pattern
                && !matches_pattern(pattern, text)
            {
                self.invalid(path, &value, &format!("should match '{pattern}'"));
            }
        }
        let format = &*schema.format;
        if matches!(schema.kind(), Type::String | Type::Any) && !formats::conforms(format, text) {
            let detail = format!("{} in body must be of type {format}: {text:?}", named(path));
            self.errors
                .push(FieldError::type_invalid(path, value, detail));
        }
    }

    fn number(&mut self, schema: &Schema, value: &Value, path: &Path) {
        let number = value.as_f64().unwrap_or_default();
        if schema.kind() == Type::Integer {
            let small = i32::try_from(value.as_i64().unwrap_or_default()).is_ok();
            let kind = if number.fract() != 0.0 {
                Some("(default format)".to_owned())
            } else if schema.format == "int32" && !small {
                Some("with format int32".to_owned())
            } else {
                None
            };
            if let Some(kind) = kind {
                let at = named(path);
                self.whole(format!(
                    "Checked value must be of type integer {kind} in {at}"
                ));
            }
        }
        let Some(rules) = &schema.rules else { return };
        let mut wrong = Vec::new();
        if let Some(multiple) = rules.multiple_of
            && multiple > 0.0
            && (number / multiple).fract() != 0.0
        {
            wrong.push(format!("should be a multiple of {multiple}"));
        }
        if let Some(maximum) = rules.maximum {
            if rules.exclusive_maximum && number >= maximum {
                wrong.push(format!("should be less than {maximum}"));
            } else if !rules.exclusive_maximum && number > maximum {
                wrong.push(format!("should be less than or equal to {maximum}"));
            }
        }
        if let Some(minimum) = rules.minimum {
            if rules.exclusive_minimum && number <= minimum {
                wrong.push(format!("should be greater than {minimum}"));
            } else if !rules.exclusive_minimum && number < minimum {
                wrong.push(format!("should be greater than or equal to {minimum}"));
            }
        }
        for detail in wrong {
            self.invalid(path, value, &detail);
        }
    }

    fn count(&mut self, schema: &Schema, count: usize, path: &Path) {
        let bounds = schema.rules.as_ref().map(|r| (r.min_items, r.max_items));
        self.size("items", count, bounds, path);
    }

    fn properties(&mut self, schema: &Schema, count: usize, path: &Path) {
        let rules = schema.rules.as_ref();
        let bounds = rules.map(|r| (r.min_properties, r.max_properties));
        self.size("properties", count, bounds, path);
    }

    fn size(
        &mut self,
        what: &str,
        count: usize,
        bounds: Option<(Option<u64>, Option<u64>)>,
        path: &Path,
    ) {
        let (least, most) = bounds.unwrap_or_default();
        if let Some(least) = least.filter(|least| (count as u64) < *least) {
            let detail = format!("should have at least {least} {what}");
            self.invalid(path, &count.into(), &detail);
        }
        if let Some(most) = most.filter(|most| count as u64 > *most) {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            self.errors.push(FieldError::too_many(path, count, most));
        }
    }

    /// anyOf, oneOf, allOf and not. Of branches that all fail the first is told.
    fn combinations(&mut self, rules: &Rules, value: &Value, path: &Path) {
        let errors_of = |schema: &Schema| {
            let mut inner = Walk {
                errors: ErrorList::new(),
            };
            inner.value(schema, value, None, path);
            inner.errors
        };
        let name = named(path);
        if !rules.any_of.is_empty() {
            let found: Vec<_> = rules.any_of.iter().map(errors_of).collect();
            if found.iter().all(|errors| !errors.is_empty()) {
                self.whole(format!(
                    "{name:?} must validate at least one schema (anyOf)"
                ));
                self.errors
                    .extend(found.into_iter().next().unwrap_or_default());
            }
        }
        if !rules.one_of.is_empty() {
            let found: Vec<_> = rules.one_of.iter().map(errors_of).collect();
            match found.iter().filter(|errors| errors.is_empty()).count() {
                1 => {}
                0 => {
                    self.whole(format!(
                        "{name:?} must validate one and only one schema (oneOf). Found none valid"
                    ));
                    self.errors.extend(found.into_iter().next().unwrap_or_default());
                }
                many => self.whole(format!(
                    "{name:?} must validate one and only one schema (oneOf). Found {many} valid alternatives"
                )),
            }
        }
        if !rules.all_of.is_empty() {
            let found: Vec<_> = rules.all_of.iter().map(errors_of).collect();
            let failed = found.iter().filter(|errors| !errors.is_empty()).count();
            let none = failed == found.len();
            self.errors.extend(found.into_iter().flatten());
            if failed > 0 {
                let none = if none { ". None validated" } else { "" };
                self.whole(format!(
                    "{name:?} must validate all the schemas (allOf){none}"
                ));
            }
        }
        if rules
            .not
            .as_deref()
            .is_some_and(|not| errors_of(not).is_empty())
        {
            self.whole(format!("{name:?} must not validate the schema (not)"));
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(schema: &Schema, value: &Value) -> bool {
    match schema.kind() {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::Integer => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
        Type::IntOrString => value.is_string() || value.is_i64() || value.is_u64(),
        Type::Quantity => value.is_string() || value.is_number(),
        Type::String | Type::Bytes | Type::Time | Type::MicroTime => value.is_string(),
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    keelson_cel::regular_expression(pattern).is_ok_and(|compiled| compiled.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(openapi: Value, value: Value) -> Vec<String> {
        let schema = Schema::custom_resource(&openapi).unwrap();
        validate(&schema, &value, None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn spec(properties: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["must"], "properties": properties}}})
    }

    #[test]
    fn messages_read_as_upstream() {
        let schema = spec(json!({
            "n": {"type": "integer", "minimum": 1},
            "s": {"type": "string", "pattern": "^a+$", "maxLength": 3},
            "e": {"type": "string", "enum": ["x", "y"]},
            "must": {"type": "string"},
        }));
        let value = json!({"spec": {"n": "one", "s": "b", "e": "z"}});
        assert_eq!(
            errors(schema.clone(), value),
            [
                r#"spec.e: Unsupported value: "z": supported values: "x", "y""#,
                r#"spec.n: Invalid value: "string": spec.n in body must be of type integer: "string""#,
                r#"spec.s: Invalid value: "b": spec.s in body should match '^a+$'"#,
                "spec.must: Required value",
            ]
        );
        let value = json!({"spec": {"n": 0, "must": "x"}});
        assert_eq!(
            errors(schema, value),
            ["spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1"]
        );
    }

    #[test]
    fn what_was_wrong_before_and_did_not_change_is_let_be() {
        let schema = Schema::custom_resource(&spec(
            json!({"n": {"type": "integer", "minimum": 1}, "m": {"type": "string"}}),
        ))
        .unwrap();
        let old = json!({"spec": {"n": 0, "m": "a"}});
        let new = json!({"spec": {"n": 0, "m": "b", "must": 1}});
        assert!(validate(&schema, &new, Some(&old)).is_empty());
        let new = json!({"spec": {"n": -1, "must": 1}});
        assert_eq!(validate(&schema, &new, Some(&old)).len(), 1);
    }
}

//! Validation of custom objects against their schema, with upstream's messages. What an update
//! leaves as it was is not complained about.

use keelson_api::{Additional, ListType, Rules, Schema, Type};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::{quantity, time};
use regex::Regex;
use serde_json::Value;

/// More errors than this help nobody.
const MAX_ERRORS: usize = 100;
/// A pattern that compiles to more than this is not run.
const PATTERN_BYTES: usize = 1 << 20;

pub(super) fn object(schema: &Schema, value: &Value, old: Option<&Value>) -> ErrorList {
    let mut walk = Walk {
        errors: ErrorList::new(),
    };
    walk.value(schema, value, old, &Path::root(), true);
    walk.errors
}

struct Walk {
    errors: ErrorList,
}

impl Walk {
    fn value(
        &mut self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        root: bool,
    ) {
        if old == Some(value) || self.errors.len() >= MAX_ERRORS {
            return;
        }
        if value.is_null() {
            if !schema.nullable && !matches!(schema.kind(), Type::Any) {
                self.wrong_type(schema, value, path);
            }
            return;
        }
        if !has_type(schema, value) {
            self.wrong_type(schema, value, path);
            return;
        }
        if let Some(rules) = &schema.rules {
            self.rules(rules, value, path);
        }
        if let Value::String(text) = value
            && !has_format(&schema.format, text)
        {
            let detail = format!("{path} in body must be of type {}: {text:?}", schema.format);
            self.errors
                .push(FieldError::invalid(path, value.clone(), detail));
        }
        match value {
            Value::Object(map) => {
                for field in schema.fields() {
                    if root && matches!(field.name.as_ref(), "apiVersion" | "kind" | "metadata") {
                        continue;
                    }
                    let at = if path.is_root() {
                        Path::new(&field.name)
                    } else {
                        path.child(&field.name)
                    };
                    match map.get(field.name.as_ref()) {
                        Some(child) => {
                            self.value(
                                &field.schema,
                                child,
                                old.and_then(|o| o.get(field.name.as_ref())),
                                &at,
                                false,
                            );
                        }
                        None if field.required => {
                            let error = FieldError::required(&at, "");
                            if !self.errors.contains(&error) {
                                self.errors.push(error);
                            }
                        }
                        None => {}
                    }
                }
                if let Additional::Of(values) = schema.additional() {
                    for (name, child) in map.iter().filter(|(name, _)| schema.field(name).is_none())
                    {
                        let at = if path.is_root() {
                            Path::new(name)
                        } else {
                            path.child(name)
                        };
                        self.value(values, child, old.and_then(|o| o.get(name)), &at, false);
                    }
                }
            }
            Value::Array(items) => self.items(schema, items, old.and_then(Value::as_array), path),
            _ => {}
        }
    }

    fn items(&mut self, schema: &Schema, items: &[Value], old: Option<&Vec<Value>>, path: &Path) {
        match schema.list_type() {
            ListType::Set => {
                for (at, item) in items.iter().enumerate() {
                    if items[..at].contains(item) {
                        self.errors
                            .push(FieldError::duplicate(&path.index(at), item.clone()));
                    }
                }
            }
            ListType::Map => {
                let key = |item: &Value| -> Vec<Value> {
                    schema
                        .list_keys()
                        .iter()
                        .map(|k| item[k.as_ref()].clone())
                        .collect()
                };
                for (at, item) in items.iter().enumerate() {
                    if items[..at].iter().any(|other| key(other) == key(item)) {
                        let shown: serde_json::Map<String, Value> = schema
                            .list_keys()
                            .iter()
                            .map(|k| (k.to_string(), item[k.as_ref()].clone()))
                            .collect();
                        self.errors
                            .push(FieldError::duplicate(&path.index(at), Value::Object(shown)));
                    }
                }
            }
            ListType::Atomic => {}
        }
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
            self.value(of, item, before, &path.index(at), false);
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
            format!("{path} in body must be of type {wanted}: {given:?}"),
        ));
    }

    fn rules(&mut self, rules: &Rules, value: &Value, path: &Path) {
        if !rules.enum_values.is_empty() && !rules.enum_values.contains(value) {
            let allowed: Vec<String> = rules
                .enum_values
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned))
                .collect();
            let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
            self.errors
                .push(FieldError::not_supported(path, value.clone(), &allowed));
        }
        let mut invalid = |detail: String| {
            self.errors.push(FieldError::invalid(
                path,
                value.clone(),
                format!("{path} in body {detail}"),
            ));
        };
        match value {
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or_default();
                if let Some(minimum) = rules.minimum {
                    if rules.exclusive_minimum && number <= minimum {
                        invalid(format!("should be greater than {minimum}"));
                    } else if !rules.exclusive_minimum && number < minimum {
                        invalid(format!("should be greater than or equal to {minimum}"));
                    }
                }
                if let Some(maximum) = rules.maximum {
                    if rules.exclusive_maximum && number >= maximum {
                        invalid(format!("should be less than {maximum}"));
                    } else if !rules.exclusive_maximum && number > maximum {
                        invalid(format!("should be less than or equal to {maximum}"));
                    }
                }
                if let Some(multiple) = rules.multiple_of
                    && multiple > 0.0
                    && (number / multiple).fract() != 0.0
                {
                    invalid(format!("should be a multiple of {multiple}"));
                }
            }
            Value::String(text) => {
                let length = text.chars().count() as u64;
                if rules.min_length.is_some_and(|minimum| length < minimum) {
                    invalid(format!(
                        "should be at least {} chars long",
                        rules.min_length.unwrap_or_default()
                    ));
                }
                if let Some(pattern) = &rules.pattern
                    && !matches_pattern(pattern, text)
                {
                    invalid(format!("should match '{pattern}'"));
                }
                if let Some(maximum) = rules.max_length.filter(|maximum| length > *maximum) {
                    self.errors.push(FieldError::too_long(
                        path,
                        usize::try_from(maximum).unwrap_or(usize::MAX),
                    ));
                }
            }
            Value::Array(items) => {
                let count = items.len() as u64;
                if let Some(minimum) = rules.min_items.filter(|minimum| count < *minimum) {
                    invalid(format!("should have at least {minimum} items"));
                }
                if let Some(maximum) = rules.max_items.filter(|maximum| count > *maximum) {
                    let maximum = usize::try_from(maximum).unwrap_or(usize::MAX);
                    self.errors
                        .push(FieldError::too_many(path, items.len(), maximum));
                }
            }
            Value::Object(map) => {
                let count = map.len() as u64;
                if let Some(minimum) = rules.min_properties.filter(|minimum| count < *minimum) {
                    invalid(format!("should have at least {minimum} properties"));
                }
                if let Some(maximum) = rules.max_properties.filter(|maximum| count > *maximum) {
                    let maximum = usize::try_from(maximum).unwrap_or(usize::MAX);
                    self.errors
                        .push(FieldError::too_many(path, map.len(), maximum));
                }
                for name in rules
                    .required
                    .iter()
                    .filter(|name| !map.contains_key(name.as_str()))
                {
                    let at = if path.is_root() {
                        Path::new(name)
                    } else {
                        path.child(name)
                    };
                    let error = FieldError::required(&at, "");
                    if !self.errors.contains(&error) {
                        self.errors.push(error);
                    }
                }
            }
            _ => {}
        }
        self.combinations(rules, value, path);
    }

    fn combinations(&mut self, rules: &Rules, value: &Value, path: &Path) {
        let holds = |schema: &Schema| {
            let mut inner = Walk {
                errors: ErrorList::new(),
            };
            inner.value(schema, value, None, path, false);
            inner.errors.is_empty()
        };
        let name = path.to_string();
        let mut invalid = |detail: String| {
            self.errors
                .push(FieldError::invalid(path, value.clone(), detail))
        };
        if !rules.any_of.is_empty() && !rules.any_of.iter().any(holds) {
            invalid(format!(
                "{name:?} must validate at least one schema (anyOf)"
            ));
        }
        if !rules.one_of.is_empty() {
            match rules.one_of.iter().filter(|s| holds(s)).count() {
                1 => {}
                0 => invalid(format!(
                    "{name:?} must validate one and only one schema (oneOf). Found none valid"
                )),
                many => {
                    invalid(format!(
                        "{name:?} must validate one and only one schema (oneOf). Found {many} valid alternatives"
                    ));
                }
            }
        }
        if rules.not.as_deref().is_some_and(holds) {
            invalid(format!("{name:?} must not validate the schema (not)"));
        }
        for schema in &rules.all_of {
            let mut inner = Walk {
                errors: ErrorList::new(),
            };
            inner.value(schema, value, None, path, false);
            self.errors.extend(inner.errors);
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

/// Formats upstream knows; unknown ones are no rule.
fn has_format(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => time::parse(text).is_some(),
        "date" => text.len() == 10 && time::parse(&format!("{text}T00:00:00Z")).is_some(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .is_ok()
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::parse_str(text).is_ok(),
        "quantity" => quantity::Quantity::parse(text).is_ok(),
        "uri" => text
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.scheme().is_some() || text.starts_with('/')),
        _ => true,
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    regex::RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES)
        .build()
        .is_ok_and(|compiled: Regex| compiled.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(openapi: Value, value: Value) -> Vec<String> {
        let schema = Schema::custom_resource(&openapi).unwrap();
        object(&schema, &value, None)
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
                "spec.must: Required value",
                r#"spec.e: Unsupported value: "z": supported values: "x", "y""#,
                r#"spec.n: Invalid value: "string": spec.n in body must be of type integer: "string""#,
                r#"spec.s: Invalid value: "b": spec.s in body should match '^a+$'"#,
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
        assert!(object(&schema, &new, Some(&old)).is_empty());
        let new = json!({"spec": {"n": -1, "must": 1}});
        assert_eq!(object(&schema, &new, Some(&old)).len(), 1);
    }
}

//! Validation of custom resources against their schema, in upstream's words. CEL rules are not
//! looked at here.

use crate::field::{ErrorList, FieldError, Path};
use crate::validation;
use crate::{go, time};
use keelson_api::{Additional, ListType, Rules, Schema, Type};
use regex::Regex;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, RwLock};

/// Errors beyond this many are not reported.
const MAX_ERRORS: usize = 100;
/// Compiled patterns that are kept.
const MAX_PATTERNS: usize = 1024;
/// A pattern that would compile to more is not matched at all.
const MAX_PATTERN_BYTES: usize = 1024 * 1024;

static PATTERNS: LazyLock<RwLock<HashMap<String, Option<Regex>>>> = LazyLock::new(RwLock::default);

/// Every error of a value. `path` is where it stands.
pub fn validate(v: &Value, schema: &Schema, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    check(v, schema, path, &mut errs);
    errs.truncate(MAX_ERRORS);
    errs
}

fn type_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_none_or(|f| f.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn here(path: &Path) -> String {
    if path.is_root() {
        String::new()
    } else {
        path.to_string()
    }
}

fn body(path: &Path, v: &Value, message: &str) -> FieldError {
    FieldError::invalid(path, v.clone(), format!("{} in body {message}", here(path)))
}

fn check(v: &Value, s: &Schema, path: &Path, errs: &mut ErrorList) {
    if errs.len() >= MAX_ERRORS {
        return;
    }
    if v.is_null() && s.nullable {
        return;
    }
    let got = type_of(v);
    let wanted = match s.kind() {
        Type::Any => got,
        Type::IntOrString if matches!(got, "integer" | "string") => got,
        Type::IntOrString => "integer,string",
        Type::Quantity if matches!(got, "integer" | "string" | "number") => got,
        Type::Number if got == "integer" => got,
        _ => s.json_type(),
    };
    if wanted != got {
        errs.push(FieldError::type_invalid(
            path,
            got,
            format!(
                "{} in body must be of type {wanted}: {}",
                here(path),
                go::quote(got)
            ),
        ));
        return;
    }
    if let Some(rules) = &s.rules {
        values(v, rules, path, errs);
    }
    match v {
        Value::String(t) => format(t, &s.format, path, errs),
        Value::Number(n) => {
            let fits = match (s.format.as_ref(), n.as_i64()) {
                ("int32", Some(i)) => i32::try_from(i).is_ok(),
                ("int32" | "int64", None) => !n.is_u64(),
                _ => true,
            };
            if !fits {
                errs.push(body(path, v, &format!("must be of type {}", s.format)));
            }
        }
        Value::Object(map) => {
            // A structural schema lists its required fields among its rules as well.
            for f in s
                .fields()
                .iter()
                .filter(|f| f.required && s.rules.is_none())
            {
                if !map.contains_key(f.name.as_ref()) {
                    errs.push(FieldError::required(&path.child(&f.name), ""));
                }
            }
            for (k, item) in map {
                match s.field(k) {
                    // Metadata has rules of its own.
                    Some(f) if !f.schema.type_name().is_empty() => {}
                    Some(f) => check(item, &f.schema, &path.child(k), errs),
                    None => {
                        if let Additional::Of(of) = s.additional() {
                            check(item, of, &path.child(k), errs);
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = s.items() {
                for (i, item) in items.iter().enumerate() {
                    check(item, of, &path.index(i), errs);
                }
            }
            duplicates(items, s, path, errs);
        }
        _ => {}
    }
}

fn duplicates(items: &[Value], s: &Schema, path: &Path, errs: &mut ErrorList) {
    let key = |v: &Value| -> Option<Value> {
        match s.list_type() {
            ListType::Atomic => None,
            ListType::Set => Some(v.clone()),
            ListType::Map => {
                let map = v.as_object()?;
                let keys = s
                    .list_keys()
                    .iter()
                    .filter_map(|k| Some((k.to_string(), map.get(k.as_ref())?.clone())));
                Some(Value::Object(keys.collect()))
            }
        }
    };
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        if let Some(k) = key(item)
            && !seen.insert(k.to_string())
        {
            errs.push(FieldError::duplicate(&path.index(i), k));
        }
    }
}

fn values(v: &Value, r: &Rules, path: &Path, errs: &mut ErrorList) {
    if !r.enum_values.is_empty() && !r.enum_values.contains(v) {
        let texts: Vec<String> = r.enum_values.iter().map(go::plain).collect();
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        errs.push(FieldError::not_supported(path, v.clone(), &refs));
    }
    match v {
        Value::Number(n) => number(v, n.as_f64().unwrap_or(0.0), r, path, errs),
        Value::String(t) => text(v, t, r, path, errs),
        Value::Array(items) => {
            let n = items.len();
            if let Some(min) = r.min_items.filter(|m| (n as u64) < *m) {
                errs.push(body(
                    path,
                    &Value::from(n),
                    &format!("should have at least {min} items"),
                ));
            }
            if let Some(max) = r.max_items.filter(|m| (n as u64) > *m) {
                errs.push(FieldError::too_many(path, n, max as usize));
            }
            if r.unique_items {
                let mut seen = HashSet::new();
                if !items.iter().all(|i| seen.insert(i.to_string())) {
                    errs.push(body(path, v, "shouldn't contain duplicates"));
                }
            }
        }
        Value::Object(map) => {
            let n = map.len();
            if let Some(min) = r.min_properties.filter(|m| (n as u64) < *m) {
                errs.push(body(
                    path,
                    &Value::from(n),
                    &format!("should have at least {min} properties"),
                ));
            }
            if let Some(max) = r.max_properties.filter(|m| (n as u64) > *m) {
                errs.push(FieldError::too_many(path, n, max as usize));
            }
            for name in r.required.iter().filter(|k| !map.contains_key(k.as_str())) {
                errs.push(FieldError::required(&path.child(name), ""));
            }
        }
        _ => {}
    }
    combinations(v, r, path, errs);
}

fn number(v: &Value, n: f64, r: &Rules, path: &Path, errs: &mut ErrorList) {
    if let Some(max) = r.maximum {
        if r.exclusive_maximum && n >= max {
            errs.push(body(path, v, &format!("should be less than {max}")));
        } else if n > max {
            errs.push(body(
                path,
                v,
                &format!("should be less than or equal to {max}"),
            ));
        }
    }
    if let Some(min) = r.minimum {
        if r.exclusive_minimum && n <= min {
            errs.push(body(path, v, &format!("should be greater than {min}")));
        } else if n < min {
            errs.push(body(
                path,
                v,
                &format!("should be greater than or equal to {min}"),
            ));
        }
    }
    if let Some(of) = r.multiple_of.filter(|m| *m > 0.0)
        && (n / of).fract() != 0.0
    {
        errs.push(body(path, v, &format!("should be a multiple of {of}")));
    }
}

fn text(v: &Value, t: &str, r: &Rules, path: &Path, errs: &mut ErrorList) {
    let length = t.chars().count() as u64;
    if let Some(max) = r.max_length.filter(|m| length > *m) {
        errs.push(FieldError::too_long(path, max as usize));
    }
    if let Some(min) = r.min_length.filter(|m| length < *m) {
        errs.push(body(
            path,
            v,
            &format!("should be at least {min} chars long"),
        ));
    }
    if let Some(p) = &r.pattern
        && !matches(p, t)
    {
        errs.push(body(path, v, &format!("should match '{p}'")));
    }
}

/// A pattern that does not compile matches nothing.
fn matches(pattern: &str, t: &str) -> bool {
    if let Ok(cache) = PATTERNS.read()
        && let Some(r) = cache.get(pattern)
    {
        return r.as_ref().is_some_and(|r| r.is_match(t));
    }
    let compiled = regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .ok();
    let ok = compiled.as_ref().is_some_and(|r| r.is_match(t));
    if let Ok(mut cache) = PATTERNS.write() {
        if cache.len() >= MAX_PATTERNS {
            cache.clear();
        }
        cache.insert(pattern.to_owned(), compiled);
    }
    ok
}

/// Whether a pattern is one that can be matched; for the validation of definitions.
pub fn is_valid_pattern(pattern: &str) -> bool {
    regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .is_ok()
}

fn combinations(v: &Value, r: &Rules, path: &Path, errs: &mut ErrorList) {
    let valid = |s: &Schema| {
        let mut own = ErrorList::new();
        check(v, s, path, &mut own);
        own.is_empty()
    };
    for s in &r.all_of {
        check(v, s, path, errs);
    }
    if !r.any_of.is_empty() && !r.any_of.iter().any(valid) {
        errs.push(body(path, v, "must validate at least one schema (anyOf)"));
    }
    if !r.one_of.is_empty() {
        match r.one_of.iter().filter(|s| valid(s)).count() {
            1 => {}
            0 => errs.push(body(
                path,
                v,
                "must validate one and only one schema (oneOf). Found none valid",
            )),
            n => errs.push(body(
                path,
                v,
                &format!(
                    "must validate one and only one schema (oneOf). Found {n} valid alternatives"
                ),
            )),
        }
    }
    if r.not.as_ref().is_some_and(|s| valid(s)) {
        errs.push(body(path, v, "must not validate the schema (not)"));
    }
}

fn format(t: &str, format: &str, path: &Path, errs: &mut ErrorList) {
    let digits = |r: std::ops::Range<usize>| {
        t.get(r)
            .is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()))
    };
    let ok = match format {
        "date-time" | "datetime" => time::parse(t).is_some(),
        "date" => {
            t.len() == 10
                && digits(0..4)
                && digits(5..7)
                && digits(8..10)
                && time::parse(&format!("{t}T00:00:00Z")).is_some()
        }
        "ipv4" => t.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => t.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => validation::parse_cidr(t).is_some(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::parse_str(t).is_ok(),
        "byte" => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, t).is_ok(),
        "k8s-short-name" => validation::is_dns1123_label(t).is_empty(),
        "k8s-long-name" => validation::is_dns1123_subdomain(t).is_empty(),
        // Formats that are not known are not checked.
        _ => true,
    };
    if !ok {
        errs.push(FieldError::invalid(
            path,
            t,
            format!(
                "{} in body must be of type {format}: {}",
                here(path),
                go::quote(t)
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::custom_resource(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "required": ["cron"],
            "properties": {
                "cron": {"type": "string", "pattern": "^[0-9*]+$", "maxLength": 3},
                "n": {"type": "integer", "minimum": 1, "maximum": 10},
                "e": {"type": "string", "enum": ["a", "b"]},
                "port": {"x-kubernetes-int-or-string": true},
                "when": {"type": "string", "format": "date-time"},
                "list": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
                "one": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                    "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}
            }
        }}}))
        .unwrap()
    }

    fn errors(spec: Value) -> Vec<String> {
        validate(&json!({"spec": spec}), &schema(), &Path::root())
            .iter()
            .map(|e| e.to_string())
            .collect()
    }

    #[test]
    fn messages() {
        assert!(
            errors(json!({"cron": "1*", "n": 1, "e": "a", "port": "http", "one": {"x": 1}}))
                .is_empty()
        );
        assert_eq!(errors(json!({})), ["spec.cron: Required value"]);
        assert_eq!(
            errors(json!({"cron": 5})),
            [
                "spec.cron: Invalid value: \"integer\": spec.cron in body must be of type string: \"integer\""
            ]
        );
        assert_eq!(
            errors(json!({"cron": "x"})),
            ["spec.cron: Invalid value: \"x\": spec.cron in body should match '^[0-9*]+$'"]
        );
        assert_eq!(
            errors(json!({"cron": "1", "n": 0, "e": "c"})),
            [
                "spec.e: Unsupported value: \"c\": supported values: \"a\", \"b\"",
                "spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1"
            ]
        );
        assert_eq!(
            errors(json!({"cron": "1234"})),
            ["spec.cron: Too long: may not be more than 3 bytes"]
        );
        assert_eq!(errors(json!({"cron": "1", "port": true})).len(), 1);
        assert_eq!(errors(json!({"cron": "1", "when": "x"})).len(), 1);
        assert_eq!(
            errors(json!({"cron": "1", "list": [{"k": "a"}, {"k": "a"}, {}]})),
            [
                "spec.list: Too many: 3: must have at most 2 items",
                "spec.list[2].k: Required value",
                "spec.list[1]: Duplicate value: {\"k\":\"a\"}"
            ]
        );
        assert_eq!(
            errors(json!({"cron": "1", "one": {"x": 1, "y": 1}})).len(),
            1
        );
        assert_eq!(
            errors(json!({"cron": null})),
            [
                "spec.cron: Invalid value: \"null\": spec.cron in body must be of type string: \"null\""
            ]
        );
    }
}

//! From bytes to an object in the form the server keeps.
//!
//! A built-in object comes out as a decode into upstream's Go structs and an encode of them would
//! give it: unknown fields gone, nulls gone, empty `omitempty` fields gone, structs that are not
//! pointers present, quantities and times canonical. A custom resource keeps what its structural
//! schema knows. What was dropped is reported, for `fieldValidation=Strict|Warn`.

use crate::go;
use crate::json_text::{key_order, parse_json};
use crate::quantity::Quantity;
use crate::time;
use keelson_api::{Additional, Field, Schema, Type};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Write;

/// Problems beyond this many are counted, not kept.
const MAX_PROBLEMS: usize = 100;

/// A decoded object and what a strict decoder would have refused:
/// `unknown field "spec.foo"`, `duplicate field "spec.bar"`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoded {
    pub object: Value,
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON.
    #[error("{0}")]
    Syntax(String),
    /// JSON of another type than the schema's, worded as Go's decoder words it.
    #[error("{0}")]
    Type(String),
}

/// Decodes JSON.
pub fn decode(bytes: &[u8], schema: &Schema) -> Result<Decoded, DecodeError> {
    let (value, duplicates) = parse_json(bytes).map_err(DecodeError::Syntax)?;
    let mut out = normalize(value, schema)?;
    if duplicates.is_empty() && out.problems.len() < 2 {
        return Ok(out);
    }
    let mut problems: Vec<(usize, String)> = Vec::new();
    if schema.type_name().is_empty() {
        // Custom resources: what the parser saw, then what pruning saw.
        problems.extend(duplicates.iter().map(|d| (0, duplicate(d))));
        problems.extend(out.problems.drain(..).map(|p| (1, p)));
    } else {
        let order = key_order(bytes);
        let mut at: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, path) in order.into_iter().enumerate() {
            at.entry(path).or_default().push(i);
        }
        let mut again: HashMap<&str, usize> = HashMap::new();
        for d in &duplicates {
            let n = again.entry(d).or_insert(0);
            *n += 1;
            let place = at.get(d).and_then(|p| p.get(*n)).copied();
            problems.push((place.unwrap_or(usize::MAX), duplicate(d)));
        }
        let first: HashMap<String, usize> = at
            .into_iter()
            .filter_map(|(path, places)| Some((unknown(&path), *places.first()?)))
            .collect();
        problems.extend(
            out.problems
                .drain(..)
                .map(|p| (first.get(&p).copied().unwrap_or(usize::MAX), p)),
        );
    }
    problems.sort();
    out.problems = problems.into_iter().map(|p| p.1).collect();
    Ok(out)
}

pub(crate) fn duplicate(path: &str) -> String {
    format!("duplicate field {}", go::quote(path))
}

fn unknown(path: &str) -> String {
    format!("unknown field {}", go::quote(path))
}

/// Brings a tree (from YAML, from a patch) into the server's form.
pub fn normalize(mut value: Value, schema: &Schema) -> Result<Decoded, DecodeError> {
    let mut w = Walker::default();
    w.value(&mut value, schema, false)?;
    Ok(Decoded {
        object: value,
        problems: w.problems,
    })
}

/// `strict decoding error: unknown field "a", duplicate field "b"`; the message of a 400 when
/// `fieldValidation=Strict`.
pub fn strict_error(problems: &[String]) -> String {
    format!("strict decoding error: {}", problems.join(", "))
}

/// How upstream wraps a decoding error of a request body.
pub fn cannot_handle(kind: &str, version: &str, error: &str) -> String {
    format!(
        "{kind} in version {} cannot be handled as a {kind}: {error}",
        go::quote(version)
    )
}

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
/// The types that hold a schema or something else: `JSONSchemaPropsOrArray` and its like.
const SCHEMA_OR: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOr";

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    /// A key of a map; it is part of the path of unknown fields, not of Go's type errors.
    Key,
}

#[derive(Default)]
struct Walker<'a> {
    steps: Vec<Step<'a>>,
    /// Keys of [`Step::Key`] steps; they belong to the value, not to the schema.
    keys: Vec<String>,
    /// Go name of the struct whose field is being decoded.
    owner: &'a str,
    problems: Vec<String>,
}

impl<'a> Walker<'a> {
    /// `go` says that an enclosing type is a Go struct.
    fn value(&mut self, v: &mut Value, s: &'a Schema, go: bool) -> Result<(), DecodeError> {
        let shape = s.shape();
        let go = go || !shape.name.is_empty();
        match shape.kind() {
            Type::Any if shape.name.starts_with(SCHEMA_OR) => self.schema_or_other(v),
            Type::Any => Ok(()),
            Type::Object if !go => self.structural_object(v, s),
            Type::Array if !go => self.structural_array(v, s),
            _ if !go => Ok(()),
            Type::Object if matches!(shape.additional(), Additional::Of(_)) => self.map(v, s),
            Type::Object if matches!(shape.additional(), Additional::Open) => match v {
                Value::Object(_) => Ok(()),
                Value::Null => {
                    *v = Value::Object(Map::new());
                    Ok(())
                }
                _ => Err(self.mismatch(v, s)),
            },
            Type::Object => self.go_struct(v, shape, s),
            Type::Array => self.list(v, s),
            _ => self.scalar(v, s),
        }
    }

    /// A schema, or a list of schemas, or something else: only the schemas have a form of their
    /// own. Upstream decodes them apart, without complaint about unknown fields.
    fn schema_or_other(&mut self, v: &mut Value) -> Result<(), DecodeError> {
        let Some(schema) = keelson_api::schema(SCHEMA) else {
            return Ok(());
        };
        let known = self.problems.len();
        match v {
            Value::Object(_) => self.value(v, schema, true)?,
            Value::Array(items) => {
                for item in items.iter_mut().filter(|item| item.is_object()) {
                    self.value(item, schema, true)?;
                }
            }
            _ => {}
        }
        self.problems.truncate(known);
        Ok(())
    }

    fn go_struct(
        &mut self,
        v: &mut Value,
        shape: &'a Schema,
        s: &Schema,
    ) -> Result<(), DecodeError> {
        if v.is_null() {
            *v = Value::Object(Map::new());
        }
        let Value::Object(map) = v else {
            return Err(self.mismatch(v, s));
        };
        let mut unknown = Vec::new();
        map.retain(|k, _| {
            let known = shape.field(k).is_some();
            if !known {
                unknown.push(k.clone());
            }
            known
        });
        for k in unknown {
            self.unknown(&k);
        }
        let outer = self.owner;
        let name: &'a str = &shape.name;
        self.owner = name.rsplit('.').next().unwrap_or("");
        // Most fields of most structs are absent, so that the object is walked and not the type.
        let (mut refused, mut emptied) = (None, Vec::new());
        map.retain(|k, v| {
            let Some(f) = shape.field(k).filter(|_| refused.is_none()) else {
                return true;
            };
            let kept = self.go_field(v, f).unwrap_or_else(|err| {
                refused = Some(err);
                true
            });
            if !kept {
                emptied.push(&f.name);
            }
            kept
        });
        if let Some(err) = refused {
            return Err(err);
        }
        for f in shape.fields().iter().filter(|f| has_zero(f)) {
            if !map.contains_key(f.name.as_ref())
                && !emptied.contains(&&f.name)
                && let Some(zero) = self.zero(f)?
            {
                map.insert(f.name.to_string(), zero);
            }
        }
        self.owner = outer;
        Ok(())
    }

    /// Whether the field stays in the output.
    fn go_field(&mut self, v: &mut Value, f: &'a Field) -> Result<bool, DecodeError> {
        if v.is_null() {
            let zero = self.zero(f)?;
            let kept = zero.is_some();
            *v = zero.unwrap_or_default();
            return Ok(kept);
        }
        self.steps.push(Step::Field(&f.name));
        self.value(v, &f.schema, true)?;
        self.steps.pop();
        if f.omit_empty && !f.pointer && is_empty(v, &f.schema) {
            return Ok(false);
        }
        if !f.omit_empty && v.as_array().is_some_and(Vec::is_empty) {
            *v = Value::Null; // An empty list does not outlive its encoding.
        }
        Ok(true)
    }

    /// What an absent field is encoded as; nothing unless [`has_zero`].
    fn zero(&mut self, f: &'a Field) -> Result<Option<Value>, DecodeError> {
        if !has_zero(f) {
            return Ok(None);
        }
        let shape = f.schema.shape();
        Ok(match shape.kind() {
            Type::Object if f.schema.target_is_struct() => {
                let mut v = Value::Object(Map::new());
                self.steps.push(Step::Field(&f.name));
                self.value(&mut v, &f.schema, true)?;
                self.steps.pop();
                Some(v)
            }
            Type::Time | Type::MicroTime | Type::Any => Some(Value::Null),
            Type::Quantity => Some(Value::from("0")),
            Type::IntOrString => Some(Value::from(0)),
            _ if f.omit_empty => None,
            Type::String => Some(Value::from("")),
            Type::Integer | Type::Number => Some(Value::from(0)),
            Type::Boolean => Some(Value::Bool(false)),
            Type::Object | Type::Array | Type::Bytes => Some(Value::Null),
        })
    }

    fn map(&mut self, v: &mut Value, s: &'a Schema) -> Result<(), DecodeError> {
        let Additional::Of(of) = s.additional() else {
            return Ok(());
        };
        let Value::Object(map) = v else {
            return Err(self.mismatch(v, s));
        };
        // Maps of plain strings are by far the most common and need no walk when they are right.
        if of.kind() == Type::String && map.values().all(Value::is_string) {
            return Ok(());
        }
        for (k, item) in map.iter_mut() {
            self.steps.push(Step::Key);
            self.keys.push(k.clone());
            if item.is_null() {
                *item = null_item(of);
            }
            self.value(item, of, true)?;
            self.keys.pop();
            self.steps.pop();
        }
        Ok(())
    }

    fn list(&mut self, v: &mut Value, s: &'a Schema) -> Result<(), DecodeError> {
        let Some(of) = s.items() else { return Ok(()) };
        let Value::Array(items) = v else {
            return Err(self.mismatch(v, s));
        };
        for (i, item) in items.iter_mut().enumerate() {
            self.steps.push(Step::Index(i));
            if item.is_null() {
                *item = null_item(of);
            }
            self.value(item, of, true)?;
            self.steps.pop();
        }
        Ok(())
    }

    fn scalar(&mut self, v: &mut Value, s: &Schema) -> Result<(), DecodeError> {
        let shape = s.shape();
        match (shape.kind(), &*v) {
            (Type::String, Value::String(_)) | (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::Number, Value::Number(_)) => Ok(()),
            (Type::Integer, Value::Number(n)) => {
                let fits = match n.as_i64() {
                    Some(i) => shape.format != "int32" || i32::try_from(i).is_ok(),
                    None => false,
                };
                if fits {
                    Ok(())
                } else {
                    Err(self.mismatch(v, s))
                }
            }
            (Type::Bytes, Value::String(t)) => match go::check_base64(t) {
                Some(at) => Err(DecodeError::Type(format!(
                    "illegal base64 data at input byte {at}"
                ))),
                None => Ok(()),
            },
            (Type::Quantity, _) => quantity(v),
            (Type::Time | Type::MicroTime, Value::Null) => Ok(()),
            (Type::Time | Type::MicroTime, Value::String(t)) => {
                let text = canonical_time(t, shape.kind())?;
                *v = text;
                Ok(())
            }
            (Type::Time | Type::MicroTime, _) => Err(go_value_mismatch(v, "string")),
            (Type::IntOrString, Value::String(_)) => Ok(()),
            (Type::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|i| i32::try_from(i).is_ok()) =>
            {
                Ok(())
            }
            (Type::IntOrString, Value::Null) => {
                *v = Value::from(0);
                Ok(())
            }
            (Type::IntOrString, _) => Err(go_value_mismatch(v, "int32")),
            _ => Err(self.mismatch(v, s)),
        }
    }

    fn structural_object(&mut self, v: &mut Value, s: &'a Schema) -> Result<(), DecodeError> {
        // Values of other types are for validation to refuse.
        let Value::Object(map) = v else { return Ok(()) };
        let shape = s.shape();
        if let Additional::Closed = shape.additional()
            && !s.keeps_unknown()
        {
            let mut unknown = Vec::new();
            map.retain(|k, _| {
                let known = shape.field(k).is_some();
                if !known {
                    unknown.push(k.clone());
                }
                known
            });
            for k in unknown {
                self.unknown(&k);
            }
        }
        for (k, item) in map.iter_mut() {
            if let Some(f) = shape.field(k) {
                if item.is_null() && f.schema.type_name().is_empty() {
                    continue;
                }
                self.steps.push(Step::Field(&f.name));
                self.value(item, &f.schema, false)?;
                self.steps.pop();
            } else if let Additional::Of(of) = shape.additional() {
                self.steps.push(Step::Key);
                self.keys.push(k.clone());
                self.value(item, of, false)?;
                self.keys.pop();
                self.steps.pop();
            }
        }
        Ok(())
    }

    fn structural_array(&mut self, v: &mut Value, s: &'a Schema) -> Result<(), DecodeError> {
        let (Value::Array(items), Some(of)) = (v, s.items()) else {
            return Ok(());
        };
        for (i, item) in items.iter_mut().enumerate() {
            self.steps.push(Step::Index(i));
            self.value(item, of, false)?;
            self.steps.pop();
        }
        Ok(())
    }

    fn unknown(&mut self, name: &str) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let mut path = String::new();
        let mut keys = self.keys.iter();
        for step in &self.steps {
            match step {
                Step::Index(i) => {
                    let _ = write!(path, "[{i}]");
                    continue;
                }
                Step::Field(f) => join(&mut path, f),
                Step::Key => join(&mut path, keys.next().map_or("", String::as_str)),
            }
        }
        join(&mut path, name);
        self.problems
            .push(format!("unknown field {}", go::quote(&path)));
    }

    fn mismatch(&self, v: &Value, s: &Schema) -> DecodeError {
        let what = describe(v, s);
        let wanted = go_type(s);
        let fields: Vec<&str> = self
            .steps
            .iter()
            .filter_map(|s| match s {
                Step::Field(f) => Some(*f),
                _ => None,
            })
            .collect();
        DecodeError::Type(if fields.is_empty() {
            format!("json: cannot unmarshal {what} into Go value of type {wanted}")
        } else {
            format!(
                "json: cannot unmarshal {what} into Go struct field {}.{} of type {wanted}",
                self.owner,
                fields.join(".")
            )
        })
    }
}

/// Whether a field that is absent may yet be in the output.
fn has_zero(f: &Field) -> bool {
    let always = || match f.schema.kind() {
        Type::Object => f.schema.target_is_struct(),
        Type::Time | Type::MicroTime | Type::Any | Type::Quantity | Type::IntOrString => true,
        _ => false,
    };
    !f.pointer && !f.omit_zero && (!f.omit_empty || always())
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// A null item of a list or map is the zero of its type.
fn null_item(of: &Schema) -> Value {
    match of.kind() {
        Type::String | Type::Bytes => Value::from(""),
        Type::Integer | Type::Number | Type::IntOrString => Value::from(0),
        Type::Quantity => Value::from("0"),
        Type::Boolean => Value::Bool(false),
        Type::Array => Value::Array(Vec::new()),
        Type::Object => Value::Object(Map::new()),
        Type::Time | Type::MicroTime | Type::Any => Value::Null,
    }
}

/// What `omitempty` leaves out; structs are never empty to it.
fn is_empty(v: &Value, s: &Schema) -> bool {
    match v {
        Value::Null => !matches!(s.kind(), Type::Time | Type::MicroTime | Type::Any),
        Value::Bool(b) => !b,
        Value::Number(n) => s.kind() != Type::IntOrString && n.as_f64() == Some(0.0),
        Value::String(t) => t.is_empty() && matches!(s.kind(), Type::String | Type::Bytes),
        Value::Array(items) => items.is_empty() && s.kind() == Type::Array,
        Value::Object(map) => map.is_empty() && s.is_map(),
    }
}

fn describe(v: &Value, s: &Schema) -> String {
    match v {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
        Value::Number(n) if matches!(s.kind(), Type::Integer | Type::Number) => {
            format!("number {n}")
        }
        Value::Number(_) => "number".into(),
    }
}

fn go_value_mismatch(v: &Value, wanted: &str) -> DecodeError {
    let what = match v {
        Value::Number(n) if wanted == "int32" => format!("number {n}"),
        v => describe(v, &Schema::default()),
    };
    DecodeError::Type(format!(
        "json: cannot unmarshal {what} into Go value of type {wanted}"
    ))
}

/// The Go type of a value, as reflection prints it.
pub(crate) fn go_type(s: &Schema) -> String {
    if !s.go_type.is_empty() {
        return s.go_type.to_string();
    }
    let shape = s.shape();
    if !shape.name.is_empty() {
        let mut parts = shape.name.rsplit('.');
        let (name, package) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        return format!("{package}.{name}");
    }
    match shape.kind() {
        Type::String | Type::Time | Type::MicroTime => "string".into(),
        Type::Integer if shape.format.is_empty() => "int".into(),
        Type::Integer => shape.format.to_string(),
        Type::Number => "float64".into(),
        Type::Boolean => "bool".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Array => format!("[]{}", shape.items().map(go_type).unwrap_or_default()),
        Type::Object => match shape.additional() {
            Additional::Of(of) => format!("map[string]{}", go_type(of)),
            _ => "map[string]interface {}".into(),
        },
        _ => "interface {}".into(),
    }
}

fn quantity(v: &mut Value) -> Result<(), DecodeError> {
    let text = match &*v {
        Value::String(t) => t.clone(),
        Value::Number(n) => n.to_string(),
        Value::Null => "0".into(),
        other => describe(other, &Schema::default()),
    };
    match Quantity::canonical(&text) {
        Ok(canonical) => {
            if v.as_str() != Some(canonical.as_str()) {
                *v = Value::String(canonical);
            }
            Ok(())
        }
        Err(e) => Err(DecodeError::Type(e.to_string())),
    }
}

fn canonical_time(t: &str, ty: Type) -> Result<Value, DecodeError> {
    let Some(parsed) = time::parse(t) else {
        let layout = if ty == Type::MicroTime {
            "2006-01-02T15:04:05.000000Z07:00"
        } else {
            "2006-01-02T15:04:05Z07:00"
        };
        return Err(DecodeError::Type(format!(
            "parsing time {} as {}: cannot parse {} as \"2006\"",
            go::quote(t),
            go::quote(layout),
            go::quote(t)
        )));
    };
    Ok(Value::String(if ty == Type::MicroTime {
        time::format_micro(parsed)
    } else {
        time::format(parsed)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(v: Value) -> Result<Decoded, DecodeError> {
        let bytes = serde_json::to_vec(&v).unwrap();
        decode(
            &bytes,
            keelson_api::schema("io.k8s.api.core.v1.Pod").unwrap(),
        )
    }

    fn type_error(v: Value) -> String {
        pod(v).unwrap_err().to_string()
    }

    #[test]
    fn a_pod_comes_out_as_go_would_encode_it() {
        let d = pod(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": null, "labels": {}},
            "spec": {
                "hostNetwork": false, "nodeName": "", "foo": 1, "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c", "x": {}, "args": [], "resources": {"limits": {"cpu": 1, "memory": "1024Ki"}},
                    "securityContext": {"privileged": false},
                    "ports": [{"containerPort": 80}]
                }]
            }
        }))
        .unwrap();
        assert_eq!(
            d.object,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a"},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "c",
                        "resources": {"limits": {"cpu": "1", "memory": "1Mi"}},
                        "securityContext": {"privileged": false},
                        "ports": [{"containerPort": 80}]
                    }]
                },
                "status": {}
            })
        );
        assert_eq!(
            d.problems,
            [
                "unknown field \"spec.containers[0].x\"",
                "unknown field \"spec.foo\""
            ]
        );
        let again = normalize(
            d.object.clone(),
            keelson_api::schema("io.k8s.api.core.v1.Pod").unwrap(),
        );
        assert_eq!(again.unwrap().object, d.object, "normalizing is idempotent");
    }

    #[test]
    fn duplicates_are_reported() {
        let s = keelson_api::schema("io.k8s.api.core.v1.ConfigMap").unwrap();
        let d = decode(
            br#"{"kind":"ConfigMap","data":{"a":"1","a":"2"},"kind":"ConfigMap"}"#,
            s,
        )
        .unwrap();
        assert_eq!(
            d.problems,
            ["duplicate field \"data.a\"", "duplicate field \"kind\""]
        );
        assert_eq!(d.object["data"]["a"], "2");
        let d = decode(
            br#"{"data":{"z":"1"},"x":[{"y":1}],"kind":"a","b":1,"kind":"b","kind":"c","a":2}"#,
            s,
        )
        .unwrap();
        assert_eq!(
            d.problems,
            [
                "unknown field \"x\"",
                "unknown field \"b\"",
                "duplicate field \"kind\"",
                "duplicate field \"kind\"",
                "unknown field \"a\""
            ],
            "in the order of the document"
        );
        assert!(decode(b"{", s).is_err());
        assert!(decode(b"{} x", s).is_err());
    }

    #[test]
    fn schemas_of_list_items_lose_their_empty_fields() {
        let of = keelson_api::schema(SCHEMA).unwrap();
        let given = json!({"id": "", "type": "array", "items": {"id": "", "type": "object", "additionalProperties":
            {"id": "", "type": "string"}}});
        assert_eq!(
            normalize(given, of).unwrap().object,
            json!({"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}})
        );
    }

    #[test]
    fn type_errors_read_like_gos() {
        assert_eq!(
            type_error(json!({"spec": {"containers": "x"}})),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
        assert_eq!(
            type_error(json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}})),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"
        );
        assert_eq!(
            type_error(json!({"metadata": {"labels": {"a": 1}}})),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
        );
        assert_eq!(
            type_error(json!([])),
            "json: cannot unmarshal array into Go value of type v1.Pod"
        );
        assert_eq!(
            type_error(json!({"spec": {"restartPolicy": 1}})),
            "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy"
        );
        assert!(
            type_error(json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}))
                .starts_with("quantities must match")
        );
        assert!(
            type_error(json!({"metadata": {"creationTimestamp": "x"}})).starts_with("parsing time")
        );
    }

    #[test]
    fn structs_and_requireds_are_filled() {
        let s = keelson_api::schema("io.k8s.api.core.v1.Service").unwrap();
        let d = normalize(json!({"spec": {"ports": [{"port": 80}]}}), s).unwrap();
        assert_eq!(
            d.object,
            json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": 0}]},
                "status": {"loadBalancer": {}}})
        );
        let s = keelson_api::schema("io.k8s.api.rbac.v1.Role").unwrap();
        let d = normalize(json!({}), s).unwrap();
        assert_eq!(d.object, json!({"metadata": {}, "rules": null}));
    }

    #[test]
    fn secrets_must_be_base64() {
        let s = keelson_api::schema("io.k8s.api.core.v1.Secret").unwrap();
        assert!(normalize(json!({"data": {"a": "YQ==", "b": "", "c": "YWI=\n"}}), s).is_ok());
        let e = normalize(json!({"data": {"a": "Y!=="}}), s).unwrap_err();
        assert_eq!(e.to_string(), "illegal base64 data at input byte 1");
    }

    #[test]
    fn custom_resources_are_pruned() {
        let s = Schema::custom_resource(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "m": {"type": "object", "additionalProperties": {"type": "object",
                    "properties": {"k": {"type": "integer"}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
            }}
        }}))
        .unwrap();
        let d = normalize(
            json!({"apiVersion": "x/v1", "kind": "T", "metadata": {"name": "n", "zzz": 1},
                "spec": {"a": null, "b": 1, "m": {"x": {"k": 1, "l": 2}}, "free": {"q": 1}}}),
            &s,
        )
        .unwrap();
        assert_eq!(
            d.object,
            json!({"apiVersion": "x/v1", "kind": "T", "metadata": {"name": "n"},
                "spec": {"a": null, "m": {"x": {"k": 1}}, "free": {"q": 1}}})
        );
        let mut problems = d.problems;
        problems.sort();
        assert_eq!(
            problems,
            [
                "unknown field \"metadata.zzz\"",
                "unknown field \"spec.b\"",
                "unknown field \"spec.m.x.l\""
            ]
        );
    }
}

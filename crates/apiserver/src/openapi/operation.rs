//! One operation of a path, in either dialect.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::parameters::{DELETE_BODY, PATCH_BODY, Parameter};

pub(super) const OBJECTS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
pub(super) const STREAMS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
/// Custom resources have no protobuf.
pub(super) const CUSTOM: &[&str] = &["application/json", "application/yaml"];
pub(super) const ANY: &[&str] = &["*/*"];
pub(super) const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
pub(super) const CUSTOM_PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

/// What an operation is sent, by the reference to its type.
pub(super) enum Body {
    None,
    Object(Value),
    Patch(Value),
    DeleteOptions(Value),
}

pub(super) struct Operation<'a> {
    pub(super) method: &'static str,
    /// `x-kubernetes-action`; empty for what is no resource.
    pub(super) action: &'static str,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    /// The kind the operation is about; null for what is no resource.
    pub(super) kind: Value,
    pub(super) parameters: Vec<Parameter<'a>>,
    pub(super) body: Body,
    /// The schema of what is answered, and the codes with it.
    pub(super) result: Value,
    pub(super) codes: &'static [u16],
    pub(super) consumes: &'static [&'static str],
    pub(super) produces: &'static [&'static str],
}

/// A path: parameters of all its operations stand once.
pub(super) fn path(dialect: Dialect, mut operations: Vec<Operation<'_>>) -> Value {
    let mut shared: Vec<Parameter<'_>> = match operations.first() {
        Some(first) => first.parameters.clone(),
        None => Vec::new(),
    };
    shared.retain(|p| operations.iter().all(|o| o.parameters.contains(p)));
    let mut out = Map::new();
    for operation in &mut operations {
        operation.parameters.retain(|p| !shared.contains(p));
        out.insert(operation.method.to_owned(), operation.render(dialect));
    }
    if !shared.is_empty() {
        out.insert("parameters".to_owned(), list(dialect, shared).into());
    }
    Value::Object(out)
}

fn list(dialect: Dialect, mut parameters: Vec<Parameter<'_>>) -> Vec<Value> {
    parameters.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    parameters.iter().map(|p| p.render(dialect)).collect()
}

impl Operation<'_> {
    fn render(&self, dialect: Dialect) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
        put("tags", json!([self.tag]));
        put("description", json!(self.description));
        put("operationId", json!(self.id));
        if !self.kind.is_null() {
            put("x-kubernetes-action", json!(self.action));
            put("x-kubernetes-group-version-kind", self.kind.clone());
        }
        let mut parameters = list(dialect, self.parameters.clone());
        if dialect == Dialect::V2 {
            // "body" comes before every other name but one that no operation with a body has.
            parameters.splice(0..0, self.body_parameter());
            if !self.consumes.is_empty() {
                put("consumes", json!(self.consumes));
            }
            put("produces", json!(self.produces));
            put("schemes", json!(["https"]));
        } else if let Some(body) = self.request_body() {
            put("requestBody", body);
        }
        put("responses", self.responses(dialect));
        if !parameters.is_empty() {
            put("parameters", Value::Array(parameters));
        }
        Value::Object(out)
    }

    fn body_parameter(&self) -> Option<Value> {
        match &self.body {
            Body::None => None,
            Body::Object(schema) => {
                Some(json!({"name": "body", "in": "body", "required": true, "schema": schema}))
            }
            Body::Patch(_) => Some(Parameter::Known(PATCH_BODY).render(Dialect::V2)),
            Body::DeleteOptions(_) => Some(Parameter::Known(DELETE_BODY).render(Dialect::V2)),
        }
    }

    fn request_body(&self) -> Option<Value> {
        let (schema, required) = match &self.body {
            Body::None => return None,
            Body::Object(schema) | Body::Patch(schema) => (schema, true),
            Body::DeleteOptions(schema) => (schema, false),
        };
        let mut out = json!({"content": content(self.consumes, schema)});
        if required {
            out["required"] = json!(true);
        }
        Some(out)
    }

    fn responses(&self, dialect: Dialect) -> Value {
        let mut out = json!({"401": {"description": "Unauthorized"}});
        for code in self.codes {
            let mut response = json!({"description": match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            }});
            match dialect {
                Dialect::V2 => response["schema"] = self.result.clone(),
                Dialect::V3 => response["content"] = content(self.produces, &self.result),
            }
            out[code.to_string()] = response;
        }
        out
    }
}

fn content(media: &[&str], schema: &Value) -> Value {
    let media = media.iter();
    Value::Object(
        media
            .map(|media| ((*media).to_owned(), json!({"schema": schema})))
            .collect(),
    )
}

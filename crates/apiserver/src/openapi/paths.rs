//! Paths and operations of a group version.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::render::Definitions;
use crate::discovery::{Group, Version};
use crate::registry::ResourceEntry;

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const JSON: &str = "application/json";

/// Adds every path of the version to `paths`, and the types they need to `definitions`.
pub(super) fn add(
    dialect: Dialect,
    group: &Group,
    version: &Version,
    paths: &mut Map<String, Value>,
    definitions: &mut Definitions,
) {
    let base = if group.name.is_empty() {
        format!("/api/{}", version.version)
    } else {
        format!("/apis/{}/{}", group.name, version.version)
    };
    for entry in &version.resources {
        let (kind, list) = definitions.resource(entry);
        let writer = Writer {
            dialect,
            entry,
            kind: &kind,
            list: &list,
        };
        let collection = if entry.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", entry.resource)
        } else {
            format!("{base}/{}", entry.resource)
        };
        paths.insert(collection.clone(), writer.collection(definitions));
        if entry.namespaced && entry.has_verb("list") {
            paths.insert(
                format!("{base}/{}", entry.resource),
                writer.list_all(definitions),
            );
        }
        let item = format!("{collection}/{{name}}");
        let operations = writer.item(definitions);
        if operations
            .as_object()
            .is_some_and(|o| o.keys().any(|k| k != "parameters"))
        {
            paths.insert(item.clone(), operations);
        }
        for sub in &entry.subresources {
            let mut operations = Map::new();
            for verb in &sub.verbs {
                let (method, action) = match verb.as_str() {
                    "get" => ("get", "get"),
                    "create" => ("post", "connect"),
                    "update" => ("put", "put"),
                    "patch" => ("patch", "patch"),
                    "delete" => ("delete", "delete"),
                    _ => continue,
                };
                let gvk = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
                operations.insert(
                    method.to_owned(),
                    writer.operation(definitions, method, action, &kind, &gvk),
                );
            }
            operations.insert("parameters".to_owned(), writer.path_parameters(true));
            paths.insert(format!("{item}/{}", sub.name), Value::Object(operations));
        }
    }
}

struct Writer<'a> {
    dialect: Dialect,
    entry: &'a ResourceEntry,
    kind: &'a str,
    list: &'a str,
}

impl Writer<'_> {
    fn gvk(&self) -> Value {
        json!({"group": self.entry.group, "version": self.entry.version, "kind": self.entry.kind})
    }

    fn collection(&self, definitions: &mut Definitions) -> Value {
        let mut out = Map::new();
        for (verb, method, action, result) in [
            ("list", "get", "list", self.list),
            ("create", "post", "post", self.kind),
            ("deletecollection", "delete", "deletecollection", STATUS),
        ] {
            if self.entry.has_verb(verb) {
                out.insert(
                    method.to_owned(),
                    self.operation(definitions, method, action, result, &self.gvk()),
                );
            }
        }
        out.insert("parameters".to_owned(), self.path_parameters(false));
        Value::Object(out)
    }

    fn list_all(&self, definitions: &mut Definitions) -> Value {
        json!({"get": self.operation(definitions, "get", "list", self.list, &self.gvk())})
    }

    fn item(&self, definitions: &mut Definitions) -> Value {
        let mut out = Map::new();
        for (verb, method, action, result) in [
            ("get", "get", "get", self.kind),
            ("update", "put", "put", self.kind),
            ("patch", "patch", "patch", self.kind),
            ("delete", "delete", "delete", STATUS),
        ] {
            if self.entry.has_verb(verb) {
                out.insert(
                    method.to_owned(),
                    self.operation(definitions, method, action, result, &self.gvk()),
                );
            }
        }
        out.insert("parameters".to_owned(), self.path_parameters(true));
        Value::Object(out)
    }

    fn path_parameters(&self, named: bool) -> Value {
        let mut out = Vec::new();
        if named {
            out.push(self.parameter("name", "path", "string"));
        }
        if self.entry.namespaced {
            out.push(self.parameter("namespace", "path", "string"));
        }
        out.push(self.parameter("pretty", "query", "string"));
        Value::Array(out)
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut out = match self.dialect {
            Dialect::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true}),
            Dialect::V3 => {
                json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}})
            }
        };
        if place == "path" {
            out["required"] = json!(true);
        }
        out
    }

    fn query(&self, action: &str) -> Vec<Value> {
        let names: &[(&str, &str)] = match action {
            "post" | "put" => &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
            ],
            "patch" => &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
                ("force", "boolean"),
            ],
            "delete" => &[
                ("dryRun", "string"),
                ("gracePeriodSeconds", "integer"),
                ("orphanDependents", "boolean"),
                ("propagationPolicy", "string"),
            ],
            "list" | "deletecollection" => &[
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ],
            _ => &[],
        };
        names
            .iter()
            .map(|(name, kind)| self.parameter(name, "query", kind))
            .collect()
    }

    fn operation(
        &self,
        definitions: &mut Definitions,
        method: &str,
        action: &str,
        result: &str,
        gvk: &Value,
    ) -> Value {
        let body = match action {
            "post" | "put" => Some(self.reference(definitions, self.kind)),
            "patch" => Some(definitions.named(PATCH)),
            "delete" | "deletecollection" => Some(definitions.named(DELETE_OPTIONS)),
            _ => None,
        };
        let result = self.reference(definitions, result);
        let id = format!(
            "{action}{}{}",
            capital(&self.entry.version),
            self.entry.kind
        );
        let mut out = json!({
            "operationId": id,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        let mut parameters = self.query(action);
        let media: &[&str] = if method == "patch" {
            &[
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ]
        } else {
            &["*/*"]
        };
        match self.dialect {
            Dialect::V2 => {
                if let Some(body) = body {
                    parameters.push(
                        json!({"name": "body", "in": "body", "required": true, "schema": body}),
                    );
                }
                out["consumes"] = json!(media);
                out["produces"] = json!([
                    JSON,
                    "application/yaml",
                    "application/vnd.kubernetes.protobuf"
                ]);
                out["schemes"] = json!(["https"]);
                out["responses"] = json!({"200": {"description": "OK", "schema": result}, "401": {"description": "Unauthorized"}});
            }
            Dialect::V3 => {
                if let Some(body) = body {
                    let content: Map<String, Value> = media
                        .iter()
                        .map(|m| ((*m).to_owned(), json!({"schema": body})))
                        .collect();
                    out["requestBody"] = json!({"content": content, "required": true});
                }
                out["responses"] = json!({
                    "200": {"description": "OK", "content": {JSON: {"schema": result}, "application/yaml": {"schema": result}}},
                    "401": {"description": "Unauthorized"},
                });
            }
        }
        out["parameters"] = Value::Array(parameters);
        out
    }

    /// Custom kinds are in the definitions already; built-in ones are asked for by name.
    fn reference(&self, definitions: &mut Definitions, name: &str) -> Value {
        if keelson_api::schema(name).is_some() {
            definitions.named(name)
        } else {
            json!({"$ref": self.dialect.reference(name)})
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

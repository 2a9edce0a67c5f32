//! How Go prints a struct in an error message. A bad value that is a struct is shown as the JSON of
//! the server's internal type: its Go field names, in the order of the struct, with everything that
//! is absent. Types of `meta/v1` are the same inside and outside, and keep their JSON names.

use keelson_api::{Additional, Field, Schema, Type, message};
use serde_json::{Map, Value};

use crate::field::FieldError;
use crate::go;

/// Types nest no deeper than this; what is below is shown as it is.
const MAX_DEPTH: usize = 32;

/// Gives each error about a struct its text. `schema` is that of the object the errors are about.
pub fn show(errors: &mut [FieldError], schema: &Schema) {
    for error in errors.iter_mut().filter(|e| e.shown.is_none()) {
        let is_struct = match &error.bad_value {
            Value::Object(_) => true,
            Value::Array(items) => items.iter().any(Value::is_object),
            _ => false,
        };
        if !is_struct {
            continue;
        }
        if let Some(schema) = schema_of(&error.field, &error.bad_value, schema) {
            let mut text = String::new();
            render(&error.bad_value, schema, 0, &mut text);
            error.shown = Some(text);
        }
    }
}

/// The schema of a value that an error at this path shows: the field's own, that of its items, or
/// that of the struct around it.
fn schema_of<'a>(path: &str, value: &Value, root: &'a Schema) -> Option<&'a Schema> {
    let (mut here, mut around) = (root, root);
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let next = match step.strip_suffix(']') {
            Some(_) => here.items().or(match here.additional() {
                Additional::Of(of) => Some(of),
                _ => None,
            }),
            None => here.field(step).map(|field| &field.schema),
        };
        around = here;
        here = next?;
    }
    let Value::Object(fields) = value else {
        return Some(here);
    };
    let here = here.items().unwrap_or(here);
    let fits = |schema: &Schema| {
        !schema.fields().is_empty() && fields.keys().all(|name| schema.field(name).is_some())
    };
    [here, around]
        .into_iter()
        .find(|schema| fits(schema))
        .or(Some(here))
}

fn render(value: &Value, schema: &Schema, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if depth < MAX_DEPTH => {
            if schema.fields().is_empty() {
                entries(map, schema, depth, out);
            } else {
                out.push('{');
                fields(map, schema, depth, out);
                out.push('}');
            }
        }
        Value::Array(items) if depth < MAX_DEPTH => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                match schema.items() {
                    Some(of) => render(item, of, depth + 1, out),
                    None => out.push_str(&go::json(item)),
                }
            }
            out.push(']');
        }
        other => out.push_str(&go::json(other)),
    }
}

fn entries(map: &Map<String, Value>, schema: &Schema, depth: usize, out: &mut String) {
    out.push('{');
    for (i, (key, item)) in map.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        name(key, out);
        match schema.additional() {
            Additional::Of(of) => render(item, of, depth + 1, out),
            _ => out.push_str(&go::json(item)),
        }
    }
    out.push('}');
}

fn name(key: &str, out: &mut String) {
    out.push_str(&go::json(&Value::from(key)));
    out.push(':');
}

/// The fields of a struct without its braces, so that embedded structs can stand among them.
fn fields(map: &Map<String, Value>, schema: &Schema, depth: usize, out: &mut String) {
    let tagged = schema.type_name().starts_with("io.k8s.apimachinery");
    for field in in_order(schema) {
        let value = map.get(field.name.as_ref()).filter(|v| !v.is_null());
        let embedded = field.name == "metadata" && !tagged;
        if embedded {
            if let Some(Value::Object(metadata)) = value {
                fields(metadata, &field.schema, depth + 1, out);
            }
            continue;
        }
        if (tagged || matches!(field.name.as_ref(), "apiVersion" | "kind") && is_root(schema))
            && value.is_none()
        {
            continue;
        }
        if !out.ends_with(['{', '[']) {
            out.push(',');
        }
        if tagged {
            name(&field.name, out);
        } else {
            name(&go_name(&field.name), out);
        }
        match value {
            Some(value) => render(value, &field.schema, depth + 1, out),
            None => zero(field, depth, out),
        }
    }
}

fn is_root(schema: &Schema) -> bool {
    schema.field("metadata").is_some()
}

/// Messages number their fields in the order of the struct.
fn in_order(schema: &Schema) -> Vec<&Field> {
    fn numbered(type_name: &str, depth: usize, names: &mut Vec<&'static str>) {
        for field in message(type_name).iter().flat_map(|m| &m.fields) {
            match field.ty {
                keelson_api::WireType::Message(inner) if field.embedded && depth < MAX_DEPTH => {
                    numbered(inner, depth + 1, names);
                }
                _ => names.push(field.json),
            }
        }
    }
    let mut names = Vec::new();
    numbered(schema.type_name(), 0, &mut names);
    let mut all: Vec<&Field> = schema.fields().iter().collect();
    all.sort_by_key(|f| {
        names
            .iter()
            .position(|n| *n == f.name)
            .unwrap_or(names.len())
    });
    all
}

fn zero(field: &Field, depth: usize, out: &mut String) {
    let shape = field.schema.shape();
    if field.pointer || depth >= MAX_DEPTH {
        return out.push_str("null");
    }
    match shape.kind() {
        Type::Object if !shape.fields().is_empty() => {
            render(&Value::Object(Map::new()), &field.schema, depth + 1, out);
        }
        Type::String => out.push_str("\"\""),
        Type::Integer | Type::Number | Type::IntOrString => out.push('0'),
        Type::Boolean => out.push_str("false"),
        Type::Quantity => out.push_str("\"0\""),
        _ => out.push_str("null"),
    }
}

/// Words that Go writes in capitals.
const INITIALISMS: &[&str] = &[
    "api", "aws", "ca", "cel", "cidr", "cidrs", "cpu", "csi", "dns", "fc", "fs", "gce", "grpc",
    "http", "https", "id", "ip", "ipc", "ips", "iscsi", "json", "nfs", "os", "pid", "rbd", "se",
    "tcp", "tls", "ttl", "uid", "uri", "url",
];

/// `apiGroup` as `APIGroup`, `replicas` as `Replicas`.
fn go_name(json: &str) -> String {
    let end = json
        .find(|c: char| c.is_ascii_uppercase())
        .unwrap_or(json.len());
    let (first, rest) = json.split_at(end);
    if INITIALISMS.contains(&first) {
        // The plural's letter stays small.
        let (word, plural) = match first {
            "ips" | "cidrs" => (&first[..first.len() - 1], "s"),
            _ => (first, ""),
        };
        return format!("{}{plural}{rest}", word.to_ascii_uppercase());
    }
    let mut letters = json.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;
    use serde_json::json;

    fn shown(type_name: &str, field: &str, value: Value) -> String {
        let schema = keelson_api::schema(type_name).unwrap();
        let mut errors = vec![FieldError::invalid(&Path::new(field), value, "no")];
        show(&mut errors, schema);
        errors[0].body()
    }

    #[test]
    fn structs_have_their_internal_names_and_order() {
        let strategy = json!({"type": "x", "rollingUpdate": {"maxSurge": "25%"}});
        assert_eq!(
            shown("io.k8s.api.apps.v1.Deployment", "spec.strategy", strategy),
            r#"Invalid value: {"Type":"x","RollingUpdate":{"MaxUnavailable":null,"MaxSurge":"25%"}}: no"#
        );
        let driver = json!({"name": "d", "nodeID": "n"});
        assert_eq!(
            shown("io.k8s.api.storage.v1.CSINode", "spec.drivers", driver),
            r#"Invalid value: {"Name":"d","NodeID":"n","TopologyKeys":null,"Allocatable":null}: no"#
        );
    }

    #[test]
    fn selectors_are_the_same_inside_and_outside() {
        let selector = json!({"matchExpressions": [{"values": ["v"], "key": "k", "operator": "In"}],
            "matchLabels": {"b": "c"}});
        assert_eq!(
            shown("io.k8s.api.apps.v1.Deployment", "spec.selector", selector),
            r#"Invalid value: {"matchLabels":{"b":"c"},"matchExpressions":[{"key":"k","operator":"In","values":["v"]}]}: no"#
        );
    }

    #[test]
    fn an_error_may_show_the_struct_around_its_field() {
        let method = json!({"type": "x"});
        assert_eq!(
            shown(
                "io.k8s.api.flowcontrol.v1.FlowSchema",
                "spec.distinguisherMethod.type",
                method
            ),
            r#"Invalid value: {"Type":"x"}: no"#
        );
    }

    #[test]
    fn names_have_capitals() {
        for (json, go) in [
            ("apiGroup", "APIGroup"),
            ("fsGroupPolicy", "FSGroupPolicy"),
            ("seLinuxMount", "SELinuxMount"),
            ("cidrs", "CIDRs"),
            ("clusterIPs", "ClusterIPs"),
            ("replicas", "Replicas"),
        ] {
            assert_eq!(go_name(json), go);
        }
    }
}

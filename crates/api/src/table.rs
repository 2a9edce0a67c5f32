//! The built-in types. The text is indexed once; each type is parsed when first asked for.

use crate::schema::{Additional, Field, GroupVersionKind, ListType, MapType, Schema, Type};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

static TEXT: &str = include_str!("generated/types.txt");

struct Entry {
    name: &'static str,
    /// The type's line and the lines of its fields.
    text: &'static str,
    parsed: OnceLock<Box<Schema>>,
}

/// Sorted by name; a type's id is its place here.
static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let mut out = Vec::with_capacity(800);
    let mut start = 0;
    let bytes = TEXT.as_bytes();
    while start < bytes.len() {
        let mut end = start;
        loop {
            end = TEXT[end..].find('\n').map_or(bytes.len(), |i| end + i + 1);
            if bytes.get(end) != Some(&b'\t') {
                break;
            }
        }
        let text = &TEXT[start..end];
        let name = text.split([' ', '\n']).next().unwrap_or("");
        out.push(Entry {
            name,
            text,
            parsed: OnceLock::new(),
        });
        start = end;
    }
    out.sort_by_key(|e| e.name);
    out
});

static KINDS: LazyLock<HashMap<(&'static str, &'static str, &'static str), &'static str>> =
    LazyLock::new(|| {
        let mut out = HashMap::new();
        for e in TABLE.iter() {
            for g in header_kinds(e.text) {
                out.entry((g.group, g.version, g.kind)).or_insert(e.name);
            }
        }
        out
    });

fn header(text: &'static str) -> &'static str {
    text.lines().next().unwrap_or("")
}

fn header_kinds(text: &'static str) -> impl Iterator<Item = GroupVersionKind> {
    header(text).split(' ').filter_map(|w| {
        let mut parts = w.strip_prefix("gvk=")?.splitn(3, '/');
        Some(GroupVersionKind {
            group: parts.next()?,
            version: parts.next()?,
            kind: parts.next()?,
        })
    })
}

fn id(name: &str) -> Option<u16> {
    TABLE
        .binary_search_by(|e| e.name.cmp(name))
        .ok()
        .and_then(|i| u16::try_from(i).ok())
}

pub(crate) fn by_id(id: u16) -> &'static Schema {
    let e = &TABLE[usize::from(id)];
    e.parsed.get_or_init(|| Box::new(parse(e)))
}

/// A built-in type by its full name, `io.k8s.api.core.v1.Pod`.
pub fn schema(type_name: &str) -> Option<&'static Schema> {
    id(type_name).map(by_id)
}

pub(crate) fn reference(type_name: &str) -> Option<Schema> {
    id(type_name).map(|i| Schema {
        target: Some(i),
        ..Schema::default()
    })
}

/// The full name of the type of a served kind.
pub fn kind_type(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    KINDS.get(&(group, version, kind)).copied()
}

/// Full names of all types, sorted.
pub fn type_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|e| e.name)
}

/// `x-kubernetes-group-version-kind` of a type.
pub fn group_version_kinds(type_name: &str) -> Vec<GroupVersionKind> {
    id(type_name)
        .map(|i| header_kinds(TABLE[usize::from(i)].text).collect())
        .unwrap_or_default()
}

/// `x-kubernetes-unions` of a type.
pub fn unions(type_name: &str) -> Vec<Value> {
    let Some(i) = id(type_name) else {
        return Vec::new();
    };
    header(TABLE[usize::from(i)].text)
        .split(' ')
        .filter_map(|w| serde_json::from_str(w.strip_prefix("union=")?).ok())
        .collect()
}

fn parse(e: &Entry) -> Schema {
    let mut words = header(e.text).split(' ').skip(1);
    let mut s = Schema {
        name: Cow::Borrowed(e.name),
        ..Schema::default()
    };
    match words.next().unwrap_or("") {
        "object" => s.ty = Type::Object,
        "time" => {
            s.ty = if e.name.ends_with("MicroTime") {
                Type::MicroTime
            } else {
                Type::Time
            };
            s.format = Cow::Borrowed("date-time");
        }
        "int-or-string" => {
            s.ty = Type::IntOrString;
            s.format = Cow::Borrowed("int-or-string");
        }
        "quantity" => s.ty = Type::Quantity,
        _ => s.ty = Type::Any,
    }
    for w in words {
        if let Some(t) = w.strip_prefix("map=") {
            s.map_type = Some(map_type(t));
        }
    }
    for line in e.text.lines().skip(1) {
        s.fields.push(parse_field(line.trim_start_matches('\t')));
    }
    // Raw JSON, which the published schema calls an object without properties.
    if e.name.ends_with(".RawExtension") {
        s.ty = Type::Any;
    }
    if e.name.ends_with(".FieldsV1") || e.name.ends_with(".Patch") {
        s.preserve_unknown = true;
        s.additional = Additional::Open;
    }
    s.fields.sort_by(|a, b| a.name.cmp(&b.name));
    s
}

fn map_type(t: &str) -> MapType {
    if t == "atomic" {
        MapType::Atomic
    } else {
        MapType::Granular
    }
}

fn parse_field(line: &'static str) -> Field {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or("");
    let mut f = Field {
        name: Cow::Borrowed(name),
        schema: parse_type(words.next().unwrap_or("any")),
        ..Field::default()
    };
    for w in words {
        let (key, value) = w.split_once('=').unwrap_or((w, ""));
        let s = &mut f.schema;
        match key {
            "req" => f.required = true,
            "ptr" => f.pointer = true,
            "omit" => f.omit_empty = true,
            "zero" => f.omit_zero = true,
            "def" => s.default = serde_json::from_str(value).ok(),
            "idef" => {
                let default = serde_json::from_str(value).ok();
                if let Some(items) = &mut s.items {
                    items.default = default;
                } else if let Additional::Of(of) = &mut s.additional {
                    of.default = default;
                }
            }
            "list" => match value.split_once(':') {
                Some((_, keys)) => {
                    s.list_type = Some(ListType::Map);
                    s.list_keys = keys.split(',').map(Cow::Borrowed).collect();
                }
                None if value == "set" => s.list_type = Some(ListType::Set),
                None => s.list_type = Some(ListType::Atomic),
            },
            "map" => s.map_type = Some(map_type(value)),
            "patch" => s.patch_strategy = Cow::Borrowed(value),
            "key" => s.patch_merge_key = Cow::Borrowed(value),
            "go" => s.go_type = Cow::Borrowed(value),
            _ => {}
        }
    }
    // The published default of a union of struct and pointer names the schema again; it is none.
    if f.schema
        .default
        .as_ref()
        .is_some_and(|d| d.get("allOf").is_some() || d.get("type").is_some())
    {
        f.schema.default = None;
    }
    f
}

fn parse_type(text: &'static str) -> Schema {
    let of = |ty: Type, format: &'static str| Schema {
        ty,
        format: Cow::Borrowed(format),
        ..Schema::default()
    };
    if let Some(item) = text.strip_prefix("[]") {
        return Schema {
            items: Some(Box::new(parse_type(item))),
            ..of(Type::Array, "")
        };
    }
    if let Some(value) = text.strip_prefix("{}") {
        return Schema {
            additional: Additional::Of(Box::new(parse_type(value))),
            ..of(Type::Object, "")
        };
    }
    match text {
        "string" => of(Type::String, ""),
        "boolean" => of(Type::Boolean, ""),
        "int32" => of(Type::Integer, "int32"),
        "int64" => of(Type::Integer, "int64"),
        "integer" => of(Type::Integer, ""),
        "double" => of(Type::Number, "double"),
        "bytes" => of(Type::Bytes, "byte"),
        "object" => Schema {
            preserve_unknown: true,
            additional: Additional::Open,
            ..of(Type::Object, "")
        },
        name => reference(name).unwrap_or_else(Schema::any),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses_and_every_reference_resolves() {
        for line in TEXT.lines().filter(|l| l.starts_with('\t')) {
            let ty = line.trim().split(' ').nth(1).unwrap();
            let base = ty
                .trim_start_matches("[]")
                .trim_start_matches("{}")
                .trim_start_matches("[]");
            if base.contains('.') {
                assert!(schema(base).is_some(), "{base}");
            }
        }
        let mut n = 0;
        for name in type_names() {
            let s = schema(name).unwrap();
            assert_eq!(s.name, name);
            assert!(s.fields.windows(2).all(|w| w[0].name < w[1].name));
            n += 1;
        }
        assert!(n > 700);
    }

    #[test]
    fn facts_of_a_pod() {
        let pod = schema("io.k8s.api.core.v1.Pod").unwrap();
        let spec = &pod.field("spec").unwrap().schema;
        let containers = spec.field("containers").unwrap();
        assert!(containers.required && !containers.omit_empty);
        assert_eq!(containers.schema.list_type(), ListType::Map);
        assert_eq!(containers.schema.list_keys(), ["name"]);
        assert!(containers.schema.patch_merges());
        let items = containers.schema.items().unwrap();
        assert_eq!(items.type_name(), "io.k8s.api.core.v1.Container");
        let ports = &items.field("ports").unwrap().schema;
        assert_eq!(ports.list_keys(), ["containerPort", "protocol"]);
        assert_eq!(
            ports
                .items()
                .unwrap()
                .field("protocol")
                .unwrap()
                .schema
                .default,
            Some(Value::from("TCP"))
        );
        assert_eq!(kind_type("", "v1", "Pod"), Some("io.k8s.api.core.v1.Pod"));
        assert_eq!(kind_type("apps", "v1", "Nope"), None);
        let limits = schema("io.k8s.api.core.v1.ResourceRequirements").unwrap();
        let Additional::Of(q) = limits.field("limits").unwrap().schema.additional() else {
            panic!("limits is a map");
        };
        assert_eq!(q.kind(), Type::Quantity);
        assert!(schema("io.k8s.api.core.v1.LabelSelector").is_none());
    }
}

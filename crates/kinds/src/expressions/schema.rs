//! Schemas of served types as expressions see them: built-in ones from the table, custom ones as
//! their definition declares them.

use std::collections::BTreeMap;

use keelson_api::{Additional, ListType, Schema as Served, Type};
use keelson_cel::{DeclType, Schema};

/// Deeper parts are not visible; types that hold themselves end here or earlier.
const MAX_DEPTH: usize = 64;

/// What objects of a served kind look like; nothing when expressions cannot see any of it.
pub fn declared(served: &Served, name: &str) -> Option<DeclType> {
    DeclType::from_schema(&schema(served), true).map(|decl| decl.named(name))
}

/// A served schema without references. A type inside of itself is cut off where it comes again.
pub fn schema(served: &Served) -> Schema {
    build(served, &mut Vec::new())
}

fn build<'a>(served: &'a Served, above: &mut Vec<&'a str>) -> Schema {
    let name = served.type_name();
    let again = !name.is_empty() && above.contains(&name);
    if again || above.len() >= MAX_DEPTH {
        return Schema::default();
    }
    above.push(name);
    let out = shape(served, above);
    above.pop();
    out
}

fn shape<'a>(served: &'a Served, above: &mut Vec<&'a str>) -> Schema {
    let rules = served.rules.as_deref();
    let (ty, format) = match served.kind() {
        Type::Object => ("object", ""),
        Type::Array => ("array", ""),
        Type::String => ("string", &*served.format),
        Type::Integer => ("integer", ""),
        Type::Number => ("number", ""),
        Type::Boolean => ("boolean", ""),
        Type::Bytes => ("string", "byte"),
        Type::Time | Type::MicroTime => ("string", "date-time"),
        // A quantity is text or a number, which has no type here.
        Type::IntOrString | Type::Quantity | Type::Any => ("", ""),
    };
    let number = |of: fn(&keelson_api::Rules) -> Option<u64>| {
        let bound = rules.and_then(of)?;
        Some(i64::try_from(bound).unwrap_or(i64::MAX))
    };
    let properties: BTreeMap<String, Schema> = served
        .fields()
        .iter()
        .map(|field| (field.name.to_string(), build(&field.schema, above)))
        .collect();
    let longest_enum = rules
        .filter(|rules| !rules.enum_values.is_empty())
        .map(|rules| {
            let values = rules.enum_values.iter().filter_map(|v| v.as_str());
            let longest = values.map(str::len).max().unwrap_or(0);
            i64::try_from(longest).unwrap_or(i64::MAX)
        });
    Schema {
        ty: ty.to_owned(),
        format: format.to_owned(),
        nullable: served.nullable,
        int_or_string: matches!(served.kind(), Type::IntOrString),
        embedded_resource: served.is_embedded_resource(),
        preserve_unknown: served.keeps_unknown(),
        list_type: match served.declared_list_type() {
            Some(ListType::Map) => "map",
            Some(ListType::Set) => "set",
            Some(ListType::Atomic) => "atomic",
            None => "",
        }
        .to_owned(),
        list_map_keys: served.list_keys().iter().map(ToString::to_string).collect(),
        items: served.items().map(|of| Box::new(build(of, above))),
        properties: (!properties.is_empty()).then_some(properties),
        additional_properties: match served.additional() {
            Additional::Of(values) => Some(Box::new(build(values, above))),
            Additional::Open | Additional::Closed => None,
        },
        max_items: number(|rules| rules.max_items),
        max_length: number(|rules| rules.max_length),
        max_properties: number(|rules| rules.max_properties),
        required: served
            .fields()
            .iter()
            .filter(|field| field.required)
            .map(|field| field.name.to_string())
            .collect(),
        longest_enum,
        has_default: served.default.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cel::{DeclKind, Type};

    fn field<'a>(decl: &'a DeclType, path: &str) -> &'a DeclType {
        path.split('.').fold(decl, |decl, name| match &decl.kind {
            DeclKind::Object(fields) => &fields[name].ty,
            DeclKind::List(of) | DeclKind::Map(_, of) => of,
            DeclKind::Scalar => panic!("{name} of a scalar"),
        })
    }

    #[test]
    fn built_in_types_have_their_fields() {
        let served = keelson_api::schema("io.k8s.api.apps.v1.Deployment").unwrap();
        let decl = declared(served, "Deployment").unwrap();
        let ty = |path: &str| field(&decl, path).ty.clone();
        assert_eq!(ty("spec.replicas"), Type::Int);
        assert_eq!(ty("metadata.labels"), Type::map(Type::String, Type::String));
        assert_eq!(ty("metadata.creationTimestamp"), Type::Timestamp);
        assert_eq!(ty("spec.template.spec.containers.*.image"), Type::String);
        assert_eq!(ty("spec.strategy.rollingUpdate.maxSurge"), Type::Dyn);
    }

    #[test]
    fn a_type_that_holds_itself_ends() {
        let served = keelson_api::schema(
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        )
        .unwrap();
        assert!(declared(served, "CustomResourceDefinition").is_some());
    }
}
